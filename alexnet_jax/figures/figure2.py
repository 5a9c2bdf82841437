"""Fig. 2 (§3.5): the network of a config, each tower in the colour of its device.

All numbers come from the network that the config makes: output shapes, kernels, and the bytes that
the devices send each other in a forward pass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp

from alexnet_jax import config
from alexnet_jax.figures.sheet import new_figure
from alexnet_jax.model.describe import layer_table
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.setup import make_network

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2f77b4", "#e07b39")  # of the first and of the second device of a pair
_BOTH, _TEXT = "#8b939c", "#2b3138"  # what both devices hold; words


@dataclass(frozen=True)
class Layer:
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
    network, towers = make_network(replace(c, devices=1)), c.model.towers
    layers: list[Layer] = []
    for row in layer_table(network, c):
        *kernel, units = network.shapes[row.layer]["kernel"].shape
        last, meets = row.layer == c.model.names[-1], row.sees == "both towers"
        output = (*row.output[:-1], units if last else units // towers)
        pooled = 0
        if layers and len(layers[-1].output) == 3:
            side, _, maps = layers[-1].output
            seen = 2 * maps if meets else maps
            after = output[0] if len(output) == 3 else math.isqrt(kernel[0] // seen)
            pooled = after if after < side else 0
        sent = _bytes_sent(c, output, kernel, last) if meets and _apart(c) else 0
        layers.append(Layer(row.layer, output, tuple(kernel), pooled, meets, sent))
    return layers


def _apart(c: config.Config) -> bool:
    """Whether each tower has a device of its own."""
    return c.model.towers == 2 and c.devices > 1 and c.towers_apart


def _bytes_sent(
    c: config.Config, output: tuple[int, ...], kernel: Sequence[int], last: bool
) -> int:
    """That each device of a pair sends forward to a layer where the towers meet."""
    images = c.batch // (c.devices // 2)
    if last:  # its part of the logits, which are summed in float32
        return 4 * images * output[0]
    places = math.prod(output[:-1])  # the layers with a meeting keep their input's height and width
    return jnp.dtype(c.dtype).itemsize * images * places * kernel[-1] // 2


# --- the drawing, in inches ---------------------------------------------------------------------

_COLUMN, _MARGIN = 0.98, 0.6
_TOP, _BOTTOM = 2.75, 1.2  # the rows of tower A and tower B


class _Box(NamedTuple):
    """The edges of a box, and the height of its middle."""

    left: float
    right: float
    top: float
    bottom: float
    middle: float


def draw_figure2(c: config.Config) -> "Figure":
    """The network of a config as in Fig. 2 (§3.5): tower A above tower B.

    Raises:
      UserError: see `layers_of`.
    """
    *hidden, last = layers_of(c)
    rows = (_TOP, _BOTTOM)[: c.model.towers]
    low, high = (-0.02, 4.2) if len(rows) == 2 else (1.3, 4.2)
    width = 2 * _MARGIN + _COLUMN * (len(hidden) + 1)
    figure = new_figure(width, high - low)
    figure.set_layout_engine("none")  # everything has its place below
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(low, high))
    axes.set_axis_off()
    colours = COLOURS if _apart(c) else (COLOURS[0],) * 2

    middle, image = sum(rows) / len(rows), (c.data.crop, c.data.crop, 3)
    before = [_box(axes, _MARGIN, middle, image, _BOTH)] * len(rows)
    _words(axes, _MARGIN, before[0].top + 0.15, "image", size=9, bold=True)
    _words(axes, _MARGIN, before[0].bottom - 0.12, _times(image))
    for number, layer in enumerate(hidden, 1):
        x = _MARGIN + _COLUMN * number
        _words(axes, x, high - 0.17, layer.name, size=9, bold=True)
        _words(axes, x, high - 0.41, _kernels(layer))
        pairs = zip(rows, colours, strict=False)
        boxes = [_box(axes, x, y, layer.output, colour) for y, colour in pairs]
        _label_outputs(axes, x, boxes, layer)
        _arrows_into(axes, before, boxes, layer, colours if number > 1 else (_BOTH,) * 2)
        before = boxes
    _draw_logits(axes, before, last, high, colours)
    _draw_foot(axes, c, [*hidden, last], width, low)
    return figure


def _label_outputs(axes: "Axes", x: float, boxes: Sequence[_Box], layer: Layer) -> None:
    """The shape of a layer's output: above tower A's box, below tower B's."""
    for number, box in enumerate(boxes):
        y = box.bottom - 0.12 if number else box.top + 0.12
        _words(axes, x, y, _times(layer.output))


def _arrows_into(
    axes: "Axes",
    before: Sequence[_Box],
    boxes: Sequence[_Box],
    layer: Layer,
    colours: Sequence[str],
) -> None:
    """The arrows into a layer, each in the colour of where it comes from."""
    for number, box in enumerate(boxes):
        for other, source in enumerate(before):
            if number == other or layer.meets:
                _arrow(axes, (source.right, source.middle), (box.left, box.middle), colours[other])
        if layer.pooled:
            x = (before[number].right + box.left) / 2
            y = box.middle + (-0.17 if number else 0.17)
            _words(axes, x, y, f"pool\n{_times((layer.pooled,) * 2)}", size=6.5)
    if layer.sent:
        x = (before[0].right + boxes[0].left) / 2
        _words(axes, x, (_TOP + _BOTTOM) / 2, _bytes(layer.sent), size=8, bold=True)


def _draw_logits(
    axes: "Axes", before: Sequence[_Box], layer: Layer, high: float, colours: Sequence[str]
) -> None:
    """The last layer: what the towers give, summed."""
    start, middle = before[0].right, sum(box.middle for box in before) / len(before)
    x = start + _COLUMN
    box = _box(axes, x, middle, layer.output, _BOTH)
    _words(axes, x, high - 0.17, layer.name, size=9, bold=True)
    _words(axes, x, high - 0.41, f"{layer.output[0]}\nlogits")
    if len(before) == 1:
        _arrow(axes, (start, middle), (box.left, middle), colours[0])
        return
    plus = start + 0.58
    _words(axes, plus, middle, "+", size=13, bold=True)
    for source, colour, by in zip(before, colours, (0.09, -0.09), strict=True):
        _arrow(axes, (start, source.middle), (plus - 0.04, middle + by), colour)
    _arrow(axes, (plus + 0.09, middle), (box.left, middle), _BOTH)
    if layer.sent:
        _words(axes, start + 0.13, middle, _bytes(layer.sent), size=8, bold=True)


def _draw_foot(
    axes: "Axes", c: config.Config, layers: Sequence[Layer], width: float, low: float
) -> None:
    """What the colours and the bytes mean."""
    y = low + 0.17
    if not _apart(c):
        towers = "both towers" if c.model.towers == 2 else "one tower"
        devices = "one device" if c.devices == 1 else f"each of {c.devices} devices"
        _words(axes, width / 2, y, f"{towers} on {devices}", size=8)
        return
    for number, name in enumerate("AB"):
        x = 0.3 + 1.7 * number
        devices = ", ".join(map(str, range(number, c.devices, 2)))
        _box(axes, x, y, (3,), COLOURS[number])
        _words(axes, x + 0.13, y, f"tower {name}: device {devices}", size=8, align="left")
    total = _bytes(sum(layer.sent for layer in layers))
    sent = f"sent forward by each device, batch {c.batch}, {c.dtype}"
    text = f"between the towers: {sent}; {total} in all"
    _words(axes, width - 0.2, y, text, size=8, align="right")


def _box(axes: "Axes", x: float, y: float, shape: Sequence[int], colour: str) -> _Box:
    """A box with its middle at x, y; roots of the sizes, else conv1 would hide the others."""
    from matplotlib.patches import Polygon

    if len(shape) == 3:
        height, thick = 0.25 * shape[0] ** 0.35, 0.045 * shape[2] ** 0.35
    else:
        height, thick = 0.062 * shape[0] ** 0.35, 0.1
    deep = 0.3 * height if len(shape) == 3 else 0.05
    left, right = x - (thick + deep) / 2, x + (thick - deep) / 2
    top, bottom = y + (height - deep) / 2, y - (height + deep) / 2
    front = [(left, bottom), (right, bottom), (right, top), (left, top)]
    back = [(x + deep, y + deep) for x, y in front]
    above, beside = [*front[3:1:-1], *back[2:]], [*front[1:3], *back[2:0:-1]]
    for corners, white in ((front, 0.25), (above, 0.55), (beside, 0.0)):
        face = _mixed(colour, white)
        axes.add_patch(Polygon(corners, facecolor=face, edgecolor="white", linewidth=0.6))
    return _Box(left, right + deep, top + deep, bottom, y)


def _mixed(colour: str, white: float) -> tuple[float, ...]:
    """A colour with a share of white."""
    from matplotlib.colors import to_rgb

    return tuple(white + (1 - white) * part for part in to_rgb(colour))


def _arrow(
    axes: "Axes", start: tuple[float, float], stop: tuple[float, float], colour: str
) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 8, "shrinkA": 2, "shrinkB": 1}
    arrow = {**style, "color": colour, "linewidth": 1.1}
    axes.annotate("", stop, start, arrowprops=arrow)


def _words(
    axes: "Axes",
    x: float,
    y: float,
    text: str,
    *,
    size: float = 7.5,
    bold: bool = False,
    align: str = "center",
) -> None:
    back = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
    axes.text(
        x,
        y,
        text,
        fontsize=size,
        fontweight="bold" if bold else "normal",
        ha=align,
        va="center",
        color=_TEXT,
        bbox=back,
    )


def _kernels(layer: Layer) -> str:
    """What a tower has of a layer, as 48 kernels of 11×11×3."""
    units = layer.output[-1]
    if len(layer.kernel) == 1:
        return f"{units}\nneurons"
    return f"{units} kernels\n{_times(layer.kernel)}"


def _times(shape: Sequence[int]) -> str:
    return "\N{MULTIPLICATION SIGN}".join(map(str, shape))


def _bytes(count: int) -> str:
    return f"{count / 1e6:#.3g} MB" if count >= 1e5 else f"{count / 1e3:#.3g} kB"
