"""One folder or tar for each class, without splits: some images of each class are held out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alexnet_jax.data.sources import files
from alexnet_jax.data.sources.source import Example, Source, SourceSplit
from alexnet_jax.data.sources.tars import Member, images_in, tar_files
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
    found = {one.stem if one.is_file() else one.name: one for one in _folders_and_tars(root)}
    if not found:
        raise UserError(f"{root} must hold CLASS/IMAGE or CLASS.tar, and has neither")
    splits: dict[str, list[SourceSplit]] = {"train": [], "validation": []}
    classes = sorted(found)
    with progress_bar(len(classes), f"index of {root}", "classes", leave=False) as bar:
        for label, name in enumerate(classes):
            images = _images_of(found[name], label)
            held_out = np.arange(images.count) % int(every) == int(every) - 1
            splits["train"].append(_chosen(images, np.flatnonzero(~held_out)))
            splits["validation"].append(_chosen(images, np.flatnonzero(held_out)))
            bar.update()
    return Source(tuple(classes), {name: _joined(parts) for name, parts in splits.items()})


def _folders_and_tars(root: Path) -> list[Path]:
    tars = [one for one in root.glob("*.tar") if one.is_file()]
    found = [*files.subfolders(root), *tars]
    names = [one.stem if one in tars else one.name for one in found]
    for name in {name for name in names if names.count(name) > 1}:
        raise UserError(f"{root} has both {name} and {name}.tar; remove one")
    return found


def _images_of(path: Path, label: int) -> SourceSplit:
    """The images of a class, sorted by name."""
    if path.is_dir():
        names = files.image_names(path)
        return files.image_files(path, names, [label] * len(names))
    with path.open("rb") as file:
        members = sorted(tar_files(path, file), key=lambda member: member.name)
    return images_in(path, [Member(m.name, m.offset_data, m.size, label) for m in members])


def _chosen(images: SourceSplit, indices: np.ndarray) -> SourceSplit:
    return SourceSplit(
        len(indices),
        lambda index: images.name(int(indices[index])),
        lambda index: images.read(int(indices[index])),
    )


def _joined(parts: Sequence[SourceSplit]) -> SourceSplit:
    """The images of all parts, one after the other."""
    firsts = np.cumsum([0, *(part.count for part in parts)])

    def place(index: int) -> tuple[SourceSplit, int]:
        number = int(np.searchsorted(firsts, index, side="right")) - 1
        return parts[number], index - int(firsts[number])

    def name(index: int) -> str:
        part, own = place(index)
        return part.name(own)

    def read(index: int) -> Example:
        part, own = place(index)
        return part.read(own)

    return SourceSplit(int(firsts[-1]), name, read)
