"""What every source provides: classes, and splits whose images are read when asked for."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from alexnet_jax.runtime.errors import UserError

# The names that sources use, and the names of the splits of records.
SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


SEED, SHARE = 0, 10
"""Of `hold_out`: of each class every tenth image."""


class Example(NamedTuple):
    """An image, as the bytes of a file or decoded in RGB, and its label."""

    image: bytes | UInt8[np.ndarray, "height width 3"]
    label: int


@dataclass(frozen=True)
class SourceSplit:
    """Images in a fixed order. Any number of threads may read at the same time.

    Attributes:
      count: images.
      name: tells where image 0 to count - 1 is, so that a user can find it.
      read: raises ValueError if the image cannot be read.
    """

    count: int
    name: Callable[[int], str]
    read: Callable[[int], Example]


@dataclass(frozen=True)
class Source:
    """Attributes: the classes' names; splits by name: 'train', perhaps 'validation' and 'test';
    and what the user should know of how they were found, "" if nothing.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, SourceSplit]
    note: str = ""


def chosen(images: SourceSplit, indices: Sequence[int] | np.ndarray) -> SourceSplit:
    """Some of the images, in the order of `indices`."""
    return SourceSplit(
        len(indices),
        lambda index: images.name(int(indices[index])),
        lambda index: images.read(int(indices[index])),
    )


def joined(parts: Sequence[SourceSplit]) -> SourceSplit:
    """The images of all parts, one after the other."""
    firsts = np.cumsum([0, *(part.count for part in parts)])

    def place(index: int) -> tuple[SourceSplit, int]:
        number = int(np.searchsorted(firsts, index, side="right")) - 1
        return parts[number], index - int(firsts[number])

    def name(index: int) -> str:
        part, own = place(index)
        return part.name(own)

    def read(index: int) -> Example:
        part, own = place(index)
        return part.read(own)

    return SourceSplit(int(firsts[-1]), name, read)


def hold_out(
    images: SourceSplit, labels: Sequence[int], names: Sequence[str], classes: Sequence[str]
) -> Source:
    """A source with a tenth of each class' images, and at least one, as the validation split.

    A hash of an image's name decides, so an image stays where it is when others are added.

    Args:
      images: all, in any order.
      labels: of the images.
      names: of the images, the same on every machine.
      classes: the classes' names.

    Raises:
      UserError: a class has only one image.
    """
    of_class = defaultdict[int, list[int]](list)
    for index, label in enumerate(labels):
        of_class[label].append(index)
    held_out = np.zeros(images.count, bool)
    for label, indices in of_class.items():
        if len(indices) < 2:
            raise UserError(
                f"class {classes[label]!r} has only one image ({images.name(indices[0])}), which "
                f"cannot both train and validate; add images, or make the splits: train/ and val/"
            )
        drawn = sorted(indices, key=lambda index: _draw(names[index]))
        held_out[drawn[: max(1, round(len(indices) / SHARE))]] = True
    note = (
        f"there is no validation split: {held_out.sum():,} of {images.count:,} images are held "
        f"out, a tenth of each class, drawn by seed {SEED}"
    )
    train, validation = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    return Source(
        tuple(classes),
        {"train": chosen(images, train), "validation": chosen(images, validation)},
        note,
    )


def _draw(name: str) -> bytes:
    return hashlib.sha256(f"{SEED}/{name}".encode()).digest()
