"""When a run logs, evaluates, saves and ends. The first step has number 1."""

from dataclasses import dataclass

from alexnet_jax import config


@dataclass(frozen=True)
class Plan:
    """What is due after a step."""

    batch: int  # images in a step
    images: int  # in an epoch
    last: int  # the step that ends the run, unless its policy ends it before
    log_every: int  # steps from one line of metrics to the next
    layers_every: int  # steps from one layer diagnostics to the next; 0: none
    save_every: int  # steps from one checkpoint to the next, besides each epoch's end; 0: none

    def epochs(self, step: int) -> float:
        """Epochs done after `step`."""
        return step * self.batch / self.images

    def ends_epoch(self, step: int) -> bool:
        """Whether `step` takes the last image of an epoch."""
        return step * self.batch // self.images > (step - 1) * self.batch // self.images

    def evaluates(self, step: int) -> bool:
        """Whether the validation split is scored after `step`."""
        return self.ends_epoch(step) or step >= self.last

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is saved after `step`."""
        return self.evaluates(step) or _due(step, self.save_every)

    def logs(self, step: int) -> bool:
        """Whether the mean loss since the last line is logged after `step`."""
        return self.saves(step) or _due(step, self.log_every)

    def diagnoses(self, step: int) -> bool:
        """Whether each layer's diagnostics are logged after `step`."""
        return _due(step, self.layers_every)


def make_plan(c: config.Config, images: int) -> Plan:
    """The plan of a config, for a training split of so many images."""
    last = -(-c.epochs * images // c.batch)
    last = min(last, c.steps) if c.steps else last
    return Plan(c.batch, images, last, c.log.every, c.log.layers_every, c.checkpoint_every)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
