"""The network with its operations arranged as in others' nets: Caffe's two, and torchvision's.

Its layers and parameters are those of `AlexNet`. In Caffe's `bvlc_alexnet` LRN runs over the maps
of both towers; its CaffeNet pools before that. torchvision's net has dropout before fc6 and fc7.
"""

import jax
from jaxtyping import Array, Float

from alexnet_jax.config import Formula
from alexnet_jax.model import ops, towers
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.layers import TowerLayer
from alexnet_jax.model.ops import DropoutKey
from alexnet_jax.model.towers import Towers
from alexnet_jax.runtime.errors import UserError


class ArrangedAlexNet(AlexNet):
    """As `AlexNet`, for configs whose `model.arranged` is true."""

    def outputs(
        self, images: Float[Array, "b h w 3"], key: DropoutKey | None = None
    ) -> dict[str, Float[Array, " b *units"]]:
        """The output of every layer, see `AlexNet.outputs`.

        Where pooling comes before LRN, 'conv1' and 'conv2' are the outputs of ReLU.
        """
        relu = self.activation
        out: dict[str, Towers] = {}
        x = [images.astype(self.dtype)]
        for name, lrn in (("conv1", self.lrn1), ("conv2", self.lrn2)):
            conv = getattr(self, name)
            x = out[name] = conv(x, relu)
            if self.lrn_after_pooling:
                x = self.normalized(conv.then(x, self.max_pool), lrn, conv)
            else:
                x = out[name] = self.normalized(x, lrn, conv)
                x = conv.then(x, self.max_pool)

        x = self.meet(x, "conv3")
        for name in ("conv3", "conv4", "conv5"):
            x = out[name] = getattr(self, name)(x, relu)
        x = out["pool5"] = self.conv5.then(x, self.max_pool)
        for layer in (6, 7):
            name = f"fc{layer}"
            x = self.meet(self.dropout_into(name, x, key), name)
            x = out[name] = getattr(self, name)(x, relu)
        logits = self.fc8(self.dropout_into("fc8", x, key))
        return {layer: towers.concatenate(parts) for layer, parts in out.items()} | {"fc8": logits}

    def normalized(self, x: Towers, lrn: ops.Operation | None, layer: TowerLayer) -> Towers:
        """`x` after LRN, which is None where the layer has none."""
        if not isinstance(lrn, ops.Lrn):
            return x
        if not self.lrn_over_towers:
            return layer.then(x, lrn)
        with jax.named_scope(layer.name):
            return lrn_over_towers(x, lrn.formula)

    def dropout_into(self, layer: str, x: Towers, key: DropoutKey | None) -> Towers:
        """What `layer` gets: its inputs, after dropout if there is dropout before it."""
        if layer not in self.dropout_before:
            return x
        return self.dropout(x, key, layer=int(layer[-1]) - 1)


def lrn_over_towers(x: Towers, formula: Formula) -> Towers:
    """LRN whose window runs over both towers' maps, A's last beside B's first.

    Towers on two devices send each other the maps at the edge: half a window, not all that a
    meeting sends.

    Raises:
      UserError: a tower has fewer maps than half a window.
    """
    before, after = formula.size // 2, (formula.size - 1) // 2
    whole = towers.concatenate(x)
    maps = whole.shape[-1]
    if maps < before:
        raise UserError(
            f"config.model.lrn.size={formula.size}: half a window is more than the {maps} maps of "
            f"a tower; give a larger --config.model.width"
        )
    # The window of each of our own maps is complete, so the sums are those of one device.
    near = ops.lrn(towers.with_neighbours(whole, before, after), formula)
    return towers.split(near[..., before : before + maps], len(x))
