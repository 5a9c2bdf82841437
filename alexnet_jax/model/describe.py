"""The table of a network: what each layer is, what it costs, what it sees, and where it lies."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from alexnet_jax import config
from alexnet_jax.model import ops
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.model.towers import DATA, TOWER


class Row(NamedTuple):
    """One layer. Counts are those of both towers together, for one image."""

    layer: str
    output: tuple[int, ...]  # without the batch
    parameters: int
    neurons: int
    multiply_adds: int  # of the forward pass
    sees: str
    bytes: int  # on each device: parameters and momentum, float32


def layer_table(network: ShardedModel, c: config.Config) -> list[Row]:
    """A row for each layer that is not left out. Nothing is computed."""
    image = jax.ShapeDtypeStruct((1, c.data.crop, c.data.crop, 3), jnp.float32)
    outputs = jax.eval_shape(lambda p, x: network.bind(p).outputs(x), network.shapes, image)
    shapes = [outputs[layer].shape[1:] for layer in c.model.names]
    befores = [(c.data.crop, c.data.crop, 3), *shapes]
    return [
        _row(layer, shape, _places(layer, before, shape, network, c), network, c)
        for layer, before, shape in zip(c.model.names, befores, shapes, strict=False)
    ]


def format_table(rows: list[Row], network: ShardedModel) -> str:
    """The rows as text, with their sum and the device mesh."""
    data, tower = (network.mesh.shape[axis] for axis in (DATA, TOWER))
    counts = zip(*(row[2:5] for row in rows), strict=True)
    parameters, neurons, multiply_adds = (sum(column) for column in counts)
    held = sum(row.bytes for row in rows)
    total = Row("total", (), parameters, neurons, multiply_adds, "", held)
    head = ("layer", "output", "parameters", "neurons", "multiply-adds", "sees", "bytes/device")
    lines = [head, *(_cells(row) for row in (*rows, total))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if i in (0, 1, 5) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([f"{data} x {tower} devices ('data' x 'tower')", *text])


def lrn_bytes(rows: list[Row], c: config.Config) -> dict[str, int]:
    """What each device sends for LRN in the forward pass of a step, by layer; backward as much.

    If LRN runs over both towers, each sends the maps at its edge: half a window.
    """
    model = c.model
    if not isinstance(model, config.AlexNet) or not model.lrn_over_towers:
        return {}
    if not towers_apart(c):
        return {}
    images, item = c.batch // (c.devices // 2), jnp.dtype(c.dtype).itemsize
    return {
        row.layer: images * _lrn_side(row, model) ** 2 * (model.lrn.size // 2) * item
        for row in rows
        if row.layer in model.lrn.layers
    }


def format_lrn(rows: list[Row], c: config.Config) -> str:
    """A line on what `lrn_bytes` counts, of both devices and both passes; "" if nothing crosses."""
    sent = lrn_bytes(rows, c)
    parts = (f"{4 * count / 1e6:.1f} MB after {layer}" for layer, count in sent.items())
    of = "LRN over both towers: maps at their edges cross, "
    return f"{of}{', '.join(parts)} in a step of {c.batch} images" if sent else ""


def towers_apart(c: config.Config) -> bool:
    """Whether each tower has a device of its own."""
    return c.model.towers == 2 and c.devices > 1 and c.towers_apart


def _lrn_side(row: Row, c: config.AlexNet) -> int:
    side, over = row.output[0], c.pool_over_edges
    if not c.lrn_after_pooling:
        return side
    return ops.pooled_side(side, c.pool_window, c.pool_stride, over_edges=over)


def _places(
    layer: str,
    before: tuple[int, ...],
    output: tuple[int, ...],
    network: ShardedModel,
    c: config.Config,
) -> int:
    """The number of places at which a kernel is applied. A CIFAR net pools before its `output`."""
    if len(network.shapes[layer]["bias"].shape) > 1:  # locally connected
        return 1
    pools = isinstance(c.model, config.Cifar) and len(output) == 3
    return math.prod((before if pools else output)[:-1])


def _row(
    layer: str, output: tuple[int, ...], places: int, network: ShardedModel, c: config.Config
) -> Row:
    shapes, specs = network.shapes[layer], network.specs[layer]
    kernel = shapes["kernel"].shape
    return Row(
        layer,
        output,
        sum(math.prod(leaf.shape) for leaf in shapes.values()),
        math.prod(output),
        places * math.prod(kernel),
        _sees(layer, c),
        2 * sum(_device_bytes(shapes[name], specs[name], network) for name in shapes),
    )


def _sees(layer: str, c: config.Config) -> str:
    if layer == c.model.names[0]:
        return "the image"
    if isinstance(c.model, config.Cifar):
        return "the layer before"
    if c.model.towers == 1:
        return "the one tower"
    meetings = {_next(c.model) if name == c.model.without else name for name in c.model.cross}
    return "both towers" if layer in (*meetings, "fc8") else "its own tower"


def _next(c: config.AlexNet) -> str:
    """The layer after the one that is left out."""
    return c.layers[c.layers.index(c.without) + 1]


def _device_bytes(shape: jax.ShapeDtypeStruct, spec: PartitionSpec, network: ShardedModel) -> int:
    parts = network.mesh.shape[TOWER] if TOWER in spec else 1
    return int(np.dtype(shape.dtype).itemsize) * math.prod(shape.shape) // parts


def _cells(row: Row) -> tuple[str, ...]:
    output = " x ".join(map(str, row.output))
    counts = [f"{n:,}" for n in row[2:5]]
    return (row.layer, output, *counts, row.sees, f"{row.bytes:,}")
