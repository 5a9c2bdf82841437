"""Error rates over a whole split: the centre crop, or ten views with averaged softmax (§4.1)."""

import dataclasses
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from alexnet_jax.data import augment
from alexnet_jax.data.pipeline import eval_batches, eval_steps
from alexnet_jax.data.records import Split
from alexnet_jax.model.towers import DATA
from alexnet_jax.runtime.sharding import check_batch, fetch, local_rows, put_batch
from alexnet_jax.runtime.terminal import progress_bar
from alexnet_jax.training.setup import Setup


class Scores(NamedTuple):
    """Of a split. Errors are shares of all its images, in [0, 1]; loss is the mean, in nats."""

    loss: float
    top1_error: float
    top5_error: float
    images: int

    def named(self, prefix: str) -> dict[str, float]:
        """As metrics: 'val/top1_error' and so on."""
        values = {"loss": self.loss, "top1_error": self.top1_error, "top5_error": self.top5_error}
        return {f"{prefix}/{name}": value for name, value in values.items()}

    def text(self) -> str:
        """For people."""
        return (
            f"top-1 error {self.top1_error:.2%}, top-5 error {self.top5_error:.2%}, "
            f"loss {self.loss:.4f} ({self.images} images)"
        )


Check = Callable[[], None]
"""Raises something when the work is to be left."""


def _no_check() -> None:
    pass


class Evaluator:
    """Scores splits; each way of looking is compiled once.

    With one view the network runs once on the centre crop. With ten, the softmax outputs for the
    four corners, the centre, and their mirror images are averaged, as in §4.1.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._one = self._compiled(self._centre)
        self._ten = self._compiled(self._average)

    def score(
        self, params: Any, split: Split, *, ten_views: bool, what: str, check: Check = _no_check
    ) -> Scores:
        """Scores every image of `split` once; the progress bar is called `what`.

        `check` is called before each batch, and ends it by raising something.
        """
        found = self._look(params, split, ten_views, what, keys=("loss", "rank"), check=check)
        return mean_scores(found["loss"], found["rank"])

    def log_probs(self, params: Any, split: Split, *, ten_views: bool, what: str) -> np.ndarray:
        """The logarithms of every class' probability for every image: float32 [n, classes]."""
        return self._look(params, split, ten_views, what, keys=("log_probs",))["log_probs"]

    def log_probs_of(self, params: Any, images: np.ndarray, *, ten_views: bool) -> np.ndarray:
        """As `log_probs`, of images that are in no split: uint8 [n, size, size, 3].

        Raises:
          UserError: the devices cannot share so many images equally.
        """
        mesh = self.setup.network.mesh
        check_batch(mesh, len(images), "the number of images")
        look = self._ten if ten_views else self._one
        batch = {"image": images, "label": np.zeros(len(images), np.int32)}
        placed = put_batch(mesh, batch, len(images))
        return fetch(look(params, self.setup.normalization, placed)["log_probs"])

    def _look(
        self,
        params: Any,
        split: Split,
        ten_views: bool,
        what: str,
        *,
        keys: Sequence[str],
        check: Check = _no_check,
    ) -> dict[str, np.ndarray]:
        """What `_compiled` finds for every image of `split`, in order; `keys` of it."""
        look = self._ten if ten_views else self._one
        found: list[dict[str, np.ndarray]] = []
        with closing(device_batches(self.setup, split, what)) as batches:
            for batch, images in batches:
                check()
                outcome = look(params, self.setup.normalization, batch)
                fetched = fetch({key: outcome[key] for key in keys})
                found.append({key: values[:images] for key, values in fetched.items()})
        return {key: np.concatenate([part[key] for part in found]) for key in keys}

    def _compiled(self, log_probabilities: Callable[..., jax.Array]) -> Any:
        """(params, normalization, batch) -> the loss, label rank and log_probs of each image."""

        def look(
            params: Any, normalization: dict[str, jax.Array], batch: dict[str, jax.Array]
        ) -> dict[str, jax.Array]:
            network = self.setup.network.bind(params)
            probs = log_probabilities(network, normalization["mean"], batch["image"])
            own = jnp.take_along_axis(probs, batch["label"][:, None], axis=-1)[:, 0]
            ranks = label_ranks(probs, batch["label"])
            return {"loss": -own, "rank": ranks, "log_probs": probs}

        network = self.setup.network
        rows = network.spec(DATA)
        return network.jit(network.shard_map(look, (network.specs, P(), rows), rows))

    def _view(self, network: Any, mean: jax.Array, images: jax.Array, number: Any) -> jax.Array:
        images = augment.view(images, mean, self.setup.config.data, number)
        return jax.nn.log_softmax(network(images))

    def _centre(self, network: Any, mean: jax.Array, images: jax.Array) -> jax.Array:
        return self._view(network, mean, images, augment.CENTRE)

    def _average(self, network: Any, mean: jax.Array, images: jax.Array) -> jax.Array:
        """The logarithm of the mean of ten softmax outputs.

        One view after the other: all ten at once would need ten times the memory.
        """
        views = jnp.arange(augment.VIEWS)
        outputs = jax.lax.map(lambda number: self._view(network, mean, images, number), views)
        return jax.nn.logsumexp(outputs, axis=0) - jnp.log(augment.VIEWS)


def device_batches(
    setup: Setup, split: Split, what: str
) -> Generator[tuple[dict[str, jax.Array], int]]:
    """Every image of `split` in order, once, under a progress bar called `what`.

    Yields:
      A batch of `config.evaluate.batch` on the setup's devices: 'image' uint8 [b, size, size, 3],
      'label' int32 [b]; and how many of its rows are images: the last batch is filled up.
    """
    c, mesh = setup.config, setup.network.mesh
    batch = c.evaluate.batch
    rows = local_rows(mesh, batch)
    batches = eval_batches(split, batch=batch, rows=rows, threads=c.data.threads)
    total = eval_steps(len(split), batch)
    with closing(batches), progress_bar(total, what, "batches", leave=False) as bar:
        for number, one in enumerate(batches):
            yield put_batch(mesh, one, batch), min(batch, len(split) - number * batch)
            bar.update()


def label_ranks(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """How many classes stand before the right one: int32 [b]; 0 is right, under 5 is in the top 5.

    Equal scores stand in the order of their numbers. What is not a number is never right.

    Args:
      scores: [b, classes], logits or probabilities.
      labels: int [b].
    """
    own = jnp.take_along_axis(scores, labels[:, None], axis=-1)
    later = jnp.arange(scores.shape[-1]) >= labels[:, None]
    behind = (scores < own) | ((scores == own) & later)
    return jnp.sum(~behind, axis=-1, dtype=jnp.int32)


@dataclasses.dataclass
class RunningScores:
    """Sums over images, from which come their `Scores`; exact in a JSON file and back."""

    loss: float = 0.0
    wrong1: int = 0
    wrong5: int = 0
    images: int = 0

    def add(self, losses: np.ndarray, ranks: np.ndarray) -> None:
        """Adds images by their losses, float [n], and their labels' ranks, int [n]."""
        self.loss += float(np.sum(losses, dtype=np.float64))
        self.wrong1 += int(np.sum(ranks >= 1))
        self.wrong5 += int(np.sum(ranks >= 5))
        self.images += len(ranks)

    def scores(self) -> Scores:
        """The means of what was added."""
        n = self.images
        return Scores(self.loss / n, self.wrong1 / n, self.wrong5 / n, n)


def mean_scores(losses: np.ndarray, ranks: np.ndarray) -> Scores:
    """The means over images of their losses, float [n], and labels' ranks, int [n]."""
    running = RunningScores()
    running.add(losses, ranks)
    return running.scores()
