"""What every job stands on: the records, the grid of devices and the network laid over it."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from alexnet_jax import config
from alexnet_jax.data import augment
from alexnet_jax.data.records import Records, Split, open_records
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.cifar import CifarNet
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.sharding import check_batch, make_mesh


@dataclass(frozen=True)
class Setup:
    """One run's surroundings.

    Attributes:
      config: the run's.
      records: the prepared images; `train` and `validation` are its splits to learn and to score.
      network: the network, laid over the config's devices.
      normalization: what turns images into the network's input, on every device: 'mean' float32
        [size, size, 3] and 'components' float32 [3, 3].
    """

    config: config.Config
    records: Records
    train: Split
    validation: Split
    network: ShardedModel
    normalization: dict[str, jax.Array]


def make_network(c: config.Config) -> ShardedModel:
    """The config's network over the config's devices; nothing is computed yet.

    Raises:
      UserError: the devices do not suffice or cannot be shared by the towers or the batches.
    """
    mesh = make_mesh(c.devices, c.model.towers if c.towers_apart else 1)
    check_batch(mesh, c.batch, "config.batch")
    check_batch(mesh, c.evaluate.batch, "config.evaluate.batch")
    return ShardedModel(lambda rngs: _build(c, rngs), mesh)


def _build(c: config.Config, rngs: nnx.Rngs) -> AlexNet | CifarNet:
    if isinstance(c.model, config.AlexNet):
        return AlexNet(c.model, c.data.crop, c.dtype, rngs)
    return CifarNet(c.model, c.data.crop, c.dtype, rngs)


def make_setup(c: config.Config) -> Setup:
    """Opens the records and lays out the network.

    Raises:
      UserError: as `make_network`; or the records are missing, damaged, or not the config's; or
        not the same in all processes.
    """
    network = make_network(c)
    records = open_records(c.data.records)
    _check_records(records, c)
    distributed.require_same("the records", records.manifest.hash)
    train, validation = (_split(records, name, c) for name in ("train", c.data.validation))
    statistics = records.statistics
    normalization = {
        "mean": statistics.mean,
        "components": augment.lighting_components(statistics, c.data.lighting),
    }
    return Setup(c, records, train, validation, network, replicate(network, normalization))


def replicate(network: ShardedModel, tree: Any) -> Any:
    """`tree`'s arrays and numbers on every device of the network's grid; the same for each."""
    everywhere = network.shardings(P())

    def placed(leaf: Any) -> jax.Array:
        array = np.asarray(leaf, jnp.result_type(leaf))
        return jax.make_array_from_callback(array.shape, everywhere, lambda index: array[index])

    return jax.tree.map(placed, tree)


def _check_records(records: Records, c: config.Config) -> None:
    manifest, where = records.manifest, f"the records in {c.data.records}"
    for key, found in (("size", manifest.size), ("format", manifest.format)):
        wanted = getattr(c.data, key)
        if wanted != found:
            raise UserError(
                f"{where} have {key} {found}, the config says {wanted}; "
                f"run with --config.data.{key}={found} or prepare them again in another folder"
            )
    if len(manifest.classes) > c.model.classes:
        raise UserError(
            f"{where} have {len(manifest.classes)} classes, the network has {c.model.classes}; "
            f"run with --config.model.classes={len(manifest.classes)}"
        )


def _split(records: Records, name: str, c: config.Config) -> Split:
    split, where = records.split(name), f"split {name!r} of the records in {c.data.records}"
    if len(split) == 0:
        raise UserError(f"{where} has no images")
    return split
