"""The grid of devices, and everything that depends on it.

The grid has two axes: 'data', over which a batch is split, and 'tower', over which the network is.
With two towers the 'tower' axis has two devices, A and B; on a single device it has one, which
holds both towers. Inside ``jax.shard_map`` a device sees only its part of each array, so the layers
are written once, for whatever number of towers lies here.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alexnet_jax.model.towers import DATA, TOWER
from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.errors import UserError


def make_mesh(devices: int, towers: int) -> Mesh:
    """The ('data', 'tower') grid over the first `devices` devices; a pair's towers are neighbours.

    Args:
      devices: how many.
      towers: that each have a device of their own, unless there is only one device.

    Raises:
      UserError: there are fewer devices, or two towers cannot share an odd number of them; or there
        are several processes, and the devices are not all that they have.
    """
    found = jax.devices()
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
    return Mesh(grid, (DATA, TOWER), axis_types=(AxisType.Auto, AxisType.Auto))


def by_machine(devices: Sequence[jax.Device], hosts: Sequence[int]) -> list[jax.Device]:
    """The devices of one machine after those of another, however its processes are numbered.

    Args:
      devices: of all processes.
      hosts: for each process, a number that stands for its machine.
    """
    return sorted(devices, key=lambda d: (hosts[d.process_index], d.process_index, d.id))


# --- a network as pure functions over parameters that lie on a grid ----------------------------


class ShardedModel:
    """A network whose parameters lie on a mesh: a tree of arrays, and functions of it.

    Attributes:
      mesh: the grid.
      specs: a PartitionSpec for each parameter, in a tree like theirs.
      shapes: ShapeDtypeStructs with the global shape of each parameter.
    """

    def __init__(self, build: Callable[[nnx.Rngs], Any], mesh: Mesh) -> None:
        """`build` makes the nnx module; its Params carry `out_sharding`, as in layers.py."""
        self.mesh = mesh
        self._build = build
        self._graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
        self._structure = jax.tree.structure(state)
        self.shapes = nnx.to_pure_dict(state)
        specs = nnx.to_pure_dict(nnx.get_partition_spec(state))
        self.specs = jax.tree.map(lambda spec: self.spec(*spec), specs, is_leaf=_is_spec)

    def spec(self, *axes: str | None) -> P:
        """How an array is split whose axes are split over `axes` of the grid.

        An axis of the grid that has one device splits nothing and is left out: named, it would
        leave sums over one device in the compiled step.
        """
        return P(*(axis if axis and self.mesh.shape[axis] > 1 else None for axis in axes))

    def init(self, seed: int) -> Any:
        """Initial parameters {'conv1': {'kernel': ..., 'bias': ...}, ...}; the grid has no part."""

        def params() -> Any:
            return nnx.to_pure_dict(nnx.state(self._build(nnx.Rngs(seed))))

        return jax.jit(params, out_shardings=self.shardings(self.specs))()

    def bind(self, params: Any) -> Any:
        """The module with `params`: whole arrays, or inside ``shard_map`` this device's parts."""
        return nnx.merge(self._graph, jax.tree.unflatten(self._structure, jax.tree.leaves(params)))

    def shardings(self, specs: Any) -> Any:
        """NamedShardings on this grid for a tree of PartitionSpecs."""
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs, is_leaf=_is_spec)

    def shard_map(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
        """`function` run on every device over its parts of the arguments."""
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)

    def jit(self, function: Callable[..., Any], *, donate: int | None = None) -> Any:
        """`function`, compiled as suits the platform; the memory of argument `donate` is reused."""
        donated = () if donate is None else (donate,)
        return jax.jit(function, donate_argnums=donated, compiler_options=_compiler_options())


@functools.cache
def _compiler_options() -> dict[str, str]:
    """Of XLA. On a CPU its library YNNPACK, for matrix products only.

    By default it computes convolutions too; the ones that it replaces are up to three times as fast
    (docs/performance.md). XLA calls the option experimental, so it may be gone in later versions.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, P)


# --- the batch --------------------------------------------------------------------------------


def check_batch(mesh: Mesh, batch: int, key: str) -> None:
    """Raises UserError when the rows of the grid cannot share a batch equally."""
    rows = mesh.shape[DATA]
    if batch % rows:
        raise UserError(
            f"{key}={batch} cannot be shared by {rows} rows of devices; use a multiple of {rows}"
        )


def local_rows(mesh: Mesh, batch: int) -> list[tuple[int, int]]:
    """The ranges [start, stop) of the global batch that this process' devices hold, in order."""
    sharding = NamedSharding(mesh, P(DATA))
    held = sharding.addressable_devices_indices_map((batch,)).values()
    return sorted({index[0].indices(batch)[:2] for index in held if index is not None})


def fetch(tree: Any) -> Any:
    """Arrays that lie on a grid, as numpy has them: whole, and in every process."""

    def whole(array: jax.Array) -> Any:
        here = array.is_fully_addressable or array.is_fully_replicated
        return array if here else multihost_utils.process_allgather(array, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray], rows: int) -> dict[str, jax.Array]:
    """Arrays over the grid, split over 'data', of this process' rows of a batch of `rows`."""
    sharding = NamedSharding(mesh, P(DATA))
    return {
        name: jax.make_array_from_process_local_data(sharding, part, (rows, *part.shape[1:]))
        for name, part in batch.items()
    }
