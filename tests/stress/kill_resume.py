"""kill -9 at random moments: does the same command, again and again, come to the same end?

    python -m tests.stress.kill_resume --kills=30 [--seed=0]

A run that nobody stops is made first: images are drawn and prepared, two epochs are trained,
scored and saved. Then the same command is started in an empty folder and killed after a random
time, until it gets to its end; and so on with new folders, until there were enough kills. Each end
must have the same records, bit for bit the same parameters, momentum and position in the data, and
the same lines of metrics but for times. The last line of the output says how many did.
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
from pathlib import Path

ROOT = Path(__file__).parents[2]
KILLS_A_RUN = 5  # at most; then it is let alone
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


def command(folder: Path) -> list[str]:
    """Trains a small run in `folder`, with records of its own."""
    values = {
        "data.source": "generated:2048",
        "data.records": folder / "records",
        "batch": 64,
        "epochs": 2,
        "model.width": 0.125,
        "checkpoint_every": 5,
        "log.every": 3,
    }
    line = [sys.executable, "-m", "alexnet_jax.main", "--config=configs/tiny.py"]
    return [*line, f"--workdir={folder / 'run'}", *(f"--config.{k}={v}" for k, v in values.items())]


def start(folder: Path) -> subprocess.Popen:
    """Starts or resumes the command."""
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("a") as log:
        # A session of its own: what it has started is killed with it, and can be looked for.
        return subprocess.Popen(
            command(folder), cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )


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
    """What was going on when the process was killed, as far as the files tell."""
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


def wait_for_work(folder: Path, process: subprocess.Popen, told: int) -> None:
    """Until the process has imported what it needs, and says more than was `told`."""
    while process.poll() is None and (folder / "log").stat().st_size == told:
        time.sleep(0.01)


def run_with_kills(folder: Path, longest: float, rng: random.Random, kills: list[str]) -> bool:
    """Starts and kills, and lets it come to its end at last; False if it failed by itself."""
    attempt = 0
    while True:
        log = folder / "log"
        told = log.stat().st_size if log.exists() else 0
        process = start(folder)
        wait_for_work(folder, process, told)
        # Every other time rather early: there is prepare, and what comes before the first step.
        after = longest * rng.random() * rng.choice((0.2, 1))
        attempt += 1
        try:
            if process.wait(timeout=after if attempt <= KILLS_A_RUN else None) == 0:
                return True
            print(log.read_text()[-2000:], flush=True)
            return False
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills.append(moment(folder))
            print(f"kill {len(kills)}: {kills[-1]}", flush=True)
            if left_over(process.pid):
                print("a process has outlived it", flush=True)
                return False


def main() -> int:
    """0 if every run that was killed came to the end of the one that was not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, kills, runs, same = random.Random(given.seed), list[str](), 0, 0
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        process = start(whole)
        wait_for_work(whole, process, 0)
        begun = time.monotonic()
        if process.wait() != 0:
            print((whole / "log").read_text())
            return 2
        longest = 1.2 * (time.monotonic() - begun)
        expected = end_of(whole).replace("whole", "run")
        while len(kills) < given.kills:
            folder, runs = Path(name) / f"killed-{runs}", runs + 1
            equal = run_with_kills(folder, longest, rng, kills)
            equal = equal and end_of(folder).replace(folder.name, "run") == expected
            same += equal
            print(f"run {runs}: {'the same end' if equal else 'ANOTHER END'}", flush=True)
            shutil.rmtree(folder)
    for what, count in collections.Counter(kills).most_common():
        print(f"{count} kills {what}")
    print(f"{len(kills)} kills in {runs} runs: {same} of {runs} came to the same end")
    return 0 if same == runs else 1


if __name__ == "__main__":
    sys.exit(main())
