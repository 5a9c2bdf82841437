"""What a step exchanges between devices, and what the compiled step holds on each of them."""

import dataclasses
import itertools
from contextlib import closing
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from alexnet_jax import optim
from alexnet_jax.benchmark.bench import Bench, Row, case
from alexnet_jax.benchmark.exchanges import Exchange, exchanges
from alexnet_jax.data.pipeline import train_batches
from alexnet_jax.model.towers import DATA, TOWER
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.setup import Setup, make_setup
from alexnet_jax.training.state import state_shapes
from alexnet_jax.training.step import make_step, put_hyperparams

PARTNERS = {TOWER: "towers", DATA: "rows"}
"""Between whom devices exchange along an axis of the mesh: rows of devices share the batch."""


def measure_collectives(bench: Bench) -> list[Row]:
    """Every exchange of the step, with its layer and bytes."""
    rows: list[Row] = []
    for c in bench.cases():
        for one in step_exchanges(make_setup(c)):
            row = {"kind": one.kind, "layer": one.layer(c.model.names)}
            row |= {"pass": "backward" if one.backward else "forward"}
            row |= {"between": " and ".join(PARTNERS[axis] for axis in one.axes)}
            rows.append(case(c) | row | {"bytes sent by a device": one.sent})
    return rows


def measure_traffic(bench: Bench) -> list[Row]:
    """What each device sends in a step, in MB: where towers, the batch or both are shared."""
    rows: list[Row] = []
    for c, apart in itertools.product(bench.cases(), (True, False)):
        if c.devices == 1:
            raise UserError("traffic: a single device sends nothing; give --devices=2,4")
        setup = make_setup(dataclasses.replace(c, towers_apart=apart))
        found, mesh = step_exchanges(setup), setup.network.mesh.shape
        shared = [name for name, axis in (("towers", TOWER), ("batch", DATA)) if mesh[axis] > 1]
        row: Row = {"shared": " and ".join(shared)}
        for axis, between in PARTNERS.items():
            sent = sum(one.sent for one in found if one.axes == (axis,))
            row[f"between {between}, MB"] = sent / 1e6
        rows.append(case(c) | row | {"all, MB": sum(one.sent for one in found) / 1e6})
    return rows


def step_exchanges(setup: Setup) -> list[Exchange]:
    """The exchanges of the training step; nothing is compiled."""
    step, arguments = _step(setup)
    return exchanges(step.trace(*arguments).jaxpr, setup.network.mesh.shape)


def compiled_step(setup: Setup) -> Any:
    """The compiled training step of a setup."""
    step, arguments = _step(setup)
    return step.lower(*arguments).compile()


def _step(setup: Setup) -> tuple[Any, tuple[Any, ...]]:
    """The step, and what its arguments are like. One image is read, to know what a batch is."""
    c, network = setup.config, setup.network
    with closing(train_batches(setup.train, c.data, batch=1, seed=0, rows=[(0, 1)])) as batches:
        one = next(batches)
    rows = network.shardings(P(DATA))
    batch = {
        name: jax.ShapeDtypeStruct((c.batch, *part.shape[1:]), part.dtype, sharding=rows)
        for name, part in one.items()
    }
    hyperparams = put_hyperparams(network, c.optim, optim.make_policy(c.policy).hyperparams(0))
    step = make_step(network, c.optim, c.data, batch=c.batch, seed=c.seed)
    return step, (state_shapes(network, c.optim), setup.normalization, batch, hyperparams)


def measure_memory(bench: Bench) -> list[Row]:
    """Megabytes on each device, as the compiler plans them: of the state, and at most."""
    rows: list[Row] = []
    for c in bench.cases():
        plan = compiled_step(make_setup(c)).memory_analysis()
        kept = plan.argument_size_in_bytes
        new = plan.output_size_in_bytes - plan.alias_size_in_bytes
        parts = {"state and input": kept, "temporary": plan.temp_size_in_bytes}
        parts |= {"peak": kept + plan.temp_size_in_bytes + new}
        rows.append(case(c) | {f"{name}, MB": size / 1e6 for name, size in parts.items()})
    return rows
