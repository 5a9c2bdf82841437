"""What TensorBoard shows of a run besides its numbers: kernels, weights, mistakes, the config."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from flax.traverse_util import flatten_dict

from alexnet_jax import config
from alexnet_jax.data.records import Split
from alexnet_jax.optim import Params
from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.sharding import fetch
from alexnet_jax.training.scores import Evaluator

WEIGHTS = 50_000  # of a layer that a histogram counts, about
BINS = 50  # of a histogram
MISTAKES = 8
ENLARGED = 4  # times, that TensorBoard shows kernels, which are 11 pixels wide


def about(c: config.Config) -> list[Any]:
    """The config, as text and as hyperparameters: summaries of tensorboardX."""
    from tensorboardX import summary

    values = config.as_dict(c)
    # TensorBoard reads Markdown, where a text that is indented by four blanks is code.
    text = "\n".join(f"    {line}" for line in json.dumps(values, indent=2).splitlines())
    metrics = {"val/top1_error": 0.0, "val/loss": 0.0, "train/loss": 0.0}
    flat = flatten_dict(values, sep=".")
    shown = {k: one if isinstance(one, int | float) else str(one) for k, one in flat.items()}
    hparams = summary.hparams(shown, metrics)
    return [summary.text("config", text), *hparams]


def of_weights(params: Params, towers: int) -> list[Any]:
    """Conv1's kernels as an image, and a histogram of each layer's weights.

    All processes of a run must call it.

    Args:
      params: of the network, on its devices.
      towers: of the network.
    """
    from tensorboardX import summary

    some = {layer: one["kernel"] for layer, one in params.items()}
    some = {layer: kernel[:: max(1, kernel.size // WEIGHTS)] for layer, kernel in some.items()}
    first = next(iter(params))
    sample, kernels = fetch((some, params[first]["kernel"]))
    found = _histograms("weights", sample)
    if kernels.ndim == 4 and kernels.shape[2] == 3:
        mosaic = kernel_mosaic(kernels, towers).repeat(ENLARGED, 0).repeat(ENLARGED, 1)
        found.append(summary.image(f"kernels/{first}", mosaic, dataformats="HWC"))
    return found


def of_outputs(tops: Mapping[str, np.ndarray]) -> list[Any]:
    """A histogram of each layer's `tops`: the highest output of each unit for each image."""
    return _histograms("highest_outputs", tops)


def _histograms(name: str, values: Mapping[str, np.ndarray]) -> list[Any]:
    """One for each layer; without what is not finite."""
    from tensorboardX import summary

    finite = {layer: one[np.isfinite(one)] for layer, one in values.items()}
    return [summary.histogram(f"{name}/{k}", v, BINS) for k, v in finite.items() if len(v)]


def of_mistakes(
    evaluator: Evaluator, params: Params, split: Split, classes: Sequence[str], batch: int
) -> list[Any]:
    """Some images of the first batch of `split` whose best label is wrong, with both labels.

    None where several processes share the devices: each has a part of the batch only.

    Args:
      evaluator: that has scored the split with batches of `batch` images: nothing is compiled.
      params: of the network, on its devices.
      split: to look for mistakes in.
      classes: their names.
      batch: images.
    """
    from tensorboardX import summary

    if distributed.process_count() > 1:
        return []
    images = np.empty((batch, split.size, split.size, 3), np.uint8)
    for place, image in enumerate(images):
        split.read(place % len(split), image)
    best = evaluator.log_probs_of(params, images, views=1).argmax(1)
    labels = split.labels[np.arange(batch) % len(split)]
    wrong = np.flatnonzero((best != labels)[: len(split)])[:MISTAKES]
    if not len(wrong):
        return []
    tiles = [_labelled(images[i], classes[best[i]], classes[labels[i]]) for i in wrong]
    return [summary.image("mistakes", np.concatenate(tiles, axis=1), dataformats="HWC")]


def _labelled(image: np.ndarray, best: str, right: str) -> np.ndarray:
    """An image of 224 pixels or more, above it the network's best label and its own."""
    side = max(224, len(image))
    image = cv2.resize(image, (side, side), interpolation=cv2.INTER_NEAREST)
    head = np.full((44, side, 3), 255, np.uint8)
    for row, text in enumerate((f"guess: {best[:22]}", f"label: {right[:22]}")):
        place = (4, 16 + 20 * row)
        cv2.putText(head, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([head, image])


def kernel_mosaic(kernels: np.ndarray, towers: int, columns: int = 16) -> np.ndarray:
    """The kernels as one image: tower A's rows above tower B's, with a wider gap between them.

    Zero is grey. Each kernel is scaled so that its largest absolute weight has full contrast.

    Args:
      kernels: [side, side, 3, n] of a first layer, tower A's first.
      towers: 1 or 2.
      columns: kernels in a row.

    Returns:
      float32 [height, width, 3] in [0, 1]; the gaps are white.
    """
    side, _, _, count = kernels.shape
    mine = count // towers
    columns = min(columns, mine)
    rows = -(-mine // columns)
    cell, gap = side + 1, 4
    height = towers * rows * cell + 1 + (towers - 1) * gap
    mosaic = np.ones((height, columns * cell + 1, 3), np.float32)
    scale = np.abs(kernels).max(axis=(0, 1, 2), keepdims=True)
    shown = 0.5 + kernels / (2 * np.where(scale > 0, scale, 1))
    for number in range(mine * towers):
        tower, place = divmod(number, mine)
        row, column = divmod(place, columns)
        y = 1 + (tower * rows + row) * cell + tower * gap
        x = 1 + column * cell
        mosaic[y : y + side, x : x + side] = shown[..., number]
    return mosaic
