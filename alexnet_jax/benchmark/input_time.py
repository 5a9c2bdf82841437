"""How fast images come, and whether training waits for them or for its checkpoints."""

import dataclasses
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import simplejpeg

from alexnet_jax.benchmark.bench import Bench, Row, Step, batches_of, case, with_records
from alexnet_jax.benchmark.timing import Work, alternate
from alexnet_jax.config import Config
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.sharding import put_batch
from alexnet_jax.training.setup import Setup, make_setup

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
    works = [_reading_rates] if c.data.format == "raw" else [_reading_rates, _decoding_rates]
    rates = [[work(setup) for work in works] for _ in range(repeats)]
    (per_cpu, per_second), *alone = np.median(rates, axis=0).tolist()
    row = case(c) | {"format": c.data.format, "size": c.data.size}
    row |= {"images/CPU-s": per_cpu, "images/s": per_second}
    for decoded, _ in alone:
        row |= {"decoding alone, images/CPU-s": decoded, "ratio": per_cpu / decoded}
    return row


def _reading_rates(setup: Setup) -> tuple[float, float]:
    """Images a CPU-second and a second, from records to batches on the devices."""
    mesh, images = setup.network.mesh, setup.config.batch
    with closing(batches_of(setup)) as batches:

        def place() -> int:
            jax.block_until_ready(put_batch(mesh, next(batches), images))
            return images

        _rates(place, SECONDS / 2)  # until as much is read as is taken
        return _rates(place, SECONDS)


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

    return _rates(decode, SECONDS)


def _rates(some: Callable[[], int], seconds: float) -> tuple[float, float]:
    """Images a CPU-second and a second of what returns its number of images."""
    wall, cpu, images = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        images += some()
    return images / (time.process_time() - cpu), images / (time.perf_counter() - wall)


def measure_train(bench: Bench) -> list[Row]:
    """Training from records against training on one batch again and again; and with checkpoints."""
    return [_train_row(c, bench) for c in bench.cases()]


def _train_row(c: Config, bench: Bench) -> Row:
    """As in training, the next batch is placed while two steps are under way."""
    step = Step(c)
    with closing(batches_of(step.setup)) as batches:

        def read() -> Any:
            return put_batch(step.setup.network.mesh, next(batches), c.batch)

        works: dict[str, Work] = {"again": step.run, "real": partial(step.run, next_batch=read)}
        times = alternate(works, bench.repeats, seconds=3.0)
    again, real = times["again"].median, times["real"].median
    row = case(c) | {"format": c.data.format, "one batch again, images/s": c.batch / again}
    row |= {"from records": c.batch / real, "ratio": again / real}
    return row | _stall(step, bench.folder, again)


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
