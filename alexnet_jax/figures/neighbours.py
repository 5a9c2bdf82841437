"""The most similar images by what a layer of a network gives (§6.1, Fig. 4)."""

from typing import Any, NamedTuple

import jax
import numpy as np

from alexnet_jax.data.records import Split
from alexnet_jax.runtime.sharding import put_batch
from alexnet_jax.training.scores import device_batches
from alexnet_jax.training.setup import NetSetup


class Nearest(NamedTuple):
    """The nearest images of a split for each query image, nearest first.

    Attributes:
      indices: int [n, count], in the split.
      distances: float [n, count], Euclidean.
    """

    indices: np.ndarray
    distances: np.ndarray


def nearest(
    setup: NetSetup,
    params: Any,
    images: np.ndarray,
    split: Split,
    count: int,
    *,
    layer: str | None = None,
) -> Nearest:
    """The `count` images of `split` whose features are nearest to those of `images`.

    Only the nearest so far are kept, so the memory does not depend on the size of the split.

    Args:
      setup: of the network.
      params: its parameters.
      images: uint8 [n, size, size, 3]; n is divisible by the number of rows of devices.
      split: the images to search.
      count: neighbours of each image; at most the number of images in `split`.
      layer: whose output the features are, see `Net.features`; None: the last hidden layer, fc7.
    """
    from scipy.spatial.distance import cdist

    layer, first = layer or setup.config.model.names[-2], 0  # fc7 is before dropout

    def vectors(images: jax.Array) -> np.ndarray:
        found = np.asarray(setup.evaluator.outputs_of(params, images, layer), np.float64)
        return found.reshape(len(found), -1)

    asked = vectors(put_batch(setup.network.mesh, {"image": images}, len(images))["image"])
    best = Nearest(np.empty((len(asked), 0), int), np.empty((len(asked), 0)))
    c = setup.config
    batches = device_batches(
        setup.network.mesh,
        split,
        c.evaluate.batch,
        threads=c.data.threads,
        what="looking for the nearest",
    )
    for batch, number in batches:
        found = vectors(batch["image"])[:number]
        best = _nearer(best, first, cdist(asked, found), count)
        first += len(found)
    return best


def _nearer(best: Nearest, first: int, distances: np.ndarray, count: int) -> Nearest:
    """The nearest of `best` and of a new batch, whose images are numbered from `first` on."""
    new = np.broadcast_to(np.arange(first, first + distances.shape[1]), distances.shape)
    index = np.concatenate([best.indices, new], axis=1)
    distance = np.concatenate([best.distances, distances], axis=1)
    order = np.argsort(distance, axis=1, kind="stable")[:, :count]
    return Nearest(*(np.take_along_axis(part, order, axis=1) for part in (index, distance)))
