"""From uint8 images to what the network sees, on the device (§2, §4.1).

Pure functions of arrays, for use inside ``jit`` or ``shard_map``: one example's result depends on
nothing but that example, so a batch may be split in any way.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.config import Data, Lighting
from alexnet_jax.data.layout import Statistics

VIEWS = 10  # of a test image: four corners and the centre, then their mirror images
CENTRE = 4  # the view that alone is used for one-view error rates

# The training images of ILSVRC-2012: standard deviations in grey levels along the principal
# components, from the statistics that came with the 2012 code, and the components (columns; rows
# are R, G, B) as widely republished. The first agrees with that code's (-.5635, -.5762, -.5920).
PUBLISHED_DEVIATIONS = np.array([121.78, 37.09, 19.72])
PUBLISHED_VECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)


def lighting_components(statistics: Statistics, lighting: Lighting) -> np.ndarray:
    """The matrix M that makes colour shifts, M z in grey levels, of draws z ~ N(0, 1)^3 (§4.1).

    The paper adds [p1 p2 p3][a1 l1, a2 l2, a3 l3]^T with a ~ N(0, sigma), p the eigenvectors and l
    the eigenvalues of the RGB covariance. An eigenvalue is a square, so its size depends on the
    scale of the images: only on [0, 1] is the formula sensible. There the first direction's shift
    has a standard deviation of 0.1 * (121.78 / 255)^2 = 0.023, or 5.8 grey levels; with
    l = 121.78^2 on 0..255 it would be 1,483 grey levels. The 2012 code multiplies by the root of
    the eigenvalue instead, for which scale does not matter: 12.2 grey levels.

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
    batch: Mapping[str, jax.Array],
    mean: jax.Array,
    components: jax.Array,
    data: Data,
    lighting_on: jax.Array | bool,
) -> jax.Array:
    """Training images as the network sees them.

    With ``data.mean`` 'crop' (the paper) the mean image is subtracted first: its part at the crop's
    own place, mirrored with the image. With 'centre' (2012) the centre of the mean image, never
    mirrored, is subtracted from every crop. Then the lighting's shift is added;
    ``lighting.shrink`` (2012) divides the sum by 1 + sigma.

    Args:
      batch: from `pipeline.train_batches`; its image, corner, mirror and light.
      mean: float32 [size, size, 3].
      components: float32 [3, 3], from `lighting_components`.
      data: the mean and lighting sections.
      lighting_on: scalar; False leaves out the shift and the division. May be traced.

    Returns:
      float32 [b, crop, crop, 3], grey levels.
    """
    crops, corner, mirror = batch["image"], batch["corner"], batch["mirror"]
    means = jax.vmap(lambda at: _cut(mean, at, data.crop))(corner) if data.mean == "crop" else None
    images = _centred(crops, mirror[:, None, None, None], mean, means, data)
    on = jnp.asarray(lighting_on, jnp.float32)
    # A sum of three products and not a matrix product, which accelerators would round.
    shift = jnp.sum(batch["light"][:, None] * components[None] * on, axis=-1)  # [b, 3]
    images += shift[:, None, None, :]
    return images / (1 + data.lighting.sigma * on) if data.lighting.shrink else images


def view(images: jax.Array, mean: jax.Array, data: Data, number: jax.Array | int) -> jax.Array:
    """One of the ten views of test images (§4.1).

    Args:
      images: uint8 [b, size, size, 3].
      mean: float32 [size, size, 3].
      data: crop and mean.
      number: 0 to 9; may be traced. 0 to 3: the crops at top left, top right, bottom left, bottom
        right; 4 (`CENTRE`): at the centre; 5 to 9: the mirror images of 0 to 4.

    Returns:
      float32 [b, crop, crop, 3], grey levels, without the mean: as `train_input` subtracts it.
    """
    free = images.shape[1] - data.crop
    half = free // 2
    places = jnp.array([(0, 0), (0, free), (free, 0), (free, free), (half, half)])
    at = places[number % 5]
    crops = jax.vmap(lambda image: _cut(image, at, data.crop))(images)
    means = _cut(mean, at, data.crop)[None] if data.mean == "crop" else None
    return _centred(crops, jnp.asarray(number) >= 5, mean, means, data)


def _centred(
    crops: jax.Array, mirror: jax.Array, mean: jax.Array, means: jax.Array | None, data: Data
) -> jax.Array:
    """`crops` minus `means` and mirrored; or, without `means`, mirrored and minus the centre."""
    images = crops.astype(jnp.float32)
    if means is not None:
        images -= means
    images = jnp.where(mirror, images[:, :, ::-1], images)
    if means is None:
        half = (mean.shape[0] - data.crop) // 2
        images -= _cut(mean, jnp.array([half, half]), data.crop)[None]
    return images


def _cut(image: jax.Array, at: jax.Array, side: int) -> jax.Array:
    """The square of `image`, [h, w, 3], that begins at row and column `at`: [side, side, 3]."""
    return jax.lax.dynamic_slice(image, (at[0], at[1], jnp.zeros_like(at[0])), (side, side, 3))
