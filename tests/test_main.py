"""The command, as a user runs it: in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def command(*arguments: str, module: str = "alexnet_jax.main") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", module, *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.slow
def test_describe_prints_the_papers_table_and_runs_nothing():
    done = command("--config=configs/alexnet.py", "--mode=describe")
    assert done.returncode == 0, done.stderr
    assert "60,965,224" in done.stdout
    assert "2 x cpu" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "error: --config is missing"),
        (["--config=configs/tiny.py"], "error: --workdir is missing"),
        (["--config=configs/none.py"], "configs/none.py"),
        (["--config=configs/cifar10.py:19"], "has no net '19'; there are relu, tanh, 26"),
        (["--config=configs/tiny.py", "--config.bacth=3"], 'Did you mean "batch"'),
        (["--config=configs/tiny.py", "--config.batch=x"], "flag --config.batch=x"),
        (["--config=configs/tiny.py", "--mode=tarin"], "flag --mode=tarin"),
        (["--config=configs/tiny.py", "mode=evaluate"], "error: 'mode=evaluate' is no option"),
        (["--config=configs/tiny.py", "--workdir=/proc/none"], "/proc/none"),
        (["--config=configs/tiny.py", "--wrokdir=x"], "Unknown command line flag 'wrokdir'"),
        (
            ["--config=configs/tiny.py", "--workdir=none", "--mode=evaluate", "--step=last"],
            "error: --step=last: give newest, best or the number of a checkpoint",
        ),
        (
            ["--config=configs/tiny.py", "--workdir=none", "--mode=evaluate"],
            "error: none holds no run",
        ),
        (
            ["--config=configs/alexnet.py", "--workdir=none", "--config.data.records=none"],
            "python -m alexnet_jax.prepare",
        ),
    ],
)
def test_a_wrong_command_gets_one_clear_line(arguments, said):
    _is_one_clear_line(command(*arguments), said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export"], "error: --workdir is missing"),
        (["--workdir=x", "--file=y"], "error: say what to do: export or import"),
        (["export", "--workdir=none", "--file=none"], "error: none holds no run"),
        (["import", "--workdir=none", "--file=none"], "error: --config is missing"),
    ],
)
def test_a_wrong_command_of_weights_too(arguments, said):
    _is_one_clear_line(command(*arguments, module="alexnet_jax.weights"), said)


def _is_one_clear_line(done: subprocess.CompletedProcess[str], said: str) -> None:
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert done.stderr.splitlines()[-1] == lines[0]
    assert not (ROOT / "none").exists()
