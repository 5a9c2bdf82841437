"""Does a long run grow? Memory, open files and the time of a step, by the quarter.

    python -m tests.stress.long_run --minutes=60

Trains configs/tiny.py for so long in a process of its own, with an epoch's evaluation and
checkpoint every few seconds, and looks at that process once a second.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from alexnet_jax.runtime.metrics import read_metrics

ROOT = Path(__file__).parents[2]


def look(process: int) -> tuple[float, int, int]:
    """Resident memory in MB, open files, threads."""
    status = Path(f"/proc/{process}/status").read_text()
    values = dict(line.split(":", 1) for line in status.splitlines())
    memory = int(values["VmRSS"].split()[0]) / 1024
    return memory, len(os.listdir(f"/proc/{process}/fd")), int(values["Threads"])


def main() -> None:
    """Prints a line for each quarter of the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        run, samples = Path(name) / "run", list[tuple[float, int, int]]()
        line = [sys.executable, "-m", "alexnet_jax.main", "--config=configs/tiny.py"]
        line += [f"--workdir={run}", f"--config.data.records={Path(name) / 'records'}"]
        line += ["--config.epochs=1000000", "--config.data.source=generated:1024"]
        with (Path(name) / "log").open("w") as log:
            process = subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=log)
        while not read_metrics(run):  # what is set up is not counted
            time.sleep(1)
            assert process.poll() is None, (Path(name) / "log").read_text()
        end = time.monotonic() + 60 * given.minutes
        while time.monotonic() < end:
            samples.append(look(process.pid))
            time.sleep(1)
        process.send_signal(signal.SIGTERM)
        status = process.wait()
        lines = [one for one in read_metrics(run) if "time/images_per_s" in one]
    print(f"{lines[-1]['step']} steps, {lines[-1]['epoch']:.0f} epochs; exit status {status}")
    print(
        "quarter  memory, MB (median, most)  open files (most)  threads (most)  images/s (median)"
    )
    for quarter in range(4):
        some, told = (
            part[quarter * len(part) // 4 : (quarter + 1) * len(part) // 4]
            for part in (samples, lines)
        )
        memory, files, threads = zip(*some, strict=True)
        speed = statistics.median(one["time/images_per_s"] for one in told)
        print(
            f"{quarter + 1:7}  {statistics.median(memory):13.0f} {max(memory):12.0f}"
            f"  {max(files):17}  {max(threads):14}  {speed:8.0f}"
        )


if __name__ == "__main__":
    main()
