"""Whether records were made of the images that a config names."""

import os
import re

from alexnet_jax.data.layout import Manifest
from alexnet_jax.data.records import Records
from alexnet_jax.data.sources import Source, generated, open_source
from alexnet_jax.runtime.errors import UserError


def is_open(source: str) -> bool:
    """Whether a config leaves open of what its records are made, as 'ilsvrc2012:PATH' does.

    The packaged configs do, so that one of them can be trained on any records.
    """
    return source.endswith(":PATH")


def records_folder(source: str) -> str:
    """Where a source's records go if the config names no folder: records/photos for folder:photos.

    Sources of one name share it; records of another source are refused, see `check_origin`.
    """
    kind, _, rest = source.partition(":")
    name = os.path.basename(os.path.abspath(rest))
    if kind in ("generated", "tfds"):
        name = source if kind == "generated" else rest.partition("@")[0]
    plain = re.sub(r"[^\w.+-]+", "-", name).strip("-")
    return f"records/{plain or kind}"


def check_origin(records: Records, source: str) -> str:
    """Compares a config's source with the one that the records were made of.

    A path is only a place: images may be moved, and records be copied to a machine that has no
    images. So two paths are the same source if the kind, the names of the classes and the numbers
    of images are the same.

    Returns:
      What has changed in the source since the records were made; "" if nothing has, or if that
      cannot be said in a moment, as of an archive or of a folder that is gone.

    Raises:
      UserError: the records were made of another source.
    """
    manifest = records.manifest
    if is_open(source):
        return ""
    (kind, place), (theirs, their_place) = _parts(source), _parts(manifest.source)
    same_place = (kind, place) == (theirs, their_place)
    if same_place and (kind != "folder" or not os.path.isdir(place)):
        return ""
    difference = ""
    if kind == theirs and kind not in ("generated", "tfds"):
        difference = _difference(source, manifest)
        if not difference:
            return ""
    if same_place:
        return (
            f"{source} has changed since the records in {records.path} were made of it "
            f"({difference}); the records are used; for the new images prepare another folder"
        )
    raise UserError(
        f"config.data.source={source}, but the records in {records.path} were made of "
        f"{manifest.source}{difference and f' ({difference})'}; "
        f"run with --config.data.source={manifest.source}, or with records of {source}"
    )


def _parts(source: str) -> tuple[str, str]:
    """The kind of a source, and its place or name in one form of several that mean the same."""
    kind, _, place = source.partition(":")
    if kind == "generated":
        return kind, place or str(generated.TRAIN)
    return kind, place.partition("@")[0] if kind == "tfds" else os.path.abspath(place)


def _difference(source: str, manifest: Manifest) -> str:
    """In what a source differs from what a manifest says; "" if in nothing."""
    try:
        found = open_source(source, manifest.size)
    except (UserError, OSError) as error:
        return str(error)
    if found.classes != manifest.classes:
        ours, theirs = _some(found.classes), _some(manifest.classes)
        return f"its classes are {ours}, those of the records {theirs}"
    return _other_counts(found, manifest)


def _other_counts(source: Source, manifest: Manifest) -> str:
    there = {name: split.count for name, split in source.splits.items()}
    have = {name: split.count for name, split in manifest.splits.items()}
    left_out = len(manifest.skipped)  # from whichever split; they may be deleted by now
    fewer = any(there.get(name, 0) < count for name, count in have.items())
    more = sum(there.values()) > sum(have.values()) + left_out
    if there.keys() == have.keys() and not fewer and not more:
        return ""
    text = f"it has {_counts(there)} images, the records {_counts(have)}"
    return f"{text} and {left_out} left out" if left_out else text


def _counts(splits: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in splits.items())


def _some(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''} ({len(names)})"
