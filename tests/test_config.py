"""The config refuses values that do not fit; the two recipes differ only in what they should."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from alexnet_jax import config
from alexnet_jax.configs import alexnet, alexnet_2012, cifar10, tiny
from alexnet_jax.runtime.cli import load_configs
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.train import fit
from tests.conftest import make_config


@pytest.mark.parametrize("recipe", [alexnet, alexnet_2012, tiny])
def test_every_recipe_is_accepted_and_survives_json(recipe):
    c = config.parse(recipe.get_config())
    assert config.parse(json.loads(json.dumps(config.as_dict(c)))) == c


@pytest.mark.parametrize("name", cifar10.NETS)
def test_every_cifar_net_is_accepted(name):
    c = config.parse(cifar10.get_config(name))
    of_figure_1 = dict.fromkeys(("relu", "tanh", "sigmoid"), 60)
    assert c.epochs == {"18": 140, "26": 30, "11": 520, **of_figure_1}.get(name, 160)


def test_the_2012_recipe_differs_from_the_papers_in_these_keys_only():
    paper = config.as_dict(config.parse(alexnet.get_config()))
    changed = config.differences(paper, config.parse(alexnet_2012.get_config()))
    assert [key for key in changed if not key.startswith("policy.")] == [
        "data.lighting.scale",
        "data.lighting.shrink",
        "data.mean",
        "model.lrn.alpha",
        "model.lrn.before_activation",
        "model.std.conv3",
        "model.std.conv4",
        "model.std.conv5",
        "model.within_map.layers",
        "optim.bias_rate",
        "optim.decay_biases",
    ]


def test_the_2012_recipe_has_the_values_of_the_released_files():
    """Those of run 145: the layers' file and the first and last file of their parameters."""
    c = config.parse(alexnet_2012.get_config())
    m, o, light = c.model, c.optim, c.data.lighting
    three = ("conv3", "conv4", "conv5")
    assert m.std == {layer: 0.03 if layer in three else 0.01 for layer in m.layers}
    assert m.bias == {
        layer: 0.0 if layer in ("conv1", "conv3", "fc8") else 1.0 for layer in m.layers
    }
    # cmrnorm: scale 0.0001 over 5 maps, minDiv 2; rnorm, here over 5 x 5 places: scale 0.001.
    assert (m.lrn.layers, m.lrn.before_activation) == (("conv1", "conv2"), ("conv1",))
    assert (m.lrn.size, m.lrn.k, m.lrn.beta) == (5, 2, 0.75)
    assert m.lrn.alpha == pytest.approx(0.0001 / 5)
    assert (m.within_map.layers, m.within_map.size, m.within_map.k) == (("conv2",), 5, 1)
    assert m.within_map.alpha == pytest.approx(0.001 / 25)
    assert (m.pool_window, m.pool_stride, m.dropout) == (3, 2, 0.5)
    assert (o.momentum, o.weight_decay, o.decay_biases) == (0.9, 0.0005, False)
    assert (c.data.mean, light.scale, light.shrink, light.sigma) == (
        *("centre", "deviation", True),
        0.1,
    )
    assert c.epochs == 91


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("bacth", 1, "config has no key 'bacth'; did you mean 'batch'?"),
        ("model.lrn.bta", 1.0, "config.model.lrn has no key 'bta'; did you mean 'beta'?"),
        ("batch", 0, "config.batch=0 must be greater than or equal to 1"),
        ("batch", "128", "config.batch='128' must be a valid integer"),
        ("batch", True, "config.batch=True must be a valid integer"),
        ("seed", 2**31, "config.seed=2147483648 must be less than 2147483648"),
        ("seed", 1.0, "config.seed=1.0 must be a valid integer"),
        ("optim.momentum", 1.0, "config.optim.momentum=1.0 must be less than 1"),
        ("optim.momentum", -1, "config.optim.momentum=-1 must be greater than or equal to 0"),
        ("optim.momentum", True, "config.optim.momentum=True must be a valid number"),
        ("optim.momentum", float("nan"), "config.optim.momentum=nan must be a finite number"),
        ("data.source", None, "config.data.source=None must be a valid string"),
        ("data.mirror", 1, "config.data.mirror=1 must be True or False"),
        ("dtype", "float16", "config.dtype='float16' must be 'float32' or 'bfloat16'"),
        ("model.towers", 3, "config.model.towers=3 must be less than or equal to 2"),
        ("model.towers", True, "config.model.towers=True must be a valid integer"),
        ("model.kernels", (1, 2), "config.model.kernels=[1, 2] must have at least 5 items"),
        ("model.kernels", 5, "config.model.kernels=5 must be a tuple"),
        ("model.neurons", (1,), "config.model.neurons[1] is missing"),
        ("model.neurons", (1, 2, 3), "config.model.neurons=[1, 2, 3] must have at most 2 items"),
        (
            "model.cross",
            ("conv4",),
            "config.model.cross[0]='conv4' must be 'conv3', 'conv6', 'fc6' or 'fc7'",
        ),
        ("model.cross", ("conv6",), "cross may name conv1, conv2, conv3, conv4, conv5, fc6, fc7,"),
        (
            "model.padding",
            {"conv6": 1},
            "padding may name conv1, conv2, conv3, conv4, conv5, not 'conv6'",
        ),
        ("data.chunk", 0, "config.data.chunk=0 must be greater than or equal to 1"),
        ("data.order", "sorted", "config.data.order='sorted' must be 'random' or 'fixed'"),
        ("model.lrn.layers", ("conv3",), "lrn.layers[0]='conv3' must be 'conv1' or 'conv2'"),
        ("model.lrn.before_activation", ("conv2",), "before_activation[0]='conv2' must be 'conv1'"),
        ("model.within_map.layers", ("conv1",), "within_map.layers[0]='conv1' must be 'conv2'"),
        ("model.within_map.before_activation", ("conv2",), "must have at most 0 items"),
        ("model.std", {"conv1": 0.01}, "config.model: std must have one value for each of conv1"),
        ("data.crop", 300, "config.data: crop=300 must not be larger than size=256"),
        ("data", 3, "config.data=3 must be a section with keys"),
        ("policy", 3, "config.policy=3 must be a section with keys"),
        ("policy", {}, "config.policy.kind is missing; add it"),
        (
            "policy.kind",
            "cosine",
            "config.policy.kind='cosine'; choose one of 'plateau', 'schedule'",
        ),
        ("optim.layer_decay", {"fc9": 1.0}, "config: 'fc9' in optim.layer_decay"),
        ("model.lrn.k", 1e-7, "k=1e-07 must be 0 or at least 1e-6"),
        ("model.within_map.k", -1.0, "config.model.within_map.k=-1.0 must be"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(key, value, said):
    values = config.as_dict(config.parse(alexnet.get_config()))
    *sections, last = key.split(".")
    section = values
    for name in sections:
        section = section[name]
    section[last] = value
    with pytest.raises(UserError) as error:
        config.parse(values)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_plain_normalization_is_accepted_where_it_does_not_divide_by_zero():
    plain = {"model__lrn__k": 0.0, "model__lrn__beta": 1.0, "model__lrn__size": 96}
    assert make_config(model__lrn__alpha=1.0, **plain).model.lrn.k == 0
    with pytest.raises(UserError, match="k and alpha are both 0, so it would divide by zero"):
        make_config(model__lrn__alpha=0.0, **plain)


def test_a_missing_key_is_named():
    values = config.as_dict(config.parse(alexnet.get_config()))
    del values["data"]["lighting"]["sigma"]
    with pytest.raises(UserError, match=r"config\.data\.lighting\.sigma is missing"):
        config.parse(values)


def test_a_layer_is_left_out_only_with_relu():
    make_config(model__without="conv3")
    with pytest.raises(UserError, match="without='conv3' needs activation='relu', not 'tanh'"):
        make_config(model__without="conv3", model__activation="tanh")


def test_a_key_in_a_list_of_sections_is_named_with_its_place():
    values = config.as_dict(config.parse(alexnet_2012.get_config()))
    values["policy"]["phases"][1]["rat"] = 0.1
    with pytest.raises(UserError, match=r"phases\[1\] has no key 'rat'; did you mean 'rate'\?"):
        config.parse(values)


def test_whole_numbers_become_floats_and_lists_tuples():
    values = config.as_dict(config.parse(alexnet.get_config()))
    values["policy"]["rate"] = 1
    c = config.parse(values)
    assert type(c.policy.rate) is float
    assert type(c.model.kernels) is tuple
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.batch = 1


def test_replace_keeps_the_other_values():
    c = config.parse(alexnet.get_config())
    other = dataclasses.replace(c, batch=64)
    assert config.differences(config.as_dict(c), other) == ["batch"]


def test_phases_must_begin_at_zero_and_rise():
    values = config.as_dict(config.parse(alexnet_2012.get_config()))
    values["policy"]["phases"][0]["epoch"] = 1
    with pytest.raises(UserError, match="must begin at epoch 0 and rise"):
        config.parse(values)


def test_a_changeable_value_is_no_difference():
    values = config.as_dict(config.parse(tiny.get_config()))
    then = json.loads(json.dumps(values))
    values["devices"], values["epochs"], values["data"]["threads"] = 4, 1, 3
    assert config.differences(then, config.parse(values)) == []
    values["seed"] = 7
    assert config.differences(then, config.parse(values)) == ["seed"]


@pytest.mark.parametrize("key", config.CHANGEABLE)
def test_every_changeable_key_is_a_key(key):
    values = config.as_dict(config.parse(tiny.get_config()))
    assert any(".".join(path).startswith(key) for path in leaves(values))
    assert not any(fixed.startswith(key) for fixed in config.fixed_values(values))


# --- values of every kind for every key ---------------------------------------------------------

ODD = [
    *(-1, 0, 1, 2**63, -(2**63), 10**400, -0.5, 1e308, float("inf"), float("nan"), True, None),
    *("", "x", "../../etc", "a\nb", b"x", [], [None], [0], ["conv1"], {}, {"conv1": "x"}, {1: 2}),
    *({"kind": "plateau"}, object(), lambda: 0, {"epoch": 0}, [{"epoch": 0}], (1,) * 5),
]


def leaves(values, at=()):
    """The keys of all values, sections included."""
    for key, value in values.items():
        yield (*at, key)
        if isinstance(value, dict):
            yield from leaves(value, (*at, key))


@pytest.mark.parametrize("get", [alexnet.get_config, tiny.get_config, cifar10.get_config])
def test_any_value_of_any_key_is_accepted_or_refused_by_name(get):
    whole = config.as_dict(config.parse(get()))
    refused = 0
    for path in leaves(whole):
        for odd in ODD:
            values = copy.deepcopy(whole)
            section = values
            for name in path[:-1]:
                section = section[name]
            section[path[-1]] = odd
            try:
                config.as_dict(config.parse(values))
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) or odd == "a\nb"  # noqa: PT017
                # The key, or the section that it does not fit into.
                assert path[-1] in str(error) or ".".join(path[:-1]) in str(error)  # noqa: PT017
    assert refused > 1000


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch", 0), ("optim.momentum", 2.0), ("model.kernels", (1,)), ("data.crop", 999)],
)
def test_a_refused_config_leaves_nothing_on_the_disk(tmp_path, key, value):
    with pytest.raises(UserError):
        fit(make_config(tmp_path / "records", **{key.replace(".", "__"): value}), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_an_edited_copy_of_a_packaged_config_is_not_ignored(tmp_path, monkeypatch):
    """A config imports its base from the package, so a copy of the base beside it has no effect."""
    folder = tmp_path / "configs"
    shutil.copytree(Path(tiny.__file__).parent, folder, ignore=shutil.ignore_patterns("__*"))
    monkeypatch.chdir(tmp_path)
    assert config.parse(load_configs("configs/tiny.py")[0]) == config.parse(tiny.get_config())
    with (folder / "alexnet.py").open("a") as file:  # on which tiny.py's own base builds
        file.write("# edited\n")
    with pytest.raises(UserError, match=r"tiny\.py builds on the installed alexnet\.py, but"):
        load_configs("configs/tiny.py")
    load_configs("configs/alexnet.py")  # the edited file itself may be run
