"""Overlapping max pooling (§3.4), and the pooling of the CIFAR-10 nets."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.model.ops.places import (
    LARGEST,
    Pooling,
    at_place,
    first_maximum,
    from_cells,
    to_maxima,
)
from alexnet_jax.model.ops.platform import platform
from alexnet_jax.model.ops.windows import Maps, Pooled, sum_of_views, window_views


def max_pool(x: Maps, window: int, stride: int) -> Pooled:
    """The maxima of windows that lie wholly inside: h2 = (h - window) // stride + 1.

    Of equal values the first in reading order is the maximum, and only it gets the gradient.
    """
    with jax.named_scope("pool"):
        if platform() == "gpu" and window <= LARGEST:
            return max_pool_by_place(x, window, stride)
        if not platform():
            return max_pool_definition(x, window, stride)
        return _max_along(_max_along(x, 2, window, stride), 1, window, stride)


def max_pool_definition(x: Maps, window: int, stride: int) -> Pooled:
    """The maximum of each window."""
    sides, strides = (1, window, window, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, sides, strides, "valid")


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_along(x: jax.Array, axis: int, window: int, stride: int) -> jax.Array:
    """Maxima along one axis. Rows first, then columns: views of 3 + 3 values, not of 3 x 3.

    On a CPU, forward and backward are six times as fast as `max_pool_definition`.
    """
    return reduce(jnp.maximum, window_views(x, axis, window, stride))


def _max_along_forward(
    x: jax.Array, axis: int, window: int, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    highest = _max_along(x, axis, window, stride)
    return highest, (x, highest)


def _max_along_backward(
    axis: int, window: int, stride: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array]:
    x, highest = saved
    parts, taken = [], jnp.zeros_like(highest, bool)
    for view in window_views(x, axis, window, stride):
        is_first = (view == highest) & ~taken
        parts.append(jnp.where(is_first, gradient, 0))
        taken |= is_first
    return (sum_of_views(parts, x.shape[axis], axis, stride),)


_max_along.defvjp(_max_along_forward, _max_along_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def max_pool_by_place(x: jax.Array, window: int, stride: int) -> jax.Array:
    """On a GPU: the gradient needs a byte for each maximum, and `x` no more.

    0.14 GB less in a step of the whole network at batch 1024, for conv5 alone (compiled for an
    H200).
    """
    return _max_pool_by_place_forward(x, window, stride)[0]


def _max_pool_by_place_forward(
    x: jax.Array, window: int, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    p = Pooling(window, stride, *x.shape[1:3])
    highest, place, _ = first_maximum([(at_place(x, *one, p),) for one in p.places], p)
    return highest, (place, x[:0])  # none of x, but its shape


def _max_pool_by_place_backward(
    window: int, stride: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array]:
    place, like = saved
    p = Pooling(window, stride, *like.shape[1:3])
    parts = to_maxima(place, gradient, p)
    return (from_cells(jax.tree.map(lambda one: one.astype(gradient.dtype), parts), p),)


max_pool_by_place.defvjp(_max_pool_by_place_forward, _max_pool_by_place_backward)


# --- pooling of the CIFAR-10 nets ----------------------------------------------------------------


def max_pool_over_edges(x: Maps, window: int, stride: int) -> Pooled:
    """As `max_pool`, but the last windows may hang over the far edges, as in the 2012 code."""
    return max_pool(
        jnp.pad(x, _far_edges(x, window, stride), constant_values=-jnp.inf), window, stride
    )


def average_pool_over_edges(x: Maps, window: int, stride: int) -> Pooled:
    """Means over the windows of `max_pool_over_edges`; what lies outside does not count."""

    def total(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, _far_edges(x, window, stride))
        return _sum_along(_sum_along(x, 2, window, stride), 1, window, stride)

    with jax.named_scope("pool"):
        return total(x) / total(jnp.ones_like(x, shape=(1, *x.shape[1:3], 1)))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _sum_along(x: jax.Array, axis: int, window: int, stride: int) -> jax.Array:
    """Sums over windows along one axis, with a gradient that interleaves as `_max_along`'s does."""
    return reduce(jnp.add, window_views(x, axis, window, stride))


def _sum_along_forward(
    x: jax.Array, axis: int, window: int, stride: int
) -> tuple[jax.Array, jax.Array]:
    return _sum_along(x, axis, window, stride), x


def _sum_along_backward(
    axis: int, window: int, stride: int, x: jax.Array, gradient: jax.Array
) -> tuple[jax.Array]:
    return (sum_of_views([gradient] * window, x.shape[axis], axis, stride),)


_sum_along.defvjp(_sum_along_forward, _sum_along_backward)


def _far_edges(x: jax.Array, window: int, stride: int) -> list[tuple[int, int]]:
    """The padding, on the far sides only, that makes the last windows whole."""
    hang = [hang_over(side, window, stride) for side in x.shape[1:3]]
    return [(0, 0), (0, hang[0]), (0, hang[1]), (0, 0)]


def pooled_side(side: int, window: int, stride: int, *, over_edges: bool) -> int:
    """The side of maps after pooling, pixels; `over_edges`: the last window may hang over."""
    hang = hang_over(side, window, stride) if over_edges else 0
    return (side + hang - window) // stride + 1


def hang_over(side: int, window: int, stride: int) -> int:
    """How far the last window hangs over the far edge; a window that lies wholly outside is none.

    There are such if windows are smaller than their stride. PyTorch and ONNX (`ceil_mode`) have
    none, either.
    """
    hang = max(window - side, -(side - window) % stride)
    return hang if hang < window else 0
