"""Each ablation differs from the whole network only in its named values, and can be built."""

import pytest

from alexnet_jax import config, optim
from alexnet_jax.configs import ablations, alexnet_2012, clothing10, run_145
from alexnet_jax.model.describe import layer_table
from alexnet_jax.training.setup import make_network

WHOLE = 60_965_224  # parameters


def ablated(name: str) -> config.Config:
    return config.parse(ablations.get_config(name))


@pytest.mark.parametrize("name", ablations.ABLATIONS)
def test_only_the_named_values_change(name):
    whole = config.as_dict(config.parse(alexnet_2012.get_config()))
    changed = set(config.differences(whole, ablated(name)))
    named = ablations.ABLATIONS[name].changes.keys() - {"devices", "epochs"}
    named |= {"policy.phases"} if "policy" in named else set()
    named -= {"policy"}
    assert {key for key in changed if not key.startswith("model.padding")} == named - {
        "model.padding"
    }


@pytest.mark.parametrize("name", sorted(set(clothing10.NAMES) - {"as_it_is", "full"}))
def test_on_photos_of_clothing_only_the_named_values_change_too(name):
    whole, c = (config.parse(clothing10.get_config(one)) for one in ("as_it_is", name))
    changed = set(config.differences(config.as_dict(whole), c))
    if name == "tanh":  # begins with other values, and may have another rate
        changed -= {key for key in changed if key.startswith(("model.std", "model.bias", "policy"))}
    changes = ablations.ABLATIONS[clothing10.VARIANTS[name]].changes
    assert changed == changes.keys() - {"devices"}
    assert (c.experiment.name, c.experiment.against) == (
        f"clothing10_{name}",
        "clothing10_as_it_is",
    )
    sides = [row.output[0] for row in layer_table(make_network(c), c)][:5]
    assert sides == [31, 15, 7, 7, 7]


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


def test_the_sixth_convolution_of_run_146_sees_both_towers():
    assert counts("sixth_conv")["conv6"] == 256 * 9 * 128 + 256
    assert counts("run_146")["conv6"] == 256 * 9 * 256 + 256 == 590_080
    c = ablated("run_146")
    rows = {row.layer: row for row in layer_table(make_network(c), c)}
    assert rows["conv6"].sees == "both towers"
    assert rows["conv6"].output == (6, 6, 256)
    assert (c.model.std["conv6"], c.model.bias["conv6"]) == (0.03, 1.0)


def test_run_147_pads_less_and_pools_over_the_edges():
    """55 to 28 to 26; 26 to 13; 13 to 11 to 6, as in the file of its layers."""
    c = ablated("run_147")
    rows = {row.layer: row for row in layer_table(make_network(c), c)}
    assert [rows[layer].output[0] for layer in ("conv1", "conv2", "conv3", "conv4")] == [
        55, 26, 13, 13,
    ]  # fmt: skip
    assert rows["conv5"].output == (11, 11, 256)
    assert sum(counts("run_147").values()) == WHOLE


def test_run_150_is_wider():
    found = counts("run_150")
    assert found["conv2"] == 320 * 25 * 48 + 320
    assert found["conv3"] == 384 * 9 * 160 + 384
    assert found["fc6"] == 8192 * 4608 + 8192
    assert found["fc7"] == 8192 * 4096 + 8192


@pytest.mark.parametrize(
    ("name", "epochs", "changed", "end"),
    [
        # The epochs in the notes, for all weights, for conv1's and for the lighting; and the rates
        # in the files: conv2's weights, conv1's and conv2's biases.
        ("run_145_half", 96, ([20, 48], [66, 72], [66]), (1e-4, 0.002, 0.002)),
        ("run_145_2010", 93, ([23, 51, 78], [68, 72], [68]), (1e-5, 0.0, 0.002)),
        ("run_146", 54, ([22, 42], [5, 7], [38]), (1e-5, 0.0, 0.02)),
        ("run_147", 90, ([23, 51, 79], [79], []), (1e-5, 0.0, 0.002)),
        ("run_148", 97, ([22, 44, 86], [69, 73], [69]), (1e-5, 0.0, 0.02)),
        ("run_150", 92, ([25, 49, 79], [66, 72], [66]), (1e-5, 0.0, 0.02)),
    ],
)
def test_the_schedules_are_those_of_the_notes(name, epochs, changed, end):
    c = ablated(name)
    policy = optim.make_policy(c.policy)
    by_epoch = {e: policy.hyperparams(e) for e in range(epochs + 1)}
    params = {layer: {"kernel": 0, "bias": 0} for layer in c.model.layers}
    rates = {e: setting.rates(c.optim, params) for e, setting in by_epoch.items()}

    def changes(of):
        return [e for e in range(1, epochs + 1) if of(e) != of(e - 1)]

    assert c.epochs == epochs
    assert changed == (
        changes(lambda e: rates[e]["conv2"]["kernel"]),
        changes(lambda e: by_epoch[e].layers.get("conv1")),
        changes(lambda e: by_epoch[e].lighting),
    )
    last = rates[epochs]
    assert last["conv1"]["kernel"] == 0.0
    assert (last["conv2"]["kernel"], last["conv1"]["bias"], last["conv2"]["bias"]) == end


def test_run_146_gives_its_new_last_layer_a_higher_rate_for_some_epochs():
    policy = optim.make_policy(ablated("run_146").policy)
    found = {e: policy.hyperparams(e).layers.get("fc8") for e in (0, 0.23, 0.24, 8.9, 9)}
    assert found == {0: None, 0.23: None, 0.24: 1e-2, 8.9: 1e-2, 9: None}


def test_run_145_adds_chunks_and_a_fixed_order():
    recipe = config.as_dict(config.parse(alexnet_2012.get_config()))
    run = config.parse(run_145.get_config())
    assert config.differences(recipe, run) == ["data.chunk", "data.order"]
    assert (run.data.chunk, run.data.order) == (32, "fixed")
    assert (recipe["data"]["chunk"], recipe["data"]["order"]) == (1, "random")


def test_at_224_pixels_no_window_of_3_hangs_over_an_edge():
    values = run_145.get_config()
    inside = make_network(config.parse(values)).shapes
    values.model.pool_over_edges = True
    assert make_network(config.parse(values)).shapes == inside
    values.model.pool_window = 2
    assert make_network(config.parse(values)).shapes != inside


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
    with pytest.raises(ValueError, match="has no 'no_relu'; there are half_net, run_145_half"):
        ablations.get_config("no_relu")
