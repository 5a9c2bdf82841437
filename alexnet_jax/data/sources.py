"""Where pictures come from: folders, ILSVRC's tars, TFDS, CIFAR-10, or the program itself."""

import errno
import io
import itertools
import os
import pickle
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from alexnet_jax.data import generated
from alexnet_jax.errors import UserError
from alexnet_jax.terminal import progress_bar

SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
KINDS = "folder:PATH, ilsvrc2012:PATH, tfds:NAME, cifar10:PATH or generated"


class Example(NamedTuple):
    """A picture, as a file's bytes or as uint8 [height, width, 3] in RGB, and its label."""

    picture: bytes | np.ndarray
    label: int


class Split(Protocol):
    """Pictures in a fixed order, read when asked for, by any number of threads at once."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Where picture `index` is, in words that find it again."""
        ...

    def read(self, index: int) -> Example: ...


@dataclass(frozen=True)
class Source:
    """Splits by name ('train', and perhaps 'validation' and 'test') and the classes' names."""

    classes: tuple[str, ...]
    splits: Mapping[str, Split]


def open_source(spec: str, size: int) -> Source:
    """The source that ``--source`` names.

    folder:PATH: PATH/SPLIT/CLASS/PICTURE. SPLIT is train, val, valid, validation or test; the
    classes are train's folders, sorted.

    ilsvrc2012:PATH: PATH holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, which are read
    without unpacking; or train/WNID/*.JPEG and val/*.JPEG or val/WNID/*.JPEG; or WNID/*.JPEG, which
    are training pictures only. Labels are always those of the 1000 classes, by their sorted WNIDs.

    tfds:NAME or tfds:NAME@DATA_DIR: an image classification set of TensorFlow Datasets. It is
    looked for, and made if need be, in DATA_DIR (else TFDS_DATA_DIR, else ~/tensorflow_datasets);
    what it needs by hand goes to DATA_DIR/downloads/manual. Reading it does not need TensorFlow;
    making some, such as imagenet2012, does.

    cifar10:PATH: the original's python or binary version, its folder or its tar.gz.

    generated or generated:COUNT: ten classes, drawn at `size`; COUNT training pictures (4096).

    Args:
      spec: one of these.
      size: side of the pictures that will be made, in pixels.

    Raises:
      UserError: there is no such source, or no training split in it, or it is damaged.
    """
    kind, _, rest = spec.partition(":")
    if kind == "generated":
        return _generated(rest, size)
    readers: dict[str, Callable[[str], Source]] = {
        "folder": _folder,
        "ilsvrc2012": _ilsvrc2012,
        "tfds": _tfds,
        "cifar10": _cifar10,
    }
    if kind not in readers or not rest:
        raise UserError(f"--source={spec}: a source is {KINDS}")
    source = readers[kind](rest)
    if "train" not in source.splits:
        there = ", ".join(source.splits) or "none"
        raise UserError(f"--source={spec} has no split 'train' (found: {there})")
    return source


# --- pictures in files ------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """Pictures in files of their own."""

    root: Path
    paths: Sequence[str]  # below root
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.root / self.paths[index])

    def read(self, index: int) -> Example:
        """Raises ValueError where there is only a link that leads nowhere."""
        try:
            data = (self.root / self.paths[index]).read_bytes()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):
                raise ValueError("is a link that leads nowhere") from error
            raise
        return Example(data, int(self.labels[index]))


def _folder(path: str) -> Source:
    root = _existing_folder(path, "folder")
    found: dict[str, Path] = {}
    for folder in _subfolders(root):
        split = SPLITS.get(folder.name)
        if split in found:
            raise UserError(f"{found[split]} and {folder} are both the {split} split; remove one")
        if split is not None:
            found[split] = folder
    if "train" not in found:
        raise UserError(f"{root} has no folder train; it must hold train/CLASS/PICTURE")
    classes = tuple(folder.name for folder in _subfolders(found["train"]))
    if not classes:
        raise UserError(f"{found['train']} has no folders; it must hold one for each class")
    order = [split for split in ("train", "validation", "test") if split in found]
    return Source(classes, {split: _class_folders(found[split], classes) for split in order})


def _class_folders(root: Path, classes: Sequence[str]) -> Files:
    """The pictures of root/CLASS/PICTURE, classes and pictures in the order of their names."""
    numbers = {name: label for label, name in enumerate(classes)}
    paths, labels = [], []
    for folder in _subfolders(root):
        if folder.name not in numbers:
            raise UserError(f"{folder} is a class that the training split does not have")
        names = _pictures(folder)
        paths += [f"{folder.name}/{name}" for name in names]
        labels += [numbers[folder.name]] * len(names)
    return Files(root, paths, np.array(labels, np.int32))


def _pictures(folder: Path) -> list[str]:
    """The names of all files in `folder` that are not hidden, sorted."""
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in shown:
        if os.path.isdir(entry.path):  # a link that leads nowhere is none
            raise UserError(f"{entry.path} is a folder where a picture should be")
    return sorted(entry.name for entry in shown)


def _subfolders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _existing_folder(path: str, kind: str) -> Path:
    if not Path(path).is_dir():
        raise UserError(f"--source={kind}:{path}: there is no folder {path}")
    return Path(path)


# --- ILSVRC-2012 ------------------------------------------------------------------------------

TRAIN_TAR, VALIDATION_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_WNID = re.compile(r"n\d{8}")
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


class _Member(NamedTuple):
    """One picture in a tar."""

    name: str
    start: int
    bytes: int
    label: int


class Tar:
    """Pictures in a tar, read at their place in it."""

    def __init__(self, path: Path, members: Sequence[_Member]):
        self._path = path
        self._members = members

    def __len__(self) -> int:
        return len(self._members)

    def name(self, index: int) -> str:
        return f"{self._path}/{self._members[index].name}"

    def read(self, index: int) -> Example:
        _, start, count, label = self._members[index]
        with self._path.open("rb") as file:
            file.seek(start)
            return Example(file.read(count), label)


def _ilsvrc2012(path: str) -> Source:
    root = _existing_folder(path, "ilsvrc2012")
    wnids = _ilsvrc2012_text("labels.txt")
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    splits: dict[str, Split] = {}
    if (root / TRAIN_TAR).is_file():
        splits["train"] = Tar(root / TRAIN_TAR, _train_members(root / TRAIN_TAR, labels))
    elif (root / "train").is_dir():
        splits["train"] = _wnid_folders(root / "train", wnids)
    elif any(_WNID.fullmatch(folder.name) for folder in _subfolders(root)):
        return Source(wnids, {"train": _wnid_folders(root, wnids)})
    if (root / VALIDATION_TAR).is_file():
        members = _validation_members(root / VALIDATION_TAR, labels)
        splits["validation"] = Tar(root / VALIDATION_TAR, members)
    elif (root / "val").is_dir():
        splits["validation"] = _validation_folder(root / "val", wnids)
    if not splits:
        raise UserError(
            f"{root} holds neither {TRAIN_TAR} nor train/WNID/*.JPEG; "
            f"download ILSVRC-2012 from https://image-net.org and give the folder of its tars"
        )
    return Source(wnids, splits)


def _ilsvrc2012_text(name: str) -> tuple[str, ...]:
    """The lines of a text that TFDS carries: the sorted WNIDs, or the validation set's WNIDs."""
    spec = util.find_spec("tensorflow_datasets")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0], "datasets", "imagenet2012", name)
    return tuple(path.read_text().split())


def _wnid_folders(root: Path, wnids: Sequence[str]) -> Files:
    for folder in _subfolders(root):
        if folder.name not in wnids:
            raise UserError(
                f"{folder} is none of ILSVRC-2012's 1000 classes; other sets: --source=folder:PATH"
            )
    return _class_folders(root, wnids)


def _validation_folder(root: Path, wnids: Sequence[str]) -> Files:
    if _subfolders(root):
        return _wnid_folders(root, wnids)
    names = _pictures(root)
    labels = _validation_labels(names, root, {wnid: label for label, wnid in enumerate(wnids)})
    return Files(root, names, np.array(labels, np.int32))


def _validation_labels(names: Sequence[str], where: Path, labels: Mapping[str, int]) -> list[int]:
    """By the number in the name: no part of the set can be given another part's labels."""
    truth = _ilsvrc2012_text("validation_labels.txt")
    found = []
    for name in names:
        match = _VALIDATION_NAME.fullmatch(name)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(truth):
            raise UserError(
                f"{where}/{name} is not called ILSVRC2012_val_00000001.JPEG or the like"
            )
        found.append(labels[truth[number - 1]])
    return found


def _validation_members(path: Path, labels: Mapping[str, int]) -> list[_Member]:
    with path.open("rb") as file:
        members = sorted(_tar_files(path, file), key=lambda member: Path(member.name).name)
    names = [Path(member.name).name for member in members]
    found = _validation_labels(names, path, labels)
    return [
        _Member(name, member.offset_data, member.size, label)
        for name, member, label in zip(names, members, found, strict=True)
    ]


def _train_members(path: Path, labels: Mapping[str, int]) -> list[_Member]:
    """From the tar of a tar for each class; a tar in a tar is read from where its bytes begin."""
    members = []
    with path.open("rb") as file, progress_bar(1000, f"index of {path.name}", "classes") as bar:
        for inner in sorted(_tar_files(path, file), key=lambda member: member.name):
            wnid = Path(inner.name).stem
            if wnid not in labels:
                raise UserError(f"{path}/{inner.name} is none of ILSVRC-2012's 1000 classes")
            file.seek(inner.offset_data)
            members += [
                _Member(f"{wnid}/{picture.name}", picture.offset_data, picture.size, labels[wnid])
                for picture in sorted(_tar_files(path, file), key=lambda member: member.name)
            ]
            bar.update()
    return members


def _tar_files(path: Path, file: Any) -> Iterator[tarfile.TarInfo]:
    """The files in the tar that begins where `file`, the open `path`, stands."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            yield from (member for member in tar if member.isfile())
            # tarfile takes a header that it cannot read for the end; the true end is zeros.
            file.seek(tar.offset)
            if file.read(512) != bytes(512):
                raise tarfile.ReadError(f"no end where it should be, at byte {tar.offset}")
    except tarfile.TarError as error:
        raise UserError(f"{path} is damaged or half downloaded ({error}); get it again") from error


# --- arrays: CIFAR-10 and the generated set -----------------------------------------------------

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@dataclass(frozen=True)
class Arrays:
    """Pictures in memory."""

    where: str
    images: np.ndarray  # uint8 [n, height, width, 3]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return f"{self.where}[{index}]"

    def read(self, index: int) -> Example:
        return Example(self.images[index], int(self.labels[index]))


@dataclass(frozen=True)
class Drawn:
    """Pictures of the generated set; picture i has class i modulo 10."""

    count: int
    split: int  # 0: train, 1: validation
    size: int

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"generated[{self.split}, {index}]"

    def read(self, index: int) -> Example:
        label = index % len(generated.CLASSES)
        return Example(generated.draw((self.split, index), label, self.size), label)


def _generated(count: str, size: int) -> Source:
    if count and not (count.isdecimal() and int(count)):
        raise UserError(f"--source=generated:{count}: give a number of pictures, as generated:4096")
    train = Drawn(int(count or generated.TRAIN), 0, size)
    validation = Drawn(generated.VALIDATION, 1, size)
    return Source(generated.CLASSES, {"train": train, "validation": validation})


def _cifar10(path: str) -> Source:
    found = dict(_cifar10_files(Path(path)))
    numbers = range(1, 6)
    for suffix, decode in (("", _cifar10_python), (".bin", _cifar10_binary)):
        parts = {
            "train": [f"data_batch_{number}{suffix}" for number in numbers],
            "test": [f"test_batch{suffix}"],
        }
        if not found.keys() >= set(itertools.chain(*parts.values())):
            continue
        splits: dict[str, Split] = {}
        for split, names in parts.items():
            decoded = [decode(name, found[name]()) for name in names]
            images, labels = (np.concatenate(each) for each in zip(*decoded, strict=True))
            splits[split] = Arrays(f"{path}/{split}", images, labels)
        return Source(CIFAR10_CLASSES, splits)
    raise UserError(
        f"--source=cifar10:{path} must be cifar-10-python.tar.gz, cifar-10-binary.tar.gz, "
        f"or the folder with data_batch_1 to 5 and test_batch (or .bin) that is in it"
    )


def _cifar10_files(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The names of the files in a folder or a tar, and what reads them."""
    if path.is_dir():
        for file in path.iterdir():
            yield file.name, file.read_bytes
    elif path.is_file():
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    inner = tar.extractfile(member)
                    if inner is not None:
                        yield Path(member.name).name, io.BytesIO(inner.read()).getvalue
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(
                f"{path} is damaged or half downloaded ({error}); get it again"
            ) from error


def _cifar10_binary(name: str, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    if not data or len(data) % 3073:
        raise UserError(f"{name} has {len(data)} bytes, no multiple of 3073: it is damaged")
    rows = np.frombuffer(data, np.uint8).reshape(-1, 3073)
    return _cifar10_arrays(name, rows[:, 1:], rows[:, 0])


def _cifar10_python(name: str, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
        return _cifar10_arrays(name, batch[b"data"], np.array(batch[b"labels"]))
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{name} is no batch of CIFAR-10 ({error}); get it again") from error


def _cifar10_arrays(
    name: str, pixels: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both versions store a picture as all red, then all green, then all blue pixels."""
    if labels.max() >= len(CIFAR10_CLASSES):
        raise UserError(
            f"{name} has label {labels.max()}, but the classes are 0 to 9: it is damaged"
        )
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.int32)


class _ArrayUnpickler(pickle.Unpickler):
    """A pickle can run anything; this one may only make numpy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # its name when CIFAR-10 was written
        allowed = {
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


# --- TensorFlow Datasets ------------------------------------------------------------------------


@dataclass(frozen=True)
class Tfds:
    """One split of a TFDS set; pictures come as the files that TFDS stored."""

    where: str
    data: Any  # a random access data source
    picture_key: str
    label_key: str

    def __len__(self) -> int:
        return len(self.data)

    def name(self, index: int) -> str:
        return f"{self.where}[{index}]"

    def read(self, index: int) -> Example:
        example = self.data[index]
        return Example(example[self.picture_key], int(example[self.label_key]))


def _tfds(spec: str) -> Source:
    import tensorflow_datasets as tfds

    name, _, place = spec.partition("@")
    where, data_dir = f"--source=tfds:{name}", place or None
    with _tfds_errors(where):
        builder = tfds.builder(name, data_dir=data_dir)
    features = builder.info.features
    picture, label = (builder.info.supervised_keys or ("image", "label"))[:2]
    kinds = {picture: tfds.features.Image, label: tfds.features.ClassLabel}
    if not all(key in features and isinstance(features[key], kinds[key]) for key in kinds):
        raise UserError(f"{where} is not a set of pictures with one label each")
    with _tfds_errors(where):
        if not builder.is_prepared():
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
    stored = builder.info.file_format
    if stored is None or stored.value not in {"array_record", "parquet"}:
        raise UserError(
            f"{where} lies in {builder.data_path} as {stored and stored.value}, "
            f"which has no random access; have it made elsewhere: tfds:{name}@DATA_DIR"
        )
    splits: dict[str, Split] = {}
    for theirs, ours in SPLITS.items():
        if theirs not in builder.info.splits:
            continue
        data = builder.as_data_source(theirs, decoders={picture: tfds.decode.SkipDecoding()})
        split = Tfds(f"{builder.info.full_name}/{theirs}", data, picture, label)
        if len(split) and split.read(0).label >= 0:  # -1: the labels were never published
            splits[ours] = split
    return Source(tuple(builder.info.features[label].names), splits)


@contextmanager
def _tfds_errors(where: str) -> Iterator[None]:
    """In one line, what TFDS says in many."""
    from tensorflow_datasets.core import DatasetNotFoundError

    try:
        yield
    except DatasetNotFoundError as error:
        raise UserError(f"{where}: TFDS has no set of this name") from error
    except ImportError as error:
        package = "tensorflow-cpu" if error.name in {None, "tensorflow"} else error.name
        raise UserError(
            f"{where}: TFDS needs another package to make this set; pip install {package}, "
            f"or read ImageNet's tars with --source=ilsvrc2012:PATH"
        ) from error
    except (AssertionError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: TFDS could not make this set: {reason}") from error
