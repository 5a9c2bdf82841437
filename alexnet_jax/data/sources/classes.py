"""One folder or tar for each class, without splits: some images of each class are held out."""

from pathlib import Path

import numpy as np

from alexnet_jax.data.sources import files
from alexnet_jax.data.sources.source import Source, SourceSplit, chosen, joined
from alexnet_jax.data.sources.tars import Member, images_in, tar_files
from alexnet_jax.data.sources.unknown import SHARDS, unknown
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.terminal import progress_bar


def open_classes(rest: str) -> Source:
    """The source of ``classes:PATH@N``."""
    path, at, every = rest.rpartition("@")
    if not at or not every.isdecimal() or int(every) < 2:
        raise UserError(
            f"--source=classes:{rest}: say how many images of a class are held out for validation, "
            f"as classes:PATH@2 for every second"
        )
    root = files.existing_folder(path, "classes")
    found = folders_and_tars(root)
    if not found:
        raise unknown(root, "CLASS/IMAGE or CLASS.tar")
    files.check_names(root, found)
    splits: dict[str, list[SourceSplit]] = {"train": [], "validation": []}
    classes = sorted(found)
    with progress_bar(len(classes), f"index of {root}", "classes", leave=False) as bar:
        for label, name in enumerate(classes):
            images = images_of(found[name], label)
            held_out = np.arange(images.count) % int(every) == int(every) - 1
            splits["train"].append(chosen(images, np.flatnonzero(~held_out)))
            splits["validation"].append(chosen(images, np.flatnonzero(held_out)))
            bar.update()
    return Source(tuple(classes), {name: joined(parts) for name, parts in splits.items()})


def folders_and_tars(root: Path) -> dict[str, Path]:
    """The folders and tars in `root` by the names of their classes. UserError: a class has both."""
    found = {folder.name: folder for folder in files.subfolders(root)}
    for tar in root.glob("[!.]*.tar"):
        if tar.stem in found:
            raise UserError(f"{root} has both {tar.stem} and {tar.name}; remove one")
        if tar.is_file():
            found[tar.stem] = tar
    return found


def images_of(path: Path, label: int) -> SourceSplit:
    """The images of a class, sorted by name."""
    if path.is_dir():
        names = files.image_names(path)
        return files.image_files(path, names, [label] * len(names))
    with path.open("rb") as file:
        members = sorted(tar_files(path, file), key=lambda member: member.name)
    if any(member.name.endswith(".cls") for member in members):
        raise UserError(f"{path} holds no class of its own but .cls files; {SHARDS}")
    return images_in(path, [Member(m.name, m.offset_data, m.size, label) for m in members])
