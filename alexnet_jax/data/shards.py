"""Images into records: shards, and what follows from all of them. `prepare` drives it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from array_record.python.array_record_module import ArrayRecordWriter

from alexnet_jax.data.layout import (
    BEGUN,
    MANIFEST,
    STATISTICS,
    SUFFIX,
    VERSION,
    File,
    Manifest,
    PrepareOptions,
    SplitInfo,
    Statistics,
    content_hash,
    load_arrays,
    write,
    write_arrays,
)
from alexnet_jax.runtime.checksum import seal
from alexnet_jax.runtime.errors import UserError


@dataclass(frozen=True)
class Sums:
    """Exact sums over images, from which the statistics follow.

    Attributes:
      count: images.
      pixels: int64 [size, size, 3], the sum of the images.
      products: int64 [3, 3], the sum over all pixels of RGB's outer products.
    """

    count: int
    pixels: np.ndarray
    products: np.ndarray

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.count + other.count, self.pixels + other.pixels, self.products + other.products
        )

    def statistics(self) -> Statistics:
        """Mean image and eigenvectors, in float64 from the exact sums."""
        size = self.pixels.shape[0]
        n = self.count * size * size
        # n * (sum of products) - (sum) x (sum) cancels almost all of its digits, so it is done in
        # Python's integers, which have as many as it takes.
        total = self.pixels.sum((0, 1)).astype(object)
        scatter = n * self.products.astype(object) - np.outer(total, total)
        covariance = np.array([[float(x) / n / n for x in row] for row in scatter])
        eigenvalues, eigenvectors = np.linalg.eigh(covariance)
        largest = np.abs(eigenvectors).argmax(0)
        eigenvectors *= np.where(eigenvectors[largest, np.arange(3)] < 0, -1, 1)
        return Statistics(
            (self.pixels / self.count).astype(np.float32),
            np.maximum(eigenvalues[::-1], 0),
            np.ascontiguousarray(eigenvectors[:, ::-1]),
        )


class ShardWriter:
    """Writes one shard. It counts as finished when `close` has returned."""

    def __init__(self, folder: Path, settings: PrepareOptions, split: str, number: int):
        self._path, self._part = _shard_paths(folder, settings, split, number)
        self._temporary = folder / f".{self._path.name}.tmp"
        self._jpeg = settings.format == "jpeg"
        self._file: Any
        if self._jpeg:  # a group of one: the default makes a random read ten times slower
            self._file = ArrayRecordWriter(str(self._temporary), "group_size:1,uncompressed")
        else:
            self._file = self._temporary.open("wb")
        self._labels: list[int] = []
        self._skipped: list[str] = []
        self._hash = hashlib.sha256()
        self._pixels = np.zeros((settings.size, settings.size, 3), np.int64)
        self._products = np.zeros((3, 3), np.int64)

    def add(self, image: np.ndarray, label: int) -> None:
        """Appends `image`, uint8 [size, size, 3]. The sums are of what is read back."""
        data = image.tobytes()
        if self._jpeg:
            data = simplejpeg.encode_jpeg(
                np.ascontiguousarray(image), 95, "RGB", colorsubsampling="444"
            )
            image = simplejpeg.decode_jpeg(data, "RGB")
        self._file.write(data)
        self._hash.update(data)
        self._labels.append(label)
        self._pixels += image
        # Exact: a image's sums are whole numbers far below 2^53. With numpy's product the threads
        # would wait for each other.
        products = cv2.mulTransposed(image.reshape(-1, 3), aTa=True, dtype=cv2.CV_64F)
        self._products += products.astype(np.int64)

    def skip(self, problem: str) -> None:
        """Notes that a image is left out; `problem` is "path: reason"."""
        self._skipped.append(problem)

    def close(self) -> "Shard":
        """Gives the shard its name, then its sums theirs."""
        self._file.close()
        size = self._temporary.stat().st_size
        self._temporary.replace(self._path)
        arrays = {
            "bytes": size,
            "labels": np.array(self._labels, np.int32),
            "skipped": np.array(self._skipped, np.str_),
            "sha256": self._hash.hexdigest(),
            "pixels": self._pixels,
            "products": self._products,
        }
        write_arrays(self._part, arrays)
        return Shard.load(self._path.name, self._part)

    def abandon(self) -> None:
        """Removes what was written."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Shard:
    """A finished shard and what the manifest and the statistics need of it."""

    file: File
    labels: np.ndarray  # int32 [n]
    skipped: tuple[str, ...]
    sha256: str  # of its images
    part: Path

    @classmethod
    def load(cls, name: str, part: Path) -> "Shard":
        arrays = load_arrays(part)
        file = File(name, int(arrays["bytes"]), len(arrays["labels"]))
        skipped = tuple(str(problem) for problem in arrays["skipped"])
        return cls(file, arrays["labels"], skipped, str(arrays["sha256"]), part)

    def sums(self) -> Sums:
        """Read when asked for: those of a whole large set would fill the memory."""
        with np.load(self.part) as arrays:
            return Sums(len(self.labels), arrays["pixels"], arrays["products"])


def finished_shard(folder: Path, settings: PrepareOptions, split: str, number: int) -> Shard | None:
    """The shard that an earlier run finished, if it did."""
    path, part = _shard_paths(folder, settings, split, number)
    if not part.is_file() or not path.is_file():
        return None
    try:
        shard = Shard.load(path.name, part)
    except (UserError, KeyError):
        return None  # it is written again
    return shard if path.stat().st_size == shard.file.bytes else None


def _shard_paths(
    folder: Path, settings: PrepareOptions, split: str, number: int
) -> tuple[Path, Path]:
    """Of the images, and of the sums beside them."""
    name = f"{split}-{number:05d}"
    return folder / f"{name}.{SUFFIX[settings.format]}", folder / f"{name}.part.npz"


def finish(
    folder: Path,
    settings: PrepareOptions,
    classes: Sequence[str],
    shards: Mapping[str, Sequence[Shard]],
) -> Manifest:
    """Writes labels, statistics and, last, the manifest; then removes what only resuming needs.

    Args:
      folder: of the records.
      settings: with which they were made.
      classes: names.
      shards: of each split, in order; 'train' has at least one image.
    """
    splits = {name: _finish_split(folder, classes, name, of) for name, of in shards.items()}
    total, *others = (shard for shard in shards["train"] if shard.file.count)
    sums = total.sums()
    for shard in others:
        sums += shard.sums()
    statistics = sums.statistics()
    arrays = {f.name: getattr(statistics, f.name) for f in dataclasses.fields(statistics)}
    manifest = Manifest(
        version=VERSION,
        source=settings.source,
        format=settings.format,
        size=settings.size,
        classes=tuple(classes),
        splits=splits,
        skipped=tuple(problem for of in shards.values() for s in of for problem in s.skipped),
        statistics=write_arrays(folder / STATISTICS, arrays),
        hash=content_hash(
            (settings.size, settings.format, classes),
            {name: [shard.sha256 for shard in of] for name, of in shards.items()},
            {name: np.concatenate([s.labels for s in of]) for name, of in shards.items()},
            arrays,
        ),
    )
    values = json.loads(json.dumps(dataclasses.asdict(manifest)))
    sealed = values | {"seal": seal(values)}
    write(folder / MANIFEST, json.dumps(sealed, indent=1).encode())
    for shard in (shard for of in shards.values() for shard in of):
        shard.part.unlink(missing_ok=True)
    (folder / BEGUN).unlink(missing_ok=True)
    return manifest


def _finish_split(
    folder: Path, classes: Sequence[str], name: str, shards: Sequence[Shard]
) -> SplitInfo:
    labels = np.concatenate([shard.labels for shard in shards])
    path, temporary = folder / f"{name}-labels.npy", folder / f".{name}-labels.npy.tmp"
    with temporary.open("wb") as file:
        np.save(file, labels)
    temporary.replace(path)
    return SplitInfo(
        count=len(labels),
        label_counts=tuple(np.bincount(labels, minlength=len(classes)).tolist()),
        labels=File(path.name, path.stat().st_size, len(labels)),
        shards=tuple(shard.file for shard in shards),
    )
