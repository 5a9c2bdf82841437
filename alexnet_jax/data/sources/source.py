"""What every source is: classes, and splits whose images are read when asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


class Example(NamedTuple):
    """A image, as a file's bytes or as uint8 [height, width, 3] in RGB, and its label."""

    image: bytes | np.ndarray
    label: int


class Split(Protocol):
    """Images in a fixed order, read when asked for, by any number of threads at once."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Where image `index` is, in words that find it again."""
        ...

    def read(self, index: int) -> Example: ...


@dataclass(frozen=True)
class Source:
    """Splits by name ('train', and perhaps 'validation' and 'test') and the classes' names."""

    classes: tuple[str, ...]
    splits: Mapping[str, Split]
