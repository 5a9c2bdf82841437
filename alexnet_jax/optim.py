"""The paper's update (§5), and the two ways in which its learning rate has been set."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from alexnet_jax import config

Rates = dict[str, dict[str, float]]
"""A learning rate for each parameter: {'conv1': {'kernel': 0.01, 'bias': 0.02}, ...}."""


def update_rule(c: config.Optim) -> optax.GradientTransformationExtraArgs:
    """v <- momentum * v - decay * rate * w - rate * gradient;  w <- w + v  (§5).

    The decay is `layer_decay`'s or else `weight_decay`; biases have none without `decay_biases`.

    The rate stands inside the velocity, so a change of the rate takes full effect only as older
    steps fade. (`optax.sgd` multiplies the whole velocity by the newest rate.) Its `update` takes
    the gradients, the state, the parameters, and `rates`, a tree like `Rates`, which may change
    from step to step without a new compilation.
    """

    def decays(path: Any) -> float:
        layer, name = (key.key for key in path)
        own = c.layer_decay.get(layer, c.weight_decay)
        return own if name == "kernel" or c.decay_biases else 0.0

    return optax.chain(_add_decayed_weights(decays), _scale_by_rates(), optax.trace(c.momentum))


def velocity(state: Any) -> Any:
    """The v of the last update, in a tree like the parameters, from `update_rule`'s state."""
    return optax.tree_utils.tree_get(state, "trace")


def _add_decayed_weights(decays: Callable[[Any], float]) -> optax.GradientTransformation:
    """As optax's, with a decay for each path in the tree."""

    def update(
        gradients: Any, state: optax.EmptyState, params: Any
    ) -> tuple[Any, optax.EmptyState]:
        def add(path: Any, g: jax.Array, w: jax.Array) -> jax.Array:
            return g + decays(path) * w if decays(path) else g

        return jax.tree.map_with_path(add, gradients, params), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _scale_by_rates() -> optax.GradientTransformationExtraArgs:
    def update(
        gradients: Any, state: optax.EmptyState, params: Any = None, *, rates: Any, **_: Any
    ) -> tuple[Any, optax.EmptyState]:
        del params
        return jax.tree.map(lambda rate, g: -rate * g, rates, gradients), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


# --- policies ---------------------------------------------------------------------------------


class Hyperparams(NamedTuple):
    """What a policy decides for the coming steps."""

    rate: float  # the common one, which is logged
    layers: dict[str, float]  # rates of single layers
    lighting: bool

    def rates(self, c: config.Optim, params: Any) -> Rates:
        """A rate for each of `params`; biases learn at `bias_rate` times their layer's rate."""
        return {
            layer: {
                name: self.layers.get(layer, self.rate) * (c.bias_rate if name == "bias" else 1.0)
                for name in parameters
            }
            for layer, parameters in params.items()
        }


@dataclasses.dataclass
class PlateauPolicy:
    """Divides the rate when the validation error stops improving; three times in the paper (§5).

    "Stops improving" means: for `patience` epochs on end the error was not lower than the lowest so
    far by `least_improvement` or more. Its fields but `c` are its state, part of a checkpoint.
    """

    c: config.Plateau
    best: float = float("inf")  # lowest top-1 error rate so far
    waited: int = 0  # epochs without improvement
    drops: int = 0  # plateaus so far

    @property
    def finished(self) -> bool:
        """Whether the plateau after the last drop has been reached."""
        return self.drops > self.c.drops

    def hyperparams(self, epochs: float) -> Hyperparams:
        """The rate now; it does not depend on the number of epochs done."""
        del epochs
        return Hyperparams(self.c.rate / self.c.factor ** min(self.drops, self.c.drops), {}, True)

    def observe(self, error: float) -> None:
        """Takes note of an epoch's validation top-1 error rate, in [0, 1]."""
        improved = error <= self.best - self.c.least_improvement and error < self.best
        self.best = min(self.best, error) if improved else self.best
        self.waited = 0 if improved else self.waited + 1
        if self.waited == self.c.patience:
            self.waited, self.drops = 0, self.drops + 1

    def state(self) -> dict[str, float]:
        """Numbers that `load` takes."""
        return {"best": self.best, "waited": self.waited, "drops": self.drops}

    def load(self, state: dict[str, float]) -> None:
        """Goes on from what `state` gave."""
        self.best = float(state["best"])
        self.waited, self.drops = int(state["waited"]), int(state["drops"])


@dataclasses.dataclass
class SchedulePolicy:
    """Rates by epoch. It has no state."""

    c: config.Schedule
    finished = False

    def hyperparams(self, epochs: float) -> Hyperparams:
        """The phase that holds after so many epochs."""
        phase = [phase for phase in self.c.phases if phase.epoch <= epochs][-1]
        return Hyperparams(phase.rate, dict(phase.layers), phase.lighting)

    def observe(self, error: float) -> None:
        """Does nothing: the schedule was made beforehand."""

    def state(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def load(self, state: dict[str, float]) -> None:
        """Does nothing."""


Policy = PlateauPolicy | SchedulePolicy


def make_policy(c: config.Plateau | config.Schedule) -> Policy:
    """The policy that a config describes, at its beginning."""
    return PlateauPolicy(c) if isinstance(c, config.Plateau) else SchedulePolicy(c)
