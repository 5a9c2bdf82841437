"""Records are used for the source that the config names, and for no other."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from alexnet_jax.data import layout
from alexnet_jax.data.origin import check_origin
from alexnet_jax.data.records import Records, open_records
from alexnet_jax.data.sources import cifar10
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime.errors import UserError


@pytest.fixture
def photos(image_folder, tmp_path) -> Records:
    """Records of a folder with two classes."""
    prepare(f"folder:{image_folder(count=3)}", tmp_path / "records", size=16, format="raw")
    return open_records(tmp_path / "records")


def root(records: Records) -> Path:
    return Path(records.manifest.source.removeprefix("folder:"))


def of(records: Records, source: str, **changes) -> Records:
    """The records as if they were made of another source."""
    manifest = dataclasses.replace(records.manifest, source=source, **changes)
    return dataclasses.replace(records, manifest=manifest)


def test_the_same_images_in_another_place_are_the_same_source(photos, tmp_path, monkeypatch):
    assert check_origin(photos, photos.manifest.source) == ""
    assert check_origin(photos, f"folder:{root(photos)}/") == ""
    monkeypatch.chdir(root(photos).parent)
    assert check_origin(photos, f"folder:{root(photos).name}") == ""
    shutil.copytree(root(photos), tmp_path / "copy")
    assert check_origin(photos, f"folder:{tmp_path}/copy") == ""
    shutil.move(root(photos), tmp_path / "renamed")
    assert check_origin(photos, f"folder:{tmp_path}/renamed") == ""
    assert check_origin(photos, photos.manifest.source) == ""  # it is gone: nothing to compare


def test_a_config_that_leaves_the_source_open_takes_any(photos):
    assert check_origin(photos, "ilsvrc2012:PATH") == ""


def test_images_left_out_are_no_change(image_folder, tmp_path):
    images = image_folder(count=3)
    (images / "train" / "dog" / "bad.jpg").write_bytes(b"broken")
    prepare(f"folder:{images}", tmp_path / "records", size=16, skip_bad=True)
    records = open_records(tmp_path / "records")
    assert check_origin(records, f"folder:{images}") == ""
    (images / "train" / "dog" / "bad.jpg").unlink()
    assert check_origin(records, f"folder:{images}") == ""
    for name in ("new.png", "newer.png"):
        (images / "train" / "dog" / name).write_bytes(b"any")
    assert "6 train, 6 validation and 1 left out" in check_origin(records, f"folder:{images}")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("folder:/nowhere", "there is no folder /nowhere"),
        ("ilsvrc2012:/nowhere", "made of folder:"),
        ("generated", "made of folder:"),
        ("tfds:mnist", "made of folder:"),
        ("", "made of folder:"),
        ("fodler:photos", "made of folder:"),
    ],
)
def test_another_source_is_refused_with_what_to_do(photos, source, why):
    with pytest.raises(UserError) as refused:
        check_origin(photos, source)
    said = str(refused.value)
    assert said.startswith(f"config.data.source={source}, but the records in {photos.path} ")
    assert why in said
    assert f"run with --config.data.source={photos.manifest.source}" in said
    assert "\n" not in said


def test_other_images_of_the_same_kind_are_refused(photos, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(root(photos), other)
    (other / "train" / "dog" / "0.png").unlink()
    with pytest.raises(UserError, match="it has 5 train, 6 validation images, the records 6 train"):
        check_origin(photos, f"folder:{other}")
    (other / "train" / "dog").rename(other / "train" / "fox")
    (other / "validation" / "dog").rename(other / "validation" / "fox")
    with pytest.raises(UserError, match=r"classes are cat, fox \(2\), those of the records cat, d"):
        check_origin(photos, f"folder:{other}")


def test_a_source_that_has_changed_since_is_told(photos):
    (root(photos) / "train" / "cat" / "new.png").write_bytes(b"any")
    said = check_origin(photos, photos.manifest.source)
    assert "has changed since" in said
    assert "7 train, 6 validation images, the records 6 train, 6 validation" in said
    shutil.rmtree(root(photos) / "train")
    assert "has no folder train beside validation" in check_origin(photos, photos.manifest.source)


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("generated", "generated:4096", True),
        ("generated:4096", "generated", True),
        ("generated", "generated:256", False),
        ("tfds:mnist", "tfds:mnist@/data", True),
        ("tfds:mnist@/data", "tfds:mnist@/other", True),
        ("tfds:mnist", "tfds:cifar10", False),
        ("ilsvrc2012:a", "ilsvrc2012:./a", True),  # where the tars are is not read
        ("cifar10:/nowhere", "cifar10:/nowhere", True),
        ("cifar10:/nowhere", "cifar10:/elsewhere", False),
    ],
)
def test_names_of_other_kinds(photos, ours, theirs, same):
    records = of(photos, theirs, classes=cifar10.CLASSES)
    if same:
        assert check_origin(records, ours) == ""
    else:
        with pytest.raises(UserError, match=f"were made of {theirs}"):
            check_origin(records, ours)


def test_records_of_version_0_1_are_compared_too(photos):
    layout.write_manifest(photos.path, dataclasses.replace(photos.manifest, version=1))
    old = open_records(photos.path)
    assert old.manifest.version == 1
    assert check_origin(old, photos.manifest.source) == ""
    with pytest.raises(UserError, match="there is no folder /nowhere"):
        check_origin(old, "folder:/nowhere")
