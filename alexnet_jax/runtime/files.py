"""Files that are whole whenever they are there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that gets the name `path` when it is complete.

    Until then, and if writing ends in an error, an older file of that name stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())  # the bytes first, then the name: a power cut leaves no empty file
    temporary.replace(path)
