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

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import numpy as np
from absl import flags

from alexnet_jax import config
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.optim import make_policy
from alexnet_jax.runtime import cli, host, workdir
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import trained
from alexnet_jax.training.setup import make_setup
from alexnet_jax.training.state import init_state

Layout = Literal["classic", "torch", "caffe"]
Params = Mapping[str, Mapping[str, np.ndarray]]
"""Arrays by layer and name, 'kernel' or 'bias', with the shapes of `ShardedModel.shapes`."""

_NAMES = {
    "classic": {"kernel": "kernel", "bias": "bias"},
    "torch": {"kernel": "weight", "bias": "bias"},
    "caffe": {"kernel": "0", "bias": "1"},
}


class _Tensor(NamedTuple):
    """How a layout has one parameter: under which name, in which shape, made and read how."""

    layer: str
    name: str  # 'kernel' or 'bias'
    shape: tuple[int, ...]
    write: Callable[[np.ndarray], np.ndarray]
    read: Callable[[np.ndarray], np.ndarray]


def to_layout(params: Params, network: ShardedModel, layout: Layout) -> dict[str, np.ndarray]:
    """Parameters as the tensors of a layout, by name: 'conv2.weight'.

    Raises:
      UserError: the layout has no place for such a network.
    """
    return {
        key: np.ascontiguousarray(tensor.write(np.asarray(params[tensor.layer][tensor.name])))
        for key, tensor in _tensors(network, layout).items()
    }


def from_layout(tensors: Mapping[str, np.ndarray], network: ShardedModel, layout: Layout) -> Params:
    """The parameters that `to_layout` would have made these tensors of, as float32.

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
    for key, tensor in wanted.items():
        array = tensors[key].astype(np.float32)
        if array.shape != tensor.shape:
            raise UserError(
                f"tensor {key!r} is {list(array.shape)}, the config's network has "
                f"{list(tensor.shape)} (--layout={layout})"
            )
        params[tensor.layer][tensor.name] = np.ascontiguousarray(tensor.read(array))
    return params


def _tensors(network: ShardedModel, layout: Layout) -> dict[str, _Tensor]:
    """Every tensor of a layout, by its name there.

    Raises:
      UserError: the layout has no place for such a network.
    """
    _check(network, layout)
    return {
        f"{layer}.{_NAMES[layout][name]}": _tensor(layer, name, leaf.shape, network, layout)
        for layer, leaves in network.shapes.items()
        for name, leaf in leaves.items()
    }


def _tensor(
    layer: str, name: str, shape: tuple[int, ...], network: ShardedModel, layout: Layout
) -> _Tensor:
    if layout == "classic" or name == "bias":
        return _Tensor(layer, name, shape, np.asarray, np.asarray)
    seen = _seen_by_fc6(network) if layer == "fc6" else 1
    colours = slice(None, None, -1 if layout == "caffe" and layer == "conv1" else 1)
    return _Tensor(
        layer,
        name,
        (*shape[:-3:-1], *shape[:-2]),  # outputs first, inputs second
        lambda kernel: _outputs_first(kernel, seen)[:, colours],
        lambda tensor: _outputs_last(tensor[:, colours], seen),
    )


def _outputs_first(kernel: np.ndarray, seen: int) -> np.ndarray:
    """[h, w, in, out] -> [out, in, h, w]; [places * seen, out] -> [out, seen * places]."""
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    return kernel.reshape(-1, seen, kernel.shape[-1]).transpose(2, 1, 0).reshape(kernel.T.shape)


def _outputs_last(kernel: np.ndarray, seen: int) -> np.ndarray:
    """What `_outputs_first` was given."""
    if kernel.ndim == 4:
        return kernel.transpose(2, 3, 1, 0)
    return kernel.reshape(len(kernel), seen, -1).transpose(2, 1, 0).reshape(kernel.T.shape)


def _check(network: ShardedModel, layout: Layout) -> None:
    module = network.bind(network.shapes)
    if layout == "classic":
        return
    if not isinstance(module, AlexNet):
        raise UserError(f"--layout={layout} is for AlexNet alone; give --layout=classic")
    inputs = {layer: network.shapes[layer]["kernel"].shape[0] for layer in ("fc7", "fc8")}
    outputs = {layer: network.shapes[layer]["kernel"].shape[1] for layer in ("fc6", "fc7")}
    last = [layer for layer in network.shapes if layer.startswith("conv")][-1]
    whole = network.shapes[last]["bias"].shape[0]
    if inputs["fc7"] != outputs["fc6"] or _seen_by_fc6(network) != whole:
        raise UserError(
            f"--layout={layout} has no fully connected layers in two towers: fc6 and fc7 must be "
            f"in config.model.cross; give --layout=classic"
        )


def _seen_by_fc6(network: ShardedModel) -> int:
    """Maps that each neuron of fc6 sees."""
    return int(network.bind(network.shapes).fc6.seen)


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
    params = from_layout(_read(file), setup.network, layout)
    state = init_state(setup)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state["params"])
    state["params"] = jax.device_put(params, shardings)
    meta = {"records": setup.records.manifest.hash, "policy": make_policy(c.policy).state()}
    with ExitStack() as stack:
        stack.enter_context(workdir.hold(folder, c))
        checkpoints = stack.enter_context(Checkpoints(folder / workdir.CHECKPOINTS))
        checkpoints.save(0, state, meta, {})
    print(f"{file} is checkpoint 0 of {folder}")


def _read(file: Path) -> dict[str, np.ndarray]:
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
LAYOUT = flags.DEFINE_enum(
    "layout", "classic", get_args(Layout), "Names and shapes in the file.", OPTIONS
)
STEP = flags.DEFINE_string(
    "step", "newest", "Checkpoint to export: newest, best or a number.", OPTIONS
)


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
