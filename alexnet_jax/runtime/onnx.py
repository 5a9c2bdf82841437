"""The operations and numbers of an .onnx file, without the package `onnx`.

Of the messages in ONNX's `onnx.proto`, only what a network of few operations needs is read.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.messages import message_classes, parse_file

MESSAGES = {
    "Attribute": {
        "name": (1, "string"),
        "f": (2, "float"),
        "i": (3, "int64"),
        "ints": (8, "int64*"),
        "type": (20, "int32"),
    },
    "Tensor": {
        "dims": (1, "int64*"),
        "data_type": (2, "int32"),
        "float_data": (4, "bytes*"),
        "name": (8, "string"),
        "raw_data": (9, "bytes"),
        "data_location": (14, "int32"),
    },
    "Node": {"input": (1, "string*"), "op_type": (4, "string"), "attribute": (5, "Attribute*")},
    "Graph": {"node": (1, "Node*"), "initializer": (5, "Tensor*")},
    "Model": {"graph": (7, "Graph")},
}
CLASSES = message_classes("alexnet_jax.onnx", MESSAGES)

_TYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 10: np.dtype("<f2"), 11: np.dtype("<f8")}
_AXES = 64  # of an array in NumPy, at most
_FIELDS = {1: "f", 2: "i", 7: "ints"}  # of an attribute, by its type


class Node(NamedTuple):
    """One operation."""

    kind: str  # 'Conv'
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any]  # numbers, and tuples of whole numbers


def read_onnx(path: Path) -> tuple[list[Node], dict[str, np.ndarray]]:
    """The operations of a graph in their order, and its tensors of floats by name, float32.

    Raises:
      UserError: there is no such file, or it is no graph with weights in it.
    """
    graph = parse_file(CLASSES["Model"], path, "an .onnx file").graph
    if not graph.node:
        raise UserError(f"{path} cannot be read as an .onnx file: it has no operations")
    nodes = [
        Node(one.op_type, tuple(one.input), dict(map(_attribute, one.attribute)))
        for one in graph.node
    ]
    tensors = {one.name: _array(one, path) for one in graph.initializer if one.data_type in _TYPES}
    return nodes, tensors


def _attribute(one: Any) -> tuple[str, Any]:
    value = getattr(one, _FIELDS.get(one.type, "i"))
    return one.name, tuple(value) if one.type == 7 else value


def _array(tensor: Any, path: Path) -> np.ndarray:
    shape = tuple(tensor.dims)
    if tensor.data_location:
        raise UserError(f"{path}: the numbers of {tensor.name} are in another file")
    data = tensor.raw_data or b"".join(tensor.float_data)
    kind = _TYPES[tensor.data_type]
    possible = len(shape) <= _AXES and min(shape, default=1) > 0
    if not possible or len(data) != kind.itemsize * math.prod(shape):
        raise UserError(
            f"{path}: {tensor.name} has {len(data)} bytes for an array of {list(shape)}"
        )
    return np.frombuffer(data, kind).reshape(shape).astype(np.float32)
