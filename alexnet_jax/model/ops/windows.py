"""Windows along the axes of an array, as views of it."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Maps = Float[Array, "b h w maps"]
Pooled = Float[Array, "b h2 w2 maps"]


def window_views(x: jax.Array, axis: int, window: int, stride: int) -> list[jax.Array]:
    """View i holds the i-th value of every window along an axis."""
    last = x.shape[axis] - window
    return [lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(window)]


def sum_of_views(parts: list[jax.Array], side: int, axis: int, stride: int) -> jax.Array:
    """The adjoint of `window_views`: for each of `side` values, the sum of its views' parts.

    The values 0, stride, 2 * stride, ... have the same place in their windows. So their sum is a
    sum of whole parts, moved; and the results for all `stride` such sets are interleaved.
    """
    length = -(-side // stride)
    zeros = moved(jnp.zeros_like(parts[0]), 0, length, axis)

    def of_set(start: int) -> jax.Array:
        own = [moved(part, by, length, axis) for by, part in enumerate(parts[start::stride])]
        return sum(own, start=zeros)

    sets = jnp.stack([of_set(start) for start in range(stride)], axis + 1)
    whole = sets.reshape(*sets.shape[:axis], -1, *sets.shape[axis + 2 :])
    return lax.slice_in_dim(whole, 0, side, axis=axis)


def moved(x: jax.Array, by: int, length: int, axis: int) -> jax.Array:
    """`x` moved along an axis, which gets `length`; zeros where nothing was."""
    edges = [(0, 0, 0)] * x.ndim
    edges[axis] = (by, length - x.shape[axis] - by, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), edges)
