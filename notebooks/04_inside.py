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
# What the small network of `configs/tiny.py` has learned: its first-layer kernels as in Fig. 3,
# what each tower makes of one image, what response normalisation does (§3.3), and whether the
# towers have come to share the work (§6.1).

# %%
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from matplotlib.colors import PowerNorm

# The repository's root, wherever Jupyter was started: configs/, records/ and runs/ lie in it.
sys.path.insert(0, next(str(p) for p in Path("_").absolute().parents if (p / "configs").is_dir()))
os.environ["JAX_PLATFORMS"] = "cpu"  # also where there is a GPU: two CPU devices are enough

from alexnet_jax.configs import tiny

from alexnet_jax import config
from alexnet_jax.data import augment
from alexnet_jax.figures.kernels import (
    colourfulness,
    draw_kernels,
    draw_towers,
    orientation_strength,
)
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import host
from alexnet_jax.train import fit
from alexnet_jax.training.trained import open_trained

os.chdir(sys.path[0])
host.configure_jax(2)
# %matplotlib inline
plt.rcParams.update({"figure.dpi": 90, "image.interpolation": "nearest"})

# %% [markdown]
# The run is the one of `03_train_and_watch`; if it is not there it is trained now, in about half
# a minute. It is opened on one device, which then holds both towers: the arrays are the same.

# %%
c, folder = config.parse(tiny.get_config()), Path("runs/tiny")
prepare(c.data.source, c.data.records, size=c.data.size, format=c.data.format)
fit(c, folder)
net = open_trained(folder)

# %% [markdown]
# ## Kernels of the first layer
#
# Fig. 3 of the paper: every kernel of the first layer as a small image. Grey is zero, and each
# kernel has its full contrast. After few epochs on simple images they are rougher than the
# paper's: patches of colour and of light against dark, few clear stripes.

# %%
draw_kernels([folder])

# %% [markdown]
# ## One image in both towers
#
# A validation image, its centre crop without the mean, and the output of every layer for it.
# Each small square is a feature map, bright where its kernel responds; the maps get smaller from
# layer to layer as strides and pooling take their part. Of layers 6 and 7 each pixel is a neuron.

# %%
setup, split = net.setup, net.setup.validation
number = np.flatnonzero(split.labels == 6)[0]
image = np.empty((1, split.size, split.size, 3), np.uint8)
split.read(number, image[0])
seen = augment.view(image, setup.normalization["mean"], c.data, augment.CENTRE)
outputs = setup.network.bind(net.params).outputs(seen)
probs = np.exp(outputs["fc8"][0]) / np.exp(outputs["fc8"][0]).sum()
classes = setup.records.manifest.classes
print(f"a {classes[split.labels[number]]}; the network says:")
for best in np.argsort(-probs)[:3]:
    print(f"{probs[best]:7.2%} {classes[best]}")


# %%
def tiles(maps, columns):
    """The maps [h, w, n] beside each other, a pixel apart: [rows, columns]."""
    more = ((0, 1), (0, 1), (0, -maps.shape[-1] % columns))
    maps = np.pad(maps.astype(float), more, constant_values=np.nan)
    height, width, _ = maps.shape
    maps = np.moveaxis(maps, -1, 0).reshape(-1, columns, height, width)
    return maps.swapaxes(1, 2).reshape(-1, columns * width)[:-1, :-1]


def halves(values):
    """Tower A's half of the last axis, and tower B's."""
    return np.split(np.asarray(values), 2, axis=-1)


# %%
layers = c.model.names[:-1]
figure, grid = plt.subplots(2, 1 + len(layers), figsize=(13, 3.2), layout="constrained")
for axes, layer in zip(grid[:, 1:].T, layers, strict=True):
    scale = PowerNorm(0.5, 0, outputs[layer].max())
    for panel, name, values in zip(axes, "AB", halves(outputs[layer][0]), strict=True):
        conv = values.ndim == 3
        drawn = tiles(values, 4 if layer == "conv1" else 8) if conv else values.reshape(-1, 32)
        panel.imshow(drawn, cmap="magma", norm=scale)
        panel.set_title(f"{layer} {name}\n{np.mean(values > 0):.0%} above 0", fontsize=9)
grid[0, 0].imshow(image[0])
grid[0, 0].set_title("the image\n", fontsize=9)
for axes in grid.flat:
    axes.set_axis_off()
    axes.set_anchor("N")

# %% [markdown]
# Only some of the units respond to a image: that is what the ReLU leaves (§3.1). The share
# above zero stands over each panel; both towers of a layer have the same scale, brightness being
# the root of the response. The first layer's two halves see the same pixels with different
# kernels; from layer 3 on, each tower has seen the other's maps as well.
#
# ## Response normalisation
#
# Each response of layers 1 and 2 is divided by $(k + \alpha \sum a_j^2)^\beta$, where the sum is
# over the responses of the nearest maps at the same place (§3.3): a strong response quietens its
# neighbours. `tiny` does as the 2012 code, which normalises the first layer before its ReLU. We
# take that step out, and apply it by hand.

# %%
conv1 = setup.network.bind(net.params).conv1
normalise, *_ = conv1.steps
conv1.steps = ()
before = conv1(seen)
lrn = c.model.lrn
after = normalise(before) * lrn.k**lrn.beta  # so that without neighbours it would change nothing
factor = np.asarray(after / before)
place = np.unravel_index(np.argmax(np.abs(before)), before.shape)
print(f"n={lrn.size}, k={lrn.k:g}, alpha={lrn.alpha:g}, beta={lrn.beta:g}")
print(
    f"left of a response, but for the constant: median {np.median(factor):.0%}, "
    f"least {factor.min():.0%}"
)

# %%
figure = plt.figure(figsize=(11, 3.6), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[1.1, 1])
panels, top = left.subplots(1, 2), float(np.abs(before).max())
for axes, values, title in zip(panels, (before, after), ("before", "after"), strict=True):
    drawn = axes.imshow(tiles(halves(values[0])[0], 3), cmap="RdBu_r", vmin=-top, vmax=top)
    axes.set(title=f"{title}: maps of tower A", xticks=[], yticks=[])
left.colorbar(drawn, ax=panels, label="response", shrink=0.8)
axes, maps = right.subplots(), np.arange(before.shape[-1])
_, row, column, _ = place
axes.bar(maps - 0.2, before[0, row, column], 0.4, label="before")
axes.bar(maps + 0.2, after[0, row, column], 0.4, label="after")
axes.axvline(len(maps) / 2 - 0.5, color="0.5", linestyle=":")
axes.axhline(0, color="0.5", linewidth=0.8)
axes.set(
    xlabel="map (dotted: from tower A to B)",
    ylabel="response",
    title=f"all maps at row {row}, column {column}",
)
_ = axes.legend(frameon=False)

# %% [markdown]
# Both sides of the figure leave out the constant factor $k^{-\beta}$, which every response gets.
# What remains is the competition: where all is quiet nothing changes, and where a map is loud, it
# and its two neighbours on either side lose most. The window never reaches over the dotted line
# into the other tower.
#
# ## Do the towers share the work?
#
# In the paper's runs one tower's kernels turned out colour-agnostic, the other's colour-specific,
# whatever the initialisation (§6.1). A point is a kernel: to the right if it is about colour (0
# is pure grey), high up if it is stripes of one direction.

# %%
draw_towers([folder])

# %% [markdown]
# Is what the towers differ by more than chance? If it is not, any other split of the same kernels
# into two halves shows as much. The last column is the share of 10,000 random splits whose
# difference is at least as large; the rows "initial" are the random kernels before training.


# %%
def share_of_splits(values, splits=10_000):
    """The share of random splits whose halves' means differ at least as much as the towers'."""
    towers = np.subtract(*(half.mean() for half in halves(values)))
    shuffled = np.random.default_rng(0).permuted(np.tile(values, (splits, 1)), axis=1)
    others = np.subtract(*(half.mean(-1) for half in halves(shuffled)))
    return np.mean(np.abs(others) >= abs(towers) - 1e-12)


table = "| kernels | measure | tower A | tower B | random splits as different |\n"
table += "|---|---|---|---|---|\n"
for name, params in {"initial": setup.network.init(c.seed), "trained": net.params}.items():
    kernels = np.asarray(params["conv1"]["kernel"])
    for measure in (colourfulness, orientation_strength):
        a, b = (half.mean() for half in halves(measure(kernels)))
        share = share_of_splits(measure(kernels))
        table += f"| {name} | {measure.__name__} | {a:.3f} | {b:.3f} | {share:.1%} |\n"
Markdown(table)

# %% [markdown]
# One run of a small network on ten classes of drawn images is no test of the paper's finding:
# the table says how this one came out. With more runs (`--config.seed=1` ...) `draw_towers` takes
# all their folders.
