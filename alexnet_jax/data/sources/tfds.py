"""Image classification sets of TensorFlow Datasets; reading them does not need TensorFlow."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from alexnet_jax.data.sources.source import SPLITS, Example, Source, SourceSplit
from alexnet_jax.runtime.errors import UserError


@dataclass(frozen=True)
class Tfds:
    """One split of a TFDS set; its images are the files that TFDS stored."""

    where: str
    data: Sequence[Mapping[str, Any]]
    image_key: str
    label_key: str

    def __len__(self) -> int:
        return len(self.data)

    def name(self, index: int) -> str:
        return f"{self.where}[{index}]"

    def read(self, index: int) -> Example:
        example = self.data[index]
        return Example(example[self.image_key], int(example[self.label_key]))


def open_tfds(spec: str) -> Source:
    """The source of ``tfds:NAME`` or ``tfds:NAME@DATA_DIR``."""
    import tensorflow_datasets as tfds

    name, _, place = spec.partition("@")
    where, data_dir = f"--source=tfds:{name}", place or None
    with _tfds_errors(where):
        builder = tfds.builder(name, data_dir=data_dir)
    features = builder.info.features
    image, label = (builder.info.supervised_keys or ("image", "label"))[:2]
    kinds = {image: tfds.features.Image, label: tfds.features.ClassLabel}
    if not all(key in features and isinstance(features[key], kinds[key]) for key in kinds):
        raise UserError(f"{where} is not a set of images with one label each")
    with _tfds_errors(where):
        if not builder.is_prepared():
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
    stored = builder.info.file_format
    if stored is None or stored.value not in {"array_record", "parquet"}:
        raise UserError(
            f"{where} is in {builder.data_path} as {stored and stored.value}, "
            f"which has no random access; let it be made in another folder: tfds:{name}@DATA_DIR"
        )
    splits: dict[str, SourceSplit] = {}
    for theirs, ours in SPLITS.items():
        if theirs not in builder.info.splits:
            continue
        data = builder.as_data_source(theirs, decoders={image: tfds.decode.SkipDecoding()})
        split = Tfds(f"{builder.info.full_name}/{theirs}", data, image, label)
        if len(split) and split.read(0).label >= 0:  # -1: the labels were never published
            splits[ours] = split
    return Source(tuple(builder.info.features[label].names), splits)


@contextmanager
def _tfds_errors(where: str) -> Iterator[None]:
    """Makes one line of TFDS' errors."""
    from tensorflow_datasets.core import DatasetNotFoundError

    try:
        yield
    except DatasetNotFoundError as error:
        raise UserError(f"{where}: TFDS has no set of this name") from error
    except ImportError as error:
        package = "tensorflow-cpu" if error.name in {None, "tensorflow"} else error.name
        raise UserError(
            f"{where}: TFDS needs another package to make this set; pip install {package}, "
            f"or read ImageNet's tars with --source=ilsvrc2012:PATH"
        ) from error
    except (AssertionError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: TFDS could not make this set: {reason}") from error
