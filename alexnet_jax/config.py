"""Every value that a config file sets: its type, its meaning and its limits.

The files in ``configs/`` build plain ``ml_collections.ConfigDict``s. `parse` turns one into the
frozen dataclasses below. A value that does not fit is refused in one line that names its key,
before anything is compiled or written. No field has a default: a config file shows everything that
a run depends on.
"""

import dataclasses
import difflib
import itertools
import json
import reprlib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

import pydantic
from pydantic import Field, NonNegativeFloat, TypeAdapter
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from alexnet_jax.runtime.errors import UserError

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6")
"""The paper's five, and the sixth of the network that it trained on more images (§6.1)."""

Activation = Literal["relu", "tanh", "sigmoid"]
"""f of §3.1: max(0, x), tanh(x) or 1 / (1 + e^-x)."""

ACTIVATIONS: tuple[str, ...] = get_args(Activation)

Resize = Literal["area", "bilinear", "squeeze"]
"""How an image becomes a square, see `data.images.square`."""

CHANGEABLE = (
    *("experiment.", "evaluate.", "log."),
    *("devices", "towers_apart", "forms", "profile", "deterministic"),
    *("epochs", "steps", "checkpoint_every"),
    *("data.source", "data.records", "data.threads"),
)
"""Keys and sections that may have another value when a run is resumed."""

ADDED: Mapping[str, Any] = {
    "forms": "default",
    "profile": "",
    "data": {"resize": "area", "order": "random", "chunk": 1},
    "model": {  # only AlexNet has them
        "pool_over_edges": False,
        "padding": {},
        "lrn_over_towers": False,
        "lrn_after_pooling": False,
        "dropout_before": ["fc7", "fc8"],
    },
    "evaluate": {"nine_views_at_end": False},
}
ADDED_TO_PHASES: dict[str, Any] = {"biases": {}, "images": 0}
"""Keys that are new since version 0.1, with the values that say what it did."""

PositiveInt = Annotated[int, Field(ge=1, lt=2**31)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**31)]
Window = Annotated[int, Field(ge=1, le=1000)]  # a program has an operation for each place of some
Zeros = Annotated[int, Field(ge=0, le=1000)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
_STRICT = pydantic.ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")
_T = TypeVar("_T")


@typing.dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def section(cls: type[_T]) -> type[_T]:
    """Makes a frozen dataclass that checks its values: each must have exactly its field's type.

    Only a whole number may stand for a float. NaN, infinity and unknown keys are refused.
    """
    return cast(type[_T], dataclass(frozen=True, kw_only=True, config=_STRICT)(cls))


@section
class Lighting:
    """PCA colour shifts (§4.1): three normal random numbers for each image, new in each epoch."""

    sigma: NonNegativeFloat  # standard deviation of the random numbers; 0 switches lighting off
    scale: Literal["eigenvalue", "deviation"]  # times l on [0, 1] (paper), or sqrt(l) on 0..255
    source: Literal["training", "published"]  # components of our training set, or ImageNet's
    shrink: bool  # divide the shifted image by 1 + sigma, as the 2012 code does


@section
class Data:
    """The records that `prepare` writes, and how batches are made from them (§2, §4.1)."""

    source: str  # what `prepare --source` got; KIND:PATH: anything, the records say what
    records: str  # the folder that `prepare --out` writes; "": a folder in records/, see origin.py
    size: PositiveInt  # side of the recorded images, pixels
    format: Literal["jpeg", "raw"]
    resize: Resize  # how images became squares: the paper's way, torchvision's, or Caffe's
    validation: str  # the split that is scored after each epoch
    crop: PositiveInt  # side of the network's input, pixels
    random_crop: bool  # cut training crops at random places; False: at the centre
    mirror: bool  # mirror half of the training images
    mean: Literal["crop", "centre"]  # subtract the mean image's part at the crop, or its centre
    order: Literal["random", "fixed"]  # of the images: new in each epoch, or that of the first
    chunk: PositiveInt  # so many images in a row share one random crop and mirror
    lighting: Lighting
    threads: Annotated[
        int, Field(ge=0, le=1024)
    ]  # that read and decode images; 0: one for each core

    def __post_init__(self) -> None:
        if self.crop > self.size:
            raise ValueError(f"crop={self.crop} must not be larger than size={self.size}")


@section
class Formula:
    """Response normalization: a / (k + alpha * (sum of the neighbours' squares))^beta (§3.3)."""

    size: Window  # neighbours, itself included: maps, or the side of a window in a map
    k: NonNegativeFloat  # 0, or at least 1e-6: less is lost in float32
    alpha: NonNegativeFloat
    beta: NonNegativeFloat

    def __post_init__(self) -> None:
        if 0 < self.k < 1e-6:
            raise ValueError(f"k={self.k} must be 0 or at least 1e-6")
        if not self.k and not self.alpha and self.beta:
            raise ValueError("k and alpha are both 0, so it would divide by zero")


@section
class AcrossMaps(Formula):
    """LRN: over neighbouring maps at one place."""

    layers: tuple[Literal["conv1", "conv2"], ...]  # after which it is done; (): nowhere
    before_activation: tuple[Literal["conv1"], ...]  # where it comes before the activation


@section
class WithinMap(Formula):
    """Response normalization over neighbouring places of one map; only the 2012 code has it."""

    layers: tuple[Literal["conv2"], ...]
    before_activation: tuple[()]


Response = AcrossMaps | WithinMap


@section
class AlexNet:
    """The network (§3). Kernels and neurons are counted over both towers together."""

    kind: Literal["alexnet"]
    classes: NonNegativeInt  # 0: as many as the records have
    towers: int = Field(ge=1, le=2)
    kernels: Annotated[tuple[PositiveInt, ...], Field(min_length=5, max_length=6)]  # by convolution
    neurons: tuple[PositiveInt, PositiveInt]  # fc6, fc7
    width: float = Field(ge=1e-3, lt=64)  # multiplies kernels and neurons
    cross: tuple[Literal["conv3", "conv6", "fc6", "fc7"], ...]  # layers that see both towers
    without: Literal["", "conv2", "conv3", "conv4", "conv5", "conv6"]  # leaves out one convolution
    activation: Activation
    pool_window: Window
    pool_stride: Window
    pool_over_edges: bool  # the last windows may hang over the far edges, as in the 2012 code
    padding: Mapping[str, Zeros]  # zeros at each edge of single convolutions' inputs; the
    # others but conv1 have as many as keep the side
    lrn: AcrossMaps
    lrn_over_towers: bool  # LRN's window runs over both towers' maps, A's last beside B's first
    lrn_after_pooling: bool  # pooling comes before LRN
    within_map: WithinMap
    dropout: BelowOne  # probability that an input of a layer below is set to zero; 0: no dropout
    dropout_before: tuple[Literal["fc6", "fc7", "fc8"], ...]  # the paper: fc7 and fc8
    std: Mapping[str, NonNegativeFloat]  # standard deviation of the initial weights, by layer
    bias: Mapping[str, float]  # initial biases, by layer

    def __post_init__(self) -> None:
        if self.classes == 1:
            raise ValueError("classes must be at least 2, or 0 for as many as the records have")
        for key in ("std", "bias"):
            if set(getattr(self, key)) != set(self.layers):
                raise ValueError(f"{key} must have one value for each of {', '.join(self.layers)}")
        there = CONVOLUTIONS[: len(self.kernels)]
        for key, allowed in (("cross", (*there, "fc6", "fc7")), ("padding", there)):
            for name in getattr(self, key):
                if name not in allowed:
                    raise ValueError(f"{key} may name {', '.join(allowed)}, not {name!r}")
        if self.arranged and (self.without or self.within_map.layers or len(self.kernels) > 5):
            raise ValueError(
                "without, within_map.layers and a sixth convolution are for the paper's order: "
                "lrn_over_towers=False, lrn_after_pooling=False, dropout_before=('fc7', 'fc8')"
            )
        if self.arranged and self.lrn.before_activation:
            raise ValueError("lrn.before_activation is for the paper's order, not for others' nets")
        if self.without and self.activation != "relu":
            raise ValueError(
                f"without={self.without!r} needs activation='relu', not {self.activation!r}"
            )

    @property
    def arranged(self) -> bool:
        """Whether its operations are arranged as in others' nets: `model.arranged`."""
        moved = self.lrn_over_towers or self.lrn_after_pooling
        return moved or set(self.dropout_before) != {"fc7", "fc8"}

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of all layers in order, with the one that is left out."""
        return (*CONVOLUTIONS[: len(self.kernels)], "fc6", "fc7", "fc8")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the layers that have parameters, in order; the last gives the logits."""
        return tuple(layer for layer in self.layers if layer != self.without)


@section
class CifarLayer:
    """A layer of one of the authors' CIFAR-10 nets, and the operations after it, in order."""

    name: str = Field(pattern=r"^(conv|local|fc)\d+$")
    kind: Literal["conv", "local", "dense"]  # local: a convolution with kernels for each place
    window: int = Field(ge=1, le=64)  # side of a convolution's kernels, pixels; 1 for a dense layer
    units: PositiveInt  # kernels or neurons
    then: tuple[Activation | Literal["max", "average", "within_map", "across_maps"], ...]
    std: NonNegativeFloat  # standard deviation of the initial weights; the biases start at 0


@section
class Cifar:
    """A small net for small images: layers in one row, no towers."""

    kind: Literal["cifar"]
    classes: int = Field(ge=2, lt=2**31)
    towers: int = Field(ge=1, le=1)
    layers: tuple[CifarLayer, ...]
    pool_window: Window
    pool_stride: Window
    within_map: Formula
    across_maps: Formula

    def __post_init__(self) -> None:
        kinds = [layer.kind for layer in self.layers]
        if kinds[-1:] != ["dense"] or self.layers[-1].units != self.classes:
            raise ValueError(f"the last of layers must be dense, with {self.classes} units")
        for layer in self.layers:
            if layer.kind == "dense" and set(layer.then) - set(ACTIVATIONS):
                allowed = ", ".join(ACTIVATIONS)
                raise ValueError(f"only {allowed} can follow {layer.name}, which is dense")
        after = set(kinds[kinds.index("dense") :])
        if len(set(self.names)) != len(kinds) or after != {"dense"}:
            raise ValueError("layers must have different names, and the dense ones must be last")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the layers, in order; the last gives the logits."""
        return tuple(layer.name for layer in self.layers)

    @property
    def activation(self) -> str:
        """The first one in `layers`; 'relu' if there is none."""
        names = (name for layer in self.layers for name in layer.then if name in ACTIVATIONS)
        return next(names, "relu")


@section
class Optim:
    """The update of §5. Its learning rate comes from the policy."""

    momentum: BelowOne
    weight_decay: NonNegativeFloat
    layer_decay: Mapping[str, NonNegativeFloat]  # weight decays of single layers
    bias_rate: NonNegativeFloat  # biases' rate by the weights' of their layer, unless a phase says
    decay_biases: bool


@section
class Plateau:
    """Divide the rate when the validation error stops improving (§5)."""

    kind: Literal["plateau"]
    rate: NonNegativeFloat  # at the start
    factor: float = Field(ge=1)  # the rate is divided by this
    drops: NonNegativeInt  # how often it is divided; the plateau after that ends the training
    patience: PositiveInt  # epochs without improvement that make a plateau
    least_improvement: NonNegativeFloat  # a smaller fall of the top-1 error rate does not count


@section
class Phase:
    """One part of a schedule. What has the rate 0 stays as it is."""

    epoch: NonNegativeFloat  # epochs done when it begins
    rate: NonNegativeFloat  # of the weights
    layers: Mapping[str, NonNegativeFloat]  # rates of single layers' weights
    biases: Mapping[str, NonNegativeFloat]  # rates of biases: of single layers, of "all" others
    lighting: bool
    images: NonNegativeInt  # train on the first so many of the training split; 0: on all


@section
class Schedule:
    """Rates by epoch, as they were set by hand in the run of 2012."""

    kind: Literal["schedule"]
    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        epochs = [phase.epoch for phase in self.phases]
        if epochs[:1] != [0] or epochs != sorted(set(epochs)):
            raise ValueError(f"phases must begin at epoch 0 and rise, not {epochs}")
        for before, phase in itertools.pairwise(self.phases):
            if phase.images != before.images and not phase.epoch.is_integer():
                raise ValueError(
                    f"phases must begin at a whole epoch where images changes, not at {phase.epoch}"
                )


@section
class Evaluate:
    """How the validation split is scored (§4.1)."""

    batch: PositiveInt
    ten_views_at_end: bool  # four corners, the centre, and their mirror images
    nine_views_at_end: bool  # three by three crops, not mirrored: CIFAR-10's in the 2012 code


@section
class Log:
    """How often a run reports, in steps."""

    every: PositiveInt  # a line of metrics
    layers_every: NonNegativeInt  # diagnostics of each layer; 0: never
    stuck_after: NonNegativeInt  # warn when the loss stays at the labels' entropy; 0: never


@section
class Experiment:
    """What a run is for: a row of the table that `report` makes."""

    name: str  # runs with the same name and config share a row
    paper: str  # what the paper says about it; "": nothing
    log: str  # the top-1 / top-5 error in the logs of 2012
    against: str  # the name of the runs that it is compared with; "": none


@section
class Config:
    """One run."""

    experiment: Experiment
    seed: NonNegativeInt
    devices: PositiveInt  # with two towers apart: 1 or an even number
    towers_apart: bool  # each tower on a device of its own; False: only the batch is split
    dtype: Literal["float32", "bfloat16"]  # of the computation; parameters are always float32
    forms: Literal["fastest", "default"]  # on GPUs: how to compute layers, by trial at the start
    profile: str  # trace these steps: "START:STOP", STOP is not one of them; "": none
    deterministic: bool  # on GPUs: the same bits in every run, but slower
    batch: PositiveInt  # images in a step, over all devices
    init_from: str  # start with the layers that fit, of this workdir or safetensors file; "": none
    epochs: PositiveInt  # at most
    steps: NonNegativeInt  # stop after so many; 0: only epochs count
    checkpoint_every: NonNegativeInt  # steps; one more at the end of each epoch; 0: only that
    data: Data
    model: Annotated[AlexNet | Cifar, Field(discriminator="kind")]
    optim: Optim
    policy: Annotated[Plateau | Schedule, Field(discriminator="kind")]
    evaluate: Evaluate
    log: Log

    @property
    def has_top5(self) -> bool:
        """Whether the top-5 error says anything: with five classes or fewer it is always 0."""
        return self.model.classes > 5

    @property
    def traced_steps(self) -> range:
        """The steps that `profile` names. Raises ValueError if it names none."""
        start, _, stop = (self.profile or "0:0").partition(":")
        whole = start.isdecimal() and stop.isdecimal()
        if not whole or (self.profile and not 0 < int(start) < int(stop)):
            raise ValueError(
                f"profile={self.profile!r}: give steps as '100:110', 110 is not traced"
            )
        return range(int(start), int(stop))

    def __post_init__(self) -> None:
        _ = self.traced_steps
        phases = self.policy.phases if isinstance(self.policy, Schedule) else ()
        # A layer may be named that is left out.
        known = self.model.layers if isinstance(self.model, AlexNet) else self.model.names
        named = [*self.optim.layer_decay, *(key for phase in phases for key in phase.layers)]
        named += [key for phase in phases for key in phase.biases if key != "all"]
        for layer in named:
            if layer not in known:
                raise ValueError(
                    f"{layer!r} in optim.layer_decay or policy.phases is no layer; "
                    f"there are {', '.join(known)}"
                )


def parse(values: Mapping[str, Any]) -> Config:
    """The typed config of a ``ConfigDict`` or a plain dict.

    Raises:
      UserError: a key is missing or unknown, or a value has the wrong type or is out of range.
    """
    # As JSON, because lists and dicts of JSON fit tuples and sections even where types are strict.
    text = json.dumps(values, default=_as_json)
    try:
        return TypeAdapter(Config).validate_json(text)
    except pydantic.ValidationError as error:
        raise UserError(_message(error.errors())) from None


def on_devices(config: Config, devices: int) -> Config:
    """The config with another number of devices. Raises UserError if it is none."""
    try:
        return dataclasses.replace(config, devices=devices)
    except pydantic.ValidationError as error:
        raise UserError(_message(error.errors())) from None


def as_dict(config: Config) -> dict[str, Any]:
    """Dicts, lists, strings and numbers: the content of a workdir's ``config.json``."""
    return TypeAdapter(Config).dump_python(config, mode="json")


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A ``config.json`` with the keys that it lacks because version 0.1 did not have them.

    Their values say what that version did, so its runs resume as they began.
    """
    new = dict(values)
    for key, added in ADDED.items():
        old = new.setdefault(key, added)
        if isinstance(added, dict) and isinstance(old, Mapping) and old.get("kind") != "cifar":
            new[key] = added | dict(old)
    policy = new.get("policy")
    if isinstance(policy, Mapping) and isinstance(phases := policy.get("phases"), list):
        whole = [ADDED_TO_PHASES | one if isinstance(one, dict) else one for one in phases]
        new["policy"] = dict(policy) | {"phases": whole}
    return new


def fixed_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values`, from `as_dict`, that decide a run's result; by dotted key."""
    return {key: value for key, value in _leaves(values) if not key.startswith(CHANGEABLE)}


def but_seed(c: Config) -> dict[str, Any]:
    """The fixed values of `c` without its seed: equal for runs that differ in their seed alone."""
    return fixed_values(as_dict(c)) | {"seed": None}


def differences(old: Mapping[str, Any], new: Config) -> list[str]:
    """The dotted keys of fixed values in which `old`, from `as_dict`, differs from `new`."""
    before, after = fixed_values(old), fixed_values(as_dict(new))
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def _leaves(values: object, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _leaves(value, f"{at}.{key}" if at else key)
    else:
        yield at, values


def _as_json(value: Any) -> dict[str, Any]:
    """A ``ConfigDict`` as a dict; any other object as a dict that no field accepts."""
    return dict(value.items()) if hasattr(value, "items") else {type(value).__name__: repr(value)}


# --- what is wrong, in one line -----------------------------------------------------------------

_KINDS = {"alexnet": AlexNet, "cifar": Cifar, "plateau": Plateau, "schedule": Schedule}
_WORDS = {  # pydantic's words, and ours
    "Input should be": "must be",
    "Tuple should have": "must have",
    "an object": "a section with keys",
    "a valid array": "a tuple",
    "a valid boolean": "True or False",
}


def _message(errors: Sequence[ErrorDetails]) -> str:
    """The first unknown key, which may be a misspelt key that is missing; else the first error."""
    error = max(errors, key=lambda error: error["type"] == "unexpected_keyword_argument")
    at, value, text, context = error["loc"], error["input"], error["msg"], error.get("ctx", {})
    # Pydantic names the kind of a section after its key: model, alexnet, kernels, 0.
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in at)
    key = "config" + "".join(part for part in parts if part[1:] not in _KINDS)
    match error["type"]:
        case "unexpected_keyword_argument":
            known = _known_keys(at[:-1])
            close = difflib.get_close_matches(str(at[-1]), known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
            return f"{key.removesuffix(f'.{at[-1]}')} has no key {at[-1]!r}; {hint}"
        case "missing":
            return f"{key} is missing; add it (see configs/alexnet.py)"
        case "union_tag_not_found":
            return f"{key}.kind is missing; add it (see configs/alexnet.py)"
        case "union_tag_invalid":
            return f"{key}.kind={value['kind']!r}; choose one of {context['expected_tags']}"
        case "value_error":
            return f"{key}: {context['error']}"
    for theirs, ours in _WORDS.items():
        text = text.replace(theirs, ours)
    return f"{key}={reprlib.repr(value)} {text}"


def _known_keys(at: Sequence[int | str]) -> list[str]:
    """The keys of the section at this place."""
    kind: Any = Config
    for part in at:
        if isinstance(part, int):
            (kind, _) = typing.get_args(kind)  # of tuple[kind, ...]
        else:
            kind = _KINDS.get(part) or typing.get_type_hints(kind)[part]
    return [field.name for field in dataclasses.fields(kind)]
