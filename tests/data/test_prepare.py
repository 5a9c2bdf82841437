"""From a source to records: the right pixels, and the same files after any interruption."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from alexnet_jax import prepare as prepare_module
from alexnet_jax.data import records, shards, sources
from alexnet_jax.data.sources import generated
from alexnet_jax.prepare import main, prepare
from alexnet_jax.runtime.errors import UserError
from tests.conftest import PHOTOS, SHARED


def contents(folder: Path) -> dict[str, str]:
    """Every file's hash."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def read(split: records.Split, index: int) -> np.ndarray:
    out = np.zeros((split.size, split.size, 3), np.uint8)
    split.read(index, out)
    return out


def test_images_and_labels(image_folder, tmp_path):
    root = image_folder(count=3)
    manifest = prepare(f"folder:{root}", tmp_path / "out", size=16, format="raw")
    assert manifest.classes == ("cat", "dog")
    assert {name: split.count for name, split in manifest.splits.items()} == {
        "train": 6,
        "validation": 6,
    }
    opened = records.open_records(tmp_path / "out")
    assert opened.manifest == manifest
    for name in ("train", "validation"):
        split = opened.split(name)
        np.testing.assert_array_equal(split.labels, [0, 0, 0, 1, 1, 1])
        for index in range(6):
            path = root / name / ("cat", "dog")[index // 3] / f"{index % 3}.png"
            bgr = cv2.imread(str(path))
            # 20x30: the shorter side to 16, the longer to 24, columns 4 to 19 of that
            square = cv2.resize(bgr[:, 5:25], (16, 16), interpolation=cv2.INTER_AREA)
            np.testing.assert_array_equal(read(split, index), square[..., ::-1])


def test_jpegs_are_of_quality_95_without_subsampling(image_folder, tmp_path):
    from array_record.python.array_record_module import ArrayRecordReader

    image = pytest.importorskip("PIL.Image")
    import io

    prepare(f"folder:{image_folder()}", tmp_path / "out", size=16)
    reader = ArrayRecordReader(str(tmp_path / "out" / "train-00000.array_record"))
    assert "group_size:1," in reader.writer_options_string()
    assert "uncompressed" in reader.writer_options_string()
    data = reader.read([0])[0]
    reader.close()
    assert simplejpeg.decode_jpeg_header(data) == (16, 16, "YCbCr", "444")
    reference = io.BytesIO()
    image.new("RGB", (16, 16)).save(reference, "JPEG", quality=95)
    assert image.open(io.BytesIO(data)).quantization == image.open(reference).quantization


def test_the_number_of_threads_changes_nothing(tmp_path):
    for threads in (1, 3):
        prepare("generated:600", tmp_path / str(threads), size=20, threads=threads)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    assert "train-00004.array_record" in contents(tmp_path / "1")


@pytest.mark.parametrize("kind", ["jpeg", "raw"])
def test_an_interrupted_run_resumes(tmp_path, monkeypatch, kind):
    """Stopped after every 250 images: all files are those of a run without interruption."""
    prepare("generated:600", tmp_path / "whole", size=20, format=kind)
    drawn = {"count": 0}
    original = generated.draw

    def draw_some(*arguments):
        drawn["count"] += 1
        if drawn["count"] % 250 == 0:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(generated, "draw", draw_some)
    stops = 0
    while not records.is_prepared(tmp_path / "parts"):
        try:
            prepare("generated:600", tmp_path / "parts", size=20, format=kind, threads=1)
        except KeyboardInterrupt:
            stops += 1
            assert not any(p.suffix == ".tmp" for p in (tmp_path / "parts").iterdir())
    assert stops >= 3
    assert drawn["count"] < 600 + 512 + stops * 128  # no finished shard was made again
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


@pytest.mark.parametrize(
    "kind",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_killed_command_resumes(tmp_path, kind):
    source, size, out = "generated:1000", 64, tmp_path / "out"
    command = [sys.executable, "-m", "alexnet_jax.prepare", f"--source={source}", f"--size={size}"]
    # Under a shell that runs the tests in the background, children would ignore SIGINT.
    line = ["env", "--default-signal=INT", *command, f"--out={out}"]
    with subprocess.Popen(line, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not (out / "train-00001.part.npz").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(kind)
        assert process.wait(30) != 0
    assert not records.is_prepared(out)
    shard = out / "train-00001.array_record"
    before = shard.stat().st_mtime_ns
    prepare(source, out, size=size)
    assert shard.stat().st_mtime_ns == before
    prepare(source, tmp_path / "whole", size=size)
    whole, parts = contents(tmp_path / "whole"), contents(out)
    assert whole == {name: parts[name] for name in whole}


@pytest.mark.slow
def test_a_second_prepare_in_the_same_folder_is_refused(tmp_path):
    """Both begin at once, three times: what is written is whole, and the second says why not."""
    prepare("generated:300", tmp_path / "whole", size=20)
    code = (
        "from alexnet_jax.prepare import main; import sys; sys.stdin.readline(); main(sys.argv[1:])"
    )
    refused = 0
    for number in range(3):
        out = tmp_path / f"out{number}"
        line = [sys.executable, "-c", code, "--source=generated:300", f"--out={out}", "--size=20"]
        pipe = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        both = [subprocess.Popen(line, stdout=subprocess.DEVNULL, **pipe) for _ in range(2)]
        for one in both:  # both have imported what they need, or nearly so
            one.stdin.write("\n")
            one.stdin.flush()
        errors = [one.communicate(timeout=120)[1] for one in both]
        for one, said in zip(both, errors, strict=True):
            if one.returncode:
                refused += 1
                assert one.returncode == 2
                last = said.splitlines()[-1]
                assert last.startswith(f"error: {out} is in use by process ")
                assert last.endswith("; wait for its end, or give another --out")
        assert 0 in {one.returncode for one in both}
        assert contents(out) == contents(tmp_path / "whole")
    assert refused


def test_a_folder_that_another_prepare_finishes_meanwhile_is_taken_as_it_is(tmp_path, monkeypatch):
    original = sources.open_source

    def slow(source, size):  # the other one is done before ours begins to write
        monkeypatch.setattr(sources, "open_source", original)
        prepare(source, tmp_path / "out", size=size)
        return original(source, size)

    monkeypatch.setattr(sources, "open_source", slow)
    manifest = prepare("generated:300", tmp_path / "out", size=20)
    assert records.open_records(tmp_path / "out").manifest == manifest
    assert "lock" not in contents(tmp_path / "out")


def test_a_shard_that_was_cut_off_is_made_again(tmp_path, monkeypatch):
    prepare("generated:300", tmp_path / "whole", size=20, format="raw")
    monkeypatch.setattr(shards, "finish", lambda *_: pytest.fail("stop"))
    with pytest.raises(pytest.fail.Exception):
        prepare("generated:300", tmp_path / "out", size=20, format="raw")
    monkeypatch.undo()
    os.truncate(tmp_path / "out" / "train-00001.raw", 1000)
    prepare("generated:300", tmp_path / "out", size=20, format="raw")
    assert contents(tmp_path / "whole") == contents(tmp_path / "out")


def test_twice(tmp_path, capsys, monkeypatch):
    arguments = ["--source=generated:20", f"--out={tmp_path}/out", "--size=16", "--format=raw"]
    main(arguments)
    assert "is prepared: 20 train, 512 validation images" in capsys.readouterr().out
    before = contents(tmp_path / "out")
    monkeypatch.setattr(prepare_module, "_write_split", lambda *_: pytest.fail("it is done"))
    main(arguments)
    assert "was prepared before: 20 train, 512 validation images" in capsys.readouterr().out
    assert contents(tmp_path / "out") == before
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_other_options(tmp_path):
    options = {"source": "generated:20", "out": tmp_path / "out", "size": 16, "format": "raw"}
    prepare(**options)
    for changes, message in (
        ({"size": 20}, "prepared with --size=16, not 20; delete it or choose another folder"),
        ({"format": "jpeg"}, "prepared with --format=raw, not jpeg"),
        ({"source": "generated"}, "prepared with --source=generated:20, not generated"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(**options | changes)


def test_half_prepared_with_other_options_or_images(image_folder, tmp_path):
    root = image_folder()
    (root / "train" / "dog" / "1.png").write_bytes(b"broken")
    source, out = f"folder:{root}", tmp_path / "out"
    with pytest.raises(UserError, match="is not an image"):
        prepare(source, out, size=16)
    with pytest.raises(UserError, match="begun with --size=16, not 20"):
        prepare(source, out, size=20)
    (root / "train" / "dog" / "1.png").unlink()
    with pytest.raises(UserError, match="begun with other images; delete it or choose another"):
        prepare(source, out, size=16)


def test_a_bad_image_stops_or_is_left_out(image_folder, tmp_path, capsys):
    root = image_folder()
    bad = root / "train" / "dog" / "1.png"
    bad.write_bytes(b"broken")
    arguments = [f"--source=folder:{root}", f"--out={tmp_path}/out", "--size=16", "--format=raw"]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {bad}: is not an image (JPEG, PNG, ...); ")
    assert "--skip-bad" in error

    main([*arguments, "--skip-bad"])  # resumes in the same folder
    assert "Left out, as they cannot be decoded: 1, listed in" in capsys.readouterr().out
    opened = records.open_records(tmp_path / "out")
    assert opened.manifest.skipped == (f"{bad}: is not an image (JPEG, PNG, ...)",)
    np.testing.assert_array_equal(opened.split("train").labels, [0, 0, 0, 1, 1])
    bad.unlink()
    prepare(f"folder:{root}", tmp_path / "without", size=16, format="raw")
    for index in range(5):
        np.testing.assert_array_equal(
            read(opened.split("train"), index),
            read(records.open_records(tmp_path / "without").split("train"), index),
        )


def test_what_was_skipped_is_not_forgotten(image_folder, tmp_path, monkeypatch):
    """Resumed without --skip-bad: as strict as from the beginning."""
    root = image_folder()
    (root / "train" / "dog" / "1.png").write_bytes(b"broken")
    monkeypatch.setattr(shards, "finish", lambda *_: pytest.fail("stop"))
    with pytest.raises(pytest.fail.Exception):
        prepare(f"folder:{root}", tmp_path / "out", size=16, skip_bad=True)
    with pytest.raises(UserError, match=r"1.png: is not an image .*--skip-bad"):
        prepare(f"folder:{root}", tmp_path / "out", size=16)


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_outside_the_classes(tmp_path, monkeypatch, label):
    """All shards fail at once, in their own threads: the first image is named."""
    together = threading.Barrier(2)

    def read(index):
        together.wait()
        time.sleep(0.1 if index == 0 else 0)  # the second shard fails first
        return sources.Example(np.zeros((4, 4, 3), np.uint8), label)

    train = sources.SourceSplit(200, lambda index: f"image {index}", read)  # two shards
    source = sources.Source(generated.CLASSES, {"train": train})
    monkeypatch.setattr(sources, "open_source", lambda *_: source)
    with pytest.raises(UserError, match=rf"image 0 has label {label}; the 10 classes are 0 to"):
        prepare("any", tmp_path / "out", size=16, threads=2)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_no_images(image_folder, tmp_path, split):
    root = image_folder()
    for path in (root / split).glob("*/*"):
        path.unlink()
    said = {"train": "train/cat has no images", "validation": "has no images in its split 'val"}
    with pytest.raises(UserError, match=said[split]):
        prepare(f"folder:{root}", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for name in ("cat", "dog"):
        (root / split / name / "1.jpg").write_bytes(b"broken")
    with pytest.raises(UserError, match=f"has no images in its split '{split}'"):
        prepare(f"folder:{root}", tmp_path / "out", skip_bad=True)


def test_without_validation(image_folder, tmp_path, capsys):
    root = image_folder()
    (root / "validation").rename(root / "test")
    main([f"--source=folder:{root}", f"--out={tmp_path}/out", "--size=16"])
    assert "no validation split (only train, test)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--source=folder:/nowhere"],
            "error: --source=folder:/nowhere: there is no folder /nowhere",
        ),
        (
            ["--source=generated", "--size=0"],
            "error: --size=0 must be at least 1, and --threads=0 at least 0",
        ),
    ],
)
def test_the_command_fails_in_one_line(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, f"--out={tmp_path}/out"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == message + "\n"
    assert not (tmp_path / "out").exists()


def test_out_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        main(["--source=generated:20", f"--out={tmp_path}/file/out"])
    assert capsys.readouterr().err.startswith("error: ")


def test_the_same_images_have_the_same_hash(image_folder, tmp_path):
    root = image_folder()
    other = shutil.copytree(root, tmp_path / "moved")
    runs = [(root, 16, "raw"), (other, 16, "raw"), (root, 17, "raw"), (root, 16, "jpeg")]
    hashes = {
        prepare(f"folder:{path}", tmp_path / f"out{i}", size=size, format=kind).hash
        for i, (path, size, kind) in enumerate(runs)
    }
    assert len(hashes) == 3


def test_photos(tmp_path):
    """From JPEG files to records; each image as Pillow sees it."""
    paths = sorted(PHOTOS.glob("*.jpg"))
    for path in paths:
        for split in ("train", "val"):
            (tmp_path / "photos" / split / path.stem).mkdir(parents=True)
            shutil.copy(path, tmp_path / "photos" / split / path.stem)
    prepare(f"folder:{tmp_path}/photos", tmp_path / "out", size=224, format="raw")
    assert_as_pillow_sees_them(tmp_path / "out", {path: path.stem for path in paths})


@pytest.mark.long
def test_imagenet_sample(tmp_path):
    """200 of 200, some of them small or grayscale."""
    with tarfile.open(SHARED / "imagenet_sample.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    source = tmp_path / "imagenet_sample"
    prepare(f"ilsvrc2012:{source}", tmp_path / "out", format="raw")
    paths = sorted(source.glob("*/*.JPEG"))
    assert len(paths) == 200
    assert_as_pillow_sees_them(tmp_path / "out", {path: path.parent.name for path in paths})


def assert_as_pillow_sees_them(folder: Path, classes: dict[Path, str]) -> None:
    """`classes` gives each file's class, in the order of the records."""
    image = pytest.importorskip("PIL.Image")
    opened = records.open_records(folder)
    split, size = opened.split("train"), opened.manifest.size
    assert opened.manifest.skipped == ()
    assert [opened.manifest.classes[label] for label in split.labels] == list(classes.values())
    differences = []
    for index, path in enumerate(classes):
        whole = image.open(path).convert("RGB")
        short = min(whole.size)
        kernel = image.Resampling.BILINEAR if short > size else image.Resampling.BICUBIC
        whole = whole.resize([int(size / short * n + 0.5) for n in whole.size], kernel)
        left, top = (whole.width - size) // 2, (whole.height - size) // 2
        square = whole.crop((left, top, left + size, top + size))
        differences.append(np.abs(read(split, index).astype(int) - np.asarray(square)).mean())
    assert max(differences) < 5  # grey levels; a turned or shifted image differs by tens
    assert np.mean(differences) < 1.2
