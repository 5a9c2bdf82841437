"""ImageNet and photos as people have them: a miniature of each layout, of the photos in tests/."""

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from alexnet_jax.data.records import open_records
from alexnet_jax.data.sources import Source, files, open_source
from alexnet_jax.data.sources.source import hold_out
from alexnet_jax.prepare import main, prepare
from alexnet_jax.runtime.errors import UserError
from tests.conftest import PHOTOS
from tests.data.conftest import tar_of

TENCH, SHARK = "n01440764", "n01484850"  # classes 0 and 2
PHOTO = {file.stem: file.read_bytes() for file in PHOTOS.glob("*.jpg")}
TRAIN = {
    TENCH: {f"{TENCH}_1.JPEG": PHOTO["hat"], f"{TENCH}_2.JPEG": PHOTO["dress"]},
    SHARK: {f"{SHARK}_7.JPEG": PHOTO["shoes"]},
}
# As the lists of the real set have them.
VALIDATION = {
    "ILSVRC2012_val_00000001.JPEG": ("n01751748", PHOTO["pants"]),
    "ILSVRC2012_val_00000002.JPEG": ("n09193705", PHOTO["t-shirt"]),
}
TAR = {wnid: tar_of(images) for wnid, images in TRAIN.items()}
FLAT = {name: data for name, (_, data) in VALIDATION.items()}


def write(root: Path, contents: dict[str, bytes]) -> None:
    for name, data in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def below(folder: str, contents: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": data for name, data in contents.items()}


FOLDERS = {f"{wnid}/{name}": data for wnid, of in TRAIN.items() for name, data in of.items()}
SORTED = {f"{wnid}/{name}": data for name, (wnid, data) in VALIDATION.items()}
CLASS_TARS = {f"{wnid}.tar": data for wnid, data in TAR.items()}
DEVKIT = {"ILSVRC2012_devkit_t12/data/meta.mat": b"", "ILSVRC2012_devkit_t12.tar.gz": b""}
KAGGLE = below("train", FOLDERS) | below("val", FLAT) | {"test/ILSVRC2012_test_00000001.JPEG": b""}
LISTS = {
    "LOC_synset_mapping.txt": b"n01440764 tench, Tinca tinca\n",
    "LOC_val_solution.csv": "\n".join(
        ["ImageId,PredictionString"]
        + [f"{name[:-5]},{wnid} 85 1 499 272" for name, (wnid, _) in VALIDATION.items()]
    ).encode(),
}
LAYOUTS = {
    "official tars": {
        "ILSVRC2012_img_train.tar": tar_of(CLASS_TARS),
        "ILSVRC2012_img_val.tar": tar_of(FLAT),
    },
    "class tars": below("train", CLASS_TARS) | below("val", FLAT),
    "class tars beside a devkit": CLASS_TARS | DEVKIT | {"ILSVRC2012_img_val.tar": tar_of(FLAT)},
    "flat validation": below("train", FOLDERS) | below("validation", FLAT),
    "torchvision": below("train", FOLDERS) | below("val", SORTED) | {"meta.bin": b""},
    "classes beside a devkit": FOLDERS | DEVKIT | below("val", SORTED),
    "kaggle": below("ILSVRC/Data/CLS-LOC", KAGGLE) | {"ILSVRC/Annotations/x.xml": b""} | LISTS,
    "kaggle's ILSVRC": below("Data/CLS-LOC", KAGGLE) | {"ImageSets/CLS-LOC/val.txt": b""},
    "kaggle's folder of images": KAGGLE,
}


def contents(source: Source, split: str) -> Counter:
    """Of each image its class and its bytes."""
    of = source.splits[split]
    read = (of.read(index) for index in range(of.count))
    return Counter((source.classes[one.label], one.image) for one in read)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_imagenet_has_the_same_images_and_labels(tmp_path, name):
    write(tmp_path, LAYOUTS[name])
    source = open_source(f"ilsvrc2012:{tmp_path}", 256)
    assert len(source.classes) == 1000
    assert contents(source, "train") == Counter(
        (wnid, data) for wnid, images in TRAIN.items() for data in images.values()
    )
    assert contents(source, "validation") == Counter(VALIDATION.values())
    assert ("Kaggle's layout" in source.note) == (name in ("kaggle", "kaggle's ILSVRC"))


SWAPPED = {  # other labels than the numbers of the images give
    "ILSVRC2012_val_00000001.JPEG": (SHARK, PHOTO["pants"]),
    "ILSVRC2012_val_00000002.JPEG": (TENCH, PHOTO["t-shirt"]),
}


def solution(validation: dict[str, tuple[str, bytes]]) -> bytes:
    """As Kaggle's: a second box for the first image, no .JPEG in the names, another order."""
    lines = [f"{name[:-5]},{wnid} 85 1 499 272 " for name, (wnid, _) in validation.items()]
    lines[0] += f"{next(iter(validation.values()))[0]} 1 2 3 4 "
    return "\r\n".join(["ImageId,PredictionString", *lines[::-1], ""]).encode()


@pytest.mark.parametrize("given", ["", "ILSVRC", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_list_has_the_labels_of_validation_images(tmp_path, given, monkeypatch):
    write(tmp_path, below("ILSVRC/Data/CLS-LOC", KAGGLE))
    write(tmp_path, {"LOC_val_solution.csv": solution(SWAPPED)})
    monkeypatch.chdir(tmp_path / given)
    for path in (tmp_path / given, "."):
        source = open_source(f"ilsvrc2012:{path}", 256)
        assert contents(source, "validation") == Counter(SWAPPED.values())
    inner = f"{path}" if given.endswith("LOC") else "ILSVRC/Data/CLS-LOC".removeprefix(f"{given}/")
    found = f"LOC_val_solution.csv and {inner} found: reading Kaggle's layout"
    assert source.note == found
    (tmp_path / "LOC_val_solution.csv").unlink()
    assert contents(open_source(f"ilsvrc2012:{path}", 256), "validation") == Counter(
        VALIDATION.values()
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "has no line for ILSVRC2012_val_00000001.JPEG; get it again"),
        (b"ImageId,PredictionString\nILSVRC2012_val_00000001,", "must have the columns ImageId"),
        (b"ImageId\nILSVRC2012_val_00000001\n", "must have the columns ImageId,PredictionString"),
        (b"\xff\xfe\x00", "must have the columns ImageId,PredictionString"),
        (solution({"ILSVRC2012_val_00000001.JPEG": (TENCH, b"")}), "has no line for ILSVRC2012_v"),
        (solution(SWAPPED).replace(SHARK.encode(), b"n99999999"), "has the class 'n99999999', whi"),
    ],
)
def test_a_damaged_list_of_kaggle_is_one_line(tmp_path, text, said):
    write(tmp_path, below("ILSVRC/Data/CLS-LOC", KAGGLE) | {"LOC_val_solution.csv": text})
    with pytest.raises(UserError, match=said) as error:
        open_source(f"ilsvrc2012:{tmp_path}", 256)
    assert str(error.value).startswith(f"{tmp_path}/LOC_val_solution.csv ")


# --- parquet files ------------------------------------------------------------------------------


def parquet_file(
    path: Path, rows: list[tuple[bytes | None, int]], features=None, **options
) -> None:
    """As the package datasets writes it."""
    about = features or {
        "image": {"_type": "Image"},
        "label": {"names": ["hat", "shoes"], "_type": "ClassLabel"},
    }
    images = [{"bytes": data, "path": f"{i}.jpg"} for i, (data, _) in enumerate(rows)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        next(iter(about)): pa.array(images, kind),
        "label": pa.array([label for _, label in rows], pa.int64()),
    }
    metadata = {"huggingface": json.dumps({"info": {"features": about}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns).replace_schema_metadata(None if features == {} else metadata)
    parquet.write_table(table, path, **options)


HATS_AND_SHOES = [(PHOTO["hat"], 0), (PHOTO["shoes"], 1), (PHOTO["dress"], 0), (PHOTO["pants"], 1)]


def test_parquet_files_of_hugging_face(tmp_path):
    """In two files, with row groups of different lengths; the labels of test are not published."""
    data = tmp_path / "data"
    parquet_file(data / "train-00000-of-00002.parquet", HATS_AND_SHOES[:3], row_group_size=2)
    parquet_file(data / "train-00001-of-00002.parquet", HATS_AND_SHOES[3:])
    parquet_file(data / "validation-00000-of-00001.parquet", HATS_AND_SHOES[1:2])
    parquet_file(data / "test-00000-of-00001.parquet", [(PHOTO["hat"], -1)])
    source = open_source(f"hf:{tmp_path}", 256)
    assert source.classes == ("hat", "shoes")
    assert list(source.splits) == ["train", "validation"]
    train = source.splits["train"]
    for order in (range(4), (3, 0, 2, 1)):
        assert [tuple(train.read(index)) for index in order] == [HATS_AND_SHOES[i] for i in order]
    assert train.name(2) == f"{data}/train-00000-of-00002.parquet[2]"
    assert contents(source, "validation") == Counter({("shoes", PHOTO["shoes"]): 1})
    ours = prepare(f"hf:{tmp_path}", tmp_path / "out", size=16, threads=3)
    assert ours.splits["train"].label_counts == (2, 2)


def test_parquet_files_with_other_names(tmp_path):
    """A column of another name, splits by folder as in converted sets, and no validation split."""
    features = {"img": {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    parquet_file(tmp_path / "default/train/0000.parquet", HATS_AND_SHOES, features)
    source = open_source(f"hf:{tmp_path}", 256)
    assert {name: split.count for name, split in source.splits.items()} == {
        "train": 2,
        "validation": 2,
    }
    assert "2 of 4 images are held out" in source.note
    plain = tmp_path / "plain"
    parquet_file(plain / "photos.parquet", HATS_AND_SHOES, {})
    assert open_source(f"hf:{plain}", 256).classes == ("0", "1")


def test_parquet_files_that_cannot_be_read(tmp_path):
    def said(name: str) -> str:
        with pytest.raises(UserError) as refused:
            open_source(f"hf:{tmp_path}/{name}", 256)
        return str(refused.value)

    write(tmp_path, {"damaged/train.parquet": b"PAR1", "none/a.txt": b""})
    write(tmp_path, {"lfs/train.parquet": b"version https://git-lfs.github.com/spec/v1\n"})
    assert "train.parquet is damaged or half downloaded" in said("damaged")
    assert "is only a pointer of git lfs" in said("lfs")
    assert "must hold parquet files, as data/train-00000-of-00294.parquet; it holds a.txt" in said(
        "none"
    )
    for folder in ("one", "two"):
        parquet_file(tmp_path / "two" / folder / "train.parquet", HATS_AND_SHOES)
    assert "as if of several sets; give one folder" in said("two")
    parquet_file(tmp_path / "text/train.parquet", HATS_AND_SHOES, {"text": {}, "label": {}})
    assert "must have one column of images, and one of labels" in said("text")
    parquet_file(tmp_path / "no_bytes/train.parquet", [(None, 0), (None, 0)])
    with pytest.raises(UserError, match=r"train.parquet\[\d\]: has no bytes in its file"):
        prepare(f"hf:{tmp_path}/no_bytes", tmp_path / "out", size=16)


# --- what is not read ---------------------------------------------------------------------------

UNREAD = {
    "TFRecords": ({"train-00000-of-01024": b""}, "TFRecords, which have no random access"),
    "TFDS' TFRecords": ({"imagenet2012-train.tfrecord-00000-of-01024": b""}, "give the images"),
    "arrow files": ({"train/data-00000-of-00001.arrow": b""}, "write them with its to_parquet, an"),
    "a set of TFDS": ({"features.json": b"{}"}, "give --source=tfds:NAME@DATA_DIR"),
    "webdataset": (
        {"imagenet-train-000000.tar": tar_of({"a.jpg": b"", "a.cls": b"0"})},
        "webdataset's shards are not read: unpack them, sort",
    ),
    "webdataset in train": (
        {"train/imagenet-train-000000.tar": tar_of({"a.jpg": b"", "a.cls": b"0"})},
        "webdataset's shards are not read: unpack them, sort",
    ),
    "gzipped tars": (
        {"ILSVRC2012_img_train.tar.gz": b"", "ILSVRC2012_img_val.tar": tar_of(FLAT)},
        "compressed archives (ILSVRC2012_img_train.tar.gz); unpack them",
    ),
    "gzipped class tars": (
        {f"train/{TENCH}.tar.gz": b""},
        f"compressed archives ({TENCH}.tar.gz); unpack them",
    ),
    "a gzipped tar by another name": (
        {"ILSVRC2012_img_train.tar": gzip.compress(tar_of(CLASS_TARS))},
        "is compressed, so no image can be found in it without reading all before",
    ),
    "Kaggle's archive": ({"imagenet_object_localization.tar.gz": b""}, "compressed archives"),
    "Kaggle's lists alone": (LISTS, "Kaggle's lists without ILSVRC/Data/CLS-LOC"),
    "a devkit alone": (DEVKIT, "it holds ILSVRC2012_devkit_t12, ILSVRC2012_devkit_t12.tar.gz; lay"),
    "parquet files": ({"data/train-00000-of-00294.parquet": b""}, "give --source=hf:"),
    "parquet files in train": ({"train/0000.parquet": b""}, "give --source=hf:"),
    "something else": ({"notes.txt": b"", "x/y": b""}, "layouts that are read: folder:PATH with"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_read_is_named_and_the_way_too(tmp_path, name):
    found, said = UNREAD[name]
    write(tmp_path, found)
    with pytest.raises(UserError) as refused:
        open_source(f"ilsvrc2012:{tmp_path}", 256)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "found", "said"),
    [
        ("folder", LAYOUTS["kaggle"], "as Kaggle's ImageNet; give --source=ilsvrc2012:"),
        ("folder", LAYOUTS["kaggle's folder of images"], "(found 2 images directly in "),
        ("folder", LAYOUTS["official tars"], "tars of ILSVRC-2012 (ILSVRC2012_img_train.tar);"),
        ("folder", UNREAD["parquet files"][0], "parquet files (train-00000-of-00294.parquet)"),
        ("folder", UNREAD["parquet files in train"][0], "give --source=hf:"),
        ("folder", UNREAD["webdataset in train"][0], "webdataset's shards are not read"),
        ("classes", UNREAD["webdataset"][0], "webdataset's shards are not read"),
        ("classes", UNREAD["TFRecords"][0], "TFRecords, which have no random access"),
    ],
)
def test_another_source_than_the_right_one(tmp_path, kind, found, said):
    write(tmp_path, found)
    with pytest.raises(UserError) as refused:
        open_source(f"{kind}:{tmp_path}{'@2' * (kind == 'classes')}", 256)
    assert said in str(refused.value)


def test_tfds_would_need_another_package_for_hugging_face():
    with pytest.raises(UserError, match=r"download those of imagenet-1k and give --source=hf:FOL"):
        open_source("tfds:huggingface:imagenet-1k", 256)


# --- folders of photos --------------------------------------------------------------------------


def photos(root: Path, *names: str) -> None:
    write(root, dict.fromkeys(names, PHOTO["hat"]))


def test_a_tenth_of_each_class_is_held_out(tmp_path):
    photos(tmp_path, *(f"cat/{i}.jpg" for i in range(30)), *(f"dog/{i}.jpg" for i in range(2)))
    photos(tmp_path, "cover.jpg", ".git/config")
    write(tmp_path, {"README.md": b"about", "list.parquet": b"names and sizes"})
    source = open_source(f"folder:{tmp_path}", 256)
    assert source.classes == ("cat", "dog")
    names = {
        name: {split.name(index) for index in range(split.count)}
        for name, split in source.splits.items()
    }
    assert names["train"] | names["validation"] == {
        str(file) for file in tmp_path.glob("[cd]*/*.jpg")
    }
    assert not names["train"] & names["validation"]
    count = Counter(Path(name).parent.name for name in names["validation"])
    assert count == {"cat": 3, "dog": 1}
    assert source.note.startswith("there is no validation split: 4 of 32 images are held out")
    assert source.note.endswith(f"1 images directly in {tmp_path} are left out")
    # In train/ without val/ it is the same, and in another place.
    for name in ("cat", "dog"):
        shutil.copytree(tmp_path / name, tmp_path / "other/train" / name)
    other = open_source(f"folder:{tmp_path}/other", 256).splits["validation"]
    theirs = {other.name(i).removeprefix(f"{tmp_path}/other/train") for i in range(other.count)}
    assert theirs == {name.removeprefix(str(tmp_path)) for name in names["validation"]}


def test_the_names_decide_and_not_their_order_or_number():
    """A new image takes the place of one that is held out, or of none."""
    names = [f"cat/{i}.jpg" for i in range(40)]

    def held_out(names: list[str]) -> set[str]:
        images = files.image_files(Path("photos"), names, [0] * len(names))
        split = hold_out(images, [0] * len(names), names, ["cat"]).splits["validation"]
        return {split.name(index).removeprefix("photos/") for index in range(split.count)}

    assert held_out(names) == {f"cat/{i}.jpg" for i in (1, 5, 27, 39)}
    assert held_out(names[::-1]) == held_out(names)
    for new in range(20):
        assert len(held_out(names) - held_out([f"cat/new {new}.jpg", *names])) <= 1


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (("a.jpg", "b.PNG"), "expected ROOT/CLASS/*.jpg (found 2 images directly in ROOT)"),
        (("cat/1.jpg", "cat/2.jpg", "dog/1.jpg"), "class 'dog' has only one image (ROOT/dog/1.jpg"),
        (("cat/1.jpg", "Cat/1.jpg"), "ROOT has the classes 'Cat' and 'cat', which differ only in"),
        (("cat/1.jpg", "dog/.x"), "ROOT/dog has no images; add some, or remove it"),
        (("cat/.x", "dog/.x"), "ROOT/cat has no images; add some, or remove it"),
        ((), "ROOT must hold CLASS/IMAGE, a folder of images for each class; it holds nothing;"),
        (("train/cat/1.jpg", "val/1.jpg"), "expected ROOT/val/CLASS/*.jpg (found 1 images direct"),
        (("cat/a/1.jpg",), "ROOT/cat/a is a folder where an image should be"),
    ],
)
def test_photos_that_are_no_classes_are_one_clear_line(tmp_path, found, said):
    photos(tmp_path, *found)
    with pytest.raises(UserError) as refused:
        open_source(f"folder:{tmp_path}", 256)
    assert said in str(refused.value).replace(str(tmp_path), "ROOT")


def test_a_photo_that_is_none(tmp_path, capsys):
    photos(tmp_path / "photos", "cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg")
    write(tmp_path / "photos", {"dog/3.jpg": b"<html>"})
    with pytest.raises(SystemExit):
        main([f"--source=folder:{tmp_path}/photos", f"--out={tmp_path}/out", "--size=16"])
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error")]
    assert line.endswith(
        f"{tmp_path}/photos/dog/3.jpg: is not an image (JPEG, PNG, ...); fix or remove it, or "
        f"leave out such images with prepare --skip-bad"
    )
    main([f"--source=folder:{tmp_path}/photos", f"--out={tmp_path}/out", "--size=16", "--skip-bad"])
    assert len(open_records(tmp_path / "out").manifest.skipped) == 1
