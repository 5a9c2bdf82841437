"""ILSVRC-2012, from its tars, which are read without unpacking, or from folders."""

import csv
import os
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from alexnet_jax.data.sources import files
from alexnet_jax.data.sources.classes import folders_and_tars, images_of
from alexnet_jax.data.sources.source import Source, SourceSplit, joined
from alexnet_jax.data.sources.tars import Member, images_in, tar_files
from alexnet_jax.data.sources.unknown import KAGGLE, unknown
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.terminal import progress_bar

TRAIN_TAR, VALIDATION_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
SOLUTION = "LOC_val_solution.csv"  # Kaggle's: the class of each validation image, and its boxes
_WNID = re.compile(r"n\d{8}")
_UNKNOWN = "is none of ILSVRC-2012's 1000 classes; other sets: --source=folder:PATH"


def open_ilsvrc2012(path: str) -> Source:
    """The source of ``ilsvrc2012:PATH``."""
    given = files.existing_folder(path, "ilsvrc2012")
    inner = next((inner for inner in KAGGLE if (given / inner).is_dir()), "")
    root, note = given / inner, inner and f"{given} has Kaggle's layout: the images are in {inner}"
    labels = {wnid: label for label, wnid in enumerate(_tfds_lines("labels.txt"))}
    solution = _solution(given, root)
    if solution:
        note = f"{SOLUTION} and {inner or given} found: reading Kaggle's layout"
    splits = _training(root, labels) | _validation(root, labels, solution)
    if "train" not in splits:
        raise unknown(given, f"{TRAIN_TAR} and {VALIDATION_TAR}, or train/WNID/*.JPEG and val/")
    return Source(tuple(labels), splits, note)


def _solution(given: Path, root: Path) -> Path | None:
    """Kaggle's list of the validation labels: in `given`, or beside the ILSVRC/ of its images."""
    whole = Path(os.path.abspath(root))
    places = [given, *whole.parents[2:3]] if whole.name == "CLS-LOC" else [given]
    return next((one / SOLUTION for one in places if (one / SOLUTION).is_file()), None)


def _training(root: Path, labels: Mapping[str, int]) -> dict[str, SourceSplit]:
    """The training split: in its tar, in train/, or in folders or tars of classes in `root`."""
    if (root / TRAIN_TAR).is_file():
        return {"train": _train_tar(root / TRAIN_TAR, labels)}
    folder = root / "train" if (root / "train").is_dir() else root
    found = folders_and_tars(folder)
    if folder == root:  # which may hold much else
        found = {name: path for name, path in found.items() if _WNID.fullmatch(name)}
    elif not any(path.is_dir() or _WNID.fullmatch(name) for name, path in found.items()):
        raise unknown(folder, "WNID/*.JPEG or WNID.tar")
    if not found:
        return {}
    if all(path.is_dir() for path in found.values()):
        paths = files.class_paths(folder, tuple(labels), _UNKNOWN, sorted(found.values()))
        return {"train": files.image_files(folder, *paths)}
    parts = []
    with progress_bar(len(found), f"index of {folder}", "classes", leave=False) as bar:
        for name in sorted(found):
            if name not in labels:
                raise UserError(f"{found[name]} {_UNKNOWN}")
            parts.append(images_of(found[name], labels[name]))
            bar.update()
    return {"train": joined(parts)}


def _validation(
    root: Path, labels: Mapping[str, int], solution: Path | None
) -> dict[str, SourceSplit]:
    if (root / VALIDATION_TAR).is_file():
        return {"validation": _validation_tar(root / VALIDATION_TAR, labels)}
    folder = files.split_folders(root).get("validation")
    return {"validation": _validation_folder(folder, labels, solution)} if folder else {}


def _tfds_lines(name: str) -> list[str]:
    """The lines of a file in TFDS: the sorted WNIDs, or the WNIDs of the validation images."""
    path = f"tensorflow_datasets/datasets/imagenet2012/{name}"
    file = metadata.distribution("tensorflow-datasets").locate_file(path)  # does not import it
    return Path(str(file)).read_text().split()


def _validation_folder(root: Path, labels: Mapping[str, int], solution: Path | None) -> SourceSplit:
    if files.subfolders(root):
        return files.class_folders(root, tuple(labels), _UNKNOWN)
    names = files.image_names(root)
    if solution:
        return files.image_files(root, names, _solved_labels(names, solution, labels))
    return files.image_files(root, names, _validation_labels(names, root, labels))


def _validation_labels(names: Sequence[str], where: Path, labels: Mapping[str, int]) -> list[int]:
    """By the number in each name, so that the labels are right even if images are missing."""
    wnids = enumerate(_tfds_lines("validation_labels.txt"), 1)
    known = {f"ILSVRC2012_val_{number:08d}.JPEG": labels[wnid] for number, wnid in wnids}
    for name in names:
        if name not in known:
            raise UserError(
                f"{where}/{name} is not called ILSVRC2012_val_00000001.JPEG or the like"
            )
    return [known[name] for name in names]


def _solved_labels(names: Sequence[str], solution: Path, labels: Mapping[str, int]) -> list[int]:
    """By Kaggle's list, whose lines are as ILSVRC2012_val_00000001,n01751748 x1 y1 x2 y2."""
    with solution.open(newline="") as file:
        try:
            rows = csv.DictReader(file)
            wnids = {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
        except (KeyError, AttributeError, IndexError, ValueError, csv.Error):
            raise UserError(
                f"{solution} must have the columns ImageId,PredictionString, as "
                f"ILSVRC2012_val_00000001,n01751748 85 1 499 272; get it again"
            ) from None
    for name in names:
        wnid = wnids.get(Path(name).stem, "")
        if wnid not in labels:
            why = f"the class {wnid!r}, which {_UNKNOWN}" if wnid else "no line"
            raise UserError(f"{solution} has {why} for {name}; get it again")
    return [labels[wnids[Path(name).stem]] for name in names]


def _validation_tar(path: Path, labels: Mapping[str, int]) -> SourceSplit:
    with path.open("rb") as file:
        members = {Path(member.name).name: member for member in tar_files(path, file)}
    names = sorted(members)
    found = zip(names, _validation_labels(names, path, labels), strict=True)
    return images_in(
        path, [Member(n, members[n].offset_data, members[n].size, label) for n, label in found]
    )


def _train_tar(path: Path, labels: Mapping[str, int]) -> SourceSplit:
    """From the tar that holds one tar for each class; the inner tars are read in place."""
    members = []
    with path.open("rb") as file, progress_bar(1000, f"index of {path.name}", "classes") as bar:
        for inner in sorted(tar_files(path, file), key=lambda member: member.name):
            wnid = Path(inner.name).stem
            if wnid not in labels:
                raise UserError(f"{path}/{inner.name} {_UNKNOWN}")
            file.seek(inner.offset_data)
            members += [
                Member(f"{wnid}/{image.name}", image.offset_data, image.size, labels[wnid])
                for image in sorted(tar_files(path, file), key=lambda member: member.name)
            ]
            bar.update()
    return images_in(path, members)
