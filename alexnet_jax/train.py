"""Training: restore, then again and again a batch, a step, and what is due after it."""

import copy
import dataclasses
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import jax

from alexnet_jax import config, optim
from alexnet_jax.data.pipeline import train_batches
from alexnet_jax.runtime import distributed, host, workdir
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.metrics import FILE as METRICS
from alexnet_jax.runtime.metrics import Clock, MetricsLog
from alexnet_jax.runtime.sharding import fetch, gather, local_rows, put_batch
from alexnet_jax.runtime.signals import Stop, Stopped
from alexnet_jax.runtime.terminal import progress_bar, say
from alexnet_jax.training.diagnostics import (
    LayerDiagnostics,
    StuckLoss,
    check_loss,
    check_weights,
    label_entropy,
)
from alexnet_jax.training.plan import Plan, due, make_plan
from alexnet_jax.training.scores import IN_FLIGHT, Evaluator, ImageScores, RunningScores, Scores
from alexnet_jax.training.setup import Setup, make_setup
from alexnet_jax.training.state import State, init_state, restore_state
from alexnet_jax.training.step import (
    Batch,
    DeviceHyperparams,
    make_step,
    put_hyperparams,
    training_input,
)

AHEAD = 2  # batches that lie on the devices before their step


@dataclass
class Line:
    """A line of metrics whose numbers may still be on the devices."""

    step: int
    rate: float
    running: RunningScores  # of the older steps since the last line
    scores: list[ImageScores]  # of the newer ones; none if only `layers` are logged
    layers: Any  # from `LayerDiagnostics.measure`, or None


@dataclass
class Run:
    """Where a run is: what changes from step to step."""

    state: State
    policy: optim.Policy
    step: int = 0  # steps done
    saved: int | None = None  # the step of the newest checkpoint
    running: RunningScores = field(default_factory=RunningScores)  # since the last line of metrics
    scores: list[ImageScores] = field(default_factory=list)  # to be added to it; on the devices
    lines: list[Line] = field(default_factory=list)  # not written yet
    unscored: dict[str, float] | None = None  # metrics of `step`, whose evaluation is not finished


@dataclass(frozen=True)
class Tools:
    """What the loop works with."""

    setup: Setup
    plan: Plan
    folder: Path
    checkpoints: Checkpoints
    log: MetricsLog | None  # the main process writes for all
    evaluator: Evaluator
    diagnostics: LayerDiagnostics
    stuck: StuckLoss
    clock: Clock
    stop: Stop


def fit(c: config.Config, folder: Path) -> None:
    """Trains the config's network in the workdir `folder`, from its newest checkpoint if any.

    Raises:
      UserError: records, devices or workdir do not fit the config; or the loss is not finite.
      Stopped: SIGTERM or SIGINT came. All work is saved, and the same call resumes from there.
    """
    setup = make_setup(c)
    plan = make_plan(c, len(setup.train))
    with ExitStack() as stack:
        stack.enter_context(workdir.hold(folder, c))
        checkpoints = stack.enter_context(Checkpoints(folder / workdir.CHECKPOINTS))
        run = restore(setup, checkpoints)
        if is_over(plan, run.step, run.policy) and run.unscored is None:
            say(f"{folder} is trained already, for {run.step} steps; see its {METRICS}")
            return
        tools = open_tools(setup, plan, folder, checkpoints, run.step, stack)
        try:
            train(tools, run)
        except Stopped:
            write_lines(tools, run, run.step)
            if run.saved != run.step:
                save(tools, run, {})
            checkpoints.wait()
            say(f"stopped after step {run.step}, which is saved in {folder}")
            raise
        checkpoints.wait()
        say(f"metrics in {folder / METRICS}; curves: tensorboard --logdir={folder}")
        say(f"checkpoints in {folder / workdir.CHECKPOINTS}")


def train(tools: Tools, run: Run) -> None:
    """Trains until the run is over. Raises Stopped if a signal came, and UserError as `fit`."""
    setup, plan, clock = tools.setup, tools.plan, tools.clock
    step, hyperparams, in_flight = None, None, deque[ImageScores](maxlen=IN_FLIGHT)
    if run.unscored is not None:  # a signal interrupted the evaluation of this step
        finish_step(tools, run, run.unscored)
    with (
        closing(placed_batches(setup, run.step, plan.last)) as batches,
        progress_bar(plan.last, "training", "steps", initial=run.step) as bar,
    ):
        while not is_over(plan, run.step, run.policy):
            with clock.apart("input"):
                batch = next(batches)
            wanted = run.policy.hyperparams(plan.epochs(run.step))
            if wanted != hyperparams:
                hyperparams, placed = wanted, put_hyperparams(network, c.optim, wanted)
            if step is None:
                with clock.apart("compile"):
                    step = make_step(setup)
            run.state, scores = step(run.state, setup.normalization, batch, hyperparams)
            run.step += 1
            run.scores.append(scores)
