"""What follows a convolution, in few passes: against one operation after the other.

The operations by themselves are compared with PyTorch and with their formulas in test_ops.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from alexnet_jax.config import Formula
from alexnet_jax.model import ops

PAPER = Formula(k=2.0, alpha=1e-4, size=5, beta=0.75)
WITHIN = Formula(k=1.0, alpha=4e-5, size=5, beta=0.75)
VALUES = {
    "normal": lambda rng, shape: 80 * rng.normal(size=shape),
    "ties": lambda rng, shape: rng.integers(-2, 3, shape) * 40.0,
    "zeros": lambda rng, shape: rng.choice([0.0, -0.0], shape),
}


class Case(NamedTuple):
    """A run of operations, and what it is done on."""

    operations: tuple[Callable, ...]
    shape: tuple[int, ...]
    values: str

    def input(self, dtype=jnp.float32, seed: int = 0) -> jax.Array:
        return jnp.asarray(VALUES[self.values](np.random.default_rng(seed), self.shape), dtype)


def drawn(number: int) -> Case:
    """A case of odd sizes: window 1 to 4, stride 1 to 3, sides 5 to 60."""
    rng = np.random.default_rng(number)
    window, stride, maps = (int(rng.integers(low, high)) for low, high in [(1, 5), (1, 4), (1, 8)])
    lrn = Formula(k=2.0, alpha=1e-4, size=int(rng.integers(1, 7)), beta=(0.75, 0.5)[number % 2])
    near = Formula(k=1.0, alpha=4e-5, size=int(rng.integers(1, 6)), beta=0.75)
    pool = ops.MaxPool(window, stride)
    runs = [
        (ops.relu, ops.Lrn(lrn), pool),
        (ops.Lrn(lrn), ops.relu, pool),
        (ops.relu, ops.Lrn(lrn), ops.LrnWithin(near), pool),
        (ops.Lrn(lrn), pool),
    ]
    sides = rng.integers(max(5, window), 61, 2) if number % 5 == 0 else rng.integers(5, 20, 2)
    shape = (2, *sides.tolist(), maps)
    return Case(runs[number % 4], shape, list(VALUES)[number % 3])


def passes(case: Case, form: str, x: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """The output, and the gradient of a weighted sum of it."""

    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, back = jax.vjp(lambda x: ops.chain(x, *case.operations, form=form), x)
        pull = np.random.default_rng(1).normal(size=y.shape)
        return y, *back(jnp.asarray(pull, y.dtype))

    y, gradient = jax.jit(both, compiler_options={"xla_backend_optimization_level": 0})(x)
    return np.asarray(y, np.float64), np.asarray(gradient, np.float64)


def assert_form_is_right(case: Case, form: str) -> None:
    x = case.input()
    (y, gradient), (want, want_gradient) = (passes(case, one, x) for one in (form, "definition"))
    np.testing.assert_allclose(y, want, rtol=1e-6, atol=0)
    scale = np.abs(want_gradient).max() + 1e-30
    np.testing.assert_allclose(gradient / scale, want_gradient / scale, rtol=0, atol=3e-6)


@pytest.mark.parametrize(("number", "form"), [*enumerate(["one pass", "two passes"] * 2)])
def test_a_form_gives_what_its_definition_gives(number, form):
    assert_form_is_right(drawn(number), form)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4, 19))
def test_a_form_gives_what_its_definition_gives_over_odd_sizes(number):
    assert_form_is_right(drawn(number), ("one pass", "two passes")[number // 4 % 2])


@pytest.mark.parametrize("form", ["one pass", "two passes"])
def test_plain_normalization_pads_with_nothing_that_divides_by_zero(form):
    plain = Formula(k=0.0, alpha=1.0, size=7, beta=1.0)
    run = ops.Lrn(plain), ops.LrnWithin(plain), ops.MaxPool(3, 2)
    assert_form_is_right(Case(run, (2, 9, 12, 7), "normal"), form)


@pytest.mark.parametrize(("number", "form"), [*enumerate(["one pass", "two passes"] * 2)])
def test_nan_comes_out_where_the_definition_has_it(number, form):
    case = drawn(number)
    x = case.input().at[0, 2, 3, 0].set(jnp.nan)
    y, want = (passes(case, one, x)[0] for one in (form, "definition"))
    assert np.isnan(want).any()
    np.testing.assert_array_equal(np.isnan(y), np.isnan(want))


@pytest.mark.parametrize(
    "operations",
    [
        (ops.Lrn(PAPER), ops.relu, ops.MaxPool(3, 2)),
        (ops.relu, ops.Lrn(PAPER), ops.LrnWithin(WITHIN), ops.MaxPool(3, 2)),
    ],
    ids=["conv1", "conv2"],
)
def test_in_bfloat16_a_form_is_as_near_to_float32_as_the_definition(operations):
    case = Case(operations, (4, 13, 13, 16), "normal")
    x = case.input(jnp.bfloat16)
    (y, gradient), (same, before) = (passes(case, one, x) for one in ("one pass", "definition"))
    np.testing.assert_array_equal(y, same)
    # Seldom two values round to the same bfloat16, and then another place has the maximum: in the
    # form as in the definition. Where the places agree, so do the gradients.
    _, truth = passes(case, "definition", x.astype(jnp.float32))
    ours, theirs = (np.sqrt(np.mean((one - truth) ** 2)) for one in (gradient, before))
    assert ours <= 1.1 * theirs
    np.testing.assert_allclose(gradient, before, rtol=0, atol=0.02 * np.abs(before).max())


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (2, 3), (3, 2)])
def test_pooling_by_place_is_the_definitions(window, stride):
    x = jnp.asarray(np.random.default_rng(0).integers(-3, 4, (2, 11, 14, 3)), jnp.float32)
    results = []
    for pool in (ops.pooling.max_pool_by_place, ops.pooling.max_pool_definition):
        y, back = jax.vjp(lambda x, pool=pool: pool(x, window, stride), x)
        results.append((y, *back(jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape))))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_allclose(results[0][1], results[1][1])


def test_relu_by_its_output_has_relus_gradient():
    x = jnp.asarray([-2.0, -0.0, 0.0, 3.0, jnp.nan])
    y, back = jax.vjp(ops.rectifier.relu_by_output, x)
    want, want_back = jax.vjp(jax.nn.relu, x)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(back(x + 5)[0], want_back(x + 5)[0])


def test_only_a_gpu_has_few_passes():
    x = jnp.zeros((1, 5, 5, 3))
    run = ops.relu, ops.Lrn(PAPER), ops.MaxPool(3, 2)
    programs = {}
    for platform in ("cpu", "gpu"):
        device = AbstractDevice("any", 1, platform)
        mesh = AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            programs[platform] = str(jax.make_jaxpr(lambda x: ops.chain(x, *run))(x))
    assert "optimization_barrier" in programs["gpu"]
    assert "optimization_barrier" not in programs["cpu"]
    assert "max_pool_by_place" not in programs["cpu"]


@pytest.mark.parametrize(
    "operations",
    [
        (ops.relu,),
        (ops.relu, ops.Lrn(PAPER)),
        (ops.relu, ops.MaxPool(3, 2)),
        (jnp.tanh, ops.Lrn(PAPER), ops.MaxPool(3, 2)),
        (ops.relu, ops.Lrn(PAPER), ops.MaxPool(5, 2)),
    ],
)
def test_another_run_of_operations_is_done_one_by_one(operations):
    case = Case(operations, (2, 9, 8, 3), "normal")
    x = case.input()
    assert "_few_passes" not in str(
        jax.make_jaxpr(lambda x: ops.chain(x, *operations, form="one pass"))(x)
    )
    for ours, theirs in zip(
        *(passes(case, one, x) for one in ("one pass", "definition")), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
