"""Error rates over a whole split: of the centre crop, or of several views of each image (§4.1)."""

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from alexnet_jax import config
from alexnet_jax.data import augment
from alexnet_jax.data.pipeline import eval_batches, eval_steps
from alexnet_jax.data.records import Split
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.model.towers import DATA
from alexnet_jax.optim import Params
from alexnet_jax.runtime.sharding import check_batch, fetch, local_rows, put_batch
from alexnet_jax.runtime.terminal import progress_bar

Views = Literal[1, 9, 10]
"""How many views of each image are averaged; `augment.VIEWS` has them."""

IN_FLIGHT = 2  # batches or steps that the devices have begun: enough to keep them busy


class Scores(NamedTuple):
    """Of a split. Errors are shares of all its images, in [0, 1]; the loss is the mean, in nats."""

    loss: float
    top1_error: float
    top5_error: float
    images: int

    @property
    def wrong(self) -> int:
        """How many images have a wrong best label."""
        return round(self.top1_error * self.images)

    def named(self, prefix: str) -> dict[str, float]:
        """As metrics: 'val/top1_error' and so on."""
        return {f"{prefix}/{name}": getattr(self, name) for name in self._fields[:3]}

    def text(self, *, top5: bool) -> str:
        """For people; `top5`: with the top-5 error."""
        more = f"top-5 error {self.top5_error:.2%}, " if top5 else ""
        return (
            f"top-1 error {self.top1_error:.2%}, {more}loss {self.loss:.4f} ({self.images} images)"
        )


class ImageScores(NamedTuple):
    """Of each image of a batch."""

    losses: jax.Array  # float32 [b], in nats
    ranks: jax.Array  # int32 [b], see `label_ranks`


class Evaluator:
    """Scores splits. Each number of views is compiled once, when it is first used.

    With one view, the network sees the centre crop. With ten (§4.1) or nine, the softmax outputs
    for the views in `augment.VIEWS` are averaged.
    """

    def __init__(
        self, network: ShardedModel, mean: jax.Array, data: config.Data, batch: int
    ) -> None:
        """`mean` is the mean image; `batch` the number of images in a batch over all devices."""
        self._network, self._mean, self._data, self._batch = network, mean, data, batch
        inputs, rows = (network.specs, P(), network.spec(DATA)), network.spec(DATA)
        self._look = {
            views: network.jit(network.shard_map(partial(self._view_batch, views), inputs, rows))
            for views in get_args(Views)
        }
        self._outputs: dict[str, Any] = {}

    def score(
        self,
        params: Params,
        split: Split,
        *,
        views: Views,
        what: str,
        check: Callable[[], None] = lambda: None,
    ) -> Scores:
        """Scores every image of `split` once; the progress bar is called `what`.

        The results stay on the devices until the end, and are fetched once. `check` is called
        before each batch; an exception from it ends the evaluation.
        """
        found = [scores for scores, _ in self._batches(params, split, views, what, check)]
        losses, ranks = (np.concatenate(part) for part in zip(*fetch(found), strict=True))
        return mean_scores(losses[: len(split)], ranks[: len(split)])

    def log_probs(
        self, params: Params, split: Split, *, views: Views, what: str
    ) -> Float[np.ndarray, "n classes"]:
        """The logarithms of the probabilities of all classes for every image: float32.

        They may need more memory than the devices have. So each batch is fetched when it is done,
        while the devices compute the next two.
        """
        return np.concatenate(list(self.log_probs_by_batch(params, split, views=views, what=what)))

    def log_probs_by_batch(
        self, params: Params, split: Split, *, views: Views, what: str
    ) -> Generator[Float[np.ndarray, "b classes"]]:
        """As `log_probs`, batch by batch. Read it to its end, or close it."""
        left = len(split)
        with closing(self._batches(params, split, views, what, lambda: None)) as batches:
            for _, log_probs in batches:
                yield fetch(log_probs)[:left]
                left -= self._batch

    def log_probs_of(
        self, params: Params, images: np.ndarray, *, views: Views
    ) -> Float[np.ndarray, "n classes"]:
        """As `log_probs`, for images that are in no split: uint8 [n, size, size, 3].

        Raises:
          UserError: the devices cannot share so many images equally.
        """
        check_batch(self._network.mesh, len(images), "the number of images")
        batch = {"image": images, "label": np.zeros(len(images), np.int32)}
        placed = put_batch(self._network.mesh, batch, len(images))
        return fetch(self._look[views](params, self._mean, placed)[1])

    def outputs_of(
        self, params: Params, images: jax.Array, layer: str
    ) -> Float[Array, " b *units"]:
        """What `layer` gives for the centre crops of images, float32, on the devices.

        Args:
          params: of the network.
          images: uint8 [b, size, size, 3], on the devices, as `put_batch` places them.
          layer: its name. Of a layer in two towers, tower A's maps or neurons come first.
        """
        if layer not in self._outputs:
            self._outputs[layer] = self._layer_program(layer)
        return self._outputs[layer](params, self._mean, images)

    @functools.cached_property
    def features(self) -> dict[str, int]:
        """The names that `outputs_of` knows, and the number of axes of what it gives."""
        network, crop = self._network, self._data.crop
        image = jax.ShapeDtypeStruct((1, crop, crop, 3), jnp.float32)
        shapes = jax.eval_shape(lambda p, x: network.bind(p).outputs(x), network.shapes, image)
        return {name: shape.ndim for name, shape in shapes.items()}

    def _layer_program(self, layer: str) -> Any:
        network = self._network

        def look(params: Params, mean: jax.Array, images: jax.Array) -> jax.Array:
            view = augment.view(images, mean, self._data, augment.CENTRE)
            return network.bind(params).outputs(view)[layer].astype(jnp.float32)

        between = [None] * (self.features[layer] - 2)
        # Split between the towers as their biases are, and pool5 as conv1.
        units = network.specs[layer if layer in network.specs else "conv1"]["bias"][-1]
        inputs = (network.specs, P(), network.spec(DATA))
        outputs = network.spec(DATA, *between, units)
        return network.jit(network.shard_map(look, inputs, outputs))

    def _batches(
        self, params: Params, split: Split, views: Views, what: str, check: Callable[[], None]
    ) -> Generator[tuple[ImageScores, jax.Array]]:
        """What `_view_batch` returns for each batch of `split`, on the devices, when it is done."""
        mesh, in_flight = self._network.mesh, deque[tuple[ImageScores, jax.Array]]()
        batches = device_batches(mesh, split, self._batch, threads=self._data.threads, what=what)
        with closing(batches):
            for batch, _ in batches:
                check()
                in_flight.append(self._look[views](params, self._mean, batch))
                if len(in_flight) > IN_FLIGHT:
                    yield jax.block_until_ready(in_flight.popleft())
        yield from in_flight

    def _view_batch(
        self, views: Views, params: Params, mean: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[ImageScores, jax.Array]:
        """The scores and the log_probs [b, classes] of a batch of `device_batches`."""
        network, labels = self._network.bind(params), batch["label"]

        def look(number: jax.Array | int) -> jax.Array:
            view = augment.view(batch["image"], mean, self._data, number)
            return jax.nn.log_softmax(network(view))

        if views == 1:
            log_probs = look(augment.CENTRE)
        else:  # one after the other: all at once would need ten times the memory
            seen = jax.lax.map(look, jnp.array(augment.VIEWS[views]))
            log_probs = jax.nn.logsumexp(seen, axis=0) - jnp.log(views)
        own = jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
        return ImageScores(-own, label_ranks(log_probs, labels)), log_probs


def device_batches(
    mesh: Mesh, split: Split, batch: int, *, threads: int, what: str
) -> Generator[tuple[dict[str, jax.Array], int]]:
    """Every image of `split` once and in order, with a progress bar called `what`.

    Yields:
      A batch of `batch` images on the mesh: 'image' uint8 [b, size, size, 3], 'label' int32 [b];
      and how many of its rows are images of the split: the last batch is filled up.
    """
    rows = local_rows(mesh, batch)
    batches = eval_batches(split, batch=batch, rows=rows, threads=threads)
    total = eval_steps(len(split), batch)
    with closing(batches), progress_bar(total, what, "batches", leave=False) as bar:
        for number, one in enumerate(batches):
            yield put_batch(mesh, one, batch), min(batch, len(split) - number * batch)
            bar.update()


def label_ranks(scores: Float[Array, "b classes"], labels: Int[Array, " b"]) -> Int[Array, " b"]:
    """The number of classes that score higher than the right one: int32 [b].

    0 means that the best class is right, less than 5 that the right one is among the best five. Of
    equal scores, that of the lower class number counts as higher. NaN is never right.

    Args:
      scores: logits, probabilities or their logarithms.
      labels: the right classes, each from 0 on and below the number of classes; not checked here,
        but where labels enter: by `prepare`, when records are opened, and in `evaluate`.
    """
    own = jnp.take_along_axis(scores, labels[:, None], axis=-1)
    later = jnp.arange(scores.shape[-1]) >= labels[:, None]
    behind = (scores < own) | ((scores == own) & later)
    return jnp.sum(~behind, axis=-1, dtype=jnp.int32)


@dataclasses.dataclass
class RunningScores:
    """Sums over images so far, from which `Scores` follow. JSON keeps them exactly."""

    loss: float = 0.0
    wrong1: int = 0
    wrong5: int = 0
    images: int = 0

    def add(self, losses: np.ndarray, ranks: np.ndarray) -> None:
        """Adds images by their losses, float [n], and the ranks of their labels, int [n]."""
        self.loss += float(np.sum(losses, dtype=np.float64))
        self.wrong1 += int(np.sum(ranks >= 1))
        self.wrong5 += int(np.sum(ranks >= 5))
        self.images += len(ranks)

    def add_all(self, batches: Sequence[ImageScores]) -> None:
        """Adds the images of batches, whose scores it fetches from the devices."""
        for losses, ranks in fetch(batches):
            self.add(losses, ranks)

    def scores(self) -> Scores:
        """The means over the images so far."""
        n = self.images
        return Scores(self.loss / n, self.wrong1 / n, self.wrong5 / n, n)


def mean_scores(losses: np.ndarray, ranks: np.ndarray) -> Scores:
    """The scores of images by their losses, float [n], and the ranks of their labels, int [n]."""
    running = RunningScores()
    running.add(losses, ranks)
    return running.scores()
