"""What a step's program moves in each layer: results of `benchmark program`, side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_jax.figures.sheet import new_figure
from alexnet_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PASSES = {"forward": 0.45, "backward": 1.0, "other": 0.2}
"""The passes, by how opaque their bars are; 'other' is the input and the update."""


def draw_layer_bytes(files: Sequence[Path]) -> "Figure":
    """Gigabytes by layer, a bar for the first row of each file, forward and backward stacked.

    Args:
      files: that `benchmark program --json=FILE` wrote.

    Raises:
      UserError: a file is not there, or not such a result.
    """
    rows = [_first_row(file) for file in files]
    layers = list(dict.fromkeys(one["layer"] for row in rows for one in row["layers"]))
    figure = new_figure(8, 4.2)
    axes = figure.subplots()
    width = 0.8 / len(rows)
    for number, (file, row) in enumerate(zip(files, rows, strict=True)):
        base = [0.0] * len(layers)
        places = [at + (number - (len(rows) - 1) / 2) * width for at in range(len(layers))]
        for which, opacity in PASSES.items():
            sizes = [_gigabytes(row, layer, which) for layer in layers]
            label = f"{file.stem}: {row['gigabytes']:.1f} GB" if which == "backward" else None
            style: dict[str, Any] = {"color": f"C{number}", "alpha": opacity, "label": label}
            axes.bar(places, sizes, width, bottom=base, **style)
            base = [below + size for below, size in zip(base, sizes, strict=True)]
    axes.set_xticks(range(len(layers)), layers)
    axes.set_ylabel("GB moved in a step")
    first = rows[0]
    axes.set_title(
        f"batch {first['batch']}, {first['dtype']}, {first['devices']} device(s), compiled for "
        f"{first['target']}; pale: forward, full: backward",
        fontsize=9,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _first_row(file: Path) -> Any:
    try:
        row = json.loads(file.read_text())["rows"][0]
        if "layers" in row:
            return row
    except OSError as error:
        raise UserError(f"--results: {file}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError):
        pass
    raise UserError(
        f"--results: {file} is no result of a compiled step; "
        f"make one with `benchmark program --json=FILE`"
    )


def _gigabytes(row: Any, layer: str, which: str) -> float:
    there = (one for one in row["layers"] if (one["layer"], one["pass"]) == (layer, which))
    return sum(one["megabytes"] for one in there) / 1000
