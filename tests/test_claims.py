"""docs/results.md: each claim has a line, and the commands of a claim fit the package's options."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from alexnet_jax.data.sources import ilsvrc2012
from alexnet_jax.figures.__main__ import NAMES
from alexnet_jax.report import planned_in
from alexnet_jax.runtime import cli
from alexnet_jax.training.corruptions import BASELINE, SEVERITIES
from tests.data.conftest import tar_of
from tests.test_readme import jpeg

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/results.md").read_text()
CLAIMS = TEXT[TEXT.index("## Every claim") : TEXT.index("## Fig. 1")]
COMMANDS = re.findall(r"^python -m (alexnet_jax\.\w+) (.*)$", CLAIMS, re.M)
HALVED = [line for _, line in COMMANDS].index(
    "--source=folder:clothing10 --size=72 --format=raw --out=records/clothing72"
)


def rows() -> list[list[str]]:
    table = re.findall(r"^\|([^-].*)\|$", CLAIMS.split("###")[0], re.M)
    return [[cell.strip() for cell in row.split("|")] for row in table]


def test_every_claim_has_a_line_and_says_where_it_was_run():
    head, *claims = rows()
    assert head == ["the paper's claim", "2012 log", "line", "run here"]
    assert len(claims) > 25
    for claim, _, line, run in claims:
        assert "`" in line, claim
        assert run, claim


def test_the_lines_name_configs_figures_and_headings_that_exist():
    for line in (row[-2] for row in rows()[1:]):
        file = ""
        for path, variant in re.findall(r"`(configs/\w+\.py)?:?(\w+)?`", line):
            file = path or file
            if path or (file and variant):
                assert planned_in(str(ROOT / file) + (variant and f":{variant}"))
        for name in re.findall(r"`figures (\w+)`", line):
            assert name in NAMES
    headings = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", TEXT, re.M)
    }
    assert set(re.findall(r"\]\(#(.*?)\)", TEXT)) <= headings


@pytest.mark.parametrize(("module", "line"), COMMANDS)
def test_the_options_of_a_command_are_known(module, line):
    """And its config is accepted; nothing is run."""
    name = module + (".__main__" if module.endswith(("benchmark", "figures")) else "")
    command = importlib.import_module(name)
    cli._parse(command.OPTIONS, shlex.split(line))
    if "--config=" in line:
        cli.given_config(command.CONFIG)


FEW = "--config.steps=1 --config.batch=2 --config.evaluate.batch=2 --config.model.width=0.1"
SMALLER = {
    "--config.model.classes=21841": "--config.model.classes=2",
    "--config.model.classes=10184": "--config.model.classes=2",
    "--batch=128": "--batch=2 --repeats=1 --config.model.width=0.1",
}


@pytest.mark.long
def test_the_commands_run_one_after_the_other(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_sets(tmp_path, np.random.default_rng(0))
    for module, line in COMMANDS[:HALVED]:
        short = line
        for long, small in SMALLER.items():
            short = short.replace(long, small)
        if module.endswith("main"):
            short = f"{short} {FEW}"
        if module.endswith("evaluate"):
            for number in range(5):
                shutil.copytree(tmp_path / "runs/sixth0", tmp_path / f"runs/seed{number}")
            shutil.copytree(tmp_path / "runs/sixth0", tmp_path / "runs/sixth1")
        words = [sys.executable, "-m", module, *shlex.split(short)]
        ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, f"{module} {short}\n{ended.stderr[-2000:]}"
    lines = (tmp_path / "submission.txt").read_text().splitlines()
    assert [len(set(map(int, line.split()))) for line in lines] == [5, 5, 5]


def write_sets(folder: Path, rng: np.random.Generator) -> None:
    """All images that the commands read: two classes, a few images of each."""
    wnids = ("n01440764", "n01491361")

    def images(count: int = 4) -> dict[str, bytes]:
        return {f"{number}.JPEG": jpeg(rng) for number in range(count)}

    def write(place: str, files: dict[str, bytes]) -> None:
        (folder / place).mkdir(parents=True)
        for name, data in files.items():
            (folder / place / name).write_bytes(data)

    inner = {f"{wnid}.tar": tar_of(images()) for wnid in wnids}
    validation = {f"ILSVRC2012_val_{number:08d}.JPEG": jpeg(rng) for number in (1, 2)}
    tars = {ilsvrc2012.TRAIN_TAR: tar_of(inner), ilsvrc2012.VALIDATION_TAR: tar_of(validation)}
    write("DOWNLOADS", tars)
    write("FALL2011", {f"{wnid}.tar": tar_of(images(300)) for wnid in wnids})
    for wnid in wnids:
        write(f"IMAGENET2009/{wnid}", images())
        for split in ("train", "val", "test"):
            write(f"ILSVRC2010/{split}/{wnid}", images())
    for number in (0, 999):
        write(f"imagenetv2-matched-frequency-format-val/{number}", images(1))
    write(f"corrupted/{wnids[0]}", images(2))
    for name in BASELINE:
        for severity in SEVERITIES:
            place = folder / "IMAGENET_C" / name / severity
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(folder / "corrupted")
    (folder / "ILSVRC2012_img_test.tar").write_bytes(tar_of(images(3)))
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    known = ilsvrc2012._tfds_lines("labels.txt")
    synsets = np.array([[(n + 1, name, "")] for n, name in enumerate(reversed(known))], kinds)
    write("ILSVRC2012_devkit_t12/data", {})
    savemat(str(folder / "ILSVRC2012_devkit_t12/data/meta.mat"), {"synsets": synsets})
