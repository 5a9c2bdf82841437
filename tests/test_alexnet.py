"""The network's shapes and counts, its table, and the paper's variations of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet_jax import config
from alexnet_jax.configs import alexnet
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.describe import format_table, layer_table
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.setup import make_network
from tests.conftest import make_config
from tests.test_ops import lrn_by_hand


def full_size(**values):
    plain = config.as_dict(config.parse(alexnet.get_config()))
    plain["model"].update(values)
    return config.parse(plain)


def table(c, devices=2):
    network = make_network(dataclasses.replace(c, devices=devices))
    return network, {row.layer: row for row in layer_table(network, c)}


def test_the_full_network_is_the_papers():
    _, rows = table(full_size())
    assert sum(row.parameters for row in rows.values()) == 60_965_224
    assert {layer: row.output for layer, row in rows.items()} == {
        "conv1": (55, 55, 96),
        "conv2": (27, 27, 256),
        "conv3": (13, 13, 384),
        "conv4": (13, 13, 384),
        "conv5": (13, 13, 256),
        "fc6": (4096,),
        "fc7": (4096,),
        "fc8": (1000,),
    }
    assert rows["conv1"].neurons == 290_400  # §3.5 says 253,440, which is 55 x 48 x 96
    assert sum(row.neurons for row in rows.values()) == 659_272  # the abstract: 650,000
    # 11*11*3*96*55^2 + 2*(5*5*48*128)*27^2 + ...: 0.724 G
    assert sum(row.multiply_adds for row in rows.values()) == (
        105_415_200 + 223_948_800 + 149_520_384 + 112_140_288 + 74_760_192
        + 9216 * 4096 + 4096 * 4096 + 4096 * 1000
    )  # fmt: skip


def test_the_table_says_what_lies_where():
    c = full_size()
    network, rows = table(c)
    sees = {layer: row.sees for layer, row in rows.items()}
    assert sees["conv1"] == "the image"
    assert {layer for layer in sees if sees[layer] == "both towers"} == {
        "conv3",
        "fc6",
        "fc7",
        "fc8",
    }
    # Half of the weights and of their velocity, 4 bytes each; fc8's bias is on both devices.
    assert sum(row.bytes for row in rows.values()) == (60_965_224 - 1000) // 2 * 8 + 1000 * 8
    single = sum(row.bytes for row in table(c, devices=1)[1].values())
    assert single == 60_965_224 * 8
    text = format_table(list(rows.values()), network)
    assert "60,965,224" in text
    assert "1 x 2 devices" in text


def test_the_half_net_keeps_its_last_convolution_and_its_dense_layers():
    _, rows = table(full_size(towers=1, kernels=(48, 128, 192, 192, 256)), devices=1)
    assert [row.output[-1] for row in rows.values()] == [48, 128, 192, 192, 256, 4096, 4096, 1000]
    assert rows["fc6"].parameters == 9216 * 4096 + 4096
    assert rows["conv2"].parameters == 5 * 5 * 48 * 128 + 128


@pytest.mark.parametrize("layer", ["conv2", "conv3", "conv4", "conv5"])
def test_any_middle_convolution_can_be_left_out(layer):
    _, rows = table(full_size(without=layer))
    assert layer not in rows
    # What is left of the sizes in between is the same, but for the maps that fc6 gets from conv4.
    assert rows["conv5" if layer == "conv4" else "fc7"].output[-1] in (256, 4096)
    maps = {"conv2": 256, "conv3": 256, "conv4": 256, "conv5": 384}[layer]
    assert rows["fc6"].parameters == 36 * maps * 4096 + 4096


def test_without_conv3_the_towers_meet_before_conv4():
    _, rows = table(full_size(without="conv3"))
    assert rows["conv4"].sees == "both towers"
    assert rows["conv4"].parameters == 3 * 3 * 256 * 384 + 384


def test_without_crossing_at_layer_3_each_tower_sees_itself():
    _, rows = table(full_size(cross=("fc6", "fc7")))
    assert rows["conv3"].parameters == 3 * 3 * 128 * 384 + 384


def test_pooling_without_overlap_gives_the_same_sizes():
    _, rows = table(full_size(pool_window=2, pool_stride=2))
    assert rows["conv5"].output == (13, 13, 256)
    assert rows["fc6"].parameters == 9216 * 4096 + 4096


def small(**values):
    c = make_config(**{f"model__{key}": value for key, value in values.items()})
    return c, AlexNet(c.model, c.data.crop, c.dtype, rngs=nnx.Rngs(0))


IMAGES = jnp.asarray(50 * np.random.default_rng(0).normal(size=(2, 64, 64, 3)), jnp.float32)


def same_parameters(values) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the usual small network, and of a variation with the SAME parameters."""
    _, usual = small()
    _, network = small(**values)
    graph, _ = nnx.split(network)
    varied = nnx.merge(graph, nnx.state(usual))
    return np.asarray(usual(IMAGES)), np.asarray(varied(IMAGES))


@pytest.mark.parametrize(
    "values",
    [
        {"activation": "tanh"},
        {"lrn__layers": (), "within_map__layers": ()},
        {"lrn__before_activation": (), "lrn__alpha": 0.01},
        {"within_map__alpha": 0.01},
        {"dropout": 0.0},
        {"pool_window": 2},
    ],
)
def test_a_variation_without_other_parameters_changes_the_logits(values):
    """With other parameters any change would show; with the same ones only the variation can."""
    usual, varied = same_parameters(values)
    assert np.isfinite(varied).all()
    assert np.abs(varied - usual).max() > 1e-3 * np.abs(usual).max()


@pytest.mark.parametrize(
    ("values", "layer", "shape"),
    [
        ({"cross": ()}, "conv3", (3, 3, 16, 48)),
        ({"cross": ("fc6", "fc7")}, "conv3", (3, 3, 16, 48)),
        ({"without": "conv4"}, "conv5", (3, 3, 24, 32)),
        ({"towers": 1, "kernels": (48, 128, 192, 192, 256)}, "conv2", (5, 5, 6, 16)),
        ({"classes": 17}, "fc8", (512, 17)),
        ({"width": 0.5}, "conv2", (5, 5, 24, 128)),
    ],
)
def test_a_variation_with_other_parameters_runs(values, layer, shape):
    _, network = small(**values)
    assert getattr(network, layer).kernel[...].shape == shape
    logits = network(IMAGES)
    assert logits.shape == (2, values.get("classes", 10))
    assert np.isfinite(logits).all()


def conv1_by_hand(network):
    conv1 = network.conv1
    numbers, padding = ("NHWC", "HWIO", "NHWC"), ((0, 3), (0, 3))
    x = jax.lax.conv_general_dilated(
        IMAGES, conv1.kernel[...], (4, 4), padding, dimension_numbers=numbers
    )
    return np.asarray(x + conv1.bias[...])


@pytest.mark.parametrize("before", [True, False])
def test_lrn_comes_before_or_after_the_first_relu(before):
    """In the 2012 order a map's neighbours count even where the ReLU will silence them."""
    order = ("conv1",) if before else ()
    c, network = small(lrn__before_activation=order, lrn__alpha=0.01)
    formula, x = c.model.lrn, conv1_by_hand(network)
    relu = lambda x: np.maximum(x, 0)  # noqa: E731
    across = lambda x: np.concatenate(  # noqa: E731
        [lrn_by_hand(tower, formula) for tower in np.split(x, 2, axis=-1)], axis=-1
    )
    expected = relu(across(x)) if before else across(relu(x))
    ours = network.outputs(IMAGES)["conv1"]
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_tanh_is_tanh():
    _, network = small(activation="tanh", lrn__layers=(), within_map__layers=())
    expected = np.tanh(conv1_by_hand(network))
    np.testing.assert_allclose(network.outputs(IMAGES)["conv1"], expected, rtol=1e-4, atol=1e-5)


def test_initial_values_are_the_configs():
    c, network = small(width=1.0)
    for layer in c.model.layers:
        kernel = np.asarray(getattr(network, layer).kernel[...])
        std = c.model.std[layer]
        assert abs(kernel.std() / std - 1) < 5 / np.sqrt(kernel.size)
        assert abs(kernel.mean()) < 5 * std / np.sqrt(kernel.size)
        bias = np.asarray(getattr(network, layer).bias[...])
        assert (bias == c.model.bias[layer]).all()


def test_bfloat16_computes_and_float32_parameters_and_logits():
    c, network = small()
    low = AlexNet(c.model, c.data.crop, "bfloat16", rngs=nnx.Rngs(0))
    outputs = low.outputs(IMAGES)
    assert outputs["fc7"].dtype == jnp.bfloat16
    assert outputs["fc8"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(low))} == {jnp.dtype(jnp.float32)}
    exact = network(IMAGES)
    assert 0 < np.abs(outputs["fc8"] - exact).max() < 0.05 * np.abs(exact).max()


def test_images_too_small_for_three_poolings_are_refused():
    with pytest.raises(UserError, match=r"data\.crop=40 is too small"):
        table(make_config(data__crop=40))
