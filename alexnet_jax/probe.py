"""How much the features of a network say about the classes of other images: a linear probe.

python -m alexnet_jax.probe --model=MODEL --layer=pool5 --records=DIR

MODEL is the workdir of a run, a folder that `weights save` made, hf://OWNER/NAME, or the name of a
network in the package. RECORDS may have other classes and another size than those of its training.
A ridge regression from what the layer gives to the classes is solved on the split 'train', and
scored on another. --layer=pixels needs no model: the features are the images, of 32 x 32 pixels.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import NamedTuple

import cv2
import numpy as np
from absl import flags
from jaxtyping import Float, Int, UInt8
from scipy import linalg
from tqdm import tqdm

from alexnet_jax.data.pipeline import eval_batches
from alexnet_jax.data.records import Records, Split, open_records
from alexnet_jax.runtime import cli, host
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.terminal import progress_bar
from alexnet_jax.training import trained

PIXELS = "pixels"
SIDE = 32  # pixels, of the images that are features themselves
BATCH = 128  # images

Features = Float[np.ndarray, "images features"]
Extract = Callable[[UInt8[np.ndarray, "images size size 3"]], np.ndarray]
"""A function from images to what is known of each: float [images, ...]."""

OPTIONS = flags.FlagValues()
MODEL = flags.DEFINE_string("model", None, "A workdir, a folder to share, hf://...", OPTIONS)
flags.DEFINE_alias("workdir", "model", OPTIONS)
LAYER = flags.DEFINE_string("layer", "pool5", "conv1 to fc8, pool5, or pixels.", OPTIONS)
RECORDS = flags.DEFINE_string("records", None, "Images with classes, from `prepare`.", OPTIONS)
SPLIT = flags.DEFINE_string("split", "validation", "The split to score.", OPTIONS)
LAMBDA = flags.DEFINE_float("lambda", 1.0, "The penalty.", lower_bound=1e-9, flag_values=OPTIONS)
STEP = flags.DEFINE_string("step", "newest", "Checkpoint: newest, best or a number.", OPTIONS)


class Probed(NamedTuple):
    """What a probe found.

    Attributes:
      wrong: images whose best class is not theirs.
      images: that were scored.
      train: images that the regression was solved on.
    """

    wrong: int
    images: int
    train: int

    @property
    def error(self) -> float:
        """The share of wrong images."""
        return self.wrong / self.images

    @property
    def standard_error(self) -> float:
        """Of `error`, as of a share of independent images."""
        return math.sqrt(self.error * (1 - self.error) / self.images)


def probe(extract: Extract, records: Records, *, split: str, penalty: float) -> Probed:
    """Solves the regression on the split 'train' of `records`, and scores another split.

    Args:
      extract: the features of images, as ``partial(net.features, layer="pool5")``, or `pixels`.
      records: images with classes.
      split: the one to score.
      penalty: lambda, see `ridge`.

    Raises:
      UserError: there is no such split, or a record is damaged.
    """
    train, scored = (records.split(name, "--split") for name in ("train", split))
    count = len(train) + len(scored)
    with progress_bar(count, "features", "images", leave=False) as bar:
        known, asked = (_features(extract, part, bar) for part in (train, scored))
    scores = ridge(known, train.labels, asked, len(records.manifest.classes), penalty)
    wrong = int(np.sum(scores.argmax(axis=1) != scored.labels))
    return Probed(wrong, len(scored), len(train))


def ridge(
    known: Features,
    labels: Int[np.ndarray, " images"],
    asked: Features,
    classes: int,
    penalty: float,
) -> Float[np.ndarray, "asked classes"]:
    """Scores of the classes by ridge regression, solved in closed form.

    Features have their mean subtracted and are divided by one standard deviation, that of all; the
    targets are 1 for the own class and 0 for others, minus their mean. The weights W minimize
    |A W - T|^2 + penalty * d * |W|^2, with d features: so that the penalty means about the same for
    any layer. Solved through the products of images or of features, whichever are fewer.

    Args:
      known: features of images whose classes are known.
      labels: their classes.
      asked: features of other images.
      classes: how many.
      penalty: 0 is not possible, as there may be more features than images.
    """
    mean = known.mean(axis=0, dtype=np.float64)
    deviation = math.sqrt(np.square(known - mean).mean(dtype=np.float64)) or 1.0
    a, b = ((x - mean) / deviation for x in (known, asked))
    targets = np.eye(classes)[labels]
    average = targets.mean(axis=0)
    images, features = a.shape
    damping = penalty * features * np.eye(min(images, features))
    if images < features:
        dual = linalg.solve(a @ a.T + damping, targets - average, assume_a="pos")
        return b @ (a.T @ dual) + average
    return b @ linalg.solve(a.T @ a + damping, a.T @ (targets - average), assume_a="pos") + average


def pixels(images: UInt8[np.ndarray, "images size size 3"]) -> np.ndarray:
    """The images themselves, scaled down: uint8 [images, 32, 32, 3]."""
    return np.stack([cv2.resize(i, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for i in images])


def _features(extract: Extract, split: Split, bar: tqdm) -> Features:
    """The features of all images of a split, float32, each as one row."""
    parts, left = [], len(split)
    with closing(eval_batches(split, batch=BATCH, rows=[(0, BATCH)], threads=0)) as batches:
        for batch in batches:
            images = batch["image"][: min(left, BATCH)]
            parts.append(extract(images).reshape(len(images), -1).astype(np.float32))
            left -= len(images)
            bar.update(len(images))
    return np.concatenate(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are those of the process if None."""
    cli.run(_run, OPTIONS, __doc__, arguments)


def _run(arguments: Sequence[str]) -> None:
    cli.no_more(arguments)
    if not math.isfinite(LAMBDA.value):
        raise UserError(f"--lambda={LAMBDA.value} must be a finite number")
    if LAYER.value == PIXELS and (MODEL.value or OPTIONS["step"].present):
        raise UserError("--layer=pixels needs no network: leave out --model and --step")
    records = open_records(cli.required(RECORDS, "records/photos"))
    layer, extract, of = LAYER.value, pixels, f"images of {SIDE} x {SIDE} pixels"
    if layer != PIXELS:
        host.configure_jax(1)
        model = cli.required(MODEL, "runs/tiny")
        net = trained.load(model, step=trained.parse_step(STEP.value))
        trained.check_layer(net.setup, layer)
        extract, of = (lambda images: net.features(images, layer)), f"{layer} of {net}"
    found = probe(extract, records, split=SPLIT.value, penalty=LAMBDA.value)
    print(f"{of}")
    print(
        f"{SPLIT.value}: error {found.error:.1%}, standard error {found.standard_error:.1%} "
        f"({found.wrong} of {found.images:,} images wrong; {found.train:,} to train, "
        f"lambda {LAMBDA.value:g})"
    )


if __name__ == "__main__":
    main()
