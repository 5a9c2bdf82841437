"""Every command in README runs, in its order and in one folder, as a reader would type them.

What takes long or needs what is not here is made small: see `SMALLER`. The commands that set up an
environment are taken without that part, and the one that runs the tests is the one that is running.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from alexnet_jax.report import planned_in
from tests.data.conftest import tar_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = README + "".join(file.read_text() for file in (ROOT / "docs").glob("*.md"))
LINE = re.compile(r"^ *(?:python3 -m venv .*&& .venv/bin/)?(python -m [\w.]+.*)$", re.MULTILINE)
COMMANDS = [one for one in LINE.findall(README) if not one.endswith("-m pytest")]

FEW_STEPS = "--config.steps=1 --config.batch=2 --config.evaluate.batch=2"
SMALLER = {
    "--workdir=runs/alexnet_2012": f"--workdir=runs/alexnet_2012 {FEW_STEPS}",
    "--config.data.records=RECORDS --config.model.classes=CLASSES": FEW_STEPS,
    "--config=configs/alexnet.py --batch=16,32,128 --devices=1,2 --peer": (
        "--config=configs/tiny.py --batch=4 --devices=1,2 --repeats=1"
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the downloads that README speaks of: ILSVRC-2012's tars, of two classes."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("configs", "docs"):
        (folder / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)

    def jpeg() -> bytes:
        return cv2.imencode(".jpg", rng.integers(0, 256, (256, 300, 3), np.uint8))[1].tobytes()

    wnids = ("n01440764", "n01491361")
    classes = {w: tar_of({f"{w}_{i}.JPEG": jpeg() for i in range(2)}) for w in wnids}
    downloads = folder / "DOWNLOADS"
    downloads.mkdir()
    train = tar_of({f"{wnid}.tar": tar for wnid, tar in classes.items()})
    (downloads / "ILSVRC2012_img_train.tar").write_bytes(train)
    validation = tar_of({f"ILSVRC2012_val_{i:08d}.JPEG": jpeg() for i in (1, 2)})
    (downloads / "ILSVRC2012_img_val.tar").write_bytes(validation)
    return folder


@pytest.fixture(scope="module")
def done(folder):
    """All commands in their order, and how each ended."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)}

    def run(line: str) -> subprocess.CompletedProcess[str]:
        for long, short in SMALLER.items():
            line = line.replace(long, short)
        words = [sys.executable, *shlex.split(line)[1:]]
        return subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    return {line: run(line) for line in COMMANDS}


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_in_readme_runs(folder, done, line):
    assert done[line].returncode == 0, done[line].stderr[-2000:]
    for written in re.findall(r"--(?:workdir|out|file|json)=(\S+)", line):
        assert (folder / written).exists()


@pytest.mark.slow
def test_the_main_job_learns_its_images_and_says_what_readme_says(folder, done):
    """Top-1 error under 10%; the last lines are README's but for the numbers."""
    shown = re.search(r"ends with:\n\n```\n(.*?)```", README, re.DOTALL)
    lines = (folder / "runs/tiny/metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["val/top1_error"] < 0.10
    assert last["val_ten_views/top1_error"] < 0.10

    def without_numbers(text: str) -> list[str]:
        return re.sub(r"[\d.]+", "N", text.replace(str(folder), "...")).splitlines()[-5:]

    assert without_numbers(done[COMMANDS[0]].stdout) == without_numbers(shown[1])

    best = min(one["val/top1_error"] for one in map(json.loads, lines) if "val/top1_error" in one)
    scored = next(line for line in COMMANDS if "--step=best" in line)
    assert f"centre crop: top-1 error {best:.2%}" in done[scored].stdout


def test_what_is_made_smaller_stands_in_readme():
    assert all(long in README for long in SMALLER)
    assert len(COMMANDS) >= 13


@pytest.mark.parametrize("name", sorted(set(re.findall(r"configs/\w+\.py(?::\w+)?", DOCS))))
def test_every_config_in_readme_and_docs_can_be_loaded(name):
    if not name.endswith(":NAME"):
        assert planned_in(str(ROOT / name))


def test_every_document_that_readme_links_is_there():
    for name in re.findall(r"\]\(([\w/.]+)\)", README):
        assert (ROOT / name).exists()
