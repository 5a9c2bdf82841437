"""One tower's convolution, and how its gradients are computed where XLA's are slow.

On a CPU XLA's gradient of the kernel is the slowest pass of the whole network. There the same sums
are taken as one matrix product for each image over its patches, two to three times as fast, and
so is the strided convolution of layer 1. Elsewhere everything is XLA's.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]


def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """[b, h, w, seen] with [window, window, seen, n] -> [b, h', w', n], in x's dtype.

    Args:
      x: images or maps.
      kernel: of x's dtype.
      stride: of rows and columns.
      padding: zeros above and below, left and right.
    """
    if jax.default_backend() != "cpu":
        return _plain(x, kernel, stride, padding)
    x, kernel = _as_differing_as(kernel, x), _as_differing_as(x, kernel)
    return _by_patches(x, kernel, stride, padding)


def _as_differing_as(other: jax.Array, x: jax.Array) -> jax.Array:
    """`x`, in ``shard_map``'s eyes different on the devices on which `other` or itself is.

    A function with a derivative of its own must not mix arrays that differ between devices and
    arrays that do not. JAX sums a gradient over devices where an array is made to differ: here.
    """
    return jnp.where(True, x, lax.stop_gradient(other).reshape(-1)[0])


def _plain(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _by_patches(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    if stride == 1:
        return _plain(x, kernel, stride, padding)
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return lax.map(
        lambda image: _patches(image, kernel.shape[0], stride) @ matrix, _pad(x, padding)
    )


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _by_patches(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int, padding: Padding, saved: tuple[jax.Array, jax.Array], pull: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of x, XLA's, and of the kernel: the sum over images of patches^T pull."""
    x, kernel = saved
    (to_x,) = jax.linear_transpose(lambda x: _plain(x, kernel, stride, padding), x)(pull)

    def add(total: jax.Array, image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        picture, wanted = image
        patches = _patches(picture, kernel.shape[0], stride)
        return total + jnp.einsum("yxp,yxn->pn", patches, wanted), None

    nothing = jnp.zeros_like(kernel).reshape(-1, kernel.shape[-1])
    total, _ = lax.scan(add, nothing, (_pad(x, padding), pull))
    return to_x, total.reshape(kernel.shape)


_by_patches.defvjp(_forward, _backward)


def _pad(x: jax.Array, padding: Padding) -> jax.Array:
    return jnp.pad(x, ((0, 0), *padding, (0, 0)))


def _patches(image: jax.Array, window: int, stride: int) -> jax.Array:
    """What each output sees: [h, w, seen] -> [h', w', window * window * seen]."""
    rows, columns = ((side - window) // stride + 1 for side in image.shape[:2])

    def shifted(top: int, left: int) -> jax.Array:
        bottom, right = top + (rows - 1) * stride + 1, left + (columns - 1) * stride + 1
        return image[top:bottom:stride, left:right:stride]

    places = [shifted(top, left) for top in range(window) for left in range(window)]
    return jnp.concatenate(places, axis=-1)
