"""The configs, one file for each kind of run; installed as the package `alexnet_jax.configs`."""
