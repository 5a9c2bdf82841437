"""A network as pure functions of parameters that lie on a device mesh."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from alexnet_jax.model.towers import DATA

COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {
    # On a CPU, XLA computes convolutions by its library YNNPACK, if nothing else is said. XLA's own
    # convolutions are up to three times as fast in the gradients (docs/performance.md), so YNNPACK
    # is left the matrix products only.
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"},
    # Exchanges run beside the computation.
    "gpu": {"xla_gpu_enable_latency_hiding_scheduler": True},
}
"""What XLA is told, by platform. An option that this version of XLA does not know is left out."""


class ShardedModel:
    """A network whose parameters lie on a mesh: a tree of arrays, and functions of it.

    Building one places no arrays and computes nothing.

    Attributes:
      mesh: of devices, with the axes 'data' and 'tower'.
      specs: a PartitionSpec for each parameter: {'conv1': {'kernel': P(...), 'bias': P(...)}, ...}.
      shapes: ShapeDtypeStructs with the global shape of each parameter, in a tree like `specs`.
    """

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module], mesh: Mesh) -> None:
        """`build` makes the module; its parameters know how they are split (see `layers`)."""
        self.mesh = mesh
        self._build = build
        self._graph, self._state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
        self.shapes = nnx.to_pure_dict(self._state)
        specs = nnx.to_pure_dict(nnx.get_partition_spec(self._state))
        self.specs = jax.tree.map(lambda spec: self.spec(*spec), specs, is_leaf=_is_spec)

    @property
    def platform(self) -> str:
        """'cpu', 'gpu', ...: of the mesh's devices."""
        return str(self.mesh.devices.flat[0].platform)

    def spec(self, *axes: str | None) -> P:
        """The PartitionSpec of an array whose axes are split over the mesh's `axes`.

        A mesh axis with one device splits nothing and is left out: if it were named, the compiled
        step would hold sums over one device.
        """
        return P(*(axis if axis and self.mesh.shape[axis] > 1 else None for axis in axes))

    def init(self, seed: int) -> Any:
        """The initial parameters, float32. They are the same on every mesh."""

        def params() -> Any:
            return nnx.to_pure_dict(nnx.state(self._build(nnx.Rngs(seed))))

        # It runs once, so on a CPU XLA is not to spend seconds on making it fast (a third of the
        # time for alexnet.py, the same bits).
        options = {"xla_backend_optimization_level": 1} if self.platform == "cpu" else {}
        placed = self.shardings(self.specs)
        return jax.jit(params, out_shardings=placed, compiler_options=options)()

    def bind(self, params: Any) -> Any:
        """The module with `params`: global arrays, or inside `shard_map` this device's parts.

        Their gradients are summed over the rows of devices in float32, whatever the network
        computes in: here, before they get another dtype, they become each row's own.
        """
        if DATA in jax.sharding.get_abstract_mesh().manual_axes and self.mesh.shape[DATA] > 1:
            params = {layer: _of_each_row(layer, own) for layer, own in params.items()}
        state = jax.tree.map(lambda leaf: leaf, self._state)  # a copy, which is filled below
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self._graph, state)

    def module(self) -> Any:
        """The module with ShapeDtypeStructs in place of arrays: to ask what it is made of."""
        return nnx.merge(self._graph, self._state)

    def shardings(self, specs: Any) -> Any:
        """NamedShardings on this mesh, for a tree of PartitionSpecs."""
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs, is_leaf=_is_spec)

    def shard_map(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
        """`function`, run on every device over its parts of the arguments."""
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)

    def jit(self, function: Callable[..., Any], *, donate: int | None = None) -> Any:
        """`function`, compiled for the mesh's platform; argument `donate` gives up its memory."""
        donated = () if donate is None else (donate,)
        options = _known_options(self.mesh.local_devices[0])
        return jax.jit(function, donate_argnums=donated, compiler_options=options)


def _of_each_row(layer: str, params: Any) -> Any:
    with jax.named_scope(layer):
        return jax.tree.map(lambda leaf: lax.pcast(leaf, DATA, to="varying"), params)


@functools.cache
def _known_options(device: jax.Device) -> dict[str, str | bool]:
    """Those of `COMPILER_OPTIONS` that XLA knows; an unknown one makes it raise an error."""
    placed = SingleDeviceSharding(device)

    def known(name: str, value: str | bool) -> bool:
        try:
            options = {name: value}
            jax.jit(lambda: 0, out_shardings=placed, compiler_options=options).lower().compile()
        except (jax.errors.JaxRuntimeError, RuntimeError):
            return False
        return True

    options = COMPILER_OPTIONS.get(device.platform, {})
    return {name: value for name, value in options.items() if known(name, value)}


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, P)
