"""What a network must know of the images that it was trained on: it is saved with the weights."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from alexnet_jax.data.layout import Statistics
from alexnet_jax.data.records import Records
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.tensors import read_tensors, to_bytes


@dataclass(frozen=True)
class DataInfo:
    """Of prepared images; all that scoring other images needs, so that the records may be gone.

    Attributes:
      hash: of the records, see `layout.Manifest`.
      source: of what they were made.
      classes: the classes' names; label i is ``classes[i]``.
      statistics: the mean image, and the colours' covariance.
    """

    hash: str
    source: str
    classes: tuple[str, ...]
    statistics: Statistics

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes' names for people: 'tench' for ImageNet's n01440764."""
        words = imagenet_words()
        known = set(self.classes) <= words.keys()
        return tuple(words[name] for name in self.classes) if known else self.classes


@functools.cache
def imagenet_words() -> Mapping[str, str]:
    """A name for each of ImageNet's 1000 classes, by WNID.

    WordNet's first or second name of the synset, such that no two classes have the same; taken from
    torchvision's ``models._meta``, where they stand in the order of the sorted WNIDs.
    """
    lines = (files("alexnet_jax.data") / "imagenet_words.txt").read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines)


def info_of(records: Records) -> DataInfo:
    """What `records` say."""
    manifest = records.manifest
    return DataInfo(manifest.hash, manifest.source, manifest.classes, records.statistics)


def info_bytes(info: DataInfo) -> bytes:
    """The content of the file that `read_info` reads."""
    about = {"hash": info.hash, "source": info.source, "classes": json.dumps(info.classes)}
    return to_bytes(vars(info.statistics), about)


def read_info(path: Path) -> DataInfo:
    """What was saved with a network.

    Raises:
      UserError: the file is missing or damaged.
    """
    tensors, about = read_tensors(path)
    try:
        classes = tuple(json.loads(about["classes"]))
        return DataInfo(about["hash"], about["source"], classes, Statistics(**tensors))
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not what this program saves with a network") from error
