"""What every source is: classes, and splits whose pictures are read when asked for."""

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
    """A picture, as a file's bytes or as uint8 [height, width, 3] in RGB, and its label."""

    picture: bytes | np.ndarray
    label: int


class Split(Protocol):
    """Pictures in a fixed order, read when asked for, by any number of threads at once."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Where picture `index` is, in words that find it again."""
        ...

    def read(self, index: int) -> Example: ...


@dataclass(frozen=True)
class Source:
    """Splits by name ('train', and perhaps 'validation' and 'test') and the classes' names."""

    classes: tuple[str, ...]
    splits: Mapping[str, Split]
