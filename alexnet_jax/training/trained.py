"""A trained network, ready to score images: what every job after training begins with."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, Literal, TypeVar, cast, get_args, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from alexnet_jax import config
from alexnet_jax.data import augment
from alexnet_jax.data.images import Image, ImageFile, Images, are_several, read_images
from alexnet_jax.data.info import DataInfo, info_of, read_info
from alexnet_jax.data.records import is_prepared, open_records
from alexnet_jax.model.towers import DATA
from alexnet_jax.optim import Params
from alexnet_jax.runtime import distributed, hub, workdir
from alexnet_jax.runtime.checkpoint import ERROR, Checkpoints
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.sharding import fetch, put_batch
from alexnet_jax.training.memory import check_memory
from alexnet_jax.training.pretrained import (
    CONFIG,
    FILES,
    Pretrained,
    about,
    find,
    is_pretrained,
    read_config,
    read_pretrained,
    write_pretrained,
)
from alexnet_jax.training.scores import Views
from alexnet_jax.training.setup import NetSetup, Setup, make_net_setup, make_setup
from alexnet_jax.training.state import restore_state

Step = Literal["newest", "best"] | int
"""Which checkpoint: the newest intact one, the one with the lowest error, or that of a step."""

Labels = list[tuple[str, float]]
"""Names of classes and their probabilities, best first."""

_S_co = TypeVar("_S_co", bound=NetSetup, covariant=True)
_S = TypeVar("_S", bound=NetSetup)
Array = np.ndarray | jax.Array

_GIVE_RECORDS = "give the records of the run: --records=DIR, in Python records=DIR"


@dataclass(frozen=True, repr=False)
class Net(Generic[_S_co]):
    """A trained network. Its methods take an image or several, see `data.images.Image`.

    Attributes:
      folder: the workdir or the folder of the model.
      step: training steps done.
      setup: config, network on its devices, mean image; with the records if the job needs them.
      params: {'conv1': {'kernel': ..., 'bias': ...}, ...}, float32, on the devices.
      error: the validation split's top-1 error, centre crop, in [0, 1]; None: not scored.
      address: 'hf://OWNER/NAME', if it is from there.
    """

    folder: Path
    step: int
    setup: _S_co
    params: Params
    error: float | None = None
    address: str = ""

    def __repr__(self) -> str:
        error = "" if self.error is None else f", top-1 error {self.error:.2%}"
        return f"{about(self.setup)} from {self.address or self.folder}, step {self.step}{error}"

    @property
    def config(self) -> config.Config:
        """The config that it was trained with."""
        return self.setup.config

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, as in the records; class i is ``classes[i]``."""
        unnamed = range(len(self.setup.data.classes), self.config.model.classes)
        return (*self.setup.data.classes, *(f"class {number}" for number in unnamed))

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes for people: 'tench' where `classes` has 'n01440764'."""
        named = self.setup.data.labels
        return (*named, *self.classes[len(named) :])

    @property
    def module(self) -> Any:
        """The network as a Flax module, `AlexNet` or `CifarNet`; it takes what `inputs` gives."""
        return self.setup.network.bind(self.params)

    def preprocess(self, images: Images) -> UInt8[np.ndarray, "n size size 3"]:
        """Images as the records of the training have them (§2): rescaled, and cut to squares.

        The other methods do so by themselves. What this returns they take as it is.

        Raises:
          UserError: a file or an array is no image; or there are none.
        """
        return read_images(images, self.config.data.size, self.config.data.resize)

    def inputs(self, images: Images) -> Float[jax.Array, "n crop crop 3"]:
        """What `module` takes: centre crops minus the mean image, float32, grey levels."""
        mean = self.setup.normalization["mean"]
        return augment.view(
            jnp.asarray(self.preprocess(images)), mean, self.config.data, augment.CENTRE
        )

    def logits(self, images: Images) -> Float[np.ndarray, "n classes"]:
        """The logits of the centre crops: float32 [n, classes]."""
        return self.features(images, self.config.model.names[-1])

    def features(self, images: Images, layer: str) -> Float[np.ndarray, " n *units"]:
        """What a layer gives for the centre crops, after all that belongs to it but pooling.

        Args:
          images: one or several.
          layer: 'conv1' to 'fc8', or 'pool5'. 'fc7' are the 4096 features of Fig. 4.

        Returns:
          float32 [n, height, width, maps] or [n, neurons]; of both towers, A's first.

        Raises:
          UserError: there is no such layer; or see `preprocess`.
        """
        check_layer(self.setup, layer)

        def look(images: np.ndarray) -> np.ndarray:
            placed = put_batch(self.setup.network.mesh, {"image": images}, len(images))["image"]
            return fetch(self.setup.evaluator.outputs_of(self.params, placed, layer))

        return self._by_batch(look, images)

    def probs(self, images: Images, *, views: Views = 10) -> Float[np.ndarray, "n classes"]:
        """The probabilities of all classes: float32 [n, classes].

        Args:
          images: one or several.
          views: of each image, whose softmax outputs are averaged (§4.1). 1: of the centre crop
            alone, the softmax of `logits`.

        Raises:
          UserError: see `preprocess`; or there is no such number of views.
        """
        if views not in get_args(Views):
            raise UserError(f"views={views}; there are {', '.join(map(str, get_args(Views)))}")
        evaluator = self.setup.evaluator

        def look(images: np.ndarray) -> np.ndarray:
            return np.exp(evaluator.log_probs_of(self.params, images, views=views))

        return self._by_batch(look, images)

    @overload
    def top5(self, images: ImageFile, *, views: Views = 10) -> Labels: ...  # type: ignore[overload-overlap]  # a str is a sequence of str
    @overload
    def top5(self, images: Array, *, views: Views = 10) -> Labels | list[Labels]: ...
    @overload
    def top5(self, images: Sequence[Image], *, views: Views = 10) -> list[Labels]: ...
    def top5(self, images: Images, *, views: Views = 10) -> Labels | list[Labels]:
        """The five most probable `labels` and their probabilities, best first.

        Returns:
          [('tench', 0.9), ...] for one image; a list of such lists for several.

        Raises:
          UserError: see `probs`.
        """
        found = [
            [(self.labels[i], float(row[i])) for i in np.argsort(-row, kind="stable")[:5]]
            for row in self.probs(images, views=views)
        ]
        return found if are_several(images) else found[0]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes all that `from_pretrained` needs: safetensors, JSON and a model card; no pickle.

        Raises:
          UserError: the folder is a workdir, or cannot be written.
        """
        write_pretrained(Path(folder), self._pretrained())

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Uploads what `save_pretrained` writes to the Hugging Face Hub; returns its address.

        Args:
          name: OWNER/NAME of the model there, which is made if it is new.
          private: whether a new one is hidden from others.

        Raises:
          UserError: huggingface_hub is not installed, there is no network, or no permission.
        """
        name = name.removeprefix(hub.PREFIX)
        with TemporaryDirectory(prefix="alexnet-jax-") as folder:
            write_pretrained(Path(folder), self._pretrained(), f"{hub.PREFIX}{name}")
            return hub.upload(Path(folder), name, private=private)

    def _pretrained(self) -> Pretrained:
        return Pretrained(self.setup, self.params, self.step, self.error)

    def _by_batch(self, look: Callable[[np.ndarray], np.ndarray], images: Images) -> np.ndarray:
        """`look` at batches of a few sizes, because it is compiled for each: 1, 2, 4, 8, ...

        The last batch is filled up with black images.
        """
        squares, rows = self.preprocess(images), self.setup.network.mesh.shape[DATA]
        size = 2 ** (len(squares) - 1).bit_length()
        size = min(-(-size // rows) * rows, self.config.evaluate.batch)
        parts = []
        for start in range(0, len(squares), size):
            some = squares[start : start + size]
            filled = np.zeros((size, *squares.shape[1:]), np.uint8)
            filled[: len(some)] = some
            parts.append(look(filled)[: len(some)])
        return np.concatenate(parts)


def check_layer(setup: NetSetup, layer: str) -> None:
    """Raises UserError if `Net.features` has no such layer."""
    if layer not in setup.evaluator.features:
        raise UserError(f"no layer {layer}; there are {', '.join(setup.evaluator.features)}")


# --- opening ------------------------------------------------------------------------------------


def load(
    folder: str | os.PathLike[str],
    *,
    step: Step = "newest",
    devices: int = 1,
    records: str | None = None,
) -> Net[NetSetup]:
    """The network of a workdir, or what `from_pretrained` opens. It needs no records.

    Args:
      folder: the workdir, which may be a copy, and whose run may still be training; or a folder
        that `Net.save_pretrained` made; or 'hf://OWNER/NAME'; or the name of a network in the
        package, such as 'tiny'.
      step: which checkpoint of a workdir; the others have one step alone.
      devices: to compute on; any number, whatever it was trained on.
      records: where the run's records are now. Only workdirs of version 0.1 need them, for their
        mean image, if they are not where the run's config says.

    Raises:
      UserError: there is no run or no such checkpoint, or it is damaged.
    """
    _require_path(folder)
    place, text = Path(folder), os.fspath(folder)
    a_name = place.name == text and not place.exists()
    if hub.is_address(text) or is_pretrained(place) or a_name:
        net = from_pretrained(folder, devices=devices)
        if step not in ("newest", net.step):
            raise UserError(f"{folder} has step {net.step} alone, not {step}")
        return net
    c = config.on_devices(workdir.read_config(place), devices)
    return open_without_records(c, place, step, records)


def from_pretrained(where: str | os.PathLike[str], *, devices: int = 1) -> Net[NetSetup]:
    """A network of the package, of a folder that `Net.save_pretrained` made, or of the Hub.

    Args:
      where: the name of one in the package, such as 'tiny', unless there is a folder of that name;
        the folder; or 'hf://OWNER/NAME', or 'hf://OWNER/NAME@REVISION', of the Hugging Face Hub.
      devices: to compute on.

    Raises:
      UserError: there is none, it is damaged or another program's; or the Hub has no such model or
        cannot be reached, or huggingface_hub is not installed.
    """
    _require_path(where)
    text = os.fspath(where)
    address = text if hub.is_address(text) else ""
    folder = downloaded(text) if address else find(text)
    held = read_pretrained(folder, devices)
    return Net(folder, held.step, held.setup, held.params, held.error, address)


def downloaded(address: str) -> Path:
    """The local folder of 'hf://OWNER/NAME'. Raises UserError, see `from_pretrained`."""
    read_config(hub.download(address, [CONFIG]))  # before a stranger's weights are loaded
    return hub.download(address, FILES)


def _require_path(where: object) -> None:
    """Raises UserError for what can be neither the path of a folder nor an address."""
    if not isinstance(where, str | os.PathLike) or not os.fspath(where):
        raise UserError(f"give a workdir, a folder to share or hf://OWNER/NAME; got {where!r}")


def open_trained(
    folder: Path, *, step: Step = "newest", devices: int = 1, records: str | None = None
) -> Net[Setup]:
    """The network of a workdir with its records; for arguments see `load`.

    Raises:
      UserError: as `load`; or the records are missing or not the run's.
    """
    c = config.on_devices(workdir.read_config(folder), devices)
    data = dataclasses.replace(c.data, records=records or c.data.records)
    return open_run(dataclasses.replace(c, data=data), folder, step)


def open_run(c: config.Config, folder: Path, step: Step) -> Net[Setup]:
    """The network that was trained with config `c` in the workdir `folder`, with its records.

    Raises:
      UserError: the workdir holds another config's run; or see `open_trained`.
    """
    workdir.check(folder, c)
    return _restored(make_setup(c), folder, step)


def open_without_records(
    c: config.Config, folder: Path, step: Step, records: str | None = None
) -> Net[NetSetup]:
    """As `open_run`, without the records.

    Raises:
      UserError: see `open_run`; or it is a workdir of version 0.1, and its records are missing.
    """
    workdir.check(folder, c)
    info = _info_of(folder, c, records)
    distributed.require_same("the mean image and the classes", info.hash)
    return _restored(make_net_setup(c, info), folder, step)


def _info_of(folder: Path, c: config.Config, records: str | None) -> DataInfo:
    """What the network must know of its images: from the workdir, or from records."""
    file = folder / workdir.DATA
    if file.exists() and records is None:
        try:
            return read_info(file)
        except UserError as error:
            raise UserError(f"{error}; remove it, and {_GIVE_RECORDS}") from None
    place = records or c.data.records
    if not is_prepared(place):
        raise UserError(
            f"{folder} has no {workdir.DATA}, which holds its mean image and the names of its "
            f"classes, and {place} holds no records; {_GIVE_RECORDS}"
        )
    return info_of(open_records(place))


def _restored(setup: _S, folder: Path, step: Step) -> Net[_S]:
    check_memory(setup.network, setup.config, training=False)
    with Checkpoints(folder / workdir.CHECKPOINTS, read_only=True) as checkpoints:
        if not checkpoints.steps():
            raise UserError(f"{folder} has no checkpoint yet; train first")
        chosen = checkpoints.best_step() if step == "best" else None if step == "newest" else step
        if step == "best" and chosen is None:
            raise UserError(f"{folder} has no scored checkpoint yet; give --step=newest")
        restored = restore_state(setup, checkpoints, chosen)
        assert restored is not None
        error = checkpoints.scores(restored.step).get(ERROR)
    return Net(folder, restored.step, setup, restored.state["params"], error)


def parse_step(text: str) -> Step:
    """The value of ``--step``.

    Raises:
      UserError: it is none of newest, best and a number.
    """
    if not text.isdecimal() and text not in get_args(get_args(Step)[0]):
        raise UserError(f"--step={text}: give newest, best or the number of a checkpoint")
    return int(text) if text.isdecimal() else cast(Step, text)
