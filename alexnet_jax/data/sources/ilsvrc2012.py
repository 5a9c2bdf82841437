"""ILSVRC-2012, as its tars, which are read without unpacking, or as folders."""

import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alexnet_jax.data.sources.files import (
    Files,
    class_folders,
    existing_folder,
    image_names,
    subfolders,
)
from alexnet_jax.data.sources.source import Example, Source, Split
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.terminal import progress_bar

TRAIN_TAR, VALIDATION_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_WNID = re.compile(r"n\d{8}")
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


class _Member(NamedTuple):
    """One image in a tar."""

    name: str
    start: int
    bytes: int
    label: int


class Tar:
    """Images in a tar, read at their place in it."""

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


def open_ilsvrc2012(path: str) -> Source:
    """The source of ``ilsvrc2012:PATH``."""
    root = existing_folder(path, "ilsvrc2012")
    wnids = _text("labels.txt")
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    splits: dict[str, Split] = {}
    if (root / TRAIN_TAR).is_file():
        splits["train"] = Tar(root / TRAIN_TAR, _train_members(root / TRAIN_TAR, labels))
    elif (root / "train").is_dir():
        splits["train"] = _wnid_folders(root / "train", wnids)
    elif any(_WNID.fullmatch(folder.name) for folder in subfolders(root)):
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


def _text(name: str) -> tuple[str, ...]:
    """The lines of a text that TFDS carries: the sorted WNIDs, or the validation set's WNIDs."""
    spec = util.find_spec("tensorflow_datasets")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0], "datasets", "imagenet2012", name)
    return tuple(path.read_text().split())


def _wnid_folders(root: Path, wnids: Sequence[str]) -> Files:
    for folder in subfolders(root):
        if folder.name not in wnids:
            raise UserError(
                f"{folder} is none of ILSVRC-2012's 1000 classes; other sets: --source=folder:PATH"
            )
    return class_folders(root, wnids)


def _validation_folder(root: Path, wnids: Sequence[str]) -> Files:
    if subfolders(root):
        return _wnid_folders(root, wnids)
    names = image_names(root)
    labels = _validation_labels(names, root, {wnid: label for label, wnid in enumerate(wnids)})
    return Files(root, names, np.array(labels, np.int32))


def _validation_labels(names: Sequence[str], where: Path, labels: Mapping[str, int]) -> list[int]:
    """By the number in the name: no part of the set can be given another part's labels."""
    truth = _text("validation_labels.txt")
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
                _Member(f"{wnid}/{image.name}", image.offset_data, image.size, labels[wnid])
                for image in sorted(_tar_files(path, file), key=lambda member: member.name)
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
