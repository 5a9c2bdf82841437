"""Images in tars, which are read without unpacking."""

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from alexnet_jax.data.sources.source import Example, SourceSplit
from alexnet_jax.runtime.errors import UserError

GZIP = b"\x1f\x8b"


class Member(NamedTuple):
    """One image in a tar: its name, its first byte, its bytes."""

    name: str
    start: int
    bytes: int
    label: int


def images_in(tar: Path, members: Sequence[Member]) -> SourceSplit:
    """Images in a tar, read without unpacking it."""

    def read(index: int) -> Example:
        _, start, count, label = members[index]
        with tar.open("rb") as file:
            file.seek(start)
            return Example(file.read(count), label)

    return SourceSplit(len(members), lambda index: f"{tar}/{members[index].name}", read)


def tar_files(path: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The files in the tar that begins at the current position of `file`, the open `path`."""
    start = file.tell()
    if file.read(2) == GZIP:
        raise UserError(
            f"{path} is compressed, so no image can be found in it without reading all before; "
            f"decompress it once: mv {path} {path}.gz && gunzip {path}.gz"
        )
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            yield from (member for member in tar if member.isfile())
            # tarfile takes an unreadable header for the end of the tar; the true end is zeros.
            file.seek(tar.offset)
            if file.read(512) != bytes(512):
                raise tarfile.ReadError(f"no end where it should be, at byte {tar.offset}")
    except tarfile.TarError as error:
        raise UserError(f"{path} is damaged or half downloaded ({error}); get it again") from error
