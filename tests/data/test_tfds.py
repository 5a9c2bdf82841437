"""Sets made by TFDS' own builders from tiny downloads, and the records made from these sets.

TFDS needs TensorFlow to make these two sets, but not to read them. Here the standard library and
Pillow replace its few calls of TensorFlow. These calls are private to TFDS; other versions may make
other calls.
"""

import io
import os
from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from alexnet_jax.data import records
from alexnet_jax.data.sources import cifar10, open_source
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime.errors import UserError
from tests.data.conftest import tar_of

tfds = pytest.importorskip("tensorflow_datasets")
Image = pytest.importorskip("PIL.Image")

CMYK, PNG = "n01739381_1309.JPEG", "n02105855_2933.JPEG"  # two unusual files of the real set
TRAIN = ("n01440764_1.JPEG", "n01440764_2.JPEG", "n01440764_3.JPEG", "n03000134_7.JPEG", CMYK, PNG)
VALIDATION_CLASSES = ("n01751748", "n09193705", "n02105855")  # of the first three in the real set


def photo(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return cv2.resize(small, (70, 50), interpolation=cv2.INTER_LINEAR)


def encode(image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=95)
    return buffer.getvalue()


def file_of(name: str, seed: int) -> bytes:
    image = Image.fromarray(photo(seed))
    if name == CMYK:
        return encode(image.convert("CMYK"), "JPEG")
    return encode(image, "PNG" if name == PNG else "JPEG")


def to_rgb_jpeg(data: bytes) -> bytes:
    return encode(Image.open(io.BytesIO(data)).convert("RGB"), "JPEG")


@pytest.fixture
def without_tensorflow(monkeypatch):
    gfile = SimpleNamespace(exists=os.path.exists, GFile=open)
    tensorflow = SimpleNamespace(
        io=SimpleNamespace(gfile=gfile), compat=SimpleNamespace(as_text=os.fspath)
    )
    for module in (
        "datasets.imagenet2012.imagenet2012_dataset_builder",
        "datasets.imagenet2012.imagenet_common",
        "image_classification.cifar",
        "core.download.extractor",
    ):
        monkeypatch.setattr(import_module(f"tensorflow_datasets.{module}"), "tf", tensorflow)
    encoder = import_module("tensorflow_datasets.core.features.image_feature")._ImageEncoder
    monkeypatch.setattr(encoder, "_encode_image", lambda _, a: encode(Image.fromarray(a), "PNG"))
    monkeypatch.setattr(tfds.core.utils, "jpeg_cmyk_to_rgb", to_rgb_jpeg)
    monkeypatch.setattr(tfds.core.utils, "png_to_jpeg", to_rgb_jpeg)


@pytest.fixture
def downloads(tmp_path) -> Path:
    """DATA_DIR/downloads/manual with two tars."""
    manual = tmp_path / "data" / "downloads" / "manual"
    manual.mkdir(parents=True)
    inner: dict[str, dict[str, bytes]] = {}
    for seed, name in enumerate(TRAIN):
        inner.setdefault(name.split("_")[0], {})[name] = file_of(name, seed)
    train = tar_of({f"{wnid}.tar": tar_of(files) for wnid, files in inner.items()})
    (manual / "ILSVRC2012_img_train.tar").write_bytes(train)
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in (2, 3, 1)]
    files = {name: file_of(name, 100 + int(name[15:23])) for name in names}
    (manual / "ILSVRC2012_img_val.tar").write_bytes(tar_of(files))
    return manual


def images_of(path: Path, split: str) -> dict[int, tuple[str, np.ndarray]]:
    """The class and pixels of each image, by the seed that made it."""
    opened = records.open_records(path)
    of, found = opened.split(split), {}
    out = np.zeros((32, 32, 3), np.uint8)
    originals = {
        seed: cv2.resize(photo(seed), (45, 32), interpolation=cv2.INTER_AREA)[:, 6:38].astype(int)
        for seed in (*range(len(TRAIN)), 101, 102, 103)
    }
    for index in range(len(of)):
        of.read(index, out)
        seed = min(originals, key=lambda s: np.abs(out - originals[s]).mean())
        assert np.abs(out - originals[seed]).mean() < 4  # JPEG's loss; CMYK twice
        found[seed] = (opened.manifest.classes[of.labels[index]], out.copy())
    assert len(found) == len(of)
    return found


def test_imagenet2012(without_tensorflow, downloads, tmp_path):
    source = f"tfds:imagenet2012@{tmp_path}/data"
    manifest = prepare(source, tmp_path / "out", size=32, format="raw")
    assert len(manifest.classes) == 1000
    assert {name: split.count for name, split in manifest.splits.items()} == {
        "train": len(TRAIN),
        "validation": 3,
    }
    train, validation = (images_of(tmp_path / "out", s) for s in ("train", "validation"))
    assert [train[seed][0] for seed in range(len(TRAIN))] == [n.split("_")[0] for n in TRAIN]
    assert [validation[101 + i][0] for i in range(3)] == list(VALIDATION_CLASSES)

    # Our own reader of the same tars agrees, except for the two files that TFDS encoded again.
    ours = prepare(f"ilsvrc2012:{downloads}", tmp_path / "ours", size=32, format="raw")
    assert ours.classes == manifest.classes
    for split, theirs in (("train", train), ("validation", validation)):
        for seed, (name, pixels) in images_of(tmp_path / "ours", split).items():
            assert theirs[seed][0] == name
            if seed > 100 or TRAIN[seed] not in (CMYK, PNG):
                np.testing.assert_array_equal(theirs[seed][1], pixels)

    # It is read again without TensorFlow, and not made again.
    (downloads / "ILSVRC2012_img_train.tar").unlink()
    assert open_source(source, 32).splits["train"].count == len(TRAIN)


def test_imagenet2012_without_labels(without_tensorflow, downloads, tmp_path):
    """The test split's labels were never published: it is left out."""
    files = {f"ILSVRC2012_test_{i:08d}.JPEG": file_of("", 200 + i) for i in (1, 2)}
    (downloads / "ILSVRC2012_img_test.tar").write_bytes(tar_of(files))
    source = open_source(f"tfds:imagenet2012@{tmp_path}/data", 32)
    assert list(source.splits) == ["train", "validation"]


def test_cifar10(without_tensorflow, tmp_path, monkeypatch):
    folder = tmp_path / "cifar" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("\n".join(cifar10.CLASSES) + "\n\n")
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        rows = rng.integers(0, 256, (7, 3073), np.uint8)
        rows[:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    monkeypatch.setattr(
        tfds.download.DownloadManager, "download_and_extract", lambda *_: str(folder.parent)
    )
    ours, theirs = (
        prepare(source, tmp_path / name, size=32, format="raw")
        for source, name in (
            (f"cifar10:{folder}", "ours"),
            (f"tfds:cifar10@{tmp_path}/data", "theirs"),
        )
    )
    assert ours.classes == theirs.classes == cifar10.CLASSES
    opened = [records.open_records(tmp_path / name) for name in ("ours", "theirs")]
    for split, count in (("train", 35), ("test", 7)):
        contents = []
        for of in opened:
            pairs, out = Counter(), np.zeros((32, 32, 3), np.uint8)
            for index, label in enumerate(of.split(split).labels):
                of.split(split).read(index, out)
                pairs[label, out.tobytes()] += 1
            contents.append(pairs)
        assert contents[0] == contents[1]
        assert contents[0].total() == count


def test_no_such_set(tmp_path):
    with pytest.raises(UserError, match="tfds:imagenet2013: TFDS has no set of this name"):
        open_source(f"tfds:imagenet2013@{tmp_path}", 32)


def test_not_downloaded(without_tensorflow, tmp_path):
    """TFDS' own explanation, in one line."""
    with pytest.raises(UserError, match=r"could not make this set: .*ILSVRC2012_img") as raised:
        open_source(f"tfds:imagenet2012@{tmp_path}", 32)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_tensorflow_is_missing(downloads, tmp_path):
    with pytest.raises(UserError, match="pip install tensorflow-cpu, or read ImageNet's tars"):
        open_source(f"tfds:imagenet2012@{tmp_path}/data", 32)


def test_not_a_classification_set(tmp_path):
    """Refused before it is downloaded."""
    with pytest.raises(UserError, match="is not a set of images with one label each"):
        open_source(f"tfds:ag_news_subset@{tmp_path}", 32)


def test_stored_without_random_access(without_tensorflow, downloads, tmp_path):
    """As TFDS stores sets by default."""
    source = f"tfds:imagenet2012@{tmp_path}/data"
    open_source(source, 32)
    (info,) = (tmp_path / "data").glob("imagenet2012/*/dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for file in info.parent.glob("*.array_record*"):
        file.rename(str(file).replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"as tfrecord, which has no random access; .*@DATA_DIR"):
        open_source(source, 32)
