"""The paper's figures, and training curves, drawn from workdirs.

python -m alexnet_jax.figures figure1 --workdirs=runs/relu,runs/tanh --out=figure1.png
python -m alexnet_jax.figures kernels --workdirs=runs/alexnet --out=kernels.png
python -m alexnet_jax.figures curves --workdirs=runs/a,runs/b --out=curves.png

figure1  Fig. 1: training error by epochs for each activation, and when it reached 25%
kernels  Fig. 3: the first layer's kernels, tower A above tower B
figure4  Fig. 4, left: eight validation pictures with their five best labels
neighbours  Fig. 4, right: five of them, and the training pictures that fc7 takes for most alike
curves   loss, error rates and learning rate of each run
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from alexnet_jax import command, host, trained, workdir
from alexnet_jax.data.records import Split
from alexnet_jax.errors import UserError
from alexnet_jax.metrics import read_metrics
from alexnet_jax.neighbours import nearest
from alexnet_jax.scores import Evaluator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GOAL = 0.25  # the training error at which Fig. 1 compares
COLOURS = {"relu": "C0", "tanh": "C1"}


# --- Fig. 1 -------------------------------------------------------------------------------------


def training_errors(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Epochs done, float [n], and the mean training top-1 error over each epoch until then.

    Every line of metrics tells the mean over the steps since the one before.

    Raises:
      UserError: the run has not done an epoch yet.
    """
    wrong: dict[int, float] = {}  # steps times error rate, by epoch
    steps: dict[int, int] = {}
    ended: dict[int, float] = {}
    step, begun = 0, 0.0
    for line in read_metrics(folder):
        if "train/top1_error" not in line:
            continue
        # There is a line at every epoch's end, so none tells of two but for parts of a batch.
        number = int((begun + line["epoch"]) / 2) + 1
        taken = line["step"] - step
        wrong[number] = wrong.get(number, 0.0) + taken * line["train/top1_error"]
        steps[number] = steps.get(number, 0) + taken
        ended[number] = line["epoch"]
        step, begun = line["step"], line["epoch"]
    whole = [number for number, epoch in ended.items() if epoch >= number]
    if not whole:
        raise UserError(f"{folder} has not done an epoch yet, so there is no training error of one")
    return np.array(whole, float), np.array([wrong[n] / steps[n] for n in whole])


def epochs_to(goal: float, epochs: np.ndarray, errors: np.ndarray) -> float | None:
    """After how many epochs the error was `goal`, between two of them by a line; None if never."""
    below = np.flatnonzero(errors <= goal)
    if not len(below):
        return None
    first = int(below[0])
    if first == 0:
        return float(epochs[0])
    (e0, e1), (y0, y1) = epochs[first - 1 : first + 1], errors[first - 1 : first + 1]
    return float(e0 + (e1 - e0) * (y0 - goal) / (y0 - y1))


def draw_figure1(folders: Sequence[Path]) -> "Figure":
    """Fig. 1 (§3.1) of runs that differ in their activation; one line a run, one colour each."""
    figure = _figure(6, 4)
    axes = figure.subplots()
    reached: dict[str, list[float | None]] = {}
    for folder in folders:
        kind = workdir.read_config(folder).model.activation
        epochs, errors = training_errors(folder)
        first = kind not in reached
        reached.setdefault(kind, []).append(epochs_to(GOAL, epochs, errors))
        style = {"relu": "-", "tanh": "--"}[kind]
        label = {"relu": "ReLU", "tanh": "tanh"}[kind] if first else None
        axes.plot(epochs, errors, style, color=COLOURS[kind], label=label, linewidth=1.5)
    axes.axhline(GOAL, color="0.6", linewidth=0.8)
    axes.set(xlabel="epochs", ylabel="training error", ylim=(0, 0.8), title=_when(reached))
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    return figure


def _when(reached: dict[str, list[float | None]]) -> str:
    """When each activation reached the goal, in the mean over its runs; and the ratio."""
    means = {
        kind: float(np.mean([value for value in values if value is not None]))
        for kind, values in reached.items()
        if None not in values
    }
    parts = [
        f"{kind} {means[kind]:.1f}" if kind in means else f"{kind} never"
        for kind in sorted(reached)
    ]
    text = f"epochs to {GOAL:.0%} training error: " + ", ".join(parts)
    if {"relu", "tanh"} <= means.keys():
        text += f" ({means['tanh'] / means['relu']:.1f} times)"
    return text


# --- Fig. 3 -------------------------------------------------------------------------------------


def kernel_mosaic(kernels: np.ndarray, towers: int, columns: int = 16) -> np.ndarray:
    """The kernels beside each other, tower A's rows above tower B's, a wider gap between.

    Zero is grey, and each kernel's largest weight, of either sign, has full contrast.

    Args:
      kernels: [side, side, 3, n], of a first layer; tower A's come first.
      towers: 1 or 2.
      columns: kernels in a row.

    Returns:
      float32 [height, width, 3] in [0, 1]; the gaps are white.
    """
    side, _, _, count = kernels.shape
    mine = count // towers
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


def draw_kernels(folders: Sequence[Path]) -> "Figure":
    """Fig. 3: the first layer's kernels of one run, as `kernel_mosaic` lays them out."""
    if len(folders) > 1:
        raise UserError("kernels shows one run; give one folder as --workdirs")
    net = trained.open_trained(folders[0])
    first = net.setup.config.model.names[0]
    kernels = np.asarray(jax.device_get(net.params[first]["kernel"]), np.float32)
    if kernels.ndim != 4 or kernels.shape[2] != 3:
        raise UserError(f"{first} of {folders[0]} does not look at pictures")
    towers = net.setup.config.model.towers
    mosaic = kernel_mosaic(kernels, towers)
    width = 8.0
    figure = _figure(width, 0.6 + width * mosaic.shape[0] / mosaic.shape[1])
    axes = figure.subplots()
    axes.imshow(mosaic, interpolation="nearest")
    axes.set_axis_off()
    which = "tower A above, tower B below" if towers == 2 else "one tower"
    axes.set_title(f"{first}, {kernels.shape[-1]} kernels, step {net.step}: {which}", fontsize=10)
    return figure


# --- Fig. 4, left -------------------------------------------------------------------------------


class Guess(NamedTuple):
    """What a network made of a picture.

    Attributes:
      picture: uint8 [size, size, 3], as the network's views were cut from it.
      labels: the best classes, best first.
      chances: their probabilities.
      truth: the right class, if it is known.
    """

    picture: np.ndarray
    labels: tuple[str, ...]
    chances: tuple[float, ...]
    truth: str | None = None


def best_guesses(
    pictures: np.ndarray,
    chances: np.ndarray,
    classes: Sequence[str],
    truths: Sequence[str | None],
    count: int = 5,
) -> list[Guess]:
    """The `count` best classes, or all if there are fewer, of probabilities [n, classes]."""
    guesses = []
    for picture, row, truth in zip(pictures, chances, truths, strict=True):
        best = np.argsort(-row, kind="stable")[: min(count, len(classes))]
        labels = tuple(classes[i] for i in best)
        guesses.append(Guess(picture, labels, tuple(float(row[i]) for i in best), truth))
    return guesses


def draw_guesses(guesses: Sequence[Guess], columns: int = 4) -> "Figure":
    """Fig. 4, left: each picture with its best labels as bars; the right one's bar is red."""
    columns = min(columns, len(guesses))
    rows = -(-len(guesses) // columns)
    figure = _figure(2.4 * columns, 3.9 * rows)
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[2.4, 1.3] * rows)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, guess in enumerate(guesses):
        row, column = divmod(number, columns)
        above, below = grid[2 * row, column], grid[2 * row + 1, column]
        above.imshow(guess.picture)
        if guess.truth is not None:
            above.set_title(_short(guess.truth), fontsize=9)
        _bars(below, guess)
    return figure


def _bars(axes: Any, guess: Guess) -> None:
    """The probabilities from top to bottom, each label on its bar."""
    places = range(len(guess.labels))
    colours = ["#e8908a" if label == guess.truth else "#9dbbe0" for label in guess.labels]
    axes.barh(places, guess.chances, color=colours, height=0.86)
    for place, label in zip(places, guess.labels, strict=True):
        axes.text(0.02, place, _short(label), va="center", fontsize=8)
    axes.set(xlim=(0, 1), ylim=(4.6, -0.6))


def _short(label: str, longest: int = 26) -> str:
    return label if len(label) <= longest else label[: longest - 1] + "…"


def draw_figure4(folders: Sequence[Path]) -> "Figure":
    """Fig. 4, left: eight pictures of a run's validation split, evenly spaced, by ten views."""
    if len(folders) > 1:
        raise UserError("figure4 shows one run; give one folder as --workdirs")
    net = trained.open_trained(folders[0])
    split, classes = net.setup.validation, net.setup.records.manifest.classes
    pictures = _read_some(split, 8)
    log = Evaluator(net.setup).log_chances_of(net.params, pictures, ten_views=True)
    truths = [classes[label] for label in split.labels[_spaced(split, 8)]]
    return draw_guesses(best_guesses(pictures, np.exp(log), classes, truths))


# --- Fig. 4, right ------------------------------------------------------------------------------


def draw_neighbours(folders: Sequence[Path]) -> "Figure":
    """Fig. 4, right: five validation pictures, and beside each the six nearest to train with."""
    if len(folders) > 1:
        raise UserError("neighbours shows one run; give one folder as --workdirs")
    net = trained.open_trained(folders[0])
    asked = _read_some(net.setup.validation, 5)
    train = net.setup.train
    found = nearest(net.setup, net.params, asked, train, min(6, len(train)))
    columns = 1 + found.indices.shape[1]
    figure = _figure(1.1 * columns, 1.2 * len(asked))
    grid = figure.subplots(len(asked), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, picture, indices, distances in zip(grid, asked, *found, strict=True):
        row[0].imshow(picture)
        for axes, index, distance in zip(row[1:], indices, distances, strict=True):
            near = np.empty_like(picture)
            train.read(int(index), near)
            axes.imshow(near)
            axes.set_title(f"{distance:.3g}", fontsize=7)
    grid[0, 0].set_title("asked", fontsize=7)
    return figure


def _read_some(split: Split, count: int) -> np.ndarray:
    """So many pictures of a split, evenly spaced, or all: uint8 [n, size, size, 3]."""
    chosen = _spaced(split, count)
    pictures = np.empty((len(chosen), split.size, split.size, 3), np.uint8)
    for out, index in zip(pictures, chosen, strict=True):
        split.read(int(index), out)
    return pictures


def _spaced(split: Split, count: int) -> np.ndarray:
    return np.linspace(0, len(split) - 1, min(count, len(split))).astype(int)


# --- training curves ----------------------------------------------------------------------------

_PANELS = (
    ("loss", "log", {"train/loss": "training", "val/loss": "validation"}),
    (
        "top-1 error",
        "linear",
        {"train/top1_error": "training", "val/top1_error": "validation"},
    ),
    ("learning rate", "log", {"opt/lr": ""}),
)


def draw_curves(folders: Sequence[Path]) -> "Figure":
    """Loss, error and rate of runs; training is dashed, validation drawn through."""
    figure = _figure(11, 3.4)
    for axes, (title, scale, names) in zip(figure.subplots(1, 3), _PANELS, strict=True):
        for number, folder in enumerate(folders):
            lines = read_metrics(folder)
            if not lines:
                raise UserError(f"{folder} has no metrics yet; train first")
            for name, split in names.items():
                known = [(one["epoch"], one[name]) for one in lines if one.get(name) is not None]
                label = f"{folder.name} {split}".strip()
                style = "--" if split == "training" else "-"
                if known:
                    axes.plot(*zip(*known, strict=True), style, color=f"C{number}", label=label)
        axes.set(title=title, xlabel="epochs", yscale=scale)
        if title == "top-1 error":
            axes.legend(frameon=False, fontsize=8)
    return figure


# --- the command --------------------------------------------------------------------------------

FIGURES: dict[str, Callable[[Sequence[Path]], "Figure"]] = {
    "figure1": draw_figure1,
    "kernels": draw_kernels,
    "figure4": draw_figure4,
    "neighbours": draw_neighbours,
    "curves": draw_curves,
}


def _figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("figures need matplotlib; pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", out: Path) -> None:
    """Writes a figure, in the format of the file's name.

    Raises:
      UserError: that is none that matplotlib knows.
    """
    options: dict[str, Any] = {"dpi": 150}
    try:
        figure.savefig(out, **options)
    except ValueError as error:
        raise UserError(f"--out={out}: {error}") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are the process' own if not given."""
    given = _parser().parse_args(arguments)

    def job() -> None:
        host.set_up(1)
        folders = [Path(name) for name in given.workdirs.split(",") if name]
        if not folders:
            raise UserError("--workdirs is empty: give the folders of runs, as runs/a,runs/b")
        out = Path(given.out)
        save(FIGURES[given.name](folders), out)
        print(f"{given.name} in {out}")

    command.guard(job, "stopped")


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("figures", __doc__)
    parser.add_argument("name", choices=tuple(FIGURES), help="which figure")
    parser.add_argument("--workdirs", required=True, help="the runs' folders, by commas")
    parser.add_argument("--out", required=True, help="the picture to write, as figure.png")
    return parser


if __name__ == "__main__":
    main()
