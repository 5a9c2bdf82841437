"""Averages of several networks, the search for their weights, and networks that do not match."""

import json
from pathlib import Path

import numpy as np
import pytest

from alexnet_jax import evaluate
from alexnet_jax.compare import score_tables
from alexnet_jax.prepare import prepare
from alexnet_jax.report import report
from alexnet_jax.runtime import host
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.metrics import read_metrics
from alexnet_jax.train import fit
from alexnet_jax.training import trained
from tests.conftest import make_config

RNG = np.random.default_rng(0)
SHORT = {"steps": 4, "batch": 32, "evaluate__batch": 32}


def softmax(scores):
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)).astype(np.float32)


def guesses(labels, strength):
    """Probabilities that favour the right labels by some `strength`."""
    known = np.eye(10)[labels] * strength
    return softmax(known + RNG.normal(size=(len(labels), 10)))


def test_an_average_of_probabilities():
    a, b = softmax(RNG.normal(size=(5, 4))), softmax(RNG.normal(size=(5, 4)))
    np.testing.assert_allclose(evaluate.average([a, b], np.ones(2)), (a + b) / 2, rtol=1e-6)
    weighted = evaluate.average([a, b], np.array([3.0, 1.0]))
    np.testing.assert_allclose(weighted, 0.75 * a + 0.25 * b, rtol=1e-6)


def test_scores_of_probabilities():
    probs = np.float32([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    scores, ranks = evaluate.score_probs(probs, np.int32([0, 1]))
    assert ranks.tolist() == [0, 1]
    np.testing.assert_allclose(scores.loss, -(np.log(0.5) + np.log(0.2)) / 2, rtol=1e-6)
    assert scores.top1_error == 0.5
    assert scores.images == 2


def test_an_impossible_label_costs_much_but_not_everything():
    scores = evaluate.score_probs(np.float32([[1.0, 0.0]]), np.int32([1])).scores
    assert 80 < scores.loss < 90


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_no_class_is_refused(label):
    """numpy would take -1 for the last class."""
    probs, labels = np.float32([[0.5, 0.5], [0.9, 0.1]]), np.int32([1, label])
    with pytest.raises(UserError, match=rf"image 1 has label {label}; the 2 classes are 0 to 1"):
        evaluate.score_probs(probs, labels)
    with pytest.raises(UserError, match=f"has label {label}"):
        evaluate.search_weights([probs, probs], labels)


def test_searched_weights_leave_out_a_network_that_only_guesses():
    labels = RNG.integers(0, 10, 2000)
    good, fair, bad = guesses(labels, 3), guesses(labels, 3), guesses(labels, 0)
    weights = evaluate.search_weights([good, fair, bad], labels)
    np.testing.assert_allclose(weights.sum(), 1)
    assert weights[2] < 0.05
    assert abs(weights[0] - weights[1]) < 0.2


def test_the_same_network_twice_has_equal_weights():
    labels = RNG.integers(0, 10, 500)
    net = guesses(labels, 2)
    np.testing.assert_array_equal(evaluate.search_weights([net, net.copy()], labels), [0.5, 0.5])


def test_searched_weights_are_the_best_of_a_fine_grid():
    labels = RNG.integers(0, 10, 500)
    nets = [guesses(labels, 2), guesses(labels, 3)]

    def loss(share):
        return evaluate.score_probs(
            evaluate.average(nets, np.array([share, 1 - share])), labels
        ).scores.loss

    best = min(loss(share) for share in np.linspace(0, 1, 201))
    assert loss(evaluate.search_weights(nets, labels)[0]) < best + 1e-6


@pytest.fixture(scope="module")
def runs(records, tmp_path_factory):
    """Two short runs with different seeds and numbers of towers."""
    folder = tmp_path_factory.mktemp("runs")
    for name, values in (("a", {}), ("b", {"seed": 1, "model__towers": 1, "devices": 1})):
        fit(make_config(records, **SHORT, **values), folder / name)
    return folder


def test_networks_are_averaged_image_by_image(runs, tmp_path, capsys):
    """By hand: the two networks' own probabilities, on one device each."""
    nets = [trained.open_trained(runs / name) for name in "ab"]
    probs = [
        np.exp(
            net.setup.evaluator.log_probs(net.params, net.setup.validation, views=1, what="alone")
        )
        for net in nets
    ]
    labels = nets[0].setup.validation.labels
    np.testing.assert_allclose(probs[0].sum(-1), 1, rtol=1e-5)
    mean = (probs[0] + probs[1]) / 2
    found = evaluate.evaluate_together(nets, views=1, search=False)
    np.testing.assert_allclose(
        found.scores.loss, -np.log(mean[np.arange(len(labels)), labels]).mean()
    )
    assert found.scores.images == len(labels) == 64
    assert "2 networks, equal weights: top-1 error" in capsys.readouterr().out


def test_searched_weights_are_scored_on_the_other_half(runs, capsys):
    nets = [trained.open_trained(runs / name) for name in "ab"]
    found = evaluate.evaluate_together(nets, views=1, search=True)
    images = nets[0].setup.validation
    first, second = (
        np.exp(net.setup.evaluator.log_probs(net.params, images, views=1, what="alone"))
        for net in nets
    )
    labels = images.labels
    a, b = evaluate.search_weights([first[::2], second[::2]], labels[::2])
    own = (a * first + b * second)[1::2][np.arange(32), labels[1::2]]
    np.testing.assert_allclose(found.scores.loss, -np.log(own).mean(), rtol=1e-6)
    assert found.scores.images == 32
    assert "weights found on every second image: " in capsys.readouterr().out


def test_the_command_writes_what_it_found(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        evaluate.host, "configure_jax", lambda devices: None
    )  # JAX has its devices already
    written = tmp_path / "scores.json"
    workdirs = f"--workdirs={runs}/a,{runs}/b"
    evaluate.main([workdirs, "--views=1", "--devices=2", f"--json={written}"])
    values = json.loads(written.read_text())
    assert values["weights"] == "equal"
    assert values["steps"] == [4, 4]
    assert values["seeds"] == [0, 1]
    assert np.mean(np.array(values["ranks"]) >= 1) == values["top1_error"]
    assert 0 <= values["top5_error"] <= values["top1_error"] <= 1


def test_other_splits_and_several_views_have_a_line_each(runs, tmp_path, monkeypatch):
    """Each line is what a command for it alone finds, image by image."""
    monkeypatch.setattr(evaluate.host, "configure_jax", lambda devices: None)
    net = trained.open_trained(runs / "a")
    written = tmp_path / "scores.json"
    options = ["--splits=train,validation", "--views=1,10", f"--json={written}"]
    evaluate.main([f"--workdirs={runs}/a", *options])
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    ways = [("train", 1), ("train", 10), ("validation", 1), ("validation", 10)]
    assert [(one["split"], one["views"]) for one in lines] == ways
    assert [one["images"] for one in lines] == [256, 256, 64, 64]
    split = net.setup.records.split("train")
    log = net.setup.evaluator.log_probs(net.params, split, views=1, what="alone")
    own = log[np.arange(256), split.labels]
    np.testing.assert_array_equal(lines[0]["ranks"], (log > own[:, None]).sum(1))
    table = score_tables([written])
    assert f"{100 * lines[2]['top1_error']:.2f}" in table
    assert "tiny: several views - one view" in table


def test_one_network_is_scored_as_its_own_run_scores_it(runs):
    net = trained.open_trained(runs / "a", devices=2)
    assert net.step == 4
    last = json.loads((runs / "a" / "metrics.jsonl").read_text().splitlines()[-1])
    found = evaluate.evaluate_together([net], views=10, search=False)
    np.testing.assert_allclose(found.scores.loss, last["val_ten_views/loss"], rtol=1e-5)


def test_nine_views_are_scored_at_the_end_and_later_where_the_config_says_so(
    records, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(host, "configure_jax", lambda *_, **__: None)  # the process has begun
    folder, views = tmp_path / "nine", {"evaluate__nine_views_at_end": True}
    c = make_config(records, devices=1, **SHORT | views)
    fit(c, folder)
    last = read_metrics(folder)[-1]
    assert {"val_ten_views/loss", "val_nine_views/loss"} <= last.keys()
    assert last["val_ten_views/loss"] != last["val_nine_views/loss"]
    written = tmp_path / "scores.json"
    evaluate.main([f"--workdirs={folder}", "--views=9", f"--json={written}"])
    scores = json.loads(written.read_text())
    assert scores["views"] == 9
    np.testing.assert_allclose(scores["loss"], last["val_nine_views/loss"], rtol=1e-5)
    capsys.readouterr()
    evaluate.evaluate(c, folder, "newest")
    assert "validation, nine views: top-1 error" in capsys.readouterr().out
    assert "ours, nine views" in report([folder])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--weights=search"], "error: --weights=search needs several networks"),
        (["--devices=0"], "error: --devices=0 must be a positive integer"),
        (["--json=none/scores.json"], "there is no folder none; make it first"),
        (["--step=last"], "error: --step=last: give newest, best"),
        (["--views=1,2"], "error: --views=2: give 1, 9 or 10, or several, as 1,10"),
        (["--views="], "error: --views=: give 1, 9 or 10, or several, as 1,10"),
        (["--splits=train,none"], "no split 'none', only train, validation; set --splits to"),
    ],
)
def test_a_wrong_command_is_one_line(runs, capsys, monkeypatch, options, said):
    monkeypatch.setattr(evaluate.host, "configure_jax", lambda devices: None)
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([f"--workdirs={runs / 'a'}", *options])
    assert stopped.value.code == 2
    found = capsys.readouterr()
    assert said in found.err.splitlines()[-1]
    assert "top-1" not in found.out  # nothing was scored before


@pytest.mark.parametrize(
    ("step", "said"), [("7", "has no checkpoint of step 7; it has 4"), ("last", "--step=last")]
)
def test_a_checkpoint_that_does_not_exist_is_refused(runs, step, said):
    with pytest.raises(UserError, match=said):
        trained.open_trained(runs / "a", step=trained.parse_step(step))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no run: there is no config.json"):
        trained.open_trained(tmp_path)


def test_a_run_of_another_version_is_named(runs, tmp_path):
    values = json.loads((runs / "a" / "config.json").read_text())
    del values["seed"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    said = r"config.json is of another version: config.seed is missing"
    with pytest.raises(UserError, match=said):
        trained.open_trained(tmp_path)


def test_a_run_without_a_checkpoint_is_refused(runs, tmp_path):
    (tmp_path / "config.json").write_text(Path(runs, "a", "config.json").read_text())
    with pytest.raises(UserError, match="has no checkpoint yet; train first"):
        trained.open_trained(tmp_path)


def test_networks_of_different_records_are_not_averaged(runs, tmp_path):
    prepare("generated:64", tmp_path / "others", size=72, format="raw")
    fit(make_config(tmp_path / "others", **SHORT), tmp_path / "run")
    nets = [trained.open_trained(runs / "a"), trained.open_trained(tmp_path / "run")]
    with pytest.raises(UserError, match="was trained on other records than"):
        evaluate.evaluate_together(nets, views=1, search=False)
