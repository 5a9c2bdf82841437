"""Error rates of trained networks, by the centre crop or by ten views; one, or several averaged.

python -m alexnet_jax.evaluate --workdirs=runs/a,runs/b,runs/c --views=10

The networks' softmax outputs are averaged (§6.1), with equal weights. With --weights=search each
has a weight of its own, as in 2012: found on every second image of the split, by what the average
loses there; the error rates that are printed are then those of the other images.
"""

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from alexnet_jax import config
from alexnet_jax.runtime import cli, host
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.signals import Stop
from alexnet_jax.runtime.terminal import say
from alexnet_jax.training import trained
from alexnet_jax.training.scores import Evaluator, Scores, label_ranks, mean_scores

TINY = float(np.finfo(np.float32).tiny)  # the least probability: what is impossible costs 87 nats


def evaluate(c: config.Config, folder: Path, step: trained.Step) -> None:
    """Scores a checkpoint of a workdir on the validation split, by one view and by ten.

    Raises:
      UserError: see `trained.load`.
      Stopped: SIGTERM or SIGINT came.
    """
    net = trained.load(c, folder, step)
    evaluator, split = Evaluator(net.setup), net.setup.validation
    with Stop() as stop:
        for ten_views, name in ((False, "centre crop"), (True, "ten views")):
            how: dict[str, Any] = {"ten_views": ten_views, "what": name, "check": stop.check}
            scored = evaluator.score(net.params, split, **how)
            say(f"step {net.step}, {c.data.validation}, {name}: {scored.text()}")


def evaluate_together(nets: Sequence[trained.Trained], *, ten_views: bool, search: bool) -> Scores:
    """Scores the average of several networks' softmax outputs on their validation split (§6.1).

    Args:
      nets: trained on the same records; they may be of any kinds.
      ten_views: average over ten views of each image, too; else its centre crop.
      search: find the weights on the images 0, 2, 4 ..., and score the others.

    Raises:
      UserError: they were trained on different records, or score different splits; or weights are
        to be found for one network.
    """
    _check_alike(nets)
    if search and len(nets) < 2:
        raise UserError("--weights=search needs several networks; give more --workdirs")
    labels = nets[0].setup.validation.labels
    probs = []
    for net in nets:
        look = Evaluator(net.setup).log_probs
        name = f"{net.folder}, step {net.step}"
        log = look(net.params, net.setup.validation, ten_views=ten_views, what=name)
        probs.append(np.exp(log))
        say(f"{name}: {score_probs(probs[-1], labels).text()}")
    if not search:
        together = score_probs(average(probs, np.ones(len(nets))), labels)
        if len(nets) > 1:
            say(f"{len(nets)} networks, equal weights: {together.text()}")
        return together
    weights = search_weights([part[::2] for part in probs], labels[::2])
    shown = ", ".join(f"{net.folder} {w:.3f}" for net, w in zip(nets, weights, strict=True))
    together = score_probs(average([part[1::2] for part in probs], weights), labels[1::2])
    say(f"weights found on every second image: {shown}")
    say(f"{len(nets)} networks, these weights, on the other images: {together.text()}")
    return together


def average(probs: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """The mean of probabilities, each float [n, classes], weighted by `weights`, float [nets]."""
    shares = weights / weights.sum()
    weighted = (np.float32(w) * part for w, part in zip(shares, probs, strict=True))
    return functools.reduce(np.add, weighted)


def score_probs(probs: np.ndarray, labels: np.ndarray) -> Scores:
    """The scores of probabilities, float [n, classes], of images with `labels`, int [n]."""
    ranks = label_ranks(jnp.asarray(probs), jnp.asarray(labels))
    losses = -np.log(np.maximum(_own(probs, labels), TINY))
    return mean_scores(losses, np.asarray(ranks))


def search_weights(probs: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """The weights, with sum 1, of the average with the lowest mean loss, one after the other.

    Each weight in turn is multiplied by some factors, and a product that lowers the loss is kept;
    the factors come nearer to 1, and each set is tried until none of it lowers the loss.
    """
    weights = np.ones(len(probs)) / len(probs)
    own = np.stack([_own(part, labels) for part in probs]).astype(np.float64)

    def loss(weights: np.ndarray) -> float:
        return float(-np.log(np.maximum(weights @ own / weights.sum(), TINY)).mean())

    lowest = loss(weights)
    for factors in ((0.0, 0.5, 2.0), (0.8, 1.25), (0.95, 1.05)):
        lowered = True
        while lowered:
            lowered = False
            for net in range(len(weights)):
                for factor in factors:
                    tried = weights.copy()
                    tried[net] *= factor
                    if tried.sum() and loss(tried) < lowest * (1 - 1e-6):  # more than rounding
                        weights, lowest, lowered = tried / tried.sum(), loss(tried), True
    return weights


def _own(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The probability of each image's own class: float [n]."""
    return np.take_along_axis(probs, labels[:, None].astype(np.int64), axis=-1)[:, 0]


def _check_alike(nets: Sequence[trained.Trained]) -> None:
    first = nets[0]
    for net in nets[1:]:
        ours, theirs = (n.setup.records.manifest.hash for n in (net, first))
        if ours != theirs:
            raise UserError(f"{net.folder} was trained on other records than {first.folder}")
        mine, its = (n.setup.config.data.validation for n in (net, first))
        if mine != its:
            raise UserError(f"{net.folder} scores split {mine!r}, {first.folder} {its!r}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are the process' own if not given."""
    given = _parser().parse_args(arguments)

    def job() -> None:
        host.configure_jax(given.devices)
        step, folders = trained.parse_step(given.step), cli.folders(given.workdirs)
        file = cli.output("--json", given.json)
        nets = [
            trained.open_trained(f, step=step, devices=given.devices, records=given.records)
            for f in folders
        ]
        search = given.weights == "search"
        scores = evaluate_together(nets, ten_views=given.views == 10, search=search)
        if file:
            values = {"workdirs": [str(f) for f in folders], "steps": [net.step for net in nets]}
            values |= {"views": given.views, "weights": given.weights} | scores._asdict()
            file.write_text(json.dumps(values, indent=2) + "\n")

    cli.guard(job, "stopped")


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("evaluate", __doc__)
    add = parser.add_argument
    add("--workdirs", required=True, help="the runs' folders, separated by commas")
    add("--views", type=int, choices=(1, 10), default=10, help="of each image; 10")
    add("--weights", choices=("equal", "search"), default="equal", help="of the networks; equal")
    add("--step", default="newest", help="the checkpoints: newest, best or a number; newest")
    add("--devices", type=cli.count, default=1, help="on which to compute; 1")
    add("--records", help="where the runs' records are, if not where they were")
    add("--json", help="a file to write the scores to")
    return parser


if __name__ == "__main__":
    main()
