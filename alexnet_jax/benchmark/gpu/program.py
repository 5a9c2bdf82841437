"""The step that `train` runs, compiled for a GPU that need not be there: what it moves and holds.

The images/s here are bounds: what the GPU could not exceed if each kernel took as long as its bytes
or its products need at least. Nothing is timed. What cannot be known without a GPU: cuDNN's and
cuBLAS's choice of algorithms, their scratch memory, and how well kernels and exchanges overlap.
"""

import importlib.metadata
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from alexnet_jax.benchmark.bench import Bench, Row, case, traced_step
from alexnet_jax.benchmark.exchanges import Exchange, exchanges
from alexnet_jax.benchmark.gpu.kernels import Kernel, kernels
from alexnet_jax.benchmark.gpu.targets import (
    BANDWIDTH_SHARE,
    PRODUCT_SHARE,
    TARGETS,
    Target,
    target_devices,
)
from alexnet_jax.config import Config
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.terminal import markdown_table
from alexnet_jax.training.setup import make_network

EXTRA = 'pip install "alexnet-jax[gpu-program]"'
LAUNCH = 2.5e-6  # seconds that the smallest kernel takes in a row of others: an assumption
LARGEST = 10  # kernels in the list of the largest

OPTIONS: dict[str, str | bool] = {
    # Without a GPU nothing is tuned, and an untuned product would be Triton's, of tiny tiles.
    "xla_gpu_enable_triton_gemm": False,
}


def measure(bench: Bench, targets: Sequence[str]) -> list[Row]:
    """A row for each target and case.

    Raises:
      UserError: the compiler is not installed, a target is unknown, or a case does not fit it.
    """
    unknown = [name for name in targets if name not in TARGETS]
    if unknown:
        raise UserError(f"--target={unknown[0]}: give one or more of {', '.join(TARGETS)}")
    require_compiler()
    return [_row(name, c) for name in targets for c in bench.cases()]


def require_compiler() -> None:
    """Raises UserError unless XLA's compiler for NVIDIA GPUs is there, of JAX's own version."""
    for package in ("jax-cuda13-plugin", "jax-cuda13-pjrt"):
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise UserError(f"program: the package {package} is missing; {EXTRA}") from None
        if found != jax.__version__:
            raise UserError(
                f"program: {package} is {found}, but jax is {jax.__version__}; "
                f'pip install "{package}=={jax.__version__}"'
            )


def _row(name: str, c: Config) -> Row:
    target = TARGETS[name]
    network = make_network(c, target_devices(target, c.devices))
    traced = traced_step(network, c)
    compiled = traced.lower().compile(compiler_options=OPTIONS)
    peak = _peak(compiled.memory_analysis())
    where = f"batch {c.batch}, {c.dtype}, {c.devices} device(s)"
    if peak > target.memory:
        raise UserError(
            f"program: {where} does not fit an {name}: it needs {peak / 1e6:,.0f} MB on each, and "
            f"there are {target.memory / 1e6:,.0f} MB; give a smaller --batch or more --devices"
        )
    found = kernels(compiled.as_text(), c.model.names)
    sent = exchanges(traced.jaxpr, network.mesh.shape)
    return (
        {"target": name}
        | case(c)
        | summary(found, sent, target, c)
        | {"peak_megabytes": peak / 1e6}
    )


def _peak(plan: Any) -> int:
    """Bytes that a device holds at most, by the compiler's plan."""
    new = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return int(plan.argument_size_in_bytes + plan.temp_size_in_bytes + new)


def summary(found: Sequence[Kernel], sent: Sequence[Exchange], target: Target, c: Config) -> Row:
    """What a row says of a program's kernels and exchanges."""
    seconds = [roofline(kernel, target) for kernel in found]
    ordered = sorted(zip(found, seconds, strict=True), key=lambda pair: -pair[0].moved)
    return {
        "gigabytes": sum(kernel.moved for kernel in found) / 1e9,
        "kernels": sum(kernel.times for kernel in found),
        "roofline_images_per_s": c.batch / sum(seconds),
        "exchanged_megabytes": sum(one.sent for one in sent) / 1e6,
        "exchanges": [_exchange(one, c.model.names) for one in sent],
        "largest": [_described(kernel, s) for kernel, s in ordered[:LARGEST]],
        "layers": list(_by_layer(found, c.model.names)),
    }


def roofline(kernel: Kernel, target: Target) -> float:
    """Seconds of a step that a kernel takes at least, for its bytes or for its products."""
    bandwidth = BANDWIDTH_SHARE * target.bandwidth
    low = kernel.dtype in ("bf16", "f16")
    rate = PRODUCT_SHARE * (target.bfloat16 if low else target.tfloat32)
    once = max((kernel.read + kernel.written) / bandwidth, kernel.flop / rate, LAUNCH)
    return kernel.times * once


def _exchange(one: Exchange, layers: tuple[str, ...]) -> Row:
    direction = "backward" if one.backward else "forward"
    row = {"layer": one.layer(layers) or "other", "pass": direction, "kind": one.kind}
    return row | {"bytes": one.sent}


def _described(kernel: Kernel, seconds: float) -> Row:
    return _place(kernel) | {
        "kind": kernel.kind,
        "name": kernel.name,
        "megabytes": kernel.moved / 1e6,
        "gigaflop": kernel.flop * kernel.times / 1e9,
        "microseconds": 1e6 * seconds,
    }


def _place(kernel: Kernel) -> Row:
    return {"layer": kernel.layer or "other", "pass": kernel.direction or "other"}


def _by_layer(found: Sequence[Kernel], layers: tuple[str, ...]) -> Iterator[Row]:
    """Megabytes and kernels of each layer and pass, in the order of the layers."""
    for layer in (*layers, ""):
        for direction in ("forward", "backward", ""):
            own = [k for k in found if (k.layer, k.direction) == (layer, direction)]
            if own:
                megabytes = sum(kernel.moved for kernel in own) / 1e6
                times = sum(kernel.times for kernel in own)
                yield _place(own[0]) | {"megabytes": megabytes, "kernels": times}


COLUMNS = {
    "gigabytes": "GB moved",
    "kernels": "kernels",
    "peak_megabytes": "peak, MB",
    "exchanges": "exchanges",
    "exchanged_megabytes": "sent, MB",
    "roofline_images_per_s": "bound by bytes and FLOP, images/s",
}
"""The columns of the printed table, by their keys in a row."""


def report(rows: Sequence[Row]) -> str:
    """The rows as text: a table of the cases, then each case's exchanges and largest kernels."""
    keys = ("target", "batch", "dtype", "devices", *COLUMNS)
    table = [{COLUMNS.get(key, key): _cell(row[key]) for key in keys} for row in rows]
    note = "On each device. Images/s are bounds, not speeds: nothing was timed."
    return "\n\n".join([markdown_table(table), note, *map(_details, rows)])


def _details(row: Row) -> str:
    title = f"{row['target']}, batch {row['batch']}, {row['dtype']}, {row['devices']} device(s)"
    parts = []
    for heading, key in (("exchanges", "exchanges"), (f"the {LARGEST} largest kernels", "largest")):
        if row[key]:
            cells = [{name: _cell(value) for name, value in one.items()} for one in row[key]]
            parts.append(f"{title}: {heading}\n\n{markdown_table(cells)}")
    return "\n\n".join(parts)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return str(len(value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
