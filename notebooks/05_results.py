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
# # Results
#
# The results of runs, compared with the paper and the logs of 2012. Name the folders of your runs
# below. If there are none yet, the small network of `configs/tiny.py` is trained, in about half a
# minute.

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
from IPython.display import Markdown
from matplotlib_inline.backend_inline import set_matplotlib_formats

import alexnet_jax
from alexnet_jax.figures.curves import draw_curves
from alexnet_jax.figures.figure1 import draw_figure1
from alexnet_jax.figures.figure4 import draw_figure4, draw_neighbours
from alexnet_jax.prepare import prepare
from alexnet_jax.report import planned_in, report
from alexnet_jax.runtime import host
from alexnet_jax.runtime.workdir import CHECKPOINTS
from alexnet_jax.train import fit

host.configure_jax(2)  # two CPU devices; a GPU if there is one
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})  # noisy images are large as PNG
plt.rcParams["figure.dpi"] = 90

# %%
folders = []  # such as [Path("runs/alexnet_2012"), Path("runs/no_lrn")]; empty: runs/tiny*

# %%
saved = Path("runs").glob(f"tiny*/{CHECKPOINTS}/[0-9]*[0-9]")  # runs with a checkpoint
folders = folders or sorted({checkpoint.parents[1] for checkpoint in saved})
if not folders:
    c = replace(alexnet_jax.tiny, devices=min(2, jax.device_count()))
    folders = [Path("runs/tiny")]
    prepare(c.data.source, c.data.records, size=c.data.size, format=c.data.format)
    fit(c, folders[0])
print(*folders)

# %% [markdown]
# ## The table
#
# Errors are top-1 / top-5 in percent: of the whole network and, for the experiments of §3 and §4,
# of the network without one of its parts. Runs that differ only in their seed share a row. A row
# with "not run" has a config but no run.

# %%
planned = [*planned_in("alexnet_2012"), *planned_in("ablations")]
Markdown(report(folders, planned))

# %% [markdown]
# The paper has no run on generated images, so its cells there are empty. With ten classes, five
# wrong labels are rare, so the top-5 error says little.
#
# ## Curves

# %%
draw_curves(folders)

# %% [markdown]
# Dashed: training, with dropout and augmentation. Solid: validation.
#
# ## Fig. 1: how fast does it learn?
#
# The paper compares ReLU and tanh by the number of epochs until a training error of 25% (§3.1). The
# title says when each activation reached it. For the paper's comparison, run
# `configs/cifar10.py:relu` and `configs/cifar10.py:tanh`.

# %%
draw_figure1(folders)

# %% [markdown]
# ## Fig. 4: labels and similar images
#
# Eight validation images with their five most probable labels, with ten views (§6.1). The right
# label is red.

# %%
draw_figure4(folders[:1])

# %% [markdown]
# On the left are validation images. Beside each are the training images with the most similar
# outputs of layer 7; the numbers are Euclidean distances (§6.1). These images are not similar in
# their pixels: position, size and shade of the shapes differ.

# %%
draw_neighbours(folders[:1])
