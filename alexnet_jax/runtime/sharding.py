"""The device mesh, and how batches lie on it.

The mesh has two axes: 'data', over which a batch is split, and 'tower', over which the network is
split. With two towers on two devices, the 'tower' axis has two devices, A and B. On a single device
it has one, which holds both towers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alexnet_jax.model.towers import DATA, TOWER
from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.errors import UserError


def make_mesh(devices: int, towers: int, among: Sequence[jax.Device] | None = None) -> Mesh:
    """The ('data', 'tower') mesh of the first `devices` devices; a pair's towers are neighbours.

    Args:
      devices: how many.
      towers: 2 if two towers lie on devices of their own (unless there is only one device), else 1.
      among: the devices to choose from; None: those that JAX has found.

    Raises:
      UserError: there are fewer devices, or two towers cannot share an odd number of them; or there
        are several processes, and the devices are not all that they have.
    """
    found = list(among or jax.devices())
    if distributed.process_count() > 1:
        if devices != len(found):
            raise UserError(
                f"config.devices={devices}, but the {distributed.process_count()} processes have "
                f"{len(found)} devices; run with --config.devices={len(found)}"
            )
        found = by_machine(found, distributed.hosts())
    if devices > len(found):
        raise UserError(
            f"config.devices={devices}, but this machine has {len(found)} {found[0].platform} "
            f"device(s); run with --config.devices={len(found)} or fewer"
        )
    if towers > 1 and devices > 1 and devices % towers:
        raise UserError(
            f"config.devices={devices} cannot be shared by {towers} towers; use 1 (both towers "
            f"on it) or an even number, or --config.towers_apart=False"
        )
    columns = 1 if devices == 1 else towers
    grid = np.array(found[:devices]).reshape(-1, columns)
    return Mesh(grid, (DATA, TOWER))


def by_machine(devices: Sequence[jax.Device], hosts: Sequence[int]) -> list[jax.Device]:
    """The devices, sorted by machine: a pair of towers does not cross machines without need.

    Args:
      devices: of all processes.
      hosts: for each process, a number that stands for its machine.
    """
    return sorted(devices, key=lambda d: (hosts[d.process_index], d.process_index, d.id))


def check_batch(mesh: Mesh, batch: int, key: str) -> None:
    """Raises UserError if the rows of the mesh cannot share a batch equally."""
    rows = mesh.shape[DATA]
    if batch % rows:
        raise UserError(
            f"{key}={batch} cannot be shared by {rows} rows of devices; use a multiple of {rows}"
        )


def local_rows(mesh: Mesh, batch: int) -> list[tuple[int, int]]:
    """The ranges [start, stop) of the global batch that this process's devices hold, in order."""
    sharding = NamedSharding(mesh, P(DATA))
    held = sharding.addressable_devices_indices_map((batch,)).values()
    return sorted({index[0].indices(batch)[:2] for index in held if index is not None})


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray], rows: int) -> dict[str, jax.Array]:
    """Puts this process's rows of a global batch of `rows` on its devices, split over 'data'."""
    sharding = NamedSharding(mesh, P(DATA))
    return {
        name: jax.make_array_from_process_local_data(sharding, part, (rows, *part.shape[1:]))
        for name, part in batch.items()
    }


def fetch(tree: Any) -> Any:
    """A tree of arrays on the mesh as numpy arrays: whole, and in every process."""
    return jax.device_get(gather(tree))


def gather(tree: Any) -> Any:
    """A tree of arrays on the mesh, each whole in every process. Does not wait for the devices."""

    def whole(array: jax.Array) -> jax.Array:
        if array.is_fully_addressable or array.is_fully_replicated:
            return array
        assert isinstance(array.sharding, NamedSharding)
        return jax.device_put(array, NamedSharding(array.sharding.mesh, P()))

    return jax.tree.map(whole, tree)
