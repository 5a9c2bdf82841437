"""Image files in one folder for each class."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from alexnet_jax.data.sources.source import SPLITS, Example, Source, SourceSplit
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
    found: dict[str, Path] = {}
    for name, split in SPLITS.items():
        if (root / name).is_dir():
            if split in found:
                both = f"{found[split]} and {root / name}"
                raise UserError(f"{both} are both the {split} split; remove one")
            found[split] = root / name
    if "train" not in found:
        raise UserError(f"{root} has no folder train; it must hold train/CLASS/IMAGE")
    classes = tuple(folder.name for folder in subfolders(found["train"]))
    if not classes:
        raise UserError(f"{found['train']} has no folders; it must hold one for each class")
    why = "is a class that the training split does not have"
    return Source(classes, {split: class_folders(found[split], classes, why) for split in found})


def class_folders(root: Path, classes: Sequence[str], why: str) -> SourceSplit:
    """The images of root/CLASS/IMAGE, sorted by class and name; `why` other classes are refused."""
    return image_files(root, *class_paths(root, classes, why))


def class_paths(root: Path, classes: Sequence[str], why: str) -> tuple[list[str], list[int]]:
    """Paths below `root` and labels of the images of `class_folders`."""
    paths, labels = [], []
    numbers = {name: number for number, name in enumerate(classes)}
    for folder in subfolders(root):
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
