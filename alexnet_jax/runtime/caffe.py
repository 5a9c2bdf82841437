"""Caffe's binary files, .caffemodel and .binaryproto, without Caffe: the messages that hold arrays.

Field numbers are those of Caffe's `caffe.proto`. Numbers are declared as bytes, because a packed
list of floats is a string of bytes on the wire: so no float becomes a Python object.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from alexnet_jax.runtime.errors import UserError

PACKAGE = "alexnet_jax.caffe"
MESSAGES = {  # number and type of each field; '*': repeated
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
    "Layer": {"name": (1, "string"), "blobs": (7, "Blob*")},
    "V0Layer": {"name": (1, "string"), "blobs": (50, "Blob*")},
    "V1Layer": {"layer": (1, "V0Layer"), "name": (4, "string"), "blobs": (6, "Blob*")},
    "Net": {"layers": (2, "V1Layer*"), "layer": (100, "Layer*")},
}


def _classes() -> dict[str, Any]:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe", package=PACKAGE, syntax="proto2")
    for message, fields in MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, declared) in fields.items():
            field = described.field.add(name=name, number=number)
            repeated, kind = declared.endswith("*"), declared.removesuffix("*")
            field.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind in MESSAGES:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
            else:
                field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
            field.options.packed = repeated and kind == "int64"
    pool = descriptor_pool.DescriptorPool()  # not the common one: Caffe's may be there, too
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in MESSAGES
    }


CLASSES = _classes()


def read_caffemodel(path: Path) -> dict[str, list[np.ndarray]]:
    """The layers of a network in their order, each with its arrays: kernel and bias, or none.

    All three generations: `layers` whose values lie in a `layer` of their own, `layers`, `layer`.

    Raises:
      UserError: there is no such file, or it is none of Caffe's.
    """
    net = _parse("Net", path)
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
    mean = _array(_parse("Blob", path), str(path))
    if mean.ndim < 3 or mean.shape[-3] != 3 or mean.size != np.prod(mean.shape[-3:]):
        raise UserError(f"{path} is {list(mean.shape)}; a mean image is [3, height, width]")
    return mean.reshape(mean.shape[-3:])


def _parse(kind: str, path: Path) -> Any:
    if not path.exists():
        raise UserError(f"there is no file {path}")
    try:
        return CLASSES[kind].FromString(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except DecodeError as error:
        raise UserError(f"{path} cannot be read as a file of Caffe's ({error})") from error


def _array(blob: Any, where: str) -> np.ndarray:
    kept: Sequence[bytes] = blob.double_data or blob.data
    data, kind = b"".join(kept), np.dtype("<f8" if blob.double_data else "<f4")
    four = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else four
    if min(shape, default=1) < 1 or len(data) != kind.itemsize * int(np.prod(shape)):
        raise UserError(f"{where} has {len(data)} bytes for an array of {list(shape)}")
    return np.frombuffer(data, kind).reshape(shape).astype(np.float32)
