"""How other programs lay out a network's parameters: names of tensors, and the order of axes.

classic  'conv2.kernel' [5, 5, 48, 256] and 'conv2.bias', as they lie here; fc6's inputs [6, 6, 256]
torch    'conv2.weight' [256, 48, 5, 5] of Conv2d(groups=2); Linear over x.flatten(1), [256, 6, 6]
caffe    'conv2.0', 'conv2.1': as torch's, but conv1 sees the colours as blue, green, red

Caffe and PyTorch scale what dropout leaves in training; the paper scales it in testing instead, by
1 - rate. So in their layouts the kernels of the layers after dropout are multiplied by that; but
version 0.1 left them as they are. A file says which it is, see `dropout_of`.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np

from alexnet_jax.model import ops
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.layers import Axes, Conv
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


Dropout = Literal["scaled in training", "scaled in testing"]
"""What a file's value 'dropout' may be: what its kernels after dropout were made for."""


def dropout_in(layout: Layout) -> Dropout:
    """How a layout has the kernels after dropout."""
    return "scaled in testing" if layout == "classic" else "scaled in training"


def dropout_of(about: Mapping[str, str], layout: Layout) -> Dropout:
    """How a file has the kernels after dropout.

    Args:
      about: the file's values beside its tensors.
      layout: of its tensors.

    Raises:
      UserError: it does not say.
    """
    if layout == "classic":
        return "scaled in testing"
    # Version 0.1 wrote the layout, but not this.
    said = about.get("dropout", "scaled in testing" if "layout" in about else "")
    if said not in get_args(Dropout):
        raise UserError(
            "it does not say when dropout is scaled; give its safetensors file the metadata "
            "dropout='scaled in training', as PyTorch and Caffe do, or 'scaled in testing', as the "
            "paper does"
        )
    return cast(Dropout, said)


def to_layout(params: Params, network: ShardedModel, layout: Layout) -> dict[str, np.ndarray]:
    """Parameters as the tensors of a layout, by name: 'conv2.weight'.

    Raises:
      UserError: the layout has no place for such a network.
    """
    return {
        tensor: np.ascontiguousarray(
            _write(np.asarray(params[layer][name]), layer, axes, layout)
            * _scale(network, layer, name, dropout_in(layout))
        )
        for tensor, (layer, name, axes) in _tensors(network, layout).items()
    }


def mean_to_layout(mean: np.ndarray, layout: Layout) -> np.ndarray:
    """A mean image [size, size, 3] as a layout has images: [3, size, size], its colours first."""
    if layout == "classic":
        return mean
    return mean.transpose(2, 0, 1)[:: -1 if LAYOUTS[layout].colours == "BGR" else 1]


def paddings(network: ShardedModel, crop: int) -> dict[str, tuple[int, int]]:
    """The zeros before and after a side of what each convolution sees, by layer."""
    module = network.module()
    layers = {name: getattr(module, name) for name in network.shapes}
    return {
        name: ops.conv_padding(crop, layer.kernel.axes["height"], layer.stride)
        if layer.zeros is None
        else (layer.zeros, layer.zeros)
        for name, layer in layers.items()
        if isinstance(layer, Conv)
    }


def from_layout(
    tensors: Mapping[str, np.ndarray],
    network: ShardedModel,
    layout: Layout,
    about: Mapping[str, str] | None = None,
) -> Params:
    """The parameters of which `to_layout` makes these tensors, as float32.

    Args:
      tensors: of all layers.
      network: whose parameters they are to be.
      layout: of the tensors.
      about: what their file says beside them, see `dropout_of`; None: they are as `to_layout`
        makes them.

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
        array, shape = tensors[tensor], network.shapes[layer][name].shape
        places = _places(shape, layer, axes, layout)
        if array.shape != places.shape:
            raise UserError(
                f"tensor {tensor!r} is {list(array.shape)}, the config's network has "
                f"{list(places.shape)} (--layout={layout})"
            )
        params[layer][name] = _read(array, places, shape)
    return _unscaled(params, network, layout, about)


def layers_that_fit(
    tensors: Mapping[str, np.ndarray], about: Mapping[str, str], network: ShardedModel
) -> dict[str, dict[str, np.ndarray]]:
    """The layers of which all tensors are there with the network's shapes, as float32.

    The names of the tensors say in which layout they are. Other tensors are left out. For `about`
    see `from_layout`.

    Raises:
      UserError: the names are those of no layout, or the layout has no place for such a network, or
        it is not known when dropout is scaled.
    """
    kernels = {name: layout for layout, one in LAYOUTS.items() for name in _kernels(network, one)}
    layout = next((kernels[name] for name in tensors if name in kernels), None)
    if layout is None:
        raise UserError(
            "it has no tensors like conv1.kernel (classic), conv1.weight (torch) or conv1.0 (caffe)"
        )
    found: dict[str, dict[str, np.ndarray]] = {layer: {} for layer in network.shapes}
    for tensor, (layer, name, axes) in _tensors(network, layout).items():
        shape = network.shapes[layer][name].shape
        places = _places(shape, layer, axes, layout)
        if tensor in tensors and tensors[tensor].shape == places.shape:
            found[layer][name] = _read(tensors[tensor], places, shape)
    whole = {layer: of for layer, of in found.items() if of.keys() == network.shapes[layer].keys()}
    return _unscaled(whole, network, layout, about)


def _unscaled(
    params: dict[str, dict[str, np.ndarray]],
    network: ShardedModel,
    layout: Layout,
    about: Mapping[str, str] | None,
) -> dict[str, dict[str, np.ndarray]]:
    """Parameters that were read, with the kernels after dropout as the paper has them."""
    if not any(_is_after_dropout(network, layer) for layer in params):
        return params
    dropout = dropout_in(layout) if about is None else dropout_of(about, layout)
    return {
        layer: {name: own / _scale(network, layer, name, dropout) for name, own in of.items()}
        for layer, of in params.items()
    }


def _kernels(network: ShardedModel, layout: _Layout) -> list[str]:
    return [f"{layer}.{layout.kernel}" for layer in network.shapes]


def _places(shape: tuple[int, ...], layer: str, axes: Axes, layout: Layout) -> np.ndarray:
    """Where each number of a tensor lies in our parameter: its own number, written the same."""
    numbers = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    return _write(numbers, layer, axes, layout)


def _read(tensor: np.ndarray, places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    ours = np.empty(shape, np.float32)
    np.put(ours, places, tensor)
    return ours


def _tensors(network: ShardedModel, layout: Layout) -> dict[str, tuple[str, str, Axes]]:
    """Layer, name and axes of every parameter, by the name of its tensor in a layout.

    Raises:
      UserError: the layout has no place for such a network.
    """
    module, names = network.module(), LAYOUTS[layout]
    if layout != "classic":
        _check(module, network, layout)
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


def _scale(network: ShardedModel, layer: str, name: str, dropout: Dropout) -> np.float32:
    """A kernel in a file by ours: what dropout before the layer leaves of its inputs."""
    scaled = dropout == "scaled in training" and name == "kernel"
    after = scaled and _is_after_dropout(network, layer)
    return np.float32(1 - network.module().dropout_rate if after else 1)


def _is_after_dropout(network: ShardedModel, layer: str) -> bool:
    module = network.module()
    if not isinstance(module, AlexNet) or not module.dropout_rate:
        return False
    return layer in module.dropout_before


def _check(module: Any, network: ShardedModel, layout: Layout) -> None:
    """Raises UserError if the layout has no place for such a network."""
    if not isinstance(module, AlexNet):
        if any(len(of["bias"].shape) > 1 for of in network.shapes.values()):
            raise UserError(f"--layout={layout} has no local layers; give --layout=classic")
        return
    if module.fc6.towers > 1 and not {"fc6", "fc7"} <= set(module.cross):
        raise UserError(
            f"--layout={layout} has no fully connected layers in two towers: fc6 and fc7 must "
            f"be in config.model.cross; give --layout=classic"
        )
