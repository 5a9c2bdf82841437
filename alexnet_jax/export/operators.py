"""A network as a list of plain operators with their arrays: what the formats are written from."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from alexnet_jax import config
from alexnet_jax.config import Formula
from alexnet_jax.model import ops
from alexnet_jax.model.layouts import LAYOUTS, Layout, paddings, to_layout
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.runtime.errors import UserError


class Conv(NamedTuple):
    """A convolution. Each of its `groups` sees its own share of the maps."""

    name: str
    kernel: np.ndarray  # float32 [out, in, height, width]
    bias: np.ndarray  # float32 [out]
    stride: int  # pixels
    before: int  # zeros above and to the left
    after: int  # zeros below and to the right
    groups: int


class Dense(NamedTuple):
    """A fully connected layer. Maps are flattened in the order maps, height, width."""

    name: str
    kernel: np.ndarray  # float32 [out, in]
    bias: np.ndarray  # float32 [out]


class Activation(NamedTuple):
    """A function of each number."""

    kind: config.Activation


class Pool(NamedTuple):
    """Pooling. What lies outside of the maps does not count."""

    kind: Literal["max", "average"]
    window: int
    stride: int
    hang: int  # how far the last windows hang over the far edges
    rest: int  # pixels at the far edges that no window reaches


class Lrn(NamedTuple):
    """LRN over neighbouring maps, in each of so many equal parts of the maps by itself."""

    formula: Formula
    parts: int


class LrnWithin(NamedTuple):
    """Response normalization over a window of each map."""

    formula: Formula


class Dropout(NamedTuple):
    """Dropout that scales in training what is left; in testing it does nothing."""

    rate: float


Operator = Conv | Dense | Activation | Pool | Lrn | LrnWithin | Dropout


def operators_of(
    c: config.Config, network: ShardedModel, params: Mapping[str, Any], layout: Layout
) -> list[Operator]:
    """The operators of a network in testing, in order.

    Args:
      c: its config.
      network: of the config.
      params: its parameters, on the host.
      layout: of the kernels: 'torch', or 'caffe' for colours in the order blue, green, red. In
        both the kernels after dropout are scaled, see `model.layouts`.

    Raises:
      UserError: it has layers that other programs do not have.
    """
    if local := [name for name, of in network.shapes.items() if len(of["bias"].shape) > 1]:
        raise UserError(f"{local[0]} is locally connected, and the formats have no such layer")
    found = _Operators(c, network, to_layout(params, network, layout), layout)
    if isinstance(c.model, config.AlexNet):
        found.add_alexnet(c.model)
    else:
        found.add_cifar(c.model)
    return found.operators


class _Operators:
    """Operators so far, with the side and the number of the maps that they give."""

    def __init__(
        self,
        c: config.Config,
        network: ShardedModel,
        tensors: Mapping[str, np.ndarray],
        layout: Layout,
    ) -> None:
        self.operators: list[Operator] = []
        self.module, self.tensors, self.names = network.module(), tensors, LAYOUTS[layout]
        self.paddings = paddings(network, c.data.crop)
        self.side, self.maps = c.data.crop, 3

    def add_alexnet(self, c: config.AlexNet) -> None:
        """As `AlexNet.outputs` and `ArrangedAlexNet.outputs`."""
        module, relu = self.module, Activation(c.activation)

        def conv(name: str, *then: Operator | None) -> None:
            if name != c.without:  # it then has no LRN, and ReLU twice is ReLU
                self._conv(name)
                self.operators += [one for one in then if one]

        def pool() -> None:
            self._pool("max", c.pool_window, c.pool_stride, c.pool_over_edges)

        parts = 1 if c.lrn_over_towers else c.towers
        norm1, norm2 = (lrn and Lrn(lrn.formula, parts) for lrn in (module.lrn1, module.lrn2))
        within = module.lrn_within and LrnWithin(module.lrn_within.formula)
        for name, norms in (("conv1", [norm1]), ("conv2", [norm2, within])):
            if c.lrn_after_pooling:
                conv(name, relu)
                pool()
                self.operators += [norm for norm in norms if norm]
                continue
            before = name in c.lrn.before_activation
            conv(name, *((*norms, relu) if before else (relu, *norms)))
            pool()
        for name in ("conv3", "conv4", "conv5"):
            conv(name, relu)
        pool()
        if module.conv6 is not None:
            conv("conv6", relu)
        for name in ("fc6", "fc7", "fc8"):
            if c.dropout and name in c.dropout_before:
                self.operators.append(Dropout(c.dropout))
            self._dense(name)
            self.operators += [relu] if name != "fc8" else []

    def add_cifar(self, c: config.Cifar) -> None:
        """As `CifarNet.outputs`."""
        for layer in c.layers:
            (self._conv if layer.kind == "conv" else self._dense)(layer.name)
            for then in layer.then:
                if then == "max":
                    self._pool("max", c.pool_window, c.pool_stride, over_edges=True)
                elif then == "average":
                    self._pool("average", c.pool_window, c.pool_stride, over_edges=True)
                elif then == "within_map":
                    self.operators.append(LrnWithin(c.within_map))
                elif then == "across_maps":
                    self.operators.append(Lrn(c.across_maps, 1))
                else:
                    self.operators.append(Activation(then))

    def _parameters(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        kernel, bias = (
            self.tensors[f"{name}.{part}"] for part in (self.names.kernel, self.names.bias)
        )
        return np.asarray(kernel, np.float32), np.asarray(bias, np.float32)

    def _conv(self, name: str) -> None:
        kernel, bias = self._parameters(name)
        layer, window = getattr(self.module, name), kernel.shape[2]
        before, after = self.paddings[name]
        groups = self.maps // kernel.shape[1]
        self.operators.append(Conv(name, kernel, bias, layer.stride, before, after, groups))
        self.side = (self.side + before + after - window) // layer.stride + 1
        self.maps = len(kernel)

    def _dense(self, name: str) -> None:
        self.operators.append(Dense(name, *self._parameters(name)))

    def _pool(
        self, kind: Literal["max", "average"], window: int, stride: int, over_edges: bool
    ) -> None:
        hang = ops.hang_over(self.side, window, stride) if over_edges else 0
        outputs = ops.pooled_side(self.side, window, stride, over_edges=over_edges)
        rest = self.side + hang - window - (outputs - 1) * stride
        self.operators.append(Pool(kind, window, stride, hang, rest))
        self.side = outputs
