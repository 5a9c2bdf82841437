"""Which of Caffe's two networks an ONNX graph is, and the arrays of its layers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.onnx import Node, read_onnx

Arrangement = Literal["bvlc_alexnet", "caffenet"]

_LEADING = "leading pads"
"""The pads above and to the left, which move all windows. The others may be there: at the far edge
a window may hang over, as in the model zoo's graph."""

_LRN = ("LRN", {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 1.0})
_POOL = (
    "MaxPool",
    {"kernel_shape": (3, 3), "strides": (2, 2), "dilations": (1, 1), _LEADING: (0, 0)},
)
_RELU: tuple[str, dict[str, Any]] = ("Relu", {})
_DENSE = ("Gemm", {"transB": 1, "transA": 0, "alpha": 1.0, "beta": 1.0})
_NOTHING = ("Dropout", "Softmax", "Reshape", "Flatten")
"""Operations that change no number in testing, or only the probabilities."""

_DEFAULTS: dict[str, Any] = {
    "group": 1,
    "strides": (1, 1),
    "pads": (0, 0, 0, 0),
    "dilations": (1, 1),
    "alpha": 1.0,
    "beta": 1.0,
    "transA": 0,
    "transB": 0,
}
"""ONNX's, of attributes that are left out."""

_DEFAULTS_OF_LRN: dict[str, Any] = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}


def _conv(pad: int, group: int = 1, stride: int = 1) -> tuple[str, dict[str, Any]]:
    how = {"pads": (pad,) * 4, "strides": (stride, stride), "group": group, "dilations": (1, 1)}
    return "Conv", how


def _wanted(kind: Arrangement) -> list[tuple[str, dict[str, Any]]]:
    """The operations of a network, each with what its attributes must be."""
    after = (_RELU, _POOL, _LRN) if kind == "caffenet" else (_RELU, _LRN, _POOL)
    three = (_conv(1), _RELU, _conv(1, 2), _RELU, _conv(1, 2), _RELU, _POOL)
    dense = (_DENSE, _RELU, _DENSE, _RELU, _DENSE)
    return [_conv(0, stride=4), *after, _conv(2, 2), *after, *three, *dense]


def read_graph(path: Path) -> tuple[Arrangement, dict[str, np.ndarray]]:
    """The network of an .onnx file: 'conv1.weight' and so on, as Caffe's.

    Its windows are those of 227 pixels, whatever size of images the file names: the one in ONNX's
    model zoo says 224 pixels, and the last pooling's windows hang over the edge.

    Raises:
      UserError: it is damaged, or a graph of other operations.
    """
    nodes, tensors = read_onnx(path)
    nodes = [node for node in nodes if node.kind not in _NOTHING]
    first = next((node.kind for node in nodes if node.kind in ("LRN", "MaxPool")), "LRN")
    kind: Arrangement = "caffenet" if first == "MaxPool" else "bvlc_alexnet"
    _check(path, nodes, kind)
    names = [*(f"conv{n}" for n in range(1, 6)), *(f"fc{n}" for n in range(6, 9))]
    layers = [node for node in nodes if node.kind in ("Conv", "Gemm")]
    return kind, dict(_arrays(path, names, layers, tensors))


def _check(path: Path, nodes: Sequence[Node], kind: Arrangement) -> None:
    """Raises UserError at the first operation that the network does not have there."""
    wanted = _wanted(kind)
    for number, (node, (there, how)) in enumerate(zip(nodes, wanted, strict=False), 1):
        if node.kind != there:
            raise UserError(f"{path}: operation {number} is {node.kind}, {kind} has {there}")
        for name, value in how.items():
            found = _attribute(node, name)
            same_axes = found is not None and np.shape(found) == np.shape(value)
            if not same_axes or not np.allclose(found, value, rtol=1e-6):
                raise UserError(
                    f"{path}: operation {number}, {there}, has {name} {found}, {kind} has {value}"
                )
    if len(nodes) != len(wanted):
        raise UserError(f"{path} has {len(nodes)} operations with numbers, {kind} {len(wanted)}")


def _attribute(node: Node, name: str) -> Any:
    """Its value; None if it is left out and has no default."""
    if name == _LEADING:
        pads = np.ravel(_attribute(node, "pads")).tolist()
        return tuple(pads[: len(pads) // 2])
    defaults = _DEFAULTS_OF_LRN if node.kind == "LRN" else _DEFAULTS
    return node.attributes.get(name, defaults.get(name))


def _arrays(
    path: Path, names: Sequence[str], layers: Sequence[Node], tensors: dict[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    for name, layer in zip(names, layers, strict=True):
        if len(layer.inputs) != 3:
            raise UserError(f"{path} has no bias of layer {name}")
        for part, tensor in zip(("weight", "bias"), layer.inputs[1:], strict=True):
            if tensor not in tensors:
                raise UserError(f"{path} has no numbers for the {part} of layer {name}, {tensor}")
            yield f"{name}.{part}", tensors[tensor]
