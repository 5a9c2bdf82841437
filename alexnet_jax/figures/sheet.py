"""A sheet to draw on, and its way into a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_jax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
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
