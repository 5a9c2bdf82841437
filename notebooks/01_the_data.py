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
# # The data
#
# From an image on disk to the input of the first layer: the mean image (§2), random crops and
# mirroring, PCA lighting, and the ten views of testing (§4.1).
#
# AlexNet trains on images of 256 x 256 pixels and sees 224 x 224 of them. Instead of ImageNet's
# images we use generated ones of ten classes. Everything else is as in `configs/alexnet_2012.py`.

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
from contextlib import closing
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from matplotlib_inline.backend_inline import set_matplotlib_formats

import alexnet_jax
from alexnet_jax.data import augment
from alexnet_jax.data.pipeline import train_batches
from alexnet_jax.data.records import open_records
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import host

host.configure_jax(2)  # two CPU devices; a GPU if there is one
plt.rcParams.update({"figure.dpi": 100, "image.interpolation": "nearest"})
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})  # noisy images are large as PNG

# %% [markdown]
# ## Records
#
# `prepare` decodes, rescales and cuts every image once. It writes the result as records, together
# with the statistics of the training images. If the records exist already, it does nothing.

# %%
changes = {"source": "generated:512", "records": "records/generated_256", "format": "raw"}
data = replace(alexnet_jax.alexnet_2012.data, **changes)
manifest = prepare(data.source, data.records, size=data.size, format=data.format)
records = open_records(data.records)
train = records.split("train")
for name, split in manifest.splits.items():
    print(f"{name}: {split.count} images, at least {min(split.label_counts)} of each class")


# %%
def read(number, side=data.size, corner=(0, 0)):
    """The square of a training image with its top left corner at `corner` (row, column)."""
    image = np.empty((side, side, 3), np.uint8)
    train.read(number, image, *corner)
    return image


def show(axes, image, title=""):
    """Shows an image with values from 0 to 255, without axes."""
    axes.imshow(np.clip(image, 0, 255).astype(np.uint8))
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


# %% [markdown]
# One image of each class: five shapes, each in warm and in cool colours. Position, size and
# background vary, so neither the colour nor the shape alone gives the class.

# %%
figure, grid = plt.subplots(2, 5, figsize=(6.5, 3.1), layout="constrained")
for label, axes in enumerate(grid.flat):
    show(axes, read(np.flatnonzero(train.labels == label)[0]), manifest.classes[label])

# %% [markdown]
# ## The mean image
#
# The only preprocessing is to subtract the mean of all training images, pixel by pixel (§2).
# There is no division by a standard deviation: the network sees values around zero. The shapes of
# our images may be anywhere, so the mean image is almost flat. The second panel stretches its
# contrast to show the small differences.

# %%
mean, image = records.statistics.mean, read(0)
figure, (left, middle, third, right) = plt.subplots(1, 4, figsize=(8.5, 2.3), layout="constrained")
show(left, mean, f"mean image: {mean.min():.0f} to {mean.max():.0f}")
drawing = middle.imshow(mean.mean(-1), cmap="gray")
middle.set(title="the same, contrast stretched", xticks=[], yticks=[])
figure.colorbar(drawing, ax=middle, label="grey level", shrink=0.8)
show(third, image, f"an image: {image.min()} to {image.max()}")
centred = image - mean
show(right, 128 + centred, f"minus the mean: {centred.min():.0f} to {centred.max():.0f}\n(+128)")
middle.title.set_fontsize(9)

# %% [markdown]
# ## Random crops and mirroring
#
# Each time an image is used, the network sees another part of it, and in half of the cases it is
# mirrored (§4.1). Below, the random numbers of the first training images are all applied to one
# image.

# %%
number, crops = 8, 8
with closing(train_batches(train, data, batch=crops, seed=0, rows=[(0, crops)])) as batches:
    batch = next(batches)
free = data.size - data.crop
positions = (free + 1) ** 2
print(f"{positions} positions x 2 = {2 * positions} ways to see an image of {data.size} pixels")

# %%
figure = plt.figure(figsize=(8, 3.1), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[1, 1.7])
axes = left.subplots()
show(axes, read(number), "where the crops are")
panels = right.subplots(2, 4).flat
for i, (row, column), mirror in zip(range(crops), batch["corner"], batch["mirror"], strict=True):
    side, line = data.crop, {"fill": False, "color": f"C{i}", "linewidth": 2}
    axes.add_patch(plt.Rectangle((column - 0.5, row - 0.5), side, side, **line))
    crop = read(number, side, (row, column))
    title = f"{row}, {column}" + " mirrored" * int(mirror)
    show(panels[i], crop[:, ::-1] if mirror else crop, title)
    panels[i].title.set_color(f"C{i}")

# %% [markdown]
# The titles give the row and the column of the top left corner of each crop, in the colour of its
# frame. There are 33 positions along each side. The paper counts 32, and so 2048 views (§4.1).
#
# ## Ten views
#
# Nothing is random in testing. The four corner crops, the centre crop and their mirror images go
# through the network, and the ten softmax outputs are averaged (§4.1). View 4, the centre crop,
# gives the error rates of a single view.

# %%
figure, grid = plt.subplots(2, 5, figsize=(6.5, 3), layout="constrained")
names = ("top left", "top right", "bottom left", "bottom right", "centre")
for view, axes in enumerate(grid.flat):
    seen = augment.view(read(number)[None], np.zeros_like(mean), data, view)[0]
    show(axes, seen, f"{view}: {names[view]}" if view < 5 else f"{view}: {view - 5} mirrored")

# %% [markdown]
# ## PCA lighting
#
# The covariance of the training pixels' red, green and blue has three eigenvectors $p_i$ and
# eigenvalues $\lambda_i$. Each time an image is used, three numbers $\alpha_i$ are drawn from a
# normal distribution with standard deviation 0.1, and $\sum_i p_i \alpha_i \lambda_i$ is added to
# all of its pixels (§4.1). So the colours change in the directions in which the colours of the
# images vary. Below, each row is one direction. The image is shifted by up to two standard
# deviations of the random numbers.

# %%
components = augment.lighting_components(records.statistics, data.lighting)
figure, grid = plt.subplots(3, 5, figsize=(6.5, 4.5), layout="constrained")
for i, row in enumerate(grid):
    for z, axes in zip((-2, -1, 0, 1, 2), row, strict=True):
        shift = z * components[:, i]
        title = " ".join(f"{level:+.0f}" for level in shift) if z else "unchanged"
        show(axes, read(number) + shift, title)
_ = figure.suptitle("components 1 to 3, from -2 to +2 standard deviations: shift of R, G, B")

# %% [markdown]
# **Eigenvalue or standard deviation?** An eigenvalue is a variance, so the size of the shift
# depends on the unit of the pixels. With pixels from 0 to 255 the shift would hide the image. So
# `scale="eigenvalue"`, the paper's text, takes pixels from 0 to 1. `scale="deviation"`, the code of
# the authors, multiplies by $\sqrt{\lambda_i}$ instead, and then the unit does not matter. How
# large are the shifts? We measure what `augment.train_input` adds, with the random numbers of
# training, and compare its standard deviation with the formula.


# %%
def measured(lighting, batch):
    """What the lighting adds to the R, G, B of a pixel, for each image of a batch: [n, 3]."""
    pixel = replace(data, lighting=replace(lighting, shrink=False), crop=1)
    matrix = augment.lighting_components(records.statistics, lighting)
    lit, unlit = (augment.train_input(batch, mean, matrix, pixel, on) for on in (True, False))
    return np.asarray(lit - unlit)[:, 0, 0]


pixels = train_batches(train, replace(data, crop=1), batch=8192, seed=0, rows=[(0, 8192)])
with closing(pixels) as batches:
    many = next(batches)

# %%
deviations = {"training": np.sqrt(records.statistics.eigenvalues)}
deviations["published"] = augment.PUBLISHED_DEVIATIONS
table = "| images | scale | formula, grey levels | measured |\n|---|---|---|---|\n"
shifts = {}
for source, d in deviations.items():
    for scale, factor in {"deviation": d, "eigenvalue": 255 * (d / 255) ** 2}.items():
        lighting = replace(data.lighting, scale=scale, source=source)
        matrix = augment.lighting_components(records.statistics, lighting)
        along = measured(lighting, many) @ np.linalg.inv(matrix).T * np.linalg.norm(matrix, axis=0)
        shifts[source, scale] = along[:, 0]
        table += f"| {source} | {scale} | {np.round(lighting.sigma * factor, 2)} "
        table += f"| {along.std(0).round(2)} |\n"
Markdown(table)

# %% [markdown]
# The table shows standard deviations along the three components. `training` means the statistics of
# our generated images, `published` those of ImageNet. All rows use the same random numbers. There
# are so many of them that the measured values are exact to about 1%. The plot below shows the first
# component, which is brightness in both sets: bars are measured, lines are the formula.

# %%
figure, panels = plt.subplots(1, 2, figsize=(8.5, 3), layout="constrained", sharey=True)
for (source, d), axes in zip(deviations.items(), panels, strict=True):
    for scale, spread in {"deviation": d[0], "eigenvalue": d[0] ** 2 / 255}.items():
        sigma = data.lighting.sigma * spread
        found, x = shifts[source, scale], np.linspace(-45, 45, 300)
        label = f"{scale}: {sigma:.1f}, measured {found.std():.1f}"
        _, _, bars = axes.hist(found, 60, range=(-45, 45), density=True, alpha=0.5, label=label)
        curve = np.exp(-((x / sigma) ** 2) / 2) / (sigma * np.sqrt(2 * np.pi))
        axes.plot(x, curve, color=bars[0].get_facecolor()[:3])
    axes.set(title=f"{source} statistics", xlabel="shift along the first component, grey levels")
    axes.margins(y=0.35)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
panels[0].set_ylabel("density")
worst = data.lighting.sigma * deviations["published"][0] ** 2
print(f"ImageNet's first eigenvalue on 0 to 255 would give {worst:,.0f} grey levels")
