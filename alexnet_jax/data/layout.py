"""The files in a folder of records; no other module knows their layout.

    manifest.json                    what the folder holds; written last: it marks a complete folder
    statistics.npz                   mean image, eigenvalues and eigenvectors of the training pixels
    SPLIT-labels.npy                 int32 [n]
    SPLIT-00000.array_record ...     'jpeg': one JPEG (quality 95, 4:4:4) in each record
    SPLIT-00000.raw ...              'raw': uint8 [n, size, size, 3], to be memory-mapped

While `prepare` runs, it holds a lock on ``lock``, ``begun.json`` has its options, and beside each
finished shard lies ``SPLIT-00000.part.npz`` with the shard's labels and exact sums. All sums are
integers, so the statistics do not depend on the order of the images, the number of threads, or
interruptions.
"""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Float64, Int32
from pydantic import TypeAdapter

from alexnet_jax.config import Resize
from alexnet_jax.runtime.checksum import json_checksum
from alexnet_jax.runtime.errors import UserError, system_reason
from alexnet_jax.runtime.files import make_folder, unfinished, write_text

Format = Literal["jpeg", "raw"]

VERSION = 2
OLD = {1: "the squares were cut before scaling, as version 0.1 did"}
"""Earlier versions that can be read, and how their images differ."""

MANIFEST = "manifest.json"
STATISTICS = "statistics.npz"
BEGUN = "begun.json"
LOCK = "lock"
_SUFFIX = {"jpeg": "array_record", "raw": "raw"}


@dataclass(frozen=True)
class File:
    """A shard, or a file of labels or statistics: its name, its size in bytes, images in it."""

    name: str
    bytes: int
    count: int


@dataclass(frozen=True)
class SplitInfo:
    """What the manifest says about one split."""

    count: int  # images
    label_counts: tuple[int, ...]  # images of each class
    labels: File
    shards: tuple[File, ...]


@dataclass(frozen=True)
class Manifest:
    """What a folder of records holds.

    Attributes:
      version: of the layout and of the way in which images are scaled and cut; see `OLD`.
      source: the value of ``prepare --source``.
      format: 'jpeg' or 'raw'.
      size: side of the square images, pixels.
      resize: how they became squares, see `images.square`.
      classes: the classes' names; label i is ``classes[i]``.
      splits: by name: 'train', and 'validation' and 'test' if the source has them.
      skipped: "path: reason" of every image left out by ``--skip-bad``.
      statistics: the file of the mean image and the colour covariance's eigenvectors.
      hash: SHA-256 of images, labels, classes, statistics, size and format. Records with the same
        hash give the same training.
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
    resize: Resize = "area"  # manifests of version 0.1 do not say it

    def note(self) -> str:
        """How the images of an earlier version differ; "" for those of this one."""
        if self.version == VERSION:
            return ""
        return f"layout {self.version}: {OLD[self.version]}"

    def files(self) -> list[File]:
        """All files but the manifest itself."""
        splits = self.splits.values()
        return [self.statistics, *(file for s in splits for file in (s.labels, *s.shards))]


@dataclass(frozen=True)
class Statistics:
    """Of the training images (§2, §4.1), in grey levels, 0 to 255.

    Attributes:
      mean: the mean image.
      eigenvalues: of the covariance of the pixels' RGB values, descending; grey levels squared.
      eigenvectors: column i belongs to ``eigenvalues[i]``. Its sign is chosen so that its largest
        component is positive.
    """

    mean: Float32[np.ndarray, "size size 3"]
    eigenvalues: Float64[np.ndarray, " 3"]
    eigenvectors: Float64[np.ndarray, "3 3"]


@dataclass(frozen=True)
class PrepareOptions:
    """The options of `prepare` that decide what the records contain; see `Manifest`."""

    source: str
    size: int
    format: Format
    resize: Resize = "area"

    def require_same(self, folder: Path, state: str, values: Mapping[str, Any]) -> None:
        """Raises UserError if `folder` was `state` ('begun', 'prepared') with other `values`."""
        for key, value in dataclasses.asdict(self).items():
            if values[key] != value:
                raise UserError(
                    f"{folder} was {state} with --{key}={values[key]}, not {value}; "
                    f"delete it or choose another folder"
                )


def begin(folder: Path, options: PrepareOptions, images: str) -> None:
    """Creates `folder` and its begun.json, or checks the begun.json of an interrupted run.

    Args:
      folder: of the records.
      options: of this run.
      images: a hash of the list of the source's images.

    Raises:
      UserError: the folder was begun with other options or images, or holds something else.
    """
    # The key 'pictures' has its name since 0.1.
    values = dataclasses.asdict(options) | {"pictures": images, "version": VERSION}
    if (folder / BEGUN).is_file():
        begun = read_begun(folder)
        options.require_same(folder, "begun", begun)
        if begun != values:
            raise UserError(
                f"{folder} was begun with other images; delete it or choose another folder"
            )
        return
    refuse_other_files(folder)
    make_folder(folder)
    write_json(folder / BEGUN, values)


def refuse_other_files(folder: Path) -> None:
    """Raises UserError if `folder` holds something else than records, finished or begun."""
    ours = any((folder / name).exists() for name in (BEGUN, MANIFEST))
    early = {LOCK, unfinished(folder / BEGUN).name}
    if not ours and folder.is_dir() and {path.name for path in folder.iterdir()} - early:
        raise UserError(f"{folder} is not empty and holds no records; choose another folder")


def read_begun(folder: Path) -> dict[str, Any]:
    """The values in begun.json: those of `PrepareOptions`, the hash of the list of images, and the
    version of the layout."""
    with refuse_damage(folder / BEGUN):
        values = {"resize": "area"} | json.loads((folder / BEGUN).read_text())
        if values.keys() - {"version"} != {"source", "size", "format", "resize", "pictures"}:
            raise ValueError(f"it has the keys {', '.join(values)}")
        if values.get("version", 1) != VERSION:  # 1 was not written
            raise UserError(
                f"{folder} was begun by another version of this program, whose images differ; "
                f"delete it and prepare it again"
            )
        return values


def shard_path(folder: Path, format: Format, split: str, number: int) -> Path:  # noqa: A002
    return folder / f"{split}-{number:05d}.{_SUFFIX[format]}"


def part_path(shard: Path) -> Path:
    """The file of a shard's labels and sums."""
    return shard.with_suffix(".part.npz")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    values = dataclasses.asdict(manifest)
    write_json(folder / MANIFEST, values | {"seal": json_checksum(values)}, indent=1)


def read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    with refuse_damage(path):
        values = json.loads(path.read_text())
        if values["version"] not in (*OLD, VERSION):
            raise UserError(
                f"{path} has layout {values['version']}, this program reads layouts 1 and "
                f"{VERSION}; delete {folder} and prepare it again"
            )
        if values.pop("seal", None) != json_checksum(values):
            raise ValueError("it has changed since it was written")
        return TypeAdapter(Manifest).validate_python(values)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a .npz file, by name."""
    with refuse_damage(path), zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise ValueError("a checksum is wrong")
        return dict(np.load(path))


@contextmanager
def refuse_damage(path: Path) -> Iterator[None]:
    """Turns an error while `path` is read into a UserError that says what to do."""
    try:
        yield
    except (UserError, PermissionError):
        raise
    except Exception as error:  # a damaged file makes numpy and zipfile raise almost anything
        if words := system_reason(error):
            raise UserError(
                f"{path} cannot be read: {words}; fix this, and run the same command again"
            ) from error
        reason = first_line(error) or type(error).__name__
        raise UserError(
            f"{path} is damaged ({reason}); delete {path.parent} and prepare it again"
        ) from error


def write_json(path: Path, values: Mapping[str, Any], indent: int | None = None) -> None:
    write_text(path, json.dumps(values, indent=indent))


def content_hash(
    manifest: Manifest,
    shards: Mapping[str, Sequence[str]],
    labels: Mapping[str, Int32[np.ndarray, " n"]],
    statistics: Statistics,
) -> str:
    """`Manifest.hash`; `shards` are the hashes of each split's shards."""
    options = [manifest.size, manifest.format, list(manifest.classes)]
    digest = hashlib.sha256(json.dumps(options).encode())
    for name, hashes in shards.items():
        digest.update(json.dumps([name, list(hashes)]).encode())
        digest.update(labels[name].tobytes())
    for array in vars(statistics).values():
        digest.update(array.tobytes())
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
