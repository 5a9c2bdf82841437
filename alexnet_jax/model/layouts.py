"""How other programs lay out a network's parameters: names of tensors, and the order of axes.

classic  'conv2.kernel' [5, 5, 48, 256] and 'conv2.bias', as they lie here; fc6's inputs [6, 6, 256]
torch    'conv2.weight' [256, 48, 5, 5] of Conv2d(groups=2); Linear over x.flatten(1), [256, 6, 6]
caffe    'conv2.0', 'conv2.1': as torch's, but conv1 sees the colours as blue, green, red
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.layers import Axes
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.runtime.errors import UserError

Params = Mapping[str, Mapping[str, np.ndarray]]
"""Arrays by layer and name, 'kernel' or 'bias', with the shapes of `ShardedModel.shapes`."""


class _Layout(NamedTuple):
    """How another program has a layer's parameters.

    A fully connected kernel is a matrix: the axes other than 'out' are merged, in this order.
    """

    kernel: str  # its name
    bias: str
    axes: tuple[str, ...]  # the order of the kernel's axes
    colours: Literal["RGB", "BGR"]  # the order in which the first layer sees them


Layout = Literal["classic", "torch", "caffe"]
LAYOUTS: dict[Layout, _Layout] = {
    "classic": _Layout("kernel", "bias", ("height", "width", "in", "out"), "RGB"),
    "torch": _Layout("weight", "bias", ("out", "in", "height", "width"), "RGB"),
    "caffe": _Layout("0", "1", ("out", "in", "height", "width"), "BGR"),
}


def to_layout(params: Params, network: ShardedModel, layout: Layout) -> dict[str, np.ndarray]:
    """Parameters as the tensors of a layout, by name: 'conv2.weight'.

    Raises:
      UserError: the layout has no place for such a network.
    """
    return {
        tensor: np.ascontiguousarray(_write(np.asarray(params[layer][name]), layer, axes, layout))
        for tensor, (layer, name, axes) in _tensors(network, layout).items()
    }


def from_layout(tensors: Mapping[str, np.ndarray], network: ShardedModel, layout: Layout) -> Params:
    """The parameters of which `to_layout` makes these tensors, as float32.

    Raises:
      UserError: a tensor is missing, is of no layer, or has another shape.
    """
    wanted = _tensors(network, layout)
    odd = sorted(wanted.keys() ^ tensors.keys())
    if odd:
        what = "is missing" if odd[0] in wanted else "is of no layer of the config's network"
        raise UserError(
            f"tensor {odd[0]!r} {what}; --layout={layout} has {', '.join(sorted(wanted))}"
        )
    params: dict[str, dict[str, np.ndarray]] = {layer: {} for layer in network.shapes}
    for tensor, (layer, name, axes) in wanted.items():
        array, ours = tensors[tensor], np.empty(network.shapes[layer][name].shape, np.float32)
        # Where each number of the tensor lies in our parameter: its own number, written the same.
        numbers = np.arange(ours.size, dtype=np.int32).reshape(ours.shape)
        places = _write(numbers, layer, axes, layout)
        if array.shape != places.shape:
            raise UserError(
                f"tensor {tensor!r} is {list(array.shape)}, the config's network has "
                f"{list(places.shape)} (--layout={layout})"
            )
        np.put(ours, places, array)
        params[layer][name] = ours
    return params


def _tensors(network: ShardedModel, layout: Layout) -> dict[str, tuple[str, str, Axes]]:
    """Layer, name and axes of every parameter, by the name of its tensor in a layout.

    Raises:
      UserError: the layout has no place for such a network.
    """
    module, names = network.module(), LAYOUTS[layout]
    if layout != "classic":
        _check(module, layout)
    return {
        f"{layer}.{getattr(names, name)}": (layer, name, getattr(getattr(module, layer), name).axes)
        for layer, parameters in network.shapes.items()
        for name in parameters
    }


def _write(array: np.ndarray, layer: str, axes: Axes, layout: Layout) -> np.ndarray:
    """A parameter of ours, with the axes of a layout."""
    if len(axes) == 1 or layout == "classic":
        return array
    order = LAYOUTS[layout].axes
    kernel = array.reshape(*axes.values()).transpose([list(axes).index(name) for name in order])
    if layer == "conv1" and LAYOUTS[layout].colours == "BGR":
        kernel = np.flip(kernel, order.index("in"))
    return kernel if array.ndim == 4 else kernel.reshape(axes["out"], -1)


def _check(module: Any, layout: Layout) -> None:
    """Raises UserError if the layout has no place for such a network."""
    if not isinstance(module, AlexNet):
        raise UserError(f"--layout={layout} is for AlexNet alone; give --layout=classic")
    if module.fc6.towers > 1 and not {"fc6", "fc7"} <= set(module.cross):
        raise UserError(
            f"--layout={layout} has no fully connected layers in two towers: fc6 and fc7 must "
            f"be in config.model.cross; give --layout=classic"
        )
