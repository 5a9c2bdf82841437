"""Fig. 3 (§6.1): the first layer's kernels."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from alexnet_jax import config
from alexnet_jax.figures.sheet import new_figure, the_only
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import trained
from alexnet_jax.training.pictures import kernel_mosaic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEPT = "kernels.npz"  # with it, a folder needs no checkpoint: 'kernels' and 'step'


def draw_kernels(folders: Sequence[Path]) -> "Figure":
    """Fig. 3: the first layer's kernels of one run; see `kernel_mosaic`.

    Raises:
      UserError: several folders are given, the run cannot be opened, or its first layer does not
        see three colours.
    """
    one = first_layer(the_only(folders, "kernels"))
    model = one.config.model
    towers = model.towers
    mosaic = kernel_mosaic(one.kernels, towers)
    width = 8.0
    figure = new_figure(width, 0.6 + width * mosaic.shape[0] / mosaic.shape[1])
    axes = figure.subplots()
    axes.imshow(mosaic, interpolation="nearest")
    axes.set_axis_off()
    which = "tower A above, tower B below" if towers == 2 else "one tower"
    count = one.kernels.shape[-1]
    axes.set_title(f"{model.names[0]}, {count} kernels, step {one.step}: {which}", fontsize=10)
    return figure


class FirstLayer(NamedTuple):
    """The kernels of a run's first layer."""

    config: config.Config
    step: int
    kernels: np.ndarray  # float32 [side, side, 3, n]


def first_layer(folder: Path) -> FirstLayer:
    """Of the newest checkpoint of a run, or of what `keep_kernels` has left of it.

    Raises:
      UserError: the run cannot be opened, or its first layer does not see three colours.
    """
    if (folder / KEPT).exists():
        step, kernels = _kept(folder / KEPT)
        return FirstLayer(workdir.read_config(folder), step, kernels)
    net = trained.load(folder)
    first = net.config.model.names[0]
    kernels = np.asarray(jax.device_get(net.params[first]["kernel"]), np.float32)
    if kernels.ndim != 4 or kernels.shape[2] != 3:
        raise UserError(f"{first} of {net.folder} does not see the three colours of an image")
    return FirstLayer(net.config, net.step, kernels)


def _kept(file: Path) -> tuple[int, np.ndarray]:
    try:
        with np.load(file) as kept:
            return int(kept["step"]), kept["kernels"]
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{file} is damaged ({error}); write it again, as docs/results.md says"
        ) from None


def keep_kernels(folder: Path, place: Path) -> None:
    """Writes the kernels of the run in `folder` to the folder `place`, which has its config."""
    one = first_layer(folder)
    np.savez_compressed(place / KEPT, kernels=one.kernels, step=one.step)
