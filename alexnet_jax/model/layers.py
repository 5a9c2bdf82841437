"""The layers with parameters: what each has in one tower, and how it is split between towers.

A parameter is declared once, by its axes: their names and sizes, the one that is split between the
towers, and the initial values. Its place on the devices, the table of `describe` and the layouts of
`weights` follow from that. The shapes are those of both towers together, tower A's share first, so
that one checkpoint serves any mesh.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from alexnet_jax.model import ops, towers
from alexnet_jax.model.forms import DEFAULT, LayerForm
from alexnet_jax.model.towers import TOWER, Towers

Axes = Mapping[str, int]
"""Names and sizes: {'height': 5, 'width': 5, 'in': 48, 'out': 256}."""

Seen = tuple[int, int, int]
"""Height, width and number of the maps that a fully connected neuron sees."""


class Initial(NamedTuple):
    """A layer's name, and how its parameters begin (§5)."""

    name: str  # in profiles and compiled programs
    std: float  # standard deviation of the weights
    bias: float
    rngs: nnx.Rngs

    def weights(self, axes: Axes, split: str, *, matrix: bool = False) -> nnx.Param[jax.Array]:
        """A kernel: normal numbers, of mean 0. A `matrix` is kept as [all other axes, out]."""
        inputs = math.prod(axes.values()) // axes["out"]
        kept = {"in": inputs, "out": axes["out"]} if matrix else axes
        value = self.std * jax.random.normal(self.rngs.params(), tuple(kept.values()))
        return _parameter(value, kept, split, axes)

    def biases(self, axes: Axes, split: str) -> nnx.Param[jax.Array]:
        """Constant biases."""
        return _parameter(jnp.full(tuple(axes.values()), self.bias), axes, split, axes)


def _parameter(value: jax.Array, kept: Axes, split: str, axes: Axes) -> nnx.Param[jax.Array]:
    spec = tuple(TOWER if name == split else None for name in kept)
    return nnx.Param(value, axes=dict(axes), out_sharding=spec, eager_sharding=False)


class TowerLayer(nnx.Module):
    """A layer whose units are shared out between the towers.

    Its kernel ends in the axis 'out', of all towers' units. A tower's own units see either the maps
    of the same tower or, after a meeting, those of both.
    """

    name: str
    towers: int
    kernel: nnx.Param[jax.Array]
    bias: nnx.Param[jax.Array]
    form = DEFAULT

    def in_each(
        self,
        product: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
        x: Towers,
        *,
        together: bool,
    ) -> Towers:
        """`product`(x, kernel, bias) for every tower here: [x's axes but the last, units].

        Args:
          product: of one tower, or of more; the kernel has x's dtype, the bias is float32.
          x: what each tower sees, or a list of one if all see the same.
          together: whether to compute one product for all towers here and split it.
        """
        here, kernel, bias = towers.here(self.towers), self.kernel[...], self.bias[...]
        kernel = kernel.astype(x[0].dtype)
        with jax.named_scope(self.name):
            if together:
                return towers.split(product(towers.concatenate(x), kernel, bias), here)
            x = x if len(x) == here else x * here
            kernels, biases = towers.split(kernel, here), towers.split(bias, here)
            return [product(*own) for own in zip(x, kernels, biases, strict=True)]

    def then(self, x: Towers, *operations: ops.Operation | None) -> Towers:
        """`operations` on what this layer gave, one after the other, in each tower by itself."""
        with jax.named_scope(self.name):
            return [ops.chain(one, *operations, form=self.form.then) for one in x]


class Conv(TowerLayer):
    """`maps` kernels of window x window x seen in each tower (§3.5)."""

    def __init__(
        self,
        initial: Initial,
        window: int,
        seen: int,
        maps: int,
        towers: int,
        *,
        stride: int = 1,
        zeros: int | None = None,
        form: LayerForm = DEFAULT,
    ) -> None:
        """The tower's share of a convolution.

        Args:
          initial: its name and first values.
          window: side of its kernels, pixels.
          seen: maps that each kernel sees.
          maps: kernels of each tower.
          towers: of the network.
          stride: pixels.
          zeros: at each edge of what it sees; None: see `ops.conv_padding`.
          form: how it and what follows it are computed.
        """
        self.name, self.towers, self.units = initial.name, towers, maps
        self.stride, self.zeros, self.form = stride, zeros, form
        axes = {"height": window, "width": window, "in": seen, "out": towers * maps}
        self.kernel = initial.weights(axes, split="out")
        self.bias = initial.biases({"out": towers * maps}, split="out")

    def __call__(
        self,
        x: Towers,
        *following: ops.Operation | None,
        before_bias: ops.Operation = lambda x: x,
    ) -> Towers:
        """The convolution, and `following` on it: [b, h, w, seen] -> [b, h', w', maps].

        `before_bias` comes before the bias is added: a maximum may, which no constant changes.
        """

        def product(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
            convolved = ops.convolve(x, kernel, self.stride, self.zeros)
            return ops.add_bias(before_bias(convolved), bias)

        return self.then(self.in_each(product, x, together=self._together(x)), *following)

    def _together(self, x: Towers) -> bool:
        """Whether the towers here are one convolution.

        On a CPU it is faster where all towers see the same; but where each sees its own maps, the
        gradient of a grouped convolution takes eleven times as long. On a GPU conv1's output would
        be split in a pass of its own, which is worth it on an H200: so `training.forms` tries it.
        """
        if self.form.together is not None:
            return self.form.together
        return len(x) == 1 and ops.platform() != "gpu"


class Dense(TowerLayer):
    """`neurons` fully connected neurons in each tower."""

    def __init__(self, initial: Initial, seen: Seen, neurons: int, towers: int) -> None:
        self.name, self.towers, self.units = initial.name, towers, neurons
        self.kernel = initial.weights(_axes(seen, towers * neurons), split="out", matrix=True)
        self.bias = initial.biases({"out": towers * neurons}, split="out")

    def __call__(self, x: Towers, *following: ops.Operation | None) -> Towers:
        """The neurons, and `following` on them: [b, h, w, maps] or [b, n] -> [b, neurons]."""

        def product(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
            return ops.add_bias(_flat(x) @ kernel, bias)

        return self.then(self.in_each(product, x, together=len(x) == 1), *following)


class Logits(nnx.Module):
    """Layer 8. Its neurons belong to no tower: each device adds what its own inputs give.

    The kernel is split by its inputs, so that a device multiplies the neurons that it has. Only the
    sum of the partial logits crosses.
    """

    def __init__(self, initial: Initial, seen: Seen, classes: int) -> None:
        """`seen` are the maps of both towers."""
        self.name = initial.name
        self.kernel = initial.weights(_axes(seen, classes), split="in", matrix=True)
        self.bias = initial.biases({"out": classes}, split="")

    def __call__(self, x: Towers) -> Float[Array, "b classes"]:
        """[b, neurons] -> [b, classes], float32 at least, the same on both towers' devices."""
        with jax.named_scope(self.name):
            mine = _flat(towers.concatenate(x))
            precise = jnp.promote_types(mine.dtype, jnp.float32)
            kernel = self.kernel[...].astype(mine.dtype)
            part = jnp.matmul(mine, kernel, preferred_element_type=precise)
            return towers.add(part) + self.bias[...]


class LeftOut(nnx.Module):
    """In the place of a convolution that the network does not have: what follows is still done."""

    def __init__(self, units: int) -> None:
        self.units = units

    def __call__(self, x: Towers, *following: ops.Operation | None) -> Towers:
        """`following` on `x` as it is."""
        return [ops.chain(one, *following) for one in x]

    then = __call__


def _axes(seen: Seen, neurons: int) -> Axes:
    return {"height": seen[0], "width": seen[1], "in": seen[2], "out": neurons}


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)
