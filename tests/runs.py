"""What tests compare of two runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from alexnet_jax.config import Config
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.checksum import json_checksum
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


def change_scores(checkpoint: Path, scores: Mapping[str, float]) -> None:
    """Gives a checkpoint other scores, as if it had been saved with them."""
    (checkpoint / "metrics" / "metrics").write_text(json.dumps(scores))
    meta = checkpoint / "meta" / "metadata"
    sealed = json.loads(meta.read_text()) | {"scores": json_checksum(scores)}
    del sealed["seal"]
    meta.write_text(json.dumps(sealed | {"seal": json_checksum(sealed)}))


def lines(folder: Path, but: tuple[str, ...] = ("time/",)) -> list[dict[str, Any]]:
    """The lines of metrics without the times."""
    return [
        {name: value for name, value in line.items() if not name.startswith(but)}
        for line in read_metrics(folder)
    ]
