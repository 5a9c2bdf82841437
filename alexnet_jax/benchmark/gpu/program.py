"""The step that `train` runs, compiled for a GPU that need not be there: what it moves and holds.

The images/s here are bounds: what the GPU could not exceed if every kernel took only as long as its
bytes, its products or its instructions need at least. Nothing is timed. What cannot be known
without a GPU: which algorithms cuDNN and cuBLAS choose, their scratch memory, and how well kernels
and exchanges overlap.
"""

import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from alexnet_jax.benchmark.bench import Bench, Row, case, traced_step
from alexnet_jax.benchmark.exchanges import Exchange, exchanges
from alexnet_jax.benchmark.gpu.instructions import EXTRA, Code, launches, read_code, tool
from alexnet_jax.benchmark.gpu.kernels import Kernel, kernels
from alexnet_jax.benchmark.gpu.targets import (
    BANDWIDTH_SHARE,
    PRODUCT_SHARE,
    TARGETS,
    Target,
    target_devices,
)
from alexnet_jax.config import Config
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.terminal import markdown_table
from alexnet_jax.training.setup import make_network

LAUNCH = 2.5e-6  # seconds that the smallest kernel takes in a row of others: an assumption
TOOLS = ("ptxas", "nvdisasm")  # NVIDIA's assembler, which XLA needs, too, and disassembler
LARGEST = 10  # kernels in the list of the largest

OPTIONS: dict[str, str | bool] = {
    # Without a GPU nothing is tuned, and an untuned product would be Triton's, of tiny tiles.
    "xla_gpu_enable_triton_gemm": False,
    "xla_dump_emitter_re": "ptx",  # the kernels' code is written to the folder `xla_dump_to`
}


class Cost(NamedTuple):
    """What a kernel takes at least in a step, in seconds."""

    kernel: Kernel
    roofline: float  # for its bytes or its products
    issue: float  # for its instructions; 0 where they are not known: in libraries
    code: Code | None

    @property
    def both(self) -> float:
        """The larger of the two."""
        return max(self.roofline, self.issue)


def configure() -> None:
    """Sets up JAX for a process that only compiles for GPUs; call it before JAX starts."""
    jax.config.update("jax_platforms", "cpu")  # no GPU is looked for, and none is taken


def measure(bench: Bench, targets: Sequence[str]) -> list[Row]:
    """A row for each target and case.

    Raises:
      UserError: the compiler is not installed, a target is unknown, or a case does not fit it.
    """
    unknown = [name for name in targets if name not in TARGETS]
    if unknown:
        raise UserError(f"--target={unknown[0]}: give one or more of {', '.join(TARGETS)}")
    require_compiler()
    cases = [(name, c) for name in targets for c in bench.cases()]
    return [measure_case(*one, bench.folder / f"dump-{i}") for i, one in enumerate(cases)]


def require_compiler() -> None:
    """Raises UserError unless XLA's compiler for NVIDIA GPUs is there, of JAX's own version."""
    package = "jax-cuda13-plugin"
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"program: the package {package} is missing; {EXTRA}") from None
    if found != jax.__version__:
        raise UserError(
            f"program: {package} is {found}, but jax is {jax.__version__}; "
            f'run pip install "{package}=={jax.__version__}"'
        )
    for name in TOOLS:
        tool(name)


def measure_case(name: str, c: Config, dump: Path) -> Row:
    """The row of a config on a target, by the target's name; `dump` is a folder for XLA's files.

    Raises:
      UserError: the step does not fit the target's memory, or the devices cannot share it.
    """
    target = TARGETS[name]
    network, traced, compiled = compile_step(target, c, dump)
    peak = _peak(compiled.memory_analysis())
    if peak > target.memory:
        raise UserError(
            f"program: batch {c.batch}, {c.dtype}, {c.devices} device(s): a step needs "
            f"{peak / 1e6:,.0f} MB on each, and an {name} has {target.memory / 1e6:,.0f} MB; "
            f"give a smaller --batch or more --devices"
        )
    found = costs(kernels(compiled.as_text(), c.model.names), target, dump)
    sent = exchanges(traced.jaxpr, network.mesh.shape)
    row: Row = {"target": name} | case(c) | _sums(found, c.batch)
    row |= {"peak_megabytes": peak / 1e6}
    row |= {"exchanged_megabytes": sum(one.sent for one in sent) / 1e6}
    row |= {"exchanges": [_exchange(one, c.model.names) for one in sent]}
    return row | {"largest": _largest(found), "layers": list(_by_layer(found, c.model.names))}


def compile_step(target: Target, c: Config, dump: Path) -> tuple[ShardedModel, Any, Any]:
    """The network, and the step that `train` runs as `jax.stages.Traced` and `Compiled`."""
    with _no_cache():
        network = make_network(c, target_devices(target, c.devices))
        traced = traced_step(network, c)
        options = OPTIONS | {"xla_dump_to": str(dump)}
        return network, traced, traced.lower().compile(compiler_options=options)


@contextmanager
def _no_cache() -> Iterator[None]:
    """Without the cache of compiled programs: one for a GPU that is not there cannot be loaded."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # JAX asks the option but once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        reset_cache()


def _peak(plan: Any) -> int:
    """Bytes that a device holds at most, by the compiler's plan."""
    new = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return int(plan.argument_size_in_bytes + plan.temp_size_in_bytes + new)


def costs(found: Sequence[Kernel], target: Target, dump: Path) -> list[Cost]:
    """The kernels with what they take at least, in the same order."""
    started, codes = launches(dump), read_code(dump)

    def cost(kernel: Kernel) -> Cost:
        launch = started.get(kernel.name)
        code = codes.get(launch.code) if launch else None
        issue = kernel.times * code.seconds(launch.warps, target) if launch and code else 0.0
        return Cost(kernel, roofline(kernel, target), issue, code)

    return [cost(kernel) for kernel in found]


def roofline(kernel: Kernel, target: Target) -> float:
    """Seconds of a step that a kernel takes at least for its bytes or its products."""
    rate = target.bfloat16 if kernel.dtype in ("bf16", "f16") else target.tfloat32
    products = kernel.flop / (PRODUCT_SHARE * rate)
    moves = (kernel.read + kernel.written) / (BANDWIDTH_SHARE * target.bandwidth)
    return kernel.times * max(moves, products, LAUNCH)


def _sums(found: Sequence[Cost], batch: int) -> Row:
    return {
        "gigabytes": sum(one.kernel.moved for one in found) / 1e9,
        "kernels": sum(one.kernel.times for one in found),
        "roofline_images_per_s": batch / sum(one.roofline for one in found),
        "issue_images_per_s": batch / sum(one.both for one in found),
    }


def _exchange(one: Exchange, layers: tuple[str, ...]) -> Row:
    direction = "backward" if one.backward else "forward"
    row = {"layer": one.layer(layers) or "other", "pass": direction, "kind": one.kind}
    return row | {"bytes": one.sent}


def _largest(found: Sequence[Cost]) -> list[Row]:
    """The kernels that move most."""
    rows = []
    for one in sorted(found, key=lambda one: -one.kernel.moved)[:LARGEST]:
        row = _place(one.kernel) | {"kind": one.kernel.kind, "name": one.kernel.name}
        row |= {"megabytes": one.kernel.moved / 1e6, "microseconds": 1e6 * one.roofline}
        if one.code:
            row |= {"issue_microseconds": 1e6 * one.issue, "instructions": one.code.counts["all"]}
            row |= {"registers": one.code.registers, "spilled_bytes": one.code.spilled}
        rows.append(row)
    return rows


def _place(kernel: Kernel) -> Row:
    return {"layer": kernel.layer or "other", "pass": kernel.direction or "other"}


def _by_layer(found: Sequence[Cost], layers: tuple[str, ...]) -> Iterator[Row]:
    """Megabytes and kernels of each layer and pass, in the order of the layers."""
    for layer in (*layers, ""):
        for direction in ("forward", "backward", ""):
            own = [k for k, *_ in found if (k.layer, k.direction) == (layer, direction)]
            if own:
                megabytes = sum(kernel.moved for kernel in own) / 1e6
                times = sum(kernel.times for kernel in own)
                yield _place(own[0]) | {"megabytes": megabytes, "kernels": times}


HEADINGS = {
    "gigabytes": "GB moved",
    "peak_megabytes": "peak, MB",
    "exchanged_megabytes": "sent, MB",
    "roofline_images_per_s": "bound by bytes and FLOP, images/s",
    "issue_images_per_s": "and by instructions",
    "bytes": "bytes sent by a device",
    "megabytes": "MB",
    "microseconds": "at least, us",
    "issue_microseconds": "to issue, us",
    "spilled_bytes": "spilled, bytes",
}
"""What is printed above a column, where it is not the key of the row."""


def report(rows: Sequence[Row]) -> str:
    """The rows as text: a table of the cases, then each case's exchanges and largest kernels."""
    detailed = ("largest", "layers")
    table = [{key: row[key] for key in row if key not in detailed} for row in rows]
    note = "On each device. Images/s are bounds, not speeds: nothing was timed."
    return "\n\n".join([_table(table), note, *map(_details, rows)])


def _details(row: Row) -> str:
    title = f"{row['target']}, batch {row['batch']}, {row['dtype']}, {row['devices']} device(s)"
    lists = {"exchanges": row["exchanges"], f"the {LARGEST} largest kernels": row["largest"]}
    return "\n\n".join(f"{title}: {what}\n\n{_table(rows)}" for what, rows in lists.items() if rows)


def _table(rows: Sequence[Row]) -> str:
    return markdown_table(
        [{HEADINGS.get(key, key): _cell(value) for key, value in row.items()} for row in rows]
    )


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return str(len(value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
