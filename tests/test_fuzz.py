"""Hundreds of damaged and strange image files: prepare and predict name each bad one."""

import io
import json
import os
import random
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from alexnet_jax import predict
from alexnet_jax.data import records
from alexnet_jax.train import fit
from alexnet_jax.training import trained
from tests.conftest import make_config

ROOT = Path(__file__).parents[1]
MEMORY = 4 * 2**30  # bytes of address space: numpy and its like need nearly half of it


def good(rng: np.random.Generator, suffix: str = ".jpg") -> bytes:
    smooth = cv2.resize(rng.integers(0, 256, (6, 7, 3), np.uint8), (90, 80))
    return cv2.imencode(suffix, smooth)[1].tobytes()


def png_of(width: int, height: int, data: bytes) -> bytes:
    """A PNG with this size in its header."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def bmp_of(width: int, height: int) -> bytes:
    head = struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54)
    return (
        head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + b"x" * 64
    )


def jpeg_of(width: int, height: int) -> bytes:
    """A small JPEG with another size in its header."""
    data = bytearray(good(np.random.default_rng(0)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def bad_ones(count: int) -> dict[str, bytes]:
    """Files that no program can decode, by name."""
    rng, draw = random.Random(0), np.random.default_rng(0)
    zeros = zlib.compress(bytes(10_000_000))
    fixed = {
        "empty.jpg": b"",
        "text.jpg": b"this is no image\n" * 99,
        "zeros.png": bytes(5000),
        "html.jpg": b"<!doctype html><html>404</html>",
        "bomb.png": png_of(100_000, 100_000, zeros),
        "wide.png": png_of(2**31 - 1, 1, zeros),
        "cut.png": png_of(5000, 5000, zeros[:500]),
        "bomb.bmp": bmp_of(60_000, 60_000),
        "negative.bmp": bmp_of(-5, -5),
        "bomb.jpg": jpeg_of(65_500, 65_500),
        "pickle.jpg": b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system",
        "-rf.jpg": b"?",
        "two\nlines.jpg": b"?",
        "späte Grüße ☃.jpg": b"?",
        "x" * 240 + ".jpg": b"?",
    }
    suffixes = (".jpg", ".png", ".bmp", ".webp", ".tiff")
    for number in range(count):
        suffix = suffixes[number % len(suffixes)]
        data = good(draw, suffix)
        # A whole header, but at most a sixth of the file.
        fixed[f"cut{number}{suffix}"] = data[: rng.randrange(3, len(data) // 6)]
    return fixed


def odd_ones() -> dict[str, bytes]:
    """Files that look strange but are images."""
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 4), np.uint8)
    modes = {"L": "png", "LA": "png", "RGBA": "png", "P": "gif", "1": "png", "CMYK": "jpeg"}
    found = {}
    for mode, kind in modes.items():
        file = io.BytesIO()
        Image.fromarray(pixels[..., :3]).convert(mode).save(file, kind)
        found[f"{mode}.jpg"] = file.getvalue()
    deep = cv2.imencode(".png", pixels[..., :3].astype(np.uint16) * 200)[1].tobytes()
    return found | {"16 bits.jpg": deep, "one pixel.png": png_of(1, 1, zlib.compress(bytes(4)))}


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes with good, odd and bad images in a source of their own."""
    root, draw = tmp_path_factory.mktemp("fuzz") / "images", np.random.default_rng(2)
    write(root / "train" / "cat", bad_ones(300) | odd_ones())
    (root / "train" / "cat" / "loop.jpg").symlink_to("loop.jpg")
    (root / "train" / "cat" / "gone.jpg").symlink_to("/nowhere/at/all.jpg")
    for split in ("train", "validation"):
        write(root / split / "dog", {f"{i}.jpg": good(draw) for i in range(8)})
    write(root / "validation" / "cat", {"1.jpg": good(draw)})
    return root


def command(module: str, *arguments: str | os.PathLike) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", module, *map(os.fspath, arguments)]
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))  # noqa: E731
    return subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300, preexec_fn=limit
    )


@pytest.mark.slow
def test_prepare_leaves_out_every_bad_image_by_name_and_keeps_the_others(images, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "records"
    source = f"folder:{images}"
    done = command(
        "alexnet_jax.prepare", f"--source={source}", f"--out={out}", "--size=32", "--skip-bad"
    )
    assert done.returncode == 0, done.stderr
    manifest = records.open_records(out).manifest
    names = {problem.partition(": ")[0].rpartition("cat/")[2] for problem in manifest.skipped}
    assert names == {*bad_ones(300), "loop.jpg", "gone.jpg"}
    assert manifest.splits["train"].label_counts == (len(odd_ones()), 8)
    assert sorted(path for path in tmp_path.rglob("*") if out not in path.parents) == [*before, out]
    assert len(done.stdout) + len(done.stderr) < 20_000  # hundreds of lines help nobody


@pytest.mark.slow
def test_prepare_stops_at_a_bad_image_in_one_line(images, tmp_path):
    done = command(
        "alexnet_jax.prepare", f"--source=folder:{images}", f"--out={tmp_path / 'records'}"
    )
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "/train/cat/" in errors[0]
    assert "--skip-bad" in errors[0]
    assert "Traceback" not in done.stderr


def test_predict_names_every_bad_image_and_labels_the_others(
    records, images, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(predict.host, "configure_jax", lambda devices: None)
    short = {"steps": 1, "batch": 16, "evaluate__batch": 16, "evaluate__ten_views_at_end": False}
    fit(make_config(records, **short), tmp_path / "run")
    assert trained.open_trained(tmp_path / "run").step == 1
    files = sorted((images / "train" / "cat").iterdir())
    out = tmp_path / "labels.json"
    with pytest.raises(SystemExit) as stopped:
        predict.main(
            ["--views=1", f"--workdir={tmp_path / 'run'}", f"--json={out}", *map(str, files)]
        )
    assert stopped.value.code == 2
    labelled = {Path(one["image"]).name for one in json.loads(out.read_text())}
    assert labelled == set(odd_ones())
    told = capsys.readouterr().err.splitlines()
    assert len([line for line in told if line.startswith("error: ")]) == len(files) - len(labelled)
