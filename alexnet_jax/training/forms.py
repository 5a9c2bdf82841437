"""How a GPU computes each convolution and what follows it: tried at the start, the fastest is kept.

Where a layer can be computed in several forms (`model.forms`), which one is fastest depends on the
GPU, on jax and on the shapes. So at the start of a run each form is compiled for one device's share
of the batch, compared with the plain definition and timed. The choice is kept in the workdir, and a
resumed run takes it without a trial: so it computes the same bits as an uninterrupted one.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from pydantic import TypeAdapter

from alexnet_jax import config
from alexnet_jax.model import ops
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.forms import DEFAULT, NO_FORMS, Forms, LayerForm
from alexnet_jax.model.layers import Conv, Initial
from alexnet_jax.model.ops.places import Pooling, at_place
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.model.towers import DATA, TOWER, Towers
from alexnet_jax.runtime import distributed, workdir
from alexnet_jax.runtime.terminal import progress_bar, say

PLATFORM = "gpu"  # elsewhere there is no choice
DEFINITION = LayerForm(together=False, then="definition")
GAIN = 1.05  # another form than the default must be so many times as fast
REPEATS = 5  # of each form in turn; the shortest counts
SECONDS = 0.05  # that a repetition lasts, about
LIMIT = 45.0  # seconds; layers whose turn comes later keep the default

# How far a form may be from the definition: the root mean square of the difference by that of the
# definition. Convolutions of the trial's numbers are exact, so that only LRN rounds in the output.
# In gradients the products round, to TF32 or to bfloat16, and in bfloat16 each pass.
OUTPUT = {"float32": 1e-5, "bfloat16": 5e-3}
GRADIENTS = {"float32": 3e-3, "bfloat16": 3e-2}

_UNENDED = "a trial of others did not end; to try again, remove"
_ROUNDING = "choosing anew, so results may differ in rounding from here on"


@dataclass(frozen=True)
class Choice:
    """A choice that is kept, and all that it depends on."""

    place: dict[str, Any]  # see `_place`
    forms: dict[str, LayerForm]


_FILE = TypeAdapter(list[Choice])


def choose(network: ShardedModel, c: config.Config, folder: Path) -> Forms:
    """The form of each layer: the one kept in the workdir, else the fastest on this device.

    None is chosen on a CPU, with `config.forms='default'` and for networks without forms. All
    processes must call it and hold the workdir; the main process reads, tries and writes for all.

    Args:
      network: of the config, on the run's devices, of whatever forms.
      c: the run's config.
      folder: the workdir.

    Raises:
      UserError: the choice cannot be written.
    """
    tried = isinstance(c.model, config.AlexNet) and not c.model.arranged
    wanted = c.forms == "fastest" and tried
    if network.platform != PLATFORM or not wanted:
        return NO_FORMS
    found = distributed.on_main_process(lambda: _as_json(_kept_or_tried(network, c, folder)))
    return {layer: LayerForm(**form) for layer, form in found.items()}


# --- what is kept -------------------------------------------------------------------------------


def _kept_or_tried(network: ShardedModel, c: config.Config, folder: Path) -> Forms:
    path, place = folder / workdir.FORMS, _place(network, c)
    choices = _read(path, c)
    for one in choices:
        if one.place == place:
            kept = "computed as kept in" if one.forms else f"of the default forms: {_UNENDED}"
            say(f"layers are {kept} {path}")
            return one.forms
    if choices:
        last = choices[-1].place
        other = ", ".join(key for key in place if place[key] != last.get(key))
        say(f"{path} was made for another {other}; {_ROUNDING}")
    elif not path.exists() and (folder / workdir.STARTS).exists():
        say(f"the run in {folder} began without {workdir.FORMS}; {_ROUNDING}")
    # If a trial ends the process, the next start finds that this run has the default forms.
    _write(path, [*choices, Choice(place, {})])
    forms = try_forms(network, c)
    _write(path, [*choices, Choice(place, dict(forms))])
    say(f"these forms are kept in {path}; --config.forms=default takes none")
    return forms


def _write(path: Path, choices: list[Choice]) -> None:
    workdir.write(path, _FILE.dump_json(choices, indent=1).decode() + "\n")


def _place(network: ShardedModel, c: config.Config) -> dict[str, Any]:
    """All that a choice depends on: devices, jax, shapes."""
    devices = network.mesh.devices.flat
    return {
        "device": ", ".join(sorted({one.device_kind for one in devices})),
        "jax": jax.__version__,
        "batch": c.batch,
        "dtype": c.dtype,
        "crop": c.data.crop,
        "devices": c.devices,
        "towers_apart": c.towers_apart,
        "model": config.as_dict(c)["model"],
    }


def _read(path: Path, c: config.Config) -> list[Choice]:
    """The choices kept in a workdir; none, and a line that says why, if they cannot be read."""
    if not path.exists():
        return []
    try:
        choices = _FILE.validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        reason = error.errors()[0]["msg"]
    except OSError as error:
        reason = str(error.strerror)
    else:
        strange = {layer for one in choices for layer in one.forms} - set(c.model.names)
        if not strange:
            return choices
        reason = f"the network has no layer {min(strange)}"
    say(f"{path} cannot be used ({reason}); {_ROUNDING}")
    return []


def _as_json(forms: Forms) -> dict[str, Any]:
    return {layer: asdict(form) for layer, form in forms.items()}


# --- the trials ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A convolution and what follows it, as one device computes them.

    Attributes:
      layer: its name.
      window, seen, units, stride, zeros: of the convolution, in one tower.
      towers: how many are on the device.
      inputs: shape and dtype of what each tower sees; one if all see the same.
      operations: that follow.
      first: whether its inputs are images, which need no gradient.
    """

    layer: str
    window: int
    seen: int
    units: int
    stride: int
    zeros: int | None
    towers: int
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    operations: tuple[ops.Operation, ...]
    first: bool

    @property
    def dtype(self) -> str:
        """Of the computation."""
        return str(self.inputs[0].dtype)


def try_forms(network: ShardedModel, c: config.Config) -> Forms:
    """The fastest form of each layer on this process's first device; prints a line for each."""
    device, begun, chosen = network.mesh.local_devices[0], time.monotonic(), dict[str, LayerForm]()
    alone = Mesh(np.array([[device]]), (DATA, TOWER))
    tried = [block for block in blocks(network, c) if len(candidates(block)) > 1]
    if tried:
        say(f"trying how each layer is computed fastest on this {device.device_kind}")
    with progress_bar(len(tried), "trying forms", "layers", leave=False) as bar:
        for block in tried:
            if time.monotonic() - begun < LIMIT:
                chosen[block.layer] = _fastest(block, alone)
            else:
                say(f"{block.layer}: the default, untried: other layers took over {LIMIT:.0f} s")
            bar.update()
    return chosen


def blocks(network: ShardedModel, c: config.Config) -> list[Block]:
    """The convolutions of the network, found by tracing it; nothing is computed."""
    assert isinstance(c.model, config.AlexNet)
    model, crop = c.model, c.data.crop
    found = dict[str, Block]()

    class Watched(Conv):
        def in_each(self, product: Any, x: Towers, *, together: bool) -> Towers:
            found.setdefault(self.name, _block(self, x, first=not found))
            return super().in_each(product, x, together=together)

        def then(self, x: Towers, *operations: ops.Operation | None) -> Towers:
            there = tuple(one for one in operations if one)
            if len(there) > len(found[self.name].operations):
                found[self.name] = replace(found[self.name], operations=there)
            return super().then(x, *operations)

    class Network(AlexNet):
        convolution = Watched

    def forward(params: Any, images: jax.Array) -> jax.Array:
        return watched.bind(params)(images)

    watched = ShardedModel(lambda rngs: Network(model, crop, c.dtype, rngs=rngs), network.mesh)
    rows = watched.spec(DATA)
    images = jax.ShapeDtypeStruct((c.batch, crop, crop, 3), jnp.float32)
    jax.eval_shape(watched.shard_map(forward, (watched.specs, rows), rows), watched.shapes, images)
    return list(found.values())


def _block(conv: Conv, x: Towers, *, first: bool) -> Block:
    window, _, seen, units = conv.kernel[...].shape
    inputs = tuple(jax.ShapeDtypeStruct(one.shape, one.dtype) for one in x)
    here = units // conv.units
    return Block(
        *(conv.name, window, seen, conv.units, conv.stride, conv.zeros, here, inputs, (), first)
    )


def candidates(block: Block) -> list[LayerForm]:
    """What is tried, a GPU's default first; `DEFINITION` is among them.

    One convolution for all towers is tried where all see the same. Else it would be a grouped one,
    which was never faster on an H200, and takes cuDNN the longest to try. For the definition of
    LRN one form of the convolution is enough.
    """
    *fused, definition = ops.chain_forms(*block.operations)
    shared = block.towers > 1 and len(block.inputs) == 1
    together = (False, True) if shared else (False,)
    forms = [LayerForm(one, then) for then in fused or [definition] for one in together]
    return list(dict.fromkeys([*forms, DEFINITION]))


def _fastest(block: Block, mesh: Mesh) -> LayerForm:
    """The fastest form of a block; the default, unless another is worth it. Says so in a line.

    A form is left out if it raises an error, differs from the definition, or does not give the
    same bits twice where the definition does. (Convolutions on a GPU may sum in any order, unless
    `config.deterministic` is set.)
    """
    forms, runs = candidates(block), dict[LayerForm, Callable[[], Any]]()
    numbers = reference = None
    for form in sorted(forms, key=lambda one: one != DEFINITION):
        try:
            numbers = numbers or _numbers(block, mesh)
            run = _compiled(block, form, mesh, numbers)
            outcome = run()
            result = _Result(outcome, bool(_same(outcome, run())))
            wrong = _objection(result, reference or result, block.dtype)
        except Exception as error:  # whatever it is, another form may do
            wrong = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        if not wrong:
            reference, runs[form] = reference or result, run
            continue
        say(f"{block.layer}: {_text(block, form)} is left out: {wrong}")
        if form == DEFINITION:
            say(f"{block.layer}: the default, untried: there is nothing to compare it with")
            return DEFAULT
    times = _times(runs)
    best = min(times, key=times.__getitem__)
    base = forms[0] if forms[0] in times else DEFINITION
    if times[base] < GAIN * times[best]:
        best = base
    gain = times[DEFINITION] / times[best]
    say(f"{block.layer}: {_text(block, best)}; {gain:.2f}x the definition")
    return best


Numbers = tuple[Any, Towers, Towers]
"""Of a trial: parameters, inputs, and the gradient of the output."""


def _compiled(block: Block, form: LayerForm, mesh: Mesh, numbers: Numbers) -> Callable[[], Any]:
    """Computes a block's output and gradients on the mesh's only device."""
    network = _convolution(block, form, mesh)

    def forward(params: Any, x: Towers) -> Towers:
        return network.bind(params)(x, *block.operations)

    def both(params: Any, x: Towers, gradient: Towers) -> Any:
        if block.first:
            y, back = jax.vjp(lambda params: forward(params, x), params)
        else:
            y, back = jax.vjp(forward, params, x)
        return y, back(gradient)

    program = network.jit(network.shard_map(both, P(), P()))
    return partial(program.lower(*numbers).compile(), *numbers)


def _convolution(block: Block, form: LayerForm, mesh: Mesh) -> ShardedModel:
    def build(rngs: nnx.Rngs) -> Conv:
        sizes = block.window, block.seen, block.units, block.towers
        initial = Initial(block.layer, 0.0, 0.0, rngs)
        return Conv(initial, *sizes, stride=block.stride, zeros=block.zeros, form=form)

    return ShardedModel(build, mesh)


def _numbers(block: Block, mesh: Mesh) -> Numbers:
    """Numbers for which the gradients of two forms differ by rounding only.

    If a convolution rounded its output in another way, or LRN, other places would be maxima, and
    the gradients would differ by several percent. So the convolution is exact, whatever the order
    of its sums: inputs are even numbers about 10, weights are 1, -1 and mostly 0. Outputs are even
    numbers about 100, large enough for LRN to matter; bfloat16 holds them up to 512. And where two
    values of a window are nearly equal after LRN, its maximum gets no gradient.
    """
    network = _convolution(block, DEFINITION, mesh)

    def draw(seed: jax.Array) -> Numbers:
        key = partial(jax.random.fold_in, seed)
        shape = network.shapes["kernel"].shape
        share = min(1.0, 100 / math.prod(shape[:3]))
        weights = jax.random.rademacher(key(0), shape, jnp.float32)
        weights *= jax.random.bernoulli(key(1), share, shape)
        params = {"kernel": weights, "bias": _even(key(2), network.shapes["bias"])}
        x = [_even(key(10 + number), one) for number, one in enumerate(block.inputs)]
        y = network.bind(params)(x)
        return params, x, [_gradient(key(20 + n), one, block) for n, one in enumerate(y)]

    return network.jit(network.shard_map(draw, P(), P()))(jax.random.key(0))


def _even(key: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
    return (2 * jnp.round(5 * jax.random.normal(key, like.shape))).astype(like.dtype)


def _gradient(key: jax.Array, x: jax.Array, block: Block) -> jax.Array:
    """Normal numbers; where a maximum is within 5% of another value of its window, zero."""
    *before, last = block.operations
    y = ops.chain(x, *before, form="definition")
    if not isinstance(last, ops.MaxPool):
        return jax.random.normal(key, y.shape, y.dtype)
    p = Pooling(last.window, last.stride, *y.shape[1:3])
    best = last(y)
    near = [at_place(y, *place, p) >= best - 0.05 * jnp.abs(best) for place in p.places]
    alone = sum(one.astype(jnp.uint8) for one in near) == 1
    return jnp.where(alone, jax.random.normal(key, best.shape, best.dtype), 0)


class _Result(NamedTuple):
    outcome: Any  # the output and the gradients
    same: bool  # twice


def _objection(ours: _Result, reference: _Result, dtype: str) -> str:
    """Why a form must not be used; '' if it may."""
    limits = OUTPUT[dtype], GRADIENTS[dtype]
    found = map(_difference, ours.outcome, reference.outcome)
    for what, limit, off in zip(("output", "gradient"), limits, found, strict=True):
        if not off <= limit:  # NaN is not
            return f"its {what} is off the definition by {float(off):.1g}; {limit:.0e} is allowed"
    return "" if ours.same or not reference.same else "it does not give the same bits twice"


@jax.jit
def _same(ours: Any, theirs: Any) -> jax.Array:
    equal = jax.tree.map(partial(jnp.array_equal, equal_nan=True), ours, theirs)
    return jnp.stack(jax.tree.leaves(equal)).all()


@jax.jit
def _difference(ours: Any, theirs: Any) -> jax.Array:
    """The largest over arrays of the root mean square of the difference by that of `theirs`."""

    def of_one(ours: jax.Array, theirs: jax.Array) -> jax.Array:
        ours, theirs = ours.astype(jnp.float32), theirs.astype(jnp.float32)
        square = jnp.mean(jnp.square(theirs))
        return jnp.sqrt(jnp.mean(jnp.square(ours - theirs)) / jnp.maximum(square, 1e-30))

    return jnp.stack(jax.tree.leaves(jax.tree.map(of_one, ours, theirs))).max()


def _times(runs: Mapping[LayerForm, Callable[[], Any]]) -> dict[LayerForm, float]:
    """Seconds of each, the shortest of repetitions in turn; each was run before."""
    counts = {form: math.ceil(SECONDS / _seconds(run, 1)) for form, run in runs.items()}
    shortest = dict.fromkeys(runs, math.inf)
    for _ in range(REPEATS):
        for form, run in runs.items():
            shortest[form] = min(shortest[form], _seconds(run, counts[form]))
    return shortest


def _seconds(run: Callable[[], Any], count: int) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        result = run()
    jax.block_until_ready(result)
    return (time.perf_counter() - begun) / count


def _text(block: Block, form: LayerForm) -> str:
    """For example 'one convolution for all towers, plain chain in two passes'."""
    words = list[str]()
    if block.towers > 1:
        words.append(f"one convolution for {'all towers' if form.together else 'each tower'}")
    if len(ops.chain_forms(*block.operations)) > 1:
        defined = form.then == "definition"
        words.append("chain as defined" if defined else f"plain chain in {form.then}")
    return ", ".join(words)
