"""predict: labels as in the scores of the split; a line for each file that is no image."""

import json

import cv2
import numpy as np
import pytest

from alexnet_jax import predict
from alexnet_jax.figures.figure4 import best_guesses, draw_guesses
from alexnet_jax.train import fit
from alexnet_jax.training import trained
from tests.conftest import make_config


@pytest.fixture(autouse=True)
def devices_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(predict.host, "configure_jax", lambda devices: None)


@pytest.fixture(scope="module")
def net(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict") / "run"
    short = {"steps": 6, "batch": 32, "evaluate__batch": 32}
    fit(make_config(records, evaluate__ten_views_at_end=False, **short), folder)
    return trained.open_trained(folder)


@pytest.fixture(scope="module")
def files(net, tmp_path_factory):
    """The first 20 validation images as PNG files."""
    folder, split = tmp_path_factory.mktemp("images"), net.setup.validation
    image, paths = np.empty((split.size, split.size, 3), np.uint8), []
    for index in range(20):
        split.read(index, image)
        paths.append(folder / f"{index}.png")
        cv2.imwrite(str(paths[-1]), image[..., ::-1])
    return paths


@pytest.mark.parametrize("views", [1, 10])
def test_labels_are_those_that_the_scores_of_the_split_use(net, files, views):
    found, unread = predict.predict(net, files, views=views)
    log = net.setup.evaluator.log_probs(net.params, net.setup.validation, views=views, what="all")
    classes = net.setup.records.manifest.classes
    assert not unread
    assert [file for file, _ in found] == files
    for (_, guess), row in zip(found, np.exp(log), strict=False):
        best = np.sort(row)[::-1][:5]
        np.testing.assert_allclose(guess.probs, best, rtol=1e-4)
        np.testing.assert_allclose(row[classes.index(guess.labels[0])], best[0], rtol=1e-4)


def test_an_unreadable_file_does_not_disturb_those_after_it(net, files, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "AT_ONCE", 3)
    found, unread = predict.predict(net, [files[0], tmp_path / "none.png", *files[1:]])
    alone, _ = predict.predict(net, files)
    assert len(unread) == 1
    assert [file for file, _ in found] == files
    for (_, one), (_, other) in zip(found, alone, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_allclose(one.probs, other.probs, rtol=1e-4)


def test_files_that_are_no_images_are_named_and_the_others_labelled(net, files, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    given = [files[0], tmp_path / "text.png", tmp_path / "none.png", files[1]]
    with pytest.raises(SystemExit) as end:
        predict.main([f"--workdir={net.folder}", *map(str, given)])
    said = capsys.readouterr()
    assert end.value.code == 2
    assert [line.split(":")[0] for line in said.out.splitlines()] == [str(f) for f in files[:2]]
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert errors == [
        f"error: {tmp_path}/text.png is not an image (JPEG, PNG, ...)",
        f"error: {tmp_path}/none.png cannot be read: No such file or directory",
    ]


def test_the_command_writes_json_and_draws(net, files, tmp_path):
    written, drawn = tmp_path / "labels.json", tmp_path / "labels.png"
    line = [f"--workdir={net.folder}", "--views=1", f"--json={written}", f"--out={drawn}"]
    predict.main([*line, *map(str, files[:3])])
    values = json.loads(written.read_text())
    assert [value["image"] for value in values] == [str(file) for file in files[:3]]
    for value in values:
        probs = list(value["labels"].values())
        assert len(probs) == 5
        assert probs == sorted(probs, reverse=True)
    assert cv2.imread(str(drawn)).std() > 5


@pytest.mark.parametrize("option", ["--out=none/a.png", "--out=a.xyz", "--json=none/a.json"])
def test_an_output_that_cannot_be_written_is_refused_first(tmp_path, capsys, option):
    with pytest.raises(SystemExit):
        predict.main([f"--workdir={tmp_path / 'no-run'}", "no-image.jpg", option])
    error = capsys.readouterr().err
    assert error.startswith(f"error: {option}")
    assert len(error.splitlines()) == 1


def test_bars_are_sorted_and_the_right_label_has_another_colour():
    image, classes = np.zeros((4, 4, 3), np.uint8), ("cat", "dog", "owl")
    (guess,) = best_guesses(image[None], np.float32([[0.2, 0.7, 0.1]]), classes, ["cat"])
    assert guess.labels == ("dog", "cat", "owl")
    figure = draw_guesses([guess])
    bars = figure.axes[1].patches
    np.testing.assert_allclose([bar.get_width() for bar in bars], [0.7, 0.2, 0.1], rtol=1e-6)
    colours = [bar.get_facecolor() for bar in bars]
    assert colours[0] == colours[2] != colours[1]
