"""Fig. 3 (§6.1): the first layer's kernels, and how the two towers' kernels differ."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from scipy import stats

from alexnet_jax import config
from alexnet_jax.compare import mean_and_error
from alexnet_jax.figures.sheet import new_figure, the_only
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.terminal import markdown_table
from alexnet_jax.training import trained
from alexnet_jax.training.pictures import kernel_mosaic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACROSS = 5  # panels in a row


def draw_kernels(folders: Sequence[Path]) -> "Figure":
    """Fig. 3: the first layer's kernels of one run; see `kernel_mosaic`.

    Raises:
      UserError: several folders are given, the run cannot be opened, or its first layer does not
        see three colours.
    """
    net = trained.load(the_only(folders, "kernels"))
    first, kernels = _first_layer(net)
    towers = net.config.model.towers
    mosaic = kernel_mosaic(kernels, towers)
    width = 8.0
    figure = new_figure(width, 0.6 + width * mosaic.shape[0] / mosaic.shape[1])
    axes = figure.subplots()
    axes.imshow(mosaic, interpolation="nearest")
    axes.set_axis_off()
    which = "tower A above, tower B below" if towers == 2 else "one tower"
    axes.set_title(f"{first}, {kernels.shape[-1]} kernels, step {net.step}: {which}", fontsize=10)
    return figure


def draw_towers(folders: Sequence[Path]) -> "Figure":
    """How colourful and how oriented the kernels of each run are: a point for each kernel.

    In the paper's runs the kernels of one tower are largely colour-agnostic and those of the other
    colour-specific (§6.1).

    Raises:
      UserError: see `draw_kernels`.
    """
    across, down = min(len(folders), ACROSS), -(-len(folders) // ACROSS)
    figure = new_figure(3.2 * across + 0.4, 3.4 * down)
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for axes, folder in zip(panels.flat, folders, strict=False):
        one = measure(folder)
        for name, x, y in zip("AB", one.colour, one.orientation, strict=False):
            label = f"tower {name}: colour {x.mean():.2f}, oriented {y.mean():.2f}"
            axes.plot(x, y, "o^"[name == "B"], label=label, alpha=0.7)
        axes.set(title=f"{folder.name}, step {one.step}", xlim=(0, 1), ylim=(0, 1))
        axes.set(xlabel="colour", ylabel="orientation")
        axes.label_outer()
        axes.legend(frameon=False, fontsize=7, loc="upper center")
    for axes in panels.flat[len(folders) :]:
        axes.set_axis_off()
    return figure


class Measures(NamedTuple):
    """The measures of a run's first kernels: for each tower an array, float [kernels]."""

    name: str  # of the workdir
    step: int
    crossing: bool  # whether the towers meet at layer 3
    colour: list[np.ndarray]  # see `colourfulness`
    orientation: list[np.ndarray]  # see `orientation_strength`


def measure(folder: Path) -> Measures:
    """The measures of the run in `folder`. Raises UserError, see `draw_kernels`."""
    net = trained.load(folder)
    _, kernels = _first_layer(net)
    model = net.config.model
    crossing = isinstance(model, config.AlexNet) and "conv3" in model.cross
    both = (colourfulness(kernels), orientation_strength(kernels))
    split = (np.split(values, model.towers) for values in both)
    return Measures(folder.name, net.step, crossing, *split)


def towers_table(folders: Sequence[Path]) -> str:
    """Whether the towers' kernels differ, in Markdown: a row for each run with two towers.

    A and B are the means over the kernels of a tower. p is that of a permutation test: how often
    |A - B| is as large as here or larger when the kernels are dealt to the towers at random. The
    lines below are about the runs whose towers meet at layer 3, and about those whose towers do
    not: the mean of |A - B|, and Fisher's combination of their p. If there are several of both
    kinds, a permutation test of the runs follows: how often the two means of |A - B| are as far
    apart as here, or further, when the runs are dealt to the two kinds at random (two-sided).

    Raises:
      UserError: see `draw_kernels`.
    """
    runs = [one for one in map(measure, folders) if len(one.colour) == 2]
    rows = [{"run": one.name, "meet at layer 3": "yes" if one.crossing else "no"} for one in runs]
    lines = []
    for what in ("colour", "orientation"):
        apart: dict[bool, list[float]] = {}
        chances: dict[bool, list[float]] = {}
        for row, one in zip(rows, runs, strict=True):
            a, b = getattr(one, what)
            p = permutation_p(_apart, a, b, "greater")
            row |= {f"{what} A": f"{a.mean():.3f}", f"{what} B": f"{b.mean():.3f}"}
            row |= {f"p of {what}": f"{p:.4f}"}
            apart.setdefault(one.crossing, []).append(float(_apart(a, b)))
            chances.setdefault(one.crossing, []).append(p)
        for crossing, values in sorted(apart.items(), reverse=True):
            value, error = mean_and_error(values)
            spread = "" if error is None else f" ± {error:.3f}"
            p = stats.combine_pvalues(chances[crossing]).pvalue
            which = f"{what}, {'meeting' if crossing else 'not meeting'} at layer 3"
            lines.append(f"{which}: |A - B| {value:.3f}{spread}, n={len(values)}, p={p:.4f}")
        if len(apart) == 2 and min(map(len, apart.values())) > 1:
            meeting, not_meeting = np.array(apart[True]), np.array(apart[False])
            p = permutation_p(_difference, meeting, not_meeting, "two-sided")
            lines.append(
                f"{what}: |A - B| of the runs that meet and of those that do not: p={p:.4f}"
            )
    return "\n".join([markdown_table(rows), "", *lines])


def _difference(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    return a.mean(axis=axis) - b.mean(axis=axis)


def _apart(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.abs(_difference(a, b, axis))


def permutation_p(statistic: Callable, a: np.ndarray, b: np.ndarray, alternative: str) -> float:
    """How often `statistic` is as extreme as here when the values are dealt to a and b at random:
    all ways to do so, or 9999 of them, if there are more."""
    found = stats.permutation_test(
        (a, b), statistic, n_resamples=9999, alternative=alternative, rng=np.random.default_rng(0)
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


def _first_layer(net: trained.Net) -> tuple[str, np.ndarray]:
    """The name of the first layer and its kernels, float32 [side, side, 3, n].

    Raises:
      UserError: the layer does not see three colours.
    """
    first = net.config.model.names[0]
    kernels = np.asarray(jax.device_get(net.params[first]["kernel"]), np.float32)
    if kernels.ndim != 4 or kernels.shape[2] != 3:
        raise UserError(f"{first} of {net.folder} does not see the three colours of an image")
    return first, kernels
