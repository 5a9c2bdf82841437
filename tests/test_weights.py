"""Weights that went out and came in again, and the networks of others that they fit."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from alexnet_jax import load_config, weights
from alexnet_jax.data.info import DataInfo
from alexnet_jax.data.layout import Statistics
from alexnet_jax.evaluate import evaluate_together
from alexnet_jax.model.layouts import LAYOUTS, layers_that_fit
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.tensors import read_tensors
from alexnet_jax.train import fit
from alexnet_jax.training import trained
from alexnet_jax.training.setup import make_net_setup, make_network, make_setup
from alexnet_jax.training.state import load_layers
from tests.conftest import make_config

ROOT = Path(__file__).parents[1]
SHORT = {"steps": 2, "batch": 32, "evaluate__batch": 32, "evaluate__ten_views_at_end": False}
IMAGES = np.random.default_rng(0).normal(size=(4, 64, 64, 3)).astype(np.float32) * 50


@pytest.fixture(scope="module")
def network():
    return make_network(make_config())


@pytest.fixture(scope="module")
def params(network):
    return jax.device_get(network.init(3))


def test_shapes_of_the_layouts_at_full_size():
    """Those of the released networks: Caffe's bvlc_alexnet has these, with these groups."""
    from alexnet_jax import config
    from alexnet_jax.configs import alexnet

    whole = make_network(config.parse(alexnet.get_config()))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), whole.shapes)
    shapes = {k: v.shape for k, v in weights.to_layout(zeros, whole, "torch").items()}
    assert shapes["conv1.weight"] == (96, 3, 11, 11)
    assert shapes["conv2.weight"] == (256, 48, 5, 5)
    assert shapes["conv3.weight"] == (384, 256, 3, 3)
    assert shapes["conv4.weight"] == (384, 192, 3, 3)
    assert shapes["conv5.weight"] == (256, 192, 3, 3)
    assert shapes["fc6.weight"] == (4096, 9216)
    assert shapes["fc8.weight"] == (1000, 4096)
    assert shapes["fc8.bias"] == (1000,)


@pytest.mark.parametrize("layout", ["classic", "torch", "caffe"])
def test_a_round_trip_keeps_every_weight(network, params, layout):
    tensors = weights.to_layout(params, network, layout)
    back = weights.from_layout(tensors, network, layout)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize("layout", ["torch", "caffe"])
def test_pytorchs_modules_with_exported_weights_find_the_same_logits(network, params, layout):
    """Conv2d with groups, MaxPool2d, LRN by towers and Linear over the flattened maps."""
    torch = pytest.importorskip("torch")
    from torch import nn

    tensors = weights.to_layout(params, network, layout)
    c = make_config().model
    names = LAYOUTS[layout]

    def load(module, layer):
        module.weight.data = torch.tensor(tensors[f"{layer}.{names.kernel}"])
        module.bias.data = torch.tensor(tensors[f"{layer}.{names.bias}"])
        return module

    def conv(layer, **how):
        out, seen, window, _ = tensors[f"{layer}.{names.kernel}"].shape
        module = nn.Conv2d(seen * how.get("groups", 1), out, window, **how)
        return load(module, layer)

    class ByTowers(nn.Module):
        def forward(self, x):
            r = c.lrn
            norm = nn.LocalResponseNorm(r.size, r.alpha * r.size, r.beta, r.k)
            return torch.cat([norm(tower) for tower in x.chunk(2, dim=1)], dim=1)

    class WithinMaps(nn.Module):
        def forward(self, x):
            r = c.within_map
            total = nn.functional.avg_pool2d(x**2, r.size, 1, r.size // 2) * r.size**2
            return x / (r.k + r.alpha * total) ** r.beta

    def dense(layer):
        out, seen = tensors[f"{layer}.{names.kernel}"].shape
        return load(nn.Linear(seen, out), layer)

    pool = nn.MaxPool2d(3, 2)
    theirs = nn.Sequential(
        *(nn.ZeroPad2d((0, 3, 0, 3)), conv("conv1", stride=4), ByTowers(), nn.ReLU(), pool),
        *(conv("conv2", padding=2, groups=2), nn.ReLU(), ByTowers(), WithinMaps(), pool),
        *(conv("conv3", padding=1), nn.ReLU()),
        *(conv("conv4", padding=1, groups=2), nn.ReLU()),
        *(conv("conv5", padding=1, groups=2), nn.ReLU(), pool, nn.Flatten()),
        *(
            dense("fc6"),
            nn.ReLU(),
            nn.Dropout(),
            dense("fc7"),
            nn.ReLU(),
            nn.Dropout(),
            dense("fc8"),
        ),
    )
    ours = jax.jit(lambda p, x: network.bind(p)(x))(params, IMAGES)
    seen = IMAGES[..., ::-1] if layout == "caffe" else IMAGES  # Caffe reads BGR
    with torch.no_grad():
        logits = theirs.eval()(torch.tensor(np.ascontiguousarray(seen)).permute(0, 3, 1, 2))
    np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-5)


def test_a_file_becomes_a_workdir_with_the_same_scores(records, tmp_path):
    c = make_config(records, **SHORT)
    fit(c, tmp_path / "run")
    file = tmp_path / "weights.safetensors"
    weights.export_weights(tmp_path / "run", file, "torch", "newest")
    weights.import_weights(c, tmp_path / "copy", file, "torch")
    nets = [trained.open_trained(tmp_path / name) for name in ("run", "copy")]
    assert [net.step for net in nets] == [2, 0]
    same = [evaluate_together([net], views=1, search=False).scores for net in nets]
    assert same[0] == same[1]

    with pytest.raises(UserError, match="holds a run already; give another --workdir"):
        weights.import_weights(c, tmp_path / "copy", file, "torch")
    with pytest.raises(UserError, match="is there already"):
        weights.export_weights(tmp_path / "run", file, "torch", "newest")
    with pytest.raises(UserError, match=r"'conv1.0' is missing; --layout=caffe has conv1.0, conv1"):
        weights.import_weights(c, tmp_path / "other", file, "caffe")
    assert not (tmp_path / "other").exists()


def test_an_import_that_was_cut_off_can_be_done_again(records, tmp_path):
    c = make_config(records, **SHORT)
    network = make_network(c)
    file = tmp_path / "weights.safetensors"
    tensors = weights.to_layout(jax.device_get(network.init(7)), network, "classic")
    safetensors.numpy.save_file(tensors, file)
    workdir.claim(tmp_path / "run", c)  # and then no checkpoint
    weights.import_weights(c, tmp_path / "run", file, "classic")
    kept = trained.open_trained(tmp_path / "run").params["conv2"]["kernel"]
    np.testing.assert_array_equal(kept, tensors["conv2.kernel"])


@pytest.fixture
def plain(network, params, tmp_path):
    """Writes a file in the layout torch, with kernels as in the paper: so 0.1.0 wrote them."""
    tensors = weights.to_layout(params, network, "torch")
    for layer in ("fc7", "fc8"):
        tensors[f"{layer}.weight"] = np.ascontiguousarray(np.transpose(params[layer]["kernel"]))

    def write(about):
        safetensors.numpy.save_file(tensors, tmp_path / "plain.safetensors", about)
        return tmp_path / "plain.safetensors"

    return write


@pytest.mark.parametrize(
    ("about", "times"),
    [
        ({"layout": "torch", "step": "2", "format": "np"}, 1),  # of version 0.1.0
        ({"layout": "torch", "dropout": "scaled in testing"}, 1),
        ({"layout": "torch", "dropout": "scaled in training"}, 2),
        ({"dropout": "scaled in training"}, 2),  # of a PyTorch program
    ],
)
def test_a_file_says_when_dropout_is_scaled(records, params, plain, about, times):
    file, c = plain(about), make_config(records, **SHORT)
    weights.import_weights(c, file.parent / "run", file, "torch")
    kept = trained.open_trained(file.parent / "run").params
    for layer, own in params.items():
        scale = times if layer in ("fc7", "fc8") else 1
        np.testing.assert_array_equal(kept[layer]["kernel"], scale * own["kernel"])
        np.testing.assert_array_equal(kept[layer]["bias"], own["bias"])
    started = load_layers(make_setup(dataclasses.replace(c, init_from=str(file))))
    jax.tree.map(np.testing.assert_array_equal, started, kept)


@pytest.mark.parametrize("about", [None, {"format": "pt"}, {"dropout": "inverted"}])
def test_a_file_that_does_not_say_when_dropout_is_scaled_is_refused(records, network, plain, about):
    file, c = plain(about), make_config(records, **SHORT)
    said = r"plain\.safetensors.* does not say when dropout is scaled.*dropout='scaled in training'"
    with pytest.raises(UserError, match=said):
        weights.import_weights(c, file.parent / "run", file, "torch")
    assert not (file.parent / "run").exists()
    with pytest.raises(UserError, match=said):
        load_layers(make_setup(dataclasses.replace(c, init_from=str(file))))
    # It does not matter where no layer comes after dropout.
    tensors = read_tensors(file)[0]
    some = {name: tensors[name] for name in tensors if name[:3] not in ("fc7", "fc8")}
    assert len(layers_that_fit(some, {}, network)) == 6


def test_an_exported_file_says_when_dropout_is_scaled(records, tmp_path):
    fit(make_config(records, **SHORT), tmp_path / "run")
    for layout, when in (("classic", "testing"), ("torch", "training"), ("caffe", "training")):
        file = tmp_path / f"{layout}.safetensors"
        weights.export_weights(tmp_path / "run", file, layout, "newest")
        assert read_tensors(file)[1]["dropout"] == f"scaled in {when}"


def arrangement(name):
    """A narrow net of ten classes with LRN that matters."""
    c = load_config(name)
    lrn = dataclasses.replace(c.model.lrn, alpha=0.01)
    ten = {"width": 0.125, "classes": 10, "std": dict.fromkeys(c.model.std, 0.05), "lrn": lrn}
    return dataclasses.replace(c, devices=1, model=dataclasses.replace(c.model, **ten))


@pytest.mark.parametrize(
    "name", ["alexnet", "alexnet_2012", "bvlc_alexnet", "caffenet", "torchvision"]
)
def test_the_client_in_docs_finds_our_logits_from_the_file_alone(name, tmp_path, monkeypatch):
    """Trained layers are simulated: random, with biases and a mean image that are not constant."""
    torch = pytest.importorskip("torch")
    code = (
        (ROOT / "docs" / "weights.md").read_text().partition("```python\n")[2].partition("```")[0]
    )
    assert code.count("\n") <= 60
    program: dict = {}
    exec(code, program)
    rng, c = np.random.default_rng(0), arrangement(name)
    mean = rng.uniform(90, 140, (256, 256, 3)).astype(np.float32)
    info = DataInfo(
        "hash", "folder:here", tuple("abcdefghij"), Statistics(mean, np.ones(3), np.eye(3))
    )
    setup = make_net_setup(c, info)
    params = jax.tree.map(
        lambda one: one + rng.normal(0, 0.02, one.shape).astype(np.float32), setup.network.init(0)
    )
    net = trained.Net(tmp_path, 0, setup, params)
    monkeypatch.setattr(trained, "load", lambda *_, **__: net)
    weights.export_weights(tmp_path, tmp_path / "mine.safetensors", "torch", "newest")
    theirs = program["AlexNet"](tmp_path / "mine.safetensors").eval()
    assert theirs.classes == list("abcdefghij")
    images = rng.integers(0, 256, (2, 256, 256, 3), np.uint8)
    with torch.no_grad():
        found = theirs(torch.tensor(images.transpose(0, 3, 1, 2)).float()).numpy()
    wanted = net.logits(images)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_a_damaged_file_is_one_line(records, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"\x80\x04pickle")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        weights.import_weights(make_config(records, **SHORT), tmp_path / "run", file, "classic")


def test_a_wrong_shape_names_the_tensor(network, params):
    tensors = weights.to_layout(params, network, "torch")
    tensors["conv2.weight"] = tensors["conv2.weight"][:, :1]
    with pytest.raises(UserError, match=r"'conv2.weight' is \[32, 1, 5, 5\], .* has \[32, 6"):
        weights.from_layout(tensors, network, "torch")


def test_a_tensor_of_no_layer_is_named(network, params):
    tensors = weights.to_layout(params, network, "classic") | {"fc9.bias": np.zeros(3)}
    with pytest.raises(UserError, match=r"'fc9.bias' is of no layer"):
        weights.from_layout(tensors, network, "classic")


def test_what_a_layout_cannot_hold_is_refused():
    apart = make_network(make_config(model__cross=["conv3"]))
    with pytest.raises(UserError, match=r"fc6 and fc7 must be in config\.model\.cross"):
        weights.to_layout(jax.device_get(apart.init(0)), apart, "torch")
