"""When a run logs, evaluates, saves and ends. The first step has number 1."""

from typing import NamedTuple

from alexnet_jax import config
from alexnet_jax.data.epochs import Epochs


class Plan(NamedTuple):
    """What is due after a step of a run with config `c`, whose images lie in `order`."""

    c: config.Config
    order: Epochs

    @property
    def last(self) -> int:
        """The step that ends the run, unless its policy ends it before."""
        last = -(-self.order.place(self.c.epochs) // self.c.batch)
        return min(last, self.c.steps) if self.c.steps else last

    def epochs(self, step: int) -> float:
        """Epochs done after `step`."""
        return self.order.done(step * self.c.batch)

    def ends_epoch(self, step: int) -> bool:
        """Whether `step` takes the last image of an epoch."""
        batch = self.c.batch
        return self.order.whole(step * batch) > self.order.whole((step - 1) * batch)

    def evaluates(self, step: int) -> bool:
        """Whether the validation split is scored after `step`."""
        return self.ends_epoch(step) or step >= self.last

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is saved after `step`."""
        return self.evaluates(step) or _due(step, self.c.checkpoint_every)

    def logs(self, step: int) -> bool:
        """Whether the mean loss since the last line is logged after `step`."""
        return self.saves(step) or _due(step, self.c.log.every)

    def diagnoses(self, step: int) -> bool:
        """Whether each layer's diagnostics are logged after `step`."""
        return _due(step, self.c.log.layers_every)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
