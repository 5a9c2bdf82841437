"""Image classification sets of TensorFlow Datasets; reading them does not need TensorFlow."""

from collections.abc import Mapping, Sequence
from typing import Any

from alexnet_jax.data.sources.source import SPLITS, Example, Source, SourceSplit
from alexnet_jax.runtime.errors import UserError


def open_tfds(spec: str) -> Source:
    """The source of ``tfds:NAME`` or ``tfds:NAME@DATA_DIR``."""
    from tensorflow_datasets.core import DatasetNotFoundError

    name, _, data_dir = spec.partition("@")
    where = f"--source=tfds:{name}"
    if name.startswith("huggingface:"):
        raise UserError(
            f"{where}: sets of Hugging Face are read from their parquet files; download those of "
            f"{name.removeprefix('huggingface:') or 'the set'} and give --source=hf:FOLDER"
        )
    try:
        return _open(name, data_dir or None, where)
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


def _open(name: str, data_dir: str | None, where: str) -> Source:
    """Makes the set if it is missing; raises what TFDS raises."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir)
    features = builder.info.features
    image, label = (builder.info.supervised_keys or ("image", "label"))[:2]
    kinds = {image: tfds.features.Image, label: tfds.features.ClassLabel}
    if not all(key in features and isinstance(features[key], kinds[key]) for key in kinds):
        raise UserError(f"{where} is not a set of images with one label each")
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
        if theirs in builder.info.splits:
            data = builder.as_data_source(theirs, decoders={image: tfds.decode.SkipDecoding()})
            split = _split(f"{builder.info.full_name}/{theirs}", data, image, label)
            if split.count and split.read(0).label >= 0:  # -1: the labels were never published
                splits[ours] = split
    return Source(tuple(builder.info.features[label].names), splits)


def _split(where: str, data: Sequence[Mapping[str, Any]], image: str, label: str) -> SourceSplit:
    """One split of a set; its images are the files that TFDS stored."""

    def read(index: int) -> Example:
        example = data[index]
        return Example(example[image], int(example[label]))

    return SourceSplit(len(data), lambda index: f"{where}[{index}]", read)
