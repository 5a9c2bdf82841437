"""A folder that is not laid out as its source should be: what it holds instead, and what to do."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from alexnet_jax.runtime.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
"""Where the images of Kaggle's ImageNet are, below what may be given."""

KNOWN = (
    "folder:PATH with CLASS/IMAGE or train/CLASS/IMAGE; ilsvrc2012:PATH with the official tars, "
    "class tars, train/WNID/IMAGE and val/, or Kaggle's ILSVRC/Data/CLS-LOC; classes:PATH@N with "
    "CLASS/IMAGE or CLASS.tar; hf:PATH with parquet files; tfds:NAME"
)

SHARDS = (
    "webdataset's shards are not read: unpack them, sort the images into CLASS folders by their "
    ".cls files, and give --source=folder:PATH"
)


def refuse_other_sets(root: Path) -> None:
    """Raises UserError if `root` holds a set that another source reads, or that none does.

    Beside folders of classes a file of such a set is taken for something else, as a list.
    """
    train = root / "train" if (root / "train").is_dir() else root
    folders = [name for name in _names(train) if (train / name).is_dir() and name != "data"]
    if found := _kaggle(root) or (len(folders) < 2 and _recognised(root, _SETS)):
        raise UserError(f"{root} holds {found}")


def unknown(root: Path, expected: str) -> UserError:
    """The error for a folder that does not hold what is `expected`: it names what was found."""
    if found := _kaggle(root) or _recognised(root, _SETS + _ARCHIVES):
        return UserError(f"{root} must hold {expected}; it holds {found}")
    names = _names(root)
    if direct := [name for name in names if name.lower().endswith(IMAGES)]:
        return UserError(
            f"{root} holds no images in class folders; expected {root}/CLASS/*.jpg "
            f"(found {len(direct):,} images directly in {root})"
        )
    some = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") if names else "nothing"
    return UserError(
        f"{root} must hold {expected}; it holds {some}; layouts that are read: {KNOWN}"
    )


def _recognised(root: Path, formats: Sequence["_Format"]) -> str:
    """What `root` holds and what to do; "" if it is none of the formats."""
    names = _names(root)
    return next((found for one in formats if (found := one(root, names))), "")


def _names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


_Format = Callable[[Path, Sequence[str]], str]
"""From a folder and the names in it: what was found and what to do, or ""."""


def _files(pattern: str, what: str, advice: str) -> _Format:
    """Files with such names in a folder, or in its folders data, train and validation."""

    def find(root: Path, names: Sequence[str]) -> str:
        parts = ("data", "train", "validation")
        below = sorted(path.name for part in parts for path in (root / part).glob("*"))
        fit = [name for name in (*names, *below) if re.search(pattern, name)]
        some = f"{fit[0]}{', ...' if len(fit) > 1 else ''}" if fit else ""
        return some and f"{what} ({some}); {advice.format(root=root)}"

    return find


def _kaggle(root: Path) -> str:
    inner = next((inner for inner in KAGGLE if (root / inner).is_dir()), "")
    return inner and f"{inner}, as Kaggle's ImageNet; give --source=ilsvrc2012:{root}"


_SETS: tuple[_Format, ...] = (
    _files(
        r"^ILSVRC2012_img_train\.tar$",
        "tars of ILSVRC-2012",
        "give --source=ilsvrc2012:{root}, with both tars in it",
    ),
    _files(r"\.parquet$", "parquet files", "give --source=hf:{root}"),
    _files(
        r"\.arrow$",
        "arrow files, as save_to_disk of Hugging Face's datasets writes them",
        "write them with its to_parquet, and give --source=hf:FOLDER",
    ),
    _files(
        r"^features\.json$|\.array_record",
        "a set that TFDS made",
        "give --source=tfds:NAME@DATA_DIR, if this is DATA_DIR/NAME/VERSION",
    ),
    _files(
        r"\.tfrecords?\b|-\d{5}-of-\d{5}$",
        "TFRecords, which have no random access",
        "give the images that they were made of; or TFDS can make them as array_record files: "
        "--source=tfds:NAME@NEW_DATA_DIR",
    ),
)
"""They are no part of a folder of classes."""

_ARCHIVES: tuple[_Format, ...] = (
    _files(r"^(?!n\d{8}\.).*\d{3,}\.tar$", "tars with numbers, as webdataset's shards", SHARDS),
    _files(
        r"^(?!ILSVRC2012_devkit).*\.(zip|7z|rar|tgz|tar\.\w+)$",
        "compressed archives",
        "unpack them (a tar in them may stay as it is)",
    ),
    _files(
        r"^LOC_\w+\.(csv|txt)$",
        "Kaggle's lists without ILSVRC/Data/CLS-LOC",
        "unpack the images of the same download beside them",
    ),
)
