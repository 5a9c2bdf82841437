"""The paper's update (§5), and two ways to set its learning rate: by plateau or by schedule."""

import dataclasses
import math
from collections.abc import Mapping
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from alexnet_jax import config

Params = dict[str, dict[str, jax.Array]]
"""The parameters: {'conv1': {'kernel': ..., 'bias': ...}, 'conv2': ..., ...}."""

Rates = dict[str, dict[str, float]]
"""A learning rate for each parameter: {'conv1': {'kernel': 0.01, 'bias': 0.02}, ...}."""


def update_rule(c: config.Optim) -> optax.GradientTransformationExtraArgs:
    """v <- momentum * v - rate * (gradient + decay * w);  w <- w + v  (§5).

    The decay of a kernel is its layer's in `layer_decay`, or else `weight_decay`. Biases have the
    same if `decay_biases` is set, else none.

    Its `update` takes the gradients, the state, the parameters, and `rates`, a tree like `Rates`.
    The rates may change from step to step without a new compilation. A parameter whose rate is 0
    keeps its value and its velocity, as in the 2012 code.
    """
    return optax.chain(_add_decays(c), _scale_by_rates(), _velocity(c.momentum))


def _add_decays(c: config.Optim) -> optax.GradientTransformation:
    """gradient + decay * w: optax's rule once for each decay, each with a mask of its own."""

    def decay(layer: str, name: str) -> float:
        return c.layer_decay.get(layer, c.weight_decay) if name == "kernel" or c.decay_biases else 0

    def mask(value: float, params: Params) -> dict[str, dict[str, bool]]:
        return {
            layer: {name: decay(layer, name) == value for name in parameters}
            for layer, parameters in params.items()
        }

    values = sorted({c.weight_decay, *c.layer_decay.values()})
    rule = optax.chain(*(optax.add_decayed_weights(v, partial(mask, v)) for v in values))
    # Without the masks' states, which hold nothing, checkpoints of version 0.1 still open.
    return optax.stateless(
        lambda gradients, params: rule.update(gradients, rule.init(params), params)[0]
    )


def _scale_by_rates() -> optax.GradientTransformationExtraArgs:
    """Multiplies by the rate BEFORE the sum of the velocity, as the paper does.

    So a new rate takes full effect only as older steps fade from the velocity. `optax.sgd`
    multiplies the whole velocity by the newest rate instead.
    """

    def update(
        gradients: Params, state: optax.OptState, params: Any = None, *, rates: Any, **_: Any
    ) -> tuple[Params, optax.OptState]:
        return jax.tree.map(lambda rate, g: -rate * g, rates, gradients), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _velocity(momentum: float) -> optax.GradientTransformationExtraArgs:
    """`optax.trace`, which leaves alone what has the rate 0: its step is 0 already.

    The factors are numbers, and no choice between arrays: that would be another pass over all
    parameters, 10% of a step on a CPU.
    """
    rule = optax.trace(momentum)

    def update(
        steps: Params, state: optax.TraceState, params: Any = None, *, rates: Any, **_: Any
    ) -> tuple[Params, optax.TraceState]:
        del params

        def velocity(rate: jax.Array, step: jax.Array, old: jax.Array) -> jax.Array:
            return step + jnp.where(rate > 0, momentum, 1.0) * old

        def moved(rate: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(rate > 0, 1.0, 0.0) * new

        trace = jax.tree.map(velocity, rates, steps, state.trace)
        return jax.tree.map(moved, rates, trace), optax.TraceState(trace)

    return optax.GradientTransformationExtraArgs(rule.init, update)


def velocity(state: optax.OptState) -> Params:
    """The v of the last update, in a tree like the parameters, from `update_rule`'s state."""
    return optax.tree_utils.tree_get(state, "trace")


# --- policies: who decides the rate -------------------------------------------------------------


class Hyperparams(NamedTuple):
    """What a policy sets for a step."""

    rate: float  # of the weights of all layers but those below; the one that is logged
    layers: dict[str, float]  # rates of single layers' weights
    biases: dict[str, float]  # rates of single layers' biases, and of "all" others
    lighting: bool  # whether the colour shifts of §4.1 are on

    def rates(self, c: config.Optim, params: Any) -> Rates:
        """A rate for each of `params`.

        Biases that `biases` does not name learn at `bias_rate` times the rate of their layer.
        """

        def rate(layer: str, name: str) -> float:
            weights = self.layers.get(layer, self.rate)
            if name != "bias":
                return weights
            return self.biases.get(layer, self.biases.get("all", weights * c.bias_rate))

        return {
            layer: {name: rate(layer, name) for name in parameters}
            for layer, parameters in params.items()
        }


@dataclasses.dataclass
class PlateauPolicy:
    """Divides the rate when the validation error stops improving (§5: by 10, three times).

    A plateau is reached after `patience` epochs in a row whose error is not lower than the best so
    far by at least `least_improvement`. Each of the first `drops` plateaus divides the rate by
    `factor`; the next one ends the training. All fields but `c` are saved in checkpoints.

    Counts of images are compared, not rates: as floats, .40156 - .00100 is less than .40056.
    """

    c: config.Plateau
    # The lowest count of wrong images that was an improvement. Version 0.1 saved the error rate.
    best: int | float | None = None
    waited: int = 0  # epochs since then, or since the last plateau
    drops: int = 0  # plateaus so far

    @property
    def finished(self) -> bool:
        """Whether the plateau after the last drop has been reached."""
        return self.drops > self.c.drops

    def hyperparams(self, epochs: float) -> Hyperparams:
        """For the next step. The number of epochs done does not matter here."""
        rate = self.c.rate / self.c.factor ** min(self.drops, self.c.drops)
        return Hyperparams(rate, {}, {}, True)

    def observe(self, wrong: int, images: int) -> None:
        """Learns of an epoch how many of so many validation images have a wrong best label."""
        best = self.best
        if isinstance(best, float):
            best = round(best * images) if math.isfinite(best) else None
        # The number that the config shows, in decimal, so that the product is exact.
        least = Decimal(repr(self.c.least_improvement)) * images
        if best is None or (wrong < best and best - wrong >= least):
            self.best, self.waited = wrong, 0
            return
        self.best = best
        self.waited += 1
        if self.waited == self.c.patience:
            self.waited, self.drops = 0, self.drops + 1

    def state(self) -> dict[str, Any]:
        """The values of JSON from which `make_policy` makes this policy again."""
        return {"best": self.best, "waited": self.waited, "drops": self.drops}


@dataclasses.dataclass
class SchedulePolicy:
    """Sets the rates by the epoch. Nothing changes it, so it has nothing to save."""

    c: config.Schedule
    finished = False

    def hyperparams(self, epochs: float) -> Hyperparams:
        """For the next step, after so many epochs: those of the newest phase that has begun."""
        phase = [phase for phase in self.c.phases if phase.epoch <= epochs][-1]
        return Hyperparams(phase.rate, dict(phase.layers), dict(phase.biases), phase.lighting)

    def observe(self, wrong: int, images: int) -> None:
        """Does nothing: the error does not change the schedule."""

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}


Policy = PlateauPolicy | SchedulePolicy


def make_policy(c: config.Plateau | config.Schedule, state: Mapping[str, Any] = {}) -> Policy:
    """The policy that a config describes: as it was when its `state()` was saved, or new."""
    return PlateauPolicy(c, **state) if isinstance(c, config.Plateau) else SchedulePolicy(c)
