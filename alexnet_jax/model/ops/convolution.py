"""Convolutions (§3.5) and biases."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from alexnet_jax.model.ops.platform import platform
from alexnet_jax.model.ops.windows import Maps, Pooled

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Zeros above and below, and left and right, of an image."""

Kernel = Float[Array, "rows columns seen maps"]


def convolve(
    x: Float[Array, "b h w all_seen"], kernel: Kernel, stride: int = 1, zeros: int | None = None
) -> Pooled:
    """The convolution of `x`, without a bias, with `zeros` at each edge; None: `conv_padding`.

    Where `x` has as many maps as several kernels see, each group of maps has its share of kernels.
    """
    window, _, seen, _ = kernel.shape
    padding = conv_padding(x.shape[1], window, stride), conv_padding(x.shape[2], window, stride)
    if zeros is not None:
        padding = (zeros, zeros), (zeros, zeros)
    few = x.shape[-1] == seen <= 4
    if platform() == "cpu" and few and stride == 1:
        return _convolve_pairs(x, kernel, padding)
    if platform() == "gpu" and few and stride > 1:
        return convolve_blocks(x, kernel, stride, padding)
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
    x: Float[Array, "b h w all_seen"], kernel: Kernel, stride: int, padding: Padding
) -> Pooled:
    """Each output is the sum of a window of `x` times a kernel."""
    return lax.conv_general_dilated(
        *(x, kernel, (stride, stride), padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[-2],
    )


def convolve_blocks(
    x: Float[Array, "b h w seen"], kernel: Kernel, stride: int, padding: Padding
) -> Pooled:
    """`convolve_definition` for few colours and a stride, on a GPU: conv1 in a sixth of the time.

    cuDNN fills three colours up to eight with zeros, in passes of their own, and has slow kernels
    for that. Here a block of stride x stride pixels is one pixel with all their colours; the kernel
    is filled up to whole blocks, and moves by one of them.
    """
    window, _, seen, maps = kernel.shape
    blocks = -(-window // stride)  # that a kernel covers, in each direction
    rows, columns = (
        (side + sum(zeros) - window) // stride + blocks
        for side, zeros in zip(x.shape[1:3], padding, strict=True)
    )
    far = (n * stride - side for n, side in zip((rows, columns), x.shape[1:3], strict=True))
    edges = [(before, after - before, 0) for (before, _), after in zip(padding, far, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    x = x.reshape(len(x), rows, stride, columns, stride, seen)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), rows, columns, -1)
    more = (0, blocks * stride - window)
    kernel = jnp.pad(kernel, (more, more, (0, 0), (0, 0)))
    kernel = kernel.reshape(blocks, stride, blocks, stride, seen, maps)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(blocks, blocks, -1, maps)
    return convolve_definition(x, kernel, 1, ((0, 0), (0, 0)))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_pairs(x: Float[Array, "b h w seen"], kernel: Kernel, padding: Padding) -> Pooled:
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


# --- bias ----------------------------------------------------------------------------------------


def add_bias(x: Float[Array, "*places"], bias: Float[Array, "*units"]) -> Float[Array, "*places"]:
    """x + bias, in x's dtype. The last axes of `x` are those of `bias`.

    The gradient of the bias, a sum over the batch and all places, has the dtype of `bias` and is
    computed in it. As a sum of bfloat16 in bfloat16 it would stand still after some 256 equal
    numbers.
    """
    maps = x.ndim == 4 and bias.ndim == 1  # a locally connected layer has a bias for each place
    if platform() == "cpu" and maps and x.dtype == bias.dtype == jnp.float32:
        return _add_bias_by_product(x, bias)
    return add_bias_definition(x, bias)


@jax.custom_vjp
def add_bias_definition(x: jax.Array, bias: jax.Array) -> jax.Array:
    """The sum, and the sum of its gradient."""
    return x + bias.astype(x.dtype)


def _add_bias_forward(x: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    return add_bias_definition(x, bias), bias


def _add_bias_backward(bias: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    others = range(gradient.ndim - bias.ndim)
    return gradient, jnp.sum(gradient.astype(bias.dtype), others)


add_bias_definition.defvjp(_add_bias_forward, _add_bias_backward)


def _add_bias_by_product(x: Maps, bias: Float[Array, " maps"]) -> Maps:
    """`x + bias` on a CPU, with a gradient that is up to five times as fast.

    The bias times ones is a matrix product, which the compiler turns into an addition; but its
    gradient, a sum over the batch and all places, stays a product.
    """
    # The ones are made like x, so that they vary over the devices as x does. If they were the same
    # on all, the gradient would be summed over the devices before it is summed over the places.
    ones = jnp.ones_like(x, shape=(math.prod(x.shape[:-1]), 1))
    return x + (ones @ bias[None]).reshape(x.shape)
