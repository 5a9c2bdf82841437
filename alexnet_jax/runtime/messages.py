"""Files of protobuf messages, of which a program declares only the fields that it reads.

Lists of numbers may be declared as bytes: a packed list of floats is a string of bytes on the wire,
so no float becomes a Python object.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from alexnet_jax.runtime.errors import UserError

MOST_BYTES = 2**31 - 1  # of a file that protobuf reads


def check_size(arrays: Iterable[np.ndarray], whose: str) -> None:
    """Raises UserError for weights that a file of messages cannot hold."""
    count = sum(array.nbytes for array in arrays)
    if count > MOST_BYTES:
        raise UserError(f"{count / 1e9:.1f} GB of weights: a file of {whose} has 2 GB at most")


def message_classes(package: str, messages: Mapping[str, Mapping[str, tuple[int, str]]]) -> Any:
    """A class for each message.

    Args:
      package: their name among protobuf's packages.
      messages: number and type of each field: {'Shape': {'dim': (1, 'int64*')}}. A type may be the
        name of a message; '*': repeated.
    """
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name=package, package=package, syntax="proto2")
    for message, fields in messages.items():
        described = file.message_type.add(name=message)
        for name, (number, declared) in fields.items():
            field = described.field.add(name=name, number=number)
            repeated, kind = declared.endswith("*"), declared.removesuffix("*")
            field.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind in messages:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
            field.options.packed = repeated and kind == "int64"
    pool = descriptor_pool.DescriptorPool()  # not the common one: another program's may be there
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in messages
    }


def parse_file(message: Any, path: Path, what: str) -> Any:
    """The message in a file.

    Args:
      message: a class of `message_classes`.
      path: the file.
      what: it is, for an error: 'a .caffemodel'.

    Raises:
      UserError: there is no such file, or it is no such message.
    """
    try:
        return message.FromString(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except DecodeError as error:
        raise UserError(f"{path} cannot be read as {what} ({error})") from error
