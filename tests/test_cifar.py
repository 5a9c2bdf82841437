"""The CIFAR-10 nets against PyTorch, their shapes, and what their configs refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from alexnet_jax import config
from alexnet_jax.configs import cifar10
from alexnet_jax.model.cifar import CifarNet
from alexnet_jax.model.describe import layer_table
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.setup import make_network, make_setup
from alexnet_jax.training.state import init_state
from alexnet_jax.training.step import make_step, step_shapes
from tests.test_towers import step_inputs, step_of


def net(name="18", **values):
    plain = config.as_dict(config.parse(cifar10.get_config(name)))
    plain["model"].update(values)
    return config.parse(plain)


def test_the_table_of_the_18_percent_net():
    c = net()
    rows = layer_table(make_network(c), c)
    assert [(row.layer, row.output) for row in rows] == [
        ("conv1", (16, 16, 32)),
        ("conv2", (8, 8, 32)),
        ("conv3", (4, 4, 64)),
        ("fc10", (10,)),
    ]
    assert sum(row.parameters for row in rows) == 2432 + 25_632 + 51_264 + 10_250
    multiply_adds = [row.multiply_adds for row in rows]
    assert multiply_adds == [32**2 * 75 * 32, 16**2 * 800 * 32, 8**2 * 800 * 64, 1024 * 10]


def test_the_table_of_the_13_percent_net():
    c = net("13")
    rows = layer_table(make_network(c), c)
    assert [row.output for row in rows][2:4] == [(6, 6, 32), (6, 6, 32)]
    # Locally connected: 36 places have kernels and biases of their own, each used once.
    kernels = [36 * 9 * 64 * 32, 36 * 9 * 32 * 32]
    assert [row.parameters for row in rows][2:4] == [count + 36 * 32 for count in kernels]
    assert [row.multiply_adds for row in rows][2:4] == kernels


def test_the_2x2_of_lrn_and_width_differs_in_these_alone():
    nets = {name: config.as_dict(net(name)) for name in ("13", "13_lrn", "13_wide", "13_lrn_wide")}
    lrn, wide = (
        config.differences(nets["13"], config.parse(nets[name])) for name in ("13_lrn", "13_wide")
    )
    assert lrn == wide == ["model.layers"]
    for name, values in nets.items():
        layers = {layer["name"]: layer for layer in values["model"]["layers"]}
        normed = {layer for layer in layers if "across_maps" in layers[layer]["then"]}
        assert normed == ({"conv1", "conv2"} if "lrn" in name else set())
        assert layers["local3"]["units"] == (64 if "wide" in name else 32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "crop"),
    [("18", 32), ("18", 27), ("tanh", 32), ("sigmoid", 32), ("26", 27), ("13", 24), ("11", 24)],
)
def test_logits_loss_and_every_gradient_are_pytorchs(name, crop):
    pytest.importorskip("torch")
    from tests.reference.torch_cifar import TorchCifar

    with jax.enable_x64(True):
        compare(name, crop, TorchCifar)


def compare(name, crop, TorchCifar):  # noqa: N803
    torch = pytest.importorskip("torch")
    layers = [dict(layer, std=0.1) for layer in config.as_dict(net(name))["model"]["layers"]]
    c = net(name, layers=layers).model
    graph, state = nnx.split(CifarNet(c, crop, "float64", nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    images = rng.normal(size=(8, crop, crop, 3))
    labels = rng.integers(0, 10, 8)

    def loss(state):
        logits = nnx.merge(graph, state)(jnp.asarray(images))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), logits

    (ours, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    peer = TorchCifar(c, nnx.to_pure_dict(state))
    theirs = peer(torch.tensor(images).permute(0, 3, 1, 2))
    their_loss = torch.nn.functional.cross_entropy(theirs, torch.tensor(labels))
    their_loss.backward()

    near = {"rtol": 1e-6, "atol": 1e-9}
    np.testing.assert_allclose(logits, theirs.detach(), **near)
    np.testing.assert_allclose(ours, their_loss.detach(), **near)
    for layer, values in nnx.to_pure_dict(gradients).items():
        weight = peer.weights[layer].grad
        order = (2, 3, 1, 0) if weight.ndim == 4 else (1, 0)
        order = (0, 1, 2, 3) if values["bias"].ndim > 1 else order  # locally connected
        np.testing.assert_allclose(values["kernel"], weight.permute(order), **near)
        np.testing.assert_allclose(values["bias"], peer.biases[layer].grad, **near)


def losses_and_params(records, devices):
    values = config.as_dict(net())
    values |= {"devices": devices, "batch": 16}
    values["data"] |= {"records": str(records), "size": 72, "validation": "validation"}
    setup = make_setup(config.parse(values))
    batches, placed, hyperparams = step_inputs(setup)
    step, state, losses = step_of(setup), init_state(setup), []
    for _, batch in zip(range(4), placed, strict=False):
        state, (loss, _) = step(state, setup.normalization, batch, hyperparams)
        losses.append(np.asarray(loss))
    batches.close()
    return losses, jax.device_get(state["params"])


@pytest.mark.slow
def test_the_number_of_devices_changes_no_result(records):
    near = {"rtol": 1e-4, "atol": 1e-6}
    losses, params = losses_and_params(records, 1)
    for devices in (2, 4):
        others, other_params = losses_and_params(records, devices)
        np.testing.assert_allclose(others, losses, **near)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **near), other_params, params)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "steps"}, r"name='steps' String should match pattern '\^\(conv\|local"),
        ({"then": ["max"]}, "only relu, tanh, sigmoid can follow fc10, which is dense"),
        ({"then": ["gelu"]}, "'gelu' must be 'relu', 'tanh'"),
    ],
)
def test_a_layer_that_cannot_be_is_refused(change, said):
    layers = config.as_dict(net())["model"]["layers"]
    layers[-1] |= change
    with pytest.raises(UserError, match=said):
        net(layers=layers)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"classes": 11}, "the last of layers must be dense, with 11 units"),
        ({"layers": ()}, "the last of layers must be dense"),
        ({"towers": 2}, "config.model.towers=2 must be less than or equal to 1"),
    ],
)
def test_layers_that_do_not_fit_are_refused(values, said):
    with pytest.raises(UserError, match=said):
        net(**values)


def test_an_unknown_net_is_refused():
    with pytest.raises(ValueError, match="has no net '12'; there are relu, tanh, sigmoid, 26, 18"):
        cifar10.get_config("12")


def test_a_decay_or_rate_of_no_layer_is_refused():
    plain = config.as_dict(net())
    plain["optim"]["layer_decay"] = {"conv5": 1.0}  # AlexNet has one, this net has none
    with pytest.raises(UserError, match=r"'conv5' in optim.layer_decay .* there are conv1, conv2"):
        config.parse(plain)


@pytest.mark.parametrize("name", cifar10.NAMES)
def test_every_net_has_a_training_step_on_devices(name):
    """On a mesh, where the fast forms are; it is traced only."""
    c = net(name)
    network = make_network(c)
    step = make_step(network, c.optim, c.data, batch=c.batch, seed=c.seed)
    state, scores = step.trace(*step_shapes(network, c)).out_info
    assert jax.tree.map(lambda leaf: leaf.shape, state["params"]) == jax.tree.map(
        lambda leaf: leaf.shape, network.shapes
    )
    assert scores.ranks.shape == (c.batch,)
