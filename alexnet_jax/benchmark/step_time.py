"""How long a training step takes, beside PyTorch's and plain JAX's."""

import itertools

import jax
import jax.numpy as jnp

from alexnet_jax.benchmark.bench import Bench, Row, Step, peers
from alexnet_jax.benchmark.timing import Work, alternate, in_turn
from alexnet_jax.config import Config
from alexnet_jax.model.describe import layer_table
from alexnet_jax.training.setup import make_network
from alexnet_jax.training.step import training_input

SIDE = 2048  # of the matrices whose product is the machine's own rate


def measure(bench: Bench) -> list[Row]:
    """Images/s of each case; of the peers, too, at each batch and dtype."""
    groups = itertools.groupby(bench.cases(), lambda c: (c.batch, c.dtype))
    return [row for _, cases in groups for row in _compare(list(cases), bench)]


def _compare(cases: list[Config], bench: Bench) -> list[Row]:
    c = cases[0]
    steps = [Step(case) for case in cases]
    works: dict[str, Work] = {
        f"ours, {case.devices} device(s)": step.run for case, step in zip(cases, steps, strict=True)
    }
    ours = next(iter(works))
    if bench.peer:
        works |= _peers(steps[0])
    matrices = "a matrix product"
    times = alternate(works | {matrices: _product(c.dtype)}, bench.repeats)
    rate = 2 * SIDE**3 / times.pop(matrices).median
    flop = training_flop(c)
    rows = []
    for name, t in times.items():
        speed = c.batch / t.median
        rows.append(
            {"batch": c.batch, "dtype": c.dtype, "what": name}
            | {"images/s": speed, "lowest": c.batch / t.high, "highest": c.batch / t.low}
            | {"GFLOP/s": speed * flop / 1e9, "of a matrix product's": speed * flop / rate}
            | {"ours over it": t.median / times[ours].median}
        )
    return rows


def training_flop(c: Config) -> float:
    """Operations of a step for one image, by the usual count: thrice the forward pass."""
    return 6 * sum(row.multiply_adds for row in layer_table(make_network(c), c))


def _product(dtype: str) -> Work:
    matrix = jnp.ones((SIDE, SIDE), dtype)
    product = jax.jit(lambda a: a @ a)

    return lambda count: in_turn(lambda: product(matrix), count)


def _peers(step: Step) -> dict[str, Work]:
    """The same network, weights and images elsewhere.

    They are given the images as the network sees them, and so are spared their preparation.
    """
    setup = step.setup
    data, lighting = setup.config.data, step.hyperparams.lighting
    prepared = training_input(data, setup.normalization, step.batch, lighting)
    images, labels = jax.device_get((prepared, step.batch["label"]))
    params = jax.device_get(step.state["params"])
    works = peers("torch_step").steps(setup.config, params, images, labels)
    plain = peers("plain_jax")
    if plain.knows(setup.config.model):
        works |= {"plain JAX": plain.step(setup.config, params, images, labels)}
    return works
