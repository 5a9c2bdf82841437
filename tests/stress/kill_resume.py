"""kill -9 at random moments: does the same command, again and again, come to the same end?

    python -m tests.stress.kill_resume --kills=30 [--run=tiny] [--seed=0]

A run that nobody stops is made first: images are drawn and prepared, some epochs are trained,
scored and saved. Then the same command is started in an empty folder and killed after a random
time, until it gets to its end; and so on with new folders, until there were enough kills. Every
sixth signal is SIGTERM and no kill. With several processes a signal goes to one of them or to all;
the others must end by themselves. Each end must have the same records, bit for bit the same
parameters, momentum and position in the data, and the same lines of metrics but for times. The last
line of the output says how many did.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from alexnet_jax.configs.alexnet_2012 import as_noted
from tests.processes import ROOT, environment, free_port

TO_END = 120  # seconds: after a death the others notice it within 30, and SIGTERM waits for a step
END = """
import hashlib, json, sys
from pathlib import Path
import jax, numpy as np
from alexnet_jax.runtime import host, workdir
from alexnet_jax.training import trained
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.training.state import restore_state
host.configure_jax(1)
folder = Path(sys.argv[1])
net = trained.open_trained(folder)
with Checkpoints(folder / workdir.CHECKPOINTS, read_only=True) as checkpoints:
    found = restore_state(net.setup, checkpoints)
    best = checkpoints.best_step()
sums = [hashlib.sha256(np.asarray(leaf)).hexdigest() for leaf in jax.tree.leaves(found.state)]
print(json.dumps([found.step, best, found.meta, sums]))
"""


class Kind(NamedTuple):
    """A run, and how it is stopped."""

    config: str
    values: Mapping[str, Any]
    processes: int = 1
    signals: int = 5  # at most, to one run; then it is let alone


TINY = {
    "data.source": "generated:2048",
    "batch": 64,
    "epochs": 2,
    "model.width": 0.125,
    "checkpoint_every": 5,
    "log.every": 3,
}
KINDS = {
    "tiny": Kind("tiny", TINY),
    "two": Kind("tiny", TINY | {"epochs": 4}, processes=2, signals=8),  # with a tower each
    "full": Kind(  # 0.46 GB in a checkpoint
        "alexnet_2012",
        {
            "data.source": "generated:64",
            "data.validation": "train",  # 64 images; the split for validation has 512
            "model.classes": 10,
            "batch": 8,
            "epochs": 3,
            "checkpoint_every": 3,
            "log.every": 2,
            "log.layers_every": 5,
            "evaluate.ten_views_at_end": False,
        },
    ),
    "cifar": Kind(
        "cifar10.py:13",
        {
            "data.source": "generated:1280",
            "data.validation": "validation",
            "epochs": 5,
            "checkpoint_every": 3,
            "log.every": 2,
            "log.layers_every": 5,
            "policy.phases": as_noted(  # its own, but with fewer images and epochs
                {"rate": 1e-3, "biases": {"all": 2e-3}, "images": 1024},
                {"epoch": 2, "images": 0},
                {"epoch": 3, "rate": 1e-4},
                {"epoch": 4, "rate": 1e-5},
            ).phases,
        },
    ),
}


def command(kind: Kind, folder: Path) -> list[str]:
    """Trains in `folder`, with records of its own."""
    values = {**kind.values, "data.records": folder / "records"}
    name = kind.config if ":" in kind.config else f"{kind.config}.py"
    line = [sys.executable, "-m", "alexnet_jax.main", f"--config=configs/{name}"]
    return [*line, f"--workdir={folder / 'run'}", *(f"--config.{k}={v}" for k, v in values.items())]


def start(kind: Kind, folder: Path) -> list[subprocess.Popen]:
    """Starts or resumes the command, in all its processes."""
    folder.mkdir(exist_ok=True)
    place = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}
    place |= {"JAX_NUM_PROCESSES": str(kind.processes)}
    with (folder / "log").open("a") as log:
        # Sessions of their own: what they have started can be looked for.
        return [
            subprocess.Popen(
                command(kind, folder),
                cwd=ROOT,
                env=environment(**place, JAX_PROCESS_ID=str(number)),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            for number in range(kind.processes)
        ]


def wait(processes: list[subprocess.Popen], seconds: float | None) -> bool:
    """Whether all have ended after so many seconds; it waits no longer."""
    end = time.monotonic() + (seconds or 0)
    try:
        for process in processes:
            process.wait(None if seconds is None else max(end - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        return False
    return True


def end_of(folder: Path) -> str:
    """What a finished run has come to, as text that is equal for equal ends."""
    line = [sys.executable, "-c", END, str(folder / "run")]
    told = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    metrics = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    lines = [
        {key: value for key, value in json.loads(line).items() if not key.startswith("time/")}
        for line in metrics
    ]
    files = sorted((folder / "records").iterdir())
    records = [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    return json.dumps([told, lines, records])


def moment(folder: Path) -> str:
    """What was going on when the signal came, as far as the files tell."""
    run = folder / "run"
    if not (folder / "records" / "manifest.json").exists():
        return "in prepare, or before"
    if list((run / "checkpoints").glob("*tmp*")):
        return "while a checkpoint was written"
    if not list((run / "checkpoints").glob("0*")):
        return "before the first checkpoint"
    return "between checkpoints"


def left_over(group: int) -> bool:
    """Whether a process of the killed session still lives."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_work(folder: Path, processes: list[subprocess.Popen], told: int) -> None:
    """Until the command has imported what it needs, and says more than was `told`."""
    while processes[0].poll() is None and (folder / "log").stat().st_size == told:
        time.sleep(0.01)


class Stops(NamedTuple):
    """The signals that were sent: how, and when."""

    hows: list[str]
    moments: list[str]  # of kills only


def stop(processes: list[subprocess.Popen], folder: Path, rng: random.Random, stops: Stops) -> str:
    """Sends a signal to one process or to all; says what is wrong if they do not end by it."""
    number = rng.choice([signal.SIGKILL] * 5 + [signal.SIGTERM])
    choices = [[index] for index in range(len(processes))]
    chosen = rng.choice([*choices, [*range(len(processes))]])
    for index in chosen:
        processes[index].send_signal(number)
    begun, when = time.monotonic(), moment(folder)
    ended = wait(processes, TO_END)
    statuses = [process.poll() for process in processes]
    how = f"{number.name} to {' and '.join(map(str, chosen))} of {len(processes)}"
    seconds = time.monotonic() - begun
    print(f"{how} {when}: ended with {statuses} after {seconds:.1f} s", flush=True)
    stops.hows.append(how)
    if -signal.SIGKILL in statuses and number == signal.SIGKILL:  # else it had ended already
        stops.moments.append(when)
    if not ended:
        for process in processes:
            process.kill()
        return "a process has not ended"
    if number == signal.SIGTERM and not {*statuses} <= {0, 75, -signal.SIGTERM}:
        return "SIGTERM gave another status"
    return "a process has outlived it" if any(left_over(one.pid) for one in processes) else ""


def run_with_stops(
    kind: Kind, folder: Path, longest: float, rng: random.Random, stops: Stops
) -> bool:
    """Starts and stops, and lets it come to its end at last; False if it failed by itself."""
    attempt, log, wrong = 0, folder / "log", ""
    while not wrong:
        told = log.stat().st_size if log.exists() else 0
        processes = start(kind, folder)
        wait_for_work(folder, processes, told)
        # Every other time rather early: there is prepare, and what comes before the first step.
        after = longest * rng.random() * rng.choice((0.2, 0.6))
        attempt += 1
        if not wait(processes, after if attempt <= kind.signals else None):
            wrong = stop(processes, folder, rng, stops)
        elif any(process.returncode for process in processes):
            wrong = f"ended with {[process.returncode for process in processes]}"
        else:
            return True
    print(f"{log.read_text()[-3000:]}\n{wrong}", flush=True)
    return False


def main() -> int:
    """0 if every run that was killed came to the end of the one that was not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--run", choices=KINDS, default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    kind = KINDS[given.run]
    rng, stops, runs, same = random.Random(given.seed), Stops([], []), 0, 0
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        processes = start(kind, whole)
        wait_for_work(whole, processes, 0)
        begun = time.monotonic()
        wait(processes, None)
        if any(process.returncode for process in processes):
            print((whole / "log").read_text())
            return 2
        longest = 1.2 * (time.monotonic() - begun)
        print(f"the run that nobody stops took {longest / 1.2:.0f} s", flush=True)
        expected = end_of(whole)
        shutil.rmtree(whole)
        while len(stops.moments) < given.kills:
            folder, runs = Path(name) / f"killed-{runs}", runs + 1
            equal = run_with_stops(kind, folder, longest, rng, stops)
            equal = equal and end_of(folder) == expected
            same += equal
            print(f"run {runs}: {'the same end' if equal else 'ANOTHER END'}", flush=True)
            shutil.rmtree(folder)
    for what, count in collections.Counter(stops.hows).most_common():
        print(f"{count} times {what}")
    for what, count in collections.Counter(stops.moments).most_common():
        print(f"{count} kills {what}")
    print(f"{len(stops.moments)} kills in {runs} runs: {same} of {runs} came to the same end")
    return 0 if same == runs else 1


if __name__ == "__main__":
    sys.exit(main())
