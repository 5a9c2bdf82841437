"""The update of §5 by hand, against PyTorch where they agree, and the two policies."""

import jax
import numpy as np
import pytest

from alexnet_jax import config, optim
from alexnet_jax.configs import alexnet, alexnet_2012

PARAMS = {
    "conv1": {"kernel": np.float32([1.0, -2.0]), "bias": np.float32([0.5])},
    "conv2": {"kernel": np.float32([3.0, 0.1]), "bias": np.float32([-0.5])},
}


def plain(**values):
    defaults = {"momentum": 0.9, "weight_decay": 0.0005, "bias_rate": 1.0, "decay_biases": True}
    return config.Optim(**({"layer_decay": {}} | defaults | values))


def run(c, gradients, settings):
    """The parameters after each step of `update_rule`."""
    rule = optim.update_rule(c)
    params, state, seen = PARAMS, rule.init(PARAMS), []
    for gradient, setting in zip(gradients, settings, strict=True):
        rates = setting.rates(c, params)
        updates, state = rule.update(gradient, state, params, rates=rates)
        params = jax.tree.map(lambda w, v: w + v, params, updates)
        seen.append(params)
    return seen, state


def random_gradients(steps):
    rng = np.random.default_rng(0)
    draw = lambda w: rng.normal(size=w.shape).astype(np.float32)  # noqa: E731
    return [jax.tree.map(draw, PARAMS) for _ in range(steps)]


def test_the_formula_by_hand_over_a_change_of_the_rate():
    gradients = random_gradients(8)
    rates = [0.1] * 4 + [0.01] * 4
    seen, state = run(plain(), gradients, [optim.Hyperparams(rate, {}, {}, True) for rate in rates])

    w, v = np.float64(PARAMS["conv1"]["kernel"]), np.zeros(2)
    for params, gradient, rate in zip(seen, gradients, rates, strict=True):
        v = 0.9 * v - 0.0005 * rate * w - rate * gradient["conv1"]["kernel"]
        w = w + v
        np.testing.assert_allclose(params["conv1"]["kernel"], w, rtol=1e-5)
    np.testing.assert_allclose(optim.velocity(state)["conv1"]["kernel"], v, rtol=1e-5)


def test_the_rate_is_inside_the_velocity():
    """After a drop the velocity keeps its size, which `optax.sgd` would divide as well."""
    gradients = [*random_gradients(1), jax.tree.map(np.zeros_like, PARAMS)]
    settings = [optim.Hyperparams(0.1, {}, {}, True), optim.Hyperparams(0.001, {}, {}, True)]
    seen, _ = run(plain(weight_decay=0.0), gradients, settings)
    first = seen[0]["conv1"]["kernel"] - PARAMS["conv1"]["kernel"]
    second = seen[1]["conv1"]["kernel"] - seen[0]["conv1"]["kernel"]
    np.testing.assert_allclose(second, 0.9 * first, rtol=1e-4)


def test_momentum_decay_and_layers_rates_agree_with_pytorch_at_a_constant_rate():
    torch = pytest.importorskip("torch")
    c = plain(bias_rate=2.0, decay_biases=False, weight_decay=0.5, layer_decay={"conv1": 0.01})
    gradients = random_gradients(6)
    setting = optim.Hyperparams(0.1, {"conv1": 0.03}, {}, True)
    seen, _ = run(c, gradients, [setting] * 6)

    expected = jax.tree.map(torch.tensor, PARAMS)
    rates = {"conv1": {"kernel": 0.03, "bias": 0.06}, "conv2": {"kernel": 0.1, "bias": 0.2}}
    decays = {"conv1": {"kernel": 0.01, "bias": 0.0}, "conv2": {"kernel": 0.5, "bias": 0.0}}
    groups = jax.tree.map(
        lambda w, lr, decay: {"params": [w], "lr": lr, "weight_decay": decay},
        expected, rates, decays,
    )  # fmt: skip
    sgd = torch.optim.SGD([*groups["conv1"].values(), *groups["conv2"].values()], momentum=0.9)
    for params, gradient in zip(seen, gradients, strict=True):
        jax.tree.map(lambda w, g: setattr(w, "grad", torch.tensor(g)), expected, gradient)
        sgd.step()
        jax.tree.map(lambda w, e: np.testing.assert_allclose(w, e, rtol=1e-5), params, expected)


def plateau(**values):
    defaults = {"rate": 0.01, "factor": 10.0, "drops": 3, "patience": 2, "least_improvement": 0.01}
    return optim.PlateauPolicy(config.Plateau(kind="plateau", **(defaults | values)))


def test_the_plateau_drops_three_times_and_then_ends():
    policy, rates = plateau(), []
    for error in [0.9, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2]:
        assert not policy.finished
        rates.append(policy.hyperparams(0).rate)
        policy.observe(round(1000 * error), 1000)
    expected = [1e-2] * 4 + [1e-3] * 3 + [1e-4] * 3 + [1e-5] * 2
    np.testing.assert_allclose(rates, expected)
    assert policy.finished


def test_a_fall_smaller_than_the_least_improvement_is_none():
    policy = plateau(patience=3)
    for error in [0.500, 0.495, 0.492]:
        policy.observe(round(1000 * error), 1000)
    assert policy.waited == 2
    policy.observe(489, 1000)  # 0.011 under the best, which is still the first
    assert (policy.waited, policy.best) == (0, 489)


@pytest.mark.parametrize("least", [0.0, 0.0005, 0.001, 0.003, 0.007, 0.1])
def test_a_fall_of_exactly_the_least_improvement_always_counts(least):
    """All pairs of counts of 1,000 images. With floats, 401 to 400 would be no fall by 0.001."""
    needed = max(1, -(-round(10_000 * least) // 10))  # images
    policy = plateau(least_improvement=least, patience=2000)
    for best in range(1001):
        for wrong in range(1001):
            policy.best, policy.waited = best, 0
            policy.observe(wrong, 1000)
            assert (policy.waited == 0) == (best - wrong >= needed), (best, wrong)


def test_the_state_of_version_0_1_held_error_rates():
    policy = optim.make_policy(plateau().c, {"best": 0.40156, "waited": 1, "drops": 2})
    policy.observe(40_056, 100_000)
    assert (policy.best, policy.waited, policy.drops) == (40_156, 0, 3)  # .01 lower is asked for
    policy = optim.make_policy(plateau(least_improvement=0.001).c, {"best": 0.40156})
    policy.observe(40_056, 100_000)
    assert (policy.best, policy.waited) == (40_056, 0)
    new = optim.make_policy(plateau().c, {"best": float("inf"), "waited": 0, "drops": 0})
    new.observe(5, 10)
    assert new.best == 5


def test_an_error_that_stays_the_same_is_no_improvement_even_if_none_is_asked_for():
    policy = plateau(patience=2, least_improvement=0.0)
    for error in [0.5, 0.5, 0.5]:
        policy.observe(round(1000 * error), 1000)
    assert policy.drops == 1


def test_the_plateau_resumes_from_its_state():
    errors = [0.9, 0.8, 0.8, 0.8, 0.7, 0.7]
    whole, first = plateau(), plateau()
    for error in errors:
        whole.observe(round(10 * error), 10)
    for error in errors[:3]:
        first.observe(round(10 * error), 10)
    second = optim.make_policy(first.c, first.state())
    for error in errors[3:]:
        second.observe(round(10 * error), 10)
    assert second == whole


def test_the_2012_schedule():
    c = config.parse(alexnet_2012.get_config())
    policy = optim.make_policy(c.policy)
    rates = {e: policy.hyperparams(e) for e in (0, 24.99, 25, 50, 51, 66.9, 67, 71, 72, 78, 79, 91)}
    common = {epoch: setting.rate for epoch, setting in rates.items()}
    assert common == {
        0: 1e-2, 24.99: 1e-2, 25: 1e-3, 50: 1e-3, 51: 1e-4, 66.9: 1e-4,
        67: 1e-4, 71: 1e-4, 72: 1e-4, 78: 1e-4, 79: 1e-5, 91: 1e-5,
    }  # fmt: skip
    assert [rates[e].lighting for e in (66.9, 67, 91)] == [True, False, False]
    params = {"conv1": {"kernel": 0, "bias": 0}, "conv2": {"kernel": 0, "bias": 0}}
    both = {epoch: setting.rates(c.optim, params) for epoch, setting in rates.items()}
    assert both[67] == {
        "conv1": {"kernel": 1e-5, "bias": 0.02},
        "conv2": {"kernel": 1e-4, "bias": 0.02},
    }
    # The last file of run 145.
    for epoch in (79, 91):
        assert both[epoch] == {
            "conv1": {"kernel": 0.0, "bias": 0.0},
            "conv2": {"kernel": 1e-5, "bias": 0.02},
        }


@pytest.mark.parametrize(
    ("notes", "end"),
    [
        # By layer, the weights' and the biases' rates in the last files of runs 145-2010 and 147,
        # of run 137, and of the 18% net, where all fall.
        (
            {"rate": 1e-5, "layers": {"conv1": 0.0}, "biases": {"all": 0.002, "conv1": 0.0}},
            {"conv1": (0.0, 0.0), "conv2": (1e-5, 0.002), "fc8": (1e-5, 0.002)},
        ),
        (
            {
                "rate": 1e-5,
                "layers": {"conv1": 0.0, "conv2": 0.0, "conv4": 1e-4, "conv5": 1e-4},
                "biases": {"all": 0.002, "conv1": 0.0, "conv2": 0.0},
            },
            {"conv2": (0.0, 0.0), "conv3": (1e-5, 0.002), "conv4": (1e-4, 0.002)},
        ),
        ({"rate": 1e-5, "biases": {}}, {"conv1": (1e-5, 2e-5), "fc8": (1e-5, 2e-5)}),
    ],
)
def test_other_endings_can_be_expressed(notes, end):
    values = alexnet_2012.get_config()
    values.policy = alexnet_2012.as_noted({"rate": 0.01}, {"epoch": 1} | notes)
    c = config.parse(values)
    params = {layer: {"kernel": 0, "bias": 0} for layer in c.model.layers}
    found = optim.make_policy(c.policy).hyperparams(90).rates(c.optim, params)
    assert {layer: tuple(found[layer].values()) for layer in end} == end


def test_a_rate_of_0_leaves_a_parameter_and_its_velocity_as_they_are():
    """As the 2012 code, which does not update what has the rate 0; and then goes on."""
    gradients = random_gradients(3)
    still = optim.Hyperparams(0.1, {"conv1": 0.0}, {"conv1": 0.0}, True)
    moving = optim.Hyperparams(0.1, {}, {}, True)
    seen, _ = run(plain(), gradients, [moving, still, moving])
    assert (seen[1]["conv1"]["kernel"] == seen[0]["conv1"]["kernel"]).all()
    assert (seen[1]["conv1"]["bias"] == seen[0]["conv1"]["bias"]).all()
    assert (seen[1]["conv2"]["kernel"] != seen[0]["conv2"]["kernel"]).all()
    without, _ = run(plain(), [gradients[0], gradients[2]], [moving, moving])
    jax.tree.map(np.testing.assert_array_equal, seen[2]["conv1"], without[1]["conv1"])


def test_the_papers_policy_is_the_plateau_with_one_rate_for_all():
    c = config.parse(alexnet.get_config())
    setting = optim.make_policy(c.policy).hyperparams(0)
    assert setting.rates(c.optim, PARAMS) == {
        layer: {"kernel": 0.01, "bias": 0.01} for layer in PARAMS
    }
