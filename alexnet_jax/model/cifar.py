"""The small nets that the authors trained on CIFAR-10 (§3.1, §3.3): layers in one row."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from alexnet_jax import config
from alexnet_jax.model.layers import (
    Draw,
    Logits,
    TowerConv,
    TowerDense,
    average_pool_over_edges,
    max_pool_over_edges,
    normalise_within_maps,
)

Step = Callable[[jax.Array], jax.Array]


class CifarNet(nnx.Module):
    """The layers that `config.Cifar` lists. Pooling halves a side, rounded up: 32, 16, 8, 4."""

    def __init__(self, c: config.Cifar, crop: int, dtype: str, rngs: nnx.Rngs) -> None:
        """A net for pictures of crop x crop pixels that computes in `dtype`."""
        self.dtype, self.names = jnp.dtype(dtype), c.names
        self.steps = tuple(tuple(_steps(c, layer)) for layer in c.layers)
        shape = (1, crop, crop, 3)
        for layer, steps in zip(c.layers, self.steps, strict=True):
            module = _module(c, layer, shape, rngs)
            setattr(self, layer.name, module)
            image = jax.ShapeDtypeStruct(shape, self.dtype)
            shape = jax.eval_shape(partial(_layer, module, steps), image).shape

    def outputs(self, images: jax.Array, draw: Draw | None = None) -> dict[str, jax.Array]:
        """The output of every layer, by name; the last are the logits, [b, classes] float32.

        Args:
          images: [b, crop, crop, 3], the mean subtracted.
          draw: no use is made of it: these nets have no dropout.
        """
        del draw
        out, x = {}, images.astype(self.dtype)
        for name, steps in zip(self.names, self.steps, strict=True):
            x = out[name] = _layer(getattr(self, name), steps, x)
        return out

    def __call__(self, images: jax.Array, draw: Draw | None = None) -> jax.Array:
        """The logits, [b, classes] float32, of `images` as in `outputs`."""
        return self.outputs(images, draw)[self.names[-1]]


def _layer(
    module: TowerConv | TowerDense | Logits, steps: tuple[Step, ...], x: jax.Array
) -> jax.Array:
    if isinstance(module, Logits):
        x = x.reshape(x.shape[0], -1)
    x = module(x)
    with jax.named_scope(module.name):
        for step in steps:
            x = step(x)
    return x


def _steps(c: config.Cifar, layer: config.CifarLayer) -> Iterator[Step]:
    """What follows the layer, in order."""
    pool: dict[str, Any] = {"window": c.pool_window, "stride": c.pool_stride}
    known: dict[str, Step] = {
        "relu": jax.nn.relu,
        "tanh": jnp.tanh,
        "max": partial(max_pool_over_edges, **pool),
        "average": partial(average_pool_over_edges, **pool),
        "within_map": partial(normalise_within_maps, formula=c.within_map),
    }
    return (known[name] for name in layer.then)


def _module(
    c: config.Cifar, layer: config.CifarLayer, shape: tuple[int, ...], rngs: nnx.Rngs
) -> TowerConv | TowerDense | Logits:
    """The layer for inputs of `shape`."""
    initial: dict[str, Any] = {"name": layer.name, "std": layer.std, "bias": 0.0, "rngs": rngs}
    _, *places, seen = shape
    if layer.kind == "conv":
        return TowerConv(layer.window, seen, layer.units, **initial)
    if layer.name == c.names[-1]:
        return Logits(math.prod(places) * seen, layer.units, **initial)
    return TowerDense(math.prod(places), seen, layer.units, **initial)
