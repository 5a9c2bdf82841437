"""Runs of several processes on this machine, as an engine would start them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import numpy as np

from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.metrics import read_metrics
from alexnet_jax.training.setup import make_setup
from alexnet_jax.training.state import restore_state
from tests.conftest import make_config

VALUES = {"epochs": 2, "log__every": 3, "batch": 32, "evaluate__batch": 32}  # `command`'s
ROOT = Path(__file__).parents[1]
PATIENCE = 240  # seconds: two cores may have much else to do


def free_port() -> int:
    """One that nobody listens to."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def command(records: Path | str, folder: Path | str, *options: str) -> list[str]:
    """Trains a small network in `folder`, in 16 steps of two epochs."""
    values = [f"data.records={records}", "model.width=0.125", "batch=32", "evaluate.batch=32"]
    values += ["epochs=2", "log.every=3", *options]
    line = [sys.executable, "-m", "alexnet_jax.main", "--config=configs/tiny.py"]
    return [*line, f"--workdir={folder}", *(f"--config.{value}" for value in values)]


def environment(**own: str) -> dict[str, str]:
    """Of a process that computes on CPUs.

    XLA sums in as many parts as it has threads: one for each core, or for each device of the
    process if they are more. For equal bits all get as many.
    """
    cache = jax.config.jax_compilation_cache_dir
    common = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache, "NPROC": "4"}
    return os.environ | common | {"PYTHONPATH": str(ROOT)} | own


def start(line: Sequence[str], count: int, cwd: Sequence[Path] = ()) -> list[subprocess.Popen]:
    """`line` in `count` processes; what they say comes through pipes."""
    place = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}
    place |= {"JAX_NUM_PROCESSES": str(count)}
    pipe = subprocess.PIPE
    return [
        subprocess.Popen(
            line,
            cwd=cwd[number] if cwd else ROOT,
            env=environment(**place, JAX_PROCESS_ID=str(number)),
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for number in range(count)
    ]


def finish(processes: Iterable[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Of each: its exit status, and what it said and complained of. None outlives this."""
    processes = list(processes)
    try:
        told = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *both) for process, both in zip(processes, told, strict=True)]


def wait_for_lines(folder, running, count=2):
    """Until the metrics of those that run have so many."""
    while len(read_metrics(folder)) < count:
        assert all(one.poll() is None for one in running), finish(running)
        time.sleep(0.05)


def train(records, folder, count, *options):
    """To the end, in processes of their own; gives what each said and complained of."""
    told = finish(start(command(records, folder, *options), count))
    assert [status for status, *_ in told] == [0] * count, told
    return [said for _, *said in told]


def end_of(records, folder):
    """The newest checkpoint's step, arrays and data's position; metrics but for the times."""
    setup = make_setup(make_config(records, **VALUES))
    with Checkpoints(folder / workdir.CHECKPOINTS, read_only=True) as checkpoints:
        restored, best = restore_state(setup, checkpoints), checkpoints.best_step()
    told = [
        {key: value for key, value in line.items() if not key.startswith("time/")}
        for line in read_metrics(folder)
    ]
    return restored.step, best, restored.meta, jax.device_get(restored.state), told


def assert_same_end(ours, theirs):
    assert ours[:3] == theirs[:3]
    jax.tree.map(np.testing.assert_array_equal, ours[3], theirs[3])
    assert ours[4] == theirs[4]
