"""A trained network, opened from its workdir: what every job after training begins with."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from alexnet_jax import config
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.setup import Setup, make_setup
from alexnet_jax.training.state import restore_state

Step = Literal["newest", "best"] | int
"""Which checkpoint: the newest intact one, the one with the lowest error, or that of a step."""


@dataclass(frozen=True)
class Trained:
    """Attributes: the workdir, the checkpoint's step, the run's setup, and its parameters."""

    folder: Path
    step: int
    setup: Setup
    params: Any


def open_trained(
    folder: Path, *, step: Step = "newest", devices: int = 1, records: str | None = None
) -> Trained:
    """The network of a workdir, laid over `devices` devices.

    Args:
      folder: the workdir; a run may be going on in it.
      step: which checkpoint.
      devices: on which to compute; they may be others than those that trained.
      records: where the run's records now are, if not where its config says.

    Raises:
      UserError: there is no run, no such checkpoint, or the records are missing or others.
    """
    c = workdir.read_config(folder)
    data = dataclasses.replace(c.data, records=records or c.data.records)
    return load(dataclasses.replace(c, devices=devices, data=data), folder, step)


def load(c: config.Config, folder: Path, step: Step) -> Trained:
    """The network of the workdir of config `c`'s run.

    Raises:
      UserError: the workdir holds another config's run; or see `open_trained`.
    """
    workdir.check(folder, c)
    setup = make_setup(c)
    with Checkpoints(folder / workdir.CHECKPOINTS, read_only=True) as checkpoints:
        if not checkpoints.steps():
            raise UserError(f"{folder} has no checkpoint yet; train first")
        chosen = checkpoints.best_step() if step == "best" else None if step == "newest" else step
        if step == "best" and chosen is None:
            raise UserError(f"{folder} has no scored checkpoint yet; give --step=newest")
        restored = restore_state(setup, checkpoints, step=chosen)
    assert restored is not None
    return Trained(folder, restored.step, setup, restored.state["params"])


def parse_step(text: str) -> Step:
    """What ``--step`` says.

    Raises:
      UserError: it is none.
    """
    if not text.isdecimal() and text not in get_args(get_args(Step)[0]):
        raise UserError(f"--step={text}: give newest, best or the number of a checkpoint")
    return int(text) if text.isdecimal() else cast(Step, text)
