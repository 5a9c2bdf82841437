"""One file a run; installed, they are the package `alexnet_jax.configs`."""
