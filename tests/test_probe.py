"""The linear probe: the same regression by least squares, and the real network of BVLC."""

import dataclasses
import tarfile

import jax.numpy as jnp
import numpy as np
import pytest

import alexnet_jax
from alexnet_jax import UserError
from alexnet_jax.data.records import open_records
from alexnet_jax.figures.towers import colourfulness
from alexnet_jax.prepare import prepare
from alexnet_jax.probe import main, pixels, probe, ridge
from alexnet_jax.runtime import host
from tests.conftest import SHARED, make_config
from tests.networks import new_net


@pytest.fixture
def run(monkeypatch, capsys):
    """The command, in this process; it gives what was printed."""
    monkeypatch.setattr(host, "configure_jax", lambda devices: None)

    def call(*arguments):
        main(arguments)
        return capsys.readouterr().out

    return call


def least_squares(known, labels, asked, classes, penalty):
    """Ridge regression as plain least squares: a row for each weight asks it to be 0."""
    mean, deviation = known.mean(0), (known - known.mean(0)).std()
    a, b = (known - mean) / deviation, (asked - mean) / deviation
    targets = np.eye(classes)[labels]
    rows = np.sqrt(penalty * a.shape[1]) * np.eye(a.shape[1])
    high = np.concatenate([a, rows])
    low = np.concatenate([targets - targets.mean(0), np.zeros((a.shape[1], classes))])
    return b @ np.linalg.lstsq(high, low)[0] + targets.mean(0)


@pytest.mark.parametrize(("images", "features"), [(12, 30), (40, 7)])
def test_the_regression_is_least_squares_with_a_penalty(images, features):
    rng = np.random.default_rng(0)
    known, asked = rng.normal(3, 2, (images, features)), rng.normal(3, 2, (5, features))
    labels = rng.integers(0, 4, images)
    found = ridge(known.astype(np.float32), labels, asked.astype(np.float32), 4, 0.1)
    np.testing.assert_allclose(found, least_squares(known, labels, asked, 4, 0.1), atol=1e-5)


def all_of(split):
    images = np.empty((len(split), split.size, split.size, 3), np.uint8)
    for index, out in enumerate(images):
        split.read(index, out)
    return images


@pytest.mark.parametrize("layer", ["pool5", "fc7"])
def test_the_command_says_what_least_squares_finds(records, tmp_path, run, layer):
    net = new_net(make_config(records))
    net.save_pretrained(tmp_path / "net")
    said = run(f"--model={tmp_path / 'net'}", f"--records={records}", f"--layer={layer}")
    splits = [open_records(records).split(name) for name in ("train", "validation")]
    known, asked = (net.features(all_of(split), layer).reshape(len(split), -1) for split in splits)
    scores = least_squares(known, splits[0].labels, asked, 10, 1.0)
    wrong = int(np.sum(scores.argmax(1) != splits[1].labels))
    assert 0 < wrong < 55  # of 64; a guess has 58
    deviation = np.std(scores.argmax(1) != splits[1].labels) / 8
    assert f"validation: error {wrong / 64:.1%}, standard error {deviation:.1%} ({wrong}" in said
    assert "256 to train, lambda 1)" in said


def test_pixels_need_no_model(records, run):
    said = run("--layer=pixels", f"--records={records}", "--split=train", "--lambda=1e-9")
    assert "train: error 0.0%" in said  # 3,072 numbers tell 256 images apart
    grey = np.full((1, 72, 72, 3), 7, np.uint8)
    assert pixels(grey).shape == (1, 32, 32, 3)
    assert (pixels(grey) == 7).all()


def test_a_wrong_split_or_layer_is_one_line(records, tmp_path, run, capsys):
    with pytest.raises(UserError, match="no split 'test', only train, validation; set --split to"):
        probe(pixels, open_records(records), split="test", penalty=1)
    new_net(make_config(records)).save_pretrained(tmp_path / "net")
    with pytest.raises(SystemExit):
        run(f"--model={tmp_path / 'net'}", f"--records={records}", "--layer=pool4")
    assert capsys.readouterr().err.startswith("error: no layer pool4; there are conv1, conv2")


@pytest.mark.long
def test_features_of_bvlcs_real_network_and_with_its_towers_swapped(tmp_path):
    """40 and 12 photos of each of 10 classes; 20.0% and 41.7% were measured, a guess has 90%."""
    weights, photos = SHARED / "bvlc_alexnet_conv.safetensors", SHARED / "clothing10.tar"
    if not (weights.exists() and photos.exists()):
        pytest.skip("no real weights and photos")
    counts = {"train": 40, "validation": 12}
    with tarfile.open(photos) as tar:
        members = sorted((m for m in tar if m.isfile()), key=lambda m: m.name)
        taken: dict[str, list[tarfile.TarInfo]] = {}
        for member in members:
            folder, _, _ = member.name.rpartition("/")
            _, split, *_ = member.name.split("/")
            if counts.get(split, 0) > len(taken.setdefault(folder, [])):
                taken[folder].append(member)
        tar.extractall(tmp_path, [m for some in taken.values() for m in some], filter="data")
    prepare(f"folder:{tmp_path / 'clothing10'}", tmp_path / "records", size=256, resize="squeeze")
    records = open_records(tmp_path / "records")

    layers = [f"conv{number}" for number in range(1, 6)]
    net = alexnet_jax.load_weights(weights, "bvlc_alexnet", layers=layers)
    share = colourfulness(np.asarray(net.params["conv1"]["kernel"]))
    np.testing.assert_allclose(share.reshape(2, 48).mean(1), [0.80, 0.21], atol=0.01)  # Fig. 3
    conv1 = {name: jnp.roll(part, 48, axis=-1) for name, part in net.params["conv1"].items()}
    swapped = dataclasses.replace(net, params=net.params | {"conv1": conv1})
    found = [
        probe(
            lambda images, n=n: n.features(images, "pool5"),
            records,
            split="validation",
            penalty=0.1,
        ).error
        for n in (net, swapped)
    ]
    assert found[0] < 0.25
    assert found[1] > 1.5 * found[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lambda=nan"], "--lambda=nan must be a finite number"),
        (["--layer=pixels", "--model=tiny"], "--layer=pixels needs no network: leave out --model"),
        (["--layer=pixels", "--step=best"], "--layer=pixels needs no network: leave out --model"),
    ],
)
def test_an_option_that_makes_no_sense_is_one_line(records, options, said, capsys):
    with pytest.raises(SystemExit):
        main([f"--records={records}", *options])
    assert said in capsys.readouterr().err
