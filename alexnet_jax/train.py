"""Training: one step, and the run around it."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from alexnet_jax import config, host, optim, workdir
from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.data import augment
from alexnet_jax.data.pipeline import train_batches
from alexnet_jax.health import LayerHealth, StuckLoss, check_loss, check_weights, label_entropy
from alexnet_jax.metrics import Clock, MetricsLog
from alexnet_jax.model.layers import Draw
from alexnet_jax.model.mesh import DATA, local_rows, place_batch
from alexnet_jax.scores import Evaluator, label_ranks, mean_scores
from alexnet_jax.setup import Setup, make_setup, replicate
from alexnet_jax.state import State, init_state, restore_state, state_specs
from alexnet_jax.terminal import progress_bar, say

Control = dict[str, Any]
"""What a policy sets, as arrays: 'rates' (see `optim.Rates`) and 'lighting', 1.0 or 0.0."""


def fit(c: config.Config, folder: Path) -> None:
    """Trains the config's network in the workdir `folder`; goes on if it was begun there.

    Raises:
      UserError: records, devices or workdir do not fit the config; or the loss is not finite.
    """
    setup = make_setup(c)
    workdir.claim(folder, c)
    with ExitStack() as stack:
        run = Run(setup, folder, stack)
        if run.over():
            say(f"{folder} is trained already, for {run.step} steps; see its metrics.jsonl")
        else:
            machine = host.describe(setup.network.mesh.devices.flatten().tolist())
            workdir.record_start(folder, run.step, setup.records.manifest.hash, machine)
            run.train()


def make_step(setup: Setup) -> Any:
    """The jitted step (state, pixels, batch, control) -> (state, (losses, ranks)).

    `batch` is a placed batch of `pipeline.train_batches`; losses are float32 [batch], in nats, and
    ranks int32 [batch], see `evaluate.label_ranks`, one for each picture. The old state's memory is
    used again. Between devices go what the towers exchange and, where several rows of devices share
    the batch, the sums of the gradients; nothing else.
    """
    c, network = setup.config, setup.network
    rule = optim.update_rule(c.optim)

    def step(state: State, pixels: Any, batch: Any, control: Control) -> tuple[State, Any]:
        images = training_input(setup, pixels, batch, control)
        key = jax.random.fold_in(jax.random.key(c.seed), state["step"])
        draw = Draw(key, batch["row"])

        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, labels = network.bind(params)(images, draw), batch["label"]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            # The mean over the whole batch; jax.grad sums over the devices that share it.
            return losses.sum() / c.batch, (losses, label_ranks(logits, labels))

        gradients, outcome = jax.grad(loss, has_aux=True)(state["params"])
        updates, optimizer = rule.update(
            gradients, state["optimizer"], state["params"], rates=control["rates"]
        )
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "optimizer": optimizer, "step": state["step"] + 1}, outcome

    specs, rows = state_specs(setup), network.spec(DATA)
    mapped = network.shard_map(step, (specs, P(), rows, P()), (specs, rows))
    return network.jit(mapped, donate=0)


def training_input(setup: Setup, pixels: Any, batch: Any, control: Control) -> jax.Array:
    """A batch as the network sees it: float32 [b, crop, crop, 3]."""
    mean, components = pixels["mean"], pixels["components"]
    return augment.train_input(batch, mean, components, setup.config.data, control["lighting"])


def make_control(setup: Setup, setting: optim.Setting) -> Control:
    """A policy's setting as arrays on every device; a new one compiles nothing anew."""
    rates = setting.rates(setup.config.optim, setup.network.shapes)
    return replicate(setup.network, {"rates": rates, "lighting": float(setting.lighting)})


class Run:
    """One run of training: where it stands, and what happens after each step."""

    def __init__(self, setup: Setup, folder: Path, stack: ExitStack) -> None:
        """Begins the run, or goes on with it; `stack` closes its files and threads."""
        c = self.config = setup.config
        self.setup = setup
        self.policy = optim.make_policy(c.policy)
        self.checkpoints = stack.enter_context(Checkpoints(folder / workdir.CHECKPOINTS))
        rows = local_rows(setup.network.mesh, c.batch)
        batches = train_batches(setup.train, c.data, batch=c.batch, seed=c.seed, rows=rows)
        self.batches = stack.enter_context(closing(batches))
        self.state, self.step = self._begin()
        self.saved = self.step or None  # the newest checkpoint's step
        self.setting = self.policy.setting(self.epochs)  # of the newest step
        self.log = stack.enter_context(closing(MetricsLog(folder, self.step)))
        self.evaluator = Evaluator(setup)
        self.health = LayerHealth(setup.network, c)
        self.stuck = StuckLoss(label_entropy(setup.train.labels), c.log.stuck_after)
        self.clock = Clock(c.batch)
        self.outcomes: list[Any] = []  # of the steps since the last line of metrics

    def _begin(self) -> tuple[State, int]:
        restored = restore_state(self.setup, self.checkpoints, self.batches)
        if restored is None:
            return init_state(self.setup), 0
        say(f"going on from the checkpoint of step {restored.step}")
        self.policy.load(restored.meta["policy"])
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
        """Whether the newest step took the last picture of an epoch."""
        batch, pictures = self.config.batch, len(self.setup.train)
        return self.step * batch // pictures > (self.step - 1) * batch // pictures

    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.step >= self.last or self.policy.finished

    # --- what it does

    def train(self) -> None:
        """Goes on to the end."""
        pixels, step = self.setup.pixels, None
        with progress_bar(self.last, "training", "steps", initial=self.step) as bar:
            for batch, control in self._inputs():
                if step is None:
                    with self.clock.apart("compile"):
                        lowered = make_step(self.setup).lower(self.state, pixels, batch, control)
                        step = lowered.compile()
                self.state, outcome = step(self.state, pixels, batch, control)
                self.outcomes.append(outcome)
                self.step += 1
                self.clock.count_step()
                # Two steps under way keep the devices busy; more would only pile up batches.
                jax.block_until_ready(self.outcomes[-3:-2])
                bar.update()
                self._after_step(batch, control)
        self.checkpoints.wait()
        say(f"metrics in {self.log.path}; curves: tensorboard --logdir={self.log.path.parent}")
        say(f"checkpoints in {self.checkpoints.folder}")

    def _inputs(self) -> Iterator[tuple[Any, Control]]:
        """Placed batches, each with what the policy sets for its step, until the run is over."""
        control = make_control(self.setup, self.setting)
        while not self.over():
            now = self.policy.setting(self.epochs)
            if now != self.setting:
                self.setting, control = now, make_control(self.setup, now)
            with self.clock.apart("input"):
                batch = next(self.batches)
            yield place_batch(self.setup.network.mesh, batch, self.config.batch), control

    def _after_step(self, batch: Any, control: Control) -> None:
        """Logs, scores and saves, if it is time: at most one line of metrics for a step."""
        c = self.config
        ended, last = self.ended_epoch(), self.step >= self.last
        save = ended or last or _due(self.step, c.checkpoint_every)
        values: dict[str, float] = {}
        if save or _due(self.step, c.log.every):
            values |= self._progress()
        if _due(self.step, c.log.layers_every):
            values |= self._layers(batch, control)
        if ended or last:
            values |= self._score(ended)
        if values:
            values |= self._times()
            self.log.write(self.step, self.epochs, values)
        if save:
            self._save(values)

    def _progress(self) -> dict[str, float]:
        """The means over the steps since the last call, and their rate."""
        losses, ranks = zip(*jax.device_get(self.outcomes), strict=True)
        self.outcomes.clear()
        running = mean_scores(np.concatenate(losses), np.concatenate(ranks))
        check_loss(self.step, running.loss, self.saved)
        warning = self.stuck.notice(self.step, running.loss)
        if warning:
            say(warning)
        return running.named("train") | {"opt/lr": self.setting.rate}

    def _times(self) -> dict[str, float]:
        """Where the time went, and how much is left."""
        left = self.last - self.step
        epochs = left * self.config.batch // len(self.setup.train)
        return self.clock.read(left, evaluations_left=epochs)

    def _layers(self, batch: Any, control: Control) -> dict[str, float]:
        with self.clock.apart("layers"):
            images = training_input(self.setup, self.setup.pixels, batch, control)
            return self.health.read(self.state["params"], self.state["optimizer"], images)

    def _score(self, ended_epoch: bool) -> dict[str, float]:
        """The validation split by its centre crops; by ten views too when the run is over."""
        c, split, params = self.config, self.setup.validation, self.state["params"]
        with self.clock.apart("evaluate"):
            one = self.evaluator.score(params, split, ten_views=False, what="validation")
        say(f"epoch {self.epochs:.2f}, step {self.step}: {c.data.validation} {one.text()}")
        if ended_epoch:
            self.policy.observe(one.top1_error)
        values = one.named("val")
        if self.over() and c.evaluate.ten_views_at_end:
            with self.clock.apart("evaluate"):
                ten = self.evaluator.score(params, split, ten_views=True, what="ten views")
            say(f"ten views: {c.data.validation} {ten.text()}")
            values |= ten.named("val_ten_views")
        return values

    def _save(self, values: dict[str, float]) -> None:
        with self.clock.apart("checkpoint"):
            check_weights(self.step, self.state["params"], self.saved)
            meta = {"records": self.setup.records.manifest.hash, "policy": self.policy.state()}
            self.checkpoints.save(self.step, self.state, self.batches, meta, values)
        self.saved = self.step


def _due(step: int, every: int) -> bool:
    """Whether something done every so many steps is; 0 is never."""
    return every > 0 and step % every == 0
