"""One step of training: pictures in, loss, gradients and the paper's update (§4, §5)."""

from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec as P

from alexnet_jax import optim
from alexnet_jax.data import augment
from alexnet_jax.model.layers import Draw
from alexnet_jax.model.mesh import DATA
from alexnet_jax.scores import label_ranks
from alexnet_jax.setup import Setup, replicate
from alexnet_jax.state import State, state_specs

Control = dict[str, Any]
"""What a policy sets, as arrays: 'rates' (see `optim.Rates`) and 'lighting', 1.0 or 0.0."""


def make_step(setup: Setup) -> Any:
    """The jitted step (state, pixels, batch, control) -> (state, (losses, ranks)).

    `batch` is a placed batch of `pipeline.train_batches`; losses are float32 [batch], in nats, and
    ranks int32 [batch], see `evaluate.label_ranks`, one for each picture. The old state's memory is
    used again. Between devices go what the towers exchange and, where several rows of devices share
    the batch, the sums of the gradients; nothing else.
    """
    c, network = setup.config, setup.network
    rule = optim.update_rule(c.optim)

    def step(state: State, pixels: Any, batch: Any, control: Control) -> tuple[State, Any]:
        images = training_input(setup, pixels, batch, control)
        key = jax.random.fold_in(jax.random.key(c.seed), state["step"])
        draw = Draw(key, batch["row"])

        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, labels = network.bind(params)(images, draw), batch["label"]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            # The mean over the whole batch; jax.grad sums over the devices that share it.
            return losses.sum() / c.batch, (losses, label_ranks(logits, labels))

        gradients, outcome = jax.grad(loss, has_aux=True)(state["params"])
        updates, optimizer = rule.update(
            gradients, state["optimizer"], state["params"], rates=control["rates"]
        )
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "optimizer": optimizer, "step": state["step"] + 1}, outcome

    specs, rows = state_specs(setup), network.spec(DATA)
    mapped = network.shard_map(step, (specs, P(), rows, P()), (specs, rows))
    return network.jit(mapped, donate=0)


def training_input(setup: Setup, pixels: Any, batch: Any, control: Control) -> jax.Array:
    """A batch as the network sees it: float32 [b, crop, crop, 3]."""
    mean, components = pixels["mean"], pixels["components"]
    return augment.train_input(batch, mean, components, setup.config.data, control["lighting"])


def make_control(setup: Setup, setting: optim.Setting) -> Control:
    """A policy's setting as arrays on every device; a new one compiles nothing anew."""
    rates = setting.rates(setup.config.optim, setup.network.shapes)
    return replicate(setup.network, {"rates": rates, "lighting": float(setting.lighting)})
