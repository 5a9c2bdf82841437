"""Images that are scored once and need no records: decoded and cut when they are read."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from alexnet_jax.config import Resize
from alexnet_jax.data.images import decode, square
from alexnet_jax.data.records import Split
from alexnet_jax.data.sources import SourceSplit, files
from alexnet_jax.data.sources.tars import Member, images_in, tar_files
from alexnet_jax.runtime.errors import UserError


class Unprepared(Split):
    """Images of a source, with what `Split` offers.

    Attributes:
      labels: int32 [n].
      size: side of the images, pixels.
    """

    def __init__(
        self,
        source: SourceSplit,
        labels: Sequence[int],
        size: int,
        side: int,
        resize: Resize = "area",
    ) -> None:
        """Images of side x side pixels in the middle of size x size, which are else black."""
        self.source, self.size, self.side, self.resize = source, size, side, resize
        self.labels = np.asarray(labels, np.int32)

    def read(
        self, index: int, out: UInt8[np.ndarray, "height width 3"], top: int = 0, left: int = 0
    ) -> None:
        """As `Split.read`. Raises UserError, with the image's name, if it cannot be read."""
        try:
            image, _ = self.source.read(index)
            if isinstance(image, bytes):
                image = decode(image)
        except (ValueError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            name = self.source.name(index)
            raise UserError(f"{name}: {why}; fix it, or remove it") from error
        edge = (self.size - self.side) // 2
        whole = np.zeros((self.size, self.size, 3), np.uint8)
        middle = slice(edge, edge + self.side)
        whole[middle, middle] = square(image, self.side, self.resize)
        out[:] = whole[top : top + out.shape[0], left : left + out.shape[1]]


def labelled_folder(
    root: Path,
    classes: Sequence[str],
    size: int,
    side: int | None = None,
    resize: Resize = "area",
) -> Unprepared:
    """The images of root/CLASS/IMAGE.

    Args:
      root: its folders are named as the classes are, or by their numbers, from 0, as ImageNet-V2's.
      classes: of the network. Some may have no images.
      size: side of the images, pixels.
      side: the part of it that images fill; None: all.
      resize: how they become squares, see `images.square`.

    Raises:
      UserError: a folder is no class, or there are no images.
    """
    names = [folder.name for folder in files.subfolders(root)]
    numbers = tuple(map(str, range(len(classes))))
    if names and not set(names) <= set(classes) and set(names) <= set(numbers):
        classes = numbers
    why = f"is none of the network's {len(classes)} classes"
    paths, labels = files.class_paths(root, classes, why)
    if not paths:
        raise UserError(f"{root} has no images; it must hold CLASS/IMAGE")
    return Unprepared(files.image_files(root, paths, labels), labels, size, side or size, resize)


def unlabelled(path: Path) -> SourceSplit:
    """All images of a folder or a tar, sorted by their names; all labels are 0.

    Raises:
      UserError: there are none, or the tar is damaged.
    """
    if path.is_dir():
        names = files.image_names(path)
        images = files.image_files(path, names, [0] * len(names))
    elif path.is_file() and tarfile.is_tarfile(path):
        with path.open("rb") as file:
            members = sorted(tar_files(path, file), key=lambda member: member.name)
        images = images_in(path, [Member(m.name, m.offset_data, m.size, 0) for m in members])
    else:
        what = "is not a tar, or a damaged one" if path.is_file() else "is not there"
        raise UserError(f"{path} {what}; give a folder or a tar of images")
    if not images.count:
        raise UserError(f"{path} has no images")
    return images


def rest_of(images: SourceSplit, first: int, size: int, resize: Resize) -> Unprepared:
    """The images from number `first` on, all with the label 0."""
    rest = SourceSplit(
        images.count - first,
        lambda index: images.name(first + index),
        lambda index: images.read(first + index),
    )
    return Unprepared(rest, [0] * rest.count, size, size, resize)
