"""Feeding: the host places batches while the devices work, and waits for no number."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import repeat
from typing import Any

import jax
import numpy as np
import pytest

from alexnet_jax import train
from alexnet_jax.benchmark import input_time
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.runtime.signals import Stopped
from alexnet_jax.train import fit
from alexnet_jax.training import scores
from alexnet_jax.training.scores import Evaluator, ImageScores
from alexnet_jax.training.setup import make_setup
from tests.conftest import make_config

STEPS = 12
AN_EPOCH = {"batch": 16, "steps": STEPS, "log__every": 4, "log__layers_every": 0}  # 16 steps
SECONDS = 30  # for what takes milliseconds


class Numbers:
    """Stands for an array that a device has not computed yet. It notes when it is read."""

    is_fully_addressable = True

    def __init__(self, done: Future[None], images: int, read: Callable[[], None]) -> None:
        self._done, self._images, self._read = done, images, read

    def block_until_ready(self) -> "Numbers":
        self._done.result()
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self._done.result()
        self._read()
        return np.zeros(self._images, dtype)


class Device:
    """Does one step after the other in a thread of its own, as a GPU does.

    Attributes:
      events: in their order, as 'put 1', 'begin 1', 'read 1'. A step begins for the host when it
        hands it over.
      batches: those that the steps got.
      placed: how many batches were put.
    """

    def __init__(self, first: int = 0) -> None:
        self.events, self.batches = list[str](), list[dict[str, jax.Array]]()
        self.placed = self.begun = first
        self.changed = threading.Condition()
        self._queue = ThreadPoolExecutor(1)

    def put(self, put_batch: Callable[..., Any]) -> Callable[..., Any]:
        """`put_batch`, noted."""

        def put(*arguments: Any) -> Any:
            batch = put_batch(*arguments)
            with self.changed:
                self.placed += 1
                self.events.append(f"put {self.placed}")
                self.changed.notify_all()
            return batch

        return put

    def begin(self, batch: dict[str, jax.Array]) -> ImageScores:
        """Begins the next step."""
        self.begun += 1
        number, images = self.begun, len(batch["label"])
        self.events.append(f"begin {number}")
        self.batches.append(batch)
        done = self._queue.submit(self.work, number)
        read = partial(self.events.append, f"read {number}")
        return ImageScores(Numbers(done, images, read), Numbers(done, images, read))

    def work(self, number: int) -> None:
        """What a step takes its time for."""

    def step(self, *_: Any, **__: Any) -> "Device":
        """In place of `make_step`."""
        return self

    def lower(self, *_: Any) -> "Device":
        return self

    def compile(self) -> Callable[..., Any]:
        return lambda state, normalization, batch, hyperparams: (state, self.begin(batch))


class WaitingDevice(Device):
    """Ends a step only when the batch of the fourth step after it is placed."""

    def work(self, number: int) -> None:
        wanted = min(number + 4, STEPS)
        with self.changed:
            placed = self.changed.wait_for(lambda: self.placed >= wanted, SECONDS)
        assert placed, f"batch {wanted} is not placed while step {number} runs"


@pytest.fixture
def trained(records, tmp_path, monkeypatch):
    """Trains on a stand-in for the devices, which it returns. Nothing is evaluated."""

    def run(device, folder="run", **values):
        with monkeypatch.context() as patch:
            patch.setattr(train, "make_step", device.step)
            patch.setattr(train.memory, "check_program", lambda *_: None)  # it is no program
            patch.setattr(train, "put_batch", device.put(train.put_batch))
            patch.setattr(train, "evaluate", lambda _: {})
            fit(make_config(records, **AN_EPOCH | values), tmp_path / folder)
        return device

    return run


def test_batches_are_placed_while_steps_run(trained):
    """While a step runs, the host hands over the next two and places two batches more."""
    device = trained(WaitingDevice())
    assert device.begun == device.placed == STEPS
    for step in range(1, STEPS - 1):  # before it is needed, a batch has two steps' time
        begun, placed = (device.events.index(e) for e in (f"begin {step}", f"put {step + 2}"))
        assert placed < begun


def test_a_batch_is_placed_in_few_bytes(trained):
    device = trained(Device())
    for batch in device.batches:
        assert batch["image"].dtype == np.uint8
        assert batch["image"].shape == (16, 64, 64, 3)
        rest = sum(array.nbytes for name, array in batch.items() if name != "image")
        assert rest <= 40 * 16  # a float image would have 4 x 12,288 bytes


def test_images_to_evaluate_are_placed_as_bytes(records):
    setup = make_setup(make_config(records))
    mesh, split = setup.network.mesh, setup.validation
    for batch, _ in scores.device_batches(mesh, split, 32, threads=1, what="test"):
        assert {name: array.dtype for name, array in batch.items()} == {
            "image": np.uint8,
            "label": np.int32,
        }


@pytest.fixture
def fetches(monkeypatch):
    """The calls of `jax.device_get` for what a step computes, in a list."""
    fetch, calls = jax.device_get, []

    def counted(tree):
        if any(isinstance(leaf, Numbers) for leaf in jax.tree.leaves(tree)):
            calls.append(tree)
        return fetch(tree)

    monkeypatch.setattr(jax, "device_get", counted)
    return calls


def noted(what, first, last):
    """Events of `Device`: each step has two arrays to read, losses and ranks."""
    times = 2 if what == "read" else 1
    return [f"{what} {step}" for step in range(first, last + 1) for _ in range(times)]


def test_metrics_are_fetched_once_for_a_line(trained, fetches):
    """Two steps after the line; between lines the host reads nothing that a step computes."""
    events = [one for one in trained(Device()).events if not one.startswith("put")]
    assert events == [
        *noted("begin", 1, 6),
        *noted("read", 1, 4),
        *noted("begin", 7, 10),
        *noted("read", 5, 8),
        *noted("begin", 11, 12),
        *noted("read", 9, 12),
    ]
    assert len(fetches) == STEPS // AN_EPOCH["log__every"]


def test_an_evaluation_fetches_once(records, monkeypatch, fetches):
    """When its last batch is begun. Until then the host may wait, but it reads nothing."""
    c, device = make_config(records), Device()
    setup = make_setup(c)

    def look(params, mean, batch):
        found = device.begin(batch)
        return found, found.losses

    monkeypatch.setattr(ShardedModel, "jit", lambda *_, **__: look)
    evaluator = Evaluator(setup.network, setup.normalization["mean"], c.data, batch=48)
    found = evaluator.score({}, setup.train, views=1, what="test")
    assert found.images == 256
    assert device.events == [*noted("begin", 1, 6), *noted("read", 1, 6)]
    assert len(fetches) == 1


class DyingDevice(Device):
    """At step 7 the process dies, or is asked to stop."""

    def __init__(self, what: Callable[[], None]) -> None:
        super().__init__()
        self.what = what

    def begin(self, batch: dict[str, jax.Array]) -> ImageScores:
        if self.begun == 6:
            self.what()
        return super().begin(batch)


class DiedError(Exception):
    """As a kill would end the process."""


def die():
    raise DiedError


@pytest.mark.parametrize(
    ("what", "error", "resumed"),
    [(lambda: os.kill(os.getpid(), signal.SIGTERM), Stopped, 7), (die, DiedError, 4)],
    ids=["stopped", "killed"],
)
def test_batches_that_were_placed_ahead_come_again(trained, what, error, resumed):
    """A run resumes with the batch after that of its saved step, whatever was placed."""
    whole = trained(Device(), "whole", checkpoint_every=4)
    first = DyingDevice(what)
    with pytest.raises(error):
        trained(first, checkpoint_every=4)
    assert first.placed > first.begun + 1  # else this would test nothing
    second = trained(Device(resumed), checkpoint_every=4)
    assert len(second.batches) == STEPS - resumed
    for ours, theirs in zip(second.batches, whole.batches[resumed:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# --- what the benchmark says of it --------------------------------------------------------------


class LateBatch:
    """Stands for an array that reaches its device 0.2 s after somebody waits for it."""

    def block_until_ready(self):
        time.sleep(0.2)
        return self


def read_slowly():
    while True:
        time.sleep(0.2)
        yield {}


@pytest.mark.parametrize(
    ("batches", "waits"),
    [
        (repeat({}), False),
        (repeat({"image": LateBatch()}), True),
        (read_slowly(), True),
    ],
    ids=["in time", "late on the device", "late on the host"],
)
def test_the_benchmark_sees_a_device_that_waits_for_batches(monkeypatch, batches, waits):
    monkeypatch.setattr(input_time, "SECONDS", 0.2)
    row = input_time._wait(batches, read_seconds=0.0, steps=5)
    assert row["stand-in step, ms"] == 20
    assert (row["waits for the next, ms"] > 100) == waits


def test_other_threads_do_not_count_where_decoding_alone_is_timed(records, monkeypatch):
    """Those of the reader may still end their batches."""
    monkeypatch.setattr(input_time, "SECONDS", 0.3)
    setup, ended, data = make_setup(make_config(records)), threading.Event(), bytes(1 << 20)

    def hash_until_ended():
        while not ended.is_set():
            hashlib.sha256(data)  # without Python's lock

    alone, _ = input_time._decoding_rates(setup)
    with ThreadPoolExecutor(4) as others:
        for _ in range(4):
            others.submit(hash_until_ended)
        among_others, _ = input_time._decoding_rates(setup)
        ended.set()
    assert among_others > 0.5 * alone


def test_rates_are_those_of_a_number_of_calls_at_least():
    per_cpu, per_second = input_time._rates(lambda: 8, iter([0.0, 2.0]).__next__, 0.0, least=3)
    assert per_cpu == 24 / 2
    assert per_second > 0
