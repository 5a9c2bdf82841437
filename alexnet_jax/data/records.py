"""The folder that ``prepare`` writes; the one module that knows its layout.

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
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self

import cv2
import numpy as np
import simplejpeg
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from alexnet_jax.errors import UserError
from alexnet_jax.terminal import progress_bar

Format = Literal["jpeg", "raw"]

VERSION = 1
MANIFEST = "manifest.json"
STATISTICS = "statistics.npz"
BEGUN = "begun.json"
SUFFIX = {"jpeg": "array_record", "raw": "raw"}


@dataclass(frozen=True)
class File:
    """One shard, or one file of labels or statistics: its name, size in bytes, pictures in it."""

    name: str
    bytes: int
    count: int


@dataclass(frozen=True)
class SplitInfo:
    """What the manifest says of one split."""

    count: int  # pictures
    label_counts: tuple[int, ...]  # pictures of each class
    labels: File
    shards: tuple[File, ...]


@dataclass(frozen=True)
class Manifest:
    """What a folder of records holds.

    Attributes:
      version: of the layout.
      source: what ``prepare --source`` got.
      format: 'jpeg' or 'raw'.
      size: side of the square pictures, pixels.
      classes: the classes' names; label i is ``classes[i]``.
      splits: by name: 'train', and 'validation' and 'test' where the source has them.
      skipped: "path: reason" of every picture left out by ``--skip-bad``.
      statistics: the file of the mean image and the colour covariance's eigenvectors.
      hash: SHA-256 of pictures, labels, classes, statistics, size and format. Two preparations with
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
    """Of the training pictures (§2, §4.1), on the scale of grey levels, 0 to 255.

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


# --- reading ----------------------------------------------------------------------------------


class Split:
    """The pictures and labels of one split.

    Attributes:
      labels: int32 [n].
      size: side of the pictures, pixels.
    """

    def __init__(self, folder: Path, manifest: Manifest, name: str):
        info = manifest.splits[name]
        self.size = manifest.size
        self.labels: np.ndarray = _load(folder / info.labels.name)
        if not _counts_are(self.labels, info):
            raise _damaged(folder / info.labels.name, "the manifest counts other labels")
        self._paths = [folder / file.name for file in info.shards]
        self._firsts = np.cumsum([0, *(file.count for file in info.shards)])
        self._open = _open_jpeg if manifest.format == "jpeg" else _open_raw
        self._shards: list[_Pictures | None] = [None] * len(self._paths)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, out: np.ndarray, top: int = 0, left: int = 0) -> None:
        """Fills `out` with the part of picture `index` that begins at row `top`, column `left`.

        Args:
          index: 0 to len - 1.
          out: uint8 [height, width, 3] in RGB; [size, size, 3] gets the whole picture.
          top: pixels.
          left: pixels.

        Any number of threads may read at once.

        Raises:
          UserError: the record is damaged; names its file and its place in it.
        """
        shard = int(np.searchsorted(self._firsts, index, side="right")) - 1
        place = index - int(self._firsts[shard])
        try:
            picture = self._shard(shard)(place)
            out[:] = picture[top : top + out.shape[0], left : left + out.shape[1]]
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise UserError(
                f"{self._paths[shard]}: record {place} cannot be read ({_first_line(error)}); "
                f"delete the folder and prepare it again"
            ) from error

    def _shard(self, shard: int) -> "_Pictures":
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


_Pictures = Callable[[int], np.ndarray]  # from a place in a shard to uint8 [size, size, 3]


def _open_jpeg(path: Path, size: int) -> _Pictures:
    reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")

    def read(place: int) -> np.ndarray:
        picture = simplejpeg.decode_jpeg(reader.read([place])[0], "RGB")
        if picture.shape != (size, size, 3):
            raise ValueError(f"its shape is {picture.shape}, not {(size, size, 3)}")
        return picture

    return read


def _open_raw(path: Path, size: int) -> _Pictures:
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
    manifest = _read_manifest(folder)
    for file in _files(manifest):
        there = (folder / file.name).stat().st_size if (folder / file.name).is_file() else None
        if there != file.bytes:
            wrong = "is missing" if there is None else f"has {there} bytes instead of {file.bytes}"
            raise UserError(f"{folder / file.name} {wrong}; delete {folder} and prepare it again")
    arrays = _load(folder / STATISTICS)
    try:
        return Records(folder, manifest, Statistics(**arrays))
    except TypeError as error:
        raise _damaged(folder / STATISTICS, _first_line(error)) from error


def verify(path: str | os.PathLike[str]) -> None:
    """Reads all that `path` holds and compares it with the hash in the manifest.

    Opening records does not: a picture of the raw format that has changed on disk is not noticed
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
    if _content_hash(key, digests, labels, arrays) != manifest.hash:
        raise UserError(f"{folder} is not what was prepared; delete it and prepare it again")


def _shard_digest(path: Path, count: int, format: Format) -> str:  # noqa: A002
    """SHA-256 of a shard's pictures, as `ShardWriter` made it."""
    if format == "raw":
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest, reader = hashlib.sha256(), ArrayRecordReader(str(path), "readahead_buffer_size:0")
    try:
        for place in range(count):
            digest.update(reader.read([place])[0])
    except (RuntimeError, ValueError, IndexError) as error:
        raise _damaged(path, _first_line(error)) from error
    return digest.hexdigest()


def _load(path: Path) -> Any:
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
        raise _damaged(path, _first_line(error) or type(error).__name__) from error


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged ({what}); delete {path.parent} and prepare it again")


def _why_unprepared(folder: Path) -> str:
    command = "python -m alexnet_jax.prepare --source={} --out=" + str(folder)
    if (folder / BEGUN).is_file():
        begun = Settings.load(folder)
        command = f"{command} --size={begun.size} --format={begun.format}".format(begun.source)
        return f"{folder} is only half prepared; to go on: {command}"
    return f"{folder} holds no records; to make them: {command.format('SOURCE')}"


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text())
        if values["version"] != VERSION:
            raise UserError(
                f"{path} is of layout {values['version']}, this program reads {VERSION}; "
                f"delete {folder} and prepare it again"
            )
        if values.pop("seal", None) not in (None, _seal(values)):  # older ones have none
            raise ValueError("it has changed since it was written")
        splits = {name: _split_info(**split) for name, split in values.pop("splits").items()}
        for key in ("classes", "skipped"):
            values[key] = tuple(values[key])
        return Manifest(**values | {"splits": splits, "statistics": File(**values["statistics"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {_first_line(error)}); "
            f"delete {folder} and prepare it again"
        ) from error


def _seal(values: Mapping[str, Any]) -> str:
    """A hash of a manifest's other values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _split_info(count: int, label_counts: list[int], labels: Any, shards: Any) -> SplitInfo:
    return SplitInfo(count, tuple(label_counts), File(**labels), tuple(File(**f) for f in shards))


def _files(manifest: Manifest) -> list[File]:
    splits = manifest.splits.values()
    return [manifest.statistics, *(file for s in splits for file in (s.labels, *s.shards))]


# --- writing ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What decides the content of a preparation, so that only the same one is gone on with.

    Attributes:
      source: what ``prepare --source`` got.
      size: side of the pictures, pixels.
      format: 'jpeg' or 'raw'.
      pictures: SHA-256 of the list of the source's pictures.
    """

    source: str
    size: int
    format: Format
    pictures: str

    @classmethod
    def load(cls, folder: Path) -> Self:
        try:
            return cls(**json.loads((folder / BEGUN).read_text()))
        except (ValueError, TypeError) as error:
            raise _damaged(folder / BEGUN, _first_line(error)) from error

    def begin(self, folder: Path) -> None:
        """Makes `folder`, or enters the one that an interrupted preparation left.

        Raises:
          UserError: the folder holds something else.
        """
        if not (folder / BEGUN).is_file():
            if folder.is_dir() and any(folder.iterdir()):
                raise UserError(f"{folder} is not empty and holds no records; choose another --out")
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / BEGUN, json.dumps(dataclasses.asdict(self)).encode())
            return
        begun = Settings.load(folder)
        for key, was in dataclasses.asdict(begun).items():
            now = getattr(self, key)
            if was != now:
                changed = f"--{key}={was}, not {now}" if key != "pictures" else "other pictures"
                raise UserError(
                    f"{folder} was begun with {changed}; delete it or choose another --out"
                )


@dataclass(frozen=True)
class Sums:
    """Exact sums over pictures, from which the statistics follow.

    Attributes:
      count: pictures.
      pixels: int64 [size, size, 3], the sum of the pictures.
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

    def __init__(self, folder: Path, settings: Settings, split: str, number: int):
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

    def add(self, picture: np.ndarray, label: int) -> None:
        """Appends `picture`, uint8 [size, size, 3]. The sums are of what is read back."""
        data = picture.tobytes()
        if self._jpeg:
            data = simplejpeg.encode_jpeg(
                np.ascontiguousarray(picture), 95, "RGB", colorsubsampling="444"
            )
            picture = simplejpeg.decode_jpeg(data, "RGB")
        self._file.write(data)
        self._hash.update(data)
        self._labels.append(label)
        self._pixels += picture
        # Exact: a picture's sums are whole numbers far below 2^53. With numpy's product the threads
        # would wait for each other.
        products = cv2.mulTransposed(picture.reshape(-1, 3), aTa=True, dtype=cv2.CV_64F)
        self._products += products.astype(np.int64)

    def skip(self, problem: str) -> None:
        """Notes that a picture is left out; `problem` is "path: reason"."""
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
        _write_arrays(self._part, arrays)
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
    sha256: str  # of its pictures
    part: Path

    @classmethod
    def load(cls, name: str, part: Path) -> "Shard":
        arrays = _load(part)
        file = File(name, int(arrays["bytes"]), len(arrays["labels"]))
        skipped = tuple(str(problem) for problem in arrays["skipped"])
        return cls(file, arrays["labels"], skipped, str(arrays["sha256"]), part)

    def sums(self) -> Sums:
        """Read when asked for: those of a whole large set would fill the memory."""
        with np.load(self.part) as arrays:
            return Sums(len(self.labels), arrays["pixels"], arrays["products"])


def finished_shard(folder: Path, settings: Settings, split: str, number: int) -> Shard | None:
    """The shard that an earlier run finished, if it did."""
    path, part = _shard_paths(folder, settings, split, number)
    if not part.is_file() or not path.is_file():
        return None
    try:
        shard = Shard.load(path.name, part)
    except (UserError, KeyError):
        return None  # it is written again
    return shard if path.stat().st_size == shard.file.bytes else None


def _shard_paths(folder: Path, settings: Settings, split: str, number: int) -> tuple[Path, Path]:
    """Of the pictures, and of the sums beside them."""
    name = f"{split}-{number:05d}"
    return folder / f"{name}.{SUFFIX[settings.format]}", folder / f"{name}.part.npz"


def finish(
    folder: Path,
    settings: Settings,
    classes: Sequence[str],
    shards: Mapping[str, Sequence[Shard]],
) -> Manifest:
    """Writes labels, statistics and, last, the manifest; then removes what only resuming needs.

    Args:
      folder: of the records.
      settings: with which they were made.
      classes: names.
      shards: of each split, in order; 'train' has at least one picture.
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
        statistics=_write_arrays(folder / STATISTICS, arrays),
        hash=_content_hash(
            (settings.size, settings.format, classes),
            {name: [shard.sha256 for shard in of] for name, of in shards.items()},
            {name: np.concatenate([s.labels for s in of]) for name, of in shards.items()},
            arrays,
        ),
    )
    values = json.loads(json.dumps(dataclasses.asdict(manifest)))
    sealed = values | {"seal": _seal(values)}
    _write(folder / MANIFEST, json.dumps(sealed, indent=1).encode())
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


def _content_hash(
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


def _write(path: Path, data: bytes) -> None:
    """All or nothing: a reader never sees half of a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        _to_disk(file)
    temporary.replace(path)


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> File:
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


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
