"""What follows a convolution (ReLU, LRN, pooling): one operation after the other, or in few passes.

On a GPU these operations are limited by memory. One after the other, they read and write each
activation about ten times, and their gradients keep float32 copies. The form below has an explicit
number of passes, keeps what it saves in x's dtype, and computes all else anew.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from alexnet_jax.config import Formula
from alexnet_jax.model.ops.normalization import lrn, lrn_within, power
from alexnet_jax.model.ops.places import (
    LARGEST,
    NOWHERE,
    Cells,
    Places,
    Pooling,
    at_place,
    first_maximum,
    from_cells,
    near_in_row,
    precise,
    sum_of_rows,
    to_cells,
    to_maxima,
)
from alexnet_jax.model.ops.platform import platform
from alexnet_jax.model.ops.pooling import max_pool
from alexnet_jax.model.ops.rectifier import relu
from alexnet_jax.model.ops.windows import Maps, Pooled

Operation = Callable[[jax.Array], jax.Array]
Form = Literal["definition", "one pass", "two passes"]


@dataclass(frozen=True)
class Lrn:
    """`lrn` by a formula."""

    formula: Formula

    def __call__(self, x: Maps) -> Maps:
        return lrn(x, self.formula)


@dataclass(frozen=True)
class LrnWithin:
    """`lrn_within` by a formula."""

    formula: Formula

    def __call__(self, x: Maps) -> Maps:
        return lrn_within(x, self.formula)


@dataclass(frozen=True)
class MaxPool:
    """`max_pool` over windows of `window` x `window`, `stride` apart."""

    window: int
    stride: int

    def __call__(self, x: Maps) -> Pooled:
        return max_pool(x, self.window, self.stride)


def chain(
    x: Float[Array, "b ... units"], *operations: Operation | None, form: Form | None = None
) -> Float[Array, "b ... units"]:
    """`operations` on `x` of one tower, one after the other; None stands for none.

    Args:
      x: the output of a layer, [b, h, w, maps] or [b, neurons].
      operations: for example relu, Lrn(formula), MaxPool(3, 2).
      form: how to compute them where more than one form fits; None: the platform's default.
    """
    there = [one for one in operations if one is not None]
    fused = _fused(there) if form != "definition" and (form or platform() == "gpu") else None
    if fused is None:
        return chain_definition(x, there)
    return _few_passes(x, fused, form or "one pass")


def chain_forms(*operations: Operation) -> tuple[Form, ...]:
    """The forms of `operations` that are different programs: a GPU's default, ..., the definition.

    LRN within maps has its own pass in any case.
    """
    fused = _fused(list(operations))
    if fused is None:
        return ("definition",)
    return ("one pass", "definition") if fused.within else ("one pass", "two passes", "definition")


def chain_definition(x: jax.Array, operations: list[Operation]) -> jax.Array:
    """Each operation by itself."""
    for operation in operations:
        x = operation(x)
    return x


@dataclass(frozen=True)
class _Fused:
    """LRN and pooling, with ReLU before or between, and LRN within maps or without."""

    relu_first: bool
    lrn: Formula
    within: Formula | None
    relu_last: bool  # a maximum and ReLU may change places
    pool: MaxPool


def _fused(operations: list[Operation]) -> _Fused | None:
    """`operations` as one, if they are such a run of operations."""
    first, last = operations[:1] == [relu], operations[-2:-1] == [relu]
    inner = operations[first : len(operations) - 1 - last]
    match inner, operations[-1:]:
        case ([Lrn(formula), *within], [MaxPool(window, _) as pool]) if window <= LARGEST:
            match within:
                case []:
                    return _Fused(first, formula, None, last, pool)
                case [LrnWithin(near)] if not last:
                    return _Fused(first, formula, near, last, pool)
    return None


Saved = tuple[Maps, Places, list[jax.Array]]
"""LRN's input, the places of the maxima and, of each maximum, two numbers of LRN within maps."""

# The passes are kept apart by barriers: else XLA puts some of them together and writes float32 in
# between. A whole step in bfloat16 moves 46% of the bytes that it moves with `chain_definition`
# (alexnet_2012, batch 1024, compiled for an H200). On a CPU it takes 1.1 to 1.3 of the time.


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _few_passes(x: Maps, c: _Fused, form: Form) -> Pooled:
    """`chain_definition`: forward in one or two passes, backward in three, after a convolution."""
    return _forward(x, c, form)[0]


def _forward(x: Maps, c: _Fused, form: Form) -> tuple[Pooled, Saved]:
    p = _pooling(x, c)
    a = jnp.maximum(x, 0) if c.relu_first else x
    if c.within:
        values = _normalized_within(_barrier(_lrn(a, c.lrn)), c.within, p)
    elif form == "two passes":
        y = _barrier(_lrn(a, c.lrn))
        values = [(at_place(y, *place, p),) for place in p.places]
    else:  # LRN once for each window that a pixel lies in, but no pass of its own
        values = [(_lrn(at_place(a, *place, p), c.lrn),) for place in p.places]
    best, place, others = first_maximum(values, p)
    if c.relu_last:
        best, place = jnp.maximum(best, 0), jnp.where(best > 0, place, jnp.uint8(NOWHERE))
    best, place, *others = _barrier(best, place, *[one.astype(x.dtype) for one in others])
    return best, (a, place, others)


def _normalized_within(y: Maps, f: Formula, p: Pooling) -> list[tuple[jax.Array, ...]]:
    """For each place in a window: LRN within maps, its factor, and its value over its base.

    All is computed for the places in windows alone, from views of `y`: so it is one pass.
    """
    before, after = f.size // 2, (f.size - 1) // 2
    reach = range(f.size), range(p.window + f.size - 1)
    near = Pooling(p.window + f.size - 1, p.stride, p.height + f.size - 1, p.width + f.size - 1)
    padded = jnp.pad(y, ((0, 0), (before, after), (before, after), (0, 0)))
    x = {one: at_place(padded, *one, near).astype(precise(y)) for one in near.places}
    squares = {one: jnp.square(v) for one, v in x.items()}
    rows = {
        (row, column): _sum(squares[row, column + by] for by in reach[0])
        for row in reach[1]
        for column in range(p.window)
    }
    values: list[tuple[jax.Array, ...]] = []
    for row, column in p.places:
        base = f.k + f.alpha * _sum(rows[row + by, column] for by in reach[0])
        factor = power(base, f.beta)
        z = x[row + before, column + before] * factor
        values.append((z.astype(y.dtype), factor, z / base))
    return values


def _backward(c: _Fused, form: Form, saved: Saved, gradient: Pooled) -> tuple[Maps]:
    del form
    p = _pooling(saved[0], c)
    own, of_maps, a = (_through_within if c.within else _through_pooling)(c, p, saved, gradient)
    parts = _through_lrn(to_cells(a, p), own, of_maps, c.lrn)
    if c.relu_first:
        parts = {one: jnp.where(x > 0, parts[one], 0) for one, x in to_cells(a, p).items()}
    return (from_cells(_barrier(_as(a, parts)), p),)


def _through_pooling(
    c: _Fused, p: Pooling, saved: Saved, gradient: Pooled
) -> tuple[Cells, Cells, Maps]:
    """The gradient of LRN's output, what LRN's neighbouring maps need of it, and LRN's input.

    The first is computed again for the last pass: that is cheaper than to write and read it.
    """
    a, place, gradient = _barrier(*saved[:2], gradient)
    of_maps = _of_maps(to_cells(a, p), to_maxima(place, gradient, p), c.lrn)
    of_maps, a, place, gradient = _barrier(_as(a, of_maps), a, place, gradient)
    return to_maxima(place, gradient, p), of_maps, a


def _through_within(
    c: _Fused, p: Pooling, saved: Saved, gradient: Pooled
) -> tuple[Cells, Cells, Maps]:
    """As `_through_pooling`, with LRN within maps before the pooling.

    Its gradient needs no sums over all places: it is not zero only where maxima were.
    """
    a, place, (factor, ratio), gradient = _barrier(*saved, gradient)
    direct, through = _barrier(gradient * factor, gradient * ratio)
    assert c.within is not None
    before, after = (c.within.size - 1) // 2, c.within.size // 2
    rows = _as(a, near_in_row(place, through, p, before, after))
    rows, a, place, direct = _barrier(rows, a, place, direct)
    own, x, near = to_maxima(place, direct, p), to_cells(a, p), sum_of_rows(rows, p, before, after)
    for one in p.in_cell:
        y = _lrn(x[one], c.lrn).astype(precise(a))
        own[one] -= 2 * c.within.alpha * c.within.beta * y * near[one]
    return _barrier(_as(a, own), _as(a, _of_maps(x, own, c.lrn)), a)


def _through_lrn(x: Cells, gradient: Cells, of_maps: Cells, f: Formula) -> Cells:
    """The gradient of LRN's input."""

    def through(x: jax.Array, gradient: jax.Array, of_maps: jax.Array) -> jax.Array:
        wide = precise(x)
        near = _near_maps(of_maps, (f.size - 1) // 2, f.size // 2)
        sums = _sum(one.astype(wide) for one in near)
        direct = gradient.astype(wide) * power(_base(x, f), f.beta)
        return direct - 2 * f.alpha * f.beta * x.astype(wide) * sums

    return {one: through(x[one], gradient[one], of_maps[one]) for one in x}


_few_passes.defvjp(_forward, _backward)


def _of_maps(x: Cells, gradient: Cells, f: Formula) -> Cells:
    """What the neighbouring maps need of each: gradient * x * base ** -(beta + 1)."""

    def ratio(x: jax.Array, gradient: jax.Array) -> jax.Array:
        v = x.astype(gradient.dtype)
        base = _base(x, f)
        if f.beta == 0.75:
            root = lax.rsqrt(base)
            return gradient * v * (root * root * root * jnp.sqrt(root))
        return gradient * v * base ** -(f.beta + 1)

    return {one: ratio(x[one], gradient[one]) for one in x}


def _lrn(x: jax.Array, f: Formula) -> jax.Array:
    """The same as `lrn`, from views of `x`."""
    return (x.astype(precise(x)) * power(_base(x, f), f.beta)).astype(x.dtype)


def _base(x: jax.Array, f: Formula) -> jax.Array:
    """What LRN raises to the power -beta."""
    near = _near_maps(x, f.size // 2, (f.size - 1) // 2)
    return f.k + f.alpha * _sum(jnp.square(one.astype(precise(x))) for one in near)


def _near_maps(x: jax.Array, before: int, after: int) -> list[jax.Array]:
    """In the place of each map its neighbours, from `before` before it to `after` after it.

    They are views of `x` in its own dtype: so XLA reads `x` again rather than write float32.
    """
    edges = [(0, 0, 0)] * (x.ndim - 1) + [(before, after, 0)]
    padded, maps = lax.pad(x, jnp.zeros((), x.dtype), edges), x.shape[-1]
    return [padded[..., first : first + maps] for first in range(before + after + 1)]


def _sum(values: Iterable[jax.Array]) -> jax.Array:
    return reduce(jnp.add, values)


def _as(like: jax.Array, tree: Cells) -> Cells:
    return jax.tree.map(lambda one: one.astype(like.dtype), tree)


def _pooling(x: Maps, c: _Fused) -> Pooling:
    return Pooling(c.pool.window, c.pool.stride, *x.shape[1:3])


def _barrier(*trees: Any) -> Any:
    """`trees` as they are; XLA computes them before what follows."""
    kept = lax.optimization_barrier(trees)
    return kept if len(trees) > 1 else kept[0]
