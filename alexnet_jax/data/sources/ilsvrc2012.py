"""ILSVRC-2012, from its tars, which are read without unpacking, or from folders."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from alexnet_jax.data.sources import files
from alexnet_jax.data.sources.source import Source, SourceSplit
from alexnet_jax.data.sources.tars import Member, images_in, tar_files
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.terminal import progress_bar

TRAIN_TAR, VALIDATION_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_UNKNOWN = "is none of ILSVRC-2012's 1000 classes; other sets: --source=folder:PATH"


def open_ilsvrc2012(path: str) -> Source:
    """The source of ``ilsvrc2012:PATH``."""
    root = files.existing_folder(path, "ilsvrc2012")
    labels = {wnid: label for label, wnid in enumerate(_tfds_lines("labels.txt"))}
    splits: dict[str, SourceSplit] = {}
    if (root / TRAIN_TAR).is_file():
        splits["train"] = _train_tar(root / TRAIN_TAR, labels)
    elif (root / "train").is_dir():
        splits["train"] = files.class_folders(root / "train", tuple(labels), _UNKNOWN)
    elif any(folder.name in labels for folder in files.subfolders(root)):
        return Source(tuple(labels), {"train": files.class_folders(root, tuple(labels), _UNKNOWN)})
    if (root / VALIDATION_TAR).is_file():
        splits["validation"] = _validation_tar(root / VALIDATION_TAR, labels)
    elif (root / "val").is_dir():
        splits["validation"] = _validation_folder(root / "val", labels)
    if not splits:
        raise UserError(
            f"{root} holds neither {TRAIN_TAR} nor train/WNID/*.JPEG; "
            f"download ILSVRC-2012 from https://image-net.org and give the folder of its tars"
        )
    return Source(tuple(labels), splits)


def _tfds_lines(name: str) -> list[str]:
    """The lines of a file in TFDS: the sorted WNIDs, or the WNIDs of the validation images."""
    path = f"tensorflow_datasets/datasets/imagenet2012/{name}"
    file = metadata.distribution("tensorflow-datasets").locate_file(path)  # does not import it
    return Path(str(file)).read_text().split()


def _validation_folder(root: Path, labels: Mapping[str, int]) -> SourceSplit:
    if files.subfolders(root):
        return files.class_folders(root, tuple(labels), _UNKNOWN)
    names = files.image_names(root)
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
