"""Fig. 3 (§6.1): the first layer's kernels, and how the two towers' kernels differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from alexnet_jax.figures.sheet import new_figure, the_only
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import trained
from alexnet_jax.training.pictures import kernel_mosaic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    figure = new_figure(3.2 * len(folders) + 0.4, 3.4)
    panels = figure.subplots(1, len(folders), squeeze=False, sharex=True, sharey=True)[0]
    for axes, folder in zip(panels, folders, strict=True):
        net = trained.load(folder)
        _, kernels = _first_layer(net)
        colour, orientation = colourfulness(kernels), orientation_strength(kernels)
        towers = net.config.model.towers
        parts = np.split(np.arange(kernels.shape[-1]), towers)
        for name, own in zip("AB", parts, strict=False):
            x, y = colour[own], orientation[own]
            label = f"tower {name}: colour {x.mean():.2f}, oriented {y.mean():.2f}"
            axes.plot(x, y, "o^"[name == "B"], label=label, alpha=0.7)
        axes.set(title=f"{folder.name}, step {net.step}", xlabel="colour", xlim=(0, 1), ylim=(0, 1))
        axes.legend(frameon=False, fontsize=7, loc="upper center")
    panels[0].set_ylabel("orientation")
    return figure


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
