"""Weights in and out: a network's parameters in a safetensors file, in one of three layouts.

python -m alexnet_jax.weights save --workdir=DIR --out=FOLDER [--step=best]
python -m alexnet_jax.weights export --model=MODEL --to=onnx|caffe|torch --file=FILE [--step=best]
python -m alexnet_jax.weights export --model=MODEL --file=FILE [--layout=LAYOUT] [--step=best]
python -m alexnet_jax.weights import --config=configs/NAME.py --workdir=DIR --file=FILE [...]
python -m alexnet_jax.weights import --from=KIND --file=FILE --workdir=DIR [--mean=MEAN]

`save` writes a folder to share, which predict and `alexnet_jax.from_pretrained` open: weights, mean
image, config, names of the classes and a model card.

classic  'conv2.kernel' [5, 5, 48, 256] and 'conv2.bias', as they lie here; fc6's inputs [6, 6, 256]
torch    'conv2.weight' [256, 48, 5, 5] of Conv2d(groups=2); Linear over x.flatten(1), [256, 6, 6]
caffe    'conv2.0', 'conv2.1': as torch's, but conv1 sees the colours as blue, green, red

The file also holds the mean image, as `mean`, and in its metadata whether the kernels are for
dropout that is scaled in training, the config, the paddings and the names of the classes.

`export --to=onnx` writes the whole network as a graph (extra `onnx`), `--to=caffe` a .caffemodel,
with the .prototxt of its layers and the .binaryproto of its mean image beside it. `--to=torch` is
`--layout=torch`. MODEL is a workdir, a folder that `save` made, hf://OWNER/NAME, or the name of a
network in the package.

`import` makes a workdir with a checkpoint of step 0, which main, evaluate and the others can use.
With --from it reads the files of other programs, and needs no records: torchvision's `alexnet`
(.pth, .safetensors), Caffe's `bvlc_alexnet`, `caffenet` and `cifar10_full` (.caffemodel), and these
two as ONNX graphs (`onnx`). MEAN is a .binaryproto, three numbers (red, green, blue) or a folder of
records. --config is of a network like theirs with, for example, other classes. See docs/weights.md.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, cast, get_args

import jax
import numpy as np
from absl import flags

from alexnet_jax import config
from alexnet_jax.data.info import info_bytes
from alexnet_jax.export.caffe_files import caffe_files, mean_file
from alexnet_jax.export.onnx_file import onnx_bytes
from alexnet_jax.export.operators import operators_of
from alexnet_jax.model.layouts import (
    Layout,
    dropout_in,
    from_layout,
    mean_to_layout,
    paddings,
    to_layout,
)
from alexnet_jax.optim import make_policy
from alexnet_jax.runtime import cli, host, workdir
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.files import new_file
from alexnet_jax.runtime.tensors import read_tensors, to_bytes
from alexnet_jax.training import pretrained, trained
from alexnet_jax.training.others import Kind, load_weights
from alexnet_jax.training.pretrained import without_places
from alexnet_jax.training.setup import NetSetup, make_setup
from alexnet_jax.training.state import State, init_state

MEAN_IMAGE = "mean"  # its tensor in an exported file

Format = Literal["onnx", "caffe"]
"""Of a whole network: its operations and its weights."""


def export_weights(model: str | Path, file: Path, layout: Layout, step: trained.Step) -> None:
    """Writes the parameters of a network that `trained.load` opens to `file`.

    Raises:
      UserError: see `trained.load` and `to_layout`; or the file is there already.
    """
    if file.exists():
        raise UserError(f"{file} is there already; remove it or give another --file")
    net = trained.load(model, step=step)
    tensors = to_layout(jax.device_get(net.params), net.setup.network, layout)
    print(f"{len(tensors)} tensors of step {net.step} in {file}")
    tensors |= {MEAN_IMAGE: mean_to_layout(net.setup.data.statistics.mean, layout)}
    file.parent.mkdir(parents=True, exist_ok=True)
    with new_file(file) as out:
        out.write(to_bytes(tensors, _about(net, layout)))


def _about(net: trained.Net, layout: Layout) -> dict[str, str]:
    """All that another program must know to use the tensors; lists and dicts as JSON."""
    c = net.config
    return {
        "layout": layout,
        "dropout": dropout_in(layout),
        "format": "np",
        "recipe": c.experiment.name,
        "step": str(net.step),
        "config": json.dumps(without_places(config.as_dict(c))),
        "padding": json.dumps(paddings(net.setup.network, c.data.crop)),
        "classes": json.dumps(net.classes),
        "labels": json.dumps(net.labels),
    }


def export_network(model: str | Path, file: Path, to: Format, step: trained.Step) -> None:
    """Writes a network that `trained.load` opens as ONNX, or as Caffe's files beside `file`.

    Raises:
      UserError: see `trained.load`, `operators_of`, `onnx_bytes` and `caffe_files`; a file is there
        already, or its name has another ending.
    """
    endings = {"onnx": (".onnx",), "caffe": (".caffemodel", ".prototxt", ".binaryproto")}[to]
    if file.suffix != endings[0]:
        raise UserError(f"--file={file}: the name of this file ends with {endings[0]}")
    files = [file.with_suffix(ending) for ending in endings]
    if there := [one for one in files if one.exists()]:
        raise UserError(f"{there[0]} is there already; remove it or give another --file")
    net = trained.load(model, step=step)
    about, mean = _in_words(net), np.asarray(net.setup.data.statistics.mean, np.float32)
    layout: Layout = "torch" if to == "onnx" else "caffe"
    operators = operators_of(net.config, net.setup.network, jax.device_get(net.params), layout)
    crop = net.config.data.crop
    if to == "onnx":
        edge = (len(mean) - crop) // 2
        part = mean[edge : edge + crop, edge : edge + crop]
        about |= {"input": "centre crops: red, green, blue on 0..255"}
        contents = [onnx_bytes(operators, part, about | {"classes": json.dumps(net.labels)})]
    else:
        about |= {"input": "crops: blue, green, red on 0..255, minus the mean image"}
        text, weights = caffe_files(operators, crop, about)
        contents = [weights, text.encode(), mean_file(mean)]
    file.parent.mkdir(parents=True, exist_ok=True)
    for name, content in zip(files, contents, strict=True):
        with new_file(name) as out:
            out.write(content)
    print(f"{net} is in {', '.join(map(str, files))}")


def _in_words(net: trained.Net) -> dict[str, str]:
    """What files say: the network, and what was done about dropout."""
    about, model = {"network": f"{pretrained.about(net.setup)}, step {net.step}"}, net.config.model
    if isinstance(model, config.AlexNet) and model.dropout:
        names, share = " and ".join(model.dropout_before), 1 - model.dropout
        about["dropout"] = f"{dropout_in('torch')}: kernels of {names} multiplied by {share:g}"
    return about


def import_weights(c: config.Config, folder: Path, file: Path, layout: Layout) -> None:
    """Makes `folder` a workdir of config `c` whose checkpoint, of step 0, has the file's weights.

    Raises:
      UserError: the file is damaged or does not fit the network, or the workdir has checkpoints.
    """
    setup = make_setup(c)

    def read() -> tuple[NetSetup, State]:
        tensors, about = read_tensors(file)
        tensors.pop(MEAN_IMAGE, None)  # that of the records is subtracted
        try:
            params = from_layout(tensors, setup.network, layout, about)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        state = init_state(setup)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state["params"])
        state["params"] = jax.device_put(params, shardings)
        return setup, state

    _make_workdir(folder, file, read)


def import_from(
    kind: Kind,
    folder: Path,
    file: Path,
    *,
    mean: str = "",
    layers: Sequence[str] | None = None,
    c: config.Config | None = None,
) -> None:
    """Makes `folder` a workdir whose checkpoint, of step 0, has the weights of another program.

    Raises:
      UserError: see `load_weights`, or the workdir has checkpoints.
    """

    def read() -> tuple[NetSetup, State]:
        net = load_weights(file, kind, mean=mean, layers=layers, config=c)
        return net.setup, init_state(net.setup, net.params)

    _make_workdir(folder, file, read)


def _make_workdir(folder: Path, file: Path, read: Callable[[], tuple[NetSetup, State]]) -> None:
    """Makes `folder` a workdir whose checkpoint, of step 0, is what `read` makes of `file`.

    Raises:
      UserError: the workdir has checkpoints; or see `read`, before anything is written.
    """
    with Checkpoints(folder / workdir.CHECKPOINTS, read_only=True) as checkpoints:
        if checkpoints.steps():
            raise UserError(f"{folder} holds a run already; give another --workdir")
    setup, state = read()
    meta = {"records": setup.data.hash, "policy": make_policy(setup.config.policy).state()}
    with (
        workdir.hold(folder, setup.config),
        Checkpoints(folder / workdir.CHECKPOINTS) as checkpoints,
    ):
        workdir.write(folder / workdir.DATA, info_bytes(setup.data))
        checkpoints.save(0, state, meta, {})
    print(f"{file} is checkpoint 0 of {folder}")


# --- the command --------------------------------------------------------------------------------


OPTIONS = flags.FlagValues()
CONFIG = cli.define_config(OPTIONS)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run to export, or to make.", OPTIONS)
flags.DEFINE_alias("model", "workdir", OPTIONS)
FILE = flags.DEFINE_string("file", None, "The file to read or to write.", OPTIONS)
LAYOUT = flags.DEFINE_enum("layout", None, get_args(Layout), "Layout of the file.", OPTIONS)
TO = flags.DEFINE_enum("to", None, ["torch", *get_args(Format)], "What export writes.", OPTIONS)
OUT = flags.DEFINE_string("out", None, "The folder that save makes.", OPTIONS)
FROM = flags.DEFINE_enum("from", None, get_args(Kind), "Whose file import reads.", OPTIONS)
MEAN = flags.DEFINE_string(
    "mean", "", "With --from: .binaryproto, RED,GREEN,BLUE, records.", OPTIONS
)
LAYERS = flags.DEFINE_list("layers", None, "With --from: only these; others are new.", OPTIONS)
STEP = flags.DEFINE_string("step", "newest", "Checkpoint: newest, best or a number.", OPTIONS)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are those of the process if None."""
    cli.run(_run, OPTIONS, __doc__, arguments)


def _refuse_others(what: str) -> None:
    """Raises UserError for an option that this command would not heed."""
    heeded = {
        "save": {"out", "step"},
        "export": {"file", "layout", "to", "step"},
        "import": {"file", "layout", "config"},
        "import --from": {"file", "from", "mean", "layers", "config"},
    }
    command = "import --from" if what == "import" and FROM.value else what
    options = set.union(*heeded.values()) - heeded[command]
    if given := sorted(name for name in options if OPTIONS[name].present):
        raise UserError(f"--{given[0]} is not an option of `weights {command}`")


def _run(arguments: Sequence[str]) -> None:
    what = cli.one_of(["save", "export", "import"], arguments)
    _refuse_others(what)
    model = cli.required(WORKDIR, "runs/tiny")
    folder = Path(model)
    if what == "save":
        out, step = Path(cli.required(OUT, "mine/")), trained.parse_step(STEP.value)
        host.configure_jax(1)
        net = trained.load(model, step=step)
        net.save_pretrained(out)
        print(f"{net} is in {OUT.value}")
        return
    file = Path(cli.required(FILE, "weights.safetensors"))
    layout = cast(Layout, LAYOUT.value or ("torch" if TO.value == "torch" else "classic"))
    if TO.value and LAYOUT.value:
        raise UserError("--layout is of safetensors files alone; give it, or --to")
    if what == "import" and FROM.value:
        c = cli.given_config(CONFIG) if CONFIG.value else None
        host.configure_jax(c.devices if c else 1)
        kind, layers = cast(Kind, FROM.value), LAYERS.value
        import_from(kind, folder, file, mean=MEAN.value, layers=layers, c=c)
    elif what == "export":
        step = trained.parse_step(STEP.value)
        host.configure_jax(1)
        if TO.value in get_args(Format):
            export_network(model, file, cast(Format, TO.value), step)
        else:
            export_weights(model, file, layout, step)
    else:
        c = cli.given_config(CONFIG)
        host.configure_jax(c.devices, deterministic=c.deterministic)
        import_weights(c, folder, file, layout)


if __name__ == "__main__":
    main()
