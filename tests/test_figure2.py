"""Fig. 2 as the package draws it: the paper's numbers, the bytes that cross, the drawing."""

import dataclasses
from itertools import combinations

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from alexnet_jax import config, load_config
from alexnet_jax.benchmark.exchanges import exchanges
from alexnet_jax.configs import ablations, alexnet, cifar10, tiny
from alexnet_jax.figures.figure2 import draw_figure2, layers_of
from alexnet_jax.model.describe import format_lrn, layer_table, lrn_bytes
from alexnet_jax.model.towers import DATA
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.setup import make_network

pytest.importorskip("matplotlib")


def parse(values: ConfigDict, **changes: object) -> config.Config:
    values.update(changes)
    return config.parse(values)


def sent(c: config.Config) -> dict[str, int]:
    return {layer.name: layer.sent for layer in layers_of(c) if layer.sent}


def test_one_tower_has_the_numbers_of_the_papers_figure():
    layers = layers_of(parse(alexnet.get_config()))
    outputs = {layer.name: layer.output for layer in layers}
    assert outputs == {
        "conv1": (55, 55, 48),
        "conv2": (27, 27, 128),
        "conv3": (13, 13, 192),
        "conv4": (13, 13, 192),
        "conv5": (13, 13, 128),
        "fc6": (2048,),
        "fc7": (2048,),
        "fc8": (1000,),
    }
    windows = [layer.kernel for layer in layers if len(layer.kernel) == 3]
    assert windows == [(11, 11, 3), (5, 5, 48), (3, 3, 256), (3, 3, 192), (3, 3, 192)]
    pooled = {layer.name: layer.pooled for layer in layers if layer.pooled}
    assert pooled == {"conv2": 27, "conv3": 13, "fc6": 6}
    assert [layer.name for layer in layers if layer.meets] == ["conv3", "fc6", "fc7", "fc8"]


def traced(c: config.Config) -> list[int]:
    """What a device sends in the traced forward pass, in order."""
    network = make_network(c)
    data, side = network.spec(DATA), c.data.crop
    forward = network.shard_map(lambda p, x: network.bind(p)(x), (network.specs, data), data)
    images = jax.ShapeDtypeStruct((c.batch, side, side, 3), jnp.float32)
    program = jax.make_jaxpr(forward)(network.shapes, images)
    return [one.sent for one in exchanges(program, network.mesh.shape)]


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        (alexnet.get_config(), {}),
        (alexnet.get_config(), {"devices": 4}),
        (alexnet.get_config(), {"dtype": "bfloat16"}),
        (alexnet.get_config(), {"devices": 1}),
        (alexnet.get_config(), {"towers_apart": False}),
        (ablations.get_config("half_net"), {}),
        (ablations.get_config("no_crossing"), {}),
        (ablations.get_config("sixth_conv"), {}),
        (ablations.get_config("run_146"), {}),
        (ablations.get_config("run_147"), {}),
        (ablations.get_config("without_conv3"), {}),
        (tiny.get_config(), {}),
    ],
)
def test_the_bytes_are_those_of_the_traced_forward_pass(values, changes):
    c = parse(values, **changes)
    assert list(sent(c).values()) == traced(c)


@pytest.mark.parametrize("name", ["bvlc_alexnet", "caffenet"])
@pytest.mark.parametrize("values", [{"devices": 2}, {"devices": 4, "dtype": "bfloat16"}, {}])
def test_lrn_over_both_towers_sends_what_is_counted(name, values):
    """No more than the maps at the edge: Fig. 2's bytes and LRN's are all that is traced."""
    c = dataclasses.replace(load_config(name), **values)
    rows = layer_table(make_network(c), c)
    lrn = lrn_bytes(rows, c)
    assert sum(traced(c)) == sum(sent(c).values()) + sum(lrn.values())
    assert (list(lrn) == ["conv1", "conv2"]) == (c.devices > 1)
    if (name, values) == ("bvlc_alexnet", {"devices": 2}):
        assert lrn == {"conv1": 2 * 55**2 * 128 * 4, "conv2": 2 * 27**2 * 128 * 4}
        said = "cross, 12.4 MB after conv1, 3.0 MB after conv2 in a step of 128 images"
        assert format_lrn(rows, c).endswith(said)


def test_lrn_over_both_towers_is_in_the_figure():
    c = dataclasses.replace(load_config("bvlc_alexnet"), devices=2)
    texts = [text.get_text() for text in draw_figure2(c).axes[0].texts]
    assert any(text.endswith("MB in all, 3.84 MB for LRN") for text in texts), texts[-1]


def test_the_bytes_are_those_in_docs():
    """docs/performance.md, "What crosses between two devices"."""
    counted = {"conv3": 11_075_584, "fc6": 2_359_296, "fc7": 1_048_576, "fc8": 512_000}
    assert sent(parse(alexnet.get_config())) == counted


def test_the_ablations_differ_as_their_names_say():
    half = layers_of(parse(ablations.get_config("half_net")))
    assert [layer.output[-1] for layer in half[:5]] == [48, 128, 192, 192, 256]
    assert not any(layer.meets for layer in half)
    apart = layers_of(parse(ablations.get_config("no_crossing")))
    assert [layer.name for layer in apart if layer.meets] == ["fc8"]
    sixth = {layer.name: layer for layer in layers_of(parse(ablations.get_config("sixth_conv")))}
    assert sixth["conv6"].output == (6, 6, 128)
    assert (sixth["conv6"].pooled, sixth["fc6"].pooled) == (6, 0)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("half_net", {"256 kernels", "one tower on one device"}),
        ("no_crossing", {"0.512 MB", "tower B: device 1"}),
        ("sixth_conv", {"conv6", "11.1 MB", "2.36 MB", "1.05 MB", "0.512 MB"}),
    ],
)
def test_every_word_can_be_read(name, shown):
    """The words are there, inside the figure, and none lies over another."""
    figure = draw_figure2(parse(ablations.get_config(name)))
    figure.canvas.draw()
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    lines = {line for text in texts for line in text.get_text().splitlines()}
    assert shown <= lines
    boxes = {text: text.get_window_extent() for text in texts}
    for text, box in boxes.items():
        assert figure.bbox.containsx(box.x0), text
        assert figure.bbox.containsx(box.x1), text
        assert figure.bbox.containsy(box.y0), text
        assert figure.bbox.containsy(box.y1), text
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        assert not a.overlaps(b), f"{one} and {other}"


def test_another_network_is_refused():
    with pytest.raises(UserError, match=r"figure2 draws the network of Fig\. 2"):
        layers_of(parse(cifar10.get_config("18")))
