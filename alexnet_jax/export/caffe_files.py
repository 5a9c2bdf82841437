"""A network as Caffe's files: .prototxt (the layers), .caffemodel (the weights), .binaryproto.

Three things are written in another way, and are exact:

- Zeros on the far sides only. Caffe has as many on all sides: so there are that many, and the
  kernel is larger, with rows and columns of zeros. conv1 then has 14 x 14 instead of 11 x 11.
- LRN within a tower: the maps are sliced, each part is normalized, and they are put together.
- LRN with another k than 1, which some readers of Caffe's files ignore: (k + s)^-b is
  k^-b (1 + s / k)^-b. So k is 1, alpha is divided by k, and a layer of type Power follows.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from alexnet_jax.config import Formula
from alexnet_jax.export.operators import (
    Activation,
    Conv,
    Dense,
    Dropout,
    Lrn,
    LrnWithin,
    Operator,
    Pool,
)
from alexnet_jax.runtime.caffe import CLASSES
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.messages import check_size

TYPES = {"relu": "ReLU", "tanh": "TanH", "sigmoid": "Sigmoid"}


def caffe_files(
    operators: Sequence[Operator], crop: int, about: Mapping[str, str]
) -> tuple[str, bytes]:
    """The .prototxt and the .caffemodel. The input 'data' are crops minus the mean image.

    Args:
      operators: of the network, in the layout 'caffe'.
      crop: side of the crops, pixels.
      about: comments of the .prototxt.

    Raises:
      UserError: Caffe has no such operation, or the file would have more than 2 GB.
    """
    net = _Net(crop)
    for operator in operators:
        net.add_operator(operator)
    net.add("prob", "Softmax", "")
    comments = [f"# {name}: {text}" for name, text in about.items()]
    check_size((array for arrays in net.arrays.values() for array in arrays), "Caffe")
    return "\n".join([*comments, *net.layers]) + "\n", net.weights()


def mean_file(mean: np.ndarray) -> bytes:
    """A .binaryproto of a mean image, float32 [height, width, 3], red, green, blue."""
    array = np.ascontiguousarray(mean[..., ::-1].transpose(2, 0, 1), "<f4")
    blob = CLASSES["Blob"](num=1, data=[array.tobytes()])
    blob.channels, blob.height, blob.width = array.shape
    content: bytes = blob.SerializeToString()
    return content


class _Net:
    """Layers so far. Each sees what the last one gave."""

    def __init__(self, crop: int) -> None:
        shape = f"shape {{ dim: 1 dim: 3 dim: {crop} dim: {crop} }}"
        self.layers = ['name: "alexnet_jax"']
        self.arrays: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.types: dict[str, str] = {}
        self.number = ""  # of the last layer with weights
        self.last: list[str] = []
        self.add("data", "Input", f"input_param {{ {shape} }}")

    def add(self, name: str, kind: str, values: str, tops: Sequence[str] = ()) -> None:
        """A layer that sees what the last one gave."""
        tops = tops or [name]
        ends = "".join(f' bottom: "{one}"' for one in self.last)
        ends += "".join(f' top: "{one}"' for one in tops)
        self.layers.append(f'layer {{ name: "{name}" type: "{kind}"{ends} {values} }}')
        self.types[name], self.last = kind, list(tops)

    def add_operator(self, operator: Operator) -> None:
        match operator:
            case Conv() | Dense():
                self._add_weights(operator)
            case Activation(kind):
                self.add(f"{kind}{self.number}", TYPES[kind], "", self.last)
            case Pool():
                self._add_pool(operator)
            case Lrn(formula, parts):
                self._add_lrn(formula, parts)
            case LrnWithin(f):
                where = "norm_region: WITHIN_CHANNEL "
                self._add_response(f"within{self.number}", f, f.size**2, where)
                self._add_power(f"within{self.number}", f)
            case Dropout(rate):
                values = f"dropout_param {{ dropout_ratio: {rate!r} }}"
                self.add(f"drop{self.number}", "Dropout", values, self.last)

    def _add_weights(self, operator: Conv | Dense) -> None:
        self.number = re.sub(r"\D", "", operator.name)
        size = f"num_output: {len(operator.kernel)}"
        if isinstance(operator, Dense):
            self.arrays[operator.name] = operator.kernel, operator.bias
            self.add(operator.name, "InnerProduct", f"inner_product_param {{ {size} }}")
            return
        pad = max(operator.before, operator.after)
        more = pad - operator.before, pad - operator.after
        kernel = np.pad(operator.kernel, ((0, 0), (0, 0), more, more))
        self.arrays[operator.name] = kernel, operator.bias
        values = f"{size} kernel_size: {kernel.shape[2]} stride: {operator.stride} pad: {pad}"
        values = f"convolution_param {{ {values} group: {operator.groups} }}"
        self.add(operator.name, "Convolution", values)

    def _add_pool(self, p: Pool) -> None:
        if p.rest:
            raise UserError(
                f"pooling after layer {self.number} leaves {p.rest} pixels at the far edges; "
                f"Caffe has one window more there"
            )
        kind = {"max": "MAX", "average": "AVE"}[p.kind]
        values = f"pool: {kind} kernel_size: {p.window} stride: {p.stride}"
        name = f"pool{self.number}"
        name += "b" if name in self.types else ""  # without conv2 there are two after conv1
        self.add(name, "Pooling", f"pooling_param {{ {values} }}")

    def _add_lrn(self, f: Formula, parts: int) -> None:
        name = f"norm{self.number}"
        if parts == 1:
            self._add_response(name, f, f.size, "")
        else:
            count = len(self.arrays[f"conv{self.number}"][1])
            tops = [f"tower{self.number}{letter}" for letter in "ab"]
            values = f"slice_param {{ axis: 1 slice_point: {count // parts} }}"
            self.add(f"towers{self.number}", "Slice", values, tops)
            for top, letter in zip(tops, "ab", strict=True):
                self.last = [top]
                self._add_response(f"{name}{letter}", f, f.size, "")
            self.last = [f"{name}a", f"{name}b"]
            self.add(name, "Concat", "concat_param { axis: 1 }")
        self._add_power(name, f)

    def _add_response(self, name: str, f: Formula, window: int, where: str) -> None:
        """LRN with k = 1. Caffe divides its alpha by the numbers in the window."""
        if f.size % 2 == 0 or not f.k:
            raise UserError(f"LRN with size {f.size} and k {f.k}: Caffe needs an odd size and a k")
        alpha = f.alpha / f.k * window
        values = f"{where}local_size: {f.size} alpha: {alpha!r} beta: {f.beta!r}"
        self.add(name, "LRN", f"lrn_param {{ {values} }}")

    def _add_power(self, name: str, f: Formula) -> None:
        if f.k != 1:
            self.add(f"{name}_k", "Power", f"power_param {{ scale: {f.k**-f.beta!r} }}")

    def weights(self) -> bytes:
        """The .caffemodel."""
        net = CLASSES["Net"](name="alexnet_jax")
        for name, arrays in self.arrays.items():
            layer = net.layer.add(name=name, type=self.types[name])
            for array in arrays:
                blob = layer.blobs.add(data=[np.ascontiguousarray(array, "<f4").tobytes()])
                blob.shape.dim.extend(array.shape)
        content: bytes = net.SerializeToString()
        return content
