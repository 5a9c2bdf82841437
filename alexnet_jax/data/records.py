"""Reading the records that `prepare` wrote."""

import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from array_record.python.array_record_module import ArrayRecordReader
from jaxtyping import Int32, UInt8

from alexnet_jax.data import layout
from alexnet_jax.data.layout import Manifest, SplitInfo, Statistics, first_line
from alexnet_jax.runtime.errors import UserError, system_reason
from alexnet_jax.runtime.terminal import progress_bar

ShardReader = Callable[[int], UInt8[np.ndarray, "size size 3"]]
"""Reads the image at a place in one shard."""


class Split:
    """The images and labels of one split.

    Attributes:
      labels: int32 [n].
      size: side of the images, pixels.
    """

    def __init__(self, folder: Path, manifest: Manifest, name: str):
        info = manifest.splits[name]
        self.size = manifest.size
        self.labels = _load_labels(folder / info.labels.name, info)
        self._paths = [folder / file.name for file in info.shards]
        self._firsts = np.cumsum([0, *(file.count for file in info.shards)])
        self._open = _open_jpeg if manifest.format == "jpeg" else _open_raw
        # Opened at its first use: a large set has more files than a process may open.
        self._reader = functools.cache(lambda shard: self._open(self._paths[shard], self.size))

    def __len__(self) -> int:
        return len(self.labels)

    def read(
        self, index: int, out: UInt8[np.ndarray, "height width 3"], top: int = 0, left: int = 0
    ) -> None:
        """Fills `out` with the part of image `index` that begins at row `top`, column `left`.

        Any number of threads may read at the same time.

        Args:
          index: 0 to len - 1.
          out: uint8 [height, width, 3], for RGB; [size, size, 3] gets the whole image.
          top: pixels.
          left: pixels.

        Raises:
          UserError: the record is damaged; names its file and its place in the file.
        """
        shard = int(np.searchsorted(self._firsts, index, side="right")) - 1
        place = index - int(self._firsts[shard])
        try:
            image = self._reader(shard)(place)
            out[:] = image[top : top + out.shape[0], left : left + out.shape[1]]
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            words = system_reason(error)
            advice = (
                "fix this, and run the same command" if words else "delete the folder, prepare it"
            )
            raise UserError(
                f"{self._paths[shard]}: record {place} cannot be read "
                f"({words or first_line(error)}); {advice} again"
            ) from error


def _load_labels(path: Path, info: SplitInfo) -> Int32[np.ndarray, " n"]:
    """The labels, if there are as many of each class as the manifest says."""
    classes = len(info.label_counts)
    with layout.refuse_damage(path):
        # Mapped first: a damaged header may give a size that would fill the memory. Mapping refuses
        # a size that is larger than the file.
        labels = np.array(np.load(path, mmap_mode="r"))
        if (
            labels.dtype != np.int32
            or labels.shape != (info.count,)
            or ((labels < 0) | (labels >= classes)).any()
            or tuple(np.bincount(labels, minlength=classes)) != info.label_counts
        ):
            raise ValueError("the manifest counts other labels")
        return labels


def _open_jpeg(path: Path, size: int) -> ShardReader:
    reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")

    def read(place: int) -> UInt8[np.ndarray, "size size 3"]:
        image = simplejpeg.decode_jpeg(reader.read([place])[0], "RGB")
        if image.shape != (size, size, 3):
            raise ValueError(f"its shape is {image.shape}, not {(size, size, 3)}")
        return image

    return read


def _open_raw(path: Path, size: int) -> ShardReader:
    mapped = np.asarray(np.memmap(path, np.uint8, "r"))  # indexing a plain array is faster
    return mapped.reshape(-1, size, size, 3).__getitem__


@dataclass(frozen=True)
class Records:
    """A complete folder of records; from `open_records`."""

    path: Path
    manifest: Manifest
    statistics: Statistics

    def split(self, name: str, option: str = "") -> Split:
        """The split called `name`; `option` is what named it, for the error.

        Raises:
          UserError: there is no such split, or its labels are damaged.
        """
        if name not in self.manifest.splits:
            problem = f"{self.path} has no split {name!r}, only {', '.join(self.manifest.splits)}"
            if option:
                problem += f"; set {option} to one of these, or prepare a source that has it"
            raise UserError(problem)
        return Split(self.path, self.manifest, name)


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """Whether `path` holds complete records."""
    return (Path(path) / layout.MANIFEST).is_file()


def open_records(path: str | os.PathLike[str]) -> Records:
    """The records that ``prepare --out`` wrote to `path`.

    Raises:
      UserError: there are none, or they are half prepared; a file is missing or has another size
        than the manifest says; or the manifest or the statistics are damaged.
    """
    folder = Path(path)
    if not is_prepared(folder):
        raise UserError(_why_unprepared(folder))
    manifest = layout.read_manifest(folder)
    for file in manifest.files():
        found = (folder / file.name).stat().st_size if (folder / file.name).is_file() else None
        if found != file.bytes:
            wrong = "is missing" if found is None else f"has {found} bytes instead of {file.bytes}"
            raise UserError(f"{folder / file.name} {wrong}; delete {folder} and prepare it again")
    with layout.refuse_damage(folder / layout.STATISTICS):
        statistics = Statistics(**layout.load_arrays(folder / layout.STATISTICS))
    return Records(folder, manifest, statistics)


def verify(path: str | os.PathLike[str]) -> None:
    """Reads everything that `path` holds and compares it with the hash in the manifest.

    `open_records` does not: training does not notice if an image of the raw format has changed on
    the disk.

    Raises:
      UserError: the records are not what was prepared; or see `open_records`.
    """
    opened = open_records(path)
    manifest, splits = opened.manifest, opened.manifest.splits
    hashes: dict[str, list[str]] = {name: [] for name in splits}
    with progress_bar(sum(len(i.shards) for i in splits.values()), "verifying", "shards") as bar:
        for name, info in splits.items():
            for file in info.shards:
                hashes[name].append(_shard_hash(opened.path / file.name, file.count))
                bar.update()
    labels = {name: opened.split(name).labels for name in splits}
    if layout.content_hash(manifest, hashes, labels, opened.statistics) != manifest.hash:
        raise UserError(f"{opened.path} is not what was prepared; delete it and prepare it again")


def _shard_hash(path: Path, count: int) -> str:
    """SHA-256 of a shard's images, as `write_shard` computes it."""
    if path.suffix == ".raw":
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest, reader = hashlib.sha256(), ArrayRecordReader(str(path), "readahead_buffer_size:0")
    with layout.refuse_damage(path):
        for place in range(count):
            digest.update(reader.read([place])[0])
    return digest.hexdigest()


def _why_unprepared(folder: Path) -> str:
    prepare = "python -m alexnet_jax.prepare"
    if not (folder / layout.BEGUN).is_file():
        return f"{folder} holds no records; to make them: {prepare} --source=SOURCE --out={folder}"
    begun = layout.read_begun(folder)
    prepare += f" --source={begun['source']} --out={folder}"
    prepare += f" --size={begun['size']} --format={begun['format']}"
    return f"{folder} is only half prepared; to resume: {prepare}"
