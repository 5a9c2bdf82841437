"""What training changes and a checkpoint keeps, and where it lies on the devices."""

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from alexnet_jax import optim
from alexnet_jax.checkpoint import Checkpoints, Restored
from alexnet_jax.errors import UserError
from alexnet_jax.setup import Setup, replicate

State = dict[str, Any]
"""'params' and 'optimizer' (see `optim.update_rule`), float32, and 'step', int32: steps done."""


def state_specs(setup: Setup) -> State:
    """A PartitionSpec for each leaf: the velocity lies with its parameters."""
    network = setup.network
    rule = optim.update_rule(setup.config.optim)
    optimizer = optax.tree_utils.tree_map_params(
        rule,
        lambda _, spec: spec,
        jax.eval_shape(rule.init, network.shapes),
        network.specs,
        transform_non_params=lambda _: P(),
    )
    return {"params": network.specs, "optimizer": optimizer, "step": P()}


def init_state(setup: Setup) -> State:
    """The state before the first step (§5: weights normal, biases constant, velocity zero)."""
    network, rule = setup.network, optim.update_rule(setup.config.optim)
    params = network.init(setup.config.seed)
    shardings = network.shardings(state_specs(setup)["optimizer"])
    optimizer = jax.jit(rule.init, out_shardings=shardings)(params)
    return {"params": params, "optimizer": optimizer, "step": replicate(network, np.int32(0))}


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
    rule, network = optim.update_rule(setup.config.optim), setup.network
    shapes = {
        "params": network.shapes,
        "optimizer": jax.eval_shape(rule.init, network.shapes),
        "step": jax.ShapeDtypeStruct((), np.int32),
    }
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        network.shardings(state_specs(setup)),
    )

    def fits(meta: dict[str, Any]) -> None:
        ours, theirs = setup.records.manifest.hash, meta["records"]
        if ours != theirs:
            raise UserError(
                f"{checkpoints.folder} was trained on other records than those in "
                f"{setup.config.data.records} (hash {theirs:.12}, not {ours:.12}); "
                f"give those that it was trained on (--config.data.records) or another --workdir"
            )

    return checkpoints.restore(placed, data, fits, step)
