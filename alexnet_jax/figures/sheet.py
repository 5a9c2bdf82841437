"""New figures, and the files that they are saved in."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from alexnet_jax.runtime import cli
from alexnet_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def image_file(option: flags.FlagHolder[str | None]) -> Path | None:
    """The file of an option such as ``--out``, checked before anything is drawn.

    Raises:
      UserError: its folder is missing, or its name has no ending that matplotlib knows.
    """
    file = cli.output(option)
    if file is None:
        return None
    known = sorted(new_figure(1, 1).canvas.get_supported_filetypes())
    if file.suffix[1:].lower() not in known:
        raise UserError(
            f"--{option.name}={file}: end the name with one of {', '.join(known)}, as in a.png"
        )
    return file


def run_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each folder's name; the whole if two would have the same name."""
    names = [folder.absolute().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def the_only(folders: Sequence[Path], name: str) -> Path:
    """The folder of a figure that shows one run.

    Raises:
      UserError: there are several.
    """
    if len(folders) > 1:
        raise UserError(f"{name} shows one run; give one folder as --workdirs")
    return folders[0]
