"""Named arrays in a safetensors file, which has no code in it, with a checksum of its own."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from alexnet_jax.runtime.errors import UserError

CHECKSUM = "checksum"


def to_bytes(tensors: Mapping[str, np.ndarray], about: Mapping[str, str]) -> bytes:
    """The content of a safetensors file.

    Args:
      tensors: by name.
      about: other values, by name. The checksum is over these and the tensors.
    """
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    about = dict(about) | {CHECKSUM: _checksum(whole, about)}
    return safetensors.numpy.save(whole, metadata=about)


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a file, and its other values: what `to_bytes` got.

    Files of other programs have no checksum and are read as they are.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    try:
        with safetensors.safe_open(path, "np") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error})") from error
    checksum = about.pop(CHECKSUM, None)
    if checksum not in (None, _checksum(tensors, about)):
        raise UserError(f"{path} is damaged: its contents are not what was saved")
    return tensors, about


def _checksum(tensors: Mapping[str, np.ndarray], about: Mapping[str, str]) -> str:
    """SHA-256, in hex, of names, dtypes, shapes, bytes and the other values."""
    names = sorted(tensors)
    head = [[name, str(tensors[name].dtype), tensors[name].shape] for name in names]
    digest = hashlib.sha256(json.dumps([head, sorted(about.items())]).encode())
    for name in names:
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
