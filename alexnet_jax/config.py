"""Every value that a config file sets, with its type, its meaning and its limits.

The files in ``configs/`` build plain ``ml_collections.ConfigDict``s. ``parse`` turns one into the
frozen dataclasses below and refuses whatever does not fit, naming the key, before anything is
compiled or written. No field has a default: a config file shows all that a run depends on.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from alexnet_jax.runtime.errors import UserError

ADDED: dict[str, object] = {"deterministic": False, "towers_apart": True}
"""Keys that workdirs of older versions lack, and the values that they ran with."""

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6")
"""The paper's five, and the sixth of the network that it trained on more images (§6.1)."""


def number(low: float, below: float = math.inf, *, changeable: bool = False) -> Any:
    """A finite number (or numbers) in [low, below).

    A `changeable` field may differ between a workdir's first run and a later one that goes on.
    """
    return field(metadata={"low": low, "below": below, "changeable": changeable})


def names(*allowed: str) -> Any:
    """A string, strings, or the keys of a mapping, out of `allowed`."""
    return field(metadata={"allowed": allowed})


def changeable() -> Any:
    """Anything of its type; may differ in a later run that goes on from a workdir."""
    return field(metadata={"changeable": True})


@dataclass(frozen=True, kw_only=True)
class Lighting:
    """PCA colour shifts (§4.1): one draw of three normal numbers for each image and use."""

    sigma: float = number(0)  # standard deviation of the draws; 0 switches lighting off
    scale: Literal["eigenvalue", "deviation"]  # draws times l on [0, 1] (paper), sqrt(l) on 0..255
    source: Literal["training", "published"]  # components of our training set, or ImageNet's
    shrink: bool  # divide the lit image by 1 + sigma, as the 2012 code does


@dataclass(frozen=True, kw_only=True)
class Data:
    """The records that `prepare` writes and how batches are drawn from them (§2, §4.1)."""

    source: str = changeable()  # what `prepare --source` gets
    records: str = changeable()  # the folder that `prepare --out` writes
    size: int = number(1)  # side of the recorded images, pixels
    format: Literal["jpeg", "raw"]
    validation: str  # the split that is scored after each epoch
    crop: int = number(1)  # side of what the network sees, pixels
    random_crop: bool  # training crops at random places; False: at the centre
    mirror: bool  # mirror half of the training images
    mean: Literal["crop", "centre"]  # the mean image's part: the crop's (paper), the centre (2012)
    lighting: Lighting
    threads: int = number(0, changeable=True)  # that read and decode; 0: one for each core

    def __post_init__(self) -> None:
        if self.crop > self.size:
            raise ValueError(f"crop={self.crop} must not be larger than size={self.size}")


@dataclass(frozen=True, kw_only=True)
class Formula:
    """Response normalisation: a / (k + alpha * (sum of the neighbours' squares))^beta (§3.3)."""

    size: int = number(1)  # neighbours, itself included: maps, or the side of a window in a map
    k: float = number(1e-6)
    alpha: float = number(0)
    beta: float = number(0)


@dataclass(frozen=True, kw_only=True)
class Response(Formula):
    """Response normalisation, and where it is done."""

    layers: tuple[str, ...] = names(*CONVOLUTIONS)  # that it follows; () switches it off
    before_activation: tuple[str, ...] = names(*CONVOLUTIONS)  # where it precedes the ReLU


@dataclass(frozen=True, kw_only=True)
class AlexNet:
    """The network (§3). Kernel and neuron counts are those of both towers together."""

    kind: Literal["alexnet"]
    classes: int = number(2)
    towers: Literal[1, 2]
    kernels: tuple[int, ...] = number(1)  # conv1..conv5, or to conv6
    neurons: tuple[int, int] = number(1)  # fc6, fc7
    width: float = number(1e-3, 64)  # multiplies kernels and neurons
    cross: tuple[str, ...] = names("conv3", "fc6", "fc7")  # before which the towers meet
    without: str = names("", *CONVOLUTIONS[1:])  # one convolution to leave out
    activation: Literal["relu", "tanh"]
    pool_window: int = number(1)
    pool_stride: int = number(1)
    lrn: Response  # over neighbouring maps
    within_map: Response  # over neighbouring places of one map; only the 2012 code has it
    dropout: float = number(0, 1)  # chance that a neuron of fc6 or fc7 is zeroed; 0: no dropout
    std: Mapping[str, float] = number(0)  # standard deviation of the initial weights, by layer
    bias: Mapping[str, float] = number(-math.inf)  # initial biases, by layer

    def __post_init__(self) -> None:
        if len(self.kernels) not in (5, 6):
            raise ValueError(f"kernels={self.kernels} must be 5 numbers, or 6 with a sixth layer")
        for key in ("std", "bias"):
            if set(getattr(self, key)) != set(self.layers):
                raise ValueError(f"{key} must have one value for each of {', '.join(self.layers)}")
        for response in (self.lrn, self.within_map):
            for name in (*response.layers, *response.before_activation):
                if name not in self.layers:
                    raise ValueError(f"{name} is to be normalised, but kernels has no such layer")

    @property
    def layers(self) -> tuple[str, ...]:
        """All of them in order, with the one that is left out."""
        return (*CONVOLUTIONS[: len(self.kernels)], "fc6", "fc7", "fc8")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the layers that have parameters, in order; the last gives the logits."""
        return tuple(layer for layer in self.layers if layer != self.without)


@dataclass(frozen=True, kw_only=True)
class CifarLayer:
    """A layer of one of the authors' CIFAR-10 nets, and what follows it, in order."""

    name: str
    kind: Literal["conv", "local", "dense"]  # local: a convolution with kernels for each place
    window: int = number(1)  # side of a convolution's kernels, pixels; 1 for a dense layer
    units: int = number(1)  # kernels or neurons
    then: tuple[str, ...] = names("relu", "tanh", "max", "average", "within_map", "across_maps")
    std: float = number(0)  # standard deviation of the initial weights; the biases are 0


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """A small net for small images: layers in one row, no towers."""

    kind: Literal["cifar"]
    classes: int = number(2)
    towers: Literal[1]
    layers: tuple[CifarLayer, ...]
    pool_window: int = number(1)
    pool_stride: int = number(1)
    within_map: Formula
    across_maps: Formula

    def __post_init__(self) -> None:
        kinds = [layer.kind for layer in self.layers]
        if kinds[-1:] != ["dense"] or self.layers[-1].units != self.classes:
            raise ValueError(f"the last of layers must be dense, with {self.classes} units")
        for layer in self.layers:
            if not re.fullmatch(r"(conv|local|fc)\d+", layer.name):
                raise ValueError(f"layer {layer.name!r}: call it conv, local or fc with a number")
            if layer.kind == "dense" and set(layer.then) - {"relu", "tanh"}:
                raise ValueError(f"only relu and tanh can follow {layer.name}, which is dense")
        after = set(kinds[kinds.index("dense") :])
        if len(set(self.names)) != len(kinds) or after != {"dense"}:
            raise ValueError("layers must have different names, and the dense ones stand last")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the layers, in order; the last gives the logits."""
        return tuple(layer.name for layer in self.layers)

    @property
    def activation(self) -> str:
        """'tanh' if any layer has it."""
        return "tanh" if any("tanh" in layer.then for layer in self.layers) else "relu"


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The update of §5. Its rate comes from the policy."""

    momentum: float = number(0, 1)
    weight_decay: float = number(0)
    layer_decay: Mapping[str, float] = number(0)  # weight decays of single layers
    bias_rate: float = number(0)  # biases learn at this multiple of their layer's rate
    decay_biases: bool


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Divide the rate when the validation error stops improving (§5)."""

    kind: Literal["plateau"]
    rate: float = number(0)  # to begin with
    factor: float = number(1)  # the rate is divided by this
    drops: int = number(0)  # so many times; the next plateau ends the training
    patience: int = number(1)  # epochs without improvement that make a plateau
    least_improvement: float = number(0)  # a smaller fall of the top-1 error rate is none


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of a schedule."""

    epoch: float = number(0)  # it begins when so many epochs are done
    rate: float = number(0)
    layers: Mapping[str, float] = number(0)  # rates of single layers
    lighting: bool


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Rates by epoch, as the 2012 run's were set by hand."""

    kind: Literal["schedule"]
    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        epochs = [phase.epoch for phase in self.phases]
        if epochs[:1] != [0] or epochs != sorted(set(epochs)):
            raise ValueError(f"phases must begin at epoch 0 and rise, not {epochs}")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """How the validation split is scored (§4.1)."""

    batch: int = number(1, changeable=True)
    ten_views_at_end: bool = changeable()


@dataclass(frozen=True, kw_only=True)
class Log:
    """What a run says while it goes on; in steps."""

    every: int = number(1, changeable=True)  # a line of metrics
    layers_every: int = number(0, changeable=True)  # each layer's health; 0: never
    stuck_after: int = number(0, changeable=True)  # steps at the labels' entropy; 0: never warn


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What a run is to show: a row of the table that `report` makes."""

    name: str = changeable()  # runs of one name are one row, but for what else differs
    paper: str = changeable()  # what the paper says of it; "": nothing
    log: str = changeable()  # the logs of the 2012 runs, top-1 / top-5 error
    against: str = changeable()  # the name of the runs that it is compared with; "": none


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    experiment: Experiment
    seed: int = number(0, 2**31)
    devices: int = number(1, changeable=True)  # with two towers apart: 1 or an even number
    towers_apart: bool = changeable()  # each on its own device; False: only the batch is split
    dtype: Literal["float32", "bfloat16"]  # of the computation; parameters are always float32
    deterministic: bool = changeable()  # on GPUs: equal bits in every run, for some of the speed
    batch: int = number(1)  # images in a step, over all devices
    init_from: str  # a workdir whose newest weights to begin with, but for the last layer; "": none
    epochs: int = number(1, changeable=True)  # at most
    steps: int = number(0, changeable=True)  # stop after so many; 0: only epochs count
    checkpoint_every: int = number(0, changeable=True)  # steps, besides each epoch's end; 0: none
    data: Data
    model: AlexNet | Cifar
    optim: Optim
    policy: Plateau | Schedule
    evaluate: Evaluate
    log: Log

    def __post_init__(self) -> None:
        named = set(self.optim.layer_decay)
        if isinstance(self.policy, Schedule):
            named |= {name for phase in self.policy.phases for name in phase.layers}
        # A layer may be named that is left out.
        known = self.model.layers if isinstance(self.model, AlexNet) else self.model.names
        unknown = sorted(named - set(known))
        if unknown:
            raise ValueError(
                f"{unknown[0]!r} in optim.layer_decay or policy.phases is no layer; "
                f"there are {', '.join(known)}"
            )


def parse(values: Mapping[str, Any]) -> Config:
    """The typed config of a ``ConfigDict`` or a plain dict.

    Raises:
      UserError: a key is missing or unknown, or a value has the wrong type or is out of range.
    """
    return _section(Config, _plain(values), "config")


def as_dict(config: Config) -> dict[str, Any]:
    """Dicts, lists, strings and numbers: what stands in a workdir's ``config.json``."""
    return _plain(dataclasses.asdict(config))


def decisive(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, by dotted key, on which a run's result depends; out of all, from `as_dict`."""
    changeable = set(_changeable_keys(Config))
    return {key: value for key, value in _leaves(values) if key not in changeable}


def differences(old: Mapping[str, Any], new: Config) -> list[str]:
    """The dotted keys that change results and in which `old`, from `as_dict`, is not `new`."""
    then, now = decisive(old), decisive(as_dict(new))
    return sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))


# --- from plain values to dataclasses ---------------------------------------------------------


def _section(kind: Any, values: Any, at: str) -> Any:
    """Builds the dataclass `kind`, or the one of a union that `values['kind']` names."""
    if not isinstance(values, Mapping):
        raise UserError(f"{at} must be a section with keys, not {values!r}")
    kind = _chosen(kind, values, at)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(fields)}"
            raise UserError(f"{at} has no key {key!r}; {hint}")
    missing = [name for name in fields if name not in values]
    if missing:
        raise UserError(f"{at}.{missing[0]} is missing; add it (see configs/alexnet.py)")
    hints = typing.get_type_hints(kind)
    built = {
        name: _field(f, hints[name], values[name], f"{at}.{name}") for name, f in fields.items()
    }
    try:
        return kind(**built)
    except ValueError as error:
        raise UserError(f"{at}: {error}") from None


def _chosen(kind: Any, values: Mapping[str, Any], at: str) -> Any:
    """The member of a union of dataclasses whose `kind` is the one in `values`."""
    if not isinstance(kind, types.UnionType):
        return kind
    choices = {typing.get_type_hints(k)["kind"].__args__[0]: k for k in kind.__args__}
    found = [choice for name, choice in choices.items() if name == values.get("kind")]
    if not found:
        raise UserError(f"{at}.kind={values.get('kind')!r}; choose one of {', '.join(choices)}")
    return found[0]


def _field(spec: dataclasses.Field[Any], kind: Any, value: Any, at: str) -> Any:
    value = _value(kind, value, at)
    for one in _each(value):
        low, below = spec.metadata.get("low", -math.inf), spec.metadata.get("below", math.inf)
        if isinstance(one, float | int) and not low <= one < below:
            limit = f"at least {low:g}" + (f" and below {below:g}" if below < math.inf else "")
            raise UserError(f"{at}={value!r} must be {limit}")
        allowed = spec.metadata.get("allowed", (one,))
        if one not in allowed:
            raise UserError(f"{at}={value!r}: {one!r} is none of {', '.join(map(repr, allowed))}")
    return value


def _value(kind: Any, value: Any, at: str) -> Any:
    """`value` as the annotated type `kind`; whole numbers pass as floats, nothing else changes."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) or origin is types.UnionType:
        return _section(kind, value, at)
    if origin is Literal:
        if value not in arguments or type(value) not in map(type, arguments):
            raise UserError(f"{at}={value!r}; choose one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        return _tuple(arguments, value, at)
    if origin is not None:  # Mapping[str, float]
        if not isinstance(value, Mapping):
            raise UserError(f"{at}={value!r} must be a section with one number for each name")
        return {str(key): _value(arguments[1], one, f"{at}.{key}") for key, one in value.items()}
    if type(value) is int and not -(2**31) <= value < 2**31:
        raise UserError(f"{at} must be between -2^31 and 2^31")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        name = {"int": "a whole number", "float": "a finite number", "bool": "True or False"}
        raise UserError(f"{at}={value!r} must be {name.get(kind.__name__, 'a string')}")
    return value


def _tuple(arguments: tuple[Any, ...], value: Any, at: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{at}={value!r} must be a tuple")
    if arguments[-1] is Ellipsis:
        arguments = arguments[:1] * len(value)
    if len(arguments) != len(value):
        raise UserError(f"{at}={value!r} must have {len(arguments)} values")
    pairs = zip(arguments, value, strict=True)
    return tuple(_value(kind, one, f"{at}[{i}]") for i, (kind, one) in enumerate(pairs))


def _each(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, tuple):
        yield from value
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield value


def _plain(values: Any) -> Any:
    if hasattr(values, "items"):
        return {str(key): _plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    return values


def _leaves(values: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _leaves(value, f"{at}.{key}" if at else key)
    else:
        yield at, values


def _changeable_keys(kind: Any, at: str = "") -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    for spec in dataclasses.fields(kind):
        key = f"{at}.{spec.name}" if at else spec.name
        if dataclasses.is_dataclass(hints[spec.name]):
            yield from _changeable_keys(hints[spec.name], key)
        elif spec.metadata.get("changeable"):
            yield key
