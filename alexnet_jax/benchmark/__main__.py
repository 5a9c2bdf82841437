"""python -m alexnet_jax.benchmark SECTION --config=configs/NAME.py [--batch=32] [--peer] ...

Sections: step, layers, input, train, collectives, traffic, memory, compile. Without the config's
records it draws images. --batch, --dtype and --devices take lists, as --batch=16,32,128.
"""

import json
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from alexnet_jax.benchmark import input_time, layer_time, program, startup_time, step_time
from alexnet_jax.benchmark.bench import Bench, DType, Row, with_records
from alexnet_jax.runtime import cli, host
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.terminal import markdown_table

_BATCH = flags.DEFINE_list("batch", None, "Images in a step; the config's.")
_DTYPE = flags.DEFINE_list("dtype", None, "float32, bfloat16; the config's.")
_DEVICES = flags.DEFINE_list("devices", None, "Numbers of devices; the config's.")
_PEER = flags.DEFINE_bool("peer", False, "In step: time PyTorch and plain JAX beside.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Repetitions of each thing.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "Write the table to this file, too.")

SECTIONS: dict[str, Callable[[Bench], list[Row]]] = {
    "step": step_time.measure,
    "layers": layer_time.measure,
    "input": input_time.measure_input,
    "train": input_time.measure_train,
    "collectives": program.measure_collectives,
    "traffic": program.measure_traffic,
    "memory": program.measure_memory,
    "compile": startup_time.measure,
}


def main(arguments: Sequence[str]) -> None:
    """Measures a section; prints the table."""
    if len(arguments) != 1 or arguments[0] not in SECTIONS:
        raise UserError(f"name one section: {', '.join(SECTIONS)}; got {' '.join(arguments)!r}")
    if _PEER.value and arguments[0] != "step":
        raise UserError(f"--peer: {arguments[0]} has no peers, only step has")
    if _JSON.value and not Path(_JSON.value).absolute().parent.is_dir():
        raise UserError(f"--json={_JSON.value}: make its folder first")
    c = cli.given_config()
    devices = _numbers(_DEVICES, c.devices)
    host.configure_jax(max(devices), deterministic=c.deterministic)
    with tempfile.TemporaryDirectory(prefix="alexnet-jax-benchmark-") as folder:
        bench = Bench(
            config=with_records(c, Path(folder)),
            batches=_numbers(_BATCH, c.batch),
            dtypes=_dtypes(c.dtype),
            devices=devices,
            peer=_PEER.value,
            repeats=_REPEATS.value,
            folder=Path(folder),
        )
        rows = SECTIONS[arguments[0]](bench)
    print(_machine_text())
    print(_table(rows))
    if _JSON.value:
        result = {"section": arguments[0], "machine": _machine(), "rows": rows}
        Path(_JSON.value).write_text(json.dumps(result | {"command": sys.argv}, indent=1) + "\n")


def _numbers(flag: Any, otherwise: int) -> tuple[int, ...]:
    given = flag.value or [str(otherwise)]
    for one in given:
        if not one.isdecimal() or int(one) < 1:
            raise UserError(f"--{flag.name}={one}: give whole numbers from 1, as 16,32")
    return tuple(map(int, given))


def _dtypes(otherwise: DType) -> tuple[DType, ...]:
    known: dict[str, DType] = {"float32": "float32", "bfloat16": "bfloat16"}
    for one in _DTYPE.value or []:
        if one not in known:
            raise UserError(f"--dtype={one}: give float32, bfloat16 or both")
    return tuple(known[one] for one in _DTYPE.value or [otherwise])


def _machine() -> dict[str, Any]:
    return host.describe(jax.devices()) | {"python": platform.python_version()}


def _machine_text() -> str:
    return ", ".join(f"{name} {value}" for name, value in _machine().items())


def _table(rows: list[Row]) -> str:
    """Markdown; a column for every key that any row has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return markdown_table([columns, *([_cell(row.get(name)) for name in columns] for row in rows)])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    cli.run(main, "stopped")
