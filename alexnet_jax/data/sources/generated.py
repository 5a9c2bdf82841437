"""A set that needs no download: drawn images in ten classes.

The classes are five forms in two families of colours. Form and colour are both needed to tell the
classes apart, so both the colour-agnostic and the colour-specific kernels of Fig. 3 have something
to learn. Place, size, proportions, brightness and background vary; mirroring keeps the class.
"""

import colorsys

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from alexnet_jax.data.sources.source import Example, Source, SourceSplit
from alexnet_jax.runtime.errors import UserError

FORMS = ("disk", "cross", "horizontal", "vertical", "checks")
# Ranges of hues, where 1 is the whole colour circle: red to yellow, cyan to blue.
FAMILIES = {"warm": (0.95, 1.14), "cool": (0.45, 0.68)}
CLASSES = tuple(f"{family} {form}" for family in FAMILIES for form in FORMS)
TRAIN, VALIDATION, MOST = 4096, 512, 10_000_000  # images

_SHIFT = 4  # cv2 draws in units of 2^-4 pixels


def open_generated(count: str, size: int) -> Source:
    """`count` training images ('' for 4096) and 512 validation images, of side `size`."""
    if count and not (count.isdecimal() and 1 <= int(count) <= MOST):
        raise UserError(
            f"--source=generated:{count}: give a number of images up to {MOST:,}, as generated:4096"
        )
    train, validation = _drawn(int(count or TRAIN), 0, size), _drawn(VALIDATION, 1, size)
    return Source(CLASSES, {"train": train, "validation": validation})


def _drawn(count: int, split: int, size: int) -> SourceSplit:
    """Image i of `split`, 0 for training or 1 for validation, has class i modulo 10."""

    def read(index: int) -> Example:
        label = index % len(CLASSES)
        return Example(draw((split, index), label, size), label)

    return SourceSplit(count, lambda index: f"generated[{split}, {index}]", read)


def draw(seed: tuple[int, int], label: int, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Draws an image of class `label`; `seed` decides all the rest."""
    rng = np.random.default_rng(seed)
    family, form = CLASSES[label].split()
    hue = rng.uniform(*FAMILIES[family]) % 1
    colour = 255 * np.array(colorsys.hsv_to_rgb(hue, *rng.uniform(0.6, 1, 2)), np.float32)
    mask = _mask(rng, form, size)[..., None]
    image = (1 - mask) * _background(rng, size) + mask * colour
    image += rng.integers(-12, 13, (size, size, 1), np.int8)
    return np.clip(image, 0, 255).astype(np.uint8)


def _background(rng: np.random.Generator, size: int) -> Float32[np.ndarray, "{size} {size} 3"]:
    """Smooth clouds with little colour."""
    grey = rng.uniform(40, 200) + rng.normal(0, 30, (5, 5, 1))
    clouds = (grey + rng.normal(0, 8, (5, 5, 3))).astype(np.float32)
    return cv2.resize(clouds, (size, size), interpolation=cv2.INTER_CUBIC)


def _mask(rng: np.random.Generator, form: str, size: int) -> Float32[np.ndarray, "{size} {size}"]:
    """Where the form is, in [0, 1]. Its sides are 40% to 75% of the image's."""
    half = rng.uniform(0.2, 0.375, 2) * size  # half of its height and width
    centre = rng.uniform(half, size - half)
    mask = np.zeros((size, size), np.uint8)
    if form == "disk":
        axes = _fixed(half.mean() * np.ones(2))
        cv2.ellipse(mask, _fixed(centre[::-1]), axes, 0, 0, 360, 255, -1, cv2.LINE_AA, _SHIFT)
    elif form == "cross":
        bar = half.min() * rng.uniform(0.25, 0.4)
        _box(mask, centre, np.array([half[0], bar]))
        _box(mask, centre, np.array([bar, half[1]]))
    else:
        _box(mask, centre, half)
    inside = mask.astype(np.float32) / 255
    return inside if form in ("disk", "cross") else inside * _texture(rng, form, size)


def _texture(
    rng: np.random.Generator, form: str, size: int
) -> Float32[np.ndarray, "{size} {size}"]:
    """Stripes or checks over the whole image, with soft edges, in [0, 1]."""
    period = size * rng.uniform(0.1, 0.16)
    waves = np.sin(2 * np.pi * (np.arange(size)[:, None] / period + rng.random(2)))
    down, across = waves[:, :1], waves[:, 1:].T
    wave = {"horizontal": down, "vertical": across, "checks": down * across}[form]
    return np.clip(0.5 + 4 * np.broadcast_to(wave, (size, size)), 0, 1).astype(np.float32)


def _box(mask: UInt8[np.ndarray, "size size"], centre: np.ndarray, half: np.ndarray) -> None:
    low, high = _fixed((centre - half)[::-1]), _fixed((centre + half)[::-1])
    cv2.rectangle(mask, low, high, 255, -1, cv2.LINE_AA, _SHIFT)


def _fixed(values: np.ndarray) -> tuple[int, int]:
    x, y = np.round(values * 2**_SHIFT).astype(int).tolist()
    return x, y
