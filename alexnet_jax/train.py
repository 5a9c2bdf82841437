"""Training: restore, then for each step: next batch, step, log, evaluate, save."""

import copy
import dataclasses
from collections import deque
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from alexnet_jax import config, optim
from alexnet_jax.data import augment
from alexnet_jax.data.info import info_bytes
from alexnet_jax.data.origin import check_origin
from alexnet_jax.data.pipeline import eval_batches, train_batches
from alexnet_jax.runtime import distributed, host, workdir
from alexnet_jax.runtime.checkpoint import Checkpoints, Restored
from alexnet_jax.runtime.metrics import FILE, Clock, MetricsLog
from alexnet_jax.runtime.profile import Profile
from alexnet_jax.runtime.sharding import fetch, gather, local_rows, put_batch
from alexnet_jax.runtime.signals import Stop, Stopped
from alexnet_jax.runtime.terminal import say
from alexnet_jax.training import diagnostics, memory, pictures
from alexnet_jax.training.forms import choose
from alexnet_jax.training.plan import Plan
from alexnet_jax.training.progress import Progress, next_commands
from alexnet_jax.training.scores import IN_FLIGHT, ImageScores, RunningScores, Views
from alexnet_jax.training.setup import Setup, make_setup, with_forms
from alexnet_jax.training.state import State, init_state, load_layers, restore_state
from alexnet_jax.training.step import (
    Batch,
    DeviceHyperparams,
    make_step,
    put_hyperparams,
    training_input,
)

AHEAD = 2  # batches that lie on the devices before their step


class Line(NamedTuple):
    """A line of metrics that is not written yet: its numbers may still be on the devices."""

    step: int
    rate: float
    layers: Any  # for `diagnostics.read_layers`, or None
    running: RunningScores  # of images since the last line, besides those of `scores`
    scores: list[ImageScores]  # none if the line is about layers only


@dataclass
class Run:
    """What the loop works with, and all that changes from step to step."""

    setup: Setup
    plan: Plan
    checkpoints: Checkpoints
    diagnose: Any  # of `diagnostics.make_diagnostics`
    stuck: diagnostics.StuckLoss
    policy: optim.Policy
    state: State
    step: int  # steps done
    saved: int | None  # the step of the newest checkpoint
    unscored: dict[str, float] | None  # metrics of `step`, if its evaluation must be done
    running: RunningScores  # since the last line of metrics
    scores: list[ImageScores] = field(default_factory=list)  # not in `running` yet; on the devices
    lines: list[Line] = field(default_factory=list)  # oldest first
    log: MetricsLog | None = None  # the main process writes for all
    stop: Stop = field(default_factory=Stop)
    clock: Clock = field(init=False)  # `train` starts it
    progress: Progress = field(init=False)
    profile: Profile = field(init=False)


def fit(c: config.Config, folder: Path) -> None:
    """Trains the config's network in the workdir `folder`; resumes from its newest checkpoint.

    Raises:
      UserError: records, devices or workdir do not fit the config, or the records were made of
        another source than it names; there is not enough memory; or the loss is not finite.
      Stopped: SIGTERM or SIGINT came. All work is saved; the same call resumes from there.
    """
    setup = make_setup(c)
    c, records = setup.config, setup.records
    memory.check_memory(setup.network, c, training=True)
    if changed := distributed.on_main_process(lambda: check_origin(records, c.data.source)):
        say(changed)
    if note := records.manifest.note():
        say(f"the records in {records.path} are of an earlier version ({note})")
    # Before the workdir is made: what does not fit leaves none behind.
    layers = load_layers(setup) if c.init_from and not has_checkpoints(folder) else None
    with ExitStack() as stack:
        stack.enter_context(workdir.hold(folder, c))
        if forms := choose(setup.network, c, folder):
            setup = with_forms(setup, forms)
        checkpoints = stack.enter_context(Checkpoints(folder / workdir.CHECKPOINTS))
        run = restore(setup, checkpoints, layers)
        distributed.on_main_process(
            lambda: workdir.write(folder / workdir.DATA, info_bytes(setup.data))
        )
        if is_over(run, run.policy) and run.unscored is None:
            say(f"{folder} is trained already, for {run.step} steps; see its {FILE}")
            return
        machine = host.describe(setup.network.mesh.devices.flatten().tolist())
        distributed.on_main_process(
            lambda: workdir.record_start(folder, run.step, records.manifest.hash, machine)
        )
        if distributed.process_index() == 0:
            run.log = stack.enter_context(closing(MetricsLog(folder, run.step)))
            run.log.show(run.step, pictures.about(c))
        before = run.log.kept if run.log else []
        run.progress = Progress(
            before, batch=c.batch, first=run.step, last=run.plan.last, top5=c.has_top5
        )
        stack.enter_context(closing(run.progress))
        traced = Profile(c.traced_steps, folder, done=run.step, last=run.plan.last)
        run.profile = stack.enter_context(closing(traced))
        stack.enter_context(run.stop)
        try:
            train(run)
        except Stopped:
            write_lines(run, run.step)
            if run.saved != run.step:
                save(run, {})
            checkpoints.wait()
            say(f"stopped after step {run.step}, which is saved in {folder}")
            raise
        checkpoints.wait()
        run.progress.close()  # what follows stands below the bar
        say(run.progress.best())
        say(f"metrics in {folder / FILE}, checkpoints in {folder / workdir.CHECKPOINTS}")
        say(next_commands(folder))


def train(run: Run) -> None:
    """The loop. Raises Stopped after a step or in an evaluation; UserError as `fit` does."""
    setup, c, plan = run.setup, run.setup.config, run.plan
    step = current = None
    in_flight = deque[ImageScores](maxlen=IN_FLIGHT)
    run.clock = Clock(c.batch, run.step)
    if run.unscored is not None:  # a signal interrupted the evaluation of the newest step
        evaluate_and_save(run, run.unscored)
    with closing(placed_batches(setup, run.step, plan.last)) as batches:
        while not is_over(run, run.policy):
            with run.clock.apart("input"):
                batch = next(batches)
            wanted = run.policy.hyperparams(plan.epochs(run.step))
            if wanted != current:
                current, hyperparams = wanted, put_hyperparams(setup.network, c.optim, wanted)
            if step is None:
                with run.clock.apart("compile"):
                    step = make_step(setup.network, c.optim, c.data, batch=c.batch, seed=c.seed)
                    step = step.lower(run.state, setup.normalization, batch, hyperparams).compile()
                    memory.check_program(setup.network, c, step)

            run.profile.before(run.step + 1)
            run.state, scores = step(run.state, setup.normalization, batch, hyperparams)
            run.step += 1
            run.profile.after(run.step, run.state)
            run.scores.append(scores)
            if len(in_flight) == IN_FLIGHT:  # else the host would fill the memory with batches
                jax.block_until_ready(in_flight[0])
            in_flight.append(scores)
            run.progress.step()

            log_step(run, batch, hyperparams, wanted.rate)
            if plan.saves(run.step):
                write_lines(run, run.step - 1)
                evaluate_and_save(run, read_line(run, run.lines.pop()))
            run.stop.check()


# --- before the first step ----------------------------------------------------------------------


def has_checkpoints(folder: Path) -> bool:
    with Checkpoints(folder / workdir.CHECKPOINTS, read_only=True) as checkpoints:
        return bool(checkpoints.steps())


def restore(setup: Setup, checkpoints: Checkpoints, layers: optim.Params | None = None) -> Run:
    """The run as its newest checkpoint has it, or before its first step, with `layers` in it."""
    c, found = setup.config, restore_state(setup, checkpoints)
    if found:
        say(f"resuming from the checkpoint of step {found.step}")
    step, state, meta = found or Restored(0, init_state(setup, layers), {})
    sums = meta.get("running", meta.get("tally", {}))  # version 0.1 wrote 'tally'
    return Run(
        setup,
        Plan(c, setup.order),
        checkpoints,
        diagnostics.make_diagnostics(setup.network, c.model),
        diagnostics.StuckLoss(diagnostics.label_entropy(setup.train.labels), c.log.stuck_after),
        optim.make_policy(c.policy, meta.get("policy", {})),
        state,
        step,
        saved=step if found else None,
        unscored=meta.get("unscored"),
        running=RunningScores(*sums.values()),
    )


def placed_batches(setup: Setup, step: int, last: int) -> Generator[Batch]:
    """The batches of the steps after `step`, on the devices `AHEAD` steps before their use."""
    c, mesh, ahead = setup.config, setup.network.mesh, deque[Batch]()
    rows = local_rows(mesh, c.batch)
    read = train_batches(
        setup.train,
        c.data,
        batch=c.batch,
        seed=c.seed,
        rows=rows,
        first_step=step,
        order=setup.order,
    )
    with closing(read):
        for batch in islice(read, last - step):
            ahead.append(put_batch(mesh, batch, c.batch))
            if len(ahead) > AHEAD:
                yield ahead.popleft()
    yield from ahead


# --- after a step -------------------------------------------------------------------------------


def is_over(run: Run, policy: optim.Policy) -> bool:
    """Whether no step is left."""
    return run.step >= run.plan.last or policy.finished


def log_step(run: Run, batch: Batch, hyperparams: DeviceHyperparams, rate: float) -> None:
    """Begins a line of metrics if one is due; writes the lines of steps that are surely done.

    So the devices never wait until the host has fetched numbers: they have the next steps already.
    """
    setup, layers, running, scores = run.setup, None, RunningScores(), list[ImageScores]()
    if run.plan.diagnoses(run.step):
        with run.clock.apart("layers"):
            lighting, data = hyperparams.lighting, setup.config.data
            images = training_input(data, setup.normalization, batch, lighting)
            layers = gather(run.diagnose(run.state, images))
    if run.plan.logs(run.step):
        running, scores = run.running, gather(run.scores)
        run.running, run.scores = RunningScores(), []
    if scores or layers is not None:
        run.lines.append(Line(run.step, rate, layers, running, scores))
    write_lines(run, run.step - IN_FLIGHT)


def write_lines(run: Run, last: int) -> None:
    """Writes the lines of the steps up to `last`."""
    while run.lines and run.lines[0].step <= last:
        line = run.lines.pop(0)
        write(run, line.step, read_line(run, line))


def read_line(run: Run, line: Line) -> dict[str, float]:
    """The metrics of a line. Raises UserError if the loss is not finite."""
    values: dict[str, float] = {}
    if line.scores:
        line.running.add_all(line.scores)
        means = line.running.scores()
        diagnostics.check_loss(line.step, means.loss, run.saved)
        if warning := run.stuck.notice(line.step, means.loss):
            say(warning)
        values |= means.named("train") | {"opt/lr": line.rate}
    if line.layers is not None:
        values |= diagnostics.read_layers(line.layers)
    return values


def write(run: Run, step: int, values: dict[str, float]) -> None:
    """Writes a line of metrics, with the times since the last one."""
    last = run.plan.last
    evaluations = int(run.plan.epochs(last) - run.plan.epochs(step))
    times = run.clock.read(step, steps_left=last - step, evaluations_left=evaluations)
    epochs, values = run.plan.epochs(step), values | times
    run.progress.add({"step": step, "epoch": epochs, **values})
    if run.log is not None:
        run.log.write(step, epochs, values)


def evaluate_and_save(run: Run, values: dict[str, float]) -> None:
    """Completes the newest step, whose other metrics are `values`.

    If a signal interrupts the evaluation, this raises Stopped, and `run.unscored` keeps `values`.
    """
    if run.plan.evaluates(run.step):
        run.unscored = values
        values = values | evaluate(run)
    run.unscored = None
    write(run, run.step, values)
    save(run, values)


def evaluate(run: Run) -> dict[str, float]:
    """Scores the validation split, by more views too if the run is over. Tells the policy."""
    setup, c, plan = run.setup, run.setup.config, run.plan
    policy = copy.copy(run.policy)  # if a signal comes, the run's own stays as it is
    score = partial(
        setup.evaluator.score, run.state["params"], setup.validation, check=run.stop.check
    )
    with run.clock.apart("evaluate"):
        one = score(views=1, what="validation")
        values = one.named("val")
        if plan.ends_epoch(run.step):
            policy.observe(one.wrong, one.images)
        ways: list[tuple[Views, str, bool]] = [
            (9, "nine views", c.evaluate.nine_views_at_end),
            (10, "ten views", c.evaluate.ten_views_at_end),
        ]
        for views, name, wanted in ways if is_over(run, policy) else []:
            if wanted:
                scores = score(views=views, what=name)
                values |= scores.named(f"val_{name.replace(' ', '_')}")
        show(run)
    run.policy = policy
    return values


def show(run: Run) -> None:
    """Shows kernels, weights, outputs and mistakes in TensorBoard; all processes must call it."""
    setup, c, params = run.setup, run.setup.config, run.state["params"]
    classes = setup.records.manifest.classes
    shown = pictures.of_weights(params, c.model.towers)
    shown += pictures.of_outputs(validation_outputs(run))
    shown += pictures.of_mistakes(
        setup.evaluator, params, setup.validation, classes, c.evaluate.batch
    )
    if run.log is not None:
        run.log.show(run.step, shown)


def validation_outputs(run: Run) -> dict[str, np.ndarray]:
    """The highest output of each unit for each of the first validation images, a batch at most."""
    setup, c, split = run.setup, run.setup.config, run.setup.validation
    rows = local_rows(setup.network.mesh, c.batch)  # of the training's size: nothing is compiled
    read = eval_batches(split, batch=c.batch, rows=rows, threads=c.data.threads)
    with closing(read) as batches:
        images = put_batch(setup.network.mesh, next(batches), c.batch)["image"]
    view = augment.view(images, setup.normalization["mean"], c.data, augment.CENTRE)
    _, tops = fetch(run.diagnose(run.state, view))
    return {layer: top[: len(split)] for layer, top in tops.items()}


def save(run: Run, metrics: dict[str, float]) -> None:
    """Begins to save the run. Raises UserError if a weight is not finite."""
    with run.clock.apart("checkpoint"):
        diagnostics.check_weights(run.step, run.state["params"], run.saved)
        run.running.add_all(run.scores)
        run.scores = []
        meta = {
            "records": run.setup.records.manifest.hash,
            "policy": run.policy.state(),
            "running": dataclasses.asdict(run.running),
            "unscored": run.unscored,
        }
        run.checkpoints.save(run.step, run.state, meta, metrics)
    run.saved = run.step
