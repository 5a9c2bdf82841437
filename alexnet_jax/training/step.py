"""One step of training: images in, loss, gradients and the paper's update (§4, §5)."""

from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec as P

from alexnet_jax import optim
from alexnet_jax.data import augment
from alexnet_jax.model.layers import DropoutKey
from alexnet_jax.model.towers import DATA
from alexnet_jax.training.scores import label_ranks
from alexnet_jax.training.setup import Setup, replicate
from alexnet_jax.training.state import State, state_specs

DeviceHyperparams = dict[str, Any]
"""What a policy sets, as arrays: 'rates' (see `optim.Rates`) and 'lighting', 1.0 or 0.0."""


def make_step(setup: Setup) -> Any:
    """The jitted step (state, normalization, batch, hyperparams) -> (state, (losses, ranks)).

    `batch` is a placed batch of `pipeline.train_batches`; losses are float32 [batch], in nats, and
    ranks int32 [batch], see `evaluate.label_ranks`, one for each image. The old state's memory is
    used again. Between devices go what the towers exchange and, where several rows of devices share
    the batch, the sums of the gradients; nothing else.
    """
    c, network = setup.config, setup.network
    rule = optim.update_rule(c.optim)

    def step(
        state: State, normalization: Any, batch: Any, hyperparams: DeviceHyperparams
    ) -> tuple[State, Any]:
        images = training_input(setup, normalization, batch, hyperparams)
        key = jax.random.fold_in(jax.random.key(c.seed), state["step"])
        draw = DropoutKey(key, batch["row"])

        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, labels = network.bind(params)(images, draw), batch["label"]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            # The mean over the whole batch; jax.grad sums over the devices that share it.
            return losses.sum() / c.batch, (losses, label_ranks(logits, labels))

        gradients, outcome = jax.grad(loss, has_aux=True)(state["params"])
        updates, optimizer = rule.update(
            gradients, state["optimizer"], state["params"], rates=hyperparams["rates"]
        )
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "optimizer": optimizer, "step": state["step"] + 1}, outcome

    specs, rows = state_specs(setup), network.spec(DATA)
    mapped = network.shard_map(step, (specs, P(), rows, P()), (specs, rows))
    return network.jit(mapped, donate=0)


def training_input(
    setup: Setup, normalization: Any, batch: Any, hyperparams: DeviceHyperparams
) -> jax.Array:
    """A batch as the network sees it: float32 [b, crop, crop, 3]."""
    mean, components = normalization["mean"], normalization["components"]
    return augment.train_input(batch, mean, components, setup.config.data, hyperparams["lighting"])


def put_hyperparams(setup: Setup, setting: optim.Hyperparams) -> DeviceHyperparams:
    """A policy's setting as arrays on every device; a new one compiles nothing anew."""
    rates = setting.rates(setup.config.optim, setup.network.shapes)
    return replicate(setup.network, {"rates": rates, "lighting": float(setting.lighting)})
