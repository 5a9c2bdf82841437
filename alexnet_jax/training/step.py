"""One step of training: from images to the loss, the gradients and the paper's update (§4, §5)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from alexnet_jax import config, optim
from alexnet_jax.data import augment
from alexnet_jax.data.pipeline import train_batch_shapes
from alexnet_jax.model.ops import DropoutKey
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.model.towers import DATA
from alexnet_jax.training.scores import ImageScores, label_ranks
from alexnet_jax.training.setup import replicate
from alexnet_jax.training.state import State, state_shapes

Batch = dict[str, jax.Array]
"""A batch of `pipeline.train_batches`, on the devices."""


class DeviceHyperparams(NamedTuple):
    """What a policy sets for a step, as arrays on every device."""

    rates: Any  # float32, a tree like `optim.Rates`
    lighting: Any  # float32, 1 or 0


def make_step(
    network: ShardedModel, c: config.Optim, data: config.Data, *, batch: int, seed: int
) -> Any:
    """The jitted step (state, normalization, batch, hyperparams) -> (state, ImageScores).

    The scores are those of the images of this batch, before the update. The old state's memory is
    used again. Devices exchange what the towers exchange and, where several rows of devices share
    the batch, the sums of the gradients; nothing else.

    Args:
      network: to train.
      c: the update.
      data: how images become the network's input.
      batch: images in the global batch.
      seed: of the dropout masks.
    """
    rule = optim.update_rule(c)

    def step(
        state: State, normalization: Any, images: Batch, hyperparams: DeviceHyperparams
    ) -> tuple[State, ImageScores]:
        inputs = training_input(data, normalization, images, hyperparams.lighting)
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        dropout, labels = DropoutKey(key, images["row"]), images["label"]

        def loss(params: optim.Params) -> tuple[jax.Array, ImageScores]:
            logits = network.bind(params)(inputs, dropout)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            # The mean over the whole batch; jax.grad sums over the devices that share it.
            return losses.sum() / batch, ImageScores(losses, label_ranks(logits, labels))

        gradients, scores = jax.grad(loss, has_aux=True)(state["params"])
        updates, optimizer = rule.update(
            gradients, state["optimizer"], state["params"], rates=hyperparams.rates
        )
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "optimizer": optimizer, "step": state["step"] + 1}, scores

    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, state_shapes(network, c))
    rows = network.spec(DATA)
    mapped = network.shard_map(step, (specs, P(), rows, P()), (specs, rows))
    return network.jit(mapped, donate=0)


def step_shapes(network: ShardedModel, c: config.Config) -> tuple[Any, ...]:
    """The arguments of the config's step as ShapeDtypeStructs with shardings: all that `lower`
    and `trace` need, also for devices on which nothing can be placed."""

    def placed(tree: Any, spec: P) -> Any:
        sharding = network.shardings(spec)
        return jax.tree.map(lambda leaf: leaf.update(sharding=sharding), tree)

    number, size = jax.ShapeDtypeStruct((), jnp.float32), c.data.size
    normalization = {
        "mean": jax.ShapeDtypeStruct((size, size, 3), jnp.float32),
        "components": jax.ShapeDtypeStruct((3, 3), jnp.float32),
    }
    hyperparams = optim.make_policy(c.policy).hyperparams(0)
    rates = jax.tree.map(lambda _: number, hyperparams.rates(c.optim, network.shapes))
    return (
        state_shapes(network, c.optim),
        placed(normalization, P()),
        placed(train_batch_shapes(c.data, c.batch), P(DATA)),
        placed(DeviceHyperparams(rates, number), P()),
    )


def training_input(
    data: config.Data, normalization: Any, batch: Batch, lighting: jax.Array | float
) -> jax.Array:
    """A batch as the network sees it: float32 [b, crop, crop, 3], see `augment.train_input`."""
    mean, components = normalization["mean"], normalization["components"]
    return augment.train_input(batch, mean, components, data, lighting)


def put_hyperparams(
    network: ShardedModel, c: config.Optim, hyperparams: optim.Hyperparams
) -> DeviceHyperparams:
    """Hyperparameters on every device. New values do not compile the step again."""
    rates = hyperparams.rates(c, network.shapes)
    return replicate(network, DeviceHyperparams(rates, float(hyperparams.lighting)))
