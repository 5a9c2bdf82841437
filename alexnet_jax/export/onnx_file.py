"""A network as an ONNX graph: operators Sub, Conv, Relu, LRN, MaxPool, Gemm and a few more."""

from collections.abc import Mapping, Sequence
from typing import Any

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
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.messages import check_size

OPSET, IR_VERSION = 17, 8
ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}


def onnx_bytes(operators: Sequence[Operator], mean: np.ndarray, about: Mapping[str, str]) -> bytes:
    """The file. Its input 'image' are crops, red, green and blue on 0..255; its output 'logits'.

    Args:
      operators: of the network, in the layout 'torch'.
      mean: what is subtracted from an image: float32 [crop, crop, 3].
      about: metadata.

    Raises:
      UserError: the package onnx is not installed, ONNX has no such operation, or the file would
        have more than 2 GB.
    """
    graph = _Graph()
    x = graph.add("Sub", "image", graph.tensor("mean", mean.transpose(2, 0, 1)[None]))
    flat = False
    for operator in operators:
        if isinstance(operator, Dense) and not flat:
            x, flat = graph.add("Flatten", x, axis=1), True
        x = graph.add_operator(operator, x)
    last = operators[-1]
    assert isinstance(last, Dense)
    return graph.file(crop=len(mean), classes=len(last.bias), about=about)


class _Graph:
    """Nodes and tensors so far."""

    def __init__(self) -> None:
        try:
            import onnx
        except ImportError:
            raise UserError(
                "ONNX files need the package onnx: pip install 'alexnet-jax[onnx]'"
            ) from None
        self.onnx: Any = onnx
        self.nodes: list[Any] = []
        self.tensors: dict[str, np.ndarray] = {}

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output, and its name."""
        return self.add_several(kind, *inputs, outputs=1, **attributes)[0]

    def add_several(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        names = [f"{kind.lower()}{len(self.nodes)}_{n}" for n in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, names, **attributes))
        return names

    def tensor(self, name: str, value: np.ndarray | float) -> str:
        self.tensors[name] = np.ascontiguousarray(value, np.float32)
        return name

    def constant(self, value: float) -> str:
        return self.tensor(f"constant{len(self.tensors)}", value)

    def add_operator(self, operator: Operator, x: str) -> str:
        match operator:
            case Conv() | Dense():
                return self._with_weights(operator, x)
            case Activation(kind):
                return self.add(ACTIVATIONS[kind], x)
            case Pool(kind, window, stride, hang, _):
                how = {"kernel_shape": [window] * 2, "strides": [stride] * 2}
                how["pads"] = [0, 0, hang, hang]
                return self.add("MaxPool" if kind == "max" else "AveragePool", x, **how)
            case Lrn(formula, parts):
                return self._lrn(formula, parts, x)
            case LrnWithin(formula):
                return self._lrn_within(formula, x)
            case Dropout():
                return x

    def _with_weights(self, operator: Conv | Dense, x: str) -> str:
        kernel = self.tensor(f"{operator.name}.weight", operator.kernel)
        bias = self.tensor(f"{operator.name}.bias", operator.bias)
        if isinstance(operator, Dense):
            return self.add("Gemm", x, kernel, bias, transB=1)
        how = {
            "strides": [operator.stride] * 2,
            "pads": [operator.before] * 2 + [operator.after] * 2,
        }
        return self.add("Conv", x, kernel, bias, group=operator.groups, **how)

    def _lrn(self, f: Formula, parts: int, x: str) -> str:
        if f.size % 2 == 0:
            raise UserError(f"LRN over {f.size} maps: ONNX's runtime takes odd numbers only")
        how = {"size": f.size, "bias": f.k, "alpha": f.alpha * f.size, "beta": f.beta}
        if parts == 1:
            return self.add("LRN", x, **how)
        towers = self.add_several("Split", x, outputs=parts, axis=1)
        return self.add("Concat", *(self.add("LRN", one, **how) for one in towers), axis=1)

    def _lrn_within(self, f: Formula, x: str) -> str:
        """x / (k + alpha n^2 mean)^beta, with the mean of the squares over n x n places."""
        before, after = f.size // 2, (f.size - 1) // 2
        how = {"kernel_shape": [f.size] * 2, "pads": [before] * 2 + [after] * 2}
        mean = self.add("AveragePool", self.add("Mul", x, x), count_include_pad=1, **how)
        scaled = self.add("Mul", mean, self.constant(f.alpha * f.size**2))
        base = self.add("Add", scaled, self.constant(f.k))
        return self.add("Div", x, self.add("Pow", base, self.constant(f.beta)))

    def file(self, crop: int, classes: int, about: Mapping[str, str]) -> bytes:
        """The checked file; the last node gives the logits."""
        check_size(self.tensors.values(), "ONNX")
        helper, number = self.onnx.helper, self.onnx.TensorProto.FLOAT
        self.nodes[-1].output[0] = "logits"
        image = helper.make_tensor_value_info("image", number, ["batch", 3, crop, crop])
        logits = helper.make_tensor_value_info("logits", number, ["batch", classes])
        tensors = [self.onnx.numpy_helper.from_array(a, name) for name, a in self.tensors.items()]
        graph = helper.make_graph(self.nodes, "alexnet_jax", [image], [logits], tensors)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(
            graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="alexnet_jax"
        )
        helper.set_model_props(model, dict(about))
        self.onnx.checker.check_model(model)
        content: bytes = model.SerializeToString()
        return content
