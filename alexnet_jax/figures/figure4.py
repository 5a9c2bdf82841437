"""Fig. 4 (§6.1): the best labels of images, and the images that a network finds most similar."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alexnet_jax.data.records import Split, open_records
from alexnet_jax.figures.neighbours import nearest
from alexnet_jax.figures.sheet import new_figure, the_only
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import trained
from alexnet_jax.training.setup import NetSetup

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Guess(NamedTuple):
    """The best labels of one image.

    Attributes:
      image: uint8 [size, size, 3], from which the network's views are cut.
      labels: the most probable classes, best first.
      probs: their probabilities.
      truth: the right class; None if it is not known.
    """

    image: np.ndarray
    labels: tuple[str, ...]
    probs: tuple[float, ...]
    truth: str | None = None


def best_guesses(
    images: np.ndarray,
    probs: np.ndarray,
    labels: Sequence[str],
    truths: Sequence[str] | None = None,
) -> list[Guess]:
    """The five most probable classes of each image, or all if there are fewer.

    Args:
      images: uint8 [n, size, size, 3].
      probs: float [n, classes].
      labels: the names of the classes.
      truths: the right label of each image; None: not known.
    """
    guesses = []
    known: Sequence[str | None] = truths or [None] * len(images)
    for image, row, truth in zip(images, probs, known, strict=True):
        best = np.argsort(-row, kind="stable")[:5]
        names = tuple(labels[i] for i in best)
        guesses.append(Guess(image, names, tuple(float(row[i]) for i in best), truth))
    return guesses


def draw_guesses(guesses: Sequence[Guess]) -> "Figure":
    """Fig. 4, left: each image with its best labels as bars; the bar of the right label is red."""
    columns = min(4, len(guesses))
    rows = -(-len(guesses) // columns)
    figure = new_figure(2.4 * columns, 3.9 * rows)
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[2.4, 1.3] * rows)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, guess in enumerate(guesses):
        row, column = divmod(number, columns)
        above, below = grid[2 * row, column], grid[2 * row + 1, column]
        above.imshow(guess.image)
        if guess.truth is not None:
            above.set_title(_short(guess.truth), fontsize=9)
        _bars(below, guess)
    return figure


def _bars(axes: Any, guess: Guess) -> None:
    """The probabilities from top to bottom, each label on its bar."""
    places = range(len(guess.labels))
    colours = ["#e8908a" if label == guess.truth else "#9dbbe0" for label in guess.labels]
    axes.barh(places, guess.probs, color=colours, height=0.86)
    for place, label in zip(places, guess.labels, strict=True):
        axes.text(0.02, place, _short(label), va="center", fontsize=8)
    axes.set(xlim=(0, 1), ylim=(4.6, -0.6))


def _short(label: str, longest: int = 26) -> str:
    return label if len(label) <= longest else label[: longest - 1] + "…"


def draw_figure4(folders: Sequence[Path]) -> "Figure":
    """Fig. 4, left: eight images of a run's validation split, with ten views.

    Raises:
      UserError: several folders are given, or the run cannot be opened.
    """
    net = trained.open_trained(the_only(folders, "figure4"))
    split, labels = net.setup.validation, net.labels
    images = read_some(split, 8)
    truths = [labels[number] for number in split.labels[_spaced(split, 8)]]
    return draw_guesses(best_guesses(images, net.probs(images), labels, truths))


def draw_neighbours(
    folders: Sequence[Path], records: str | None = None, layer: str | None = None
) -> "Figure":
    """Fig. 4, right: five validation images, and beside each its six nearest training images.

    Args:
      folders: one workdir; or, with `records`, what `trained.load` opens.
      records: images of any classes; None: those of the run.
      layer: whose output is compared; None: the last hidden layer, fc7.

    Raises:
      UserError: several folders are given, the run or the records cannot be opened, the records
        have images of another size, or there is no such layer.
    """
    net, train, validation = _opened(the_only(folders, "neighbours"), records)
    if layer:
        trained.check_layer(net.setup, layer)
    asked = read_some(validation, 5)
    found = nearest(net.setup, net.params, asked, train, min(6, len(train)), layer=layer)
    columns = 1 + found.indices.shape[1]
    figure = new_figure(1.1 * columns, 1.2 * len(asked))
    grid = figure.subplots(len(asked), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, image, indices, distances in zip(grid, asked, *found, strict=True):
        row[0].imshow(image)
        for axes, index, distance in zip(row[1:], indices, distances, strict=True):
            near = np.empty_like(image)
            train.read(int(index), near)
            axes.imshow(near)
            axes.set_title(f"{distance:,.0f}" if distance >= 100 else f"{distance:.3g}", fontsize=7)
    grid[0, 0].set_title("validation", fontsize=7)
    return figure


def _opened(folder: Path, records: str | None) -> tuple[trained.Net[NetSetup], Split, Split]:
    """A network, and the images to search and to ask about."""
    if records is None:
        run = trained.open_trained(folder)
        return run, run.setup.train, run.setup.validation
    net, others = trained.load(folder), open_records(records)
    size, wanted = others.manifest.size, net.config.data.size
    if size != wanted:
        raise UserError(
            f"{records} has images of {size} pixels, {net} takes {wanted}; prepare them again "
            f"with --size={wanted}"
        )
    return net, others.split("train"), others.split("validation")


def read_some(split: Split, count: int) -> np.ndarray:
    """`count` images of a split, evenly spaced, or all if there are fewer: uint8 [n, h, w, 3]."""
    chosen = _spaced(split, count)
    images = np.empty((len(chosen), split.size, split.size, 3), np.uint8)
    for out, index in zip(images, chosen, strict=True):
        split.read(int(index), out)
    return images


def _spaced(split: Split, count: int) -> np.ndarray:
    return np.linspace(0, len(split) - 1, min(count, len(split))).astype(int)
