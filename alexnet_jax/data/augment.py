"""From uint8 images to the network's input, computed on the device (§2, §4.1).

Pure functions of arrays, for use inside ``jit`` or ``shard_map``. The result for one image depends
on that image alone, so a batch may be split in any way.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32, Int32, UInt8

from alexnet_jax.config import Data, Lighting
from alexnet_jax.data.layout import Statistics

CENTRE = 4  # the number of the view that one-view error rates use
VIEWS = {1: (CENTRE,), 9: (0, 10, 1, 11, CENTRE, 12, 2, 13, 3), 10: tuple(range(10))}
"""The numbers of the views of a test image whose softmax outputs are averaged; see `view`.

Ten: four corners and the centre, and their mirror images (§4.1). Nine: three rows of three crops,
as in the authors' code for CIFAR-10.
"""

# Of the training images of ILSVRC-2012. The standard deviations, in grey levels along the principal
# components, are from the statistics that came with the 2012 code. The components (columns; rows
# are R, G, B) are widely republished; the first agrees with that code's (-.5635, -.5762, -.5920).
PUBLISHED_DEVIATIONS = np.array([121.78, 37.09, 19.72])
PUBLISHED_VECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)


def lighting_components(statistics: Statistics, lighting: Lighting) -> Float32[np.ndarray, "3 3"]:
    """The matrix M of the colour shifts M z, in grey levels, with z ~ N(0, 1)^3 (§4.1).

    The paper adds [p1 p2 p3][a1 l1, a2 l2, a3 l3]^T with a ~ N(0, sigma), p the eigenvectors and l
    the eigenvalues of the RGB covariance. An eigenvalue is a square, so its size depends on the
    scale of the images: the formula makes sense only on [0, 1]. There the shift along the first
    component has a standard deviation of 0.1 * (121.78 / 255)^2 = 0.023, or 5.8 grey levels. With
    l = 121.78^2, on 0..255, it would be 1,483 grey levels. The 2012 code multiplies by the root of
    the eigenvalue instead, so that the scale does not matter: 12.2 grey levels.

    Args:
      statistics: of the training set; used when ``lighting.source`` is 'training'.
      lighting: scale 'eigenvalue' (paper) or 'deviation' (2012), source and sigma.

    Returns:
      float32 [3, 3]; column i is component i, scaled; rows are R, G, B.
    """
    deviations, vectors = PUBLISHED_DEVIATIONS, PUBLISHED_VECTORS
    if lighting.source == "training":
        deviations, vectors = np.sqrt(statistics.eigenvalues), statistics.eigenvectors
    scale = deviations if lighting.scale == "deviation" else 255 * (deviations / 255) ** 2
    return (vectors * (lighting.sigma * scale)).astype(np.float32)


def train_input(
    batch: Mapping[str, Array],
    mean: Float32[Array, "size size 3"],
    components: Float32[Array, "3 3"],
    data: Data,
    lighting_on: ArrayLike,
) -> Float32[Array, "b crop crop 3"]:
    """Training images as the network's input.

    With ``data.mean`` 'crop' (the paper) the mean image is subtracted first: its part at the crop's
    own place, mirrored with the crop. With 'centre' (2012) the centre of the mean image, never
    mirrored, is subtracted from every crop. Then the lighting's shift is added;
    ``lighting.shrink`` (2012) divides the sum by 1 + sigma.

    Args:
      batch: from `pipeline.train_batches`; its image, corner, mirror and light are used.
      mean: the mean image, grey levels.
      components: from `lighting_components`.
      data: its crop, mean and lighting are used.
      lighting_on: a scalar, which may be traced; False leaves out the shift and the division.

    Returns:
      float32 [b, crop, crop, 3], grey levels.
    """
    mirror = batch["mirror"][:, None, None, None]
    images = _subtract_mean(batch["image"], batch["corner"], mirror, mean, data)
    on = jnp.asarray(lighting_on, jnp.float32)
    # A sum of three products and not a matrix product, which accelerators would round.
    shift = jnp.sum(batch["light"][:, None] * components[None] * on, axis=-1)  # [b, 3]
    images += shift[:, None, None, :]
    return images / (1 + data.lighting.sigma * on) if data.lighting.shrink else images


def view(
    images: UInt8[Array, "b size size 3"],
    mean: Float32[Array, "size size 3"],
    data: Data,
    number: ArrayLike,
) -> Float32[Array, "b crop crop 3"]:
    """One of the views of test images (§4.1), minus the mean image as in `train_input`.

    Args:
      images: test images.
      mean: the mean image, grey levels.
      data: its crop and mean are used.
      number: 0 to 13; may be traced. 0 to 3: the crops at top left, top right, bottom left, bottom
        right; 4 (`CENTRE`): at the centre; 5 to 9: the mirror images of 0 to 4; 10 to 13: the crops
        in the middle of the top, left, right and bottom edge.

    Returns:
      float32 [b, crop, crop, 3], grey levels.
    """
    free = images.shape[1] - data.crop
    half = free // 2
    ten = 2 * [(0, 0), (0, free), (free, 0), (free, free), (half, half)]
    edges = [(0, half), (half, 0), (half, free), (free, half)]
    number = jnp.asarray(number)
    corner = jnp.array(ten + edges)[number]
    crops = jax.vmap(lambda image: _cut(image, corner, data.crop))(images)
    return _subtract_mean(crops, corner[None], (number >= 5) & (number < 10), mean, data)


def _subtract_mean(
    crops: UInt8[Array, "b crop crop 3"],
    corners: Int32[Array, "corners 2"],
    mirror: Bool[Array, "..."],
    mean: Float32[Array, "size size 3"],
    data: Data,
) -> Float32[Array, "b crop crop 3"]:
    """`crops` minus their part of the mean image, and mirrored where `mirror` is true."""

    def mirrored(images: Array) -> Array:
        return jnp.where(mirror, images[:, :, ::-1], images)

    images = crops.astype(jnp.float32)
    if data.mean == "crop":
        return mirrored(images - jax.vmap(lambda corner: _cut(mean, corner, data.crop))(corners))
    half = (mean.shape[0] - data.crop) // 2
    return mirrored(images) - _cut(mean, jnp.array([half, half]), data.crop)


def _cut(image: Array, corner: Array, side: int) -> Array:
    """The square of `image`, [h, w, 3], that begins at (row, column) `corner`: [side, side, 3]."""
    return jax.lax.dynamic_slice(image, (*corner, 0), (side, side, 3))
