"""The set that needs no download: ten classes of drawn images.

Five forms in two families of colours. A class is told only by form and colour together, so that
both the colour-agnostic and the colour-specific kernels of Fig. 3 have something to learn. Place,
size, proportions, brightness and background vary; a mirror image stays in its class.
"""

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np

from alexnet_jax.data.sources.source import Example, Source
from alexnet_jax.runtime.errors import UserError

FORMS = ("disk", "cross", "horizontal", "vertical", "checks")
FAMILIES = {
    "warm": (0.95, 1.14),
    "cool": (0.45, 0.68),
}  # hues in turns: red to yellow, cyan to blue
CLASSES = tuple(f"{family} {form}" for family in FAMILIES for form in FORMS)
TRAIN, VALIDATION = 4096, 512  # images

_SCALE = 4  # cv2 draws at fractions of a pixel: in 2^-4


def open_generated(count: str, size: int) -> Source:
    """`count` training images, or 4096 if it is empty, and 512 others, of side `size`."""
    if count and not (count.isdecimal() and int(count)):
        raise UserError(f"--source=generated:{count}: give a number of images, as generated:4096")
    train = Drawn(int(count or TRAIN), 0, size)
    validation = Drawn(VALIDATION, 1, size)
    return Source(CLASSES, {"train": train, "validation": validation})


@dataclass(frozen=True)
class Drawn:
    """Images of the generated set; image i has class i modulo 10."""

    count: int
    split: int  # 0: train, 1: validation
    size: int

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"generated[{self.split}, {index}]"

    def read(self, index: int) -> Example:
        label = index % len(CLASSES)
        return Example(draw((self.split, index), label, self.size), label)


def draw(seed: tuple[int, int], label: int, size: int) -> np.ndarray:
    """The image of class `label` that `seed` makes: uint8 [size, size, 3] in RGB."""
    rng = np.random.default_rng(seed)
    family, form = CLASSES[label].split()
    hue = rng.uniform(*FAMILIES[family]) % 1
    colour = 255 * np.array(colorsys.hsv_to_rgb(hue, *rng.uniform(0.6, 1, 2)), np.float32)
    mask = _mask(rng, form, size)[..., None]
    image = (1 - mask) * _background(rng, size) + mask * colour
    image += rng.integers(-12, 13, (size, size, 1), np.int8)
    return np.clip(image, 0, 255).astype(np.uint8)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smooth clouds with little colour: float32 [size, size, 3]."""
    grey = rng.uniform(40, 200) + rng.normal(0, 30, (5, 5, 1))
    clouds = (grey + rng.normal(0, 8, (5, 5, 3))).astype(np.float32)
    return cv2.resize(clouds, (size, size), interpolation=cv2.INTER_CUBIC)


def _mask(rng: np.random.Generator, form: str, size: int) -> np.ndarray:
    """Where the form is: float32 [size, size] in [0, 1]. It fills 40% to 75% of the sides."""
    half = rng.uniform(0.2, 0.375, 2) * size  # of its height and width
    centre = rng.uniform(half, size - half)
    mask = np.zeros((size, size), np.uint8)
    if form == "disk":
        axes = _fixed(half.mean() * np.ones(2))
        cv2.ellipse(mask, _fixed(centre[::-1]), axes, 0, 0, 360, 255, -1, cv2.LINE_AA, _SCALE)
    elif form == "cross":
        bar = half.min() * rng.uniform(0.25, 0.4)
        _box(mask, centre, np.array([half[0], bar]))
        _box(mask, centre, np.array([bar, half[1]]))
    else:
        _box(mask, centre, half)
    inside = mask.astype(np.float32) / 255
    return inside if form in ("disk", "cross") else inside * _texture(rng, form, size)


def _texture(rng: np.random.Generator, form: str, size: int) -> np.ndarray:
    """Stripes or checks over the whole image, with soft edges: float32 [size, size]."""
    period = size * rng.uniform(0.1, 0.16)
    waves = np.sin(2 * np.pi * (np.arange(size)[:, None] / period + rng.random(2)))
    down, across = waves[:, :1], waves[:, 1:].T
    wave = {"horizontal": down, "vertical": across, "checks": down * across}[form]
    return np.clip(0.5 + 4 * np.broadcast_to(wave, (size, size)), 0, 1).astype(np.float32)


def _box(mask: np.ndarray, centre: np.ndarray, half: np.ndarray) -> None:
    low, high = _fixed((centre - half)[::-1]), _fixed((centre + half)[::-1])
    cv2.rectangle(mask, low, high, 255, -1, cv2.LINE_AA, _SCALE)


def _fixed(values: np.ndarray) -> tuple[int, int]:
    x, y = np.round(values * 2**_SCALE).astype(int).tolist()
    return x, y
