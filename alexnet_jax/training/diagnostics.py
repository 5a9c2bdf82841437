"""Whether a network learns: weights, updates and dead units of each layer; a loss that is stuck."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import entr

from alexnet_jax import config, optim
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.model.towers import DATA, TOWER
from alexnet_jax.optim import Params
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.sharding import fetch
from alexnet_jax.training.state import State


def make_diagnostics(network: ShardedModel, c: config.AlexNet | config.Cifar) -> Any:
    """The jitted function (state, images) -> sizes and outputs, from which `read_layers` reads.

    Its images are a training batch as the network sees it: float32 [b, crop, crop, 3].
    """
    counted = c.names[:-1] if c.activation == "relu" else ()

    def highest(params: Params, images: jax.Array) -> dict[str, jax.Array]:
        """The highest output of each unit for each image: {'conv1': [b, maps here], ...}."""
        outputs = network.bind(params).outputs(images)
        return {layer: outputs[layer].max(range(1, outputs[layer].ndim - 1)) for layer in counted}

    inputs, units = (network.specs, network.spec(DATA)), network.spec(DATA, TOWER)
    tops = network.shard_map(highest, inputs, units)

    def measure(state: State, images: Float[Array, "b crop crop 3"]) -> Any:
        params = state["params"]
        return _sizes(params, optim.velocity(state["optimizer"])), tops(params, images)

    return network.jit(measure)


def read_layers(measured: Any) -> dict[str, float]:
    """Metrics of each layer: 'weight/conv1' (mean |w|), 'update/conv1' (mean |v| / mean |w|) and
    'dead/conv1' (share of dead units).

    A unit (a feature map or a neuron) is dead if its output is above 0 for no image of a batch, at
    no place. The share is left out where the activation is not the ReLU.
    """
    sizes, tops = fetch(measured)
    values = {}
    for layer, (weight, update) in sizes.items():
        values[f"weight/{layer}"] = float(weight)
        values[f"update/{layer}"] = float(update / weight) if weight else math.inf
    for layer, top in tops.items():
        values[f"dead/{layer}"] = float(np.mean(top.max(0) <= 0))
    return values


def _sizes(params: Params, velocity: Params) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Mean |w| and mean |v| of each layer's kernel."""
    return {
        layer: (jnp.abs(params[layer]["kernel"]).mean(), jnp.abs(velocity[layer]["kernel"]).mean())
        for layer in params
    }


def label_entropy(labels: np.ndarray) -> float:
    """The entropy of the class frequencies, in nats.

    It is the loss of a model that knows these frequencies and nothing of the images: ln(1000) =
    6.908 for the 1000 (nearly) balanced classes of ImageNet.
    """
    return float(entr(np.bincount(labels) / len(labels)).sum())


class StuckLoss:
    """Notices that the loss has been at the entropy of the training labels for `patience` steps."""

    def __init__(self, entropy: float, patience: int) -> None:
        """A `patience` of 0 switches it off."""
        self._entropy, self._patience = entropy, patience
        self._since: float | None = None

    def notice(self, step: int, loss: float) -> str | None:
        """A warning to print after `step`, once each time that the loss gets stuck; or None.

        `loss` is the mean since the last call. It counts as stuck within 2% of the entropy.
        """
        if not self._patience or abs(loss - self._entropy) > 0.02 * self._entropy:
            self._since = None
            return None
        if self._since is None:
            self._since = step
        if step - self._since < self._patience:
            return None
        self._since = math.inf  # no second warning until the loss has moved
        return (
            f"step {step}: for {self._patience} steps the loss has been {self._entropy:.3f}, the "
            f"entropy of the training labels: the network has learned the class frequencies and "
            f"nothing of the images. Try larger initial weights (--config.model.std.conv3=0.03, "
            f"conv4 and conv5 likewise) or configs/alexnet_2012.py."
        )


def check_loss(step: int, loss: float, saved: int | None) -> None:
    """Raises UserError, naming the newest checkpoint, if the loss is infinite or NaN."""
    _require(math.isfinite(loss), f"step {step}: the loss is {loss}", saved)


def check_weights(step: int, params: Params, saved: int | None) -> None:
    """Raises UserError, naming the newest checkpoint, if a weight is infinite or NaN."""
    _require(bool(_all_finite(params)), f"step {step}: weights are not finite", saved)


@jax.jit
def _all_finite(params: Params) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()


def _require(finite: bool, otherwise: str, saved: int | None) -> None:
    kept = f"the checkpoint of step {saved} is kept" if saved is not None else "none was saved yet"
    if not finite:
        raise UserError(
            f"{otherwise}; stopped, {kept}. "
            f"Try a lower rate (config.policy), --config.dtype=float32, or a larger k where "
            f"the k of an LRN is 0: it divides by zero where all neighbours are 0"
        )
