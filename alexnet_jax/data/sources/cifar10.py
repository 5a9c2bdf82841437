"""CIFAR-10, in the python or the binary version that its authors published."""

import io
import pickle
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
_ALLOWED = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


@dataclass(frozen=True)
class Arrays:
    """Images in memory."""

    where: str
    images: UInt8[np.ndarray, "n height width 3"]
    labels: Int32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return f"{self.where}[{index}]"

    def read(self, index: int) -> Example:
        return Example(self.images[index], int(self.labels[index]))


def open_cifar10(path: str) -> Source:
    """The source of ``cifar10:PATH``."""
    files = dict(_files(Path(path)))
    for suffix, decode in (("", _python), (".bin", _binary)):
        train, test = [f"data_batch_{i}{suffix}" for i in range(1, 6)], [f"test_batch{suffix}"]
        if files.keys() >= {*train, *test}:
            splits: dict[str, SourceSplit] = {}
            for split, names in (("train", train), ("test", test)):
                batches = [decode(name, files[name]()) for name in names]
                images, labels = (np.concatenate(each) for each in zip(*batches, strict=True))
                splits[split] = Arrays(f"{path}/{split}", images, labels)
            return Source(CLASSES, splits)
    raise UserError(
        f"--source=cifar10:{path} must be cifar-10-python.tar.gz, cifar-10-binary.tar.gz, "
        f"or the folder with data_batch_1 to 5 and test_batch (or .bin) that is in it"
    )


def _files(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The names of the files in a folder or a tar, and functions that read them."""
    if path.is_dir():
        for file in path.iterdir():
            yield file.name, file.read_bytes
    elif path.is_file():
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    inner = tar.extractfile(member)
                    if inner is not None:
                        yield Path(member.name).name, io.BytesIO(inner.read()).getvalue
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(
                f"{path} is damaged or half downloaded ({error}); get it again"
            ) from error


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
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)
