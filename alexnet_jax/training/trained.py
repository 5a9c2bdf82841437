"""A trained network from its workdir: what every job after training begins with."""

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

from alexnet_jax import config
from alexnet_jax.optim import Params
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.memory import check_memory
from alexnet_jax.training.setup import Setup, make_setup
from alexnet_jax.training.state import restore_state

Step = Literal["newest", "best"] | int
"""Which checkpoint: the newest intact one, the one with the lowest error, or that of a step."""


class Trained(NamedTuple):
    """Attributes: the workdir, the checkpoint's step, the run's setup, and its parameters."""

    folder: Path
    step: int
    setup: Setup
    params: Params


def open_trained(
    folder: Path, *, step: Step = "newest", devices: int = 1, records: str | None = None
) -> Trained:
    """The network of a workdir, on `devices` devices.

    Args:
      folder: the workdir. Its run may still be training.
      step: which checkpoint.
      devices: to compute on; any number, whatever it was trained on.
      records: where the run's records are now, if not where its config says.

    Raises:
      UserError: there is no run or no such checkpoint; or the records are missing or not the run's.
    """
    c = workdir.read_config(folder)
    data = dataclasses.replace(c.data, records=records or c.data.records)
    return load(dataclasses.replace(c, devices=devices, data=data), folder, step)


def load(c: config.Config, folder: Path, step: Step) -> Trained:
    """The network that was trained with config `c` in the workdir `folder`.

    Raises:
      UserError: the workdir holds another config's run; or see `open_trained`.
    """
    workdir.check(folder, c)
    setup = make_setup(c)
    check_memory(setup.network, c, training=False)
    with Checkpoints(folder / workdir.CHECKPOINTS, read_only=True) as checkpoints:
        if not checkpoints.steps():
            raise UserError(f"{folder} has no checkpoint yet; train first")
        chosen = checkpoints.best_step() if step == "best" else None if step == "newest" else step
        if step == "best" and chosen is None:
            raise UserError(f"{folder} has no scored checkpoint yet; give --step=newest")
        restored = restore_state(setup, checkpoints, chosen)
    assert restored is not None
    return Trained(folder, restored.step, setup, restored.state["params"])


def parse_step(text: str) -> Step:
    """The value of ``--step``.

    Raises:
      UserError: it is none of newest, best and a number.
    """
    if not text.isdecimal() and text not in get_args(get_args(Step)[0]):
        raise UserError(f"--step={text}: give newest, best or the number of a checkpoint")
    return int(text) if text.isdecimal() else cast(Step, text)
