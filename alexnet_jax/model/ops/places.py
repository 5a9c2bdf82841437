"""Max pooling by place: what is kept for the gradient is the place of each maximum, in one byte.

A pixel's gradient depends on the windows that cover it, and those lie at other distances for even
and for odd rows. So the pixels are taken apart into cells of stride x stride: then each window
covers its cells in the same way, and all is views of whole arrays. `Cells` holds such parts, one
for each place in a cell: {(0, 0): [b, n, m, maps], (0, 1): ...}.
"""

import itertools
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, UInt8

from alexnet_jax.model.ops.windows import Maps, Pooled

Cells = dict[tuple[int, int], jax.Array]
Places = UInt8[Array, "b h2 w2 maps"]
"""Bit i is set for a maximum in row i of its window, bit 4 + j for one in column j."""

LARGEST = 4  # windows whose places fit a byte
NOWHERE = 255  # the place where no maximum counts


class Pooling(NamedTuple):
    """Windows of window x window places, `stride` apart, over maps of height x width."""

    window: int
    stride: int
    height: int
    width: int

    @property
    def outputs(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        return self._outputs(self.height), self._outputs(self.width)

    def _outputs(self, side: int) -> int:
        return (side - self.window) // self.stride + 1

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of cells; the last ones may hang over the far edges."""
        return -(-self.height // self.stride), -(-self.width // self.stride)

    @property
    def places(self) -> list[tuple[int, int]]:
        """The places in a window, in reading order."""
        return list(itertools.product(range(self.window), range(self.window)))

    @property
    def in_cell(self) -> list[tuple[int, int]]:
        """The places in a cell."""
        return list(itertools.product(range(self.stride), range(self.stride)))


def at_place(x: jax.Array, row: int, column: int, p: Pooling) -> jax.Array:
    """What every window of `x`, [b, h, w, maps], has at a place: [b, h2, w2, maps]."""
    (rows, columns), step = p.outputs, p.stride
    stop = row + step * (rows - 1) + 1, column + step * (columns - 1) + 1
    batch, *_, maps = x.shape
    return lax.slice(x, (0, row, column, 0), (batch, *stop, maps), (1, step, step, 1))


def first_maximum(
    values: list[tuple[jax.Array, ...]], p: Pooling
) -> tuple[jax.Array, Places, list[jax.Array]]:
    """The first greatest of `values`, one for each of `p.places`; NaN where one of them is.

    Each comes in a tuple with other values of its place. Those of the maximum are returned as well.
    """
    best, *others = values[0]
    place = jnp.full(best.shape, 1 | 16, jnp.uint8)
    for (row, column), (value, *more) in zip(p.places[1:], values[1:], strict=True):
        here = jnp.uint8(1 << row | 16 << column)
        new = value > best
        best, place = jnp.maximum(best, value), jnp.where(new, here, place)
        others = [jnp.where(new, ours, old) for ours, old in zip(more, others, strict=True)]
    return best, place, others


def to_maxima(place: Places, values: Pooled, p: Pooling) -> Cells:
    """The gradient of the maxima: for each pixel the sum of the `values` whose maximum it is."""
    sums: Cells = {}
    for up, left in itertools.product(range(-(-p.window // p.stride)), repeat=2):
        places, v = _moved(place, up, left, p, NOWHERE), _moved(values, up, left, p)
        for of_cell in p.in_cell:
            row, column = of_cell[0] + p.stride * up, of_cell[1] + p.stride * left
            if max(row, column) < p.window:
                is_it = places == jnp.uint8(1 << row | 16 << column)
                part = jnp.where(is_it, v.astype(precise(v)), 0)
                sums[of_cell] = sums[of_cell] + part if of_cell in sums else part
    return _completed(sums, values, p)


def near_in_row(place: Places, values: Pooled, p: Pooling, before: int, after: int) -> Cells:
    """For each pixel the sum of the `values` of maxima in its row, at most so far before or after.

    The same as sums over windows of `to_maxima`, but of few values: some for each window.
    """
    sums: Cells = {}
    first, last = -((after + p.stride - 1) // p.stride), (p.window - 1 + before) // p.stride
    for up, left in itertools.product(range(-(-p.window // p.stride)), range(first, last + 1)):
        places, v = _moved(place, up, left, p, NOWHERE), _moved(values, up, left, p)
        for of_cell in p.in_cell:
            row, column = of_cell[0] + p.stride * up, of_cell[1] + p.stride * left
            near = [j for j in range(p.window) if -before <= j - column <= after]
            if row < p.window and near:
                bits = 1 << row | sum(16 << j for j in near)
                is_near = places & jnp.uint8(~bits & 255) == 0
                part = jnp.where(is_near, v.astype(precise(v)), 0)
                sums[of_cell] = sums[of_cell] + part if of_cell in sums else part
    return _completed(sums, values, p)


def sum_of_rows(x: Cells, p: Pooling, before: int, after: int) -> Cells:
    """For each pixel the sum of the rows from so far before it to so far after it."""

    def row(cell: tuple[int, int], by: int) -> jax.Array:
        cells, own = divmod(cell[0] + by, p.stride)
        edges = [(0, 0, 0), (-cells, cells, 0), (0, 0, 0), (0, 0, 0)]
        one = x[own, cell[1]]
        return lax.pad(one, jnp.zeros((), one.dtype), edges).astype(precise(one))

    reach = range(-before, after + 1)
    return {cell: reduce(jnp.add, [row(cell, by) for by in reach]) for cell in p.in_cell}


def to_cells(x: Maps, p: Pooling) -> Cells:
    """The pixels of `x` by their place in a cell; zeros beyond the far edges."""
    (n, m), step = p.cells, p.stride
    far = [(0, 0), (0, n * step - p.height), (0, m * step - p.width), (0, 0)]
    x = jnp.pad(x, far)
    return {(row, column): x[:, row::step, column::step] for row, column in p.in_cell}


def from_cells(parts: Cells, p: Pooling) -> Maps:
    """The inverse of `to_cells`."""
    (n, m), step = p.cells, p.stride
    rows = [jnp.stack([parts[row, column] for column in range(step)], 3) for row in range(step)]
    batch, *_, maps = parts[0, 0].shape
    return jnp.stack(rows, 2).reshape(batch, n * step, m * step, maps)[:, : p.height, : p.width]


def _completed(sums: Cells, values: Pooled, p: Pooling) -> Cells:
    """`sums`, with zeros for the places in a cell that no window covers."""
    shape, dtype = (len(values), *p.cells, values.shape[-1]), precise(values)
    return {place: sums.get(place, jnp.zeros(shape, dtype)) for place in p.in_cell}


def precise(x: jax.Array) -> Any:
    """The dtype in which numbers like those of `x` are added: float32 at least."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _moved(x: jax.Array, up: int, left: int, p: Pooling, fill: int = 0) -> jax.Array:
    """For each cell the window that begins `up` cells above and `left` to the left of it."""
    (n, m), (rows, columns) = p.cells, p.outputs
    edges = [(0, 0, 0), (up, n - rows - up, 0), (left, m - columns - left, 0), (0, 0, 0)]
    return lax.pad(x, jnp.asarray(fill, x.dtype), edges)
