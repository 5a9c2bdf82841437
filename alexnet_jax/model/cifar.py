"""The small nets that the authors trained on CIFAR-10 (§3.1, §3.3): layers in a row, no towers."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from alexnet_jax import config
from alexnet_jax.model import ops
from alexnet_jax.model.layers import Conv, Dense, Initial, Logits, Seen
from alexnet_jax.model.ops import DropoutKey
from alexnet_jax.model.towers import Operation, Towers, each


class CifarNet(nnx.Module):
    """The layers that `config.Cifar` lists. Pooling halves a side, rounded up: 32, 16, 8, 4."""

    def outputs(
        self, images: Float[Array, "b h w 3"], key: DropoutKey | None = None
    ) -> dict[str, Float[Array, " b *units"]]:
        """The output of every layer, by name; the last are the logits, float32.

        Args:
          images: [b, crop, crop, 3], with the mean subtracted.
          key: not used, as these nets have no dropout.
        """
        del key
        out, x = {}, [images.astype(self.dtype)]
        *hidden, last = self.config.layers
        for layer in hidden:
            x = self._hidden(layer, x)
            out[layer.name] = x[0]
        return out | {last.name: getattr(self, last.name)(x)}

    def _hidden(self, c: config.CifarLayer, x: Towers) -> Towers:
        """A hidden layer and the operations that follow it."""
        layer, then = getattr(self, c.name), c.then
        if isinstance(layer, Conv) and then[:1] == ("max",):
            # A maximum and a bias may change places, and then the bias is added to less.
            x, then = layer(x, before_bias=_operation("max", self.config)), then[1:]
        else:
            x = layer(x)
        for name in then:
            x = each(_operation(name, self.config))(x)
        return x

    def __call__(
        self, images: Float[Array, "b h w 3"], key: DropoutKey | None = None
    ) -> Float[Array, "b classes"]:
        """The logits, float32, of `images` as in `outputs`."""
        return self.outputs(images, key)[self.config.names[-1]]

    def __init__(self, c: config.Cifar, crop: int, dtype: str, rngs: nnx.Rngs) -> None:
        """A net for images of crop x crop pixels that computes in `dtype`."""
        self.dtype, self.config = jnp.dtype(dtype), c
        shape: tuple[int, ...] = (crop, crop, 3)
        for layer in c.layers:
            height, width, maps = (1, 1, *shape)[-3:]
            setattr(self, layer.name, _layer(layer, (height, width, maps), c, rngs))
            if layer.name != c.names[-1]:
                image = jax.ShapeDtypeStruct((1, *shape), self.dtype)
                (output,) = jax.eval_shape(partial(self._hidden, layer), [image])
                shape = output.shape[1:]


class Local(nnx.Module):
    """A locally connected layer: a convolution with kernels and biases of its own for each place.

    Its kernel is [height, width, window * window * seen, maps], its bias [height, width, maps]. The
    window is centred and sees zeros outside of the maps, so the sides stay as they are.
    """

    def __init__(self, initial: Initial, window: int, seen: Seen, maps: int) -> None:
        self.name, self.window = initial.name, window
        places = {"height": seen[0], "width": seen[1]}
        axes = places | {"in": window**2 * seen[2], "out": maps}
        self.kernel = initial.weights(axes, split="")
        self.bias = initial.biases(places | {"out": maps}, split="")

    def __call__(self, x: Towers) -> Towers:
        """[b, height, width, seen] -> [b, height, width, maps]."""
        with jax.named_scope(self.name):
            kernel = self.kernel[...].astype(x[0].dtype)
            products = jnp.einsum("bhwk,hwkn->bhwn", self._windows(x[0]), kernel)
            return [ops.add_bias(products, self.bias[...])]

    def _windows(self, x: jax.Array) -> jax.Array:
        """What each place sees: [b, height, width, window * window * seen], row by row."""
        _, height, width, _ = x.shape
        edge = (self.window // 2, (self.window - 1) // 2)
        x = jnp.pad(x, ((0, 0), edge, edge, (0, 0)))
        places = itertools.product(range(self.window), repeat=2)
        parts = [x[:, down : down + height, right : right + width] for down, right in places]
        return jnp.concatenate(parts, axis=-1)


def _layer(
    layer: config.CifarLayer, seen: Seen, c: config.Cifar, rngs: nnx.Rngs
) -> Conv | Local | Dense | Logits:
    initial = Initial(layer.name, layer.std, 0.0, rngs)
    if layer.kind == "conv":
        return Conv(initial, layer.window, seen[-1], layer.units, towers=1)
    if layer.kind == "local":
        return Local(initial, layer.window, seen, layer.units)
    if layer.name == c.names[-1]:
        return Logits(initial, seen, layer.units)
    return Dense(initial, seen, layer.units, towers=1)


def _operation(name: str, c: config.Cifar) -> Operation:
    """What can follow a layer, by its name in the config."""
    window, stride = c.pool_window, c.pool_stride
    operations: dict[str, Operation] = {
        "relu": ops.relu,
        "tanh": jnp.tanh,
        "sigmoid": jax.nn.sigmoid,
        "max": partial(ops.max_pool_over_edges, window=window, stride=stride),
        "average": partial(ops.average_pool_over_edges, window=window, stride=stride),
        "within_map": partial(ops.lrn_within, formula=c.within_map),
        "across_maps": partial(ops.lrn, formula=c.across_maps),
    }
    return operations[name]
