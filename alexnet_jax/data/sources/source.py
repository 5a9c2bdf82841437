"""What every source provides: classes, and splits whose images are read when asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

# The names that sources use, and the names of the splits of records.
SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


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
    """The classes' names, and splits by name: 'train', perhaps 'validation' and 'test'."""

    classes: tuple[str, ...]
    splits: Mapping[str, SourceSplit]
