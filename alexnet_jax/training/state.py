"""What training changes and a checkpoint keeps, and where it lies on the devices."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from alexnet_jax import config, optim
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.checkpoint import Checkpoints, Restored
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.setup import Setup, make_network, replicate

State = dict[str, Any]
"""'params' and 'optimizer' (see `optim.update_rule`), float32, and 'step', int32: steps done."""


def state_specs(setup: Setup) -> State:
    """A PartitionSpec for each leaf: the velocity lies with its parameters."""
    return _specs(setup.network, setup.config.optim)


def _specs(network: ShardedModel, c: config.Optim) -> State:
    rule = optim.update_rule(c)
    optimizer = optax.tree_utils.tree_map_params(
        rule,
        lambda _, spec: spec,
        jax.eval_shape(rule.init, network.shapes),
        network.specs,
        transform_non_params=lambda _: P(),
    )
    return {"params": network.specs, "optimizer": optimizer, "step": P()}


def state_shapes(network: ShardedModel, c: config.Optim) -> State:
    """The state of such a run, as ShapeDtypeStructs that say where it lies."""
    shapes = {
        "params": network.shapes,
        "optimizer": jax.eval_shape(optim.update_rule(c).init, network.shapes),
        "step": jax.ShapeDtypeStruct((), np.int32),
    }
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        network.shardings(_specs(network, c)),
    )


def init_state(setup: Setup) -> State:
    """The state before the first step (§5: weights normal, biases constant, velocity zero).

    Raises:
      UserError: `config.init_from` is no trained network, or one of other layers.
    """
    network, rule = setup.network, optim.update_rule(setup.config.optim)
    params = network.init(setup.config.seed)
    if setup.config.init_from:
        params |= _transferred(setup)
    shardings = network.shardings(state_specs(setup)["optimizer"])
    optimizer = jax.jit(rule.init, out_shardings=shardings)(params)
    return {"params": params, "optimizer": optimizer, "step": replicate(network, np.int32(0))}


def _transferred(setup: Setup) -> State:
    """The parameters of another run's newest checkpoint, but for its last layer (§7)."""
    c, folder = setup.config, Path(setup.config.init_from)
    theirs = workdir.read_config(folder)
    theirs = dataclasses.replace(theirs, devices=c.devices, batch=c.batch, evaluate=c.evaluate)
    network = make_network(theirs)
    with Checkpoints(folder / workdir.CHECKPOINTS, read_only=True) as checkpoints:
        template = state_shapes(network, theirs.optim)
        restored = checkpoints.restore(template, None, lambda meta: None)
    if restored is None:
        raise UserError(f"config.init_from={folder} has no checkpoint yet; train it first")
    found = {}
    for layer in c.model.names[:-1]:
        for name, mine in setup.network.shapes[layer].items():
            its = network.shapes.get(layer, {}).get(name)
            if its is None or its.shape != mine.shape:
                has = "none" if its is None else list(its.shape)
                raise UserError(
                    f"config.init_from={folder} does not fit: {layer}.{name} is {has} there, "
                    f"{list(mine.shape)} here"
                )
        found[layer] = restored.state["params"][layer]
    return found


def restore_state(
    setup: Setup, checkpoints: Checkpoints, data: Any = None, step: int | None = None
) -> Restored | None:
    """The checkpoint of `step`, or the newest intact one, laid over this run's devices.

    Args:
      setup: the run's.
      checkpoints: where to look.
      data: the iterator over training batches, to be set to the saved position; or None.
      step: which; None for the newest.

    Returns:
      None when there is no checkpoint.

    Raises:
      UserError: it was trained on other records; or see `Checkpoints.restore`.
    """

    def fits(meta: dict[str, Any]) -> None:
        ours, theirs = setup.records.manifest.hash, meta["records"]
        if ours != theirs:
            raise UserError(
                f"{checkpoints.folder} was trained on other records than those in "
                f"{setup.config.data.records} (hash {theirs:.12}, not {ours:.12}); "
                f"give those that it was trained on (--config.data.records) or another --workdir"
            )

    template = state_shapes(setup.network, setup.config.optim)
    return checkpoints.restore(template, data, fits, step)
