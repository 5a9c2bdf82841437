"""Power cuts at many moments: does the same command come to the same end from what is left?

    python -m tests.stress.power_cut --points=200 [--seed=0]

The commands run once under strace, in a process of their own: two folders of records (raw images
and JPEGs) are prepared, and two epochs are trained with a checkpoint every two steps. The trace is
replayed up to a point, and what was not synced by then is lost in one of the ways of `disk.Way`, in
turn. Then the same commands start again on the files that are left, in this process. They must end
with the same hash of the records, which must hold what it says; the same lines of metrics but for
times; and bit for bit the same parameters, momentum and position in the data. And a checkpoint that
another has followed must not be lost. Where training has not begun, it is left out: it would begin
with nothing but the records. No two points leave the same files.

The last line of the output says how many came to the same end. Needs strace.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from alexnet_jax import main as training
from alexnet_jax import prepare
from alexnet_jax.data import records
from alexnet_jax.runtime import host, workdir
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.metrics import read_metrics
from alexnet_jax.training import trained
from alexnet_jax.training.state import restore_state
from tests.stress import disk

ROOT = Path(__file__).parents[2]
KINDS = ("raw", "jpeg")
IMAGES = {"train": 160, "val": 16}  # 160: two shards


def draw_images(folder: Path) -> None:
    """Writes the images that are prepared, as PNG files of noise."""
    import cv2

    rng = np.random.default_rng(0)
    for split, count in IMAGES.items():
        for number in range(count):
            label = folder / split / f"class{number % 2}"
            label.mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 255, (8, 8, 3), np.uint8)
            cv2.imwrite(str(label / f"{number}.png"), image)


def make_records(images: Path, folder: Path) -> None:
    """Prepares both folders. Raises SystemExit, as a command does, at an error."""
    for kind in KINDS:
        options = [f"--source=folder:{images}", f"--out={folder / kind}"]
        prepare.main([*options, "--size=64", f"--format={kind}", "--threads=2"])


def train(images: Path, folder: Path) -> None:
    """Trains in `folder`/runs/one. Raises SystemExit, as a command does, at an error."""
    values: Mapping[str, Any] = {
        "data.source": f"folder:{images}",
        "data.records": folder / "jpeg",
        "data.size": 64,
        "data.crop": 64,
        "data.format": "jpeg",
        "batch": 64,
        "evaluate.batch": 16,
        "evaluate.ten_views_at_end": False,
        "epochs": 2,
        "model.width": 0.0625,
        "model.classes": 2,
        "checkpoint_every": 2,
        "log.every": 1,
    }
    options = [f"--config.{key}={value}" for key, value in values.items()]
    run = folder / "runs" / "one"
    training.main(["--config=configs/tiny.py", f"--workdir={run}", *options])


def hash_of(folder: Path) -> str:
    """The hash of a folder of records, which are verified."""
    records.verify(folder)
    return records.open_records(folder).manifest.hash


def end_of(folder: Path) -> str:
    """What training has come to, as text that is equal for equal ends."""
    run = folder / "runs" / "one"
    net = trained.open_trained(run, devices=2)
    with Checkpoints(run / workdir.CHECKPOINTS, read_only=True) as checkpoints:
        found, best = restore_state(net.setup, checkpoints), checkpoints.best_step()
    sums = [hashlib.sha256(np.asarray(leaf)).hexdigest() for leaf in jax.tree.leaves(found.state)]
    lines = [
        {key: value for key, value in line.items() if not key.startswith("time/")}
        for line in read_metrics(run)
    ]
    workdir.read_starts(run)
    return json.dumps([found.step, best, found.meta, sums, lines])


# --- the trace ----------------------------------------------------------------------------------


def record(images: Path, folder: Path, trace: Path) -> None:
    """Runs the commands under strace, in another process."""
    line = ["strace", "-f", "-y", "-s", "1000000000", "--seccomp-bpf", "-o", str(trace)]
    line += ["-e", f"trace={disk.CALLS}", sys.executable, "-m", "tests.stress.power_cut"]
    subprocess.run([*line, f"--run={images},{folder}"], cwd=ROOT, check=True)


class Cut(NamedTuple):
    """A power cut."""

    point: int  # after so many calls
    phase: str
    call: str  # the last one
    way: disk.Way
    files: dict[str, bytes | None]
    step: int  # of the newest checkpoint that must be found


def cuts(trace: Path, folder: Path, points: int, rng: random.Random) -> list[Cut]:
    """Power cuts after `points` of the calls in the trace, a way for each."""
    worth = list[int]()
    newest: dict[str, str] = {}  # calls, by file

    def look(point: int, call: disk.Call) -> None:
        file = call.text.partition(">")[0]
        if not (call.name == newest.get(file) == "write"):  # a file has hundreds of them in a row
            worth.append(point)
        newest[file] = call.name

    disk.replay(_lines(trace), disk.Disk(str(folder)), look)
    chosen = {worth[int((i + rng.random()) * len(worth) / points)] for i in range(points)}
    found, seen, on = list[Cut](), set[str](), disk.Disk(str(folder))
    renamed, due = [0], set[int]()  # the steps of complete checkpoints; points that are to come

    def cut(point: int, call: disk.Call) -> None:
        if call.name == "rename" and (step := re.search(r'/(\d{8})"$', call.text)):
            renamed.append(int(step[1]))
        if point in chosen:
            due.add(point)
        for turn in range(len(disk.WAYS)) if due else ():
            way = disk.WAYS[(len(found) + turn) % len(disk.WAYS)]
            files = on.left(way, seed=point)
            known = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
            if known not in seen:
                seen.add(known)
                text = call.text.partition(', "' if "write" in call.name else "\n")[0]
                last = f"{call.name}({text.replace(str(folder), '')})"
                due.pop()  # else the next call stands for it
                found.append(Cut(point, phase(on), last, way, files, ([0, *sorted(renamed)])[-2]))
                return

    disk.replay(_lines(trace), on, cut)
    return found


def _lines(trace: Path) -> Iterator[str]:
    with trace.open(encoding="latin-1", newline="\n") as file:
        yield from file


def phase(on: disk.Disk) -> str:
    """What was going on, as far as the files tell."""
    names = on.left("names")
    if "jpeg/manifest.json" not in names:
        return "in prepare"
    if any("orbax-checkpoint-tmp" in name for name in names):
        return "while a checkpoint was written"
    return "in training"


# --- again --------------------------------------------------------------------------------------


def try_cut(cut: Cut, images: Path, folder: Path, hashes: list[str], end: str) -> str:
    """Starts the commands on what is left; returns what is wrong with their end, or ''."""
    shutil.rmtree(folder, ignore_errors=True)
    disk.write_files(cut.files, folder)
    try:
        make_records(images, folder)
        if [hash_of(folder / kind) for kind in KINDS] != hashes:
            return "other records"
        if "runs" not in cut.files:
            return ""
        train(images, folder)
        if end_of(folder) != end:
            return "another end"
        starts = (folder / "runs" / "one" / workdir.STARTS).read_text().splitlines()
        if len(starts) == cut.files.get(f"runs/one/{workdir.STARTS}", b"").count(b"\n"):
            return ""  # it was trained already
        step = json.loads(starts[-1])["step"]
        return f"resumed from step {step}, not {cut.step}" if step < cut.step else ""
    except (SystemExit, Exception) as error:
        return f"{type(error).__name__}: {str(error)[:300]}"


def main() -> int:
    """0 if all came to the same end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", help="only run the commands: IMAGES,FOLDER")
    given = parser.parse_args()
    if given.run:
        images, folder = map(Path, given.run.split(","))
        make_records(images, folder)
        train(images, folder)
        return 0
    with tempfile.TemporaryDirectory() as name:
        images, folder, trace = (Path(name) / part for part in ("images", "disk", "trace"))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(name) / "cache")
        jax.config.update("jax_compilation_cache_dir", str(Path(name) / "cache"))
        host.configure_jax(2)
        draw_images(images)
        folder.mkdir()
        record(images, folder, trace)
        hashes, end = [hash_of(folder / kind) for kind in KINDS], end_of(folder)
        tried, good = collections.Counter[str](), collections.Counter[str]()
        found = cuts(trace, folder, given.points, random.Random(given.seed))
        begun = time.monotonic()
        for cut in found:
            wrong = try_cut(cut, images, folder, hashes, end)
            tried[cut.phase] += 1
            good[cut.phase] += not wrong
            text = f"{cut.point} {cut.phase}, {cut.way}, after {cut.call}: {wrong or 'ok'}"
            print(f"{time.monotonic() - begun:.0f} s: {text}", flush=True)
    for what, count in tried.items():
        print(f"{count} power cuts {what}: {good[what]} came to the same end")
    total, same = tried.total(), good.total()
    print(f"{total} power cuts: {same} of {total} came to the same end")
    return 0 if same == total else 1


if __name__ == "__main__":
    sys.exit(main())
