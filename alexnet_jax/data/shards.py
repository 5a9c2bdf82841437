"""Writing records: the shards, then the files that are computed from all shards."""

import dataclasses
import functools
import hashlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Int32, Int64, UInt8

from alexnet_jax.data import layout
from alexnet_jax.data.layout import File, Manifest, PrepareOptions, SplitInfo, Statistics
from alexnet_jax.runtime.errors import UserError


@dataclass(frozen=True)
class Sums:
    """Exact sums over images; the statistics are computed from them.

    Attributes:
      count: images.
      pixels: the sum of the images.
      products: the sum of the outer products of RGB over all pixels.
    """

    count: int
    pixels: Int64[np.ndarray, "size size 3"]
    products: Int64[np.ndarray, "3 3"]

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.count + other.count, self.pixels + other.pixels, self.products + other.products
        )

    def statistics(self) -> Statistics:
        """Mean image and eigenvectors, in float64 from the exact sums."""
        size = self.pixels.shape[0]
        n = self.count * size * size
        # n * (sum of products) - (sum) x (sum): almost all digits cancel. Python's integers keep
        # them all.
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


@dataclass(frozen=True)
class Shard:
    """A finished shard: what the manifest and the statistics need of it."""

    path: Path
    file: File
    labels: Int32[np.ndarray, " n"]
    skipped: tuple[str, ...]
    sha256: str  # of its images

    @classmethod
    def load(cls, path: Path) -> "Shard":
        arrays = layout.load_arrays(layout.part_path(path))
        file = File(path.name, int(arrays["bytes"]), len(arrays["labels"]))
        skipped = tuple(arrays["skipped"].tolist())
        return cls(path, file, arrays["labels"], skipped, str(arrays["sha256"]))

    def sums(self) -> Sums:
        """Reads the sums from the disk: the sums of all shards would fill the memory."""
        with np.load(layout.part_path(self.path)) as arrays:
            return Sums(len(self.labels), arrays["pixels"], arrays["products"])


class ShardWriter:
    """Writes one shard to `path`. The shard is finished when `close` has returned."""

    def __init__(self, path: Path, options: PrepareOptions):
        self._path, self._temporary = path, path.with_name(f".{path.name}.tmp")
        self._jpeg = options.format == "jpeg"
        if self._jpeg:  # groups of one record: the default makes a random read ten times slower
            self._file = ArrayRecordWriter(str(self._temporary), "group_size:1,uncompressed")
        else:
            self._file = self._temporary.open("wb")
        self._labels: list[int] = []
        self._skipped: list[str] = []
        self._hash = hashlib.sha256()
        self._pixels = np.zeros((options.size, options.size, 3), np.int64)
        self._products = np.zeros((3, 3), np.int64)

    def add(self, image: UInt8[np.ndarray, "size size 3"], label: int) -> None:
        """Appends an image. The sums are those of the image as it will be read."""
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
        # float64 is exact here: the sums of one image are integers far below 2^53. numpy's product
        # would make the threads wait for each other.
        products = cv2.mulTransposed(image.reshape(-1, 3), aTa=True, dtype=cv2.CV_64F)
        self._products += products.astype(np.int64)

    def skip(self, problem: str) -> None:
        """Notes that an image is left out; `problem` is "path: reason"."""
        self._skipped.append(problem)

    def close(self) -> Shard:
        """Renames the shard to its final name, then writes its labels and sums."""
        self._file.close()
        size = self._temporary.stat().st_size
        self._temporary.replace(self._path)
        with layout.new_file(layout.part_path(self._path)) as file:
            np.savez(
                file,
                bytes=size,
                labels=np.array(self._labels, np.int32),
                skipped=np.array(self._skipped, np.str_),
                sha256=self._hash.hexdigest(),
                pixels=self._pixels,
                products=self._products,
            )
        return Shard.load(self._path)

    def abandon(self) -> None:
        """Removes what was written."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def finished_shard(path: Path) -> Shard | None:
    """The shard at `path` if an earlier run finished it, else None."""
    if not layout.part_path(path).is_file() or not path.is_file():
        return None
    try:
        shard = Shard.load(path)
    except (UserError, KeyError):
        return None  # damaged: it is written again
    return shard if path.stat().st_size == shard.file.bytes else None


def finish(
    folder: Path,
    options: PrepareOptions,
    classes: Sequence[str],
    shards: Mapping[str, Sequence[Shard]],
) -> Manifest:
    """Writes labels, statistics and, last, the manifest; then removes the files of `begin`.

    Args:
      folder: of the records.
      options: with which the shards were made.
      classes: the classes' names.
      shards: of each split, in order; 'train' has at least one image.
    """
    labels = {name: np.concatenate([s.labels for s in of]) for name, of in shards.items()}
    hashes = {name: [shard.sha256 for shard in of] for name, of in shards.items()}
    statistics = functools.reduce(operator.add, (s.sums() for s in shards["train"])).statistics()
    with layout.new_file(folder / layout.STATISTICS) as file:
        np.savez(file, **vars(statistics))
    manifest = Manifest(
        version=layout.VERSION,
        **vars(options),
        classes=tuple(classes),
        splits={n: _finish_split(folder, n, len(classes), labels[n], shards[n]) for n in shards},
        skipped=tuple(problem for of in shards.values() for s in of for problem in s.skipped),
        statistics=File.of(folder / layout.STATISTICS),
        hash="",
    )
    content = layout.content_hash(manifest, hashes, labels, statistics)
    manifest = dataclasses.replace(manifest, hash=content)
    layout.write_manifest(folder, manifest)
    for shard in (shard for of in shards.values() for shard in of):
        layout.part_path(shard.path).unlink(missing_ok=True)
    (folder / layout.BEGUN).unlink(missing_ok=True)
    return manifest


def _finish_split(
    folder: Path,
    name: str,
    classes: int,
    labels: Int32[np.ndarray, " n"],
    shards: Sequence[Shard],
) -> SplitInfo:
    """Writes the labels of a split."""
    path = folder / f"{name}-labels.npy"
    with layout.new_file(path) as file:
        np.save(file, labels)
    return SplitInfo(
        count=len(labels),
        label_counts=tuple(np.bincount(labels, minlength=classes).tolist()),
        labels=File.of(path, len(labels)),
        shards=tuple(shard.file for shard in shards),
    )
