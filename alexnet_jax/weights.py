"""Weights in and out: a network's parameters in a safetensors file, in one of three layouts.

python -m alexnet_jax.weights export --workdir=DIR --file=FILE [--layout=LAYOUT] [--step=best]
python -m alexnet_jax.weights import --config=configs/NAME.py --workdir=DIR --file=FILE [...]

classic  'conv2.kernel' [5, 5, 48, 256] and 'conv2.bias', as they lie here; fc6's inputs [6, 6, 256]
torch    'conv2.weight' [256, 48, 5, 5] of Conv2d(groups=2); Linear over x.flatten(1), [256, 6, 6]
caffe    'conv2.0', 'conv2.1': as torch's, but conv1 sees the colours as blue, green, red

`import` makes a workdir with a checkpoint of step 0, which main, evaluate and the others can use.
What a layout cannot say: Caffe's own networks normalise across both towers' maps, ours (§3.3) do
not; torchvision's AlexNet is another network, without towers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import numpy as np
from absl import flags

from alexnet_jax import config
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.layers import Axes
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.optim import make_policy
from alexnet_jax.runtime import cli, host, workdir
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import trained
from alexnet_jax.training.setup import make_setup
from alexnet_jax.training.state import init_state

Params = Mapping[str, Mapping[str, np.ndarray]]
"""Arrays by layer and name, 'kernel' or 'bias', with the shapes of `ShardedModel.shapes`."""


class _Layout(NamedTuple):
    """How another program has a layer's parameters.

    A fully connected kernel is a matrix: the axes other than 'out' are merged, in this order.
    """

    kernel: str  # its name
    bias: str
    axes: tuple[str, ...]  # the order of the kernel's axes
    colours: Literal["RGB", "BGR"]  # the order in which the first layer sees them


Layout = Literal["classic", "torch", "caffe"]
LAYOUTS: dict[Layout, _Layout] = {
    "classic": _Layout("kernel", "bias", ("height", "width", "in", "out"), "RGB"),
    "torch": _Layout("weight", "bias", ("out", "in", "height", "width"), "RGB"),
    "caffe": _Layout("0", "1", ("out", "in", "height", "width"), "BGR"),
}


def to_layout(params: Params, network: ShardedModel, layout: Layout) -> dict[str, np.ndarray]:
    """Parameters as the tensors of a layout, by name: 'conv2.weight'.

    Raises:
      UserError: the layout has no place for such a network.
    """
    return {
        tensor: np.ascontiguousarray(_write(np.asarray(params[layer][name]), layer, axes, layout))
        for tensor, (layer, name, axes) in _tensors(network, layout).items()
    }


def from_layout(tensors: Mapping[str, np.ndarray], network: ShardedModel, layout: Layout) -> Params:
    """The parameters of which `to_layout` makes these tensors, as float32.

    Raises:
      UserError: a tensor is missing, is of no layer, or has another shape.
    """
    wanted = _tensors(network, layout)
    odd = sorted(wanted.keys() ^ tensors.keys())
    if odd:
        what = "is missing" if odd[0] in wanted else "is of no layer of the config's network"
        raise UserError(
            f"tensor {odd[0]!r} {what}; --layout={layout} has {', '.join(sorted(wanted))}"
        )
    params: dict[str, dict[str, np.ndarray]] = {layer: {} for layer in network.shapes}
    for tensor, (layer, name, axes) in wanted.items():
        array, ours = tensors[tensor], np.empty(network.shapes[layer][name].shape, np.float32)
        # Where each number of the tensor lies in our parameter: its own number, written the same.
        numbers = np.arange(ours.size, dtype=np.int32).reshape(ours.shape)
        places = _write(numbers, layer, axes, layout)
        if array.shape != places.shape:
            raise UserError(
                f"tensor {tensor!r} is {list(array.shape)}, the config's network has "
                f"{list(places.shape)} (--layout={layout})"
            )
        np.put(ours, places, array)
        params[layer][name] = ours
    return params


def _tensors(network: ShardedModel, layout: Layout) -> dict[str, tuple[str, str, Axes]]:
    """Layer, name and axes of every parameter, by the name of its tensor in a layout.

    Raises:
      UserError: the layout has no place for such a network.
    """
    module, names = network.module(), LAYOUTS[layout]
    if layout != "classic":
        _check(module, layout)
    return {
        f"{layer}.{getattr(names, name)}": (layer, name, getattr(getattr(module, layer), name).axes)
        for layer, parameters in network.shapes.items()
        for name in parameters
    }


def _write(array: np.ndarray, layer: str, axes: Axes, layout: Layout) -> np.ndarray:
    """A parameter of ours, with the axes of a layout."""
    if len(axes) == 1 or layout == "classic":
        return array
    order = LAYOUTS[layout].axes
    kernel = array.reshape(*axes.values()).transpose([list(axes).index(name) for name in order])
    if layer == "conv1" and LAYOUTS[layout].colours == "BGR":
        kernel = np.flip(kernel, order.index("in"))
    return kernel if array.ndim == 4 else kernel.reshape(axes["out"], -1)


def _check(module: Any, layout: Layout) -> None:
    """Raises UserError if the layout has no place for such a network."""
    if not isinstance(module, AlexNet):
        raise UserError(f"--layout={layout} is for AlexNet alone; give --layout=classic")
    if module.fc6.towers > 1 and not {"fc6", "fc7"} <= set(module.cross):
        raise UserError(
            f"--layout={layout} has no fully connected layers in two towers: fc6 and fc7 must "
            f"be in config.model.cross; give --layout=classic"
        )


# --- files --------------------------------------------------------------------------------------


def export_weights(folder: Path, file: Path, layout: Layout, step: trained.Step) -> None:
    """Writes the parameters of a workdir's checkpoint to `file`.

    Raises:
      UserError: see `trained.open_trained` and `to_layout`; or the file is there already.
    """
    save_file = _safetensors().numpy.save_file
    if file.exists():
        raise UserError(f"{file} is there already; remove it or give another --file")
    net = trained.open_trained(folder, step=step)
    tensors = to_layout(jax.device_get(net.params), net.setup.network, layout)
    about = {"layout": layout, "step": str(net.step), "format": "np"}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata=about)
    print(f"{len(tensors)} tensors of step {net.step} in {file}")


def import_weights(c: config.Config, folder: Path, file: Path, layout: Layout) -> None:
    """Makes `folder` a workdir of config `c` whose checkpoint, of step 0, has the file's weights.

    Raises:
      UserError: the file is damaged or does not fit the network, or the workdir has checkpoints.
    """
    setup = make_setup(c)
    with Checkpoints(folder / workdir.CHECKPOINTS, read_only=True) as checkpoints:
        if checkpoints.steps():
            raise UserError(f"{folder} holds a run already; give another --workdir")
    params = from_layout(_load(file), setup.network, layout)
    state = init_state(setup)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state["params"])
    state["params"] = jax.device_put(params, shardings)
    meta = {"records": setup.records.manifest.hash, "policy": make_policy(c.policy).state()}
    with workdir.hold(folder, c), Checkpoints(folder / workdir.CHECKPOINTS) as checkpoints:
        checkpoints.save(0, state, meta, {})
    print(f"{file} is checkpoint 0 of {folder}")


def _load(file: Path) -> dict[str, np.ndarray]:
    library = _safetensors()
    try:
        return library.numpy.load_file(file)
    except (library.SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{file} cannot be read as safetensors ({error})") from error


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise UserError("this needs safetensors; pip install safetensors") from error
    return safetensors


# --- the command --------------------------------------------------------------------------------


OPTIONS = flags.FlagValues()
CONFIG = cli.define_config(OPTIONS)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run to export, or to make.", OPTIONS)
FILE = flags.DEFINE_string("file", None, "The safetensors file.", OPTIONS)
LAYOUT = flags.DEFINE_enum("layout", "classic", get_args(Layout), "Layout of the file.", OPTIONS)
STEP = flags.DEFINE_string("step", "newest", "Checkpoint: newest, best or a number.", OPTIONS)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are those of the process if None."""
    cli.run(_run, OPTIONS, __doc__, arguments)


def _run(arguments: Sequence[str]) -> None:
    what = cli.one_of(["export", "import"], arguments)
    folder = Path(cli.required(WORKDIR, "runs/tiny"))
    file = Path(cli.required(FILE, "weights.safetensors"))
    layout = cast(Layout, LAYOUT.value)
    if what == "export":
        host.configure_jax(1)
        export_weights(folder, file, layout, trained.parse_step(STEP.value))
    else:
        c = cli.given_config(CONFIG)
        host.configure_jax(c.devices, deterministic=c.deterministic)
        import_weights(c, folder, file, layout)


if __name__ == "__main__":
    main()
