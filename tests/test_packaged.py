"""The networks in the package: their cards, their size, and that they do what the cards say."""

import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

import alexnet_jax
from alexnet_jax import UserError, predict
from alexnet_jax.data.records import open_records
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import host
from alexnet_jax.training.pretrained import packaged
from tests.conftest import PHOTOS, SHARED

NAMES = list(packaged())
CIFAR = SHARED / "cifar10_jpeg.tar.gz"


def test_they_are_small_and_have_four_files_each():
    files = [file for folder in packaged().values() for file in folder.rglob("*")]
    assert sum(file.stat().st_size for file in files) < 2e6
    assert {file.name for file in files} == {
        "README.md",
        "config.json",
        "data.safetensors",
        "model.safetensors",
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_how_it_was_made_and_how_good_it_is(name):
    net, card = alexnet_jax.from_pretrained(name), (packaged()[name] / "README.md").read_text()
    assert f'from_pretrained("{name}")' in card
    assert f"error on the {re.search(r'[0-9,]+ (validation|test)', card)[0]}" in card
    assert f"{net.error:.2%}" in card
    assert f"Seed {net.config.seed}, {net.step:,} steps" in card
    assert f"{sum(leaf.size for of in net.params.values() for leaf in of.values()):,} " in card
    assert "python -m alexnet_jax.main --config=" in card
    assert "\nlicense: " in card


def test_tiny_knows_images_that_it_has_not_seen(tmp_path):
    prepare("generated:10", tmp_path, size=72, format="raw")
    net, split = alexnet_jax.load("tiny"), open_records(tmp_path).split("validation")
    images = np.empty((100, 72, 72, 3), np.uint8)
    for index, image in enumerate(images):
        split.read(index, image)
    wrong = net.probs(images, views=1).argmax(1) != split.labels[:100]
    assert wrong.mean() < 0.05


@pytest.mark.skipif(not CIFAR.exists(), reason=f"needs {CIFAR}")
def test_cifar10_18_knows_photos_of_the_test_split():
    """Every tenth of the 10,000. The card's error is that of all, 19.55%; two errors are 2.5%."""
    net, images, labels = alexnet_jax.from_pretrained("cifar10_18"), [], []
    with tarfile.open(CIFAR) as tar:
        for member in tar:
            if re.search(r"/test/.*/\d+0\.jpg$", member.name):
                images.append(simplejpeg.decode_jpeg(tar.extractfile(member).read(), "RGB"))
                labels.append(net.classes.index(Path(member.name).parent.name))
    wrong = net.probs(np.stack(images), views=1).argmax(1) != np.array(labels)
    assert len(wrong) == 1000
    assert abs(wrong.mean() - net.error) < 0.025


def test_predict_takes_a_name_and_a_folder_of_that_name_comes_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(host, "configure_jax", lambda devices: None)
    monkeypatch.chdir(tmp_path)
    photo = str(sorted(PHOTOS.glob("*.jpg"))[0])
    predict.main(["--model=tiny", photo])
    assert re.search(r"(warm|cool) \w+ [\d.]+%", capsys.readouterr().out)
    shutil.copytree(packaged()["tiny"], "other")
    (tmp_path / "tiny").mkdir()
    with pytest.raises(UserError, match="tiny holds no model"):
        alexnet_jax.from_pretrained("tiny")
    assert str(alexnet_jax.from_pretrained("other").folder) == "other"


@pytest.mark.parametrize("open_", [alexnet_jax.load, alexnet_jax.from_pretrained])
def test_an_unknown_name_is_one_line_with_those_there_are(open_):
    with pytest.raises(
        UserError, match=r"no folder large, .*cifar10_18, tiny.*hf://OWNER/NAME"
    ) as e:
        open_("large")
    assert len(str(e.value).splitlines()) == 1


def test_a_step_that_is_not_there_is_refused():
    step = alexnet_jax.load("tiny").step
    assert alexnet_jax.load("tiny", step=step).step == step
    for other in (5, "best"):
        with pytest.raises(UserError, match=rf"^tiny has step {step} alone, not {other}$"):
            alexnet_jax.load("tiny", step=other)
