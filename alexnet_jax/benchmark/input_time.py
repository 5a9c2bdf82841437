"""How fast images come, and whether training waits for them or for its checkpoints."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Literal

import jax
import numpy as np
import simplejpeg

from alexnet_jax.benchmark.bench import Bench, Row, Step, batches_of, case, with_records
from alexnet_jax.benchmark.timing import Work, alternate, in_turn
from alexnet_jax.config import Config
from alexnet_jax.data import cores
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.sharding import put_batch
from alexnet_jax.train import placed_batches
from alexnet_jax.training.memory import check_memory
from alexnet_jax.training.setup import Setup, make_setup
from alexnet_jax.training.step import Batch

SECONDS = 1.0  # of each repetition


def measure_input(bench: Bench) -> list[Row]:
    """Images a CPU-second and a second, from records to a batch on the devices; both formats."""
    return [
        _input_row(_with_format(c, kind, bench.folder), bench.repeats)
        for c in bench.cases()
        for kind in ("jpeg", "raw")
    ]


def _with_format(c: Config, kind: Literal["jpeg", "raw"], folder: Path) -> Config:
    """The config with its own records, or with drawn ones if they have another format."""
    if c.data.format == kind:
        return c
    unlike = dataclasses.replace(c.data, records=str(folder / "none"), format=kind)
    return with_records(dataclasses.replace(c, data=unlike), folder / kind)


def _input_row(c: Config, repeats: int) -> Row:
    """Alternates with decoding alone, for which the reading threads must have ended."""
    setup = make_setup(c)
    check_memory(setup.network, c, training=True)
    works = [_reading_rates] if c.data.format == "raw" else [_reading_rates, _decoding_rates]
    rates = [[work(setup) for work in works] for _ in range(repeats)]
    (per_cpu, per_second), *alone = np.median(rates, axis=0).tolist()
    row = case(c) | {"format": c.data.format, "size": c.data.size}
    row |= {"images/CPU-s": per_cpu, "images/s": per_second}
    for decoded, _ in alone:
        row |= {"decoding alone, images/CPU-s": decoded, "ratio": per_cpu / decoded}
    return row


def _reading_rates(setup: Setup) -> tuple[float, float]:
    """Images a CPU-second and a second, from records to batches on the devices.

    Before and after, the threads have about as many batches half read, so they do not count: each
    thread reads four batches or more.
    """
    mesh, images = setup.network.mesh, setup.config.batch
    ahead = 2 * (setup.config.data.threads or cores())  # as many batches are read ahead
    with closing(batches_of(setup)) as batches:

        def place() -> int:
            jax.block_until_ready(put_batch(mesh, next(batches), images))
            return images

        _rates(place, time.process_time, SECONDS / 2, ahead)
        return _rates(place, time.process_time, SECONDS, 2 * ahead)


def _decoding_rates(setup: Setup) -> tuple[float, float]:
    """The same of decoding alone: some images, encoded as the records have them."""
    split, jpegs = setup.train, []
    image = np.empty((split.size, split.size, 3), np.uint8)
    for index in range(min(64, len(split))):
        split.read(index, image)
        jpegs.append(simplejpeg.encode_jpeg(image, 95, "RGB", colorsubsampling="444"))

    def decode() -> int:
        for data in jpegs:
            simplejpeg.decode_jpeg(data, "RGB")
        return len(jpegs)

    return _rates(decode, time.thread_time, SECONDS)  # other threads may still end a batch


def _rates(
    some: Callable[[], int], processor: Callable[[], float], seconds: float, least: int = 1
) -> tuple[float, float]:
    """Images a CPU-second and a second of what returns its number of images.

    It is called for `seconds`, and `least` times or more; `processor` is the clock of CPU-seconds.
    """
    wall, cpu, images, calls = time.perf_counter(), processor(), 0, 0
    while calls < least or time.perf_counter() - wall < seconds:
        images += some()
        calls += 1
    return images / (processor() - cpu), images / (time.perf_counter() - wall)


def measure_train(bench: Bench) -> list[Row]:
    """Training from records against training on one batch again and again; and with checkpoints."""
    return [_train_row(c, bench) for c in bench.cases()]


def _train_row(c: Config, bench: Bench) -> Row:
    """Both ways take the batches as training does, with two steps under way."""
    step = Step(c)
    with closing(placed_batches(step.setup, 0, sys.maxsize)) as batches:
        read = partial(next, batches)
        works: dict[str, Work] = {"again": step.run, "real": partial(step.run, next_batch=read)}
        times = alternate(works, bench.repeats, seconds=3.0)
        seconds = c.batch / _reading_rates(step.setup)[1]
        wait = _wait(batches, seconds, 10 * bench.repeats)
    again, real = times["again"].median, times["real"].median
    row = case(c) | {"format": c.data.format, "one batch again, images/s": c.batch / again}
    row |= {"from records": c.batch / real, "ratio": again / real}
    return row | wait | _stall(step, bench.folder, again)


def _wait(batches: Iterator[Batch], read_seconds: float, steps: int) -> Row:
    """For how long a device waits between two steps though reading a batch takes less than a step.

    The step is a stand-in that begins when its batch is there, lasts twice as long as it takes to
    read one, or longer, and needs no core, as on a GPU. So the device waits only if the host places
    batches too late. Two steps are under way, as in training.
    """
    seconds, spans = max(SECONDS / 10, 2 * read_seconds), list[tuple[float, float]]()

    def step(batch: Batch) -> None:
        jax.block_until_ready(batch)
        start = time.perf_counter()
        time.sleep(seconds)
        spans.append((start, time.perf_counter()))

    with ThreadPoolExecutor(1) as device:
        in_turn(lambda: Outcome(device.submit(step, next(batches))), steps)
    waits = [start - end for (_, end), (start, _) in pairwise(spans)]
    return {"stand-in step, ms": 1000 * seconds, "waits for the next, ms": 1000 * mean(waits)}


class Outcome:
    """What a stand-in step gives: `jax.block_until_ready` waits for it as for an array."""

    def __init__(self, done: Future[None]) -> None:
        self._done = done

    def block_until_ready(self) -> "Outcome":
        self._done.result()
        return self


def _stall(step: Step, folder: Path, seconds: float) -> Row:
    """How long a checkpoint holds up the loop, and how much slower steps are until it is written.

    The stall is the time during which no step is under way, as a share of the time until the end of
    the step in which the checkpoint is complete. Steps take `seconds` each when nothing is written.
    """
    meta = {"records": step.setup.records.manifest.hash, "policy": {}}
    with Checkpoints(folder / f"{step.setup.config.batch}" / workdir.CHECKPOINTS) as checkpoints:
        checkpoints.save(1, step.state, meta, {})  # the first makes Orbax' threads
        checkpoints.wait()
        start = time.perf_counter()
        checkpoints.save(2, step.state, meta, {})
        held, steps = time.perf_counter() - start, 0
        while checkpoints.writing():
            step.run(1)
            steps += 1
        written = time.perf_counter() - start
    return {
        "checkpoint holds up, s": held,
        "written after, s": written,
        "stall": held / written,
        "steps meanwhile": steps,
        "longer by": (written - held) / (steps * seconds) - 1 if steps else 0.0,
    }
