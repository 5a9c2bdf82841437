"""What the sections of the benchmark share: the grid of cases, and a step ready to run."""

import dataclasses
import importlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax

from alexnet_jax import optim
from alexnet_jax.benchmark.timing import in_turn
from alexnet_jax.config import Config
from alexnet_jax.data.pipeline import train_batches
from alexnet_jax.data.records import is_prepared
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.sharding import local_rows, put_batch
from alexnet_jax.training.memory import check_memory
from alexnet_jax.training.setup import Setup, make_setup
from alexnet_jax.training.state import init_state
from alexnet_jax.training.step import DeviceHyperparams, make_step, put_hyperparams, step_shapes

IMAGES = 2048  # that are drawn where the config's records are not there

Row = dict[str, Any]
"""A line of a table: numbers and texts by column."""


class Bench(NamedTuple):
    """What is asked for."""

    config: Config  # with records that exist, if the section reads any
    batches: tuple[int, ...]
    dtypes: tuple[Any, ...]  # of float32 and bfloat16
    devices: tuple[int, ...]
    peer: bool  # whether to time PyTorch and plain JAX beside
    repeats: int
    folder: Path  # for what a section writes; it is removed in the end

    def cases(self) -> Iterator[Config]:
        """The config with each batch, dtype and number of devices, the latter changing fastest."""
        for batch, dtype, devices in itertools.product(self.batches, self.dtypes, self.devices):
            yield dataclasses.replace(self.config, batch=batch, dtype=dtype, devices=devices)


def case(c: Config) -> Row:
    """The columns with which a row begins."""
    return {"batch": c.batch, "dtype": c.dtype, "devices": c.devices}


def with_records(c: Config, folder: Path) -> Config:
    """The config with its own records, or with drawn ones of the same size and format."""
    data = c.data
    if not is_prepared(data.records):
        records = folder / "records"
        prepare(
            f"generated:{IMAGES}", records, size=data.size, format=data.format, resize=data.resize
        )
        data = dataclasses.replace(data, records=str(records), validation="validation")
    return dataclasses.replace(c, data=data)


class Step:
    """A training step, its inputs on the devices, its state carried on."""

    def __init__(self, c: Config) -> None:
        self.setup = make_setup(c)
        check_memory(self.setup.network, c, training=True)
        with closing(batches_of(self.setup)) as batches:
            self.batch = put_batch(self.setup.network.mesh, next(batches), c.batch)
        self.hyperparams, self.state = first_hyperparams(self.setup), init_state(self.setup)
        self.compiled = traced_step(self.setup.network, c).lower().compile()

    def run(self, count: int, next_batch: Callable[[], Any] | None = None) -> None:
        """So many steps: on what `next_batch` returns, or on the same batch again and again."""

        def once() -> Any:
            batch = next_batch() if next_batch else self.batch
            arguments = self.setup.normalization, batch, self.hyperparams
            self.state, outcome = self.compiled(self.state, *arguments)
            return outcome

        in_turn(once, count)
        jax.block_until_ready(self.state)


def traced_step(network: ShardedModel, c: Config) -> Any:
    """The training step that `train` runs, as `jax.stages.Traced`; nothing is placed or run."""
    step = make_step(network, c.optim, c.data, batch=c.batch, seed=c.seed)
    return step.trace(*step_shapes(network, c))


def first_hyperparams(setup: Setup) -> DeviceHyperparams:
    """Those of the first step."""
    c = setup.config
    return put_hyperparams(setup.network, c.optim, optim.make_policy(c.policy).hyperparams(0))


def batches_of(setup: Setup) -> Any:
    """The iterator over the training batches of a setup's config."""
    c, rows = setup.config, local_rows(setup.network.mesh, setup.config.batch)
    return train_batches(setup.train, c.data, batch=c.batch, seed=c.seed, rows=rows)


def peers(module: str) -> Any:
    """The module of tests/reference.

    Raises:
      UserError: it or what it imports is not there.
    """
    try:
        return importlib.import_module(f"tests.reference.{module}")
    except ImportError as error:
        raise UserError(
            f"--peer: {error}; run in a checkout of the repository, with PyTorch "
            f'(pip install -e ".[peers]")'
        ) from error
