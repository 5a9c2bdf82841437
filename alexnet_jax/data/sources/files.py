"""Image files in one folder for each class."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alexnet_jax.data.sources.source import SPLITS, Example, Source
from alexnet_jax.runtime.errors import UserError


@dataclass(frozen=True)
class Files:
    """Images in files of their own."""

    root: Path
    paths: Sequence[str]  # below root
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.root / self.paths[index])

    def read(self, index: int) -> Example:
        """Raises ValueError for a symbolic link without a target."""
        try:
            return Example((self.root / self.paths[index]).read_bytes(), self.labels[index])
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):
                raise ValueError("is a link that leads nowhere") from error
            raise


def open_folder(path: str) -> Source:
    """The source of ``folder:PATH``."""
    root = existing_folder(path, "folder")
    found: dict[str, Path] = {}
    for folder in subfolders(root):
        split = SPLITS.get(folder.name)
        if split in found:
            raise UserError(f"{found[split]} and {folder} are both the {split} split; remove one")
        if split is not None:
            found[split] = folder
    if "train" not in found:
        raise UserError(f"{root} has no folder train; it must hold train/CLASS/IMAGE")
    classes = tuple(folder.name for folder in subfolders(found["train"]))
    if not classes:
        raise UserError(f"{found['train']} has no folders; it must hold one for each class")
    order = [split for split in ("train", "validation", "test") if split in found]
    return Source(classes, {split: class_folders(found[split], classes) for split in order})


def class_folders(root: Path, classes: Sequence[str]) -> Files:
    """The images of root/CLASS/IMAGE, sorted by class and name."""
    numbers = {name: label for label, name in enumerate(classes)}
    paths, labels = [], []
    for folder in subfolders(root):
        if folder.name not in numbers:
            raise UserError(f"{folder} is a class that the training split does not have")
        names = image_names(folder)
        paths += [f"{folder.name}/{name}" for name in names]
        labels += [numbers[folder.name]] * len(names)
    return Files(root, paths, labels)


def image_names(folder: Path) -> list[str]:
    """The names of all files in `folder` that are not hidden, sorted."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    for name in names:
        if os.path.isdir(folder / name):
            raise UserError(f"{folder / name} is a folder where an image should be")
    return names


def subfolders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def existing_folder(path: str, kind: str) -> Path:
    if not Path(path).is_dir():
        raise UserError(f"--source={kind}:{path}: there is no folder {path}")
    return Path(path)
