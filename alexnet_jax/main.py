"""python -m alexnet_jax.main --config=configs/NAME.py --workdir=DIR [--mode=MODE]

MODE is train, evaluate or describe. Any value of the config can be set as well:
--config.batch=64 --config.data.records=DIR.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags
from ml_collections import config_flags

from alexnet_jax import config, host
from alexnet_jax.data.records import is_prepared
from alexnet_jax.errors import UserError
from alexnet_jax.evaluate import evaluate
from alexnet_jax.model.describe import format_table, layer_table
from alexnet_jax.prepare import prepare
from alexnet_jax.setup import make_network
from alexnet_jax.train import fit

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run: a file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: metrics, checkpoints.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate", "describe"], "What to do.")
_STEP = flags.DEFINE_string("step", "newest", "Checkpoint to evaluate: newest, best or a number.")


def main(arguments: Sequence[str]) -> None:
    """Picks the job."""
    try:
        if arguments[1:]:
            raise UserError(f"{arguments[1]!r} is no option: options begin with --")
        if _CONFIG.value is None:
            raise UserError("--config is missing: give a file, as --config=configs/tiny.py")
        c = config.parse(_CONFIG.value)
        if _MODE.value != "describe" and _WORKDIR.value is None:
            raise UserError(
                "--workdir is missing: give a folder for the run, as --workdir=runs/tiny"
            )
        host.set_up(c.devices)
        _describe(c)
        folder = Path(_WORKDIR.value or ".")
        if _MODE.value == "train":
            _prepare(c)
            fit(c, folder)
        elif _MODE.value == "evaluate":
            evaluate(c, folder, _step(_STEP.value))
    except (UserError, OSError) as error:
        _fail(error)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the newest checkpoint", file=sys.stderr)
        sys.exit(130)


def _describe(c: config.Config) -> None:
    """Says on what the config's network runs, and what it is."""
    network = make_network(c)
    devices = network.mesh.devices.flatten()
    print(f"jax {jax.__version__}, {len(devices)} x {devices[0].device_kind}, {c.dtype}")
    print(format_table(layer_table(network, c), network), flush=True)


def _prepare(c: config.Config) -> None:
    """Makes the records if that needs nothing from the user."""
    data = c.data
    if data.source.split(":")[0] == "generated" and not is_prepared(data.records):
        print(f"making pictures in {data.records}", flush=True)
        prepare(data.source, data.records, size=data.size, format=data.format)


def _step(text: str) -> int | Any:
    if text not in ("newest", "best") and not text.isdecimal():
        raise UserError(f"--step={text}: give newest, best or the number of a checkpoint")
    return int(text) if text.isdecimal() else text


def _parse_flags(arguments: list[str]) -> list[str]:
    """The flags; what is wrong with them or with the config's file, in one line."""
    try:
        rest = flags.FLAGS(arguments)
        if _CONFIG.value is not None:
            _CONFIG.value.to_dict()  # a file that cannot be loaded says so when it is used
        return rest
    except flags.Error as error:
        _fail(error)
    except Exception as error:  # a config is a program: it may raise anything
        _fail(f"the config cannot be loaded: {type(error).__name__}: {error}")


def _fail(error: object) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
