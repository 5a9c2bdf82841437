# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Inside a trained network
#
# What the small network of `configs/tiny.py` has learned: the kernels of its first layer as in Fig.
# 3, the outputs of both towers for one image, the effect of response normalization (§3.3), and how
# the kernels of the two towers differ (§6.1).

# %%
# Installs the package if it is not there, as in Colab. In the repository, its root is the folder
# with runs/ and records/; elsewhere they are made in the current folder.
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = ""  # its URL, once there is one; empty: the published package
sys.path = [p for p in sys.path if p]  # the installed package, not the folder of its name
folders = Path("_").absolute().parents
root = next((p for p in folders if (p / "alexnet_jax/__init__.py").exists()), None)
if importlib.util.find_spec("alexnet_jax") is None:
    source = root.as_uri() if root else REPOSITORY and f"git+{REPOSITORY}"
    wanted = "alexnet-jax" + "[cuda12]" * bool(shutil.which("nvidia-smi"))
    wanted += f" @ {source}" if source else ""
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", wanted], check=True)
os.chdir(root or ".")

# %%
from dataclasses import replace

import jax
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from IPython.display import Markdown
from matplotlib.colors import PowerNorm

import alexnet_jax
from alexnet_jax.data.sources import open_source
from alexnet_jax.figures.kernels import draw_kernels
from alexnet_jax.figures.towers import (
    colourfulness,
    draw_towers,
    measure_towers,
    orientation_strength,
)
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import host
from alexnet_jax.train import fit

host.configure_jax(2)  # two CPU devices; a GPU if there is one
# %matplotlib inline
plt.rcParams.update({"figure.dpi": 90, "image.interpolation": "nearest"})

# %% [markdown]
# This is the run of `03_train_and_watch`. If it does not exist, it is trained now, in about half a
# minute. `load` opens it on one device, which then has both towers.

# %%
c = replace(alexnet_jax.tiny, devices=min(2, jax.device_count()))
folder = Path("runs/tiny")
prepare(c.data.source, c.data.records, size=c.data.size, format=c.data.format)
fit(c, folder)
net = alexnet_jax.load(folder)
print(net)

# %% [markdown]
# ## Kernels of the first layer
#
# As in Fig. 3 of the paper, every kernel of the first layer is a small image. Grey is zero, and the
# contrast of each kernel is stretched. After a few epochs on simple images the kernels are rougher
# than those of the paper: patches of colour, light against dark, and few clear stripes.

# %%
draw_kernels([folder])

# %% [markdown]
# ## One image in both towers
#
# We take the centre crop of a validation image, subtract the mean, and show the output of every
# layer. Each small square is a feature map, bright where its kernel responds. The stride of layer 1
# and the poolings make the maps smaller. In layers 6 and 7 each pixel is a neuron.

# %%
image, label = open_source("generated", c.data.size).splits["validation"].read(6)
layers = c.model.names[:-1]
outputs = {layer: net.features(image, layer)[0] for layer in layers}
print(f"a {net.labels[label]}; the network says:")
for name, probability in net.top5(image, views=1)[:3]:
    print(f"{probability:7.2%} {name}")


# %%
def tiles(maps, columns):
    """The maps [h, w, n] as one image [rows, columns], a pixel apart from each other."""
    more = ((0, 1), (0, 1), (0, -maps.shape[-1] % columns))
    maps = np.pad(maps.astype(float), more, constant_values=np.nan)
    height, width, _ = maps.shape
    maps = np.moveaxis(maps, -1, 0).reshape(-1, columns, height, width)
    return maps.swapaxes(1, 2).reshape(-1, columns * width)[:-1, :-1]


def halves(values):
    """Tower A's half of the last axis, and tower B's."""
    return np.split(np.asarray(values), 2, axis=-1)


# %%
figure, grid = plt.subplots(2, 1 + len(layers), figsize=(13, 3.2), layout="constrained")
for axes, layer in zip(grid[:, 1:].T, layers, strict=True):
    scale = PowerNorm(0.5, 0, outputs[layer].max())
    for panel, name, values in zip(axes, "AB", halves(outputs[layer]), strict=True):
        conv = values.ndim == 3
        shown = tiles(values, 4 if layer == "conv1" else 8) if conv else values.reshape(-1, 32)
        panel.imshow(shown, cmap="magma", norm=scale)
        panel.set_title(f"{layer} {name}\n{np.mean(values > 0):.0%} above 0", fontsize=9)
grid[0, 0].imshow(image)
grid[0, 0].set_title("the image\n", fontsize=9)
for axes in grid.flat:
    axes.set_axis_off()
    axes.set_anchor("N")

# %% [markdown]
# Only some of the units respond to an image, because ReLU sets negative values to zero (§3.1). The
# share above zero is the title of each panel. Both towers of a layer have the same scale, and the
# brightness is the square root of the response. In the first layer both towers see the same pixels
# with different kernels. From layer 3 on, each tower has also seen the maps of the other.
#
# ## Response normalization
#
# Each response of layers 1 and 2 is divided by $(k + \alpha \sum a_j^2)^\beta$. The sum is over the
# responses of the nearest maps at the same position (§3.3), so a strong response makes its
# neighbours weaker. `tiny` follows the 2012 code, which normalizes the first layer before its ReLU.
# Here are the two steps by hand: the convolution, and then the normalization. Both take and give a
# list with an array for each tower.

# %%
network, lrn = net.module, c.model.lrn
responses = network.conv1([net.inputs(image)])
normalized = network.conv1.then(responses, network.lrn1)
before, after = (np.concatenate(x, -1) for x in (responses, normalized))
after *= lrn.k**lrn.beta  # without the constant factor that all responses get
factor = after / before
_, row, column, _ = np.unravel_index(np.argmax(np.abs(before)), before.shape)
print(f"n={lrn.size}, k={lrn.k:g}, alpha={lrn.alpha:g}, beta={lrn.beta:g}")
print(f"after / before: median {np.median(factor):.0%}, lowest {factor.min():.0%}")

# %%
figure = plt.figure(figsize=(11, 3.6), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[1.1, 1])
panels, top = left.subplots(1, 2), float(np.abs(before).max())
for axes, values, title in zip(panels, (before, after), ("before", "after"), strict=True):
    shown = axes.imshow(tiles(halves(values[0])[0], 3), cmap="RdBu_r", vmin=-top, vmax=top)
    axes.set(title=f"{title}: maps of tower A", xticks=[], yticks=[])
left.colorbar(shown, ax=panels, label="response", shrink=0.8)
axes, maps = right.subplots(), np.arange(before.shape[-1])
axes.bar(maps - 0.2, before[0, row, column], 0.4, label="before")
axes.bar(maps + 0.2, after[0, row, column], 0.4, label="after")
axes.axvline(len(maps) / 2 - 0.5, color="0.5", linestyle=":")
axes.axhline(0, color="0.5", linewidth=0.8)
axes.set(
    xlabel="map (left of the dotted line: tower A)",
    ylabel="response",
    title=f"all maps at row {row}, column {column}",
)
_ = axes.legend(frameon=False)

# %% [markdown]
# Both sides of the figure are without the constant factor $k^{-\beta}$, which all responses get.
# Where all responses are weak, nothing changes. Where a map responds strongly, this map and two
# maps on each side of it lose most. The window never reaches over the dotted line into the other
# tower.
#
# ## Do the towers specialize?
#
# In the paper's runs the kernels of one tower became colour-agnostic and those of the other
# colour-specific, for any initialization (§6.1). Below, each point is a kernel. To the right are
# kernels of colour (0 is pure grey); at the top are kernels with stripes of one direction.

# %%
draw_towers(measure_towers([folder]))

# %% [markdown]
# Is the difference between the towers more than chance? If not, any other split of the same kernels
# into two halves shows a difference as large. The last column is the share of 10,000 random splits
# with a difference at least as large. The rows "initial" are the random kernels before training.


# %%
def share_of_splits(values, splits=10_000):
    """The share of random splits whose two means differ by at least as much as the towers' do."""
    towers = np.subtract(*(half.mean() for half in halves(values)))
    shuffled = np.random.default_rng(0).permuted(np.tile(values, (splits, 1)), axis=1)
    others = np.subtract(*(half.mean(-1) for half in halves(shuffled)))
    return np.mean(np.abs(others) >= abs(towers) - 1e-12)


initial = alexnet_jax.AlexNet(c.model, c.data.crop, rngs=nnx.Rngs(c.seed))
table = "| kernels | measure | tower A | tower B | random splits as different |\n"
table += "|---|---|---|---|---|\n"
for name, params in {"initial": initial, "trained": net.module}.items():
    kernels = np.asarray(params.conv1.kernel)
    for measure in (colourfulness, orientation_strength):
        a, b = (half.mean() for half in halves(measure(kernels)))
        share = share_of_splits(measure(kernels))
        table += f"| {name} | {measure.__name__} | {a:.3f} | {b:.3f} | {share:.1%} |\n"
Markdown(table)

# %% [markdown]
# One run of a small network on ten classes of generated images does not test the paper's finding.
# The table only describes this run. With more runs (`--config.seed=1` ...) `measure_towers`
# takes all of their folders.
