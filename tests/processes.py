"""Runs of several processes on this machine, as a scheduler would start them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.metrics import read_metrics
from alexnet_jax.training.setup import make_setup
from alexnet_jax.training.state import restore_state
from tests.conftest import make_config

VALUES = {"epochs": 2, "log__every": 3, "batch": 32, "evaluate__batch": 32}  # those of `command`
ROOT = Path(__file__).parents[1]
TIMEOUT = 240  # seconds: other work may share the cores


class Result(NamedTuple):
    """What a process left behind."""

    status: int
    output: str
    errors: str


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def command(records: Path | str, folder: Path | str, *options: str) -> list[str]:
    """Trains a small network in `folder`: 16 steps, two epochs."""
    values = [
        "data.source=folder:PATH",
        f"data.records={records}",
        "model.width=0.125",
        "batch=32",
        "evaluate.batch=32",
    ]
    values += ["epochs=2", "log.every=3", *options]
    line = [sys.executable, "-m", "alexnet_jax.main", "--config=configs/tiny.py"]
    return [*line, f"--workdir={folder}", *(f"--config.{value}" for value in values)]


def environment(**variables: str) -> dict[str, str]:
    """The environment of a process that computes on CPUs, with `variables`.

    XLA splits a sum into as many parts as the process has threads: one for each core (NPROC) or
    for each of its devices, whichever number is larger. For equal bits each process gets as many
    threads as this one.
    """
    threads = os.environ.get("NPROC") or str(max(len(os.sched_getaffinity(0)), jax.device_count()))
    cache = jax.config.jax_compilation_cache_dir
    common = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache, "NPROC": threads}
    return os.environ | common | {"PYTHONPATH": str(ROOT)} | variables


def start(line: Sequence[str], count: int, cwd: Sequence[Path] = ()) -> list[subprocess.Popen]:
    """Starts `line` in `count` processes; `cwd` may give each a folder of its own."""
    place = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}
    place |= {"JAX_NUM_PROCESSES": str(count)}
    return [
        subprocess.Popen(
            line,
            cwd=cwd[number] if cwd else ROOT,
            env=environment(**place, JAX_PROCESS_ID=str(number)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def finish(processes: Iterable[subprocess.Popen]) -> list[Result]:
    """Waits for the processes; none of them is left when this returns or raises."""
    processes = list(processes)
    try:
        texts = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Result(one.returncode, *text) for one, text in zip(processes, texts, strict=True)]


def wait_for_lines(folder: Path, running: Sequence[subprocess.Popen], count: int = 2) -> None:
    """Waits until the metrics in `folder` have `count` lines."""
    while len(read_metrics(folder)) < count:
        assert all(one.poll() is None for one in running), finish(running)
        time.sleep(0.05)


def train(records: Path, folder: Path, count: int, *options: str) -> list[Result]:
    """Trains to the end in `count` processes."""
    results = finish(start(command(records, folder, *options), count))
    assert [one.status for one in results] == [0] * count, results
    return results


class End(NamedTuple):
    """The newest checkpoint of a run, and its metrics without the times."""

    step: int
    best: int | None
    meta: dict[str, Any]
    state: Any
    lines: list[dict[str, float]]


def end_of(records: Path, folder: Path) -> End:
    """The end of the run in `folder`."""
    setup = make_setup(make_config(records, **VALUES))
    with Checkpoints(folder / workdir.CHECKPOINTS, read_only=True) as checkpoints:
        restored, best = restore_state(setup, checkpoints), checkpoints.best_step()
    lines = [
        {key: value for key, value in line.items() if not key.startswith("time/")}
        for line in read_metrics(folder)
    ]
    return End(restored.step, best, restored.meta, jax.device_get(restored.state), lines)


def assert_same_state(ours: End, theirs: End) -> None:
    """Parameters and momentum, bit for bit."""
    assert ours.step == theirs.step
    jax.tree.map(np.testing.assert_array_equal, ours.state, theirs.state)


def assert_same_end(ours: End, theirs: End) -> None:
    """All but the times of the metrics, bit for bit."""
    assert_same_state(ours, theirs)
    assert (ours.best, ours.meta, ours.lines) == (theirs.best, theirs.meta, theirs.lines)
