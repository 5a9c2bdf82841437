"""How the two towers' first kernels differ (§6.1): by colour and by orientation."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

from alexnet_jax import config
from alexnet_jax.compare import mean_text
from alexnet_jax.figures.kernels import first_layer
from alexnet_jax.figures.sheet import new_figure, run_names
from alexnet_jax.runtime.terminal import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACROSS = 5  # panels in a row


def draw_towers(runs: Sequence["Measures"]) -> "Figure":
    """How colourful and how oriented the kernels of each run are: a point for each kernel.

    In the paper's runs the kernels of one tower are largely colour-agnostic and those of the other
    colour-specific (§6.1).
    """
    across, down = min(len(runs), ACROSS), -(-len(runs) // ACROSS)
    figure = new_figure(3.2 * across + 0.4, 3.4 * down)
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for axes, one in zip(panels.flat, runs, strict=False):
        for letter, x, y in zip("AB", one.colour, one.orientation, strict=False):
            tower = f"tower {letter}" if len(one.colour) == 2 else "one tower"
            label = f"{tower}: colour {x.mean():.2f}, oriented {y.mean():.2f}"
            axes.plot(x, y, "o^"[letter == "B"], label=label, alpha=0.7)
        axes.set_title(f"{one.name}, step {one.step}", fontsize=9)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="colour", ylabel="orientation")
        axes.label_outer()
        axes.legend(frameon=False, fontsize=7, loc="upper center")
    for axes in panels.flat[len(runs) :]:
        axes.set_axis_off()
    return figure


class Measures(NamedTuple):
    """The measures of a run's first kernels: for each tower an array, float [kernels]."""

    name: str  # of the workdir
    experiment: str
    step: int
    crossing: bool  # whether the towers meet at layer 3
    colour: list[np.ndarray]  # see `colourfulness`
    orientation: list[np.ndarray]  # see `orientation_strength`


def measure_towers(folders: Sequence[Path]) -> list[Measures]:
    """The measures of the run in each folder. Raises UserError, see `first_layer`."""
    names = run_names(folders)
    return [_measure(name, folder) for name, folder in zip(names, folders, strict=True)]


def _measure(name: str, folder: Path) -> Measures:
    c, step, kernels = first_layer(folder)
    model = c.model
    crossing = isinstance(model, config.AlexNet) and "conv3" in model.cross
    both = (colourfulness(kernels), orientation_strength(kernels))
    split = (np.split(values, model.towers) for values in both)
    return Measures(name, c.experiment.name, step, crossing, *split)


def towers_table(measured: Sequence[Measures]) -> str:
    """Whether the towers' kernels differ, in Markdown: a row for each run with two towers.

    A and B are the means over the kernels of a tower. p is that of a permutation test: how often
    |A - B| is as large as here or larger when the kernels are dealt to the towers at random.

    The lines below are about the runs whose towers meet at layer 3, and about those whose towers do
    not, if all runs of a kind are of one experiment: the mean of |A - B|, and Fisher's combination
    of their p. If there are several of both kinds, a permutation test of the runs follows: how
    often the two means of |A - B| are as far apart as here, or further, when the runs are dealt to
    the two kinds at random.
    """
    runs = [one for one in measured if len(one.colour) == 2]
    if not runs:
        return "none of these networks has two towers"
    rows = [{"run": one.name, "meet at layer 3": "yes" if one.crossing else "no"} for one in runs]
    lines: list[str] = []
    for what in ("colour", "orientation"):
        both = [getattr(one, what) for one in runs]
        chances = [permutation_p(a, b) for a, b in both]
        for row, (a, b), p in zip(rows, both, chances, strict=True):
            row |= {f"{what} A": f"{a.mean():.3f}", f"{what} B": f"{b.mean():.3f}"}
            row |= {f"p of {what}": f"{p:.4f}"}
        lines += _by_kind(what, runs, chances)
    return "\n".join([markdown_table(rows), "", *lines])


def _by_kind(what: str, runs: list[Measures], chances: list[float]) -> list[str]:
    """The lines of a measure below the table; see `towers_table`."""
    lines, found = [], dict[bool, np.ndarray]()
    for crossing, kind in ((True, "meeting"), (False, "not meeting")):
        own = [number for number, one in enumerate(runs) if one.crossing == crossing]
        names = sorted({runs[number].experiment for number in own})
        if len(names) > 1:
            lines.append(f"{what}, {kind} at layer 3: no mean of unlike runs ({', '.join(names)})")
        elif own:
            found[crossing] = np.array([_apart(*getattr(runs[number], what)) for number in own])
            p = stats.combine_pvalues([chances[number] for number in own]).pvalue
            apart = f"|A - B| {mean_text(found[crossing].tolist(), digits=3)}, n={len(own)}"
            lines.append(f"{what}, {kind} at layer 3: {apart}, {_p(p)}")
    if len(found) == 2 and min(map(len, found.values())) > 1:
        p = permutation_p(found[True], found[False])
        lines.append(f"{what}: |A - B| of the runs that meet and of those that do not: {_p(p)}")
    return lines


def _p(value: float) -> str:
    return f"p={value:.4f}" if value >= 0.00005 else "p<0.0001"


def _apart(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.abs(a.mean(axis=axis) - b.mean(axis=axis))


def permutation_p(a: np.ndarray, b: np.ndarray) -> float:
    """How often the means are as far apart as here, or further, when the values are dealt to a and
    b at random: all ways to do so, or 9999 of them, if there are more."""
    found = stats.permutation_test(
        (a, b), _apart, n_resamples=9999, alternative="greater", rng=np.random.default_rng(0)
    )
    return float(found.pvalue)


def colourfulness(kernels: np.ndarray) -> np.ndarray:
    """The share of each kernel's energy that is not grey.

    The grey part of a kernel is the mean of its three colours.

    Args:
      kernels: float [side, side, 3, n].

    Returns:
      float [n] in [0, 1].
    """
    grey = kernels.mean(axis=2, keepdims=True)
    energy = (kernels**2).sum(axis=(0, 1, 2))
    return ((kernels - grey) ** 2).sum(axis=(0, 1, 2)) / np.where(energy > 0, energy, 1)


def orientation_strength(kernels: np.ndarray) -> np.ndarray:
    """How clearly each kernel shows stripes of one direction.

    (a - b) / (a + b), where a and b are the larger and the smaller moment of inertia of the power
    spectrum about the origin. The spectra of the three colours are added.

    Args:
      kernels: float [side, side, 3, n].

    Returns:
      float [n] in [0, 1]; 1 for a grating, 0 where no direction is preferred.
    """
    side = kernels.shape[0]
    power = (np.abs(np.fft.fft2(kernels, axes=(0, 1))) ** 2).sum(axis=2)
    f = np.fft.fftfreq(side)
    v, u = np.meshgrid(f, f, indexing="ij")
    uu, vv, uv = (np.tensordot(w, power, axes=2) for w in (u * u, v * v, u * v))
    total = uu + vv
    return np.hypot(uu - vv, 2 * uv) / np.where(total > 0, total, 1)
