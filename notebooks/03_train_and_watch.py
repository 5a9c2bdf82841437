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
# # Train and watch
#
# The whole network, with all eight layers and both towers, but narrow: `configs/tiny.py` on
# generated images. It trains in about half a minute on two cores. We train it, watch its curves
# meanwhile, and then look at its metrics.

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
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import DisplayHandle, Markdown

import alexnet_jax
from alexnet_jax.figures.curves import draw_curves
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import host
from alexnet_jax.runtime.metrics import read_metrics
from alexnet_jax.train import fit

host.configure_jax(2)  # two CPU devices; a GPU if there is one
# %matplotlib inline
plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# ## Train
#
# The command `python -m alexnet_jax.main` calls `prepare` and `fit`. Both resume: finished records
# are not made again, and a finished run is not trained again. (To train it again, remove the folder
# `runs/tiny`.)
#
# `fit` runs in another thread. Meanwhile the notebook draws `metrics.jsonl` every three seconds.

# %%
c = replace(alexnet_jax.tiny, devices=min(2, jax.device_count()))  # one GPU has both towers
folder = Path("runs/tiny")
prepare(c.data.source, c.data.records, size=c.data.size, format=c.data.format)
shown = DisplayHandle()
shown.display("no metrics yet")
with ThreadPoolExecutor(1) as pool:
    run = pool.submit(fit, c, folder)
    while wait([run], timeout=3).not_done:
        if read_metrics(folder):
            shown.update(draw_curves([folder]))
run.result()  # raises the error of the run, if there was one
shown.update(draw_curves([folder]))

# %% [markdown]
# Solid lines are the validation split after each epoch. Dashed lines are training: each point is a
# mean over the steps since the point before, with dropout and augmentation, so it may be higher
# than validation. The right panel is the learning rate. The paper's run divided it by ten three
# times (§5); here it drops once.
#
# ## What the metrics say
#
# Each line of `metrics.jsonl` is an object with a step, an epoch and some values. The function
# `curve` collects one value over the run.

# %%
lines = read_metrics(folder)
keys = {key for line in lines for key in line}
print(f"{len(lines)} lines with {len(keys)} different keys, such as", *lines[0])


def curve(name):
    """The epochs at which `name` was measured, and its values: [2, n]."""
    found = [(line["epoch"], line[name]) for line in lines if line.get(name) is not None]
    return np.array(found).T


# %%
one, ten = curve("val/top1_error"), curve("val_ten_views/top1_error")
print(f"top-1 error of a random guess: {1 - 1 / c.model.classes:.1%}")
for epoch, error in one.T:
    print(f"after epoch {epoch:.0f}: {error:.2%}")
print(f"ten views at the end: {ten[1, -1]:.2%} (§4.1)")

# %% [markdown]
# ## Diagnostics of each layer
#
# Three values for each layer, measured once an epoch on a training batch:
#
# - **update**: the mean size of the last update, divided by that of the weights. If it is too
#   small, the layer does not learn; if it is too large, training does not converge. A common rule
#   of thumb is 0.001.
# - **weight**: the mean size of the weights.
# - **dead**: the share of units (feature maps or neurons) that are nowhere above zero, for no image
#   of the batch. With ReLU such a unit gets no gradient (§3.1).

# %%
rates, drops = curve("opt/lr"), []
for before, after in zip(rates.T, rates.T[1:], strict=False):
    if after[1] != before[1]:
        drops.append(before[0])
        print(f"learning rate from {before[1]:g} to {after[1]:g} after epoch {before[0]:g}")

figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
for axes, name in zip(panels, ("update", "weight", "dead"), strict=True):
    for number, layer in enumerate(c.model.names):
        if any(f"{name}/{layer}" in line for line in lines):
            style = {"color": plt.cm.viridis(number / 7.5), "label": layer, "markersize": 4}
            axes.plot(*curve(f"{name}/{layer}"), "o-", **style)
    for drop in drops:
        axes.axvline(drop, color="0.7", linestyle=":", zorder=0)
    axes.set(title=name, xlabel="epochs")
panels[0].set(yscale="log", ylabel="mean |update| / mean |weight|")
panels[1].set(ylabel="mean |weight|")
panels[2].set(ylabel="share of units", ylim=(-0.03, 1))
handles, labels = panels[0].get_legend_handles_labels()
_ = figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)

# %% [markdown]
# The colours go from the first layer (dark) to the last (light). The dotted line is the drop of the
# learning rate. The rate is multiplied into the velocity (§5). So after a drop the updates shrink
# over about ten steps, because the momentum is 0.9. In the table, updates shrink by more than the
# rate because the gradients also become smaller as the loss falls.

# %%
early, late = drops[0] if drops else 1, lines[-1]["epoch"]
table = f"| layer | update after epoch {early:g} | after epoch {late:g} | times smaller | dead |\n"
table += "|---|---|---|---|---|\n"
for layer in c.model.names:
    epochs, ratios = curve(f"update/{layer}")
    before, after = ratios[epochs <= early][-1], ratios[-1]
    dead = [f"{share:.1%}" for share in curve(f"dead/{layer}")[1:].flat][-1:]
    table += f"| {layer} | {before:.1e} | {after:.1e} | {before / after:.0f} | {''.join(dead)} |\n"
Markdown(table)

# %% [markdown]
# ## Where the time went
#
# Each line also says how the seconds since the line before were spent.

# %%
names = ("compile", "evaluate", "checkpoint", "layers")
seconds = {name: curve(f"time/{name}_s")[1].sum() for name in names}
speeds = {line["step"]: line.get("time/images_per_s") for line in lines}
steps = dict(zip(speeds, np.diff([0, *speeds]), strict=True))
seconds["training"] = sum(steps[n] * c.batch / speed for n, speed in speeds.items() if speed)
speed = c.batch * lines[-1]["step"] / seconds["training"]
waiting = curve("time/input_wait")[1].mean()
print(f"{speed:.0f} images/s; {waiting:.1%} of the time of training is waiting for input")

figure, axes = plt.subplots(figsize=(7, 2.2), layout="constrained")
bars = axes.barh(list(seconds), list(seconds.values()))
axes.bar_label(bars, fmt="{:.1f} s", padding=3)
axes.set(xlabel="seconds", title=f"{sum(seconds.values()):.0f} s in total")
axes.margins(x=0.12)
