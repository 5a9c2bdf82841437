"""What the compiled step exchanges between devices, and holds on each of them."""

import dataclasses
import itertools
import re
from contextlib import closing
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from alexnet_jax import optim
from alexnet_jax.benchmark.bench import Bench, Row, case
from alexnet_jax.benchmark.hlo import Collective, collectives
from alexnet_jax.data.pipeline import train_batches
from alexnet_jax.model.towers import DATA, TOWER
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.setup import Setup, make_setup
from alexnet_jax.training.state import state_shapes
from alexnet_jax.training.step import make_step, put_hyperparams


def measure_collectives(bench: Bench) -> list[Row]:
    """Every exchange of the step, with its layer and bytes."""
    rows: list[Row] = []
    for c in bench.cases():
        for one in collectives(compiled_step(make_setup(c)).as_text()):
            layers = [word for word in re.findall(r"\w+", one.scope) if word in c.model.names]
            way = "backward" if "transpose(" in one.scope else "forward"
            row = {"kind": one.kind, "layer": " ".join(dict.fromkeys(layers)), "pass": way}
            row |= {"groups": " ".join(str(set(group)) for group in one.groups)}
            rows.append(case(c) | row | {"bytes sent by a device": one.sent})
    return rows


def measure_traffic(bench: Bench) -> list[Row]:
    """What each device sends in a step, in MB: where towers, the batch or both are shared."""
    rows: list[Row] = []
    for c, apart in itertools.product(bench.cases(), (True, False)):
        if c.devices == 1:
            raise UserError("traffic: a single device sends nothing; give --devices=2,4")
        setup = make_setup(dataclasses.replace(c, towers_apart=apart))
        found = collectives(compiled_step(setup).as_text())
        mesh = setup.network.mesh.shape
        shared = [name for name, axis in (("towers", TOWER), ("batch", DATA)) if mesh[axis] > 1]
        row: Row = {"shared": " and ".join(shared)}
        for name, sent in _by_axis(found, mesh[TOWER]).items():
            row[f"{name}, MB"] = sent / 1e6
        rows.append(case(c) | row | {"all, MB": sum(one.sent for one in found) / 1e6})
    return rows


def _by_axis(found: list[Collective], towers: int) -> dict[str, int]:
    """Bytes sent between the devices of a row, which hold a tower each, and between rows."""
    sums = {"between towers": 0, "between rows": 0}
    for one in found:
        row = towers > 1 and len(one.groups[0]) == towers and one.groups[0][1] == 1
        sums["between towers" if row else "between rows"] += one.sent
    return sums


def compiled_step(setup: Setup) -> Any:
    """The compiled step of a setup, for a state and a batch that are not there.

    A single image is read, to know what a batch is like.
    """
    c, network = setup.config, setup.network
    with closing(train_batches(setup.train, c.data, batch=1, seed=0, rows=[(0, 1)])) as batches:
        one = next(batches)
    rows = network.shardings(P(DATA))
    batch = {
        name: jax.ShapeDtypeStruct((c.batch, *part.shape[1:]), part.dtype, sharding=rows)
        for name, part in one.items()
    }
    hyperparams = put_hyperparams(network, c.optim, optim.make_policy(c.policy).hyperparams(0))
    state = state_shapes(network, c.optim)
    step = make_step(network, c.optim, c.data, batch=c.batch, seed=c.seed)
    return step.lower(state, setup.normalization, batch, hyperparams).compile()


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
