"""Error rates of a trained network, or of the average of several.

python -m alexnet_jax.evaluate --workdirs=runs/a,runs/b,runs/c --views=10

The softmax outputs of several networks are averaged with equal weights (§6.1). With
--weights=search each network has its own weight, as in 2012: the weights with the lowest loss of
the average on every second image of the split. The printed error rates are then those of the other
images. --splits=validation,test and --views=1,10 score in all these ways. --json=FILE gets a line
for each, with the rank of every image's label: `report --scores=FILE,...` compares such files.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Float, Int

from alexnet_jax import config
from alexnet_jax.data.records import Split, is_prepared, open_records
from alexnet_jax.data.unprepared import labelled_folder
from alexnet_jax.runtime import cli, host
from alexnet_jax.runtime.checksum import json_checksum
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.files import write_text
from alexnet_jax.runtime.signals import Stop
from alexnet_jax.runtime.terminal import say
from alexnet_jax.training import corruptions, trained
from alexnet_jax.training.scores import Scores, Views, label_ranks, mean_scores
from alexnet_jax.training.setup import Setup

TINY = float(np.finfo(np.float32).tiny)  # the least probability: the loss is 87 at most
Probs = Float[np.ndarray, "images classes"]
Labels = Int[np.ndarray, " images"]

OPTIONS = flags.FlagValues()
WORKDIRS = flags.DEFINE_list("workdirs", None, "Folders of runs: runs/a,runs/b.", OPTIONS)
SPLITS = flags.DEFINE_list("splits", [], "Splits of the records; default: the run's.", OPTIONS)
VIEWS = flags.DEFINE_list("views", ["10"], "Views of each image: 1, 9 or 10.", OPTIONS)
WEIGHTS = flags.DEFINE_enum("weights", "equal", ["equal", "search"], "Networks' weights.", OPTIONS)
STEP = flags.DEFINE_string("step", "newest", "Checkpoints: newest, best or a number.", OPTIONS)
DEVICES = flags.DEFINE_integer("devices", 1, "Devices to use.", lower_bound=1, flag_values=OPTIONS)
RECORDS = flags.DEFINE_string("records", None, "Where the runs' records are now.", OPTIONS)
JSON = flags.DEFINE_string("json", None, "File for the scores, of each image too.", OPTIONS)


def evaluate(c: config.Config, folder: Path, step: trained.Step, on: Path | None = None) -> None:
    """Scores a checkpoint of a workdir on the validation split, by one view and by ten.

    And by nine, if the config says so. The mean image is always that of the training.

    Args:
      c: the run's config; with the records that it was trained on, if these are scored.
      folder: the workdir.
      step: which checkpoint.
      on: other images of the same classes: records, a folder with CLASS/IMAGE, or ImageNet-C's
        with its 15 corruptions, which are scored by one view each; None: the run's own records.

    Raises:
      UserError: see `trained.open_run`; or `on` has other classes.
      Stopped: SIGTERM or SIGINT came.
    """
    if on is None:
        run = trained.open_run(c, folder, step)
        with Stop() as stop:
            _score(run, run.setup.validation, c.data.validation, stop)
        return
    net = trained.open_without_records(c, folder, step)
    with Stop() as stop:
        if not is_prepared(on) and corruptions.folders_of(on):
            errors = corruptions.score(net, on, stop.check)
            say(corruptions.table(errors, len(net.setup.data.classes)))
        else:
            _score(net, _split_of(net, on), str(on), stop)


def _score(net: trained.Net, split: Split, name: str, stop: Stop) -> None:
    """Prints the scores of a split by one view and by ten, and by nine if the config says so."""
    ways: list[tuple[Views, str]] = [(1, "centre crop"), (10, "ten views")]
    if net.config.evaluate.nine_views_at_end:
        ways.append((9, "nine views"))
    for views, way in ways:
        scored = net.setup.evaluator.score(
            net.params, split, views=views, what=way, check=stop.check
        )
        say(f"step {net.step}, {name}, {way}: {scored.text(top5=net.config.has_top5)}")


def _split_of(net: trained.Net, path: Path) -> Split:
    """The images in `path`. Raises UserError if their classes or their size are others."""
    data, classes = net.setup.config.data, net.setup.data.classes
    if not is_prepared(path):
        if not path.is_dir():
            raise UserError(f"--on={path}: there is no such folder")
        split = labelled_folder(path, classes, data.size, resize=data.resize)
        missing = len(classes) - len(set(split.labels.tolist()))
        if missing:
            say(f"{path}: {missing} of the network's {len(classes)} classes have no images there")
        return split
    records = open_records(path)
    if records.manifest.classes != classes:
        raise UserError(f"--on={path} has other classes than the records of {net.folder}")
    if records.manifest.size != data.size:
        found = records.manifest.size
        raise UserError(f"--on={path} has images of {found} pixels, not {data.size}; prepare again")
    return records.split(data.validation, "--config.data.validation")


class Together(NamedTuple):
    """What `evaluate_together` finds."""

    scores: Scores
    ranks: Int[np.ndarray, " images"]  # of each image's label, see `label_ranks`


def evaluate_together(
    nets: Sequence[trained.Net[Setup]], *, views: Views, search: bool, split: str = ""
) -> Together:
    """Scores the average of several networks' softmax outputs on a split (§6.1).

    Args:
      nets: trained on the same records; of one kind or of several.
      views: of each image, to average over as well; 1: the centre crop.
      search: find the weights on the images 0, 2, 4 ..., and score the others.
      split: of the records; "": that on which the runs were validated.

    Raises:
      UserError: they were trained on different records, or score different splits, or there is no
        such split; or weights shall be searched for one network.
    """
    _check_alike(nets)
    top5 = nets[0].config.has_top5
    split = split or _common_split(nets)
    if search and len(nets) < 2:
        raise UserError("--weights=search needs several networks; give more --workdirs")
    images = nets[0].setup.records.split(split, "--splits")
    labels, probs = images.labels, []
    for net in nets:
        name = f"{net.folder}, step {net.step}, {split}"
        log = net.setup.evaluator.log_probs(net.params, images, views=views, what=name)
        probs.append(np.exp(log))
        say(f"{name}: {score_probs(probs[-1], labels).scores.text(top5=top5)}")
    if not search:
        together = score_probs(average(probs, np.ones(len(nets))), labels)
        if len(nets) > 1:
            say(f"{len(nets)} networks, equal weights: {together.scores.text(top5=top5)}")
        return together
    weights = search_weights([part[::2] for part in probs], labels[::2])
    shown = ", ".join(f"{net.folder} {w:.3f}" for net, w in zip(nets, weights, strict=True))
    together = score_probs(average([part[1::2] for part in probs], weights), labels[1::2])
    say(f"weights found on every second image: {shown}")
    shown = together.scores.text(top5=top5)
    say(f"{len(nets)} networks, these weights, on the other images: {shown}")
    return together


def average(probs: Sequence[Probs], weights: Float[np.ndarray, " networks"]) -> Probs:
    """The weighted mean of the probabilities that several networks give."""
    shares = weights / weights.sum()
    weighted = (np.float32(w) * part for w, part in zip(shares, probs, strict=True))
    return functools.reduce(np.add, weighted)


def score_probs(probs: Probs, labels: Labels) -> Together:
    """Loss, error rates and ranks of probabilities.

    Raises:
      UserError: a label is not the number of a class.
    """
    losses = -np.log(np.maximum(_label_probs(probs, labels), TINY))
    ranks = np.asarray(label_ranks(jnp.asarray(probs), jnp.asarray(labels)))
    return Together(mean_scores(losses, ranks), ranks)


def search_weights(probs: Sequence[Probs], labels: Labels) -> Float[np.ndarray, " networks"]:
    """The weights, with sum 1 and none below 0, of the average with the lowest mean loss.

    The loss is convex in them, so what SLSQP finds is the best.
    """
    from scipy.optimize import minimize

    found = np.stack([_label_probs(part, labels) for part in probs]).astype(np.float64)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        """The mean loss and its derivatives."""
        own = np.maximum(weights @ found, TINY)
        return float(-np.log(own).mean()), -(found / own).mean(axis=1)

    count = len(probs)
    sum_1 = {"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": np.ones_like}
    limits = {"bounds": [(0, 1)] * count, "constraints": sum_1}
    weights = minimize(loss, np.ones(count) / count, jac=True, method="SLSQP", **limits).x
    return weights / weights.sum()


def _label_probs(probs: Probs, labels: Labels) -> Float[np.ndarray, " images"]:
    """The probability of each image's label. UserError: a label is not the number of a class."""
    wrong = np.flatnonzero((labels < 0) | (labels >= probs.shape[-1]))
    if len(wrong):
        raise UserError(
            f"image {wrong[0]} has label {labels[wrong[0]]}; "
            f"the {probs.shape[-1]} classes are 0 to {probs.shape[-1] - 1}"
        )
    return np.take_along_axis(probs, labels[:, None].astype(np.int64), axis=-1)[:, 0]


def _check_alike(nets: Sequence[trained.Net[Setup]]) -> None:
    first = nets[0]
    for net in nets[1:]:
        if net.setup.data.hash != first.setup.data.hash:
            raise UserError(f"{net.folder} was trained on other records than {first.folder}")


def _common_split(nets: Sequence[trained.Net[Setup]]) -> str:
    """The split on which all were validated."""
    first = nets[0]
    for net in nets[1:]:
        ours, theirs = (n.setup.config.data.validation for n in (net, first))
        if ours != theirs:
            raise UserError(f"{net.folder} scores split {ours!r}, {first.folder} {theirs!r}")
    return first.setup.config.data.validation


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are those of the process if None."""
    cli.run(_run, OPTIONS, __doc__, arguments)


def _run(arguments: Sequence[str]) -> None:
    cli.no_more(arguments)
    host.configure_jax(DEVICES.value)
    step, folders, file = trained.parse_step(STEP.value), cli.folders(WORKDIRS), cli.output(JSON)
    ways = [_views(one) for one in dict.fromkeys(VIEWS.value or [""])]
    nets = [
        trained.open_trained(one, step=step, devices=DEVICES.value, records=RECORDS.value)
        for one in folders
    ]
    splits = list(dict.fromkeys(one for one in SPLITS.value if one)) or [_common_split(nets)]
    for split in splits:  # all are there, before the work begins
        nets[0].setup.records.split(split, "--splits")
    lines = []
    for split in splits:
        for views in ways:
            search = WEIGHTS.value == "search"
            found = evaluate_together(nets, views=views, search=search, split=split)
            way = {"split": split, "views": views, "weights": WEIGHTS.value}
            lines.append(_about(nets) | way | found.scores._asdict())
            lines[-1]["ranks"] = found.ranks.tolist()
    if file:
        write_text(file, "".join(json.dumps(line) + "\n" for line in lines))


def _views(text: str) -> Views:
    if text not in ("1", "9", "10"):
        raise UserError(f"--views={text}: give 1, 9 or 10, or several, as 1,10")
    return cast(Views, int(text))


def _about(nets: Sequence[trained.Net[Setup]]) -> dict[str, Any]:
    """What `report --scores` must know of the networks."""
    configs = [net.setup.config for net in nets]
    return {
        "workdirs": [str(net.folder) for net in nets],
        "steps": [net.step for net in nets],
        "experiments": [c.experiment.name for c in configs],
        "against": configs[0].experiment.against,
        "seeds": [c.seed for c in configs],
        "configs": [json_checksum(config.but_seed(c))[:12] for c in configs],
        "records": nets[0].setup.data.hash,
    }


if __name__ == "__main__":
    main()
