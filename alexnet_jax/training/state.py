"""What a step changes and a checkpoint holds: parameters, velocity and the number of steps."""

import dataclasses
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from alexnet_jax import config, optim
from alexnet_jax.data.info import read_info
from alexnet_jax.data.layout import read_manifest
from alexnet_jax.data.records import is_prepared
from alexnet_jax.model.layouts import layers_that_fit
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.checkpoint import Checkpoints, Restored
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.tensors import read_tensors
from alexnet_jax.runtime.terminal import say
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


def init_state(setup: NetSetup, layers: optim.Params | None = None) -> State:
    """The state before the first step (§5: random weights, constant biases, no velocity).

    Args:
      setup: of the run.
      layers: that begin with these parameters instead, from `load_layers`.
    """
    c, network = setup.config, setup.network
    params = network.init(c.seed) | (layers or {})
    shapes = state_shapes(network, c.optim)["optimizer"]
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    optimizer = jax.jit(optim.update_rule(c.optim).init, out_shardings=shardings)(params)
    return {"params": params, "optimizer": optimizer, "step": replicate(network, np.int32(0))}


def load_layers(setup: Setup) -> optim.Params:
    """The layers of `config.init_from` that fit the network; says which are new (§7).

    Raises:
      UserError: it is no trained network and no file of weights, or none of its layers fits.
    """
    c, source = setup.config, Path(setup.config.init_from)
    layers = _of_file(source, setup.network) if source.is_file() else _of_workdir(source, setup)
    new = [name for name in c.model.names if name not in layers]
    if len(new) == len(c.model.names):
        raise UserError(
            f"config.init_from={source} does not fit: no layer there has the shape of the config's "
            f"network ({new[0]}: {list(setup.network.shapes[new[0]]['kernel'].shape)}); "
            f"give the same --config.model.width and kernels"
        )
    fresh = f", {', '.join(new)} new" if new else ""
    say(f"weights from {source}: {len(layers)} of {len(c.model.names)} layers{fresh}")
    return layers


def _of_file(file: Path, network: ShardedModel) -> optim.Params:
    try:
        found = layers_that_fit(*read_tensors(file), network)
    except UserError as error:
        raise UserError(f"config.init_from={file}: {error}") from error

    def place(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return {
        layer: jax.tree.map(place, of, network.shardings(network.specs[layer]))
        for layer, of in found.items()
    }


def _of_workdir(folder: Path, setup: Setup) -> optim.Params:
    """Of the newest checkpoint. The last layer only fits if its classes are ours."""
    c, network = setup.config, setup.network
    saved = workdir.read_config(folder)
    saved = dataclasses.replace(saved, devices=c.devices, batch=c.batch, evaluate=c.evaluate)
    source = make_network(saved)
    with Checkpoints(folder / workdir.CHECKPOINTS, read_only=True) as checkpoints:
        restored = checkpoints.restore(state_shapes(source, saved.optim))
    if restored is None:
        raise UserError(f"config.init_from={folder} has no checkpoint yet; train it first")
    layers = {
        layer: params
        for layer, params in restored.state["params"].items()
        if _shapes(source, layer) == _shapes(network, layer)
    }
    theirs = _classes(folder, saved)  # if they are not known, their number must do
    if theirs and theirs != setup.data.classes:
        layers.pop(c.model.names[-1], None)
    return layers


def _classes(folder: Path, saved: config.Config) -> tuple[str, ...]:
    """The names of the classes of a run; none where neither workdir nor records tell."""
    if (folder / workdir.DATA).exists():
        return read_info(folder / workdir.DATA).classes
    return (
        read_manifest(Path(saved.data.records)).classes if is_prepared(saved.data.records) else ()
    )


def _shapes(network: ShardedModel, layer: str) -> dict[str, tuple[int, ...]]:
    return {name: one.shape for name, one in network.shapes.get(layer, {}).items()}


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
