"""What a step exchanges between devices, and what the compiled step holds on each of them."""

import dataclasses
import itertools

from alexnet_jax.benchmark.bench import Bench, Row, case, traced_step
from alexnet_jax.benchmark.exchanges import Exchange, exchanges
from alexnet_jax.config import Config
from alexnet_jax.model.towers import DATA, TOWER
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.setup import make_network

PARTNERS = {TOWER: "towers", DATA: "rows"}
"""Between whom devices exchange along an axis of the mesh: rows of devices share the batch."""


def measure_collectives(bench: Bench) -> list[Row]:
    """Every exchange of the step, with its layer and bytes."""
    rows: list[Row] = []
    for c in bench.cases():
        for one in step_exchanges(c):
            row = {"kind": one.kind, "layer": one.layer(c.model.names)}
            row |= {"pass": "backward" if one.backward else "forward"}
            row |= {"between": " and ".join(PARTNERS[axis] for axis in one.axes)}
            rows.append(case(c) | row | {"bytes sent by a device": one.sent})
    return rows


def measure_traffic(bench: Bench) -> list[Row]:
    """What each device sends in a step, in MB: where towers, the batch or both are shared."""
    rows: list[Row] = []
    for given, apart in itertools.product(bench.cases(), (True, False)):
        if given.devices == 1:
            raise UserError("traffic: a single device sends nothing; give --devices=2,4")
        c = dataclasses.replace(given, towers_apart=apart)
        found, mesh = step_exchanges(c), make_network(c).mesh.shape
        shared = [name for name, axis in (("towers", TOWER), ("batch", DATA)) if mesh[axis] > 1]
        row: Row = {"shared": " and ".join(shared)}
        for axis, between in PARTNERS.items():
            sent = sum(one.sent for one in found if one.axes == (axis,))
            row[f"between {between}, MB"] = sent / 1e6
        rows.append(case(c) | row | {"all, MB": sum(one.sent for one in found) / 1e6})
    return rows


def step_exchanges(c: Config) -> list[Exchange]:
    """The exchanges of the config's training step; nothing is compiled."""
    network = make_network(c)
    return exchanges(traced_step(network, c).jaxpr, network.mesh.shape)


def measure_memory(bench: Bench) -> list[Row]:
    """Megabytes on each device, as the compiler plans them: of the state, and at most."""
    rows: list[Row] = []
    for c in bench.cases():
        plan = traced_step(make_network(c), c).lower().compile().memory_analysis()
        kept = plan.argument_size_in_bytes
        new = plan.output_size_in_bytes - plan.alias_size_in_bytes
        parts = {"state and input": kept, "temporary": plan.temp_size_in_bytes}
        parts |= {"peak": kept + plan.temp_size_in_bytes + new}
        rows.append(case(c) | {f"{name}, MB": size / 1e6 for name, size in parts.items()})
    return rows
