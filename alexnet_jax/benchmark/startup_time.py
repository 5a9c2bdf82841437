"""From the start of Python to the first step done: without and with the compilation cache."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from alexnet_jax import config
from alexnet_jax.benchmark.bench import Bench, Row, Step, case
from alexnet_jax.runtime import host
from alexnet_jax.runtime.errors import UserError

_CODE = "import sys; from alexnet_jax.benchmark.startup_time import start; start(sys.argv[1])"


def measure(bench: Bench) -> list[Row]:
    """Seconds of a first and a second start, each a process of its own."""
    rows: list[Row] = []
    for i, c in enumerate(bench.cases()):
        first, second = (_seconds(c, bench.folder / f"cache-{i}") for _ in range(2))
        times = {"first start, s": first, "second start, s": second}
        rows.append(case(c) | times | {"ratio": second / first})
    return rows


def start(values: str) -> None:
    """One step of the config in `values`, JSON; what a process of its own does."""
    c = config.parse(json.loads(values))
    host.configure_jax(c.devices)
    Step(c).run(1)


def _seconds(c: config.Config, cache: Path) -> float:
    line = [sys.executable, "-c", _CODE, json.dumps(config.as_dict(c))]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    begun = time.perf_counter()
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"a process that only starts ended with status {done.returncode}: {last}")
    return time.perf_counter() - begun
