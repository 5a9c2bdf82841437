"""Sources of images: folders, tars, parquet files, TFDS, CIFAR-10, or images that are generated."""

from collections.abc import Callable

from alexnet_jax.data.sources import cifar10, classes, files, generated, hf, ilsvrc2012, tfds
from alexnet_jax.data.sources.source import Example, Source, SourceSplit
from alexnet_jax.runtime.errors import UserError

__all__ = ["KINDS", "Example", "Source", "SourceSplit", "check_kind", "open_source"]

KINDS = (
    "folder:PATH, ilsvrc2012:PATH, classes:PATH@N, hf:PATH, tfds:NAME, cifar10:PATH or generated"
)


_READERS: dict[str, Callable[[str], Source]] = {
    "folder": files.open_folder,
    "ilsvrc2012": ilsvrc2012.open_ilsvrc2012,
    "classes": classes.open_classes,
    "hf": hf.open_hf,
    "tfds": tfds.open_tfds,
    "cifar10": cifar10.open_cifar10,
}


def check_kind(spec: str, option: str) -> None:
    """Raises UserError if what `option` gives as a source is of no kind, or lacks its place."""
    kind, _, rest = spec.partition(":")
    if kind != "generated" and kind not in _READERS:
        raise UserError(f"{option}={spec}: there is no source {kind!r}; a source is {KINDS}")
    if kind != "generated" and not rest:
        raise UserError(f"{option}={spec} does not say where it is; a source is {KINDS}")


def open_source(spec: str, size: int) -> Source:
    """The source that ``--source`` names.

    folder:PATH: PATH/SPLIT/CLASS/IMAGE. SPLIT is train, val, valid, validation or test; the
    classes are train's folders, sorted. Or PATH/CLASS/IMAGE. If there is no other split than train,
    a tenth of each class' images is held out for validation.

    ilsvrc2012:PATH: PATH holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, which are read
    without unpacking; or train/ with WNID/*.JPEG or WNID.tar, and val/ or validation/ with *.JPEG
    or WNID/*.JPEG; or Kaggle's ILSVRC/Data/CLS-LOC with these, and LOC_val_solution.csv, whose
    labels come first for a flat val/; or WNID/*.JPEG or WNID.tar, which
    are training images only. The labels always number all 1000 classes, sorted by WNID.

    classes:PATH@N: PATH/CLASS/IMAGE or PATH/CLASS.tar, as ImageNet's releases of all classes come.
    The last of each N images of a class, by name, is for validation: with N = 2 half of them (§6).

    hf:PATH: parquet files of a set of Hugging Face, in PATH or in folders in it, such as
    PATH/data/train-00000-of-00294.parquet. Needs pyarrow.

    tfds:NAME or tfds:NAME@DATA_DIR: an image classification set of TensorFlow Datasets. It is
    searched in DATA_DIR (else TFDS_DATA_DIR, else ~/tensorflow_datasets), and made there if it is
    missing. Files to download by hand go to DATA_DIR/downloads/manual. Reading a set does not need
    TensorFlow; making some sets, such as imagenet2012, does.

    cifar10:PATH: the original's python or binary version: its folder or its tar.gz.

    generated or generated:COUNT: ten classes, drawn at `size`; COUNT training images (4096).

    Args:
      spec: one of these.
      size: side of the images in the records, pixels.

    Raises:
      UserError: there is no such source, or it has no training split, or it is damaged.
    """
    check_kind(spec, "--source")
    kind, _, rest = spec.partition(":")
    if kind == "generated":
        return generated.open_generated(rest, size)
    source = _READERS[kind](rest)
    if "train" not in source.splits:
        found = ", ".join(source.splits) or "none"
        raise UserError(f"--source={spec} has no split 'train' (found: {found})")
    return source
