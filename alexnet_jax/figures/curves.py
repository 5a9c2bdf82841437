"""Training curves of one or several runs."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_jax.figures.sheet import new_figure, run_names
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = (
    ("loss, nats", "log", {"train/loss": "training", "val/loss": "validation"}),
    ("top-1 error", "linear", {"train/top1_error": "training", "val/top1_error": "validation"}),
    ("learning rate", "log", {"opt/lr": ""}),
)


def draw_curves(folders: Sequence[Path]) -> "Figure":
    """Loss, top-1 error and learning rate of each run; training is dashed, validation solid.

    A dotted line is the top-1 error in the authors' log of 2012, where the config has one.

    Raises:
      UserError: a run has no metrics yet.
    """
    from matplotlib import colormaps

    figure = new_figure(11, max(3.4, 0.5 + 0.4 * len(folders)))
    many = len(folders) > 10
    colours = colormaps["turbo"].resampled(len(folders)) if many else colormaps["tab10"]
    labels = run_names(folders)
    for axes, (title, scale, names) in zip(figure.subplots(1, 3), _PANELS, strict=True):
        for number, folder in enumerate(folders):
            lines = read_metrics(folder)
            if not lines:
                raise UserError(f"{folder} has no metrics yet; train first")
            for name, split in names.items():
                known = [(one["epoch"], one[name]) for one in lines if one.get(name) is not None]
                line = "--" if split == "training" else "-"
                steps = "default" if split else "steps-pre"  # a rate stays until it changes
                style: dict[str, Any] = {"color": colours(number), "drawstyle": steps}
                style["label"] = f"{labels[number]} {split}".strip()
                if known:
                    axes.plot(*zip(*known, strict=True), line, **style)
        axes.set(title=title, xlabel="epochs", yscale=scale)
        if title == "top-1 error":
            for error in sorted({error for folder in folders for error in _logged(folder)}):
                axes.axhline(error, color="0.5", linestyle=":", label=f"2012 log: {error:.3g}")
            axes.legend(frameon=False, fontsize=8)
    return figure


def _logged(folder: Path) -> list[float]:
    """The first number in the config's `experiment.log`: a top-1 error in percent."""
    return [
        float(n) / 100 for n in re.findall(r"^[\d.]+", workdir.read_config(folder).experiment.log)
    ]
