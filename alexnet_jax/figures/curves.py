"""Training curves of one run or several."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_jax.errors import UserError
from alexnet_jax.figures.sheet import new_figure
from alexnet_jax.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = (
    ("loss, nats", "log", {"train/loss": "training", "val/loss": "validation"}),
    (
        "top-1 error",
        "linear",
        {"train/top1_error": "training", "val/top1_error": "validation"},
    ),
    ("learning rate", "log", {"opt/lr": ""}),
)


def draw_curves(folders: Sequence[Path]) -> "Figure":
    """Loss, error and rate of runs; training is dashed, validation drawn through."""
    figure = new_figure(11, 3.4)
    for axes, (title, scale, names) in zip(figure.subplots(1, 3), _PANELS, strict=True):
        for number, folder in enumerate(folders):
            lines = read_metrics(folder)
            if not lines:
                raise UserError(f"{folder} has no metrics yet; train first")
            for name, split in names.items():
                known = [(one["epoch"], one[name]) for one in lines if one.get(name) is not None]
                label = f"{folder.name} {split}".strip()
                line = "--" if split == "training" else "-"
                steps = "default" if split else "steps-pre"  # a rate holds until it is changed
                style: dict[str, Any] = {"color": f"C{number}", "label": label, "drawstyle": steps}
                if known:
                    axes.plot(*zip(*known, strict=True), line, **style)
        axes.set(title=title, xlabel="epochs", yscale=scale)
        if title == "top-1 error":
            axes.legend(frameon=False, fontsize=8)
    return figure
