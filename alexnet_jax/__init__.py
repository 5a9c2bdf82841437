"""The AlexNet of 2012: two towers on two devices (Krizhevsky, Sutskever, Hinton, NIPS 2012).

    net = alexnet_jax.from_pretrained("tiny")  # a network in the package
    net = alexnet_jax.load("runs/tiny")  # a workdir, its copy, a folder of save_pretrained
    net.top5("photo.jpg")
    model = alexnet_jax.AlexNet(alexnet_jax.alexnet_2012.model, rngs=nnx.Rngs(0))

`alexnet`, `alexnet_2012`, `run_145` and `tiny` are the configs of these names; `load_config` gives
any other.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

__all__ = [
    "AlexNet",
    "Config",
    "Net",
    "UserError",
    "__version__",
    "alexnet",
    "alexnet_2012",
    "from_pretrained",
    "load",
    "load_config",
    "load_weights",
    "lrn",
    "max_pool",
    "run_145",
    "tiny",
]

if TYPE_CHECKING:
    from alexnet_jax.config import Config
    from alexnet_jax.model.alexnet import AlexNet
    from alexnet_jax.operations import lrn, max_pool
    from alexnet_jax.runtime.cli import load_config
    from alexnet_jax.runtime.errors import UserError
    from alexnet_jax.training.others import load_weights
    from alexnet_jax.training.trained import Net, from_pretrained, load

    alexnet: Config
    alexnet_2012: Config
    run_145: Config
    tiny: Config

_CONFIGS = ("alexnet", "alexnet_2012", "run_145", "tiny")
_PLACES = {
    "AlexNet": "model.alexnet",
    "Config": "config",
    "Net": "training.trained",
    "UserError": "runtime.errors",
    "from_pretrained": "training.trained",
    "load": "training.trained",
    "load_config": "runtime.cli",
    "load_weights": "training.others",
    "lrn": "operations",
    "max_pool": "operations",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for at its first use: importing all takes seconds."""
    if name in _CONFIGS:
        value = __getattr__("load_config")(name)
    elif name in _PLACES:
        value = getattr(import_module(f"alexnet_jax.{_PLACES[name]}"), name)
    else:
        raise AttributeError(f"module 'alexnet_jax' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
