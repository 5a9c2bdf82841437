"""The exchanges between devices in the text of a compiled program, as XLA's versions write it."""

import math
import re
from typing import NamedTuple

import numpy as np

from alexnet_jax.runtime.errors import UserError

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
    """The devices that an exchange is between, in each of the ways in which XLA writes them.

    Raises:
      UserError: this is none of them.
    """
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,{}]+)\}\}", line):
        return tuple(tuple(map(int, group.split(","))) for group in listed[1].split("},{"))
    if "replica_groups={}" in line:  # all together
        count = re.search(r"num_partitions=(\d+)", hlo)
        return (tuple(range(int(count[1]) if count else 1)),)
    # '[2,2]<=[4]': the devices' numbers in an array [4], cut into an array [2, 2] of groups.
    # '[2,2]<=[2,2]T(1,0)': whose axes change places before.
    if cut := re.search(r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?,", line):
        sides = [int(side) for side in cut[2].split(",")]
        order = [int(axis) for axis in cut[3].split(",")] if cut[3] else list(range(len(sides)))
        return _cut(sides, order, int(cut[1]))
    # "mesh['data'=2,'tower'=2] {'tower'}": along an axis of a mesh.
    if along := re.search(r"replica_groups=mesh\[(\S+)\] \{(\S+)\},", line):
        names, numbers = zip(*(axis.split("=") for axis in along[1].split(",")), strict=True)
        sides, named = [int(number) for number in numbers], along[2].split(",")
        last = [names.index(name) for name in named]
        order = [axis for axis in range(len(sides)) if axis not in last] + last
        return _cut(sides, order, math.prod(sides[axis] for axis in last))
    raise UserError(f"this version of JAX writes groups of devices in an unknown way: {line[:300]}")


def _cut(sides: list[int], order: list[int], size: int) -> tuple[tuple[int, ...], ...]:
    numbers = np.arange(math.prod(sides)).reshape(sides).transpose(order)
    return tuple(map(tuple, numbers.reshape(-1, size).tolist()))


def _bytes(shapes: str) -> int:
    """Of 'f32[32,4096]{1,0}', or of several shapes in a tuple."""
    return sum(
        _BYTES[kind] * math.prod(map(int, filter(None, sides.split(","))))
        for kind, sides in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
    )
