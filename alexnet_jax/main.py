"""Trains a network, scores a checkpoint, or describes a network and runs nothing.

python -m alexnet_jax.main --config=configs/NAME.py --workdir=DIR [--mode=MODE]

MODE is train, evaluate or describe. Any value of the config can be set on the command line:
--config.batch=64 --config.data.records=DIR. If a cluster starts this command in several processes,
they share the work (launch/README.md).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from alexnet_jax import config
from alexnet_jax.data.origin import is_open
from alexnet_jax.data.records import is_prepared, open_records
from alexnet_jax.data.sources import open_source
from alexnet_jax.evaluate import evaluate
from alexnet_jax.model.describe import format_lrn, format_table, layer_table
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import cli, distributed, host, workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.terminal import say
from alexnet_jax.train import fit
from alexnet_jax.training import trained
from alexnet_jax.training.memory import check_memory
from alexnet_jax.training.setup import make_network, name_records, require_records, with_classes

OPTIONS = flags.FlagValues()
CONFIG = cli.define_config(OPTIONS)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: metrics, checkpoints.", OPTIONS)
MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate", "describe"], "What to do.", OPTIONS)
STEP = flags.DEFINE_string("step", "newest", "Checkpoint: newest, best or a number.", OPTIONS)
ON = flags.DEFINE_string(
    "on", None, "In evaluate: other records, or a folder with CLASS/IMAGE or ImageNet-C.", OPTIONS
)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are those of the process if None."""
    resume = "stopped; the same command resumes from the newest checkpoint"
    cli.run(_run, OPTIONS, __doc__, arguments, stopped=resume)


def _run(arguments: Sequence[str]) -> None:
    cli.no_more(arguments)
    c = cli.given_config(CONFIG)
    if ON.value is not None and MODE.value != "evaluate":
        raise UserError("--on: only --mode=evaluate scores other images")
    folder = None if MODE.value == "describe" else Path(cli.required(WORKDIR, "runs/tiny"))
    step = trained.parse_step(STEP.value)
    distributed.initialize()
    distributed.require_same("--config", json.dumps(config.as_dict(c)))
    if folder is not None and MODE.value == "evaluate":
        workdir.read_config(folder)  # before all that takes longer
    host.configure_jax(c.devices, deterministic=c.deterministic)
    c = _complete(c)
    if folder is not None:
        distributed.on_main_process(lambda: _check_workdir(c, folder))
    network = make_network(c)
    _describe(c, network)
    if folder is None:
        return
    if MODE.value == "train":
        check_memory(network, c, training=True)
        distributed.on_main_process(lambda: _prepare(c.data))
        fit(c, folder)
    else:
        evaluate(c, folder, step, Path(ON.value) if ON.value else None)


def _describe(c: config.Config, network: ShardedModel) -> None:
    """Prints the devices that the config's network runs on, and a table of its layers."""
    devices = network.mesh.devices.flatten()
    processes = distributed.process_count()
    among = f" in {processes} processes" if processes > 1 else ""
    say(f"jax {jax.__version__}, {len(devices)} x {devices[0].device_kind}{among}, {c.dtype}")
    rows = layer_table(network, c)
    say(format_table(rows, network))
    if line := format_lrn(rows, c):
        say(line)


def _complete(c: config.Config) -> config.Config:
    """The config with what it leaves open: the folder of the records, the number of classes."""
    c = name_records(c)
    if c.model.classes:
        return c
    require_records(c)
    return with_classes(c, distributed.on_main_process(lambda: _count_classes(c.data)))


def _count_classes(data: config.Data) -> int:
    """Of the records, or of the source if they are not there yet."""
    if is_prepared(data.records) or is_open(data.source):
        return len(open_records(data.records).manifest.classes)
    return len(open_source(data.source, data.size).classes)


def _check_workdir(c: config.Config, folder: Path) -> None:
    """Raises UserError if `folder` holds a run of another config, or of a source not prepared."""
    if not (folder / workdir.CONFIG).exists():
        return
    before = workdir.read_config(folder).data.source
    if _lacks_records(c.data) and before != c.data.source:
        raise UserError(
            f"{folder} was trained on {before}; --config.data.source says {c.data.source}; "
            f"give another --workdir, and --config.init_from={folder} to start from its weights"
        )
    workdir.check(folder, c)


def _prepare(data: config.Data) -> None:
    """Makes the records if they are not there and the config says of what; raises as `prepare`."""
    if _lacks_records(data):
        say(f"making records in {data.records}")
        prepare(data.source, data.records, size=data.size, format=data.format, resize=data.resize)


def _lacks_records(data: config.Data) -> bool:
    return not is_open(data.source) and not is_prepared(data.records)


if __name__ == "__main__":
    main()
