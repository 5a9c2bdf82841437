"""Beginning from another run's weights."""

import jax
import numpy as np
import pytest

from alexnet_jax.runtime.errors import UserError
from alexnet_jax.train import fit
from alexnet_jax.training import trained
from alexnet_jax.training.setup import make_setup
from alexnet_jax.training.state import init_state, load_layers
from tests.conftest import make_config

SHORT = {"steps": 3, "batch": 32, "evaluate__batch": 32, "evaluate__ten_views_at_end": False}


@pytest.fixture(scope="module")
def run(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("state") / "run"
    fit(make_config(records, **SHORT), folder)
    return folder


@pytest.mark.parametrize("devices", [1, 4])
def test_all_but_the_last_layer_is_the_other_runs(records, run, devices):
    values = {"model__classes": 17, "devices": devices, "seed": 5}
    setup = make_setup(make_config(records, init_from=str(run), **values))
    state = jax.device_get(init_state(setup, load_layers(setup)))
    theirs = jax.device_get(trained.open_trained(run).params)
    fresh = jax.device_get(setup.network.init(5))
    for layer in setup.config.model.names[:-1]:
        jax.tree.map(np.testing.assert_array_equal, state["params"][layer], theirs[layer])
    assert state["params"]["fc8"]["kernel"].shape[1] == 17
    jax.tree.map(np.testing.assert_array_equal, state["params"]["fc8"], fresh["fc8"])
    assert state["step"] == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(state["optimizer"]))


@pytest.mark.slow
def test_it_trains_and_resumes_from_its_own_checkpoint(records, run, tmp_path):
    c = make_config(records, init_from=str(run), **SHORT)
    fit(c, tmp_path / "on")
    assert trained.open_trained(tmp_path / "on").step == 3
    fit(make_config(records, init_from=str(run), **SHORT | {"steps": 4}), tmp_path / "on")
    assert trained.open_trained(tmp_path / "on").step == 4


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"model__width": 0.25},
            r"no layer there has the shape .* \(conv1: \[11, 11, 3, 24\]\); give the same",
        ),
        ({"init_from": "none"}, "none holds no run"),
    ],
)
def test_what_does_not_fit_is_one_line(records, run, values, said):
    setup = make_setup(make_config(records, **{"init_from": str(run)} | values))
    with pytest.raises(UserError, match=said):
        load_layers(setup)
