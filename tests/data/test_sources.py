"""Every kind of source, read from files that the tests write."""

import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from alexnet_jax.data.sources import Source, cifar10, generated, open_source
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime.errors import UserError
from tests.data.conftest import tar_of

# The first three of ILSVRC's classes, and the classes of the first two validation images.
TENCH, GOLDFISH, SHARK = "n01440764", "n01443537", "n01484850"
FIRST_VALIDATION = ("n01751748", "n09193705")


def read_all(source: Source, split: str) -> list[tuple[bytes, int]]:
    of = source.splits[split]
    return [tuple(of.read(index)) for index in range(of.count)]


# --- folder -------------------------------------------------------------------------------------


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_folder(tmp_path):
    write(tmp_path, "train/dog/b.jpg", "train/dog/a.JPEG", "train/cat/z", "train/owl/1.png")
    write(tmp_path, "val/owl/1.png", "val/cat/1.png", "README.md", "train/.DS_Store", ".git/x/y")
    source = open_source(f"folder:{tmp_path}", 256)
    assert source.classes == ("cat", "dog", "owl")
    assert list(source.splits) == ["train", "validation"]
    assert read_all(source, "train") == [
        (b"train/cat/z", 0),
        (b"train/dog/a.JPEG", 1),
        (b"train/dog/b.jpg", 1),
        (b"train/owl/1.png", 2),
    ]
    assert read_all(source, "validation") == [(b"val/cat/1.png", 0), (b"val/owl/1.png", 2)]
    assert source.splits["validation"].name(1) == f"{tmp_path}/val/owl/1.png"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["test/cat/1.png"], "has no folder train beside test; add train/CLASS/IMAGE"),
        (
            ["train/1.png"],
            r"expected .*/train/CLASS/\*.jpg \(found 1 images directly in",
        ),
        (["train/cat/1.png", "val/dog/1.png"], "val/dog is a class that the training split does"),
        (["train/cat/1.png", "val/cat/1", "valid/cat/1"], "are both the validation split"),
        (["train/cat/more/1.png"], "train/cat/more is a folder where an image should be"),
    ],
)
def test_folder_of_another_shape(tmp_path, files, message):
    write(tmp_path, *files)
    with pytest.raises(UserError, match=message):
        open_source(f"folder:{tmp_path}", 256)


# --- classes ------------------------------------------------------------------------------------


def test_of_each_class_every_second_image_is_held_out(tmp_path):
    write(tmp_path, *(f"dog/{name}" for name in "edcba"), "owl/1")
    (tmp_path / "cat.tar").write_bytes(tar_of({"cat_2": b"two", "cat_1": b"one", "cat_3": b"3"}))
    source = open_source(f"classes:{tmp_path}@2", 256)
    assert source.classes == ("cat", "dog", "owl")
    assert read_all(source, "train") == [
        (b"one", 0),
        (b"3", 0),
        (b"dog/a", 1),
        (b"dog/c", 1),
        (b"dog/e", 1),
        (b"owl/1", 2),
    ]
    assert read_all(source, "validation") == [(b"two", 0), (b"dog/b", 1), (b"dog/d", 1)]
    assert source.splits["validation"].name(0) == f"{tmp_path}/cat.tar/cat_2"
    assert source.splits["validation"].name(2) == f"{tmp_path}/dog/d"
    fifth = open_source(f"classes:{tmp_path}@5", 256)
    assert read_all(fifth, "validation") == [(b"dog/e", 1)]


@pytest.mark.parametrize(
    ("files", "rest", "message"),
    [
        (["cat/1"], "", "say how many images of a class are held out"),
        (["cat/1"], "@1", "say how many images of a class are held out"),
        (["cat/1"], "@half", "say how many images of a class are held out"),
        (["1.png"], "@2", r"holds no images in class folders; .* \(found 1 images directly"),
        (["notes"], "@2", "must hold CLASS/IMAGE or CLASS.tar; it holds notes; layouts that are"),
        (["cat/1", "cat.tar"], "@2", "has both cat and cat.tar"),
        (["cat.tar"], "@2", "cat.tar is damaged or half downloaded"),
        (["cat/more/1"], "@2", "cat/more is a folder where an image should be"),
    ],
)
def test_classes_of_another_shape(tmp_path, files, rest, message):
    write(tmp_path, *files)
    with pytest.raises(UserError, match=message):
        open_source(f"classes:{tmp_path}{rest}", 256)


@pytest.mark.parametrize("spec", ["", "folder", "folder:", "images:x", "/data", "imagenet2012"])
def test_no_such_kind_of_source(spec):
    with pytest.raises(UserError, match="a source is folder:PATH, ilsvrc2012:PATH"):
        open_source(spec, 256)


@pytest.mark.parametrize("kind", ["folder", "ilsvrc2012"])
def test_no_such_folder(kind):
    with pytest.raises(UserError, match="there is no folder /nowhere"):
        open_source(f"{kind}:/nowhere", 256)


# --- ILSVRC-2012 --------------------------------------------------------------------------------


def images_of(wnid: str, count: int) -> dict[str, bytes]:
    """Not sorted by name, as in the real tars."""
    return {f"{wnid}_{i}.JPEG": f"{wnid} {i}".encode() * i for i in range(count, 0, -1)}


TRAIN = {SHARK: images_of(SHARK, 3), TENCH: images_of(TENCH, 12)}
VALIDATION = {f"ILSVRC2012_val_{i:08d}.JPEG": f"v{i}".encode() for i in (2, 1)}


@pytest.fixture
def tars(tmp_path) -> Path:
    train = {f"{wnid}.tar": tar_of(files) for wnid, files in TRAIN.items()}
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_of(train))
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(tar_of(VALIDATION))
    return tmp_path


def unpack(root: Path) -> None:
    for wnid, files in TRAIN.items():
        (root / wnid).mkdir(parents=True)
        for name, data in files.items():
            (root / wnid / name).write_bytes(data)


def expected_train() -> list[tuple[bytes, int]]:
    return [
        (TRAIN[wnid][name], label)
        for wnid, label in ((TENCH, 0), (SHARK, 2))
        for name in sorted(TRAIN[wnid])
    ]


def labels_of_validation(source: Source) -> list[str]:
    return [source.classes[label] for _, label in read_all(source, "validation")]


def test_ilsvrc_tars(tars):
    source = open_source(f"ilsvrc2012:{tars}", 256)
    assert len(source.classes) == 1000
    assert source.classes[:3] == (TENCH, GOLDFISH, SHARK)
    assert list(source.classes) == sorted(source.classes)
    assert read_all(source, "train") == expected_train()
    assert source.splits["train"].name(12).endswith(f"train.tar/{SHARK}/{SHARK}_1.JPEG")
    assert [data for data, _ in read_all(source, "validation")] == [b"v1", b"v2"]
    assert labels_of_validation(source) == list(FIRST_VALIDATION)


def test_ilsvrc_unpacked_is_the_same(tars, tmp_path):
    root = tmp_path / "unpacked"
    unpack(root / "train")
    (root / "val").mkdir()
    for name, data in VALIDATION.items():
        (root / "val" / name).write_bytes(data)
    ours, packed = (open_source(f"ilsvrc2012:{path}", 256) for path in (root, tars))
    assert ours.classes == packed.classes
    for split in ("train", "validation"):
        assert read_all(ours, split) == read_all(packed, split)
    sorted_by_class = tmp_path / "sorted"
    unpack(sorted_by_class / "train")
    write(sorted_by_class / "val", *(f"{w}/{i}.JPEG" for i, w in enumerate(FIRST_VALIDATION)))
    source = open_source(f"ilsvrc2012:{sorted_by_class}", 256)
    assert labels_of_validation(source) == list(FIRST_VALIDATION)


def test_ilsvrc_training_folders_alone(tmp_path):
    unpack(tmp_path)
    source = open_source(f"ilsvrc2012:{tmp_path}", 256)
    assert list(source.splits) == ["train"]
    assert read_all(source, "train") == expected_train()


def test_ilsvrc_nothing_there(tmp_path):
    with pytest.raises(UserError, match=r"must hold ILSVRC2012_img_train.tar and .* nothing;"):
        open_source(f"ilsvrc2012:{tmp_path}", 256)


def test_ilsvrc_without_training_images(tars):
    (tars / "ILSVRC2012_img_train.tar").unlink()
    with pytest.raises(UserError, match=r"it holds ILSVRC2012_img_val.tar; layouts"):
        open_source(f"ilsvrc2012:{tars}", 256)


def test_ilsvrc_half_downloaded(tars):
    path = tars / "ILSVRC2012_img_train.tar"
    os.truncate(path, 6000)
    with pytest.raises(UserError, match=r"train.tar is damaged or half downloaded"):
        open_source(f"ilsvrc2012:{tars}", 256)


@pytest.mark.parametrize(
    "name", ["cat.JPEG", "ILSVRC2012_val_00050001.JPEG", "ILSVRC2012_val_00000000.JPEG"]
)
def test_ilsvrc_strange_validation_image(tars, name):
    (tars / "ILSVRC2012_img_val.tar").write_bytes(tar_of({name: b""}))
    with pytest.raises(UserError, match=f"{name} is not called ILSVRC2012_val_00000001.JPEG"):
        open_source(f"ilsvrc2012:{tars}", 256)


def test_a_tar_that_ends_too_early_or_has_a_bad_header_is_refused(tars):
    """tarfile itself takes an unreadable header for the end of the tar."""
    path = tars / "ILSVRC2012_img_train.tar"
    whole = path.read_bytes()
    second = whole.index(f"{TENCH}_3.JPEG".encode())  # a header in an inner tar
    outer = whole.index(f"{TENCH}.tar".encode())  # the second class' header
    for damaged in (
        whole[: second + 20] + bytes([whole[second + 20] ^ 1]) + whole[second + 21 :],
        whole[:outer],  # cut between two classes
        whole[: outer + 100],  # in a header
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"train.tar is damaged or half downloaded"):
            open_source(f"ilsvrc2012:{tars}", 256)


def test_ilsvrc_strange_class(tars, tmp_path):
    (tars / "ILSVRC2012_img_train.tar").write_bytes(tar_of({"n00000001.tar": tar_of({})}))
    with pytest.raises(UserError, match=r"n00000001.tar is none of ILSVRC-2012's 1000 classes"):
        open_source(f"ilsvrc2012:{tars}", 256)
    write(tmp_path / "folders", "train/cat/1.JPEG")
    with pytest.raises(UserError, match="train/cat is none of ILSVRC-2012's 1000 classes"):
        open_source(f"ilsvrc2012:{tmp_path}/folders", 256)


# --- CIFAR-10 -----------------------------------------------------------------------------------


@pytest.fixture
def cifar() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each file the images, uint8 [4, 32, 32, 3], and labels."""
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return {
        name: (rng.integers(0, 256, (4, 32, 32, 3), np.uint8), rng.integers(0, 10, 4))
        for name in names
    }


def planes(images: np.ndarray) -> np.ndarray:
    return np.stack([np.concatenate([i[..., c].ravel() for c in range(3)]) for i in images])


def binary(images: np.ndarray, labels: np.ndarray) -> bytes:
    rows = zip(planes(images), labels, strict=True)
    return b"".join(bytes([label]) + row.tobytes() for row, label in rows)


class Python2Pickler(pickle._Pickler):
    """Writes one kind of string, as Python 2 did; CIFAR-10 was pickled by Python 2."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_bytes(self, data):
        data = data.encode() if isinstance(data, str) else data
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(data)

    dispatch[bytes] = dispatch[str] = save_bytes


def python_2(value) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    # the module's name at that time
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def python_batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    return python_2({"data": planes(images), "labels": labels.tolist()})


def check_cifar(source: Source, cifar) -> None:
    assert source.classes == cifar10.CLASSES
    train = [cifar[f"data_batch_{i}"] for i in range(1, 6)]
    for split, parts in (("train", train), ("test", [cifar["test_batch"]])):
        read = read_all(source, split)
        np.testing.assert_array_equal([p for p, _ in read], np.concatenate([i for i, _ in parts]))
        assert [label for _, label in read] == np.concatenate([y for _, y in parts]).tolist()


@pytest.mark.parametrize(("encode", "suffix"), [(binary, ".bin"), (python_batch, "")])
def test_cifar10_folder_and_tar(tmp_path, cifar, encode, suffix):
    folder = tmp_path / "cifar-10-batches"
    folder.mkdir()
    for name, (images, labels) in cifar.items():
        (folder / f"{name}{suffix}").write_bytes(encode(images, labels))
    check_cifar(open_source(f"cifar10:{folder}", 32), cifar)
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as tar:
        tar.add(folder, "cifar-10-batches")
    check_cifar(open_source(f"cifar10:{tmp_path}/cifar.tar.gz", 32), cifar)


class Malice:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


def test_cifar10_pickle_cannot_run_code(tmp_path, cifar, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in cifar:
        (tmp_path / name).write_bytes(python_2({"data": Malice()}))
    with pytest.raises(UserError, match=r"data_batch_1 is no batch of CIFAR-10 .*mkdir"):
        open_source(f"cifar10:{tmp_path}", 32)
    assert not (tmp_path / "hacked").exists()


def test_cifar10_damaged(tmp_path, cifar):
    for name, (images, labels) in cifar.items():
        (tmp_path / f"{name}.bin").write_bytes(binary(images, labels))
    images, labels = cifar["test_batch"]
    (tmp_path / "test_batch.bin").write_bytes(binary(images, labels + 10))
    with pytest.raises(UserError, match=r"/test\[0\] has label 1\d; .* 0 to 9: the source is dam"):
        prepare(f"cifar10:{tmp_path}", tmp_path / "out", size=32)
    (tmp_path / "test_batch.bin").write_bytes(binary(images, labels)[:-1])
    with pytest.raises(UserError, match=r"test_batch.bin has 12291 bytes, no multiple of 3073"):
        open_source(f"cifar10:{tmp_path}", 32)
    (tmp_path / "data_batch_3.bin").unlink()
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match=r"must be cifar-10-python.tar.gz"):
            open_source(f"cifar10:{path}", 32)
    (tmp_path / "half.tar.gz").write_bytes(b"\x1f\x8b\x08" + bytes(100))
    with pytest.raises(UserError, match=r"half.tar.gz is damaged or half downloaded"):
        open_source(f"cifar10:{tmp_path}/half.tar.gz", 32)


# --- generated ----------------------------------------------------------------------------------


def test_generated():
    source = open_source("generated:25", 40)
    assert source.classes == generated.CLASSES
    assert {name: split.count for name, split in source.splits.items()} == {
        "train": 25,
        "validation": generated.VALIDATION,
    }
    again = open_source("generated:25", 40)
    for split in ("train", "validation"):
        for index in (0, 7, 24):
            image, label = source.splits[split].read(index)
            assert image.shape == (40, 40, 3)
            assert image.dtype == np.uint8
            assert label == index % 10
            np.testing.assert_array_equal(image, again.splits[split].read(index).image)
    train, validation = (source.splits[s].read(3).image for s in ("train", "validation"))
    assert (train != validation).any()
    assert open_source("generated", 40).splits["train"].count == generated.TRAIN


@pytest.mark.parametrize("count", ["0", "-1", "many", "1.5"])
def test_generated_count(count):
    with pytest.raises(UserError, match=r"a number of images up to 10,000,000, as generated:4096"):
        open_source(f"generated:{count}", 40)


def test_generated_classes_can_be_told_apart():
    """The family by its colour; the stripes by the direction of their edges."""
    for index in range(60):
        family, form = generated.CLASSES[index % 10].split()
        image = generated.draw((2, index), index % 10, 64).astype(float)
        spread = image.max(-1) - image.min(-1)
        inside = spread >= np.quantile(spread, 0.95)
        red, _, blue = image[inside].mean(0)
        assert (red > blue) == (family == "warm")
        down, across = (np.abs(np.diff(image[..., 0] - image[..., 2], axis=a)) for a in (0, 1))
        if form == "horizontal":
            assert down.mean() > across.mean()
        elif form == "vertical":
            assert down.mean() < across.mean()
