"""Training: restore, then for each step: next batch, step, log, evaluate, save."""

import copy
import dataclasses
from collections import deque
from collections.abc import Generator
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
from alexnet_jax.runtime.sharding import gather, local_rows, put_batch
from alexnet_jax.runtime.signals import Stop, Stopped
from alexnet_jax.runtime.terminal import progress_bar, say
from alexnet_jax.training import diagnostics
from alexnet_jax.training.scores import IN_FLIGHT, ImageScores, RunningScores, Scores
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
    """A line of metrics that is not written yet: its numbers may still be on the devices."""

    step: int
    rate: float
    layers: Any  # from `LayerDiagnostics.measure`, or None
    running: RunningScores  # of images since the last line, besides those of `scores`
    scores: list[ImageScores]  # none if the line is about layers only


@dataclass
class Run:
    """Where a run is: all that changes from step to step."""

    state: State
    policy: optim.Policy
    step: int = 0  # steps done
    saved: int | None = None  # the step of the newest checkpoint
    hyperparams: optim.Hyperparams | None = None  # of the newest step
    running: RunningScores = field(default_factory=RunningScores)  # since the last line of metrics
    scores: list[ImageScores] = field(default_factory=list)  # not in `running` yet; on the devices
    lines: list[Line] = field(default_factory=list)  # oldest first
    unscored: dict[str, float] | None = None  # metrics of `step`, if its evaluation must be done


@dataclass(frozen=True)
class Tools:
    """What the loop works with."""

    setup: Setup
    checkpoints: Checkpoints
    log: MetricsLog | None  # the main process writes for all
    layers: diagnostics.LayerDiagnostics
    stuck: diagnostics.StuckLoss
    clock: Clock
    stop: Stop


def fit(c: config.Config, folder: Path) -> None:
    """Trains the config's network in the workdir `folder`; resumes from its newest checkpoint.

    Raises:
      UserError: records, devices or workdir do not fit the config; or the loss is not finite.
      Stopped: SIGTERM or SIGINT came. All work is saved; the same call resumes from there.
    """
    setup = make_setup(c)
    with ExitStack() as stack:
        stack.enter_context(workdir.hold(folder, c))
        checkpoints = stack.enter_context(Checkpoints(folder / workdir.CHECKPOINTS))
        run = restore(setup, checkpoints)
        if is_over(setup, run.step, run.policy) and run.unscored is None:
            say(f"{folder} is trained already, for {run.step} steps; see its {METRICS}")
            return
        tools = open_tools(setup, checkpoints, folder, run.step, stack)
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
    """The loop. Raises Stopped after a step or in an evaluation; UserError as `fit` does."""
    setup, plan, clock, step = tools.setup, tools.setup.plan, tools.clock, None
    in_flight = deque[ImageScores](maxlen=IN_FLIGHT)
    if run.unscored is not None:  # a signal interrupted the evaluation of the newest step
        evaluate_and_save(tools, run, run.unscored)
    with (
        closing(placed_batches(setup, run.step)) as batches,
        progress_bar(plan.last, "training", "steps", initial=run.step) as bar,
    ):
        while not is_over(setup, run.step, run.policy):
            with clock.apart("input"):
                batch = next(batches)
            wanted = run.policy.hyperparams(plan.epochs(run.step))
            if wanted != run.hyperparams:
                run.hyperparams = wanted
                hyperparams = put_hyperparams(setup.network, setup.config.optim, wanted)
            if step is None:
                with clock.apart("compile"):
                    step = compile_step(setup, run.state, batch, hyperparams)

            run.state, scores = step(run.state, setup.normalization, batch, hyperparams)
            run.step += 1
            run.scores.append(scores)
            if len(in_flight) == IN_FLIGHT:  # else the host would fill the memory with batches
                jax.block_until_ready(in_flight[0])
            in_flight.append(scores)
            bar.update()

            log_step(tools, run, batch, hyperparams)
            if plan.saves(run.step):
                write_lines(tools, run, run.step - 1)
                evaluate_and_save(tools, run, read_line(tools, run, run.lines.pop()))
            tools.stop.check()


# --- before the first step ----------------------------------------------------------------------


def restore(setup: Setup, checkpoints: Checkpoints) -> Run:
    """The run as its newest checkpoint has it, or before its first step."""
    policy = optim.make_policy(setup.config.policy)
    restored = restore_state(setup, checkpoints)
    if restored is None:
        return Run(init_state(setup), policy)
    step, meta = restored.step, restored.meta
    say(f"resuming from the checkpoint of step {step}")
    policy.load(meta["policy"])
    sums = meta.get("running", meta.get("tally", {}))  # version 0.1 wrote 'tally'
    running = RunningScores(*sums.values())
    unscored = meta.get("unscored")
    return Run(restored.state, policy, step, step or None, running=running, unscored=unscored)


def open_tools(
    setup: Setup, checkpoints: Checkpoints, folder: Path, step: int, stack: ExitStack
) -> Tools:
    """What the loop needs to train in `folder` from `step` on; `stack` closes it."""
    c, log = setup.config, None
    machine = host.describe(setup.network.mesh.devices.flatten().tolist())
    records = setup.records.manifest.hash
    distributed.on_main_process(lambda: workdir.record_start(folder, step, records, machine))
    if distributed.process_index() == 0:
        log = stack.enter_context(closing(MetricsLog(folder, step)))
    return Tools(
        setup,
        checkpoints,
        log,
        diagnostics.LayerDiagnostics(setup.network, c.model),
        diagnostics.StuckLoss(diagnostics.label_entropy(setup.train.labels), c.log.stuck_after),
        Clock(c.batch, step),
        stack.enter_context(Stop()),
    )


def placed_batches(setup: Setup, step: int) -> Generator[Batch]:
    """The batches of the steps after `step`, on the devices `AHEAD` steps before their use."""
    c, mesh, ahead = setup.config, setup.network.mesh, deque[Batch]()
    rows = local_rows(mesh, c.batch)
    read = train_batches(
        setup.train, c.data, batch=c.batch, seed=c.seed, rows=rows, first_step=step
    )
    with closing(read):
        for batch in islice(read, setup.plan.last - step):
            ahead.append(put_batch(mesh, batch, c.batch))
            if len(ahead) > AHEAD:
                yield ahead.popleft()
    while ahead:
        yield ahead.popleft()


def compile_step(setup: Setup, state: State, batch: Batch, hyperparams: DeviceHyperparams) -> Any:
    """The compiled step of `make_step`, for arguments like these."""
    c = setup.config
    step = make_step(setup.network, c.optim, c.data, batch=c.batch, seed=c.seed)
    return step.lower(state, setup.normalization, batch, hyperparams).compile()


# --- after a step -------------------------------------------------------------------------------


def is_over(setup: Setup, step: int, policy: optim.Policy) -> bool:
    """Whether no step is left."""
    return step >= setup.plan.last or policy.finished


def log_step(tools: Tools, run: Run, batch: Batch, hyperparams: DeviceHyperparams) -> None:
    """Begins a line of metrics if one is due; writes the lines of steps that are surely done.

    So the devices never wait until the host has fetched numbers: they have the next steps already.
    """
    setup, layers, running, scores = tools.setup, None, RunningScores(), list[ImageScores]()
    if setup.plan.diagnoses(run.step):
        with tools.clock.apart("layers"):
            lighting, data = hyperparams.lighting, setup.config.data
            images = training_input(data, setup.normalization, batch, lighting)
            layers = gather(tools.layers.measure(run.state, images))
    if setup.plan.logs(run.step):
        running, scores = run.running, gather(run.scores)
        run.running, run.scores = RunningScores(), []
    if scores or layers is not None:
        assert run.hyperparams is not None
        run.lines.append(Line(run.step, run.hyperparams.rate, layers, running, scores))
    write_lines(tools, run, run.step - IN_FLIGHT)


def write_lines(tools: Tools, run: Run, last: int) -> None:
    """Writes the lines of the steps up to `last`."""
    while run.lines and run.lines[0].step <= last:
        line = run.lines.pop(0)
        write(tools, line.step, read_line(tools, run, line))


def read_line(tools: Tools, run: Run, line: Line) -> dict[str, float]:
    """The metrics of a line. Raises UserError if the loss is not finite."""
    values: dict[str, float] = {}
    if line.scores:
        line.running.add_all(line.scores)
        means = line.running.scores()
        diagnostics.check_loss(line.step, means.loss, run.saved)
        if warning := tools.stuck.notice(line.step, means.loss):
            say(warning)
        values |= means.named("train") | {"opt/lr": line.rate}
    if line.layers is not None:
        values |= tools.layers.read(line.layers)
    return values


def write(tools: Tools, step: int, values: dict[str, float]) -> None:
    """Writes a line of metrics, with the times since the last one."""
    plan = tools.setup.plan
    left = plan.last - step
    evaluations = left * plan.batch // plan.images
    times = tools.clock.read(step, steps_left=left, evaluations_left=evaluations)
    if tools.log is not None:
        tools.log.write(step, plan.epochs(step), values | times)


def evaluate_and_save(tools: Tools, run: Run, values: dict[str, float]) -> None:
    """Completes the newest step, whose other metrics are `values`.

    If a signal interrupts the evaluation, this raises Stopped, and `run.unscored` keeps `values`.
    """
    plan = tools.setup.plan
    if plan.evaluates(run.step):
        run.unscored = values
        values = values | evaluate(tools, run)
    run.unscored = None
    write(tools, run.step, values)
    if plan.saves(run.step):
        save(tools, run, values)


def evaluate(tools: Tools, run: Run) -> dict[str, float]:
    """Scores the validation split, by ten views too if the run is over. Tells the policy."""
    setup, c, step = tools.setup, tools.setup.config, run.step
    policy = copy.copy(run.policy)  # if a signal comes, the run's own stays as it is

    def score(what: str, *, ten_views: bool) -> Scores:
        params, split, check = run.state["params"], setup.validation, tools.stop.check
        return setup.evaluator.score(params, split, ten_views=ten_views, what=what, check=check)

    with tools.clock.apart("evaluate"):
        one = score("validation", ten_views=False)
        epochs = setup.plan.epochs(step)
        say(f"epoch {epochs:.2f}, step {step}: {c.data.validation} {one.text()}")
        values = one.named("val")
        if setup.plan.ends_epoch(step):
            policy.observe(one.top1_error)
        if is_over(setup, step, policy) and c.evaluate.ten_views_at_end:
            ten = score("ten views", ten_views=True)
            say(f"ten views: {c.data.validation} {ten.text()}")
            values |= ten.named("val_ten_views")
    run.policy = policy
    return values


def save(tools: Tools, run: Run, metrics: dict[str, float]) -> None:
    """Begins to save the run. Raises UserError if a weight is not finite."""
    with tools.clock.apart("checkpoint"):
        diagnostics.check_weights(run.step, run.state["params"], run.saved)
        run.running.add_all(run.scores)
        run.scores = []
        meta = {
            "records": tools.setup.records.manifest.hash,
            "policy": run.policy.state(),
            "running": dataclasses.asdict(run.running),
            "unscored": run.unscored,
        }
        tools.checkpoints.save(run.step, run.state, meta, metrics)
    run.saved = run.step
