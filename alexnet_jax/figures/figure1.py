"""Fig. 1 (§3.1): the training error over epochs for each activation, and when it reached 25%."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alexnet_jax import config
from alexnet_jax.compare import mean_text
from alexnet_jax.figures.sheet import new_figure, run_names
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
    lines = [one for one in read_metrics(folder) if one.get("train/top1_error") is not None]
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
    """Fig. 1 (§3.1): for each activation the mean over its runs, in a band from least to most.

    Runs of one activation that differ in more than their seed, also in their records, have a line
    each.

    Raises:
      UserError: see `training_errors`.
    """
    figure = new_figure(6, 4)
    axes = figure.subplots()
    groups = _alike(folders)
    activations = [workdir.read_config(alike[0]).model.activation for alike in groups]
    names = dict(zip(folders, run_names(folders), strict=True))
    reached: dict[str, list[float | None]] = {}
    for number, alike in enumerate(groups):
        curves = [training_errors(folder) for folder in alike]
        kind = activations[number]
        name, style, colour = LINES[kind]
        if activations.count(kind) > 1:
            name = kind = f"{kind} ({names[alike[0]]})"
            colour = f"C{number + len(LINES)}"
        label = name if len(curves) == 1 else f"{name}, {len(curves)} seeds"
        ended = min(len(errors) for _, errors in curves)  # epochs that all have
        epochs, together = curves[0][0][:ended], np.stack([errors[:ended] for _, errors in curves])
        axes.plot(epochs, together.mean(0), style, color=colour, label=label, linewidth=1.5)
        if len(curves) > 1:
            least, most = together.min(0), together.max(0)
            axes.fill_between(epochs, least, most, color=colour, alpha=0.25, linewidth=0)
        reached[kind] = [epochs_to(GOAL, *one) for one in curves]
    largest = max(np.max(line.get_ydata()) for line in axes.lines)
    axes.axhline(GOAL, color="0.6", linewidth=0.8)
    axes.set(xlabel="epochs", ylabel="training error", ylim=(0, max(0.8, largest + 0.02)))
    axes.set_title(_when(reached), fontsize=9)
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    return figure


def _alike(folders: Sequence[Path]) -> list[list[Path]]:
    """Runs on the same records that differ in their seed alone together, in the order given."""
    groups: dict[str, list[Path]] = {}
    for folder in folders:
        c = workdir.read_config(folder)
        records = workdir.records_of(folder) or c.data.source
        key = json.dumps([c.experiment.name, records, config.but_seed(c)], sort_keys=True)
        groups.setdefault(key, []).append(folder)
    return list(groups.values())


def _when(reached: dict[str, list[float | None]]) -> str:
    """The mean number of epochs to the goal for each line, and how many times ReLU's.

    After ± stands the standard error; the ratio is that of the means, and then those of the pairs
    of runs that are furthest apart.
    """
    parts, known = [], dict[str, list[float]]()
    for kind in sorted(reached):
        values = [value for value in reached[kind] if value is not None]
        if len(values) < len(reached[kind]):
            more = f" by {len(reached[kind]) - len(values)} of {len(reached[kind])}"
            parts.append(f"{kind} not reached" + (more if values else ""))
            continue
        known[kind] = values
        count = f" (n={len(values)})" if len(values) > 1 else ""
        parts.append(f"{kind} {mean_text(values, digits=1)}{count}")
    named = any("(" in kind for kind in reached)  # longer than an activation
    lines = [f"epochs to {GOAL:.0%} training error", *(parts if named else [", ".join(parts)])]
    others = [kind for kind in known if kind != "relu"]
    if "relu" in known and others:
        lines.append("; ".join(f"{kind} {_ratio(known[kind], known['relu'])}" for kind in others))
    return "\n".join(lines)


def _ratio(slower: list[float], faster: list[float]) -> str:
    text = f"{np.mean(slower) / np.mean(faster):.1f} times as many"
    if len(slower) + len(faster) == 2:
        return text
    return f"{text} ({min(slower) / max(faster):.1f} to {max(slower) / min(faster):.1f})"
