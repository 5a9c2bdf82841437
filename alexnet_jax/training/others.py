"""Trained weights of other programs: torchvision's `alexnet`, Caffe's networks, also as ONNX."""

import hashlib
import math
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np

from alexnet_jax import config
from alexnet_jax.data.info import DataInfo, imagenet_words, info_of
from alexnet_jax.data.layout import Statistics
from alexnet_jax.data.records import is_prepared, open_records
from alexnet_jax.data.sources.cifar10 import CLASSES as CIFAR10
from alexnet_jax.model.layouts import LAYOUTS, Layout, from_layout
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.runtime.caffe import read_caffemodel, read_mean
from alexnet_jax.runtime.cli import load_config
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.tensors import read_tensors
from alexnet_jax.training.graphs import read_graph
from alexnet_jax.training.setup import NetSetup, make_net_setup, make_network
from alexnet_jax.training.trained import Net

Kind = Literal["torchvision", "bvlc_alexnet", "caffenet", "onnx", "cifar10_full"]

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What torchvision subtracts from images on [0, 1] and divides them by: red, green, blue."""


_ARRANGEMENT = (
    *("kind", "activation", "pool_window", "pool_stride", "pool_over_edges", "padding", "lrn"),
    *("lrn_over_towers", "lrn_after_pooling", "within_map", "dropout_before", "without"),
)
"""Keys of a network's config that decide what its weights mean."""


class _Program(NamedTuple):
    config: str
    layout: Layout  # its axes, and the order of colours, in conv1 and in the mean image
    names: Mapping[str, str]  # theirs of layers that we call otherwise


_TORCHVISION = {
    **{f"conv{i}": f"features.{n}" for i, n in enumerate((0, 3, 6, 8, 10), 1)},
    **{f"fc{i}": f"classifier.{n}" for i, n in enumerate((1, 4, 6), 6)},
}
PROGRAMS: Mapping[Kind, _Program] = {
    "torchvision": _Program("torchvision", "torch", _TORCHVISION),
    "bvlc_alexnet": _Program("bvlc_alexnet", "caffe", {}),
    "caffenet": _Program("caffenet", "caffe", {}),
    "onnx": _Program("bvlc_alexnet", "caffe", {}),  # or caffenet, as its graph says
    # Caffe reads CIFAR-10 as its authors published it: red, green, blue.
    "cifar10_full": _Program("cifar10:18", "torch", {"fc10": "ip1"}),
}


def load_weights(
    file: str | os.PathLike[str],
    kind: Kind,
    *,
    mean: str = "",
    layers: Sequence[str] | None = None,
    config: config.Config | None = None,
) -> Net[NetSetup]:
    """The network of another program, with its weights. What differs is converted.

    Args:
      file: .pth or .safetensors of torchvision, .caffemodel or .safetensors of Caffe's networks,
        .onnx of Caffe's two for ImageNet.
      kind: whose.
      mean: what is subtracted from images: a .binaryproto, or 'RED,GREEN,BLUE' on 0..255, or a
        folder of records, whose mean image it is. Caffe's networks need it, without a "mean" in
        the file; torchvision's is known.
      layers: only these; the others begin with random weights. None: all must be there.
      config: another than the packaged one of this kind, for example with fewer classes. With one
        tower, kernels of two groups are the blocks of its kernels, and the rest of them is zero.

    Raises:
      UserError: the file is damaged, or of another network, or the mean is missing.
    """
    path = Path(file)
    if kind not in PROGRAMS:
        raise UserError(f"there is no kind {kind!r} of weights; there are {', '.join(PROGRAMS)}")
    program = PROGRAMS[kind]
    arrangement, tensors = read_graph(path) if kind == "onnx" else ("", _read(path, kind))
    packaged = load_config(arrangement or program.config)
    c = config or packaged
    _check_config(c, packaged)
    if mean and is_prepared(mean):
        manifest = open_records(mean).manifest
        c = replace(
            c, data=replace(c.data, records=mean, format=manifest.format, resize=manifest.resize)
        )
    network = make_network(c)
    info = _info(path, kind, c, mean, tensors.pop("mean", None))
    wanted = tuple(layers or c.model.names)
    if unknown := [name for name in wanted if name not in c.model.names]:
        raise UserError(f"no layer {unknown[0]}; there are {', '.join(c.model.names)}")
    theirs = {name: program.names.get(name, name) for name in c.model.names}
    found = {
        name: _layer(path, kind, tensors, theirs[name], network.shapes[name]) for name in wanted
    }
    of_none = {name.rpartition(".")[0] for name in tensors} - set(theirs.values())
    if of_none:
        raise UserError(f"{path} has a layer {min(of_none)}, which {kind} does not have")
    if kind == "torchvision" and "conv1" in found:
        scale = 255 * np.array(_DEVIATION, np.float32)[:, None, None]
        found["conv1"] = (found["conv1"][0] / scale, found["conv1"][1])
    params = network.init(c.seed) | _placed(found, network, program.layout)
    return Net(path, 0, make_net_setup(c, info, network), params)


def _check_config(c: config.Config, packaged: config.Config) -> None:
    """Raises UserError if a config computes with the weights in another way than their program."""
    for key in _ARRANGEMENT if isinstance(packaged.model, config.AlexNet) else ("layers",):
        ours, theirs = getattr(c.model, key, None), getattr(packaged.model, key)
        if ours != theirs:
            raise UserError(
                f"config.model.{key} is {ours}, but the weights are for {theirs}, as in the config "
                f"{packaged.experiment.name}"
            )


def _read(path: Path, kind: Kind) -> dict[str, np.ndarray]:
    """The arrays of a file: 'conv1.weight', 'conv1.bias', with the program's names of layers."""
    if path.suffix == ".safetensors":
        tensors, about = read_tensors(path)
        if "layout" in about:
            raise UserError(
                f"{path} was written by `weights export`: import it with --layout={about['layout']}"
            )
        return tensors
    if kind == "torchvision":
        return _read_pth(path)
    names = ("weight", "bias")
    tensors = {}
    found = read_caffemodel(path)
    _check_order(path, kind, list(found))
    for layer, arrays in found.items():
        if len(arrays) not in (0, 2):
            raise UserError(f"{path}: layer {layer} has {len(arrays)} arrays, not kernel and bias")
        tensors.update({f"{layer}.{n}": a for n, a in zip(names, arrays, strict=False)})
    return tensors


def _check_order(path: Path, kind: Kind, layers: Sequence[str]) -> None:
    """Raises UserError if it is the other of Caffe's two networks, whose shapes are the same."""
    if kind not in ("bvlc_alexnet", "caffenet") or not {"pool1", "norm1"} <= set(layers):
        return
    found = "caffenet" if layers.index("pool1") < layers.index("norm1") else "bvlc_alexnet"
    if found != kind:
        raise UserError(f"{path} pools and normalizes as {found}, not as {kind}: give {found}")


def _read_pth(path: Path) -> dict[str, np.ndarray]:
    """A state_dict. Nothing in the file is run: only tensors are read."""
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} needs PyTorch: pip install 'alexnet-jax[peers]'; or give a .safetensors file"
        ) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.float().numpy() for name, tensor in state.items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read as tensors of PyTorch: it is damaged, or holds other things "
            f"than a state_dict; no code in it was run"
        ) from error


def _layer(
    path: Path,
    kind: Kind,
    tensors: Mapping[str, np.ndarray],
    name: str,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [out, in, height, width] or [out, in], and bias."""
    ours = shapes["kernel"].shape
    kernel = ours[::-1] if len(ours) == 2 else (ours[3], ours[2], *ours[:2])
    found = []
    for part, shape in (("weight", kernel), ("bias", ours[-1:])):
        array = tensors.get(f"{name}.{part}")
        if array is None:
            raise UserError(f"{path} has no {part} of layer {name}; {kind} has {list(shape)}")
        if part == "weight" and _as_blocks(array).shape == shape:
            array = _as_blocks(array)
        # Older files of Caffe have four axes everywhere, the first ones of one.
        old = array.ndim == 4 and array.shape == (1,) * (4 - len(shape)) + shape
        if array.shape != shape and not old:
            raise UserError(
                f"{path}: {part} of layer {name} is {list(array.shape)}, {kind} has {list(shape)}"
            )
        found.append(array.reshape(shape).astype(np.float32))
    return found[0], found[1]


def _as_blocks(kernel: np.ndarray) -> np.ndarray:
    """A kernel of two groups, [out, in / 2, height, width], as one that sees both: [out, in, ...].

    Each half of the units sees its own half of the maps; the other weights are zero.
    """
    if kernel.ndim != 4 or len(kernel) % 2:
        return kernel
    first, second = np.split(kernel, 2)
    none = np.zeros_like(first)
    return np.concatenate(
        [np.concatenate([first, none], axis=1), np.concatenate([none, second], axis=1)]
    )


def _placed(
    found: Mapping[str, tuple[np.ndarray, np.ndarray]], network: ShardedModel, layout: Layout
) -> dict[str, dict[str, jax.Array]]:
    """As our parameters, on the network's devices."""
    parts = ("weight", "bias") if layout == "torch" else ("0", "1")
    whole: dict[str, np.ndarray] = {}
    for layer, shapes in network.shapes.items():
        ours = shapes["kernel"].shape
        none = ours[::-1] if len(ours) == 2 else (ours[3], ours[2], *ours[:2])
        kernel, bias = found.get(layer) or (np.zeros(none), np.zeros(ours[-1:]))
        whole |= {f"{layer}.{parts[0]}": kernel, f"{layer}.{parts[1]}": bias}
    params = from_layout(whole, network, layout)
    return {
        layer: jax.device_put(dict(params[layer]), network.shardings(network.specs[layer]))
        for layer in found
    }


def _info(
    path: Path, kind: Kind, c: config.Config, mean: str, of_file: np.ndarray | None
) -> DataInfo:
    """The mean image and the names of the classes."""
    classes = CIFAR10 if kind == "cifar10_full" else tuple(sorted(imagenet_words()))
    classes = classes if len(classes) == c.model.classes else ()  # of another training: unknown
    if mean and is_prepared(mean):
        info = info_of(open_records(mean))
        known = not classes or info.classes == classes
        if not known or len(info.classes) != c.model.classes:
            raise UserError(f"--mean={mean}: its records have other classes than {kind}")
        _check_size(info.statistics.mean, kind, c)
        return info
    image = _mean_image(of_file, mean, kind)
    _check_size(image, kind, c)
    whole = np.ascontiguousarray(np.broadcast_to(image, (c.data.size, c.data.size, 3)), np.float32)
    digest = hashlib.sha256(whole.tobytes()).hexdigest()
    statistics = Statistics(whole, np.zeros(3), np.eye(3))
    return DataInfo(digest, f"{kind}, {path.name}", classes, statistics)


def _check_size(image: np.ndarray, kind: Kind, c: config.Config) -> None:
    """Raises UserError if a mean image has another size than the images."""
    size = c.data.size
    if image.ndim == 3 and image.shape[:2] != (size, size):
        raise UserError(
            f"the mean image has {image.shape[0]} x {image.shape[1]} pixels, the images of {kind} "
            f"have {size} x {size}"
        )


def _mean_image(of_file: np.ndarray | None, mean: str, kind: Kind) -> np.ndarray:
    """float32 [size, size, 3] or [3]: red, green, blue, on 0..255."""
    if kind == "torchvision":
        if mean:
            raise UserError("torchvision subtracts numbers that are known; give no --mean")
        return 255 * np.array(_MEAN, np.float32)
    if mean and not mean.endswith(".binaryproto"):
        return np.array(_three_numbers(mean), np.float32)
    image = read_mean(Path(mean)) if mean else of_file
    if image is None:
        raise UserError(
            f"{kind} needs the mean of its training images: give --mean=FILE.binaryproto, or three "
            f"numbers, --mean=RED,GREEN,BLUE, or --mean=FOLDER of records"
        )
    if image.ndim != 3 or image.shape[0] != 3:
        raise UserError(f"the mean image is {list(image.shape)}, not [3, height, width]")
    reverse = LAYOUTS[PROGRAMS[kind].layout].colours == "BGR"
    return (image[::-1] if reverse else image).transpose(1, 2, 0)


def _three_numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise UserError(
            f"--mean={text}: give a .binaryproto, or three numbers, RED,GREEN,BLUE, or a folder of "
            f"records"
        )
    return numbers
