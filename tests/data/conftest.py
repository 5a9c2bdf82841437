"""Small sets of images and records."""

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from alexnet_jax.config import Data, Lighting
from alexnet_jax.data import records
from alexnet_jax.prepare import prepare


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar of files by name, in their order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture(scope="session")
def jpeg_records(tmp_path_factory) -> records.Records:
    """300 training and 512 validation images of 24x24 pixels."""
    path = tmp_path_factory.mktemp("jpeg") / "records"
    prepare("generated:300", path, size=24)
    return records.open_records(path)


@pytest.fixture(scope="session")
def raw_records(tmp_path_factory) -> records.Records:
    """The same images in the raw format."""
    path = tmp_path_factory.mktemp("raw") / "records"
    prepare("generated:300", path, size=24, format="raw")
    return records.open_records(path)


@pytest.fixture
def make_data():
    """A `Data` section for the small sets."""

    def make(lighting: dict | None = None, **changes) -> Data:
        light = {"sigma": 0.1, "scale": "eigenvalue", "source": "training", "shrink": False}
        values = {
            "source": "generated:300",
            "records": "records",
            "validation": "validation",
            "size": 24,
            "format": "raw",
            "resize": "area",
            "crop": 16,
            "random_crop": True,
            "mirror": True,
            "mean": "crop",
            "order": "random",
            "chunk": 1,
            "lighting": Lighting(**light | (lighting or {})),
            "threads": 2,
        }
        return Data(**values | changes)

    return make


@pytest.fixture
def image_folder(tmp_path):
    """Writes PNGs of random pixels: train and validation, two classes, `count` each."""

    def write(count: int = 3, shape: tuple[int, int] = (20, 30)) -> Path:
        rng = np.random.default_rng(0)
        root = tmp_path / "images"
        for split in ("train", "validation"):
            for name in ("cat", "dog"):
                folder = root / split / name
                folder.mkdir(parents=True)
                for number in range(count):
                    pixels = rng.integers(0, 256, (*shape, 3), np.uint8)
                    cv2.imwrite(str(folder / f"{number}.png"), pixels)
        return root

    return write
