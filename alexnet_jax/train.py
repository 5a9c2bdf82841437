"""Training: the run around the steps, from its beginning or from where it was left."""

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NoReturn

import jax

from alexnet_jax import config, optim
from alexnet_jax.data.pipeline import train_batches
from alexnet_jax.runtime import distributed, host, workdir
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.metrics import FILE as METRICS
from alexnet_jax.runtime.metrics import Clock, MetricsLog
from alexnet_jax.runtime.sharding import fetch, local_rows, put_batch
from alexnet_jax.runtime.signals import Stop, Stopped
from alexnet_jax.runtime.terminal import progress_bar, say
from alexnet_jax.training.diagnostics import (
    LayerDiagnostics,
    StuckLoss,
    check_loss,
    check_weights,
    label_entropy,
)
from alexnet_jax.training.scores import Evaluator, RunningScores
from alexnet_jax.training.setup import Setup, make_setup
from alexnet_jax.training.state import State, init_state, restore_state
from alexnet_jax.training.step import DeviceHyperparams, make_step, put_hyperparams, training_input


def fit(c: config.Config, folder: Path) -> None:
    """Trains the config's network in the workdir `folder`; goes on if it was begun there.

    Raises:
      UserError: records, devices or workdir do not fit the config; or the loss is not finite.
      Stopped: SIGTERM or SIGINT came. All that was done is saved; the same call goes on from there.
    """
    setup = make_setup(c)
    with ExitStack() as stack:
        stack.enter_context(workdir.hold(folder, c))
        with distributed.together():
            run = Run(setup, folder, stack)
            if run.complete():
                say(f"{folder} is trained already, for {run.step} steps; see its metrics.jsonl")
            else:
                distributed.on_main_process(lambda: _record_start(run))
                run.train()


def _record_start(run: "Run") -> None:
    machine = host.describe(run.setup.network.mesh.devices.flatten().tolist())
    workdir.record_start(run.folder, run.step, run.setup.records.manifest.hash, machine)


class Run:
    """One run of training: where it stands, and what happens after each step."""

    def __init__(self, setup: Setup, folder: Path, stack: ExitStack) -> None:
        """Begins the run, or goes on with it; `stack` closes its files and threads."""
        c = self.config = setup.config
        self.setup, self.folder = setup, folder
        self.policy = optim.make_policy(c.policy)
        self.checkpoints = stack.enter_context(Checkpoints(folder / workdir.CHECKPOINTS))
        rows = local_rows(setup.network.mesh, c.batch)
        batches = train_batches(setup.train, c.data, batch=c.batch, seed=c.seed, rows=rows)
        self.batches = stack.enter_context(closing(batches))
        self.running = RunningScores()  # of the steps since the last line of metrics
        self.unscored: dict[str, float] | None = None  # metrics of a step whose scoring was left
        self.state, self.step = self._begin()
        self.saved = self.step or None  # the newest checkpoint's step
        self.hyperparams = self.policy.hyperparams(self.epochs)  # of the newest step
        self.log = None  # the first process writes for all
        if distributed.process_index() == 0:
            self.log = stack.enter_context(closing(MetricsLog(folder, self.step)))
        self.evaluator = Evaluator(setup)
        self.health = LayerDiagnostics(setup.network, c)
        self.stuck = StuckLoss(label_entropy(setup.train.labels), c.log.stuck_after)
        self.clock = Clock(c.batch)
        self.outcomes: list[Any] = []  # of the newest steps, still on the devices
        self.stop = stack.enter_context(Stop())

    def _begin(self) -> tuple[State, int]:
        restored = restore_state(self.setup, self.checkpoints, self.batches)
        if restored is None:
            return init_state(self.setup), 0
        say(f"resuming from the checkpoint of step {restored.step}")
        self.policy.load(restored.meta["policy"])
        self.running = RunningScores(**restored.meta.get("running", {}))
        self.unscored = restored.meta.get("unscored")
        return restored.state, restored.step

    # --- where it stands

    @property
    def last(self) -> int:
        """The step with which the run ends, unless its policy ends it before."""
        c = self.config
        steps = -(-c.epochs * len(self.setup.train) // c.batch)
        return min(steps, c.steps) if c.steps else steps

    @property
    def epochs(self) -> float:
        """Epochs done."""
        return self.step * self.config.batch / len(self.setup.train)

    def ended_epoch(self) -> bool:
        """Whether the newest step took the last image of an epoch."""
        batch, images = self.config.batch, len(self.setup.train)
        return self.step * batch // images > (self.step - 1) * batch // images

    def over(self) -> bool:
        """Whether no step is left to do."""
        return self.step >= self.last or self.policy.finished

    def complete(self) -> bool:
        """Whether nothing at all is left to do."""
        return self.over() and self.unscored is None

    # --- what it does

    def train(self) -> None:
        """Goes on to the end, or until a signal asks for one."""
        normalization, step = self.setup.normalization, None
        if self.unscored is not None:
            self._finish_step(self.unscored)
        with progress_bar(self.last, "training", "steps", initial=self.step) as bar:
            for batch, hyperparams in self._inputs():
                if step is None:
                    with self.clock.apart("compile"):
                        lowered = make_step(self.setup).lower(
                            self.state, normalization, batch, hyperparams
                        )
                        step = lowered.compile()
                self.state, outcome = step(self.state, normalization, batch, hyperparams)
                self.outcomes.append(outcome)
                self.step += 1
                self.clock.count_step()
                # Two steps under way keep the devices busy; more would only pile up batches.
                jax.block_until_ready(self.outcomes[-3:-2])
                bar.update()
                self._after_step(batch, hyperparams)
                if self.stop.asked():
                    self._leave()
        self.checkpoints.wait()
        say(f"metrics in {self.folder / METRICS}; curves: tensorboard --logdir={self.folder}")
        say(f"checkpoints in {self.folder / workdir.CHECKPOINTS}")

    def _inputs(self) -> Iterator[tuple[Any, DeviceHyperparams]]:
        """Batches on the devices, each with its hyperparameters, until the run is over."""
        hyperparams = put_hyperparams(self.setup, self.hyperparams)
        while not self.over():
            now = self.policy.hyperparams(self.epochs)
            if now != self.hyperparams:
                self.hyperparams, hyperparams = now, put_hyperparams(self.setup, now)
            with self.clock.apart("input"):
                batch = next(self.batches)
            mesh, rows = self.setup.network.mesh, self.config.batch
            yield put_batch(mesh, batch, rows), hyperparams

    def _after_step(self, batch: Any, hyperparams: DeviceHyperparams) -> None:
        """Logs, scores and saves, if it is time: at most one line of metrics for a step."""
        values: dict[str, float] = {}
        if self._saves() or _due(self.step, self.config.log.every):
            values |= self._progress()
        if _due(self.step, self.config.log.layers_every):
            values |= self._layers(batch, hyperparams)
        self._finish_step(values)

    def _finish_step(self, values: dict[str, float]) -> None:
        """What can be done again after a signal came in the middle of it."""
        if self.ended_epoch() or self.step >= self.last:
            values = values | self._score(values)
        self.unscored = None
        if values:
            values = values | self._times()
            if self.log is not None:
                self.log.write(self.step, self.epochs, values)
        if self._saves():
            self._save(values)

    def _saves(self) -> bool:
        """Whether the newest step is one after which a checkpoint is due."""
        ended = self.ended_epoch() or self.step >= self.last
        return ended or _due(self.step, self.config.checkpoint_every)

    def _progress(self) -> dict[str, float]:
        """The means over the steps since the last call, and their rate."""
        self._count()
        running, self.running = self.running.scores(), RunningScores()
        check_loss(self.step, running.loss, self.saved)
        warning = self.stuck.notice(self.step, running.loss)
        if warning:
            say(warning)
        return running.named("train") | {"opt/lr": self.hyperparams.rate}

    def _count(self) -> None:
        """Fetches the outcomes of the newest steps."""
        for losses, ranks in fetch(self.outcomes):
            self.running.add(losses, ranks)
        self.outcomes.clear()

    def _times(self) -> dict[str, float]:
        """Where the time went, and how much is left."""
        left = self.last - self.step
        epochs = left * self.config.batch // len(self.setup.train)
        return self.clock.read(left, evaluations_left=epochs)

    def _layers(self, batch: Any, hyperparams: DeviceHyperparams) -> dict[str, float]:
        with self.clock.apart("layers"):
            images = training_input(self.setup, self.setup.normalization, batch, hyperparams)
            return self.health.read(self.state["params"], self.state["optimizer"], images)

    def _score(self, values: dict[str, float]) -> dict[str, float]:
        """The validation split by its centre crops; by ten views too when the run is over.

        If a signal ends it, the step's other `values` are saved, and the scoring is left to the
        next start.
        """
        before = self.policy.state()
        try:
            with self.clock.apart("evaluate"):
                return self._scores()
        except Stopped:
            self.policy.load(before)
            self.unscored = values
            self._leave()

    def _scores(self) -> dict[str, float]:
        c, split, params = self.config, self.setup.validation, self.state["params"]
        score = functools.partial(self.evaluator.score, params, split, check=self.stop.check)
        one = score(ten_views=False, what="validation")
        say(f"epoch {self.epochs:.2f}, step {self.step}: {c.data.validation} {one.text()}")
        if self.ended_epoch():
            self.policy.observe(one.top1_error)
        values = one.named("val")
        if self.over() and c.evaluate.ten_views_at_end:
            ten = score(ten_views=True, what="ten views")
            say(f"ten views: {c.data.validation} {ten.text()}")
            values |= ten.named("val_ten_views")
        return values

    def _save(self, values: dict[str, float]) -> None:
        with self.clock.apart("checkpoint"):
            check_weights(self.step, self.state["params"], self.saved)
            self._count()
            meta = {
                "records": self.setup.records.manifest.hash,
                "policy": self.policy.state(),
                "running": dataclasses.asdict(self.running),
                "unscored": self.unscored,
            }
            self.checkpoints.save(self.step, self.state, self.batches, meta, values)
        self.saved = self.step

    def _leave(self) -> NoReturn:
        """Saves what was done since the newest checkpoint, and raises Stopped."""
        if self.saved != self.step:
            self._save({})
        self.checkpoints.wait()
        say(f"stopped after step {self.step}, which is saved in {self.folder}")
        raise self.stop.stopped()


def _due(step: int, every: int) -> bool:
    """Whether something done every so many steps is; 0 is never."""
    return every > 0 and step % every == 0
