"""Fig. 2 (§3.5): the network of a config, each tower in the colour of its device.

All numbers come from the network that the config makes: output shapes, kernels, and the bytes that
the devices send each other in a forward pass.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp

from alexnet_jax import config
from alexnet_jax.figures.sheet import new_figure
from alexnet_jax.model.describe import layer_table, lrn_bytes, towers_apart
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.setup import make_network

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2f77b4", "#e07b39")  # of the first and of the second device of a pair
_BOTH, _TEXT = "#8b939c", "#2b3138"  # what both devices hold; words


class Layer(NamedTuple):
    """A layer as the figure shows it: one tower's part of it, for one image.

    Attributes:
      name: as in the config.
      output: height, width, maps; or (neurons,).
      kernel: height, width, maps seen; or (inputs,) of a fully connected layer.
      pooled: the side of the maps after the pooling that comes before the layer; 0 if none comes.
      meets: whether the layer sees both towers.
      sent: bytes that each device sends to the other before the layer, in one step.
    """

    name: str
    output: tuple[int, ...]
    kernel: tuple[int, ...]
    pooled: int
    meets: bool
    sent: int


def layers_of(c: config.Config) -> list[Layer]:
    """The layers of a config's network, in order. Runs nothing, and needs one device only.

    Raises:
      UserError: the config has another network than Fig. 2's.
    """
    if not isinstance(c.model, config.AlexNet):
        raise UserError("figure2 draws the network of Fig. 2; this config has model.kind='cifar'")
    network, apart = make_network(replace(c, devices=1)), towers_apart(c)
    module, layers, side = network.module(), list[Layer](), 0
    for row in layer_table(network, c):
        *kernel, units = network.shapes[row.layer]["kernel"].shape
        last, meets = row.layer == c.model.names[-1], row.sees == "both towers"
        output = (*row.output[:-1], units if last else units // c.model.towers)
        convolves = len(output) == 3
        if convolves:  # conv1, before which nothing is pooled, is as one that keeps the side
            zeros = c.model.padding.get(row.layer, kernel[0] // 2)
            seen = output[0] + kernel[0] - 1 - 2 * zeros
        else:
            seen = getattr(module, row.layer).kernel.axes["height"]
        pooled, side = seen if seen < side else 0, output[0] if convolves else 0
        # A device sends its half of what the layer sees, or its part of the logits, in float32.
        numbers = units if last else math.prod(output[:-1]) * kernel[-1] // 2
        size = 4 if last else jnp.dtype(c.dtype).itemsize
        sent = c.batch // (c.devices // 2) * numbers * size if meets and apart else 0
        layers.append(Layer(row.layer, output, tuple(kernel), pooled, meets, sent))
    return layers


# --- the drawing, in inches ---------------------------------------------------------------------

_COLUMN, _MARGIN = 0.98, 0.6
_TOP, _BOTTOM = 2.75, 1.2  # the rows of tower A and tower B
_Point = tuple[float, float]


class _Box(NamedTuple):
    """Where arrows end and begin at a box, the heights of its edges, and its colour."""

    left: _Point
    right: _Point
    top: float
    bottom: float
    colour: str


def draw_figure2(c: config.Config) -> "Figure":
    """The network of a config as in Fig. 2 (§3.5): tower A above tower B.

    Raises:
      UserError: see `layers_of`.
    """
    layers, rows = layers_of(c), (_TOP, _BOTTOM)[: c.model.towers]
    colours = COLOURS if towers_apart(c) else COLOURS[:1] * 2
    middle, image = sum(rows) / len(rows), (c.data.crop, c.data.crop, 3)
    width = 2 * _MARGIN + _COLUMN * len(layers)
    low, high = -0.02 if len(rows) == 2 else 1.3, 4.2
    figure = new_figure(width, high - low)
    figure.set_layout_engine("none")  # everything has its place below
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(low, high))
    axes.set_axis_off()

    box = _box(axes, _MARGIN, middle, image, _BOTH)
    _words(axes, _MARGIN, box.top + 0.15, "image", size=9, weight="bold")
    _words(axes, _MARGIN, box.bottom - 0.12, _times(image))
    before = [box] * len(rows)
    for number, layer in enumerate(layers, 1):
        x, last = _MARGIN + _COLUMN * number, layer is layers[-1]
        _words(axes, x, high - 0.17, layer.name, size=9, weight="bold")
        _words(axes, x, high - 0.41, _units(layer, "logits" if last else "neurons"))
        places = [(middle, _BOTH)] if last else zip(rows, colours, strict=False)
        boxes = [_box(axes, x, y, layer.output, colour) for y, colour in places]
        if last and len(rows) == 2:
            _sum(axes, before, boxes[0], layer.sent)
        else:
            _meet(axes, before, boxes, layer)
        for y in (boxes[0].top + 0.12, boxes[-1].bottom - 0.12)[: 0 if last else len(rows)]:
            _words(axes, x, y, _times(layer.output))
        before = boxes
    lrn = sum(lrn_bytes(layer_table(make_network(replace(c, devices=1)), c), c).values())
    _foot(axes, c, (sum(layer.sent for layer in layers) + lrn, lrn), width, low + 0.17)
    return figure


def _meet(axes: "Axes", before: Sequence[_Box], boxes: Sequence[_Box], layer: Layer) -> None:
    """The arrows into a layer, with the poolings and the bytes that come before it."""
    between = (before[0].right[0] + boxes[0].left[0]) / 2
    for own, box, side in zip(before, boxes, (1, -1), strict=False):
        for source in before if layer.meets else [own]:
            _arrow(axes, source.right, box.left, source.colour)
        if layer.pooled:
            text = f"pool\n{_times((layer.pooled,) * 2)}"
            _words(axes, between, box.left[1] + 0.17 * side, text, size=6.5)
    if layer.sent:
        _words(axes, between, (_TOP + _BOTTOM) / 2, _bytes(layer.sent), size=8, weight="bold")


def _sum(axes: "Axes", before: Sequence[_Box], box: _Box, sent: int) -> None:
    """The arrows into the last layer: the sum of what the towers give."""
    (start, _), (left, y) = before[0].right, box.left
    plus = start + 0.58
    _words(axes, plus, y, "+", size=13, weight="bold")
    for source, by in zip(before, (0.09, -0.09), strict=True):
        _arrow(axes, source.right, (plus - 0.04, y + by), source.colour)
    _arrow(axes, (plus + 0.09, y), (left, y), box.colour)
    if sent:
        _words(axes, start + 0.13, y, _bytes(sent), size=8, weight="bold")


def _foot(axes: "Axes", c: config.Config, sent: tuple[int, int], width: float, y: float) -> None:
    """What the colours and the bytes mean; `sent` are all bytes, and those of LRN among them."""
    if not towers_apart(c):
        towers = "both towers" if c.model.towers == 2 else "one tower"
        devices = "one device" if c.devices == 1 else f"each of {c.devices} devices"
        _words(axes, width / 2, y, f"{towers} on {devices}", size=8)
        return
    for number, name in enumerate("AB"):
        x, devices = 0.3 + 1.7 * number, ", ".join(map(str, range(number, c.devices, 2)))
        _box(axes, x, y, (3,), COLOURS[number])
        _words(axes, x + 0.13, y, f"tower {name}: device {devices}", size=8, ha="left")
    text = f"between the towers: sent forward by each device, batch {c.batch}, {c.dtype}"
    total, lrn = sent
    text += f"; {_bytes(total)} in all" + (f", {_bytes(lrn)} for LRN" if lrn else "")
    _words(axes, width - 0.2, y, text, size=8, ha="right")


def _box(axes: "Axes", x: float, y: float, shape: Sequence[int], colour: str) -> _Box:
    """A box with its middle at x, y; roots of the sizes, else conv1 would hide the others."""
    if len(shape) == 3:
        height, thick = 0.25 * shape[0] ** 0.35, 0.045 * shape[2] ** 0.35
        deep = 0.3 * height
    else:
        height, thick, deep = 0.062 * shape[0] ** 0.35, 0.1, 0.05
    left, right = x - (thick + deep) / 2, x + (thick - deep) / 2
    top, bottom = y + (height - deep) / 2, y - (height + deep) / 2
    front = [(left, bottom), (right, bottom), (right, top), (left, top)]
    back = [(x + deep, y + deep) for x, y in front]
    above, beside = [*front[3:1:-1], *back[2:]], [*front[1:3], *back[2:0:-1]]
    for corners, share in ((front, 0.75), (above, 0.45), (beside, 1.0)):  # of colour, not white
        axes.fill(*zip(*corners, strict=True), fc=(colour, share), ec="white", lw=0.6)
    return _Box((left, y), (right + deep, y), top + deep, bottom, colour)


def _arrow(axes: "Axes", start: _Point, stop: _Point, colour: str) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 8, "shrinkA": 2, "shrinkB": 1}
    axes.annotate("", stop, start, arrowprops=style | {"color": colour, "linewidth": 1.1})


def _words(axes: "Axes", x: float, y: float, text: str, size: float = 7.5, **style: Any) -> None:
    back = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
    style.setdefault("ha", "center")
    axes.text(x, y, text, size=size, va="center", color=_TEXT, bbox=back, **style)


def _units(layer: Layer, name: str) -> str:
    """What a tower has of a layer, as 48 kernels of 11×11×3."""
    units, convolves = layer.output[-1], len(layer.kernel) == 3
    return f"{units} kernels\n{_times(layer.kernel)}" if convolves else f"{units}\n{name}"


def _times(shape: Sequence[int]) -> str:
    return "\N{MULTIPLICATION SIGN}".join(map(str, shape))


def _bytes(count: int) -> str:
    return f"{count / 1e6:#.3g} MB" if count >= 1e5 else f"{count / 1e3:#.3g} kB"
