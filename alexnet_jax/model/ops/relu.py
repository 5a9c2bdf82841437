"""ReLU (§3.1)."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from alexnet_jax.model.ops.platform import platform


def relu(x: Float[Array, "*places units"]) -> Float[Array, "*places units"]:
    """max(0, x); its gradient is zero where x is."""
    return _relu_by_output(x) if platform() == "gpu" else jax.nn.relu(x)


@jax.custom_vjp
def _relu_by_output(x: jax.Array) -> jax.Array:
    """`jax.nn.relu`, whose gradient needs nothing but the output, which is kept anyway."""
    return jnp.maximum(x, 0)


def _relu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = jnp.maximum(x, 0)
    return y, y


def _relu_backward(y: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    # Without the barrier XLA asks x > 0 instead, keeps x beside y, and cannot leave ReLU to cuDNN.
    return (jnp.where(lax.optimization_barrier(y) > 0, gradient, 0),)


_relu_by_output.defvjp(_relu_forward, _relu_backward)
