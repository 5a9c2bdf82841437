"""What a step changes and a checkpoint holds: parameters, velocity and the number of steps."""

import dataclasses
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from alexnet_jax import config, optim
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.checkpoint import Checkpoints, Restored
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.setup import NetSetup, Setup, make_network, replicate


class State(TypedDict):
    """All arrays that training changes."""

    params: optim.Params  # float32
    optimizer: optax.OptState  # of `optim.update_rule`, float32
    step: jax.Array  # int32, steps done


def state_shapes(network: ShardedModel, c: config.Optim) -> Any:
    """The state as ShapeDtypeStructs with shardings; the velocity is split like the parameters."""

    def placed(leaf: jax.ShapeDtypeStruct, spec: P) -> jax.ShapeDtypeStruct:
        return leaf.update(sharding=network.shardings(spec))

    rule, params = optim.update_rule(c), jax.tree.map(placed, network.shapes, network.specs)
    optimizer = optax.tree_utils.tree_map_params(
        rule, lambda _, param: param, jax.eval_shape(rule.init, network.shapes), params
    )
    step = placed(jax.ShapeDtypeStruct((), np.int32), P())
    return {"params": params, "optimizer": optimizer, "step": step}


def init_state(setup: Setup) -> State:
    """The state before the first step (§5: random weights, constant biases, no velocity).

    Raises:
      UserError: `config.init_from` is no trained network, or its layers have other shapes.
    """
    c, network = setup.config, setup.network
    params = network.init(c.seed)
    if c.init_from:
        params |= _load_layers(c, network)
    shapes = state_shapes(network, c.optim)["optimizer"]
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    optimizer = jax.jit(optim.update_rule(c.optim).init, out_shardings=shardings)(params)
    return {"params": params, "optimizer": optimizer, "step": replicate(network, np.int32(0))}


def _load_layers(c: config.Config, network: ShardedModel) -> optim.Params:
    """All layers but the last from the newest checkpoint of the workdir `config.init_from` (§7)."""
    folder = Path(c.init_from)
    saved = workdir.read_config(folder)
    saved = dataclasses.replace(saved, devices=c.devices, batch=c.batch, evaluate=c.evaluate)
    source = make_network(saved)
    with Checkpoints(folder / workdir.CHECKPOINTS, read_only=True) as checkpoints:
        restored = checkpoints.restore(state_shapes(source, saved.optim))
    if restored is None:
        raise UserError(f"config.init_from={folder} has no checkpoint yet; train it first")
    layers = c.model.names[:-1]
    for layer in layers:
        for name, ours in network.shapes[layer].items():
            theirs = source.shapes.get(layer, {}).get(name)
            if theirs is None or theirs.shape != ours.shape:
                found = "none" if theirs is None else list(theirs.shape)
                raise UserError(
                    f"config.init_from={folder} does not fit: {layer}.{name} is {found} there, "
                    f"{list(ours.shape)} here"
                )
    return {layer: restored.state["params"][layer] for layer in layers}


def restore_state(
    setup: NetSetup, checkpoints: Checkpoints, step: int | None = None
) -> Restored | None:
    """The checkpoint of `step`, or the newest intact one, on this run's devices.

    Returns:
      None if there is no checkpoint.

    Raises:
      UserError: it was trained on other records; or see `Checkpoints.restore`.
    """
    restored = checkpoints.restore(state_shapes(setup.network, setup.config.optim), step)
    ours = setup.data.hash
    if restored is not None and restored.meta["records"] != ours:
        where = f"those in {setup.records.path}" if isinstance(setup, Setup) else "its mean image"
        raise UserError(
            f"{checkpoints.folder} was trained on other records than {where} "
            f"(hash {restored.meta['records']:.12}, not {ours:.12}); "
            f"give those that it was trained on (--config.data.records) or another --workdir"
        )
    return restored
