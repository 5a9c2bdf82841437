"""Dead units, sizes of weights and updates; a loss that is stuck; numbers that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import optim
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.diagnostics import (
    StuckLoss,
    check_loss,
    check_weights,
    label_entropy,
    make_diagnostics,
    read_layers,
)
from alexnet_jax.training.setup import make_network
from tests.conftest import make_config


def test_the_entropy_of_balanced_labels_is_the_logarithm_of_their_number():
    assert label_entropy(np.arange(1000)) == pytest.approx(6.9078, abs=1e-4)
    # 1/2, 1/4, 1/4: 1.5 bits
    assert label_entropy(np.array([0, 0, 2, 5])) == pytest.approx(1.5 * np.log(2))


def test_a_loss_at_the_entropy_is_told_once():
    stuck = StuckLoss(entropy=2.3, patience=100)
    said = [stuck.notice(step, 2.31) for step in range(10, 400, 10)]
    assert [i for i, text in enumerate(said) if text] == [10]  # 100 steps after the first
    assert "step 110: for 100 steps the loss has been 2.300" in said[10]
    assert "alexnet_2012" in said[10]


def test_a_loss_that_moves_is_not_stuck():
    stuck = StuckLoss(entropy=2.3, patience=100)
    assert not any(stuck.notice(step, 2.31 if step % 90 else 1.9) for step in range(10, 999, 10))
    assert not any(StuckLoss(2.3, 0).notice(step, 2.3) for step in range(999))  # switched off


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_what_is_kept(loss):
    check_loss(5, 2.0, None)
    with pytest.raises(UserError, match=r"step 5: the loss is .*; stopped, none was saved yet"):
        check_loss(5, loss, None)
    with pytest.raises(UserError, match="the checkpoint of step 3 is kept"):
        check_loss(5, loss, 3)


def test_one_bad_weight_is_found():
    params = {"conv1": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}}
    check_weights(1, params, None)
    params["conv1"]["bias"] = jnp.array([1, jnp.nan, 1])
    with pytest.raises(UserError, match="weights are not finite"):
        check_weights(1, params, None)


def diagnose(network, c, params, optimizer, images):
    measure = make_diagnostics(network, c.model)
    return read_layers(measure({"params": params, "optimizer": optimizer}, images))


@pytest.mark.parametrize("devices", [1, 4])
def test_dead_units_and_sizes(devices):
    c = make_config(devices=devices)
    network = make_network(c)
    params = jax.device_get(network.init(0))
    # A quarter of conv3's maps and every neuron of fc6 can only give 0.
    dead = params["conv3"]["bias"].size // 4
    params["conv3"]["bias"] = np.where(np.arange(4 * dead) < dead, -1e9, 1e3).astype(np.float32)
    params["fc6"]["bias"] = np.full_like(params["fc6"]["bias"], -1e9)
    rule = optim.update_rule(c.optim)
    _, optimizer = rule.update(
        jax.tree.map(np.ones_like, params),
        rule.init(params),
        params,
        rates=optim.Hyperparams(0.5, {}, {}, True).rates(c.optim, params),
    )
    images = np.random.default_rng(0).normal(size=(8, 64, 64, 3)).astype(np.float32) * 50
    placed = jax.device_put(params, network.shardings(network.specs))
    values = diagnose(network, c, placed, optimizer, jnp.asarray(images))
    assert values["dead/conv3"] == 0.25
    assert values["dead/fc6"] == 1.0
    assert "dead/fc8" not in values
    kernel = params["conv2"]["kernel"]
    assert values["weight/conv2"] == pytest.approx(np.abs(kernel).mean(), rel=1e-4)
    velocity = np.abs(-0.5 * (1 + c.optim.weight_decay * kernel)).mean()
    assert values["update/conv2"] == pytest.approx(velocity / np.abs(kernel).mean(), rel=1e-4)


def test_a_network_without_relus_has_no_dead_units():
    c = make_config(model__activation="tanh", devices=1)
    network = make_network(c)
    params = network.init(0)
    optimizer = optim.update_rule(c.optim).init(params)
    values = diagnose(network, c, params, optimizer, jnp.ones((2, 64, 64, 3)))
    assert not [key for key in values if key.startswith("dead/")]
