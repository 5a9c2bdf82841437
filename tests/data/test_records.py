"""Records on the disk: what is read is what was written, and errors name the damaged file."""

import dataclasses
import json
import random
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from alexnet_jax.data import layout, records, shards
from alexnet_jax.data.sources import generated
from alexnet_jax.runtime.errors import UserError


def drawn(count: int, size: int = 24, split: int = 0) -> np.ndarray:
    return np.stack([generated.draw((split, i), i % 10, size) for i in range(count)])


def everything(split: records.Split) -> np.ndarray:
    out = np.zeros((len(split), split.size, split.size, 3), np.uint8)
    for index in range(len(split)):
        split.read(index, out[index])
    return out


def copy(of: records.Records, tmp_path):
    return shutil.copytree(of.path, tmp_path / "copy")


def test_raw_gives_back_every_pixel_and_label(raw_records):
    for name, number, count in (("train", 0, 300), ("validation", 1, 512)):
        split = raw_records.split(name)
        assert len(split) == count
        np.testing.assert_array_equal(everything(split), drawn(count, split=number))
        np.testing.assert_array_equal(split.labels, np.arange(count) % 10)
        assert split.labels.dtype == np.int32


def test_jpeg_gives_back_nearly_every_pixel(jpeg_records):
    """Quality 95 without subsampling: below three grey levels, even in images full of noise."""
    error = everything(jpeg_records.split("train")).astype(float) - drawn(300)
    assert 0 < np.abs(error).mean() < 3


def test_reads_a_part(raw_records):
    split, out = raw_records.split("train"), np.zeros((5, 7, 3), np.uint8)
    split.read(200, out, 3, 11)
    np.testing.assert_array_equal(out, drawn(201)[200, 3:8, 11:18])


def test_many_threads_read_at_once(jpeg_records):
    split = jpeg_records.split("train")
    expected = everything(split)

    def read(index):
        out = np.zeros((24, 24, 3), np.uint8)
        split.read(index, out)
        return out

    indices = np.random.default_rng(0).integers(0, 300, 2000).tolist()
    with ThreadPoolExecutor(8) as pool:
        for index, out in zip(indices, pool.map(read, indices), strict=True):
            np.testing.assert_array_equal(out, expected[index])


@pytest.mark.parametrize("kind", ["raw_records", "jpeg_records"])
def test_statistics_are_those_of_the_stored_training_images(kind, request):
    of = request.getfixturevalue(kind)
    images = everything(of.split("train")).astype(np.float64)
    np.testing.assert_allclose(of.statistics.mean, images.mean(0), rtol=1e-6)
    covariance = np.cov(images.reshape(-1, 3).T, bias=True)
    values, vectors = of.statistics.eigenvalues, of.statistics.eigenvectors
    assert values[0] > values[1] > values[2] > 0
    np.testing.assert_allclose(vectors * values @ vectors.T, covariance, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-11)
    assert (np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0) > 0).all()


def test_statistics_of_a_single_colour_are_exact():
    """n products - (sum)^2 is exactly 0; with rounding it would be positive or negative."""
    pixels = np.full((3, 3, 3), 251 * 10**7, np.int64)
    products = np.full((3, 3), 251 * 251 * 9 * 10**7, np.int64)
    statistics = shards.statistics(10**7, pixels, products)
    np.testing.assert_array_equal(statistics.eigenvalues, 0)
    np.testing.assert_array_equal(statistics.mean, 251)


def test_statistics_do_not_depend_on_how_a_processor_rounds(monkeypatch, raw_records):
    """The hash has them; on an AMD and an Intel processor one eigenvector differed by 1.1e-16."""
    image = everything(raw_records.split("train"))[0].astype(np.int64)
    flat = image.reshape(-1, 3)

    def found(factor):
        whole = lambda matrix, of=np.linalg.eigh: [part * factor for part in of(matrix)]  # noqa: E731
        with monkeypatch.context() as patch:
            patch.setattr(np.linalg, "eigh", whole)
            of = shards.statistics(1, image, flat.T @ flat)
            return of.eigenvalues.tobytes() + of.eigenvectors.tobytes()

    assert found(1 - 2**-52) == found(1) == found(1 + 2**-52)
    assert found(1) != found(1 + 1e-9)


def test_manifest_counts(raw_records):
    manifest = raw_records.manifest
    assert manifest.source == "generated:300"
    assert manifest.classes == generated.CLASSES
    assert manifest.splits["train"].label_counts == (30,) * 10
    assert sum(manifest.splits["validation"].label_counts) == 512
    assert manifest.skipped == ()
    assert re.fullmatch("[0-9a-f]{64}", manifest.hash)


def test_unknown_split(raw_records):
    with pytest.raises(UserError, match=r"no split 'test', only train, validation$"):
        raw_records.split("test")
    with pytest.raises(UserError, match="validation; set --on to one of these, or prepare"):
        raw_records.split("test", "--on")


def test_no_folder_or_no_records(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        assert not records.is_prepared(path)
        with pytest.raises(UserError, match=r"holds no records; .*prepare --source=SOURCE --out="):
            records.open_records(path)


def test_half_prepared(tmp_path):
    options = layout.PrepareOptions("folder:there", 64, "raw")
    layout.begin(tmp_path / "half", options, "hash of the list of images")
    assert not records.is_prepared(tmp_path / "half")
    command = rf"--source=folder:there --out={tmp_path}/half --size=64 --format=raw"
    with pytest.raises(UserError, match="only half prepared; to resume: .*" + command):
        records.open_records(tmp_path / "half")


@pytest.mark.parametrize("name", ["train-00001.raw", "train-labels.npy", "statistics.npz"])
def test_truncated_or_missing_file(raw_records, tmp_path, name):
    path = copy(raw_records, tmp_path)
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[:-1])
    with pytest.raises(UserError, match=f"{name} has {len(whole) - 1} bytes instead of"):
        records.open_records(path)
    (path / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        records.open_records(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 1, "x": 2}'])
def test_unreadable_manifest(raw_records, tmp_path, text):
    path = copy(raw_records, tmp_path)
    (path / layout.MANIFEST).write_text(text)
    with pytest.raises(UserError, match=r"manifest.json is damaged .*prepare it again"):
        records.open_records(path)


def test_manifest_of_another_layout(raw_records, tmp_path):
    path = copy(raw_records, tmp_path)
    values = json.loads((path / layout.MANIFEST).read_text())
    (path / layout.MANIFEST).write_text(json.dumps(values | {"version": 3}))
    with pytest.raises(UserError, match="has layout 3, this program reads layouts 1 and 2"):
        records.open_records(path)


def test_records_of_version_0_1_are_read_and_named_as_such(raw_records, tmp_path):
    path = copy(raw_records, tmp_path)
    manifest = dataclasses.replace(raw_records.manifest, version=1)
    layout.write_manifest(path, manifest)
    opened = records.open_records(path)
    assert opened.manifest.hash == raw_records.manifest.hash
    assert (
        opened.manifest.note()
        == "layout 1: the squares were cut before scaling, as version 0.1 did"
    )
    assert raw_records.manifest.note() == ""


def test_damaged_record_is_named(jpeg_records, tmp_path):
    path = copy(jpeg_records, tmp_path)
    shard = path / "train-00001.array_record"
    data = bytearray(shard.read_bytes())
    middle = len(data) // 2
    data[middle] ^= 0xFF
    shard.write_bytes(data)
    split, out, failed = records.open_records(path).split("train"), np.zeros((24, 24, 3), "u1"), []
    for index in range(len(split)):
        try:
            split.read(index, out)
        except UserError as error:
            failed.append((index, str(error)))
    ((index, message),) = failed  # a flipped bit damages one image; no wrong pixels are read
    assert 128 <= index < 256
    assert f"{shard}: record {index - 128} cannot be read" in message
    assert "\n" not in message


def test_hash_knows_labels_and_pixels(raw_records, tmp_path):
    """The hash depends on every image and label."""
    options = layout.PrepareOptions("any", 2, "raw")

    def content(pixel: int, label: int) -> str:
        folder = tmp_path / f"{pixel}-{label}"
        folder.mkdir()
        path = layout.shard_path(folder, "raw", "train", 0)
        images = [(np.full((2, 2, 3), pixel, np.uint8), label)]
        made = {"train": [shards.write_shard(path, options, images)]}
        return shards.finish(folder, options, ("a", "b"), made).hash

    assert len({content(1, 0), content(2, 0), content(1, 1)}) == 3


def test_begun_with_other_options(tmp_path):
    options = layout.PrepareOptions("generated", 64, "raw")
    layout.begin(tmp_path / "out", options, "abc")
    layout.begin(tmp_path / "out", options, "abc")
    for change, message in (
        ({"size": 32}, "begun with --size=64, not 32"),
        ({"format": "jpeg"}, "begun with --format=raw, not jpeg"),
        ({"source": "generated:5"}, "begun with --source=generated, not generated:5"),
    ):
        with pytest.raises(UserError, match=message):
            layout.begin(tmp_path / "out", dataclasses.replace(options, **change), "abc")
    with pytest.raises(UserError, match="begun with other images"):
        layout.begin(tmp_path / "out", options, "xyz")


def test_begun_by_version_0_1(tmp_path):
    """Byte for byte what version 0.1 wrote: its images were cut before they were scaled."""
    values = '{"source": "generated", "size": 64, "format": "raw", "pictures": "abc"}'
    (tmp_path / "begun.json").write_text(values)
    with pytest.raises(UserError, match=r"begun by another version .* prepare it again"):
        layout.begin(tmp_path, layout.PrepareOptions("generated", 64, "raw"), "abc")
    assert (tmp_path / "begun.json").read_text() == values


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"source": "generated", "size": 64}'])
def test_damaged_begun(tmp_path, text):
    (tmp_path / "begun.json").write_text(text)
    with pytest.raises(UserError, match=r"begun.json is damaged .*prepare it again"):
        layout.begin(tmp_path, layout.PrepareOptions("generated", 64, "raw"), "abc")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty and holds no records"):
        layout.begin(tmp_path, layout.PrepareOptions("generated", 64, "raw"), "abc")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# --- damage -------------------------------------------------------------------------------------


def flip(path, rng) -> None:
    """One bit, anywhere in a file."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["manifest.json", "statistics.npz", "train-labels.npy"])
def test_a_flipped_bit_is_noticed_or_changes_nothing(raw_records, tmp_path, name):
    there = tmp_path / "records"
    shutil.copytree(raw_records.path, there)
    whole, rng, refused = (there / name).read_bytes(), random.Random(0), 0
    for _ in range(200):
        flip(there / name, rng)
        try:
            opened = records.open_records(there)
            assert opened.manifest == raw_records.manifest
            labels = opened.split("train").labels
            np.testing.assert_array_equal(labels, raw_records.split("train").labels)
            for ours, theirs in zip(
                dataclasses.astuple(opened.statistics),
                dataclasses.astuple(raw_records.statistics),
                strict=True,
            ):
                np.testing.assert_array_equal(ours, theirs)
        except UserError as error:
            refused += 1
            assert name in str(error) or "is missing" in str(error)  # noqa: PT017
        (there / name).write_bytes(whole)
    assert refused > 100


@pytest.mark.parametrize("kind", ["raw_records", "jpeg_records"])
def test_verify_finds_a_flipped_bit_in_any_file(kind, request, tmp_path):
    original, rng = request.getfixturevalue(kind), random.Random(0)
    there = tmp_path / "records"
    shutil.copytree(original.path, there)
    records.verify(there)
    for path in sorted(there.glob("*-0*")):
        whole = path.read_bytes()
        data = bytearray(whole)
        data[len(data) // 2] ^= 1 << rng.randrange(8)  # the middle is part of an image
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"is not what was prepared|is damaged"):
            records.verify(there)
        path.write_bytes(whole)
    records.verify(there)


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_is_no_class_is_refused(raw_records, tmp_path, label):
    there = copy(raw_records, tmp_path)
    labels = np.load(there / "train-labels.npy")
    labels[7] = label
    np.save(there / "train-labels.npy", labels)
    with pytest.raises(UserError, match=r"train-labels.npy is damaged \(the manifest counts other"):
        records.open_records(there).split("train")


def test_verify_finds_labels_that_have_changed_places(raw_records, tmp_path):
    """The counts of the labels stay the same."""
    there = tmp_path / "records"
    shutil.copytree(raw_records.path, there)
    labels = np.load(there / "train-labels.npy")
    other = int(np.flatnonzero(labels != labels[0])[0])
    labels[[0, other]] = labels[[other, 0]]
    np.save(there / "train-labels.npy", labels)
    records.open_records(there).split("train")
    with pytest.raises(UserError, match="is not what was prepared"):
        records.verify(there)
