"""What lies in a folder of records; the one module that knows its layout.

    manifest.json                    what is here; written last, so its presence means complete
    statistics.npz                   mean image, eigenvalues and eigenvectors of the training pixels
    SPLIT-labels.npy                 int32 [n]
    SPLIT-00000.array_record ...     'jpeg': one JPEG (quality 95, 4:4:4) a record
    SPLIT-00000.raw ...              'raw': uint8 [n, size, size, 3], to be memory-mapped

While a preparation runs, ``begun.json`` holds its settings, and beside each finished shard lies
``SPLIT-00000.part.npz`` with its labels and its exact sums. All sums are integers, so the
statistics do not depend on order, on the number of threads, or on interruptions.
"""

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self

import numpy as np

from alexnet_jax.runtime.checksum import seal
from alexnet_jax.runtime.errors import UserError

Format = Literal["jpeg", "raw"]

VERSION = 1
MANIFEST = "manifest.json"
STATISTICS = "statistics.npz"
BEGUN = "begun.json"
SUFFIX = {"jpeg": "array_record", "raw": "raw"}


@dataclass(frozen=True)
class File:
    """One shard, or one file of labels or statistics: its name, size in bytes, images in it."""

    name: str
    bytes: int
    count: int


@dataclass(frozen=True)
class SplitInfo:
    """What the manifest says of one split."""

    count: int  # images
    label_counts: tuple[int, ...]  # images of each class
    labels: File
    shards: tuple[File, ...]


@dataclass(frozen=True)
class Manifest:
    """What a folder of records holds.

    Attributes:
      version: of the layout.
      source: what ``prepare --source`` got.
      format: 'jpeg' or 'raw'.
      size: side of the square images, pixels.
      classes: the classes' names; label i is ``classes[i]``.
      splits: by name: 'train', and 'validation' and 'test' where the source has them.
      skipped: "path: reason" of every image left out by ``--skip-bad``.
      statistics: the file of the mean image and the colour covariance's eigenvectors.
      hash: SHA-256 of images, labels, classes, statistics, size and format. Two preparations with
        the same hash give the same training.
    """

    version: int
    source: str
    format: Format
    size: int
    classes: tuple[str, ...]
    splits: Mapping[str, SplitInfo]
    skipped: tuple[str, ...]
    statistics: File
    hash: str


@dataclass(frozen=True)
class Statistics:
    """Of the training images (§2, §4.1), on the scale of grey levels, 0 to 255.

    Attributes:
      mean: float32 [size, size, 3], the mean image.
      eigenvalues: float64 [3], descending, of the covariance of the pixels' RGB values; grey levels
        squared.
      eigenvectors: float64 [3, 3]; column i belongs to ``eigenvalues[i]``. Its sign is chosen so
        that its largest component is positive.
    """

    mean: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray


@dataclass(frozen=True)
class PrepareOptions:
    """What decides the content of a preparation, so that only the same one is gone on with.

    Attributes:
      source: what ``prepare --source`` got.
      size: side of the images, pixels.
      format: 'jpeg' or 'raw'.
      images: SHA-256 of the list of the source's images.
    """

    source: str
    size: int
    format: Format
    images: str

    @classmethod
    def load(cls, folder: Path) -> Self:
        try:
            return cls(**json.loads((folder / BEGUN).read_text()))
        except (ValueError, TypeError) as error:
            raise damaged(folder / BEGUN, first_line(error)) from error

    def begin(self, folder: Path) -> None:
        """Makes `folder`, or enters the one that an interrupted preparation left.

        Raises:
          UserError: the folder holds something else.
        """
        if not (folder / BEGUN).is_file():
            if folder.is_dir() and any(folder.iterdir()):
                raise UserError(f"{folder} is not empty and holds no records; choose another --out")
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / BEGUN, json.dumps(dataclasses.asdict(self)).encode())
            return
        begun = PrepareOptions.load(folder)
        for key, was in dataclasses.asdict(begun).items():
            now = getattr(self, key)
            if was != now:
                changed = f"--{key}={was}, not {now}" if key != "images" else "other images"
                raise UserError(
                    f"{folder} was begun with {changed}; delete it or choose another --out"
                )


def read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text())
        if values["version"] != VERSION:
            raise UserError(
                f"{path} is of layout {values['version']}, this program reads {VERSION}; "
                f"delete {folder} and prepare it again"
            )
        if values.pop("seal", None) not in (None, seal(values)):  # older ones have none
            raise ValueError("it has changed since it was written")
        splits = {name: _split_info(**split) for name, split in values.pop("splits").items()}
        for key in ("classes", "skipped"):
            values[key] = tuple(values[key])
        return Manifest(**values | {"splits": splits, "statistics": File(**values["statistics"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {first_line(error)}); "
            f"delete {folder} and prepare it again"
        ) from error


def _split_info(count: int, label_counts: list[int], labels: Any, shards: Any) -> SplitInfo:
    return SplitInfo(count, tuple(label_counts), File(**labels), tuple(File(**f) for f in shards))


def files(manifest: Manifest) -> list[File]:
    splits = manifest.splits.values()
    return [manifest.statistics, *(file for s in splits for file in (s.labels, *s.shards))]


def load_arrays(path: Path) -> Any:
    """The array of a .npy file, or the arrays of a .npz file by name.

    What a damaged header says of an array's size is not believed: it could fill the memory.
    """
    try:
        if path.suffix == ".npy":
            return np.array(np.load(path, mmap_mode="r"))  # a file shorter than that is refused
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise ValueError("a checksum is wrong")
        return dict(np.load(path))
    except Exception as error:  # a damaged file makes numpy and zipfile raise almost anything
        raise damaged(path, first_line(error) or type(error).__name__) from error


def damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged ({what}); delete {path.parent} and prepare it again")


def write(path: Path, data: bytes) -> None:
    """All or nothing: a reader never sees half of a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        _to_disk(file)
    temporary.replace(path)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> File:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
        _to_disk(file)
    temporary.replace(path)
    return File(path.name, path.stat().st_size, 0)


def _to_disk(file: IO[bytes]) -> None:
    """Before a file gets its name its bytes must be there, lest a power cut leave it empty."""
    file.flush()
    os.fsync(file.fileno())


def content_hash(
    key: tuple[int, Format, Sequence[str]],
    digests: Mapping[str, Sequence[str]],
    labels: Mapping[str, np.ndarray],
    statistics: Mapping[str, np.ndarray],
) -> str:
    """Of size, format and classes, of each split's shards and labels, and of the statistics."""
    digest = hashlib.sha256(json.dumps([*key[:2], list(key[2])]).encode())
    for name, shards in digests.items():
        digest.update(json.dumps([name, list(shards)]).encode())
        digest.update(labels[name].tobytes())
    for array in statistics.values():
        digest.update(array.tobytes())
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
