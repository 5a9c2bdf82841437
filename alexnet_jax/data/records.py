"""Reading the records that `prepare` wrote."""

import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from array_record.python.array_record_module import ArrayRecordReader

from alexnet_jax.data.layout import (
    BEGUN,
    MANIFEST,
    STATISTICS,
    Format,
    Manifest,
    PrepareOptions,
    SplitInfo,
    Statistics,
    content_hash,
    damaged,
    files,
    first_line,
    load_arrays,
    read_manifest,
)
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.terminal import progress_bar


class Split:
    """The images and labels of one split.

    Attributes:
      labels: int32 [n].
      size: side of the images, pixels.
    """

    def __init__(self, folder: Path, manifest: Manifest, name: str):
        info = manifest.splits[name]
        self.size = manifest.size
        self.labels: np.ndarray = load_arrays(folder / info.labels.name)
        if not _counts_are(self.labels, info):
            raise damaged(folder / info.labels.name, "the manifest counts other labels")
        self._paths = [folder / file.name for file in info.shards]
        self._firsts = np.cumsum([0, *(file.count for file in info.shards)])
        self._open = _open_jpeg if manifest.format == "jpeg" else _open_raw
        self._shards: list[_Images | None] = [None] * len(self._paths)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, out: np.ndarray, top: int = 0, left: int = 0) -> None:
        """Fills `out` with the part of image `index` that begins at row `top`, column `left`.

        Args:
          index: 0 to len - 1.
          out: uint8 [height, width, 3] in RGB; [size, size, 3] gets the whole image.
          top: pixels.
          left: pixels.

        Any number of threads may read at once.

        Raises:
          UserError: the record is damaged; names its file and its place in it.
        """
        shard = int(np.searchsorted(self._firsts, index, side="right")) - 1
        place = index - int(self._firsts[shard])
        try:
            image = self._shard(shard)(place)
            out[:] = image[top : top + out.shape[0], left : left + out.shape[1]]
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise UserError(
                f"{self._paths[shard]}: record {place} cannot be read ({first_line(error)}); "
                f"delete the folder and prepare it again"
            ) from error

    def _shard(self, shard: int) -> "_Images":
        """Opened when first used: a large set has more files than a process may hold at start."""
        opened = self._shards[shard]
        if opened is not None:
            return opened
        with self._lock:
            opened = self._shards[shard] or self._open(self._paths[shard], self.size)
            self._shards[shard] = opened
            return opened


def _counts_are(labels: np.ndarray, info: SplitInfo) -> bool:
    """Whether there are as many labels of each class as there were when they were written."""
    classes = len(info.label_counts)
    if labels.shape != (info.count,) or labels.dtype != np.int32:
        return False
    if ((labels < 0) | (labels >= classes)).any():
        return False
    return tuple(np.bincount(labels, minlength=classes)) == info.label_counts


_Images = Callable[[int], np.ndarray]  # from a place in a shard to uint8 [size, size, 3]


def _open_jpeg(path: Path, size: int) -> _Images:
    reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")

    def read(place: int) -> np.ndarray:
        image = simplejpeg.decode_jpeg(reader.read([place])[0], "RGB")
        if image.shape != (size, size, 3):
            raise ValueError(f"its shape is {image.shape}, not {(size, size, 3)}")
        return image

    return read


def _open_raw(path: Path, size: int) -> _Images:
    mapped = np.asarray(np.memmap(path, np.uint8, "r"))  # indexing a memmap takes longer
    return mapped.reshape(-1, size, size, 3).__getitem__


class Records:
    """A complete folder of records; from `open_records`."""

    def __init__(self, path: Path, manifest: Manifest, statistics: Statistics):
        self.path = path
        self.manifest = manifest
        self.statistics = statistics

    def split(self, name: str) -> Split:
        """The split called `name`.

        Raises:
          UserError: there is none; names those that there are.
        """
        if name not in self.manifest.splits:
            raise UserError(
                f"{self.path} has no split {name!r}, only {', '.join(self.manifest.splits)}; "
                f"prepare a source that has one"
            )
        return Split(self.path, self.manifest, name)


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """Whether `path` holds a finished preparation."""
    return (Path(path) / MANIFEST).is_file()


def open_records(path: str | os.PathLike[str]) -> Records:
    """The records that ``prepare --out`` wrote to `path`.

    Raises:
      UserError: there are none, they are half-prepared, a file is missing or has another size than
        the manifest says, or the manifest cannot be read.
    """
    folder = Path(path)
    if not is_prepared(folder):
        raise UserError(_why_unprepared(folder))
    manifest = read_manifest(folder)
    for file in files(manifest):
        there = (folder / file.name).stat().st_size if (folder / file.name).is_file() else None
        if there != file.bytes:
            wrong = "is missing" if there is None else f"has {there} bytes instead of {file.bytes}"
            raise UserError(f"{folder / file.name} {wrong}; delete {folder} and prepare it again")
    arrays = load_arrays(folder / STATISTICS)
    try:
        return Records(folder, manifest, Statistics(**arrays))
    except TypeError as error:
        raise damaged(folder / STATISTICS, first_line(error)) from error


def verify(path: str | os.PathLike[str]) -> None:
    """Reads all that `path` holds and compares it with the hash in the manifest.

    Opening records does not: a image of the raw format that has changed on disk is not noticed
    in training.

    Raises:
      UserError: they are not what was prepared; or see `open_records`.
    """
    opened = open_records(path)
    manifest, folder, digests = opened.manifest, Path(path), dict[str, list[str]]()
    total = sum(len(info.shards) for info in manifest.splits.values())
    with progress_bar(total, "verifying", "shards") as bar:
        for name, info in manifest.splits.items():
            digests[name] = []
            for file in info.shards:
                digests[name].append(_shard_digest(folder / file.name, file.count, manifest.format))
                bar.update()
    labels = {name: opened.split(name).labels for name in manifest.splits}
    arrays = dataclasses.asdict(opened.statistics)
    key = (manifest.size, manifest.format, manifest.classes)
    if content_hash(key, digests, labels, arrays) != manifest.hash:
        raise UserError(f"{folder} is not what was prepared; delete it and prepare it again")


def _shard_digest(path: Path, count: int, format: Format) -> str:  # noqa: A002
    """SHA-256 of a shard's images, as `ShardWriter` made it."""
    if format == "raw":
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest, reader = hashlib.sha256(), ArrayRecordReader(str(path), "readahead_buffer_size:0")
    try:
        for place in range(count):
            digest.update(reader.read([place])[0])
    except (RuntimeError, ValueError, IndexError) as error:
        raise damaged(path, first_line(error)) from error
    return digest.hexdigest()


def _why_unprepared(folder: Path) -> str:
    command = "python -m alexnet_jax.prepare --source={} --out=" + str(folder)
    if (folder / BEGUN).is_file():
        begun = PrepareOptions.load(folder)
        command = f"{command} --size={begun.size} --format={begun.format}".format(begun.source)
        return f"{folder} is only half prepared; to go on: {command}"
    return f"{folder} holds no records; to make them: {command.format('SOURCE')}"
