"""Times a training step and its parts; counts what a step sends, moves and holds.

python -m alexnet_jax.benchmark SECTION --config=configs/NAME.py [--batch=32] [--peer] ...

Sections: step, layers, input, train, collectives, traffic, memory, compile, program. Generated
images are used if the records of the config are missing. --batch, --dtype and --devices take lists:
--batch=16,32,128.

program compiles the step for a GPU that need not be there (--target=h100,h200,a100,l4), and counts
what it moves and holds. It needs the extra gpu-program. Its images/s are bounds, not speeds.
"""

import json
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import flags

from alexnet_jax.benchmark import input_time, layer_time, program, startup_time, step_time
from alexnet_jax.benchmark.bench import Bench, Row, with_records
from alexnet_jax.benchmark.gpu import program as gpu_program
from alexnet_jax.runtime import cli, host
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.terminal import markdown_table

OPTIONS = flags.FlagValues()
CONFIG = cli.define_config(OPTIONS)
BATCH = flags.DEFINE_list("batch", None, "Images in a step; if not given, the config's.", OPTIONS)
DTYPE = flags.DEFINE_list("dtype", None, "float32, bfloat16; if not given, the config's.", OPTIONS)
DEVICES = flags.DEFINE_list("devices", None, "Numbers of devices; else the config's.", OPTIONS)
PEER = flags.DEFINE_bool("peer", False, "In step: time PyTorch and plain JAX, too.", OPTIONS)
REPEATS = flags.DEFINE_integer("repeats", 5, "How often to measure each.", 1, flag_values=OPTIONS)
TARGET = flags.DEFINE_list("target", None, "In program: h100, h200, a100, l4.", OPTIONS)
JSON = flags.DEFINE_string("json", None, "File to write the table to, with the machine.", OPTIONS)

SECTIONS: dict[str, Callable[[Bench], list[Row]]] = {
    "step": step_time.measure,
    "layers": layer_time.measure,
    "input": input_time.measure_input,
    "train": input_time.measure_train,
    "collectives": program.measure_collectives,
    "traffic": program.measure_traffic,
    "memory": program.measure_memory,
    "compile": startup_time.measure,
    "program": lambda bench: gpu_program.measure(bench, cli.required(TARGET, "h100")),
}
STEPS = ("step", "layers", "input", "train", "compile")
"""The sections that run a step or read records."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are those of the process if None."""
    cli.run(_run, OPTIONS, __doc__, arguments)


def _run(arguments: Sequence[str]) -> None:
    section = cli.one_of(SECTIONS, arguments)
    if PEER.value and section != "step":
        raise UserError(f"--peer: only the section step compares with others, not {section}")
    if TARGET.value and section != "program":
        raise UserError(f"--target: only the section program compiles for a target, not {section}")
    file, c = cli.output(JSON), cli.given_config(CONFIG)
    batches, devices = _numbers(BATCH, c.batch), _numbers(DEVICES, c.devices)
    dtypes = _dtypes(c.dtype)
    if section == "program":
        gpu_program.configure()
    host.configure_jax(max(devices), deterministic=c.deterministic)
    with tempfile.TemporaryDirectory(prefix="alexnet-jax-benchmark-") as folder:
        scratch = Path(folder)
        c = with_records(c, scratch) if section in STEPS else c
        bench = Bench(c, batches, dtypes, devices, PEER.value, REPEATS.value, scratch)
        rows = SECTIONS[section](bench)
    machine = host.describe(jax.devices()) | {"python": platform.python_version()}
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(gpu_program.report(rows) if section == "program" else _table(rows))
    if file:
        result = {"section": section, "machine": machine, "rows": rows, "command": sys.argv}
        file.write_text(json.dumps(result, indent=1) + "\n")


def _numbers(flag: flags.FlagHolder[list[str] | None], otherwise: int) -> tuple[int, ...]:
    given = flag.value or [str(otherwise)]
    for one in given:
        if not one.isdecimal() or not 1 <= int(one) < 2**31:
            raise UserError(f"--{flag.name}={one}: give whole numbers from 1, as 16,32")
    return tuple(map(int, given))


def _dtypes(otherwise: str) -> tuple[str, ...]:
    given = DTYPE.value or [otherwise]
    for one in given:
        if one not in ("float32", "bfloat16"):
            raise UserError(f"--dtype={one}: give float32, bfloat16 or both")
    return tuple(given)


def _table(rows: list[Row]) -> str:
    return markdown_table([{name: _cell(value) for name, value in row.items()} for row in rows])


def _cell(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
