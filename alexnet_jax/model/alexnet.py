"""The network of Fig. 2: eight layers in two towers that meet before layers 3, 6 and 7."""

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
    dropout,
    max_pool,
    normalise_across_maps,
    normalise_within_maps,
)
from alexnet_jax.model.towers import gather_towers
from alexnet_jax.runtime.errors import UserError

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"relu": jax.nn.relu, "tanh": jnp.tanh}


class ConvLayer(TowerConv):
    """A convolution, its activation (§3.1) and its response normalisations (§3.3)."""

    def __init__(
        self, c: config.AlexNet, name: str, window: int, seen: int, *, stride: int, rngs: nnx.Rngs
    ) -> None:
        kernels = _scaled(c.kernels[config.CONVOLUTIONS.index(name)], c)
        super().__init__(window, seen, kernels, stride=stride, **_initial(c, name, rngs))
        self.maps = kernels // c.towers  # a tower's
        self.steps = self._steps(c, name)

    def _steps(self, c: config.AlexNet, name: str) -> tuple[Callable[[jax.Array], jax.Array], ...]:
        """What follows the convolution, in order."""
        across = partial(normalise_across_maps, formula=c.lrn, maps=self.maps)
        within = partial(normalise_within_maps, formula=c.within_map)
        norms = [(r, f) for r, f in ((c.lrn, across), (c.within_map, within)) if name in r.layers]
        before = [norm for response, norm in norms if name in response.before_activation]
        after = [norm for response, norm in norms if name not in response.before_activation]
        return (*before, ACTIVATIONS[c.activation], *after)

    def after(self, x: jax.Array) -> jax.Array:
        """The activation and the normalisations."""
        for step in self.steps:
            x = step(x)
        return x


class LeftOut(nnx.Module):
    """In the place of a convolution that the network does not have: its input goes on."""

    def __init__(self, maps: int) -> None:
        self.maps = maps

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class AlexNet(nnx.Module):
    """The network of the paper, or one of its variations, as `config.AlexNet` says.

    The comments give the output of each layer at full size, on a device that holds both towers; on
    a pair of devices each has half of the last axis, tower A the first half.
    """

    def __init__(self, c: config.AlexNet, crop: int, dtype: str, rngs: nnx.Rngs) -> None:
        """A network for images of crop x crop pixels that computes in `dtype`.

        Raises:
          UserError: images that small leave nothing after three poolings.
        """
        self.cross, self.rate, self.dtype = c.cross, c.dropout, jnp.dtype(dtype)
        self.pool = partial(max_pool, window=c.pool_window, stride=c.pool_stride)
        self.neurons = tuple(_scaled(n, c) // c.towers for n in c.neurons)  # a tower's

        def conv(name: str, window: int, seen: int, stride: int = 1) -> ConvLayer | LeftOut:
            if name == c.without or name not in c.layers:
                return LeftOut(seen)
            return ConvLayer(c, name, window, seen, stride=stride, rngs=rngs)

        def towers(name: str) -> int:
            """How many towers the layer sees."""
            return c.towers if name in c.cross else 1

        n6, n7 = self.neurons
        self.conv1 = conv("conv1", 11, 3, stride=4)
        self.conv2 = conv("conv2", 5, self.conv1.maps)
        self.conv3 = conv("conv3", 3, self.conv2.maps * towers("conv3"))
        self.conv4 = conv("conv4", 3, self.conv3.maps)
        self.conv5 = conv("conv5", 3, self.conv4.maps)
        self.conv6 = conv("conv6", 3, self.conv5.maps)  # only where the config has a sixth
        seen = self.conv6.maps * towers("fc6")
        self.fc6 = TowerDense(_places(c, crop), seen, n6 * c.towers, **_initial(c, "fc6", rngs))
        self.fc7 = TowerDense(1, n6 * towers("fc7"), n7 * c.towers, **_initial(c, "fc7", rngs))
        self.fc8 = Logits(n7 * c.towers, c.classes, **_initial(c, "fc8", rngs))
        self.activate = ACTIVATIONS[c.activation]

    def outputs(self, images: jax.Array, draw: DropoutKey | None = None) -> dict[str, jax.Array]:
        """The output of every layer, {'conv1': ..., 'fc8': ...}, fc8's being the logits.

        Args:
          images: [b, crop, crop, 3], the mean subtracted, so about [-128, 127].
          draw: the source of the dropout masks; None in testing.
        """
        out = {}
        x = images.astype(self.dtype)  # [b, 224, 224, 3]
        x = out["conv1"] = self.conv1(x)  # [b, 55, 55, 96]
        x = self.pool(x)  # [b, 27, 27, 96]
        x = out["conv2"] = self.conv2(x)  # [b, 27, 27, 256]
        x = self.pool(x)  # [b, 13, 13, 256]
        x = self.meet("conv3", x)  # both towers' 256 maps
        x = out["conv3"] = self.conv3(x)  # [b, 13, 13, 384]
        x = out["conv4"] = self.conv4(x)  # [b, 13, 13, 384]
        x = out["conv5"] = self.conv5(x)  # [b, 13, 13, 256]
        x = self.pool(x)  # [b, 6, 6, 256]
        x = out["conv6"] = self.conv6(x)  # as it is, or [b, 6, 6, 256] of a sixth convolution
        x = self.meet("fc6", x)
        x = out["fc6"] = self.activate(self.fc6(x))  # [b, 4096]
        x = dropout(x, self.rate, draw, 6, self.neurons[0])
        x = self.meet("fc7", x)
        x = out["fc7"] = self.activate(self.fc7(x))  # [b, 4096]
        x = dropout(x, self.rate, draw, 7, self.neurons[1])
        out["fc8"] = self.fc8(x)  # [b, 1000], the sum of both towers' parts
        return out

    def __call__(self, images: jax.Array, draw: DropoutKey | None = None) -> jax.Array:
        """The logits, [b, classes] float32, of `images` as in `outputs`."""
        return self.outputs(images, draw)["fc8"]

    def meet(self, layer: str, x: jax.Array) -> jax.Array:
        """What `layer` sees: both towers, if it is one of those at which they cross."""
        with jax.named_scope(layer):
            return gather_towers(x) if layer in self.cross else x


def _scaled(count: int, c: config.AlexNet) -> int:
    """A number of kernels or neurons times the width factor, still divisible by the towers."""
    return max(1, round(count * c.width / c.towers)) * c.towers


def _initial(c: config.AlexNet, name: str, rngs: nnx.Rngs) -> dict[str, Any]:
    """What the layer called `name` is told of its parameters."""
    return {"name": name, "std": c.std[name], "bias": c.bias[name], "rngs": rngs}


def _places(c: config.AlexNet, crop: int) -> int:
    """Pixels of one map that fc6 sees: 6 x 6 at full size."""
    side = -(-(crop - 11) // 4) + 1  # conv1 rounds up, see TowerConv.padding
    for _ in range(3):
        side = (side - c.pool_window) // c.pool_stride + 1
    if side < 1:
        raise UserError(f"data.crop={crop} is too small: after three poolings no pixel is left")
    return side * side
