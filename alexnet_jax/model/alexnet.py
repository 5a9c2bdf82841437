"""The network of Fig. 2: eight layers in two towers, which meet before layers 3, 6 and 7."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from alexnet_jax import config
from alexnet_jax.model import ops, towers
from alexnet_jax.model.forms import DEFAULT, NO_FORMS, Forms
from alexnet_jax.model.layers import Conv, Dense, Initial, LeftOut, Logits
from alexnet_jax.model.ops import DropoutKey
from alexnet_jax.model.towers import Towers
from alexnet_jax.runtime.errors import UserError

ACTIVATIONS = {"relu": ops.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}


class AlexNet(nnx.Module):
    """The network of the paper, or one of its variations, as `config.AlexNet` says.

    A Flax module like any other: by itself it computes both towers where its parameters are, by the
    plain definitions of the operations. `ShardedModel` puts the towers on devices of their own.
    """

    convolution: type[Conv] = Conv  # another class may watch what goes through

    def outputs(
        self, images: Float[Array, "b h w 3"], key: DropoutKey | None = None
    ) -> dict[str, Float[Array, " b *units"]]:
        """The output of every layer: {'conv1': ..., 'fc7': ..., 'fc8': the logits}; and 'pool5'.

        The comments give the shapes at full size. `96_tower` are 96 maps that are split between the
        towers: each has 48 of them, on a device of its own if there are two.

        Args:
          images: [b, crop, crop, 3], with the mean subtracted: about [-128, 127].
          key: the source of the dropout masks; None in testing.
        """
        relu, max_pool = self.activation, self.max_pool
        lrn1, lrn2, lrn_within = self.lrn1, self.lrn2, self.lrn_within
        out: dict[str, Towers] = {}
        x = [images.astype(self.dtype)]  # [b, 224, 224, 3], which both towers see

        x = self.conv1(x)  # [b, 55, 55, 96_tower]
        first = (lrn1, relu) if self.lrn_before_relu else (relu, lrn1)  # as run in 2012; the paper
        out["conv1"] = self.conv1.then(x, *first)
        x = self.conv1.then(x, *first, max_pool)  # [b, 27, 27, 96_tower]

        x = self.conv2(x)  # [b, 27, 27, 256_tower]
        out["conv2"] = self.conv2.then(x, relu, lrn2, lrn_within)  # within: only in the 2012 code
        x = self.conv2.then(x, relu, lrn2, lrn_within, max_pool)  # [b, 13, 13, 256_tower]

        x = self.meet(x, "conv3")  # [b, 13, 13, 256]
        x = out["conv3"] = self.conv3(x, relu)  # [b, 13, 13, 384_tower]
        x = out["conv4"] = self.conv4(x, relu)  # [b, 13, 13, 384_tower]
        x = out["conv5"] = self.conv5(x, relu)  # [b, 13, 13, 256_tower]
        x = out["pool5"] = self.conv5.then(x, max_pool)  # [b, 6, 6, 256_tower]
        if self.conv6 is not None:  # only in the network with a sixth convolution (§6.1)
            x = self.meet(x, "conv6")
            x = out["conv6"] = self.conv6(x, relu)  # [b, 6, 6, 256_tower]

        x = self.meet(x, "fc6")  # [b, 6, 6, 256]
        x = out["fc6"] = self.fc6(x, relu)  # [b, 4096_tower]
        x = self.dropout(x, key, layer=6)
        x = self.meet(x, "fc7")  # [b, 4096]
        x = out["fc7"] = self.fc7(x, relu)  # [b, 4096_tower]
        x = self.dropout(x, key, layer=7)
        logits = self.fc8(x)  # [b, 1000], the sum of both towers' parts
        return {layer: towers.concatenate(parts) for layer, parts in out.items()} | {"fc8": logits}

    def meet(self, x: Towers, layer: str) -> Towers:
        """What `layer` sees: both towers, if the towers meet before it; else each its own."""
        with jax.named_scope(layer):
            return towers.gather(x) if layer in self.cross else x

    def dropout(self, x: Towers, key: DropoutKey | None, layer: int) -> Towers:
        """Dropout (§4.2), with masks of its own in each tower."""
        numbers = (towers.first() + i for i in range(len(x)))
        return [
            ops.dropout(one, self.dropout_rate, key, layer, tower)
            for one, tower in zip(x, numbers, strict=True)
        ]

    def __call__(
        self, images: Float[Array, "b h w 3"], key: DropoutKey | None = None
    ) -> Float[Array, "b classes"]:
        """The logits, float32, of `images` as in `outputs`."""
        return self.outputs(images, key)["fc8"]

    def __init__(
        self,
        c: config.AlexNet,
        crop: int = 224,
        dtype: str = "float32",
        *,
        rngs: nnx.Rngs,
        forms: Forms = NO_FORMS,
    ) -> None:
        """A network for images of crop x crop pixels that computes in `dtype`.

        Args:
          c: its layers.
          crop: side of the images, pixels.
          dtype: of the computation; parameters are float32.
          rngs: the initial weights are drawn from its stream 'params'.
          forms: how it computes; layers that are not in it have the platform's default.

        Raises:
          UserError: images that small leave nothing after three poolings.
        """
        maps = [_per_tower(n, c) for n in c.kernels]
        n6, n7 = (_per_tower(n, c) for n in c.neurons)

        def initial(name: str) -> Initial:
            return Initial(name, c.std[name], c.bias[name], rngs)

        def conv(number: int, window: int, seen: int, stride: int = 1) -> Conv | LeftOut:
            name = f"conv{number}"
            if name == c.without:
                return LeftOut(seen)
            sizes, zeros = (window, seen, maps[number - 1], c.towers), c.padding.get(name)
            form = forms.get(name, DEFAULT)
            return self.convolution(initial(name), *sizes, stride=stride, zeros=zeros, form=form)

        def seen_by(name: str) -> int:
            """How many towers each unit of a layer sees."""
            return c.towers if name in c.cross else 1

        self.conv1 = conv(1, 11, 3, stride=4)
        self.conv2 = conv(2, 5, self.conv1.units)
        self.conv3 = conv(3, 3, self.conv2.units * seen_by("conv3"))
        self.conv4 = conv(4, 3, self.conv3.units)
        self.conv5 = conv(5, 3, self.conv4.units)
        self.conv6 = conv(6, 3, self.conv5.units * seen_by("conv6")) if len(maps) == 6 else None
        last, side = self.conv6 or self.conv5, _last_side(c, crop)
        seen = (side, side, last.units * seen_by("fc6"))
        self.fc6 = Dense(initial("fc6"), seen, n6, c.towers)
        self.fc7 = Dense(initial("fc7"), (1, 1, n6 * seen_by("fc7")), n7, c.towers)
        self.fc8 = Logits(initial("fc8"), (1, 1, n7 * c.towers), c.classes)

        self.dtype, self.cross = jnp.dtype(dtype), c.cross
        self.dropout_rate, self.dropout_before = c.dropout, c.dropout_before
        self.activation = ACTIVATIONS[c.activation]
        self.max_pool: ops.Operation = ops.MaxPool(c.pool_window, c.pool_stride)
        if c.pool_over_edges:
            pool = partial(ops.max_pool_over_edges, window=c.pool_window, stride=c.pool_stride)
            self.max_pool = pool
        self.lrn_before_relu = "conv1" in c.lrn.before_activation
        self.lrn_over_towers, self.lrn_after_pooling = c.lrn_over_towers, c.lrn_after_pooling
        self.lrn1 = _after(ops.Lrn, c.lrn, "conv1", c)
        self.lrn2 = _after(ops.Lrn, c.lrn, "conv2", c)
        self.lrn_within = _after(ops.LrnWithin, c.within_map, "conv2", c)


def _after(
    kind: Callable[[config.Formula], ops.Operation],
    c: config.Response,
    layer: str,
    net: config.AlexNet,
) -> ops.Operation | None:
    """The normalization after `layer`; None where the config has none, or no such layer."""
    return kind(c) if layer in c.layers and layer != net.without else None


def _per_tower(count: int, c: config.AlexNet) -> int:
    """A tower's share of `count` kernels or neurons times the width factor."""
    return max(1, round(count * c.width / c.towers))


def _last_side(c: config.AlexNet, crop: int) -> int:
    """The side of the maps that fc6 sees: 6 pixels at full size."""

    def convolved(side: int, number: int) -> int:
        name, window = f"conv{number}", 5 if number == 2 else 3
        there = number <= len(c.kernels) and name != c.without
        return side + 2 * c.padding.get(name, window // 2) - window + 1 if there else side

    def pooled(side: int) -> int:
        over = c.pool_over_edges and side > 0
        return ops.pooled_side(side, c.pool_window, c.pool_stride, over_edges=over)

    zeros = 2 * c.padding["conv1"] if "conv1" in c.padding else sum(ops.conv_padding(crop, 11, 4))
    side = pooled((crop + zeros - 11) // 4 + 1)
    sides = [side, side := pooled(convolved(side, 2))]
    side = convolved(convolved(side, 3), 4)
    sides += [side, side := pooled(convolved(side, 5)), side := convolved(side, 6)]
    if min(sides) < 1:
        raise UserError(f"data.crop={crop} is too small: no pixel is left after three poolings")
    return side
