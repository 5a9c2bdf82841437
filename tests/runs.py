"""What tests compare of two runs."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from alexnet_jax.config import Config
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.metrics import read_metrics
from alexnet_jax.training.setup import make_setup
from alexnet_jax.training.state import restore_state


class Saved(NamedTuple):
    """The newest checkpoint of a run; its arrays on the host."""

    step: int
    state: Any
    meta: dict[str, Any]
    best: int | None  # the step of the best checkpoint


def saved(c: Config, folder: Path) -> Saved:
    with Checkpoints(folder / workdir.CHECKPOINTS) as checkpoints:
        step, state, meta = restore_state(make_setup(c), checkpoints)
        return Saved(step, jax.device_get(state), meta, checkpoints.best_step())


def lines(folder: Path, but: tuple[str, ...] = ("time/",)) -> list[dict[str, Any]]:
    """The lines of metrics without the times."""
    return [
        {name: value for name, value in line.items() if not name.startswith(but)}
        for line in read_metrics(folder)
    ]
