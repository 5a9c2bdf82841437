"""The means of sub-networks: against sums over all masks, and the samples of a network."""

import itertools

import jax
import numpy as np
import pytest

from alexnet_jax.figures import subnetworks
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import trained
from alexnet_jax.training.setup import make_setup
from tests.conftest import make_config


def test_of_all_masks_of_one_layer_the_geometric_mean_is_the_pass_with_halved_outputs():
    rng = np.random.default_rng(0)
    hidden, weights = rng.normal(size=(3, 6)), 2 * rng.normal(size=(6, 4))
    masks = itertools.product([0.0, 1.0], repeat=6)
    samples = [jax.nn.log_softmax((hidden * mask) @ weights) for mask in masks]
    *_, (geometric, arithmetic) = subnetworks.running_means(iter(map(np.asarray, samples)))
    one_pass = np.asarray(jax.nn.log_softmax(0.5 * hidden @ weights))
    np.testing.assert_allclose(geometric, one_pass, atol=1e-5)
    np.testing.assert_allclose(np.exp(arithmetic), np.exp(np.stack(samples)).mean(0), rtol=1e-5)
    assert subnetworks.total_variation(arithmetic, one_pass).min() > 0.01


def test_total_variation_of_certain_and_even_guesses():
    a, b = np.log([[1.0, 1e-300], [0.5, 0.5]]), np.log([[1e-300, 1.0], [0.25, 0.75]])
    np.testing.assert_allclose(subnetworks.total_variation(a, b), [1, 0.25])


def test_samples_are_networks_with_neurons_left_out(records, tmp_path, monkeypatch):
    monkeypatch.setattr(subnetworks, "SAMPLES", 3)
    setup = make_setup(make_config(records, devices=1))
    net = trained.Net(tmp_path, 0, setup, setup.network.init(0))
    images = np.zeros((2, 72, 72, 3), np.uint8)
    samples = list(subnetworks.sampled_log_probs(net, images))
    assert len({sample.tobytes() for sample in samples}) == 3
    for sample in samples:
        np.testing.assert_allclose(np.exp(sample).sum(-1), 1, rtol=1e-5)
        assert not np.array_equal(sample[0], sample[1])  # the same image, another sub-network


def test_a_network_without_dropout_has_none(tmp_path):
    workdir.claim(tmp_path / "run", make_config(model__dropout=0.0))
    with pytest.raises(UserError, match="was trained without dropout, so it has no sub-networks"):
        subnetworks.draw_subnetworks([tmp_path / "run"])
