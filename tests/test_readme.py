"""Every command in README and docs/usage.md runs, in their order and in one folder.

What takes long or needs missing data is made small: see `SMALLER`. The commands that set up an
environment are not run: the tests already have one.
"""

import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest

from alexnet_jax import config
from alexnet_jax.configs import alexnet_2012
from alexnet_jax.report import planned_in
from tests.data.conftest import tar_of

ROOT = Path(__file__).parents[1]
README, USAGE = ((ROOT / name).read_text() for name in ("README.md", "docs/usage.md"))
DOCS = README + "".join(file.read_text() for file in (ROOT / "docs").glob("*.md"))
LINE = re.compile(r"^ *(python -m [\w.]+ .*)$", re.MULTILINE)
COMMANDS = list(dict.fromkeys(LINE.findall(README) + LINE.findall(USAGE)))

TINY = COMMANDS[0]
FEW_STEPS = (
    "--config.steps=1 --config.batch=2 --config.evaluate.batch=2 --config.model.width=0.1 "
    "--config.data.crop=64 --config.evaluate.ten_views_at_end=False"
)
SMALLER = {
    "--workdir=runs/alexnet_2012": f"--workdir=runs/alexnet_2012 {FEW_STEPS}",
    "folder:photos --workdir=runs/mine": f"folder:photos --workdir=runs/mine {FEW_STEPS}",
    "--config.data.records=RECORDS --config.model.classes=CLASSES": FEW_STEPS,
    "--config=configs/alexnet.py --batch=16,32,128 --devices=1,2 --peer": (
        "--config=configs/tiny.py --batch=4 --devices=1,2 --repeats=1"
    ),
}


def jpeg(rng: np.random.Generator) -> bytes:
    return cv2.imencode(".jpg", rng.integers(0, 256, (256, 300, 3), np.uint8))[1].tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the data that README names: ILSVRC-2012's tars, and photos; each with two classes."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("configs", "docs"):
        (folder / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)

    wnids = ("n01440764", "n01491361")
    classes = {w: tar_of({f"{w}_{i}.JPEG": jpeg(rng) for i in range(2)}) for w in wnids}
    downloads = folder / "DOWNLOADS"
    downloads.mkdir()
    train = tar_of({f"{wnid}.tar": tar for wnid, tar in classes.items()})
    (downloads / "ILSVRC2012_img_train.tar").write_bytes(train)
    validation = tar_of({f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(rng) for i in (1, 2)})
    (downloads / "ILSVRC2012_img_val.tar").write_bytes(validation)

    for name in ("hat", "shoe"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(2):
            (folder / "photos" / name / f"{number}.jpg").write_bytes(jpeg(rng))
    (folder / "photo.jpg").write_bytes(jpeg(rng))
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
def test_every_command_runs_and_writes_its_files(folder, done, line):
    assert done[line].returncode == 0, done[line].stderr[-2000:]
    for written in re.findall(r"--(?:workdir|out|file|json)=(\S+)", line):
        assert (folder / written).exists()


@pytest.mark.slow
def test_the_first_command_learns_its_images_and_prints_what_readme_shows(folder, done):
    """Top-1 error under 10%; it prints README's lines, except for the numbers."""
    shown = re.search(r"ends with:\n\n```\n(.*?)```", README, re.DOTALL)[1].splitlines()
    lines = [json.loads(line) for line in (folder / "runs/tiny/metrics.jsonl").open()]
    assert lines[-1]["val/top1_error"] < 0.10
    assert lines[-1]["val_ten_views/top1_error"] < 0.10

    def without_numbers(lines: list[str]) -> list[str]:
        return [re.sub(r"[\d.,:]+", "N", line.replace("*", "")) for line in lines]

    printed = [" ".join(one.split()) for one in without_numbers(done[TINY].stdout.splitlines())]
    places = [printed.index(" ".join(one.split())) for one in without_numbers(shown)]
    assert places == sorted(places)

    best = min(line["val/top1_error"] for line in lines if "val/top1_error" in line)
    scored = next(line for line in COMMANDS if "--step=best" in line)
    assert f"centre crop: top-1 error {best:.2%}" in done[scored].stdout


@pytest.mark.slow
def test_the_python_in_usage_runs_and_gives_what_its_comments_say(folder, done):
    del done  # runs/tiny is there
    (block,) = re.findall(r"```python\n(.*?)```", USAGE, re.DOTALL)
    shown = re.search(r"^net  # (.*?), step", block, re.M)[1]
    code = block + "".join(
        f"assert {call}.shape == {tuple(json.loads(shape))}\n"
        for call, shape in re.findall(r"^(net\..*?)  # (\[[\d, ]+\]);", block, re.M)
    )
    assert code.count("assert") == 3
    line = [sys.executable, "-c", f"{code}print(net)"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)}
    said = subprocess.check_output(line, cwd=folder, env=environment, text=True)
    assert said.startswith(shown)


def test_the_commands_were_found():
    assert TINY == "python -m alexnet_jax.main --config=configs/tiny.py --workdir=runs/tiny"
    assert len(COMMANDS) == len(re.findall(r"python -m alexnet_jax\.[a-z]+ ", README + USAGE))
    assert all(long in README + USAGE for long in SMALLER)


def test_the_forward_pass_in_readme_is_the_one_in_the_code():
    shown = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    code = (ROOT / "alexnet_jax/model/alexnet.py").read_text()
    found = re.search(r"^ *x = \[images.*?^ *logits = [^\n]*\n", code, re.DOTALL | re.MULTILINE)
    assert shown == textwrap.dedent(found[0])


def test_readme_is_short():
    assert len(README.split()) < 900


@pytest.mark.parametrize("name", sorted(set(re.findall(r"configs/\w+\.py(?::\w+)?", DOCS))))
def test_every_config_in_readme_and_docs_can_be_loaded(name):
    if not name.endswith(":NAME"):
        assert planned_in(str(ROOT / name))


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "docs", "launch", "notebooks"])
def test_every_link_and_every_file_that_is_named_exists(file):
    found = ROOT / file
    for document in found.glob("*.md") if found.is_dir() else [found]:
        text = document.read_text()
        for link in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
        for named in re.findall(r"`((?:alexnet_jax|configs|tests|docs|launch)/[\w/.]+)`", text):
            assert (ROOT / named).exists(), f"{document.name}: {named}"


def test_the_tree_in_docs_is_that_of_the_package():
    tree = re.search(
        r"```\n(alexnet_jax/\n.*?)^configs/", (ROOT / "docs/code.md").read_text(), re.M | re.S
    )
    shown, folder = set(), ""
    for line in tree[1].splitlines()[1:]:
        name = line.split()[0]
        if line.startswith("    "):
            shown.add(f"{folder}{name}")
        elif name.endswith("/"):
            folder = name
        else:
            shown.add(name)
    package = ROOT / "alexnet_jax"
    found = {
        str(path.relative_to(package)) for path in package.rglob("*.py") if path.stem[0] != "_"
    }
    # A folder in a folder is one line.
    found = {re.sub(r"^(\w+/\w+/).*", r"\1", name) for name in found}
    assert shown == found


def test_every_difference_names_a_test_and_an_option_that_exist():
    text = (ROOT / "docs/differences.md").read_text()
    rows = [row for row in text.splitlines() if row.startswith("| ") and not row.startswith("| |")]
    assert len(rows) > 30
    keys = set(config.fixed_values(config.as_dict(config.parse(alexnet_2012.get_config()))))
    keys |= {"epochs", "evaluate.nine_views_at_end", "evaluate.ten_views_at_end"}
    keys |= {"policy.patience", "policy.least_improvement", "model.std"}
    for row in rows:
        file, _, name = re.search(r"`([\w/.]+)(::)(test_\w+)` \|$", row).groups()
        assert f"def {name}(" in (ROOT / file).read_text(), row
        for key in re.findall(r"`((?:data|model|optim|policy|evaluate)\.[\w.]+)`", row):
            assert key in keys, key


def test_the_answers_in_docs_name_what_is_in_their_files():
    rows = re.findall(r"^\| .*\? \| (.*) \|$", (ROOT / "docs/code.md").read_text(), re.M)
    assert len(rows) == 10
    for answer in rows:
        text = (ROOT / "docs" / re.search(r"\]\((.*?)\)", answer)[1]).read_text()
        for name in re.findall(r"`([\w.]+)[()]*`", re.sub(r"\[.*?\]", "", answer)):
            assert name.split(".")[-1] in text, answer
