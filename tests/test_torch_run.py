"""Runs of the peer in PyTorch: the same draws and schedule as ours, and restarts."""

import numpy as np
import pytest

from alexnet_jax import config
from alexnet_jax.configs import cifar10
from alexnet_jax.configs.alexnet_2012 import as_noted
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.metrics import read_metrics
from alexnet_jax.train import fit
from tests.conftest import make_config

pytest.importorskip("torch")

from tests.reference import torch_run

STEPS = 20
# From step 6 on one layer's weights rest and another's biases are faster; 16 steps are an epoch.
RATES = as_noted(
    {"rate": 3e-3, "biases": {"all": 6e-3}},
    {"epoch": 6 / 16, "layers": {"conv1": 0.0}, "biases": {"conv2": 1e-2}, "lighting": False},
    {"epoch": 1, "rate": 1e-3},
)


def alexnet(records, **values):
    return make_config(records, policy=RATES, steps=STEPS, log__every=1, **values)


def cifar(records, name="18", **values):
    c = cifar10.get_config(name)
    c.data.update({"source": "folder:PATH", "records": str(records), "size": 72, "crop": 24})
    c.data.update({"validation": "validation", "random_crop": True, "mirror": True})
    c.model.layers = tuple(dict(layer, std=0.03) for layer in c.model.layers)
    c.batch, c.steps, c.log.every, c.policy = 16, STEPS, 1, RATES
    c.optim.layer_decay = {"fc10": 0.1}
    c.update(values)
    return config.parse(c)


def losses(folder, key="train/loss"):
    return [line[key] for line in read_metrics(folder) if key in line]


@pytest.mark.slow
@pytest.mark.parametrize("make", [alexnet, cifar])
def test_twenty_steps_have_our_losses(records, tmp_path, make):
    """Order, crops, mirroring, lighting, dropout, weights and rates are the same."""
    c = make(records)
    fit(c, tmp_path / "ours")
    torch_run.run(c, tmp_path / "theirs")
    ours, theirs = (losses(tmp_path / name) for name in ("ours", "theirs"))
    assert len(ours) == len(theirs) == STEPS
    assert abs(ours[-1] - ours[0]) > 0.01  # they learn
    np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=0)
    for views in ("val", "val_ten_views"):
        key = f"{views}/loss"
        both = (losses(tmp_path / name, key) for name in ("theirs", "ours"))
        np.testing.assert_allclose(*both, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_run_that_ended_early_goes_on_where_its_last_epoch_ended(records, tmp_path):
    c = cifar(records, steps=18)
    torch_run.run(c, tmp_path / "whole")
    torch_run.run(cifar(records, steps=16), tmp_path / "twice")
    torch_run.run(c, tmp_path / "twice")
    assert losses(tmp_path / "twice") == losses(tmp_path / "whole")
    torch_run.run(c, tmp_path / "twice")  # nothing is left to do
    assert losses(tmp_path / "twice") == losses(tmp_path / "whole")


def test_a_network_that_pytorch_has_not_is_refused(records, tmp_path):
    with pytest.raises(UserError, match="its towers meet at conv3, fc6, fc7"):
        torch_run.run(alexnet(records, model__cross=()), tmp_path)
