"""Differences between networks that were scored on the same images, with their intervals."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet_jax.compare import differences, title
from alexnet_jax.figures.sheet import new_figure
from alexnet_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_differences(files: Sequence[Path]) -> "Figure":
    """A line for each pair that is compared, a colour for each split and number of views.

    A dot is the difference of the mean top-1 errors in percentage points, its bar the 95% interval
    of a paired bootstrap over the images; see `compare.score_tables`.

    Args:
      files: that `evaluate --json=FILE` wrote.

    Raises:
      UserError: see `compare.score_tables`; or nothing is compared.
    """
    found = {names: of for names, of in differences(files).items() if of}
    if not found:
        raise UserError("no two of these are compared; add the scores of what the ablation is of")
    ways = sorted({way for of in found.values() for way in of})
    figure = new_figure(7, 1 + 0.45 * len(found))
    axes = figure.subplots()
    for number, way in enumerate(ways):
        known = [(place, of[way]) for place, of in enumerate(found.values()) if way in of]
        heights = [place + 0.7 * ((number + 0.5) / len(ways) - 0.5) for place, _ in known]
        means = [one.mean for _, one in known]
        bars = [[one.mean - one.low for _, one in known], [one.high - one.mean for _, one in known]]
        axes.errorbar(means, heights, xerr=bars, fmt="o", markersize=4, label=title(way))
    axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    bases = {base for _, base in found}
    names = [name if len(bases) == 1 else f"{name} - {base}" for name, base in found]
    axes.set_yticks(range(len(found)), names)
    axes.invert_yaxis()
    minus = f" minus that of {bases.pop()}" if len(bases) == 1 else ", differences"
    axes.set_xlabel(f"top-1 error{minus}, percentage points")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=min(3, len(ways)), frameon=False, fontsize=8)
    return figure
