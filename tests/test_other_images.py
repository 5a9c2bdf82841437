"""--mode=evaluate --on: images that a network was not trained with, as records and as folders."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from alexnet_jax import main as command
from alexnet_jax.data.sources import generated
from alexnet_jax.data.unprepared import labelled_folder
from alexnet_jax.evaluate import evaluate
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import corruptions, trained
from alexnet_jax.training.setup import make_setup
from tests.conftest import make_config


@pytest.fixture(scope="module")
def net(records):
    """With initial weights."""
    setup = make_setup(make_config(records, devices=1))
    return trained.Net(Path("run"), 0, setup, setup.network.init(0))


@pytest.fixture
def score(net, monkeypatch):
    """`evaluate` with that network."""
    monkeypatch.setattr(trained, "open_run", lambda *_: net)
    monkeypatch.setattr(trained, "open_without_records", lambda *_: net)
    return lambda on: evaluate(net.setup.config, net.folder, "newest", on)


def write_images(net, root: Path, names, count: int = 20, side: int | None = None) -> Path:
    """Validation images as root/CLASS/NUMBER.png; `side`: only their middle."""
    split = net.setup.validation
    edge = (split.size - (side or split.size)) // 2
    image = np.empty((split.size, split.size, 3), np.uint8)
    for index in range(count):
        split.read(index, image)
        file = root / names[split.labels[index]] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        middle = image[edge : split.size - edge, edge : split.size - edge]
        cv2.imwrite(str(file), middle[..., ::-1])
    return root


def classes_of(net) -> tuple[str, ...]:
    return net.setup.records.manifest.classes


def lines(score, on: Path | None, capsys) -> list[str]:
    capsys.readouterr()
    score(on)
    said = capsys.readouterr().out.splitlines()
    return [line.split(":", 1)[1] for line in said if line.startswith("step ")]


def test_other_records_of_the_same_images_score_the_same(score, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generated, "VALIDATION", 64)  # as in the fixture `records`
    prepare("generated:256", tmp_path / "same", size=72, format="raw")
    assert lines(score, tmp_path / "same", capsys) == lines(score, None, capsys)


@pytest.mark.parametrize("numbered", [False, True])
def test_a_folder_scores_as_records_do(net, score, tmp_path, capsys, numbered):
    """Minus the mean of the training; also where numbers are the names, as in ImageNet-V2."""
    classes = classes_of(net)
    names = [str(n) for n in range(len(classes))] if numbered else classes
    count = 50
    root = write_images(net, tmp_path / "images", names, count)
    split = labelled_folder(root, classes, 72)
    ours = net.setup.evaluator.log_probs(net.params, split, views=10, what="")
    theirs = net.setup.evaluator.log_probs(net.params, net.setup.validation, views=10, what="")
    order = [int(Path(split.source.name(index)).stem) for index in range(count)]
    np.testing.assert_allclose(ours, theirs[order], rtol=1e-4)
    np.testing.assert_array_equal(split.labels, net.setup.validation.labels[order])
    found = lines(score, root, capsys)
    assert len(found) == 2
    assert all(f"({count} images)" in line for line in found)


def test_numbers_as_names_are_no_order_of_the_alphabet(tmp_path):
    for name in ("2", "10", "0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_text("")
    split = labelled_folder(tmp_path, [f"class {n}" for n in range(11)], 72)
    assert split.labels.tolist() == [0, 10, 2]  # of the folders 0, 10, 2
    with pytest.raises(UserError, match="0 is none of the network's 10 classes"):
        labelled_folder(tmp_path, [f"class {n}" for n in range(10)], 72)


def test_other_classes_or_sizes_are_refused(score, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "cats" / split / "cat").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "cats" / split / "cat" / "0.png"), np.zeros((9, 9, 3), np.uint8))
    prepare(f"folder:{tmp_path / 'cats'}", tmp_path / "records", size=72, format="raw")
    with pytest.raises(UserError, match="has other classes than the records of"):
        score(tmp_path / "records")
    with pytest.raises(UserError, match="val/cat is none of the network's 10 classes"):
        score(tmp_path / "cats" / "val")
    prepare("generated:64", tmp_path / "small", size=64, format="raw")
    with pytest.raises(UserError, match="has images of 64 pixels, not 72; prepare again"):
        score(tmp_path / "small")
    with pytest.raises(UserError, match="there is no such folder"):
        score(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no images; it must hold CLASS/IMAGE"):
        score(tmp_path / "empty")


def test_training_on_other_images_is_not_what_on_means(capsys):
    with pytest.raises(SystemExit):
        command.main(["--config=configs/tiny.py", "--workdir=none", "--on=images"])
    assert "--on: only --mode=evaluate scores other images" in capsys.readouterr().err


# --- ImageNet-C ---------------------------------------------------------------------------------


def test_mce_of_twice_the_errors_of_its_alexnet_is_2():
    errors = {
        name: [2 * e - 0.2, 2 * e, 2 * e, 2 * e, 2 * e + 0.2]
        for name, e in corruptions.BASELINE.items()
    }
    np.testing.assert_allclose(corruptions.mean_corruption_error(errors), 2)
    errors["fog"] = [0.0] * 5
    np.testing.assert_allclose(corruptions.mean_corruption_error(errors), 2 * 14 / 15)


def test_images_of_the_crops_size_are_seen_whole(net, tmp_path):
    classes = classes_of(net)
    root = write_images(net, tmp_path, classes, 20, side=64)
    split = labelled_folder(root, classes, 72, 64)
    order = [int(Path(split.source.name(index)).stem) for index in range(20)]
    ours = net.setup.evaluator.log_probs(net.params, split, views=1, what="")
    theirs = net.setup.evaluator.log_probs(net.params, net.setup.validation, views=1, what="")
    np.testing.assert_allclose(ours, theirs[order], rtol=1e-4)


@pytest.mark.slow
def test_its_15_x_5_folders_are_scored_without_scaling(net, score, tmp_path, capsys):
    """All are the same images here, so each error is that of these images' centre crops."""
    classes = classes_of(net)
    images = write_images(net, tmp_path / "images", classes, 20, side=64)
    root = tmp_path / "imagenet-c"
    for number, name in enumerate(corruptions.BASELINE):
        group = root / f"group{number % 4}" / name
        group.mkdir(parents=True)
        for severity in corruptions.SEVERITIES:
            (group / severity).symlink_to(images)
    errors = corruptions.score(net, root, lambda: None)
    log = net.setup.evaluator.log_probs(net.params, net.setup.validation, views=1, what="")[:20]
    wrong = np.mean(log.argmax(1) != net.setup.validation.labels[:20])
    assert errors == {name: [wrong] * 5 for name in corruptions.BASELINE}
    score(root)
    said = capsys.readouterr().out
    want = 100 * np.mean([wrong / e for e in corruptions.BASELINE.values()])
    assert f"mCE {want:.1f}%: the mean over the corruptions of CE" in said
    assert "which has 1000 classes; this network has 10" in said
    (root / "group0" / "gaussian_noise" / "3").unlink()
    with pytest.raises(UserError, match="has no folder gaussian_noise/3; mCE needs all 15 x 5"):
        corruptions.folders_of(root)
