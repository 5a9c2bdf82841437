"""What the compiled step exchanges between devices, and holds on each of them."""

import dataclasses
import itertools
import math
import re
from contextlib import closing
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from alexnet_jax import optim
from alexnet_jax.benchmark.bench import Bench, Row, case
from alexnet_jax.data.pipeline import train_batches
from alexnet_jax.errors import UserError
from alexnet_jax.model.mesh import DATA, TOWER
from alexnet_jax.setup import Setup, make_setup
from alexnet_jax.state import state_shapes
from alexnet_jax.step import make_control, make_step

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_BYTES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}


class Collective(NamedTuple):
    """One exchange in a compiled program."""

    kind: str  # all-gather, all-reduce, reduce-scatter, ...
    scope: str  # of the code that it is from
    groups: tuple[tuple[int, ...], ...]  # of devices that exchange among themselves
    bytes: int  # of its result on a device

    @property
    def sent(self) -> int:
        """Bytes that each device sends, if they are passed around in a ring."""
        others, size = len(self.groups[0]) - 1, len(self.groups[0])
        if self.kind == "collective-permute":
            return self.bytes
        if self.kind == "all-reduce":
            return 2 * self.bytes * others // size
        return self.bytes * others // (1 if self.kind == "reduce-scatter" else size)


def collectives(hlo: str) -> list[Collective]:
    """The exchanges of a compiled program, in order."""
    found = []
    for line in hlo.splitlines():
        match = re.search(rf" = (.*?) ({_KINDS})(-start)?\(", line)
        if match:
            scope = re.search(r'op_name="([^"]*)"', line)
            # What is started with a pair (operand, result) gives the result.
            of_pair = match[3] and match[2] != "all-reduce"
            result = match[1].rpartition(", ")[2] if of_pair else match[1]
            groups = _groups(line, hlo)
            found.append(Collective(match[2], scope[1] if scope else "", groups, _bytes(result)))
    return found


def _groups(line: str, hlo: str) -> tuple[tuple[int, ...], ...]:
    """Of '{{0,1},{2,3}}', of '[2,2]<=[4]' or '[2,2]<=[2,2]T(1,0)', or of '{}', which is all."""
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,{}]+)\}\}", line)
    if listed:
        return tuple(tuple(map(int, group.split(","))) for group in listed[1].split("},{"))
    shaped = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if shaped:
        shape, sides, order = ([int(n) for n in part.split(",")] for part in shaped.groups("0"))
        numbers = np.arange(math.prod(sides)).reshape(sides).transpose(order if shaped[3] else None)
        return tuple(map(tuple, numbers.reshape(shape).tolist()))
    count = re.search(r"num_partitions=(\d+)", hlo)
    return (tuple(range(int(count[1]) if count else 1)),)


def _bytes(shapes: str) -> int:
    """Of 'f32[32,4096]{1,0}', or of several shapes in a tuple."""
    return sum(
        _BYTES[kind] * math.prod(map(int, filter(None, sides.split(","))))
        for kind, sides in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
    )


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

    A single picture is read, to know what a batch is like.
    """
    c, network = setup.config, setup.network
    with closing(train_batches(setup.train, c.data, batch=1, seed=0, rows=[(0, 1)])) as batches:
        one = next(batches)
    rows = network.shardings(P(DATA))
    batch = {
        name: jax.ShapeDtypeStruct((c.batch, *part.shape[1:]), part.dtype, sharding=rows)
        for name, part in one.items()
    }
    control = make_control(setup, optim.make_policy(c.policy).setting(0))
    state = state_shapes(network, c.optim)
    return make_step(setup).lower(state, setup.pixels, batch, control).compile()


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
