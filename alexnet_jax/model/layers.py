"""The layers of §3, for one tower or for two that lie on the same device.

Arrays are [batch, height, width, maps] or [batch, neurons]; tower A's maps come first, then B's.
How many towers are here follows from shapes: a kernel [.., seen, n] whose input has twice the maps
that it sees is two towers' kernels side by side. Each tower is computed by itself: as one grouped
convolution the gradient would take about eleven times as long on a CPU.
"""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from alexnet_jax.config import Formula
from alexnet_jax.model.towers import TOWER, first_tower, sum_towers


def parameter(value: jax.Array, *spec: str | None) -> nnx.Param[Any]:
    """A parameter that knows over which axis of the device grid each of its own is split."""
    return nnx.Param(value, out_sharding=spec, eager_sharding=False)


class TowerConv(nnx.Module):
    """A convolution with bias, in each tower by itself (§3.5).

    Its kernel is [window, window, seen, kernels] over both towers, its bias [kernels].
    """

    def __init__(
        self,
        window: int,
        seen: int,
        kernels: int,
        *,
        name: str,
        std: float,
        bias: float,
        rngs: nnx.Rngs,
        stride: int = 1,
    ) -> None:
        """`seen` counts the maps that each kernel sees; `std` and `bias` are the initial values."""
        self.name = name  # in profiles and compiled programs
        weights = std * jax.random.normal(rngs.params(), (window, window, seen, kernels))
        self.kernel = parameter(weights, None, None, None, TOWER)
        self.bias = parameter(jnp.full(kernels, bias), TOWER)
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, towers here * seen] -> [b, h', w', kernels here], in x's dtype."""
        with jax.named_scope(self.name):
            kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
            towers = x.shape[-1] // kernel.shape[-2]
            parts = (jnp.split(whole, towers, axis=-1) for whole in (x, kernel, bias))
            outputs = [
                self.after(_add_bias(self.before_bias(self._convolve(x, k)), b))
                for x, k, b in zip(*parts, strict=True)
            ]
            return jnp.concatenate(outputs, axis=-1)

    def before_bias(self, x: jax.Array) -> jax.Array:
        """What may come first as no constant changes it: a maximum, which leaves less to add to."""
        return x

    def after(self, x: jax.Array) -> jax.Array:
        """What follows in each tower by itself; for layers that add something."""
        return x

    def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        window, _, seen, _ = kernel.shape
        padding = tuple(self.padding(side, window) for side in x.shape[1:3])
        strides = (self.stride, self.stride)
        few = seen <= 4 and self.stride == 1 and jax.default_backend() == "cpu"
        convolve = _convolve_in_pairs if few else _convolve
        return convolve(x, kernel, strides, padding)

    def padding(self, side: int, window: int) -> tuple[int, int]:
        """Zeros before and after a side of `side` pixels.

        A layer with stride 1 keeps its input's size. With a stride the last window may hang over
        the far edge, as in the 2012 code, which rounds the number of windows up: 224 pixels,
        window 11 and stride 4 give 55 outputs and a padding of (0, 3).
        """
        if self.stride == 1:
            return (window // 2, (window - 1) // 2)
        outputs = -(-(side - window) // self.stride) + 1
        return (0, (outputs - 1) * self.stride + window - side)


Padding = tuple[tuple[int, int], ...]
"""Zeros before and after each side of a image."""


def _convolve(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_in_pairs(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """As `_convolve` with stride 1; for the few colours of a image it is faster on a CPU.

    With so few values in a window, most of the time goes into fetching them. Here two neighbouring
    pixels stand as one with twice the colours, and two kernels, the second moved by a pixel, as one
    with twice the maps: more products, but 0.6 to 0.7 of the time. The gradients, which would gain
    nothing, are `_convolve`'s.
    """
    batch, _, width, seen = x.shape
    window, maps = kernel.shape[0], kernel.shape[-1]
    outputs = width + sum(padding[1]) - window + 1
    pairs, beyond = -(-outputs // 2), window // 2  # of outputs, and of pixels to their right
    right = 2 * (pairs + beyond) - width - padding[1][0]
    x = jnp.pad(x, ((0, 0), padding[0], (padding[1][0], right), (0, 0)))
    x = x.reshape(batch, x.shape[1], pairs + beyond, 2 * seen)
    room = 2 * (1 + beyond) - window
    moved = [jnp.pad(kernel, ((0, 0), (by, room - by), (0, 0), (0, 0))) for by in (0, 1)]
    kernels = jnp.stack(moved, axis=-2).reshape(window, 1 + beyond, 2 * seen, 2 * maps)
    y = _convolve(x, kernels, strides, ((0, 0), (0, 0)))
    return y.reshape(batch, y.shape[1], 2 * pairs, maps)[:, :, :outputs]


def _convolve_in_pairs_forward(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve_in_pairs(x, kernel, strides, padding), (x, kernel)


def _convolve_in_pairs_backward(
    strides: tuple[int, int], padding: Padding, saved: tuple[jax.Array, jax.Array], pull: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(lambda x, kernel: _convolve(x, kernel, strides, padding), *saved)[1](pull)


_convolve_in_pairs.defvjp(_convolve_in_pairs_forward, _convolve_in_pairs_backward)


def _add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x + bias, [b, h, w, maps] + [maps].

    Written as a product with ones, which the compiler turns into an addition, for the sake of its
    gradient: on a CPU a matrix product sums up to five times as fast as XLA's own sum.
    """
    # Like x, they are each device's own, and so is what they give. Were they the same for all, the
    # gradient would be summed over the devices before it is summed over the places.
    places = jnp.ones_like(x, shape=(math.prod(x.shape[:-1]), 1))
    return x + (places @ bias[None]).reshape(x.shape)


class TowerDense(nnx.Module):
    """A fully connected layer with bias, in each tower by itself.

    Its kernel is [places * seen, neurons] over both towers; the inputs are flattened with the maps
    last, which is what a reshape of [height, width, maps] gives.
    """

    def __init__(
        self,
        places: int,
        seen: int,
        neurons: int,
        *,
        name: str,
        std: float,
        bias: float,
        rngs: nnx.Rngs,
    ) -> None:
        """`seen` counts the maps, each of `places` pixels, that a neuron sees."""
        self.name = name
        weights = std * jax.random.normal(rngs.params(), (places * seen, neurons))
        self.kernel = parameter(weights, None, TOWER)
        self.bias = parameter(jnp.full(neurons, bias), TOWER)
        self.seen = seen

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, ..., towers here * seen] -> [b, neurons here], in x's dtype."""
        with jax.named_scope(self.name):
            kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
            towers = x.shape[-1] // self.seen
            inputs, kernels = jnp.split(x, towers, axis=-1), jnp.split(kernel, towers, axis=-1)
            pairs = zip(inputs, kernels, strict=True)
            outputs = [part.reshape(part.shape[0], -1) @ kernel for part, kernel in pairs]
            return jnp.concatenate(outputs, axis=-1) + bias


class Logits(nnx.Module):
    """Layer 8, the one whose neurons belong to no tower: each device adds what its inputs give.

    The kernel [neurons, classes] is split by rows, so that a device multiplies the neurons that it
    has; only the sum of the partial logits crosses, once.
    """

    def __init__(
        self, neurons: int, classes: int, *, name: str, std: float, bias: float, rngs: nnx.Rngs
    ) -> None:
        self.name = name
        weights = std * jax.random.normal(rngs.params(), (neurons, classes))
        self.kernel = parameter(weights, TOWER, None)
        self.bias = parameter(jnp.full(classes, bias), None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, neurons here] -> [b, classes] float32, the same on both towers' devices."""
        with jax.named_scope(self.name):
            kernel = self.kernel[...].astype(x.dtype)
            partial = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
            return sum_towers(partial) + self.bias[...]


def normalise_across_maps(x: jax.Array, formula: Formula, maps: int) -> jax.Array:
    """Response normalisation over the nearest maps (§3.3).

    The window is centred, ends at the first and last map, and never leaves a tower of `maps` maps.
    The sum and the power are taken in float32; the result has x's shape and dtype.
    """

    def sums(values: jax.Array, before: int, after: int) -> jax.Array:
        towers = values.reshape(*values.shape[:-1], -1, maps)
        padded = jnp.pad(towers, [(0, 0)] * (towers.ndim - 1) + [(before, after)])
        shifted = (padded[..., start : start + maps] for start in range(formula.size))
        return reduce(jnp.add, shifted).reshape(values.shape)

    return _respond(x.astype(jnp.float32), formula, sums).astype(x.dtype)


def normalise_within_maps(x: jax.Array, formula: Formula) -> jax.Array:
    """Response normalisation over size x size places of the same map.

    The paper does not mention it; the 2012 code has it after layer 2. Precision as above.
    """

    def sums(values: jax.Array, before: int, after: int) -> jax.Array:
        padded = jnp.pad(values, ((0, 0), (before, after), (before, after), (0, 0)))
        across = reduce(jnp.add, _views(padded, 2, formula.size, stride=1))
        return reduce(jnp.add, _views(across, 1, formula.size, stride=1))

    return _respond(x.astype(jnp.float32), formula, sums).astype(x.dtype)


Sums = Callable[[jax.Array, int, int], jax.Array]
"""Sums over windows that reach so many neighbours before and after each value."""


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _respond(x: jax.Array, formula: Formula, sums: Sums) -> jax.Array:
    """The formula. Its gradient is written out, which takes half of the time."""
    return _respond_forward(x, formula, sums)[0]


def _respond_forward(
    x: jax.Array, formula: Formula, sums: Sums
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    before, after = formula.size // 2, (formula.size - 1) // 2
    base = formula.k + formula.alpha * sums(jnp.square(x), before, after)
    return x * _power(base, formula.beta), (x, base)


def _respond_backward(
    formula: Formula, sums: Sums, saved: tuple[jax.Array, jax.Array], pull: jax.Array
) -> tuple[jax.Array]:
    x, base = saved
    direct = pull * _power(base, formula.beta)
    # Those who have me in their window stand in my window's mirror image.
    through = sums(direct * x / base, (formula.size - 1) // 2, formula.size // 2)
    return (direct - 2 * formula.alpha * formula.beta * x * through,)


_respond.defvjp(_respond_forward, _respond_backward)


def _power(x: jax.Array, beta: float) -> jax.Array:
    """x ** -beta; the paper's 0.75 by square roots, which are faster than a power."""
    return lax.rsqrt(x * jnp.sqrt(x)) if beta == 0.75 else x**-beta


def max_pool(x: jax.Array, window: int, stride: int) -> jax.Array:
    """Overlapping pooling (§3.4): [b, h, w, maps] -> [b, (h - window) // stride + 1, .., maps].

    Of equal values the first in reading order is the maximum, and alone gets the gradient. Along
    the rows first and then down the columns: six views of the maps, not window^2 = 9.
    """
    with jax.named_scope("pool"):
        return _max_along(_max_along(x, 2, window, stride), 1, window, stride)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_along(x: jax.Array, axis: int, window: int, stride: int) -> jax.Array:
    return reduce(jnp.maximum, _views(x, axis, window, stride))


def _max_along_forward(
    x: jax.Array, axis: int, window: int, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    highest = _max_along(x, axis, window, stride)
    return highest, (x, highest)


def _max_along_backward(
    axis: int, window: int, stride: int, saved: tuple[jax.Array, jax.Array], pull: jax.Array
) -> tuple[jax.Array]:
    x, highest = saved
    parts, taken = [], jnp.zeros_like(highest, bool)
    for view in _views(x, axis, window, stride):
        here = (view == highest) & ~taken
        parts.append(jnp.where(here, pull, 0))
        taken |= here
    return (_put_back(parts, x.shape[axis], axis, stride),)


_max_along.defvjp(_max_along_forward, _max_along_backward)


def _views(x: jax.Array, axis: int, window: int, stride: int) -> list[jax.Array]:
    """For each place in a window, what all the windows along an axis have there."""
    last = x.shape[axis] - window
    return [lax.slice_in_dim(x, place, place + last + 1, stride, axis) for place in range(window)]


def _put_back(parts: list[jax.Array], side: int, axis: int, stride: int) -> jax.Array:
    """The transpose of `_views`: what each of `side` values gave to the views, summed.

    Every stride-th value stands at the same place in its windows. So each such set is a sum of
    whole parts, and the sets are laid between each other; no part is spread out by itself.
    """
    length = -(-side // stride)

    def of_set(first: int) -> jax.Array:
        own = list(enumerate(parts[first::stride]))
        return sum((_shifted(part, by, length, axis) for by, part in own), start=nothing)

    nothing = _shifted(jnp.zeros_like(parts[0]), 0, length, axis)
    sets = jnp.stack([of_set(first) for first in range(stride)], axis + 1)
    whole = sets.reshape(*sets.shape[:axis], -1, *sets.shape[axis + 2 :])
    return lax.slice_in_dim(whole, 0, side, axis=axis)


def _shifted(x: jax.Array, by: int, length: int, axis: int) -> jax.Array:
    """`x` moved along an axis that gets `length`, with zeros where nothing was."""
    edges = [(0, 0, 0)] * x.ndim
    edges[axis] = (by, length - x.shape[axis] - by, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def max_pool_over_edges(x: jax.Array, window: int, stride: int) -> jax.Array:
    """As `max_pool`, but the last windows may hang over the far edges, as in the 2012 code."""
    edges = _edges(x, window, stride)
    with jax.named_scope("pool"):
        return max_pool(jnp.pad(x, edges, constant_values=-jnp.inf), window, stride)


def average_pool_over_edges(x: jax.Array, window: int, stride: int) -> jax.Array:
    """Means over the same windows as `max_pool_over_edges`; what is outside does not count."""

    def total(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, _edges(x, window, stride))
        return _sum_along(_sum_along(x, 2, window, stride), 1, window, stride)

    with jax.named_scope("pool"):
        return total(x) / total(jnp.ones_like(x, shape=(1, *x.shape[1:3], 1)))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _sum_along(x: jax.Array, axis: int, window: int, stride: int) -> jax.Array:
    return reduce(jnp.add, _views(x, axis, window, stride))


def _sum_along_forward(
    x: jax.Array, axis: int, window: int, stride: int
) -> tuple[jax.Array, jax.Array]:
    return _sum_along(x, axis, window, stride), x


def _sum_along_backward(
    axis: int, window: int, stride: int, x: jax.Array, pull: jax.Array
) -> tuple[jax.Array]:
    return (_put_back([pull] * window, x.shape[axis], axis, stride),)


_sum_along.defvjp(_sum_along_forward, _sum_along_backward)


def _edges(x: jax.Array, window: int, stride: int) -> list[tuple[int, int]]:
    """Padding, on the far side only, for the last windows to be whole."""
    hang = [max(window - side, -(side - window) % stride) for side in x.shape[1:3]]
    return [(0, 0), (0, hang[0]), (0, hang[1]), (0, 0)]


class DropoutKey(NamedTuple):
    """Where the dropout masks of a step come from.

    The masks depend on the seed, the step, the layer, the tower and the example's place in the
    GLOBAL batch, so they are the same on every grid of devices and after a restart.
    """

    key: jax.Array  # of the seed and the step
    rows: jax.Array  # int32 [b]: the examples' places in the global batch


def dropout(
    x: jax.Array, rate: float, draw: DropoutKey | None, layer: int, neurons: int
) -> jax.Array:
    """Dropout as in §4.2: zero with chance `rate` in training, times 1 - rate in testing.

    Not the inverted form, which scales in training: with the paper's initial weights the two train
    differently. `draw` is None in testing; `neurons` are one tower's.
    """
    if not rate:
        return x
    if draw is None:
        return x * jnp.asarray(1 - rate, x.dtype)
    key = jax.random.fold_in(draw.key, layer)
    towers = first_tower() + jnp.arange(x.shape[-1] // neurons)

    def keep(row: jax.Array, tower: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(key, row), tower)
        return jax.random.bernoulli(own, 1 - rate, (neurons,))

    kept = jax.vmap(lambda row: jax.vmap(lambda tower: keep(row, tower))(towers))(draw.rows)
    return jnp.where(kept.reshape(x.shape), x, 0)
