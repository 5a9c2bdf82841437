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
# From a image on disk to what the first layer sees: the mean image (§2), random crops and
# mirror images, PCA lighting, and the ten views of testing (§4.1).
#
# AlexNet learns from images of 256 x 256 pixels and sees 224 x 224 of them. Instead of ImageNet's
# here are drawn ones, of ten classes; all else is as in `configs/alexnet_2012.py`.

# %%
import os
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from matplotlib_inline.backend_inline import set_matplotlib_formats

# The repository's root, wherever Jupyter was started: configs/, records/ and runs/ lie in it.
sys.path.insert(0, next(str(p) for p in Path("_").absolute().parents if (p / "configs").is_dir()))
os.environ["JAX_PLATFORMS"] = "cpu"  # also where there is a GPU: two CPU devices are enough

from alexnet_jax.configs import alexnet_2012

from alexnet_jax import config
from alexnet_jax.data import augment
from alexnet_jax.data.pipeline import train_batches
from alexnet_jax.data.records import open_records
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import host

os.chdir(sys.path[0])
host.configure_jax(2)
plt.rcParams.update({"figure.dpi": 100, "image.interpolation": "nearest"})
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})  # noisy images are large as PNG

# %% [markdown]
# ## Records
#
# `prepare` decodes, rescales and cuts every image once, and writes the result with two
# statistics of the training images. If the records are there already it does nothing.

# %%
drawn = {"source": "generated:512", "records": "records/generated_256", "format": "raw"}
data = replace(config.parse(alexnet_2012.get_config()).data, **drawn)
manifest = prepare(data.source, data.records, size=data.size, format=data.format)
records = open_records(data.records)
train = records.split("train")
for name, split in manifest.splits.items():
    print(f"{name}: {split.count} images, {min(split.label_counts)} or more of each class")


# %%
def read(number, side=data.size, corner=(0, 0)):
    """The square of a training image that begins at `corner`."""
    image = np.empty((side, side, 3), np.uint8)
    train.read(number, image, *corner)
    return image


def show(axes, image, title=""):
    """A image of grey levels 0 to 255 without axes."""
    axes.imshow(np.clip(image, 0, 255).astype(np.uint8))
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


# %% [markdown]
# One image of each class: five forms, each in warm and in cool colours. Place, size and
# background vary, so neither the colour nor the form alone tells the class.

# %%
figure, grid = plt.subplots(2, 5, figsize=(6.5, 3.1), layout="constrained")
for label, axes in enumerate(grid.flat):
    show(axes, read(np.flatnonzero(train.labels == label)[0]), manifest.classes[label])

# %% [markdown]
# ## The mean image
#
# The only preprocessing is to subtract the mean of all training images, pixel by pixel (§2).
# There is no division by a standard deviation: the network sees grey levels around zero. The mean
# of images whose forms may lie anywhere is nearly flat; the second panel, on a scale of its
# own, shows the few grey levels by which it is not.

# %%
mean, image = records.statistics.mean, read(0)
figure, (left, middle, third, right) = plt.subplots(1, 4, figsize=(8.5, 2.3), layout="constrained")
show(left, mean, f"mean image: {mean.min():.0f} to {mean.max():.0f}")
drawn = middle.imshow(mean.mean(-1), cmap="gray")
middle.set(title="the same, greys stretched", xticks=[], yticks=[])
figure.colorbar(drawn, ax=middle, label="grey level", shrink=0.8)
show(third, image, f"a image: {image.min()} to {image.max()}")
centred = image - mean
show(right, 128 + centred, f"less the mean: {centred.min():.0f} to {centred.max():.0f}\n(+128)")
middle.title.set_fontsize(9)

# %% [markdown]
# ## Random crops and mirror images
#
# Each time a image is used, the network sees another part of it, and in half of the cases its
# mirror image (§4.1). The draws below are the first of training, here all applied to one image.

# %%
number, crops = 8, 8
with closing(train_batches(train, data, batch=crops, seed=0, rows=[(0, crops)])) as batches:
    batch = next(batches)
free = data.size - data.crop
places = (free + 1) ** 2
print(f"{places} places x 2 = {2 * places} ways to see a image of {data.size} pixels")

# %%
figure = plt.figure(figsize=(8, 3.1), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[1, 1.7])
axes = left.subplots()
show(axes, read(number), "where the crops lie")
panels = right.subplots(2, 4).flat
for i, (row, column), mirror in zip(range(crops), batch["corner"], batch["mirror"], strict=True):
    side, line = data.crop, {"fill": False, "color": f"C{i}", "linewidth": 2}
    axes.add_patch(plt.Rectangle((column - 0.5, row - 0.5), side, side, **line))
    crop = read(number, side, (row, column))
    show(
        panels[i], crop[:, ::-1] if mirror else crop, f"{row}, {column}{' mirrored' * int(mirror)}"
    )
    panels[i].title.set_color(f"C{i}")

# %% [markdown]
# The titles give the row and the column at which a crop begins, in its frame's colour. There are
# 33 places a side; the paper counts 32, and so 2048 different views (§4.1).
#
# ## Ten views
#
# In testing nothing is drawn: the four corner crops, the centre crop and their mirror images go
# through the network, and its ten softmax outputs are averaged (§4.1). View 4, the centre, is the
# one that gives the error rates of a single view.

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
# eigenvalues $\lambda_i$. For each use of a image three numbers $\alpha_i$ are drawn from a
# normal distribution with standard deviation 0.1, and $\sum_i p_i \alpha_i \lambda_i$ is added to
# all of its pixels (§4.1): the light changes in the directions in which the images' colours
# vary anyway. Below, each row is one direction, and the image is shifted by up to twice the
# standard deviation of the draws.

# %%
components = augment.lighting_components(records.statistics, data.lighting)
figure, grid = plt.subplots(3, 5, figsize=(6.5, 4.5), layout="constrained")
for i, row in enumerate(grid):
    for z, axes in zip((-2, -1, 0, 1, 2), row, strict=True):
        shift = z * components[:, i]
        title = " ".join(f"{level:+.0f}" for level in shift) if z else "as it is"
        show(axes, read(number) + shift, title)
_ = figure.suptitle("components 1 to 3 by -2 to +2 deviations: shift of R, G, B")

# %% [markdown]
# **Eigenvalue or deviation?** An eigenvalue is a variance, so what the formula adds depends on
# the unit: on pixels of 0 to 255 it would drown the image. So `scale="eigenvalue"`, the paper's
# text, takes the pixels as 0 to 1; `scale="deviation"`, what the authors' code does, multiplies
# by $\sqrt{\lambda_i}$, for which the unit does not matter. How far do they go? We measure the
# spread of what `augment.train_input` adds, over the draws of training, beside the formula's
# number.


# %%
def measured(lighting, draws):
    """What the lighting adds to the R, G, B of a pixel, for each draw: [n, 3]."""
    pixel = replace(data, lighting=replace(lighting, shrink=False), crop=1)
    matrix = augment.lighting_components(records.statistics, lighting)
    lit, unlit = (augment.train_input(draws, mean, matrix, pixel, on) for on in (True, False))
    return np.asarray(lit - unlit)[:, 0, 0]


with closing(
    train_batches(train, replace(data, crop=1), batch=8192, seed=0, rows=[(0, 8192)])
) as batches:
    draws = next(batches)

# %%
deviations = {"training": np.sqrt(records.statistics.eigenvalues)}
deviations["published"] = augment.PUBLISHED_DEVIATIONS
table = "| images | scale | formula, grey levels | measured |\n|---|---|---|---|\n"
shifts = {}
for source, d in deviations.items():
    for scale, factor in {"deviation": d, "eigenvalue": 255 * (d / 255) ** 2}.items():
        lighting = replace(data.lighting, scale=scale, source=source)
        matrix = augment.lighting_components(records.statistics, lighting)
        along = measured(lighting, draws) @ np.linalg.inv(matrix).T * np.linalg.norm(matrix, axis=0)
        shifts[source, scale] = along[:, 0]
        table += f"| {source} | {scale} | {np.round(lighting.sigma * factor, 2)} "
        table += f"| {along.std(0).round(2)} |\n"
Markdown(table)

# %% [markdown]
# Standard deviations along the three components. `training` is this drawn set, `published` are
# ImageNet's statistics. The draws are the same in each row, and so many that their spread is
# known to about 1%. The first component, brightness in both sets, is drawn below: bars are the
# draws, lines the formula.

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
