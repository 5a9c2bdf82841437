"""What the devices of a mesh send to each other, read from the traced program (its jaxpr)."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr

KINDS = {
    "all_gather": "all-gather",
    "all_gather_invariant": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "psum": "all-reduce",
    "psum_invariant": "all-reduce",
    "ppermute": "collective-permute",  # from one tower to the other: every second device sends
}
"""JAX's primitives that send something, by the usual names of what they do."""


class Exchange(NamedTuple):
    """One collective operation."""

    kind: str  # all-gather, reduce-scatter, all-reduce or collective-permute
    scope: str  # of names: 'transpose(jvp(conv3))'
    axes: tuple[str, ...]  # of the mesh, along which devices exchange
    shape: tuple[int, ...]  # of the result on a device
    bytes: int  # of the result on a device
    devices: int  # that take part in each exchange

    @property
    def sent(self) -> int:
        """Bytes that a device sends, if every exchange goes around a ring."""
        others = self.devices - 1
        if self.kind == "reduce-scatter":
            return self.bytes * others
        return (2 if self.kind == "all-reduce" else 1) * self.bytes * others // self.devices

    @property
    def backward(self) -> bool:
        """Whether it belongs to the backward pass."""
        return "transpose(" in self.scope

    def layer(self, names: tuple[str, ...]) -> str:
        """The one of the layers' `names` to which it belongs, or ''."""
        return next((word for word in re.findall(r"\w+", self.scope) if word in names), "")


def exchanges(program: ClosedJaxpr, mesh: Mapping[str, int]) -> list[Exchange]:
    """The exchanges of a program, in order.

    Args:
      program: the jaxpr of a traced function.
      mesh: how many devices each axis has.
    """
    return list(_walk(program.jaxpr, mesh, ""))


def _walk(jaxpr: Jaxpr, mesh: Mapping[str, int], outer: str) -> Iterator[Exchange]:
    for eqn in jaxpr.eqns:
        scope = f"{outer}/{eqn.source_info.name_stack}"
        for value in eqn.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                if isinstance(inner, ClosedJaxpr | Jaxpr):
                    body = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
                    yield from _walk(body, mesh, scope)
        kind = KINDS.get(eqn.primitive.name)
        if kind is not None:
            found = eqn.params.get("axes") or eqn.params["axis_name"]
            axes = found if isinstance(found, tuple) else (found,)
            devices = math.prod(mesh[axis] for axis in axes)
            for out in eqn.outvars:
                shape, dtype = out.aval.shape, out.aval.dtype  # type: ignore[attr-defined]
                size = math.prod(shape) * dtype.itemsize
                yield Exchange(kind, scope, axes, shape, size, devices)
