"""Hundreds of wrong command lines: each ends soon, in one line, and writes nothing elsewhere.

They run in this process, one after the other. Nothing is compiled: a command that has accepted its
options, and would now open a checkpoint or make the first weights, ends with an error of the test.
"""

import itertools
import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from alexnet_jax import config, evaluate, main, predict, prepare, report, train, weights
from alexnet_jax.benchmark import __main__ as benchmark
from alexnet_jax.config import as_dict
from alexnet_jax.figures import __main__ as figures
from alexnet_jax.runtime import host, workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import trained
from tests.conftest import make_config
from tests.data.conftest import tar_of

SECONDS = 20  # for one line; most take a tenth of a second
ENOUGH = "the test lets no command go further"

WRONG = (
    *("", " ", "x", "-1", "0", "1.5", "nan", "inf", "-inf", "1e999", "2147483647"),
    *("99999999999999999999", "True", "None", "()", "[1", "{'a': 1}", "é☃", "two\nlines"),
    *("x" * 300, "folder", "file.txt", "file.txt/x", "unreadable", "missing", "/proc/none/x"),
    *("loop", "--", "a,b", ",", "a:b", "folder:", "folder:missing", "tfds:missing", "run"),
)
BASES: dict[str, tuple[Callable[[Sequence[str]], None], str, str]] = {
    "train": (main.main, "", "config=tiny workdir=new mode=train step=newest"),
    "evaluate a run": (
        main.main,
        "--mode=evaluate --config.data.records=records",
        "config=tiny workdir=run step=best on=records",
    ),
    "prepare": (
        prepare.main,
        "",
        "source=generated:20 out=new size=16 format=raw skip-bad=true verify=false threads=1",
    ),
    "predict": (
        predict.main,
        "image.jpg",
        "model=run views=1 step=newest records=records json=new.json out=new.png",
    ),
    "submission": (predict.main, "folder", "workdir=run submission=new.txt devkit=folder"),
    "evaluate": (
        evaluate.main,
        "",
        "workdirs=run views=1 weights=equal step=newest devices=1 records=records json=new.json",
    ),
    "report": (report.main, "", "workdirs=run configs=tiny comparators=true out=new.md"),
    "figures": (figures.main, "kernels", "workdirs=run out=new.png"),
    "figure2": (figures.main, "figure2", "config=tiny out=new.png"),
    "save": (weights.main, "save", "workdir=run out=new step=newest"),
    "export": (weights.main, "export", "workdir=run file=new.st layout=torch step=newest"),
    "import": (
        weights.main,
        "import --config.data.records=records",
        "config=tiny workdir=new file=missing layout=torch",
    ),
    "benchmark": (
        benchmark.main,
        "collectives",
        "config=tiny batch=8 dtype=float32 devices=2 peer=false repeats=1 json=new.json",
    ),
}
"""Of each command: what runs it, the arguments before its options, and options that fit."""

HUGE = (
    ("prepare", "source", "generated:2147483647"),
    ("prepare", "source", "generated:99999999999999999999"),
    ("prepare", "source", "cifar10:file.txt"),
    ("prepare", "source", "ilsvrc2012:folder"),
    ("prepare", "source", "folder:loop"),
    ("prepare", "size", "65501"),
    ("evaluate", "devices", "1000000"),
    ("benchmark", "devices", "1,1000000"),
    ("benchmark", "config.model.classes", "2000000000"),
    ("train", "config.model.width", "63.9"),
    ("train", "config.model.kernels", "(2147483647, 2147483647, 8, 8, 8)"),
    ("train", "config.model.neurons", "(2147483647, 2147483647)"),
    ("train", "config.model.padding.conv2", "2147483647"),
    ("train", "config.epochs", "0"),
)
"""Values that have the right type."""


def keys_of(c: config.Config) -> list[str]:
    """The dotted keys of all values of a config."""

    def leaves(values: Any, at: str) -> Iterator[str]:
        if isinstance(values, dict) and values:
            for key, value in values.items():
                yield from leaves(value, f"{at}.{key}")
        else:
            yield at

    return list(leaves(as_dict(c), "config"))


def lines() -> list[tuple[str, list[str]]]:
    """The name of a command and a wrong line for it: 200 of the options, 100 of config values."""
    rng, found = random.Random(0), []
    for name, (_, _, options) in BASES.items():
        names = [option.partition("=")[0] for option in options.split()]
        found += [(name, option, value) for option, value in itertools.product(names, WRONG)]
    ours = rng.sample(found, 200)
    keys = itertools.product(("train",), keys_of(make_config()), WRONG)
    ours += rng.sample(list(keys), 100)
    return [(name, line_of(name, option, value)) for name, option, value in (*ours, *HUGE)]


def line_of(name: str, option: str, value: str) -> list[str]:
    _, before, options = BASES[name]
    line = [f"--{one}" for one in options.split() if not one.startswith(f"{option}=")]
    if option == "config":  # comes before its values
        return [f"--config={value}", *line, *before.split()]
    return [*line, *before.split(), f"--{option}={value}"]


@pytest.fixture
def folder(tmp_path, records, monkeypatch) -> Path:
    """The current folder of the commands, with all that their wrong values name."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    (place / "folder").mkdir()
    (place / "file.txt").write_text("some text\n")
    (place / "unreadable").write_text("secret")
    (place / "unreadable").chmod(0)
    (place / "loop").symlink_to("loop")
    (place / "image.jpg").write_bytes(tar_of({"a": b"no image"}))
    shutil.copytree(records, place / "records")
    workdir.claim(place / "run", make_config("records", data__source="generated:256"))
    (place / "run" / "metrics.jsonl").write_text(json.dumps({"step": 1, "epoch": 0.1}) + "\n")
    return place


@pytest.fixture
def without_computing(monkeypatch):
    """Commands end where they would open a checkpoint or make weights; JAX is not set up again."""

    def enough(*_: object, **__: object) -> None:
        raise UserError(ENOUGH)

    settings = SimpleNamespace(update=lambda *_: None)
    jax_of_host = SimpleNamespace(
        config=settings, default_backend=lambda: "none", __version__=jax.__version__
    )
    monkeypatch.setattr(host, "jax", jax_of_host)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setattr(train, "restore", enough)
    monkeypatch.setattr(weights, "init_state", enough)
    monkeypatch.setattr(trained, "restore_state", enough)
    monkeypatch.setattr(host, "free_memory", lambda: 2**34)


def contents(root: Path) -> dict[str, float]:
    return {str(path): path.lstat().st_mtime for path in sorted(root.rglob("*"))}


class TooLong(BaseException):
    """No `Exception`, which a command could take for an error of its own."""


def too_long(*_: object) -> None:
    raise TooLong(f"it takes more than {SECONDS} s")


@pytest.mark.slow
def test_no_wrong_line_ends_in_a_traceback_or_hangs_or_writes_elsewhere(
    folder, without_computing, monkeypatch, capsys, tmp_path_factory
):
    home = folder.parent / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
    clean = folder.parent / "clean"
    shutil.copytree(folder, clean, symlinks=True)
    code = Path(main.__file__).parents[1] / "configs"
    elsewhere = contents(home) | contents(code)
    signal.signal(signal.SIGALRM, too_long)
    failures, refused = [], 0
    for name, line in lines():
        signal.alarm(SECONDS)
        try:
            BASES[name][0](line)
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except (Exception, TooLong) as error:
            failures.append((name, line, repr(error)[:300]))
            continue
        finally:
            signal.alarm(0)
            said = capsys.readouterr().err
            for path in folder.iterdir():  # what an accepted value has made
                if not (clean / path.name).exists() and not path.is_symlink():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        refused += status == 2
        errors = [one for one in said.splitlines() if one.startswith("error: ")]
        if status not in (0, 2) or "Traceback" in said or (status == 2 and len(errors) != 1):
            failures.append((name, line, status, said[-300:]))
    assert not failures, "\n".join(map(str, failures))
    assert refused > 250
    assert contents(home) | contents(code) == elsewhere
    assert {path.name for path in folder.parent.iterdir()} == {"place", "home", "clean"}
