"""Each ablation differs from the whole network only in its named values, and can be built."""

import pytest

from alexnet_jax import config
from alexnet_jax.configs import ablations, alexnet_2012
from alexnet_jax.model.describe import layer_table
from alexnet_jax.training.setup import make_network

WHOLE = 60_965_224  # parameters


def ablated(name: str) -> config.Config:
    return config.parse(ablations.get_config(name))


@pytest.mark.parametrize("name", ablations.ABLATIONS)
def test_only_the_named_values_change(name):
    whole = config.as_dict(config.parse(alexnet_2012.get_config()))
    changed = set(config.differences(whole, ablated(name)))
    assert changed == set(ablations.ABLATIONS[name].changes) - {"devices"}


def counts(name: str) -> dict[str, int]:
    c = ablated(name)
    return {row.layer: row.parameters for row in layer_table(make_network(c), c)}


def test_the_half_net_has_half_of_the_kernels_but_of_the_last_convolution():
    # Every kernel sees all maps of the layer before: there is one tower.
    assert counts("half_net") == {
        "conv1": 48 * 363 + 48,
        "conv2": 128 * 25 * 48 + 128,
        "conv3": 192 * 9 * 128 + 192,
        "conv4": 192 * 9 * 192 + 192,
        "conv5": 256 * 9 * 192 + 256,
        "fc6": 9216 * 4096 + 4096,
        "fc7": 4096 * 4096 + 4096,
        "fc8": 4096 * 1000 + 1000,
    }


def test_without_crossing_each_tower_sees_its_own_half():
    whole, apart = counts("no_lrn"), counts("no_crossing")
    assert sum(whole.values()) == WHOLE
    assert apart["conv3"] == 384 * 9 * 128 + 384
    assert apart["fc6"] == 4608 * 4096 + 4096
    assert apart["fc7"] == 2048 * 4096 + 4096
    unchanged = whole.keys() - {"conv3", "fc6", "fc7"}
    assert {layer: apart[layer] for layer in unchanged} == {n: whole[n] for n in unchanged}


@pytest.mark.parametrize("left_out", ["conv2", "conv3", "conv4", "conv5"])
def test_a_convolution_left_out_is_gone(left_out):
    found = counts(f"without_{left_out}")
    assert left_out not in found
    assert len(found) == 7


@pytest.mark.parametrize("name", ["no_overlap", "no_dropout", "tanh", "no_momentum"])
def test_an_ablation_without_parameters_keeps_the_parameters(name):
    assert sum(counts(name).values()) == WHOLE


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="has no 'no_relu'; there are half_net, no_lrn"):
        ablations.get_config("no_relu")
