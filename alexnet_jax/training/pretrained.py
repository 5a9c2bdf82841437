"""A folder to share: weights, what the network must know of its images, config, a model card.

model.safetensors  the parameters, in the layout 'classic'
data.safetensors   mean image, colour components, names of the classes
config.json        the run's config, the checkpoint's step and its error
README.md          the model card
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jax

from alexnet_jax import config
from alexnet_jax.data.info import info_bytes, read_info
from alexnet_jax.model.layouts import from_layout, to_layout
from alexnet_jax.optim import Params
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.files import new_file
from alexnet_jax.runtime.tensors import read_tensors, to_bytes
from alexnet_jax.training.memory import check_memory
from alexnet_jax.training.setup import NetSetup, make_net_setup

WEIGHTS, DATA, CONFIG, CARD = "model.safetensors", workdir.DATA, "config.json", "README.md"
FILES = (CONFIG, DATA, WEIGHTS)
KIND = "alexnet_jax"


class Pretrained(NamedTuple):
    """What such a folder holds."""

    setup: NetSetup
    params: Params
    step: int
    error: float | None  # the validation split's top-1 error, a share


def write_pretrained(folder: Path, held: Pretrained, name: str = "") -> None:
    """Writes the four files, over older ones of the same names.

    Args:
      folder: the folder.
      held: what to write.
      name: what the model card gives to `from_pretrained`; "": the folder's name.

    Raises:
      UserError: the folder holds something else, or cannot be written.
    """
    setup = held.setup
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a new folder")
    if (folder / CONFIG).exists() and _kind(folder) != KIND:
        raise UserError(f"{folder} has the {CONFIG} of a run or of another program; give another")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / WEIGHTS).exists():
        raise UserError(f"{folder} holds other files; give a new folder")  # perhaps a README.md
    tensors = to_layout(jax.device_get(held.params), setup.network, "classic")
    values = {
        "model_type": KIND,
        "architectures": [type(setup.network.module()).__name__],
        "version": version("alexnet-jax"),
        "step": held.step,
        "top1_error": held.error,
        "config": without_places(config.as_dict(setup.config)),
    }
    data = dataclasses.replace(setup.data, source=_name(setup.data.source))
    contents = {
        WEIGHTS: to_bytes(tensors, {"layout": "classic", "format": "np"}),
        DATA: info_bytes(data),
        CARD: _card(held, name or Path(os.path.abspath(folder)).name).encode(),
        CONFIG: (json.dumps(values, indent=2) + "\n").encode(),  # the last: the folder is whole
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file_name, content in contents.items():
            with new_file(folder / file_name) as file:
                file.write(content)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error


def about(setup: NetSetup) -> str:
    """For example 'AlexNet(two towers, 10 classes, 224 pixels)'."""
    c = setup.config
    towers = ""
    if isinstance(c.model, config.AlexNet):
        towers = "one tower, " if c.model.towers == 1 else "two towers, "
    name = type(setup.network.module()).__name__
    return f"{name}({towers}{c.model.classes} classes, {c.data.crop} pixels)"


def packaged() -> dict[str, Path]:
    """The folders of the networks in the package, by name."""
    root = Path(str(files("alexnet_jax"))) / "pretrained"
    return {one.name: one for one in sorted(root.glob("*")) if is_pretrained(one)}


def find(where: str) -> Path:
    """The folder `where`, or that of the network in the package with this name.

    Raises:
      UserError: there is neither.
    """
    folder, known = Path(where), packaged()
    if folder.exists() or where in known:
        return folder if folder.exists() else known[where]
    raise UserError(
        f"there is no folder {where}, and the package has no such network, only "
        f"{', '.join(known)}; give one of these, a folder that `python -m alexnet_jax.weights "
        f"save` made, or hf://OWNER/NAME"
    )


def is_pretrained(folder: Path) -> bool:
    """Whether `folder` was made by `write_pretrained`, or is another program's model."""
    return _kind(folder) != ""


def _kind(folder: Path) -> str:
    """The type of the model in `folder`; "" if its config names none, as that of a run."""
    try:
        return str(json.loads((folder / CONFIG).read_text()).get("model_type", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def read_pretrained(folder: Path, devices: int) -> Pretrained:
    """What `write_pretrained` wrote, with the network on `devices` devices.

    Raises:
      UserError: the folder or a file is missing, damaged or another program's; or there are not
        enough devices.
    """
    values = read_config(folder)
    try:
        parsed = config.parse(config.completed(values["config"]))
        step, error = int(values["step"]), values["top1_error"]
    except (UserError, KeyError, TypeError, ValueError) as wrong:
        raise UserError(f"{folder / CONFIG} is of another version: {wrong}") from None
    c = config.on_devices(parsed, devices)
    data = read_info(folder / DATA)
    setup = make_net_setup(c, data)
    check_memory(setup.network, c, training=False)
    tensors, _ = read_tensors(folder / WEIGHTS)
    try:
        params = from_layout(tensors, setup.network, "classic")
    except UserError as wrong:
        raise UserError(f"{folder / WEIGHTS} does not fit {folder / CONFIG}: {wrong}") from None
    placed = jax.device_put(params, setup.network.shardings(setup.network.specs))
    return Pretrained(setup, placed, step, error)


def read_config(folder: Path) -> Mapping[str, Any]:
    """The content of config.json. Raises UserError if it is missing or another program's."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} holds no model: there is no {CONFIG} in it")
    if _kind(folder) != KIND:
        if (folder / "checkpoints").is_dir():
            raise UserError(
                f"{folder} is the workdir of a run; open it with alexnet_jax.load, or make a "
                f"folder to share: python -m alexnet_jax.weights save --workdir={folder} --out=mine"
            )
        raise UserError(
            f"{folder} holds a model of type {_kind(folder) or 'unknown'}, not {KIND}; give a "
            f"folder that `python -m alexnet_jax.weights save` made"
        )
    values: Mapping[str, Any] = json.loads(path.read_text())
    return values


def without_places(values: dict[str, Any]) -> dict[str, Any]:
    """A config without the folders of the machine that it ran on."""
    data = values["data"] | {"records": "", "source": _name(values["data"]["source"])}
    return values | {"data": data, "init_from": os.path.basename(values["init_from"].rstrip("/"))}


def _name(source: str) -> str:
    """'folder:photos' for 'folder:/home/me/photos'."""
    kind, colon, place = source.partition(":")
    return f"{kind}{colon}{os.path.basename(place.rstrip('/'))}"


def _card(held: Pretrained, name: str) -> str:
    setup, c = held.setup, held.setup.config
    # Only an import makes a checkpoint of step 0.
    how = "It was trained" if held.step else "Its weights were imported"
    source = "Trained on" if held.step else "Mean image and names of classes"
    error = "not scored" if held.error is None else f"{held.error:.2%}"
    return f"""---
library_name: alexnet_jax
pipeline_tag: image-classification
tags: [alexnet, jax, flax]
---

# {about(setup)}

The network of Krizhevsky, Sutskever and Hinton (2012) in JAX.
{how} with alexnet_jax {version("alexnet-jax")}: config `{c.experiment.name}`, step {held.step}.

- {source}: {_name(setup.data.source)}
- Classes: {c.model.classes}: {_some(setup.data.labels, c.model.classes)}
- Top-1 error on its validation split, centre crop: {error}

```python
import alexnet_jax

net = alexnet_jax.from_pretrained("{name}")
net.top5("photo.jpg")
```

Weights, mean image, config and class names are safetensors and JSON; opening them runs no code.
"""


def _some(labels: Sequence[str], classes: int) -> str:
    """The first names of the classes, which may be unknown."""
    shown = labels[:10]
    more = ["..."] if len(shown) < classes else []
    return ", ".join([*shown, *more]) if shown else "unnamed"
