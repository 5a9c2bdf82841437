"""Caffe's binary files, .caffemodel and .binaryproto, without Caffe.

Of the messages in Caffe's `caffe.proto`, only what holds arrays is read.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.messages import message_classes, parse_file

MESSAGES = {
    "Shape": {"dim": (1, "int64*")},
    "Blob": {
        "num": (1, "int64"),
        "channels": (2, "int64"),
        "height": (3, "int64"),
        "width": (4, "int64"),
        "data": (5, "bytes*"),
        "shape": (7, "Shape"),
        "double_data": (8, "bytes*"),
    },
    "Layer": {"name": (1, "string"), "type": (2, "string"), "blobs": (7, "Blob*")},
    "V0Layer": {"name": (1, "string"), "blobs": (50, "Blob*")},
    "V1Layer": {"layer": (1, "V0Layer"), "name": (4, "string"), "blobs": (6, "Blob*")},
    "Net": {"name": (1, "string"), "layers": (2, "V1Layer*"), "layer": (100, "Layer*")},
}


CLASSES = message_classes("alexnet_jax.caffe", MESSAGES)

_AXES = 32  # of an array in Caffe, at most


def read_caffemodel(path: Path) -> dict[str, list[np.ndarray]]:
    """The layers of a network in their order, each with its arrays: kernel and bias, or none.

    All three generations: `layers` whose values lie in a `layer` of their own, `layers`, `layer`.

    Raises:
      UserError: there is no such file, or it is none of Caffe's.
    """
    net = parse_file(CLASSES["Net"], path, "a .caffemodel")
    layers = [one.layer if one.HasField("layer") else one for one in net.layers]
    found = {one.name: one.blobs for one in (*layers, *net.layer)}
    if not any(found.values()):
        raise UserError(f"{path} cannot be read as a .caffemodel: it has no layers with weights")
    return {
        name: [_array(blob, f"{path}: layer {name}") for blob in blobs]
        for name, blobs in found.items()
    }


def read_mean(path: Path) -> np.ndarray:
    """A mean image, of a .binaryproto: float32 [3, height, width], colours as the network's.

    Raises:
      UserError: there is no such file, or it is no image.
    """
    mean = _array(parse_file(CLASSES["Blob"], path, "a .binaryproto"), str(path))
    if mean.ndim < 3 or mean.shape[-3] != 3 or mean.size != np.prod(mean.shape[-3:]):
        raise UserError(f"{path} is {list(mean.shape)}; a mean image is [3, height, width]")
    return mean.reshape(mean.shape[-3:])


def _array(blob: Any, where: str) -> np.ndarray:
    kept: Sequence[bytes] = blob.double_data or blob.data
    data, kind = b"".join(kept), np.dtype("<f8" if blob.double_data else "<f4")
    four = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else four
    possible = len(shape) <= _AXES and min(shape, default=1) > 0
    if not possible or len(data) != kind.itemsize * math.prod(shape):
        raise UserError(f"{where} has {len(data)} bytes for an array of {list(shape)}")
    return np.frombuffer(data, kind).reshape(shape).astype(np.float32)
