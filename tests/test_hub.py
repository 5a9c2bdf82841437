"""push_to_hub and hf://...: through huggingface_hub, against a stand-in of the Hub's HTTP API."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_jax.data.info import info_of
from alexnet_jax.data.records import open_records
from alexnet_jax.training.pretrained import Pretrained, write_pretrained
from alexnet_jax.training.setup import make_net_setup
from tests.conftest import make_config
from tests.hub import TOKEN, running

ROOT = Path(__file__).parents[1]
pytest.importorskip("huggingface_hub")

# The library reads its settings when it is imported: so each visit is a process of its own.
VISIT = """
import json, sys
import jax
import numpy as np
import alexnet_jax
from alexnet_jax.figures import __main__ as figures

def tried(function, *arguments, **options):
    try:
        return str(function(*arguments, **options))
    except alexnet_jax.UserError as error:
        return str(error)

jobs, answers = json.loads(sys.argv[1]), []
for job, *arguments in jobs:
    if job == "push":
        answers.append(tried(alexnet_jax.load(arguments[0]).push_to_hub, arguments[1]))
    elif job == "kernels":
        figures.main(["kernels", f"--model={arguments[0]}", f"--out={arguments[1]}"])
        answers.append("drawn")
    elif job == "load":
        answers.append(tried(alexnet_jax.from_pretrained, arguments[0]))
    else:
        ours, theirs = map(alexnet_jax.load, arguments)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), ours.params, theirs.params)
        mean = ours.setup.normalization["mean"] == theirs.setup.normalization["mean"]
        answers.append([all(jax.tree.leaves(same)), bool(mean.all()), ours.labels == theirs.labels])
print(json.dumps(answers))
"""


def visit(endpoint: str, home: Path, *jobs: tuple[str, ...], **more: str) -> list:
    """What the jobs answer, done in a process whose cache is `home`."""
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    line = [sys.executable, "-c", VISIT, json.dumps(jobs)]
    done = subprocess.run(
        line, cwd=home, env=environment | more, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(records, tmp_path_factory):
    """A model with initial weights."""
    setup = make_net_setup(make_config(records, devices=1), info_of(open_records(records)))
    out = tmp_path_factory.mktemp("pretrained") / "out"
    write_pretrained(out, Pretrained(setup, setup.network.init(0), 7, 0.25))
    return out


@pytest.mark.slow
def test_a_pushed_network_comes_back_bit_for_bit_elsewhere(folder, tmp_path):
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
    with running() as hub:
        pushed = visit(
            hub.endpoint, tmp_path / "mine", ("push", str(folder), "me/tiny"), HF_TOKEN=TOKEN
        )
        assert pushed == ["hf://me/tiny"]
        assert sorted(hub.models["me/tiny"]) == [
            "README.md",
            "config.json",
            "data.safetensors",
            "model.safetensors",
        ]
        weights = (folder / "model.safetensors").read_bytes()
        assert len(hub.models["me/tiny"]["model.safetensors"]) == len(weights)
        assert b'from_pretrained("hf://me/tiny")' in hub.models["me/tiny"]["README.md"]

        hub.models["else/resnet"] = {
            "config.json": b'{"model_type": "resnet"}',
            "model.safetensors": b"large",
        }
        answers = visit(
            hub.endpoint,
            tmp_path / "theirs",
            ("compare", str(folder), "hf://me/tiny"),
            ("load", "hf://me/tiny@main"),
            ("load", "hf://me/none"),
            ("load", "hf://me/tiny@v9"),
            ("load", "hf://no spaces/in names"),
            ("load", "hf://else/resnet"),
            ("push", str(folder), "me/other"),
        )
        figure = ("kernels", "hf://me/tiny", "kernels.png")
        assert visit(hub.endpoint, tmp_path / "theirs", figure) == ["drawn"]
        assert (tmp_path / "theirs" / "kernels.png").stat().st_size > 9999
        assert answers[0] == [True, True, True]
        assert answers[1] == (
            "AlexNet(two towers, 10 classes, 64 pixels) from hf://me/tiny@main, step 7, "
            "top-1 error 25.00%"
        )
        login = "or it is not for you: log in with `hf auth login`"
        assert answers[2] == f"hf://me/none cannot be read: there is no such model, {login}"
        assert answers[3] == "hf://me/tiny@v9 cannot be read: it has no such revision"
        assert answers[4].startswith("hf://no spaces/in names cannot be read: give it as hf://OWN")
        assert "holds a model of type resnet, not alexnet_jax" in answers[5]
        assert not any(
            "resolve" in one and "resnet/resolve" in one and "safetensors" in one
            for one in hub.asked
        )  # its weights were not loaded
        assert answers[6] == (
            "hf://me/other cannot be written: you may not: log in with `hf auth login`, as one "
            "who may"
        )
        gone = hub.endpoint
    # Without a network: what was loaded is here; of the rest one line.
    answers = visit(gone, tmp_path / "theirs", ("load", "hf://me/tiny"), ("load", "hf://me/none"))
    assert answers[0].startswith("AlexNet(two towers, 10 classes, 64 pixels) from hf://me/tiny")
    assert answers[1].startswith("hf://me/none cannot be read: there is no network, and no copy")
    assert all(len(str(answer).splitlines()) == 1 for answer in answers)


def test_without_the_library_a_line_names_it(monkeypatch):
    from alexnet_jax.training.trained import from_pretrained

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(Exception, match=r'this needs huggingface_hub; pip install "alexnet-jax\[h'):
        from_pretrained("hf://me/tiny")
