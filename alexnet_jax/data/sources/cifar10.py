"""CIFAR-10, in the python or the binary version that its authors published."""

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from alexnet_jax.data.sources.source import Example, Source, SourceSplit
from alexnet_jax.runtime.errors import UserError

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
Batch = tuple[UInt8[np.ndarray, "n 32 32 3"], Int32[np.ndarray, " n"]]  # images and labels
_ALLOWED = {"numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"}


def open_cifar10(path: str) -> Source:
    """The source of ``cifar10:PATH``."""
    files = _read_files(Path(path))
    for suffix, decode in (("", _python), (".bin", _binary)):
        train, test = [f"data_batch_{i}{suffix}" for i in range(1, 6)], [f"test_batch{suffix}"]
        if files.keys() >= {*train, *test}:
            splits: dict[str, SourceSplit] = {}
            for split, names in (("train", train), ("test", test)):
                splits[split] = _joined(f"{path}/{split}", [decode(n, files[n]) for n in names])
            return Source(CLASSES, splits)
    raise UserError(
        f"--source=cifar10:{path} must be cifar-10-python.tar.gz, cifar-10-binary.tar.gz, "
        f"or the folder with data_batch_1 to 5 and test_batch (or .bin) that is in it"
    )


def _read_files(path: Path) -> dict[str, bytes]:
    """The batches in a folder or a tar, by the names of their files."""
    if not path.is_file():
        return {file.name: file.read_bytes() for file in path.glob("*_batch*")}
    try:
        with tarfile.open(path) as tar:
            files: dict[str, bytes] = {}
            for member in tar:
                if (file := tar.extractfile(member)) is not None:
                    files[Path(member.name).name] = file.read()
            return files
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged or half downloaded ({error}); get it again") from error


def _joined(where: str, batches: list[Batch]) -> SourceSplit:
    """All images of some batches."""
    images, labels = (np.concatenate(each) for each in zip(*batches, strict=True))

    def read(index: int) -> Example:
        return Example(images[index], int(labels[index]))

    return SourceSplit(len(labels), lambda index: f"{where}[{index}]", read)


def _binary(name: str, data: bytes) -> Batch:
    if not data or len(data) % 3073:
        raise UserError(f"{name} has {len(data)} bytes, no multiple of 3073: it is damaged")
    rows = np.frombuffer(data, np.uint8).reshape(-1, 3073)
    return _batch(rows[:, 1:], rows[:, 0])


def _python(name: str, data: bytes) -> Batch:
    try:
        batch = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
        return _batch(batch[b"data"], np.array(batch[b"labels"]))
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{name} is no batch of CIFAR-10 ({error}); get it again") from error


def _batch(pixels: np.ndarray, labels: np.ndarray) -> Batch:
    """Both versions store an image as all red, then all green, then all blue pixels."""
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.int32)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles only numpy arrays: a pickle could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # its name when CIFAR-10 was made
        if f"{module}.{name}" not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)
