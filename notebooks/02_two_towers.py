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
# The network has two towers, A and B. Each has half of the kernels or neurons of every layer, and
# each is on its own device (§3.2, §3.5). They see each other's outputs only before layers 3, 6 and
# 7, and both contribute to the logits. This notebook shows where each part of each parameter is,
# what the training step sends from one device to the other, and how much memory each device needs.

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
import jax.extend
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from matplotlib.patches import Rectangle

import alexnet_jax
from alexnet_jax.benchmark.bench import Bench
from alexnet_jax.benchmark.program import measure_collectives, measure_memory
from alexnet_jax.figures.figure2 import COLOURS, draw_figure2
from alexnet_jax.model.describe import format_table, layer_table
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import host
from alexnet_jax.training.setup import make_network

host.configure_jax(2)  # two CPU devices; GPUs if there are two
if jax.device_count() < 2:
    jax.config.update("jax_platforms", "cpu")
    jax.extend.backend.clear_backends()
plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# ## The mesh
#
# The devices form a grid. Along its axis `data` the batch is split; along its axis `tower` the
# network is split. Two devices are one row: tower A and tower B. Below is the network at full
# size. Nothing is computed or allocated, because the shapes are enough for what follows.

# %%
full = alexnet_jax.alexnet
network = make_network(full)
print(network.mesh)
table = layer_table(network, full)
print(format_table(table, network))

# %% [markdown]
# ## Which device has which part
#
# A parameter has one global shape, and a rule says over which axis of the grid each of its own
# axes is split. Almost every kernel is split over its outputs (its last axis), so a device has the
# kernels of its own tower. Layer 8 is split over its inputs instead: each device multiplies the
# neurons that it has, and the two partial logits are added.


# %%
def held(layer, name):
    """The range of indices of each axis of a parameter that each device has."""
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
# The same as a drawing. A kernel is a rectangle: downwards its inputs (window x maps seen), to the
# right its outputs. The sides are square roots of these numbers. The strip below it is the bias.
# Blue is on device 0, orange on device 1. The bias of layer 8 has both colours, one over the
# other, because both devices have all of it.


# %%
def draw(axes, key, corner, size):
    """Draws a parameter as a rectangle; each device's part has the colour of the device."""
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
# XLA compiles one program for both devices. They exchange data only in collective operations. We
# list those of the training step of the small network in `configs/tiny.py`, for two CPU devices.
# Each has the name of its layer.

# %%
small = alexnet_jax.tiny
prepare(small.data.source, small.data.records, size=small.data.size, format=small.data.format)
settings = {"dtypes": (small.dtype,), "peer": False, "repeats": 1, "folder": Path("runs")}
found = measure_collectives(Bench(small, (small.batch,), devices=(2,), **settings))
lines = "| layer | pass | operation | bytes sent by a device |\n|---|---|---|---|\n"
for one in found:
    sent = one["bytes sent by a device"]
    lines += f"| {one['layer']} | {one['pass']} | {one['kind']} | {sent:,} |\n"
Markdown(lines)

# %% [markdown]
# Forward, before layers 3, 6 and 7, each device gets the other tower's half of the input. Backward,
# each of these three has a counterpart: the gradients from both devices are summed, and each tower
# gets its half. The sum of the partial logits has no counterpart, because the gradient of the
# logits is the same on both devices. No parameters and no gradients of parameters cross.
#
# The network as in Fig. 2 of the paper (§3.5). The numbers are those of the forward pass at the
# paper's batch:


# %%
draw_figure2(full)

# %% [markdown]
# ## A map of the memory
#
# The paper has two towers because a GPU with 3 GB limits the size of the network that it can train
# (§3.2). During a step each device must keep the parameters with their momentum, and the outputs of
# the layers for a batch, which the backward pass needs. At full size:

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
panels[0].set(ylabel="MB", title="parameters and momentum", xticks=range(8))
panels[0].set_xticklabels(full.model.names)
panels[1].set(ylabel="MB", title=f"outputs of the layers, batch {full.batch}")
for axes in panels:
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize=8)

# %% [markdown]
# Most of the parameters are in layers 6 to 8, and most of the outputs in the first two layers. On
# two devices each has half of both, except the logits. A step needs more memory than this. The
# compiler's plan for the small network shows about half on each device, too:

# %%
plans = measure_memory(Bench(small, (small.batch,), devices=(1, 2), **settings))
lines = "| devices | state and input, MB | temporary, MB | peak, MB |\n|---|---|---|---|\n"
for plan in plans:
    sizes = [plan[f"{name}, MB"] for name in ("state and input", "temporary", "peak")]
    lines += f"| {plan['devices']} | {' | '.join(f'{size:.1f}' for size in sizes)} |\n"
Markdown(lines)
