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
# # Two towers on two devices
#
# The network is two towers, A and B, each with half of every layer's kernels or neurons, each on
# a device of its own (§3.2, §3.5). They see each other's outputs only before layers 3, 6 and 7,
# and both contribute to the logits. This notebook shows which part of which parameter lies where,
# what the compiled training step sends from one device to the other, and what each of them must
# hold.

# %%
import os
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from matplotlib.patches import FancyArrowPatch, Rectangle

# The repository's root, wherever Jupyter was started: configs/, records/ and runs/ lie in it.
sys.path.insert(0, next(str(p) for p in Path("_").absolute().parents if (p / "configs").is_dir()))
os.environ["JAX_PLATFORMS"] = "cpu"  # also where there is a GPU: two CPU devices are enough

from alexnet_jax.configs import alexnet, tiny

from alexnet_jax import config
from alexnet_jax.benchmark.bench import Bench
from alexnet_jax.benchmark.program import measure_collectives, measure_memory
from alexnet_jax.model.describe import format_table, layer_table
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import host
from alexnet_jax.training.setup import make_network

os.chdir(sys.path[0])
host.configure_jax(2)
plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# ## The mesh
#
# Devices stand in a grid: along `data` a batch is split, along `tower` the network is. With two
# devices that is one row, tower A and tower B. Below is the network at full size. Nothing is
# computed or allocated: shapes are enough to know all that follows.

# %%
full = config.parse(alexnet.get_config())
network = make_network(full)
print(network.mesh)
table = layer_table(network, full)
print(format_table(table, network))

# %% [markdown]
# ## Which slice lies where
#
# A parameter has one global shape, and a rule that says over which axis of the grid each of its
# own axes is split. Almost every kernel is split over its outputs (its last axis), so that a
# device holds the kernels of its own tower. Layer 8 is split over its inputs instead: each device
# multiplies the neurons that it has, and the two partial logits are added.


# %%
def held(layer, name):
    """Of a parameter, the first and last index (exclusive) of each axis, device by device."""
    shape = network.shapes[layer][name].shape
    sharding = network.shardings(network.specs[layer][name])
    indices = sharding.devices_indices_map(shape).values()
    return [[s.indices(n)[:2] for s, n in zip(i, shape, strict=True)] for i in indices]


lines = "| parameter | shape | device 0, tower A | device 1, tower B |\n|---|---|---|---|\n"
for layer, parameters in network.shapes.items():
    for name, leaf in parameters.items():
        parts = [zip(part, leaf.shape, strict=True) for part in held(layer, name)]
        a, b = (", ".join(":" if y - x == n else f"{x}:{y}" for (x, y), n in p) for p in parts)
        lines += f"| {layer} {name} | {' x '.join(map(str, leaf.shape))} | {a} | {b} |\n"
Markdown(lines)

# %% [markdown]
# The same as a drawing. A kernel is a rectangle with its inputs (window x maps seen) downwards
# and its outputs to the right, each side to the scale of its square root; the strip below is the
# bias. Blue lies on device 0, orange on device 1. The bias of layer 8 is in both colours, one
# over the other: both devices hold all of it.

# %%
COLOURS = ("tab:blue", "tab:orange")


def draw(axes, key, corner, size):
    """A parameter as a rectangle in which each device's part has its colour."""
    (left, top), shape = corner, network.shapes[key[0]][key[1]].shape
    for colour, part in zip(COLOURS, held(*key), strict=True):
        across, down = np.array(part[-1]) / shape[-1], np.array(part[0]) / shape[0]
        down = down if len(shape) > 1 else np.array((0, 1))
        start = (left + size[0] * across[0], top + size[1] * down[0])
        extent = (size[0] * np.ptp(across), size[1] * np.ptp(down))
        axes.add_patch(Rectangle(start, *extent, color=colour, alpha=0.6, linewidth=0))


# %%
figure, axes = plt.subplots(figsize=(10, 3.3), layout="constrained")
left = 0
for layer, parameters in network.shapes.items():
    *inputs, outputs = parameters["kernel"].shape
    width, height = np.sqrt(outputs), np.sqrt(np.prod(inputs))
    draw(axes, (layer, "kernel"), (left, 0), (width, height))
    draw(axes, (layer, "bias"), (left, height + 3), (width, 4))
    label = f"{layer}\n{' x '.join(map(str, inputs))}\nto {outputs}"
    axes.text(left + width / 2, -4, label, ha="center", fontsize=8)
    left += width + 24
axes.set(xlim=(-15, left - 10), ylim=(106, -30), aspect="equal", title="parameters by device")
axes.set_axis_off()

# %% [markdown]
# ## What the compiled step sends
#
# XLA compiles one program for both devices; what they exchange are its collective operations. We
# compile the training step of the small network of `configs/tiny.py` for two CPU devices and look
# for them in the program. Each carries the name of the layer that it is from.

# %%
small = config.parse(tiny.get_config())
prepare(small.data.source, small.data.records, size=small.data.size, format=small.data.format)
asked = {"dtypes": (small.dtype,), "peer": False, "repeats": 1, "folder": Path("runs")}
found = measure_collectives(Bench(small, (small.batch,), devices=(2,), **asked))
lines = "| layer | pass | operation | bytes sent by a device |\n|---|---|---|---|\n"
for one in found:
    sent = one["bytes sent by a device"]
    lines += f"| {one['layer']} | {one['pass']} | {one['kind']} | {sent:,} |\n"
Markdown(lines)

# %% [markdown]
# Forward, a device gathers the other tower's half of what layers 3, 6 and 7 see. Backward, each
# of these has its mirror image: the gradients of both halves are summed, and each tower gets its
# own (`reduce-scatter`). The sum of the partial logits (`all-reduce`) needs none, as the gradient
# is the same on both sides. No parameter and no gradient of one ever crosses.
#
# On the network, drawn as in Fig. 2 of the paper (§3.5):


# %%
def cross(axes, start, stop, colour, bend):
    """Arrows between the towers: from layer number `start` of each to `stop` of the other."""
    for own, other in ((0, 1), (1, 0)):
        style = {"connectionstyle": f"arc3,rad={bend}", "arrowstyle": "-|>", "mutation_scale": 12}
        ends = (start, own), (stop, other)
        arrow = FancyArrowPatch(*ends, color=colour, shrinkA=14, shrinkB=14, **style)
        axes.add_patch(arrow)


# %%
figure, axes = plt.subplots(figsize=(10, 3.6), layout="constrained")
names = list(network.shapes)
for x, layer in enumerate(names):
    for y, colour in zip((1, 0), COLOURS, strict=True):
        box = {"boxstyle": "round", "facecolor": colour, "alpha": 0.35}
        axes.text(x, y, layer, ha="center", va="center", bbox=box)
        if x:
            axes.annotate("", (x - 0.25, y), (x - 0.75, y), arrowprops={"arrowstyle": "->"})
for one in found:
    x, forward = names.index(one["layer"]), one["pass"] == "forward"
    colour, y = ("tab:green", 1.45) if forward else ("tab:red", -0.45)
    before = x if one["kind"] == "all-reduce" else x - 1
    cross(axes, *((before, x) if forward else (x, before)), colour, 0.12)
    text = f"{one['kind']}\n{one['bytes sent by a device'] / 1e3:,.1f} kB"
    axes.text((x + before) / 2, y, text, ha="center", va="center", color=colour, fontsize=8)
axes.set(xlim=(-0.6, 7.6), ylim=(-0.75, 1.75), xticks=[], yticks=(1, 0))
axes.set_yticklabels(("device 0\ntower A", "device 1\ntower B"))
axes.tick_params(length=0)
axes.set(title="what a device sends in a step: forward (green) and backward (red)")
_ = axes.spines[:].set_visible(False)

# %% [markdown]
# ## A map of the memory
#
# The paper gives its reason for two towers: a GPU of 3 GB limits the size of the network that can
# be trained on it (§3.2). What must be kept during a step, on each device and at full size: the
# parameters with their momentum, and the outputs of the layers for a batch, which the backward
# pass needs.

# %%
where = {"both towers on one device": 1, "a tower on each of two": 2}
figure, panels = plt.subplots(2, 1, figsize=(9, 5), layout="constrained", sharex=True)
for number, (label, towers) in enumerate(where.items()):
    one = replace(full, devices=towers)
    rows = layer_table(make_network(one), one)
    values = [np.prod(row.output) / (1 if row.layer == "fc8" else towers) for row in rows]
    kept = [4 * full.batch * count for count in values]
    for axes, sizes in zip(panels, ([row.bytes for row in rows], kept), strict=True):
        megabytes = np.array(sizes) / 1e6
        total = f"{label}: {megabytes.sum():,.0f} MB each"
        bars = axes.bar(np.arange(8) + 0.4 * number - 0.2, megabytes, 0.38, label=total)
        axes.bar_label(bars, fmt="{:,.3g}", fontsize=8)
panels[0].set(ylabel="MB", title="parameters and momentum", xticks=range(8), xticklabels=names)
panels[1].set(ylabel="MB", title=f"outputs of the layers, batch {full.batch}")
for axes in panels:
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize=8)

# %% [markdown]
# Most of the parameters are in layers 6 to 8, most of the outputs in the first two layers, and
# the towers halve both, all but the logits. What a step takes besides is the compiler's to say.
# Its own plan for the small network, which halves as well:

# %%
plans = measure_memory(Bench(small, (small.batch,), devices=(1, 2), **asked))
lines = "| devices | state and input, MB | temporary, MB | peak, MB |\n|---|---|---|---|\n"
for plan in plans:
    sizes = [plan[f"{name}, MB"] for name in ("state and input", "temporary", "peak")]
    lines += f"| {plan['devices']} | {' | '.join(f'{size:.1f}' for size in sizes)} |\n"
Markdown(lines)
