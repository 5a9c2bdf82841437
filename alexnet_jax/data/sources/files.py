"""Image files in one folder for each class."""

import dataclasses
import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from alexnet_jax.data.sources.source import SPLITS, Example, Source, SourceSplit, hold_out
from alexnet_jax.data.sources.unknown import IMAGES, refuse_other_sets, unknown
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.files import named


def image_files(root: Path, paths: Sequence[str], labels: Sequence[int]) -> SourceSplit:
    """Images in files of their own, with `paths` below `root`."""

    def read(index: int) -> Example:
        try:
            with named(root / paths[index]):
                return Example((root / paths[index]).read_bytes(), labels[index])
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):
                raise ValueError("is a link that leads nowhere") from error
            raise

    return SourceSplit(len(paths), lambda index: str(root / paths[index]), read)


def open_folder(path: str) -> Source:
    """The source of ``folder:PATH``."""
    root = existing_folder(path, "folder")
    refuse_other_sets(root)
    found = split_folders(root)
    if found and "train" not in found:
        there = ", ".join(folder.name for folder in found.values())
        raise UserError(f"{root} has no folder train beside {there}; add train/CLASS/IMAGE")
    train = found.get("train", root)
    classes = tuple(folder.name for folder in _class_folders(train))
    check_names(train, classes)
    paths, labels = class_paths(train, classes)
    if empty := set(range(len(classes))) - set(labels):
        raise UserError(f"{train / classes[min(empty)]} has no images; add some, or remove it")
    images = image_files(train, paths, labels)
    if set(found) - {"train"}:
        return Source(classes, {"train": images} | _other_splits(found, classes))
    source = hold_out(images, labels, paths, classes)
    direct = sum(one.suffix.lower() in IMAGES and one.is_file() for one in train.iterdir())
    if direct:
        note = f"{source.note}; {direct:,} images directly in {train} are left out"
        return dataclasses.replace(source, note=note)
    return source


def _class_folders(root: Path) -> list[Path]:
    """The folders in `root`. UserError: there are none."""
    if not (folders := subfolders(root)):
        raise unknown(root, "CLASS/IMAGE, a folder of images for each class")
    return folders


def _other_splits(found: Mapping[str, Path], classes: Sequence[str]) -> dict[str, SourceSplit]:
    """All but the training split."""
    splits, why = {}, "is a class that the training split does not have"
    for split, folder in found.items():
        if split != "train":
            splits[split] = image_files(
                folder, *class_paths(folder, classes, why, _class_folders(folder))
            )
    return splits


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits in `root`. UserError: two are the same split."""
    found: dict[str, Path] = {}
    for name, split in SPLITS.items():
        if (root / name).is_dir():
            if split in found:
                both = f"{found[split]} and {root / name}"
                raise UserError(f"{both} are both the {split} split; remove one")
            found[split] = root / name
    return found


def check_names(root: Path, names: Iterable[str]) -> None:
    """Raises UserError if two classes' names are equal but for their case."""
    seen: dict[str, str] = {}
    for name in sorted(names):
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise UserError(
                f"{root} has the classes {other!r} and {name!r}, which differ only in case; "
                f"merge them, or rename one"
            )


def class_folders(root: Path, classes: Sequence[str], why: str) -> SourceSplit:
    """The images of root/CLASS/IMAGE, sorted by class and name; `why` other classes are refused."""
    return image_files(root, *class_paths(root, classes, why))


def class_paths(
    root: Path, classes: Sequence[str], why: str = "", folders: Sequence[Path] | None = None
) -> tuple[list[str], list[int]]:
    """Paths below `root` and labels of the images of `class_folders`; `folders`: only of these."""
    paths, labels = [], []
    numbers = {name: number for number, name in enumerate(classes)}
    for folder in subfolders(root) if folders is None else folders:
        if folder.name not in numbers:
            raise UserError(f"{folder} {why}")
        names = image_names(folder)
        paths += [f"{folder.name}/{name}" for name in names]
        labels += [numbers[folder.name]] * len(names)
    return paths, labels


def image_names(folder: Path) -> list[str]:
    """The names of all files in `folder` that are not hidden, sorted."""
    names = []
    with os.scandir(folder) as entries:  # which knows what a folder is without asking the disk
        for entry in entries:
            if entry.name.startswith("."):
                continue
            is_link = entry.is_symlink()  # it may be a loop
            if os.path.isdir(entry) if is_link else entry.is_dir():
                raise UserError(f"{folder / entry.name} is a folder where an image should be")
            names.append(entry.name)
    return sorted(names)


def subfolders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def existing_folder(path: str, kind: str) -> Path:
    if not Path(path).is_dir():
        raise UserError(f"--source={kind}:{path}: there is no folder {path}")
    return Path(path)
