"""What every job begins with: the network on its devices, and for most jobs the records."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from alexnet_jax import config
from alexnet_jax.data import augment
from alexnet_jax.data.epochs import Epochs
from alexnet_jax.data.info import DataInfo, info_of
from alexnet_jax.data.origin import is_open, records_folder
from alexnet_jax.data.records import Records, Split, open_records
from alexnet_jax.data.sources import check_kind
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.arranged import ArrangedAlexNet
from alexnet_jax.model.cifar import CifarNet
from alexnet_jax.model.forms import NO_FORMS, Forms
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.sharding import check_batch, make_mesh
from alexnet_jax.training.scores import Evaluator


@dataclass(frozen=True)
class NetSetup:
    """What a trained network needs to score images: its parts, each made from the config.

    Attributes:
      config: the run's. It names the source of the records, even if that was left open.
      data: of the records that the network is trained on.
      network: the network on the config's devices.
      normalization: on every device: 'mean' float32 [size, size, 3], the mean image; 'components'
        float32 [3, 3], see `augment.lighting_components`.
      evaluator: of the network.
    """

    config: config.Config
    data: DataInfo
    network: ShardedModel
    normalization: dict[str, jax.Array]
    evaluator: Evaluator


@dataclass(frozen=True)
class Setup(NetSetup):
    """What does not change during a run, with the records.

    Attributes:
      records: the prepared images.
      train: the records' split to train on.
      order: the epochs, which may have a part of it only.
      validation: the records' split to evaluate on.
    """

    records: Records
    train: Split
    order: Epochs
    validation: Split


def make_network(
    c: config.Config, devices: Sequence[jax.Device] | None = None, forms: Forms = NO_FORMS
) -> ShardedModel:
    """The config's network on the config's devices. Nothing is placed on them yet.

    Args:
      c: the config.
      devices: the devices to choose from; None: those that JAX has found.
      forms: how layers are computed, see `forms.choose`; CIFAR nets have no forms.

    Raises:
      UserError: there are not enough devices, or the towers or the batches cannot share them; or
        the config leaves the number of classes open.
    """
    if not c.model.classes:
        raise UserError(
            "config.model.classes=0 takes the number from the images; give "
            "--config.data.source=folder:photos, or the number: --config.model.classes=10"
        )
    mesh = make_mesh(c.devices, c.model.towers if c.towers_apart else 1, devices)
    check_batch(mesh, c.batch, "config.batch")
    check_batch(mesh, c.evaluate.batch, "config.evaluate.batch")

    def build(rngs: nnx.Rngs) -> AlexNet | CifarNet:
        if isinstance(c.model, config.AlexNet):
            kind = ArrangedAlexNet if c.model.arranged else AlexNet
            return kind(c.model, c.data.crop, c.dtype, rngs=rngs, forms=forms)
        return CifarNet(c.model, c.data.crop, c.dtype, rngs)

    return ShardedModel(build, mesh)


def name_records(c: config.Config) -> config.Config:
    """The config with the folder of its records, if it only names their source.

    Raises:
      UserError: there is no such kind of source.
    """
    check_kind(c.data.source, "--config.data.source")
    if c.data.records or is_open(c.data.source):
        return c
    data = dataclasses.replace(c.data, records=records_folder(c.data.source))
    return dataclasses.replace(c, data=data)


def require_records(c: config.Config) -> None:
    """Raises UserError if the config names neither records nor their source."""
    if not c.data.records:
        raise UserError(
            "config.data.source is missing: say where the images are, as "
            "--config.data.source=folder:photos"
        )


def with_classes(c: config.Config, count: int) -> config.Config:
    """The config with the number of classes of its images, if it leaves that open.

    Raises:
      UserError: there are not two.
    """
    if c.model.classes:
        return c
    if count < 2:
        raise UserError(f"{c.data.source} has one class; a network needs two or more to tell apart")
    return dataclasses.replace(c, model=dataclasses.replace(c.model, classes=count))


def make_setup(c: config.Config) -> Setup:
    """Opens the records and makes the network.

    Raises:
      UserError: see `make_network`; or the records are missing, damaged, not those of the config,
        or not the same in all processes.
    """
    c = name_records(c)
    require_records(c)
    records = open_records(c.data.records)
    c = with_classes(c, len(records.manifest.classes))
    network = make_network(c)
    _check_records(records, c.data, c.model.classes)
    distributed.require_same("the records", records.manifest.hash)
    train = records.split("train")
    validation = records.split(c.data.validation, "--config.data.validation")
    order = _make_order(c.policy, train)
    parts = vars(make_net_setup(c, info_of(records), network))
    return Setup(**parts, records=records, train=train, order=order, validation=validation)


def make_net_setup(
    c: config.Config, data: DataInfo, network: ShardedModel | None = None
) -> NetSetup:
    """The network with what it needs of the images that it was trained on; without records.

    Args:
      c: the config.
      data: of the images.
      network: of the config; None: made here.

    Raises:
      UserError: see `make_network`.
    """
    network = network or make_network(c)
    if is_open(c.data.source):
        c = dataclasses.replace(c, data=dataclasses.replace(c.data, source=data.source))
    mean, statistics = replicate(network, data.statistics.mean), data.statistics
    components = augment.lighting_components(statistics, c.data.lighting)
    normalization = {"mean": mean, "components": replicate(network, components)}
    evaluator = Evaluator(network, mean, c.data, c.evaluate.batch)
    return NetSetup(c, data, network, normalization, evaluator)


def _make_order(policy: config.Plateau | config.Schedule, train: Split) -> Epochs:
    """The epochs. Raises UserError if a part of the images would lack classes."""
    order = Epochs(len(train), policy)
    for number, phase in enumerate(policy.phases if isinstance(policy, config.Schedule) else ()):
        have, all_ = (np.unique(labels) for labels in (train.labels[: phase.images], train.labels))
        if phase.images and len(have) < len(all_):
            raise UserError(
                f"config.policy.phases[{number}].images={phase.images}: the first images of the "
                f"training split have {len(have)} of {len(all_)} classes, so they are sorted by "
                f"class; prepare a source with another order, or set images to 0, for all"
            )
    return order


def with_forms(setup: Setup, forms: Forms) -> Setup:
    """The same setup, with a network that computes its layers in `forms`."""
    c, mean = setup.config, setup.normalization["mean"]
    network = make_network(c, forms=forms)
    evaluator = Evaluator(network, mean, c.data, c.evaluate.batch)
    return replace(setup, network=network, evaluator=evaluator)


def replicate(network: ShardedModel, tree: Any) -> Any:
    """Puts the arrays and numbers of `tree` on each of the network's devices."""
    sharding = network.shardings(P())

    def put(leaf: np.ndarray | float) -> jax.Array:
        array = np.asarray(leaf, jnp.result_type(leaf))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree)


def _check_records(records: Records, data: config.Data, classes: int) -> None:
    manifest, where = records.manifest, f"the records in {records.path}"
    for key in ("size", "format", "resize"):
        wanted, found = getattr(data, key), getattr(manifest, key)
        if wanted != found:
            raise UserError(
                f"{where} have {key} {found}, the config says {wanted}; "
                f"run with --config.data.{key}={found} or prepare them again in another folder"
            )
    if len(manifest.classes) > classes:
        raise UserError(
            f"{where} have {len(manifest.classes)} classes, the network has {classes}; "
            f"run with --config.model.classes={len(manifest.classes)}"
        )
