"""Error rates over a whole split: the centre crop, or ten views with averaged softmax (§4.1)."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from alexnet_jax import config, workdir
from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.data import augment
from alexnet_jax.data.pipeline import eval_batches, eval_steps
from alexnet_jax.data.records import Split
from alexnet_jax.errors import UserError
from alexnet_jax.model.mesh import DATA, local_rows, place_batch
from alexnet_jax.setup import Setup, make_setup
from alexnet_jax.state import restore_state
from alexnet_jax.terminal import progress_bar, say


class Scores(NamedTuple):
    """Of a split. Errors are shares of all its pictures, in [0, 1]; loss is the mean, in nats."""

    loss: float
    top1_error: float
    top5_error: float
    pictures: int

    def named(self, prefix: str) -> dict[str, float]:
        """As metrics: 'val/top1_error' and so on."""
        values = {"loss": self.loss, "top1_error": self.top1_error, "top5_error": self.top5_error}
        return {f"{prefix}/{name}": value for name, value in values.items()}

    def text(self) -> str:
        """For people."""
        return (
            f"top-1 error {self.top1_error:.2%}, top-5 error {self.top5_error:.2%}, "
            f"loss {self.loss:.4f} ({self.pictures} pictures)"
        )


class Evaluator:
    """Scores splits; each way of looking is compiled once.

    With one view the network runs once on the centre crop. With ten, the softmax outputs for the
    four corners, the centre, and their mirror images are averaged, as in §4.1.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._one = self._compiled(self._centre)
        self._ten = self._compiled(self._average)

    def score(self, params: Any, split: Split, *, ten_views: bool, what: str) -> Scores:
        """Scores every picture of `split` once; the progress bar is called `what`."""
        c, mesh = self.setup.config, self.setup.network.mesh
        look, batch = self._ten if ten_views else self._one, c.evaluate.batch
        rows = local_rows(mesh, batch)
        losses, ranks = [], []
        batches = eval_batches(split, batch=batch, rows=rows, threads=c.data.threads)
        total = eval_steps(len(split), batch)
        with closing(batches), progress_bar(total, what, "batches", leave=False) as bar:
            for one in batches:
                valid = one.pop("valid")
                outcome = look(params, self.setup.pixels, place_batch(mesh, one, batch))
                loss, rank = jax.device_get(outcome)
                losses.append(loss[valid])
                ranks.append(rank[valid])
                bar.update()
        return mean_scores(np.concatenate(losses), np.concatenate(ranks))

    def _compiled(self, log_probabilities: Callable[..., jax.Array]) -> Any:
        """(params, pixels, batch) -> for each picture its loss and its label's rank."""

        def look(
            params: Any, pixels: dict[str, jax.Array], batch: dict[str, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            network = self.setup.network.bind(params)
            chances = log_probabilities(network, pixels["mean"], batch["image"])
            own = jnp.take_along_axis(chances, batch["label"][:, None], axis=-1)[:, 0]
            return -own, label_ranks(chances, batch["label"])

        network = self.setup.network
        rows = network.spec(DATA)
        return network.jit(network.shard_map(look, (network.specs, P(), rows), (rows, rows)))

    def _view(self, network: Any, mean: jax.Array, images: jax.Array, number: Any) -> jax.Array:
        pictures = augment.view(images, mean, self.setup.config.data, number)
        return jax.nn.log_softmax(network(pictures))

    def _centre(self, network: Any, mean: jax.Array, images: jax.Array) -> jax.Array:
        return self._view(network, mean, images, augment.CENTRE)

    def _average(self, network: Any, mean: jax.Array, images: jax.Array) -> jax.Array:
        """The logarithm of the mean of ten softmax outputs.

        One view after the other: all ten at once would need ten times the memory.
        """
        views = jnp.arange(augment.VIEWS)
        outputs = jax.lax.map(lambda number: self._view(network, mean, images, number), views)
        return jax.nn.logsumexp(outputs, axis=0) - jnp.log(augment.VIEWS)


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


def mean_scores(losses: np.ndarray, ranks: np.ndarray) -> Scores:
    """The means over pictures of their losses, float [n], and labels' ranks, int [n]."""
    return Scores(
        float(np.mean(losses, dtype=np.float64)),
        float(np.mean(ranks >= 1)),
        float(np.mean(ranks >= 5)),
        len(ranks),
    )


def evaluate(c: config.Config, folder: Path, step: int | Literal["newest", "best"]) -> None:
    """Scores a checkpoint of a workdir on the validation split, by one view and by ten.

    Raises:
      UserError: the workdir holds no such checkpoint, or another config's run.
    """
    workdir.check(folder, c)
    setup = make_setup(c)
    # Reading only: a run may be going on in this workdir.
    with Checkpoints(folder / workdir.CHECKPOINTS, read_only=True) as checkpoints:
        if not checkpoints.steps():
            raise UserError(f"{folder} has no checkpoint yet; train first")
        chosen = checkpoints.best_step() if step == "best" else None if step == "newest" else step
        if step == "best" and chosen is None:
            raise UserError(f"{folder} has no scored checkpoint yet; give --step=newest")
        restored = restore_state(setup, checkpoints, step=chosen)
    assert restored is not None
    evaluator, split = Evaluator(setup), setup.validation
    for ten_views, name in ((False, "centre crop"), (True, "ten views")):
        scored = evaluator.score(restored.state["params"], split, ten_views=ten_views, what=name)
        say(f"step {restored.step}, {c.data.validation}, {name}: {scored.text()}")
