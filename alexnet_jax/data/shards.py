"""Writing records: the shards, then the files that are computed from all shards."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import simplejpeg
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Int32, Int64, UInt8

from alexnet_jax.data import layout
from alexnet_jax.data.layout import File, Manifest, PrepareOptions, SplitInfo, Statistics
from alexnet_jax.runtime.errors import UserError, system_reason
from alexnet_jax.runtime.files import new_file, sync, unfinished

LabelledImage = tuple[UInt8[np.ndarray, "size size 3"], int]


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


def finished_shard(path: Path) -> Shard | None:
    """The shard at `path` if an earlier run finished it, else None."""
    with contextlib.suppress(UserError, KeyError, FileNotFoundError):  # missing or damaged
        shard = Shard.load(path)
        if path.stat().st_size == shard.file.bytes:
            return shard
    return None


def write_shard(
    path: Path, options: PrepareOptions, images: Iterable[LabelledImage | str]
) -> Shard:
    """Writes a shard, then its labels and the sums for the statistics.

    Args:
      path: of the shard. The file has another name until it is complete.
      options: its size and format are used.
      images: uint8 [size, size, 3] in RGB, each with its label; for an image that is left out, the
        text "path: reason". If `images` raises an error, no file is left.
    """
    labels: list[int] = []
    skipped: list[str] = []
    sha256 = hashlib.sha256()
    pixels = np.zeros((options.size, options.size, 3), np.int64)
    products = np.zeros((3, 3), np.int64)
    temporary, jpeg = unfinished(path), options.format == "jpeg"
    try:
        with contextlib.closing(_shard_file(temporary, jpeg)) as file:
            for one in images:
                if isinstance(one, str):
                    skipped.append(one)
                    continue
                image, label = np.ascontiguousarray(one[0]), one[1]
                data = image.tobytes()
                if jpeg:  # the sums are those of the image as it will be read
                    data = simplejpeg.encode_jpeg(image, 95, "RGB", colorsubsampling="444")
                    image = simplejpeg.decode_jpeg(data, "RGB")
                file.write(data)
                sha256.update(data)
                labels.append(label)
                pixels += image
                products += _products(image)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # What array_record could not write is an OSError, as what Python could not write.
        if isinstance(error, RuntimeError) and (words := system_reason(error)):
            raise OSError(None, words, str(path)) from error
        raise
    size = temporary.stat().st_size
    sync(temporary)  # its name is safe with that of the part
    temporary.replace(path)
    with new_file(layout.part_path(path)) as part:
        np.savez(
            part,
            bytes=size,
            labels=np.array(labels, np.int32),
            skipped=np.array(skipped, np.str_),
            sha256=sha256.hexdigest(),
            pixels=pixels,
            products=products,
        )
    return Shard.load(path)


def _shard_file(path: Path, jpeg: bool) -> BinaryIO | ArrayRecordWriter:
    # Groups of one record: the default makes a random read ten times slower.
    return ArrayRecordWriter(str(path), "group_size:1,uncompressed") if jpeg else path.open("wb")


def _products(image: UInt8[np.ndarray, "size size 3"]) -> Int64[np.ndarray, "3 3"]:
    """The sum of the outer products of RGB over all pixels.

    float64 is exact here: the sums of one image are integers far below 2^53. numpy's product would
    make the threads wait for each other.
    """
    products = cv2.mulTransposed(image.reshape(-1, 3), aTa=True, dtype=cv2.CV_64F)
    return products.astype(np.int64)


def statistics(
    count: int, pixels: Int64[np.ndarray, "size size 3"], products: Int64[np.ndarray, "3 3"]
) -> Statistics:
    """Mean image and eigenvectors, in float64 from exact sums.

    Args:
      count: images.
      pixels: the sum of the images.
      products: the sum of the outer products of RGB over all pixels of all images.
    """
    n = count * pixels.shape[0] ** 2
    # n * (sum of products) - (sum) x (sum): almost all digits cancel. Python's integers keep
    # them all.
    total = pixels.sum((0, 1)).astype(object)
    scatter = n * products.astype(object) - np.outer(total, total)
    covariance = np.array([[float(x) / n / n for x in row] for row in scatter])
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    largest = np.abs(eigenvectors).argmax(0)
    eigenvectors *= np.where(eigenvectors[largest, np.arange(3)] < 0, -1, 1)
    # LAPACK rounds the last digit differently on other processors. Without it the records of the
    # same images have the same hash: a run made on one machine goes on with those of another.
    return Statistics(
        (pixels / count).astype(np.float32),
        np.array([float(f"{max(value, 0):.12g}") for value in eigenvalues[::-1]]),
        np.ascontiguousarray(eigenvectors[:, ::-1].round(12) + 0.0),  # no -0.0
    )


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
    labels = {name: np.concatenate([shard.labels for shard in of]) for name, of in shards.items()}
    hashes = {name: [shard.sha256 for shard in of] for name, of in shards.items()}
    splits: dict[str, SplitInfo] = {}
    for name, of in shards.items():
        path = folder / f"{name}-labels.npy"
        with new_file(path) as file:
            np.save(file, labels[name])
        splits[name] = SplitInfo(
            count=len(labels[name]),
            label_counts=tuple(np.bincount(labels[name], minlength=len(classes)).tolist()),
            labels=File(path.name, path.stat().st_size, len(labels[name])),
            shards=tuple(shard.file for shard in of),
        )
    training = _training_statistics(shards["train"])
    statistics_path = folder / layout.STATISTICS
    with new_file(statistics_path) as file:
        np.savez(file, **vars(training))
    everything = [shard for of in shards.values() for shard in of]
    manifest = Manifest(
        version=layout.VERSION,
        **vars(options),
        classes=tuple(classes),
        splits=splits,
        skipped=tuple(problem for shard in everything for problem in shard.skipped),
        statistics=File(layout.STATISTICS, statistics_path.stat().st_size, 0),
        hash="",
    )
    content = layout.content_hash(manifest, hashes, labels, training)
    manifest = dataclasses.replace(manifest, hash=content)
    layout.write_manifest(folder, manifest)
    parts = [layout.part_path(shard.path) for shard in everything]
    for done in (*parts, folder / layout.BEGUN, folder / layout.LOCK):
        done.unlink(missing_ok=True)
    return manifest


def _training_statistics(shards: Sequence[Shard]) -> Statistics:
    count = sum(len(shard.labels) for shard in shards)
    pixels = products = np.zeros((), np.int64)
    for shard in shards:  # one at a time: the sums of all shards would fill the memory
        with np.load(layout.part_path(shard.path)) as arrays:
            pixels, products = pixels + arrays["pixels"], products + arrays["products"]
    return statistics(count, pixels, products)
