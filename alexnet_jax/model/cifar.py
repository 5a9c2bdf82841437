"""The small nets that the authors trained on CIFAR-10 (§3.1, §3.3): layers in one row."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from alexnet_jax import config
from alexnet_jax.model.layers import (
    DropoutKey,
    Logits,
    TowerConv,
    TowerDense,
    average_pool_over_edges,
    max_pool_over_edges,
    normalise_across_maps,
    normalise_within_maps,
    parameter,
)

Step = Callable[[jax.Array], jax.Array]


class ConvLayer(TowerConv):
    """A convolution and what follows it: pooling, an activation, a response normalisation."""

    def __init__(
        self, c: config.Cifar, layer: config.CifarLayer, seen: int, rngs: nnx.Rngs
    ) -> None:
        super().__init__(layer.window, seen, layer.units, **_initial(layer, rngs))
        steps = _steps(c)
        # A maximum plus the bias is the maximum of all plus the bias, and fewer are added.
        first = 1 if layer.then[:1] == ("max",) else 0
        self.first = tuple(steps[name] for name in layer.then[:first])
        self.then = tuple(steps[name] for name in layer.then[first:])

    def before_bias(self, x: jax.Array) -> jax.Array:
        """Pooling by maxima, if it comes first."""
        return _in_turn(self.first, x)

    def after(self, x: jax.Array) -> jax.Array:
        """The other steps."""
        return _in_turn(self.then, x)


class LocalLayer(nnx.Module):
    """A locally connected layer: a convolution whose kernels and biases each place has for itself.

    Its kernel is [height, width, window * window * seen, maps], its bias [height, width, maps]. The
    window is centred, and what is outside of the maps is zero, so the sides stay as they are.
    """

    def __init__(
        self, c: config.Cifar, layer: config.CifarLayer, shape: tuple[int, ...], rngs: nnx.Rngs
    ) -> None:
        """`shape` is the input's, [height, width, seen]."""
        height, width, seen = shape
        self.name, self.window = layer.name, layer.window
        kernel = (height, width, layer.window**2 * seen, layer.units)
        weights = layer.std * jax.random.normal(rngs.params(), kernel)
        self.kernel = parameter(weights, None, None, None, None)
        self.bias = parameter(jnp.zeros((height, width, layer.units)), None, None, None)
        self.then = tuple(_steps(c)[name] for name in layer.then)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, height, width, seen] -> [b, height, width, maps], or less if pooling follows."""
        with jax.named_scope(self.name):
            kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
            x = jnp.einsum("bhwk,hwkn->bhwn", self._windows(x), kernel) + bias
            return _in_turn(self.then, x)

    def _windows(self, x: jax.Array) -> jax.Array:
        """What each place sees: [b, height, width, window * window * seen], row by row."""
        _, height, width, _ = x.shape
        edge = (self.window // 2, (self.window - 1) // 2)
        x = jnp.pad(x, ((0, 0), edge, edge, (0, 0)))
        places = itertools.product(range(self.window), repeat=2)
        parts = [x[:, down : down + height, right : right + width] for down, right in places]
        return jnp.concatenate(parts, axis=-1)


class DenseLayer(TowerDense):
    """A hidden fully connected layer and its activation."""

    def __init__(
        self, c: config.Cifar, layer: config.CifarLayer, places: int, seen: int, rngs: nnx.Rngs
    ) -> None:
        super().__init__(places, seen, layer.units, **_initial(layer, rngs))
        self.then = tuple(_steps(c)[name] for name in layer.then)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, ..., seen] -> [b, neurons], in x's dtype."""
        return _in_turn(self.then, super().__call__(x))


class CifarNet(nnx.Module):
    """The layers that `config.Cifar` lists. Pooling halves a side, rounded up: 32, 16, 8, 4."""

    def __init__(self, c: config.Cifar, crop: int, dtype: str, rngs: nnx.Rngs) -> None:
        """A net for images of crop x crop pixels that computes in `dtype`."""
        self.dtype, self.names = jnp.dtype(dtype), c.names
        shape = (1, crop, crop, 3)
        for layer in c.layers:
            module = _module(c, layer, shape, rngs)
            setattr(self, layer.name, module)
            image = jax.ShapeDtypeStruct(shape, self.dtype)
            shape = jax.eval_shape(partial(_call, module), image).shape

    def outputs(self, images: jax.Array, draw: DropoutKey | None = None) -> dict[str, jax.Array]:
        """The output of every layer, by name; the last are the logits, [b, classes] float32.

        Args:
          images: [b, crop, crop, 3], the mean subtracted.
          draw: no use is made of it: these nets have no dropout.
        """
        del draw
        out, x = {}, images.astype(self.dtype)
        for name in self.names:
            x = out[name] = _call(getattr(self, name), x)
        return out

    def __call__(self, images: jax.Array, draw: DropoutKey | None = None) -> jax.Array:
        """The logits, [b, classes] float32, of `images` as in `outputs`."""
        return self.outputs(images, draw)[self.names[-1]]


Layer = ConvLayer | LocalLayer | DenseLayer | Logits


def _module(
    c: config.Cifar, layer: config.CifarLayer, shape: tuple[int, ...], rngs: nnx.Rngs
) -> Layer:
    """The layer for inputs of `shape`."""
    _, *places, seen = shape
    if layer.kind == "conv":
        return ConvLayer(c, layer, seen, rngs)
    if layer.kind == "local":
        return LocalLayer(c, layer, shape[1:], rngs)
    if layer.name == c.names[-1]:
        return Logits(math.prod(places) * seen, layer.units, **_initial(layer, rngs))
    return DenseLayer(c, layer, math.prod(places), seen, rngs)


def _call(layer: Layer, x: jax.Array) -> jax.Array:
    return layer(x.reshape(x.shape[0], -1) if isinstance(layer, Logits) else x)


def _initial(layer: config.CifarLayer, rngs: nnx.Rngs) -> dict[str, Any]:
    """What a layer is told of its parameters."""
    return {"name": layer.name, "std": layer.std, "bias": 0.0, "rngs": rngs}


def _steps(c: config.Cifar) -> dict[str, Step]:
    """What can follow a layer, by its name in the config."""
    pool: dict[str, Any] = {"window": c.pool_window, "stride": c.pool_stride}
    return {
        "relu": jax.nn.relu,
        "tanh": jnp.tanh,
        "max": partial(max_pool_over_edges, **pool),
        "average": partial(average_pool_over_edges, **pool),
        "within_map": partial(normalise_within_maps, formula=c.within_map),
        "across_maps": lambda x: normalise_across_maps(x, c.across_maps, x.shape[-1]),
    }


def _in_turn(steps: tuple[Step, ...], x: jax.Array) -> jax.Array:
    for step in steps:
        x = step(x)
    return x
