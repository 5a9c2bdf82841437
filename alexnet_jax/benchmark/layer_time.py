"""Each layer's time in the real network: what the network takes up to it, less the one before."""

from typing import Any

import jax
import jax.numpy as jnp

from alexnet_jax.benchmark.bench import Bench, Row, Step, case
from alexnet_jax.benchmark.timing import Work, alternate, in_turn
from alexnet_jax.model.ops import DropoutKey
from alexnet_jax.model.towers import DATA, TOWER
from alexnet_jax.training.step import training_input


def measure(bench: Bench) -> list[Row]:
    """Milliseconds of each layer, forward and backward; a pooling counts for the layer after it.

    They are differences of medians, so small ones are not exact. The last row is what a whole step
    takes beyond: the input, the loss and the update.
    """
    return [row for c in bench.cases() for row in _rows(Step(c), bench.repeats)]


def _rows(step: Step, repeats: int) -> list[Row]:
    setup, c, works = step.setup, step.setup.config, dict[str, Work]()
    lighting = step.hyperparams.lighting
    images = training_input(c.data, setup.normalization, step.batch, lighting)
    for layer in c.model.names:
        works[f"{layer} once"] = _up_to(step, images, layer, backward=False)
        works[f"{layer} both"] = _up_to(step, images, layer, backward=True)
    times = alternate(works | {"step": step.run}, repeats, seconds=0.3)
    rows, forward, both = list[Row](), 0.0, 0.0
    for layer in c.model.names:
        once, all_ = times[f"{layer} once"].median, times[f"{layer} both"].median
        own = {"forward, ms": once - forward, "backward, ms": all_ - both - (once - forward)}
        rows.append(case(c) | {"layer": layer} | {name: 1e3 * value for name, value in own.items()})
        forward, both = once, all_
    rest = {"layer": "input, loss, update", "forward, ms": 1e3 * (times["step"].median - both)}
    return [*rows, case(c) | rest]


def _up_to(step: Step, images: jax.Array, layer: str, backward: bool) -> Work:
    """The training network up to `layer`; and the gradients of all parameters up to there."""
    network = step.setup.network
    rows = network.spec(DATA)

    def output(params: Any, images: jax.Array, numbers: jax.Array) -> jax.Array:
        draw = DropoutKey(jax.random.key(0), numbers)
        out = network.bind(params).outputs(images, draw)[layer]
        return jnp.square(out.astype(jnp.float32)).sum()[None, None]

    def gradients(params: Any, images: jax.Array, numbers: jax.Array) -> Any:
        return jax.grad(lambda params: output(params, images, numbers)[0, 0])(params)

    function: Any = gradients if backward else output
    outcome = network.specs if backward else network.spec(DATA, TOWER)
    call = network.jit(network.shard_map(function, (network.specs, rows, rows), outcome))

    return lambda count: in_turn(
        lambda: call(step.state["params"], images, step.batch["row"]), count
    )
