"""Image classification sets of Hugging Face: parquet files that hold the images' own files.

The features that are written into the files say which column is the image, which the label, and
what the classes are called. Without them the columns must be called image and label.
"""

import json
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from alexnet_jax.data.sources import files
from alexnet_jax.data.sources.source import SPLITS, Example, Source, SourceSplit, hold_out
from alexnet_jax.data.sources.unknown import unknown
from alexnet_jax.runtime.errors import UserError


class _Columns(NamedTuple):
    """The names of the columns, and of the classes if the files say them."""

    image: str  # of the bytes: 'image.bytes', or 'image' if they are not in a struct
    label: str
    classes: tuple[str, ...]


class _Group(NamedTuple):
    """Rows that are read at once: one row group of a file."""

    file: Path
    number: int
    first: int  # its first row in the file
    rows: int


def open_hf(path: str) -> Source:
    """The source of ``hf:PATH``."""
    root = files.existing_folder(path, "hf")
    parquet = _parquet()
    found = _files_of_splits(root)
    columns = _columns(parquet, next(iter(found.values()))[0])
    splits: dict[str, SourceSplit] = {}
    labels: dict[str, np.ndarray] = {}
    for name in (name for name in dict.fromkeys(SPLITS.values()) if name in found):
        groups, of = _index(parquet, found[name], columns)
        if not (of < 0).all():  # -1: the labels were never published
            labels[name], splits[name] = of, _split(parquet, groups, of, columns.image)
    most = max((int(of.max()) for of in labels.values() if len(of)), default=-1)
    classes = columns.classes or tuple(map(str, range(most + 1)))
    if splits.keys() != {"train"}:
        return Source(classes, splits)
    train = splits["train"]
    names = [train.name(index).removeprefix(str(root)) for index in range(train.count)]
    if most >= len(classes):
        raise UserError(f"{root} has the label {most}, but only {len(classes)} classes")
    return hold_out(train, labels["train"].tolist(), names, classes)


def _parquet() -> ModuleType:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("--source=hf:PATH needs pyarrow; pip install pyarrow") from error
    return parquet


def _files_of_splits(root: Path) -> dict[str, list[Path]]:
    """The files of each split, by the name of the file, or else of its folder.

    Raises:
      UserError: there are none, or a split is in several folders, as if of several sets.
    """
    found: dict[str, list[Path]] = {}
    for file in sorted(root.rglob("*.parquet")):
        words = [*re.split(r"[^a-z]+", file.stem.lower()), file.parent.name]
        split = next((SPLITS[word] for word in words if word in SPLITS), "train")
        found.setdefault(split, []).append(file)
    if not found:
        raise unknown(root, "parquet files, as data/train-00000-of-00294.parquet")
    for split, of in found.items():
        folders = sorted({str(file.parent) for file in of})
        if len(folders) > 1:
            raise UserError(
                f"{root} has {split} files in {folders[0]} and in {folders[1]}, as if of several "
                f"sets; give one folder"
            )
    return found


def _open(parquet: ModuleType, file: Path) -> Any:
    """Raises UserError if the file is damaged."""
    try:
        return parquet.ParquetFile(file)
    except (ValueError, OSError) as error:
        with file.open("rb") as start:
            pointer = start.read(7) == b"version"
        why = "is only a pointer of git lfs" if pointer else "is damaged or half downloaded"
        raise UserError(f"{file} {why} ({error}); get it again") from error


def _columns(parquet: ModuleType, file: Path) -> _Columns:
    """Raises UserError unless there is one column of images and one of labels."""
    schema = _open(parquet, file).schema_arrow
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = about.get("info", {}).get("features", {})

    def only(kind: str, usual: str) -> str:
        named = [key for key, one in features.items() if _kind(one) == kind]
        fits = named if len(named) == 1 else [name for name in schema.names if name == usual]
        if not fits:
            raise UserError(
                f"{file} must have one column of images, and one of labels as ClassLabel; its "
                f"columns are {', '.join(schema.names)}"
            )
        return fits[0]

    image, label = only("Image", "image"), only("ClassLabel", "label")
    of = schema.field(image).type
    in_struct = "bytes" in [of.field(number).name for number in range(of.num_fields)]
    if not in_struct and "binary" not in str(of):
        raise UserError(f"{file}: its column {image} has no bytes of images but {of}")
    names = tuple(features.get(label, {}).get("names", ()))
    return _Columns(f"{image}.bytes" if in_struct else image, label, names)


def _kind(feature: Any) -> str:
    return feature.get("_type", "") if isinstance(feature, Mapping) else ""


def _index(
    parquet: ModuleType, paths: Sequence[Path], columns: _Columns
) -> tuple[list[_Group], np.ndarray]:
    """All row groups of some files, and the labels of all rows."""
    groups, labels = [], [np.zeros(0, np.int64)]
    for path in paths:
        file, first = _open(parquet, path), 0
        for number in range(file.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            groups.append(_Group(path, number, first, rows))
            first += rows
        try:
            labels.append(file.read([columns.label])[columns.label].to_numpy().astype(np.int64))
        except (KeyError, ValueError, OSError) as error:
            raise UserError(f"{path} has no labels that can be read ({error})") from error
    return groups, np.concatenate(labels)


def _split(
    parquet: ModuleType, groups: Sequence[_Group], labels: np.ndarray, column: str
) -> SourceSplit:
    """Each thread keeps the row group that it read last: `prepare` reads rows in their order."""
    firsts = np.cumsum([0, *(group.rows for group in groups)])
    kept = threading.local()

    def place(index: int) -> tuple[int, int]:
        number = int(np.searchsorted(firsts, index, side="right")) - 1
        return number, index - int(firsts[number])

    def name(index: int) -> str:
        number, row = place(index)
        return f"{groups[number].file}[{groups[number].first + row}]"

    def read(index: int) -> Example:
        number, row = place(index)
        if getattr(kept, "number", None) != number:
            kept.number = kept.images = None  # not two groups in memory at once
            with parquet.ParquetFile(groups[number].file) as file:
                of = groups[number].number
                table = file.read_row_group(of, columns=[column], use_threads=False)
            kept.number, kept.images = number, table.flatten().column(0)
        data = kept.images[row].as_py()
        if data is None:
            raise ValueError("has no bytes in its file")
        return Example(data, int(labels[index]))

    return SourceSplit(len(labels), name, read)
