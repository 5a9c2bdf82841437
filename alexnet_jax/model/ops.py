"""The operations of §3: each as it is defined, and below it the form that is fast on a platform.

They are written for one tower: arrays are [batch, height, width, maps] or [batch, neurons]. A name
that ends in `_definition` is the plain definition. It is what runs outside of a device mesh, and
what the fast form below it is tested against. The platform is that of the mesh for which a program
is compiled, so that no form that was made for a CPU comes into a GPU's program.
"""

import math
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from alexnet_jax.config import Formula


def platform() -> str | None:
    """'cpu', 'gpu', ...: of the mesh that the program is for; None outside of a mesh."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else None


# --- convolution (§3.5) -----------------------------------------------------------------------

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Zeros above and below, and left and right, of an image."""

Maps = Float[Array, "b h w maps"]
Kernel = Float[Array, "rows columns seen maps"]


def convolve(
    x: Float[Array, "b h w seen"], kernel: Kernel, stride: int = 1, zeros: int | None = None
) -> Float[Array, "b h2 w2 maps"]:
    """The convolution of `x`, without a bias.

    `zeros` are added at each edge; None: see `conv_padding`.
    """
    window, _, seen, _ = kernel.shape
    padding = conv_padding(x.shape[1], window, stride), conv_padding(x.shape[2], window, stride)
    if zeros is not None:
        padding = (zeros, zeros), (zeros, zeros)
    if platform() == "cpu" and seen <= 4 and stride == 1:
        return _convolve_pairs(x, kernel, padding)
    return convolve_definition(x, kernel, stride, padding)


def conv_padding(side: int, window: int, stride: int) -> tuple[int, int]:
    """Zeros before and after a side of `side` pixels.

    With stride 1 a layer keeps its input's size. With a larger stride the last window may hang over
    the far edge, as in the 2012 code, which rounds the number of windows up: 224 pixels, window 11
    and stride 4 give 55 outputs and a padding of (0, 3).
    """
    if stride == 1:
        return window // 2, (window - 1) // 2
    outputs = -(-(side - window) // stride) + 1
    return 0, (outputs - 1) * stride + window - side


def convolve_definition(
    x: Float[Array, "b h w seen"], kernel: Kernel, stride: int, padding: Padding
) -> Float[Array, "b h2 w2 maps"]:
    """Each output is the sum of a window of `x` times a kernel."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_pairs(
    x: Float[Array, "b h w seen"], kernel: Kernel, padding: Padding
) -> Float[Array, "b h2 w2 maps"]:
    """`convolve_definition` with stride 1 for few colours, on a CPU: 0.6 to 0.7 of the time.

    With so few values in a window most of the time goes into fetching them. Here two neighbouring
    pixels are one pixel with twice the colours, and two kernels, the second moved by one pixel, are
    one kernel with twice the maps. The gradients would gain nothing and are the definition's.
    """
    batch, _, width, seen = x.shape
    window, maps = kernel.shape[0], kernel.shape[-1]
    outputs = width + sum(padding[1]) - window + 1
    pairs, beyond = -(-outputs // 2), window // 2  # of outputs; and of pixels to their right
    right = 2 * (pairs + beyond) - width - padding[1][0]
    x = jnp.pad(x, ((0, 0), padding[0], (padding[1][0], right), (0, 0)))
    x = x.reshape(batch, x.shape[1], pairs + beyond, 2 * seen)
    room = 2 * (1 + beyond) - window
    moved = [jnp.pad(kernel, ((0, 0), (by, room - by), (0, 0), (0, 0))) for by in (0, 1)]
    kernels = jnp.stack(moved, axis=-2).reshape(window, 1 + beyond, 2 * seen, 2 * maps)
    y = convolve_definition(x, kernels, 1, ((0, 0), (0, 0)))
    return y.reshape(batch, y.shape[1], 2 * pairs, maps)[:, :, :outputs]


def _convolve_pairs_forward(
    x: jax.Array, kernel: jax.Array, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve_pairs(x, kernel, padding), (x, kernel)


def _convolve_pairs_backward(
    padding: Padding, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(lambda x, k: convolve_definition(x, k, 1, padding), *saved)[1](gradient)


_convolve_pairs.defvjp(_convolve_pairs_forward, _convolve_pairs_backward)


# --- bias -------------------------------------------------------------------------------------


def add_bias(x: Maps, bias: Float[Array, " maps"]) -> Maps:
    """x + bias."""
    return _add_bias_by_product(x, bias) if platform() == "cpu" else x + bias


def _add_bias_by_product(x: Maps, bias: Float[Array, " maps"]) -> Maps:
    """`x + bias` on a CPU, with a gradient that is up to five times as fast.

    The bias times ones is a matrix product, which the compiler turns into an addition; but its
    gradient, a sum over the batch and all places, stays a product.
    """
    # The ones are made like x, so that they vary over the devices as x does. If they were the same
    # on all, the gradient would be summed over the devices before it is summed over the places.
    ones = jnp.ones_like(x, shape=(math.prod(x.shape[:-1]), 1))
    return x + (ones @ bias[None]).reshape(x.shape)


# --- local response normalisation (§3.3) ------------------------------------------------------


def lrn(x: Float[Array, "*places maps"], formula: Formula) -> Float[Array, "*places maps"]:
    """Local response normalisation over the nearest maps of the same tower.

    b_i = a_i / (k + alpha * sum of a_j^2)^beta, with the sum over the `formula.size` maps around i,
    cut off at the first and the last map. Computed in float32 at least; the result has x's dtype.
    """
    with jax.named_scope("lrn"):
        return _lrn(x, formula, (x.ndim - 1,))


def lrn_within(x: Maps, formula: Formula) -> Maps:
    """The same formula, but the sum is over `size` x `size` places of the same map.

    The paper does not mention it; the 2012 code has it after layer 2.
    """
    with jax.named_scope("lrn_within"):
        return _lrn(x, formula, (2, 1))


def _lrn(x: jax.Array, formula: Formula, axes: tuple[int, ...]) -> jax.Array:
    precise = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    form = _lrn_fast if platform() else lrn_definition
    return form(precise, formula, axes).astype(x.dtype)


def lrn_definition(x: jax.Array, formula: Formula, axes: tuple[int, ...]) -> jax.Array:
    """The formula, with windows of `formula.size` values along each of `axes`."""
    return x * _power(_lrn_base(x, formula, axes), formula.beta)


def _lrn_base(x: jax.Array, formula: Formula, axes: tuple[int, ...]) -> jax.Array:
    before, after = formula.size // 2, (formula.size - 1) // 2
    return formula.k + formula.alpha * _window_sums(jnp.square(x), before, after, axes)


def _window_sums(x: jax.Array, before: int, after: int, axes: tuple[int, ...]) -> jax.Array:
    """Sums over the values that lie so far before and after each, along each of `axes`."""
    # With an axis of one before the last, XLA adds in the order of version 0.1: the same bits.
    y = x[..., None, :] if axes == (x.ndim - 1,) else x
    axes = (y.ndim - 1,) if y.ndim > x.ndim else axes
    y = jnp.pad(y, [(before, after) if axis in axes else (0, 0) for axis in range(y.ndim)])
    for axis in axes:
        y = reduce(jnp.add, _window_views(y, axis, before + 1 + after, 1))
    return y.reshape(x.shape)


def _power(x: jax.Array, beta: float) -> jax.Array:
    """x ** -beta. The paper's 0.75 is computed by square roots, which are faster than a power."""
    return lax.rsqrt(x * jnp.sqrt(x)) if beta == 0.75 else x**-beta


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _lrn_fast(x: jax.Array, formula: Formula, axes: tuple[int, ...]) -> jax.Array:
    """`lrn_definition` with its gradient written out: half of the time of both passes on a CPU."""
    return lrn_definition(x, formula, axes)


def _lrn_forward(
    x: jax.Array, formula: Formula, axes: tuple[int, ...]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    base = _lrn_base(x, formula, axes)
    return x * _power(base, formula.beta), (x, base)


def _lrn_backward(
    formula: Formula,
    axes: tuple[int, ...],
    saved: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array]:
    x, base = saved
    direct = gradient * _power(base, formula.beta)
    # The adjoint of a sum over windows is a sum over the mirrored windows.
    before, after = (formula.size - 1) // 2, formula.size // 2
    through = _window_sums(direct * x / base, before, after, axes)
    return (direct - 2 * formula.alpha * formula.beta * x * through,)


_lrn_fast.defvjp(_lrn_forward, _lrn_backward)


# --- overlapping max pooling (§3.4) -----------------------------------------------------------


def max_pool(x: Maps, window: int, stride: int) -> Float[Array, "b h2 w2 maps"]:
    """The maxima of windows that lie wholly inside: h2 = (h - window) // stride + 1.

    Of equal values the first in reading order is the maximum, and only it gets the gradient.
    """
    with jax.named_scope("pool"):
        if not platform():
            return max_pool_definition(x, window, stride)
        return _max_along(_max_along(x, 2, window, stride), 1, window, stride)


def max_pool_definition(x: Maps, window: int, stride: int) -> Float[Array, "b h2 w2 maps"]:
    """The maximum of each window."""
    sides, strides = (1, window, window, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, sides, strides, "valid")


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_along(x: jax.Array, axis: int, window: int, stride: int) -> jax.Array:
    """Maxima along one axis. Rows first, then columns: views of 3 + 3 values, not of 3 x 3.

    On a CPU, forward and backward are six times as fast as `max_pool_definition`.
    """
    return reduce(jnp.maximum, _window_views(x, axis, window, stride))


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
    for view in _window_views(x, axis, window, stride):
        is_first = (view == highest) & ~taken
        parts.append(jnp.where(is_first, gradient, 0))
        taken |= is_first
    return (_sum_of_views(parts, x.shape[axis], axis, stride),)


_max_along.defvjp(_max_along_forward, _max_along_backward)


def _window_views(x: jax.Array, axis: int, window: int, stride: int) -> list[jax.Array]:
    """View i holds the i-th value of every window along an axis."""
    last = x.shape[axis] - window
    return [lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(window)]


def _sum_of_views(parts: list[jax.Array], side: int, axis: int, stride: int) -> jax.Array:
    """The adjoint of `_window_views`: for each of `side` values, the sum of its views' parts.

    The values 0, stride, 2 * stride, ... have the same place in their windows. So their sum is a
    sum of whole parts, moved; and the results for all `stride` such sets are interleaved.
    """
    length = -(-side // stride)
    zeros = _moved(jnp.zeros_like(parts[0]), 0, length, axis)

    def of_set(start: int) -> jax.Array:
        own = [_moved(part, by, length, axis) for by, part in enumerate(parts[start::stride])]
        return sum(own, start=zeros)

    sets = jnp.stack([of_set(start) for start in range(stride)], axis + 1)
    whole = sets.reshape(*sets.shape[:axis], -1, *sets.shape[axis + 2 :])
    return lax.slice_in_dim(whole, 0, side, axis=axis)


def _moved(x: jax.Array, by: int, length: int, axis: int) -> jax.Array:
    """`x` moved along an axis, which gets `length`; zeros where nothing was."""
    edges = [(0, 0, 0)] * x.ndim
    edges[axis] = (by, length - x.shape[axis] - by, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


# --- pooling of the CIFAR-10 nets -------------------------------------------------------------


def max_pool_over_edges(x: Maps, window: int, stride: int) -> Float[Array, "b h2 w2 maps"]:
    """As `max_pool`, but the last windows may hang over the far edges, as in the 2012 code."""
    return max_pool(
        jnp.pad(x, _far_edges(x, window, stride), constant_values=-jnp.inf), window, stride
    )


def average_pool_over_edges(x: Maps, window: int, stride: int) -> Float[Array, "b h2 w2 maps"]:
    """Means over the windows of `max_pool_over_edges`; what lies outside does not count."""

    def total(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, _far_edges(x, window, stride))
        return _sum_along(_sum_along(x, 2, window, stride), 1, window, stride)

    with jax.named_scope("pool"):
        return total(x) / total(jnp.ones_like(x, shape=(1, *x.shape[1:3], 1)))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _sum_along(x: jax.Array, axis: int, window: int, stride: int) -> jax.Array:
    """Sums over windows along one axis, with a gradient that interleaves as `_max_along`'s does."""
    return reduce(jnp.add, _window_views(x, axis, window, stride))


def _sum_along_forward(
    x: jax.Array, axis: int, window: int, stride: int
) -> tuple[jax.Array, jax.Array]:
    return _sum_along(x, axis, window, stride), x


def _sum_along_backward(
    axis: int, window: int, stride: int, x: jax.Array, gradient: jax.Array
) -> tuple[jax.Array]:
    return (_sum_of_views([gradient] * window, x.shape[axis], axis, stride),)


_sum_along.defvjp(_sum_along_forward, _sum_along_backward)


def _far_edges(x: jax.Array, window: int, stride: int) -> list[tuple[int, int]]:
    """The padding, on the far sides only, that makes the last windows whole."""
    hang = [max(window - side, -(side - window) % stride) for side in x.shape[1:3]]
    return [(0, 0), (0, hang[0]), (0, hang[1]), (0, 0)]


# --- dropout (§4.2) ---------------------------------------------------------------------------


class DropoutKey(NamedTuple):
    """Where the dropout masks of a step come from.

    A mask depends on the seed, the step, the layer, the tower and the image's row in the GLOBAL
    batch. So masks are the same on every mesh and after a restart.
    """

    key: Key[Array, ""]  # of the seed and the step
    rows: Int[Array, " b"]  # the images' rows in the global batch


def dropout(
    x: Float[Array, "b neurons"],
    rate: float,
    key: DropoutKey | None,
    layer: int,
    tower: Int[Array, ""] | int,
) -> Float[Array, "b neurons"]:
    """Zero with probability `rate` in training; times 1 - rate in testing (`key` is None).

    This is not the inverted form, which scales in training: with the paper's initial weights the
    two train differently.
    """
    if not rate:
        return x
    if key is None:
        return x * jnp.asarray(1 - rate, x.dtype)
    of_layer = jax.random.fold_in(key.key, layer)

    def keep(row: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(of_layer, row), tower)
        return jax.random.bernoulli(own, 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(keep)(key.rows), x, 0)
