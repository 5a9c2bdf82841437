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
# # Start
#
# Ten cells: open a trained network, label images, look at its two towers, train it further on
# photos of one's own, and share it. The small network of `configs/tiny.py` is trained first if it
# is not there; that takes one to three minutes on two CPU cores.

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
# A trained network. MODEL is the folder of a run or of `save_pretrained`, or "hf://OWNER/NAME" of
# the Hugging Face Hub. `from_pretrained` opens the last two, `load` all three.
from dataclasses import replace

import cv2
import jax
import matplotlib.pyplot as plt
import numpy as np
import treescope
from matplotlib_inline.backend_inline import set_matplotlib_formats

import alexnet_jax
from alexnet_jax.data.sources import open_source
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import host
from alexnet_jax.train import fit
from alexnet_jax.training.pictures import kernel_mosaic

MODEL = "runs/tiny"

set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})  # photos are large as PNG
host.configure_jax(2)  # two CPU devices; a GPU if there is one
devices = min(2, jax.device_count())  # one GPU has both towers
if MODEL == "runs/tiny":
    c = replace(alexnet_jax.tiny, devices=devices)
    prepare(c.data.source, c.data.records, size=c.data.size, format=c.data.format)
    fit(c, Path(MODEL))
net = alexnet_jax.load(MODEL)
print(net)

# %%
# Labels. The first row are new images of the kind that `tiny` has learned. The second are five
# photos from the repository; where it is not, five patterns. `tiny` knows none of their classes and
# names what it knows.
drawn = open_source("generated", 256).splits["validation"]
shapes = [drawn.read(number).image for number in range(5)]
files = sorted(Path("tests/photos").glob("*.jpg"))
if not files:
    print("There are no photos here (tests/photos of the repository); these are patterns.")
    y, x = np.indices((256, 256)) // 32 % 2
    noise = np.random.default_rng(0).integers(0, 2, (256, 256))
    files = []
    patterns = {"rows": y, "columns": x, "checks": x ^ y, "dots": x & y, "noise": noise}
    Path("photos").mkdir(exist_ok=True)
    for name, pattern in patterns.items():
        files.append(Path("photos", f"{name}.png"))
        cv2.imwrite(str(files[-1]), np.uint8(40 + 180 * pattern))


def show_labels(net, rows):
    """Shows rows of images, each with its two best labels."""
    size = (9, 2.3 * len(rows))
    _, grid = plt.subplots(len(rows), 5, figsize=size, layout="constrained", squeeze=False)
    for images, row in zip(rows, grid, strict=True):
        for image, found, axes in zip(net.preprocess(images), net.top5(images), row, strict=True):
            axes.imshow(image)
            axes.set_title("\n".join(f"{name} {p:.0%}" for name, p in found[:2]), fontsize=9)
            axes.set_axis_off()


show_labels(net, [shapes, files])

# %%
# Kernels of the first layer: what each unit looks for. Grey is zero. Each tower learned its half.
kernels = np.asarray(net.module.conv1.kernel)
mosaic = kernel_mosaic(kernels, 2)
figure, axes = plt.subplots(figsize=(8, 8 * mosaic.shape[0] / mosaic.shape[1]))
axes.imshow(mosaic, interpolation="nearest")
axes.set(title="conv1: tower A above, tower B below")
axes.set_axis_off()

# %%
# Activations: the strongest six maps of each tower for one image, bright where a map responds.
image = shapes[1]
figure, grid = plt.subplots(4, 7, figsize=(9, 5.6), layout="constrained")
for axes in grid.flat:
    axes.set_axis_off()
for layer, rows in (("conv1", grid[:2]), ("conv5", grid[2:])):
    maps = net.features(image, layer)[0]
    for tower, row, half in zip("AB", rows, np.split(maps, 2, axis=-1), strict=True):
        row[0].imshow(net.preprocess(image)[0])
        row[0].set_title(f"{layer}, tower {tower}", fontsize=9)
        for axes, number in zip(row[1:], np.argsort(-half.max((0, 1))), strict=False):
            axes.imshow(half[..., number], cmap="magma", vmin=0, vmax=maps.max())
            axes.set_title(f"map {number}", fontsize=8)

# %%
# The model is a Flax module: a tree to unfold. Its arrays have the sizes of both towers together.
treescope.display(net.module)

# %%
# Further training on photos of one's own: PHOTOS/train/CLASS/*.jpg and PHOTOS/val/CLASS/*.jpg. Only
# the last layer begins anew. There is one photo of each class here. It is copied, so that an epoch
# has some steps, and it validates too. So this shows how it is done, not how well it works.
photos = Path("photos/start")
for file in files:
    for name in (*(f"train/{file.stem}/{i}" for i in range(20)), f"val/{file.stem}/0"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, (photos / name).with_suffix(file.suffix))
net.save_pretrained("shared/before")
mine = replace(
    net.config,
    devices=devices,
    batch=20,
    epochs=8,
    init_from="shared/before/model.safetensors",
    evaluate=replace(net.config.evaluate, batch=20),
    model=replace(net.config.model, classes=len(files)),
    data=replace(net.config.data, source=f"folder:{photos}", records="records/start"),
)
prepare(mine.data.source, mine.data.records, size=mine.data.size, format=mine.data.format)
fit(mine, Path("runs/start"))

# %%
# The same photos again, with the network that was trained on them.
tuned = alexnet_jax.load("runs/start")
print(tuned)
show_labels(tuned, [files])

# %%
# Share it: weights, config and a model card, without code or pickle. The logits are the same to the
# last bit. `push_to_hub("OWNER/NAME")` uploads the same files (pip install "alexnet-jax[hub]").
tuned.save_pretrained("shared/start")
print(*sorted(file.name for file in Path("shared/start").iterdir()))
again = alexnet_jax.from_pretrained("shared/start")
print("same logits:", np.array_equal(again.logits(files), tuned.logits(files)))
