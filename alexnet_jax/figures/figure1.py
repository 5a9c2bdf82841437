"""Fig. 1 (§3.1): the training error over epochs for each activation, and when it reached 25%."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alexnet_jax.figures.sheet import new_figure
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GOAL = 0.25  # the training error at which Fig. 1 compares
LINES = {  # name, style, colour
    "relu": ("ReLU", "-", "C0"),
    "tanh": ("tanh", "--", "C1"),
    "sigmoid": ("sigmoid", ":", "C2"),
}


def training_errors(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The training top-1 error of each finished epoch, as a mean over its steps.

    A line of metrics has the mean over the steps since the line before it.

    Returns:
      The epochs at which they ended, float [n], and the errors, float [n] in [0, 1].

    Raises:
      UserError: the run has not finished an epoch yet.
    """
    lines = [line for line in read_metrics(folder) if "train/top1_error" in line]
    names = ("step", "epoch", "train/top1_error")
    step, epoch, error = (np.array([line[name] for line in lines]) for name in names)
    # Every epoch ends with a line, so a line's steps belong to one epoch (to within a batch).
    middle, steps = epoch - np.diff(epoch, prepend=0) / 2, np.diff(step, prepend=0)
    number, place = np.unique(middle.astype(int) + 1, return_inverse=True)
    whole = number <= epoch.max(initial=0)
    if not whole.any():
        raise UserError(f"{folder} has not finished an epoch yet, so it has no training error")
    errors = np.bincount(place, steps * error) / np.bincount(place, steps)
    return number[whole].astype(float), errors[whole]


def epochs_to(goal: float, epochs: np.ndarray, errors: np.ndarray) -> float | None:
    """The number of epochs until the error reached `goal`; None if it never did.

    Between two epochs the error is taken as a straight line.
    """
    below = np.flatnonzero(errors <= goal)
    if not len(below):
        return None
    first = int(below[0])
    if first == 0:
        return float(epochs[0])
    (e0, e1), (y0, y1) = epochs[first - 1 : first + 1], errors[first - 1 : first + 1]
    return float(e0 + (e1 - e0) * (y0 - goal) / (y0 - y1))


def draw_figure1(folders: Sequence[Path]) -> "Figure":
    """Fig. 1 (§3.1): one line for each run, one colour for each activation.

    Raises:
      UserError: see `training_errors`.
    """
    figure = new_figure(6, 4)
    axes = figure.subplots()
    reached: dict[str, list[float | None]] = {}
    for folder in folders:
        kind = workdir.read_config(folder).model.activation
        epochs, errors = training_errors(folder)
        name, style, colour = LINES[kind]
        label = None if kind in reached else name
        axes.plot(epochs, errors, style, color=colour, label=label, linewidth=1.5)
        reached.setdefault(kind, []).append(epochs_to(GOAL, epochs, errors))
    axes.axhline(GOAL, color="0.6", linewidth=0.8)
    axes.set(xlabel="epochs", ylabel="training error", ylim=(0, 0.8), title=_when(reached))
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    return figure


def _when(reached: dict[str, list[float | None]]) -> str:
    """The mean number of epochs to the goal for each activation, and their ratio."""
    means = {
        kind: float(np.mean([value for value in values if value is not None]))
        for kind, values in reached.items()
        if None not in values
    }
    told = dict.fromkeys(reached, "not yet") | {k: f"{mean:.1f}" for k, mean in means.items()}
    parts = [f"{kind} {told[kind]}" for kind in sorted(told)]
    text = f"epochs to {GOAL:.0%} training error: " + ", ".join(parts)
    others = [kind for kind in sorted(means) if kind != "relu"]
    if "relu" in means and others:
        ratios = ", ".join(f"{means[kind] / means['relu']:.1f}" for kind in others)
        text += f" ({ratios} times)"
    return text
