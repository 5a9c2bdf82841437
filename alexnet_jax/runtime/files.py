"""Files that are whole whenever they are there, also after a power cut.

A file's bytes are safe after an fsync of the file, its name after an fsync of the folder.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that gets the name `path` when it is complete.

    Until then, and if writing ends in an error, an older file of that name stays. After that, a
    power cut cannot undo it.

    Raises:
      OSError: it cannot be written; names it.
    """
    temporary = unfinished(path)
    with named(path):
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Adds the file to an OSError inside: if a read, a write or an fsync failed, it has no name."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a file as `new_file` does."""
    with new_file(path) as file:
        file.write(text.encode())


def unfinished(path: Path) -> Path:
    """The name of the file `path` until it is complete."""
    return path.with_name(f".{path.name}.tmp")


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it, that a power cut cannot undo; or it is there already."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        sync(folder.parent)


def sync(path: Path) -> None:
    """Returns when the bytes of a file, or the names in a folder, are safe from a power cut."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
