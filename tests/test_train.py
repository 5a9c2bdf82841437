"""The loop: restarts change nothing, metrics are complete, failures stop with a clear line."""

import json
import shutil
from contextlib import closing
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest

from alexnet_jax import config, optim, train
from alexnet_jax.configs.alexnet_2012 import as_noted
from alexnet_jax.data.pipeline import train_batches
from alexnet_jax.data.records import open_records
from alexnet_jax.evaluate import evaluate
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.metrics import read_metrics
from alexnet_jax.runtime.sharding import put_batch
from alexnet_jax.train import fit, placed_batches
from alexnet_jax.training.scores import RunningScores
from alexnet_jax.training.setup import make_setup
from alexnet_jax.training.state import init_state, restore_state
from alexnet_jax.training.step import make_step, put_hyperparams
from tests.conftest import PHOTOS, make_config
from tests.runs import change_scores, lines, saved

LAST = {"log__every": 4, "log__layers_every": 8, "batch": 32, "evaluate__batch": 32}


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module")
def whole(records, tmp_path_factory):
    """A run of 12 steps, an epoch and a half, that nobody stopped; it also saves at step 6."""
    folder = tmp_path_factory.mktemp("whole")
    fit(make_config(records, steps=12, checkpoint_every=6, **LAST), folder)
    return folder


def test_a_restarted_run_equals_an_uninterrupted_one_bit_for_bit(records, whole, tmp_path):
    half, full = (make_config(records, steps=n, checkpoint_every=6, **LAST) for n in (6, 12))
    fit(half, tmp_path)
    assert saved(half, tmp_path).step == 6
    fit(full, tmp_path)
    assert saved(full, tmp_path).step == 12
    assert_same(saved(full, tmp_path).state, saved(full, whole).state)
    # The metrics too, besides times and the evaluation at the end of the first 6 steps.
    assert lines(tmp_path, ("time/", "val")) == lines(whole, ("time/", "val"))


def test_a_run_that_died_after_its_checkpoint_drops_the_lines_that_came_later(
    records, whole, tmp_path
):
    c = make_config(records, steps=12, checkpoint_every=6, **LAST)
    died = tmp_path / "died"
    shutil.copytree(whole, died)
    shutil.rmtree(died / workdir.CHECKPOINTS / "00000012")
    with (died / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "cut off')  # as a kill leaves it
    assert saved(c, died).step == 8
    fit(c, died)
    steps = [line["step"] for line in read_metrics(died)]
    assert steps == sorted(set(steps)) == [line["step"] for line in read_metrics(whole)]
    assert_same(saved(c, died), saved(c, whole))


@pytest.mark.parametrize(
    "values",
    [
        {"devices": 1},
        {"devices": 4},
        {"devices": 2, "towers_apart": False},
        {"dtype": "bfloat16"},
        {"data__threads": 3},
    ],
)
def test_a_checkpoint_opens_on_other_devices_in_other_precision_with_other_threads(
    records, whole, values
):
    """Its arrays are the same, to the last bit, and so is the batch that comes next."""
    saved = make_config(records, **LAST)
    assert (saved.devices, saved.towers_apart, saved.dtype) == (2, True, "float32")
    (state, batch), (expected, expected_batch) = (
        state_and_next_batch(c, whole) for c in (make_config(records, **LAST | values), saved)
    )
    assert_same(state, expected)
    assert_same(batch, expected_batch)


def state_and_next_batch(c: config.Config, folder: Path):
    setup = make_setup(c)
    with Checkpoints(folder / workdir.CHECKPOINTS) as checkpoints:
        step, state, _ = restore_state(setup, checkpoints)
    with closing(placed_batches(setup, step, step + 1)) as batches:
        return jax.device_get((state, next(batches)))


def test_a_run_in_two_parts_resumes_in_both_as_if_it_had_not_stopped(records, tmp_path):
    """100 images for two epochs, then all 256. The batches of steps 4 and 7 lie in two epochs."""
    policy = as_noted(
        {"rate": 1e-2, "biases": {"all": 0.02}, "images": 100},
        {"epoch": 2, "rate": 1e-3, "images": 0},
    )
    values = {"epochs": 3, "policy": policy, "data__chunk": 8, "data__order": "fixed"} | LAST
    fit(make_config(records, **values), tmp_path / "whole")
    for steps in (3, 7, 10):
        fit(make_config(records, **values | {"steps": steps}), tmp_path / "parts")
        assert saved(make_config(records, **values), tmp_path / "parts").step == steps
    fit(make_config(records, **values), tmp_path / "parts")
    whole, parts = (saved(make_config(records, **values), tmp_path / n) for n in ("whole", "parts"))
    assert whole.step == parts.step == -(-(2 * 100 + 256) // 32)
    assert_same(parts.state, whole.state)
    scored = [line for line in read_metrics(tmp_path / "whole") if "val/loss" in line]
    # Epochs end after 100, 200 and 456 images.
    assert [line["step"] for line in scored] == [4, 7, 15]
    assert [line["opt/lr"] for line in scored] == [1e-2, 1e-2, 1e-3]


def test_a_part_of_images_that_are_sorted_by_class_is_refused(tmp_path):
    for place in ("train/hat", "train/shoe", "validation/hat", "validation/shoe"):
        (tmp_path / "photos" / place).mkdir(parents=True)
        for number in range(3):
            shutil.copy(PHOTOS / "hat.jpg", tmp_path / "photos" / place / f"{number}.jpg")
    prepare(f"folder:{tmp_path / 'photos'}", tmp_path / "sorted", size=72, format="raw")
    c = make_config(tmp_path / "sorted", policy=as_noted({"rate": 0.1, "images": 3}))
    with pytest.raises(UserError, match="have 1 of 2 classes, so they are sorted by class"):
        make_setup(c)


def test_a_workdir_of_version_0_1_resumes(records, whole, tmp_path):
    """Its config.json lacks the keys that are new since, and its policy has saved an error rate."""
    old = tmp_path / "old"
    shutil.copytree(whole, old)
    shutil.rmtree(old / workdir.CHECKPOINTS / "00000012")
    values = json.loads((old / "config.json").read_text())
    for name, added in config.ADDED.items():
        if isinstance(added, dict):
            values[name] = {k: v for k, v in values[name].items() if k not in added}
        else:
            del values[name]
    for phase in values["policy"]["phases"]:
        for key in config.ADDED_TO_PHASES:
            del phase[key]
    (old / "config.json").write_text(json.dumps(values))
    fit(make_config(records, steps=12, checkpoint_every=6, **LAST), old)
    c = make_config(records, **LAST)
    assert_same(saved(c, old), saved(c, whole))
    changed = make_config(records, steps=12, data__chunk=32, **LAST)
    with pytest.raises(UserError, match=r"it differs in data\.chunk"):
        fit(changed, old)


def test_the_lines_of_metrics(whole):
    lines = read_metrics(whole)
    assert [line["step"] for line in lines] == [4, 6, 8, 12]
    assert lines[-1]["epoch"] == 1.5
    assert {"train/loss", "train/top1_error", "opt/lr", "time/left_s"} <= lines[0].keys()
    assert {"time/images_per_s", "time/input_wait"} <= lines[1].keys()
    assert "time/compile_s" in lines[0]
    assert "time/evaluate_s" in lines[-1]
    layers = {f"{what}/conv1" for what in ("weight", "update", "dead")}
    assert layers <= lines[2].keys()
    assert not layers & lines[0].keys()
    assert "val/top1_error" in lines[2]  # the epoch's end
    assert "val_ten_views/top5_error" in lines[-1]
    assert list(whole.glob("events.out.tfevents.*"))
    assert json.loads((whole / "config.json").read_text())["steps"] == 12


def test_numbers_are_fetched_when_the_devices_have_two_more_steps(records, tmp_path, monkeypatch):
    """But none is left open when the run evaluates, saves or ends."""
    read_line, ages = train.read_line, {}

    def read(run, line):
        ages[line.step] = run.step - line.step
        return read_line(run, line)

    monkeypatch.setattr(train, "read_line", read)
    fit(make_config(records, steps=11, checkpoint_every=6, log__every=2, batch=32), tmp_path)
    # Steps 6, 8 (the end of an epoch) and 11 save.
    assert ages == {2: 2, 4: 2, 6: 0, 8: 0, 10: 1, 11: 0}


def test_batches_are_read_ahead_but_not_beyond_the_last_step(records):
    setup = make_setup(make_config(records, steps=7, batch=32))
    with closing(placed_batches(setup, 3, 7)) as batches:
        found = [np.asarray(batch["image"]) for batch in batches]
    read = train_batches(setup.train, setup.config.data, batch=32, seed=0, rows=[(0, 32)])
    with closing(read):
        assert_same(found, [batch["image"] for batch in islice(read, 7)][3:])


def test_the_sums_in_a_checkpoint_of_version_0_1_are_read(records, tmp_path):
    setup = make_setup(make_config(records))
    sums = {"loss": 2.5, "wrong1": 3, "wrong5": 1, "pictures": 4}
    meta = {"records": setup.records.manifest.hash, "policy": {}, "tally": sums, "unscored": None}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, init_state(setup), meta, {})
    with Checkpoints(tmp_path) as checkpoints:
        assert train.restore(setup, checkpoints).running == RunningScores(2.5, 3, 1, 4)


def test_a_finished_run_says_so_and_changes_nothing(records, whole, capsys):
    before = (whole / "metrics.jsonl").read_text()
    fit(make_config(records, steps=12, checkpoint_every=6, **LAST), whole)
    assert "is trained already, for 12 steps" in capsys.readouterr().out
    assert (whole / "metrics.jsonl").read_text() == before


def test_the_plateau_ends_the_run_and_is_part_of_the_checkpoint(records, tmp_path):
    policy = {
        "kind": "plateau",
        "rate": 0.0,
        "factor": 10.0,
        "drops": 1,
        "patience": 1,
        "least_improvement": 0.0,
    }
    few = {"epochs": 9, "batch": 128, "evaluate__ten_views_at_end": False, "policy": policy}
    # With rate 0 nothing improves: drop after the second epoch, end after the third. The score at
    # the stop in the middle of the second is none of an epoch.
    fit(make_config(records, steps=3, **few), tmp_path)
    c = make_config(records, **few)
    fit(c, tmp_path)
    assert saved(c, tmp_path).step == 6
    assert saved(c, tmp_path).meta["policy"]["drops"] == 2


# --- failures ---------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(records, tmp_path):
    policy = as_noted({"rate": 1e-3}, {"epoch": 1, "rate": 1e9})
    c = make_config(records, epochs=4, policy=policy, **LAST)
    with pytest.raises(UserError, match=r"the loss is .*the checkpoint of step 8 is kept"):
        fit(c, tmp_path)
    assert saved(c, tmp_path).step == 8
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved(c, tmp_path).state))


def test_weights_that_are_not_finite_are_never_saved(records, tmp_path):
    """The last step before a checkpoint can spoil the weights without having seen a bad loss."""
    policy = as_noted({"rate": 0.0}, {"epoch": 1.5, "rate": 1e38})  # the 13th step
    values = {"checkpoint_every": 13, "policy": policy, "optim__weight_decay": 1e6}
    c = make_config(records, epochs=4, **values, **LAST)
    with pytest.raises(UserError, match=r"weights are not finite.*step 8 is kept"):
        fit(c, tmp_path)
    assert saved(c, tmp_path).step == 8


def test_a_workdir_of_another_config_is_refused(records, whole):
    c = make_config(records, steps=12, checkpoint_every=6, seed=1, **LAST)
    with pytest.raises(UserError, match="another config; it differs in seed; give ano"):
        fit(c, whole)


def test_records_of_another_preparation_are_refused(records, whole, tmp_path):
    prepare("generated:64", tmp_path / "other", size=72, format="raw")
    c = make_config(tmp_path / "other", steps=12, checkpoint_every=6, **LAST)
    with pytest.raises(UserError, match="was trained on other records"):
        fit(c, whole)


def test_records_that_are_not_the_configs_are_refused(records, tmp_path):
    for values, said in (
        ({"data__format": "jpeg"}, "have format raw, the config says jpeg"),
        ({"data__size": 80}, "have size 72, the config says 80"),
        ({"data__resize": "squeeze"}, "have resize area, the config says squeeze"),
        ({"model__classes": 5}, "have 10 classes, the network has 5"),
        ({"data__validation": "test"}, "test"),
        ({"data__records": str(tmp_path / "none")}, "prepare"),
    ):
        with pytest.raises(UserError, match=said):
            fit(make_config(**({"data__records": str(records)} | values)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_that_have_changed_are_refused(records, tmp_path):
    copy = tmp_path / "records"
    shutil.copytree(records, copy)
    name = open_records(copy).manifest.splits["train"].labels.name
    labels = np.load(copy / name)
    labels[3] = 10
    np.save(copy / name, labels)
    with pytest.raises(UserError, match=r"labels.npy is damaged \(the manifest counts other"):
        fit(make_config(copy), tmp_path / "run")


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(
    records, whole, tmp_path, capsys
):
    c = make_config(records, steps=12, checkpoint_every=6, **LAST)
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    newest = folder / workdir.CHECKPOINTS / "00000012"
    for file in newest.rglob("*"):
        if file.is_file() and file.stat().st_size > 10_000:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    fit(c, folder)
    said = capsys.readouterr().out
    assert "checkpoint 12" in said
    assert "is damaged" in said
    assert "checkpoint 12 is put aside" in said
    assert "resuming from the checkpoint of step 8" in said
    assert (folder / "damaged-12").is_dir()
    assert_same(saved(c, folder), saved(c, whole))


def test_when_every_checkpoint_is_damaged_nothing_is_trained_over_them(records, whole, tmp_path):
    c = make_config(records, steps=12, checkpoint_every=6, **LAST)
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    for file in (folder / workdir.CHECKPOINTS).rglob("*"):
        if file.is_file() and file.stat().st_size > 10_000:
            file.write_bytes(b"")
    for _ in range(2):  # as an engine that starts it again would
        with pytest.raises(UserError, match=r"the checkpoints of step 12, 8 in .* are damaged"):
            fit(c, folder)
    assert read_metrics(folder) == read_metrics(whole)
    assert len(list((folder / workdir.CHECKPOINTS).iterdir())) == 2


def test_a_checkpoint_with_damaged_scores_gives_way_to_the_one_before(records, whole, tmp_path):
    c = make_config(records, steps=12, checkpoint_every=6, **LAST)
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    (folder / workdir.CHECKPOINTS / "00000012" / "metrics" / "metrics").write_text("{")
    fit(c, folder)
    assert (folder / "damaged-12").is_dir()
    assert_same(saved(c, folder), saved(c, whole))


def test_evaluation_scores_the_checkpoint_that_it_is_told_to_and_changes_nothing(
    records, whole, tmp_path, capsys
):
    c = make_config(records, steps=12, checkpoint_every=6, **LAST)
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    # So that the best is not the newest.
    change_scores(folder / workdir.CHECKPOINTS / "00000008", {"val/top1_error": 0.0})
    (folder / workdir.CHECKPOINTS / "00000014.orbax-checkpoint-tmp").mkdir()  # a run is saving
    before = sorted(folder.rglob("*"))
    for step, expected in (("newest", 12), ("best", 8), (8, 8)):
        evaluate(c, folder, step)
        assert f"step {expected}, validation, centre crop" in capsys.readouterr().out
    shutil.rmtree(folder / workdir.CHECKPOINTS / "00000012" / "state")
    evaluate(c, folder, "newest")
    assert "step 8, validation, ten views" in capsys.readouterr().out
    assert {path for path in before if "00000012" not in path.parts} <= set(folder.rglob("*"))
    assert not list(folder.glob("damaged-*"))


def test_the_masks_of_two_steps_differ(records):
    """With rate 0 and the same batch only the dropout masks can change the losses."""
    setup = make_setup(make_config(records, batch=32))
    batches = train_batches(setup.train, setup.config.data, batch=32, seed=0, rows=[(0, 32)])
    batch = put_batch(setup.network.mesh, next(batches), 32)
    batches.close()
    c = setup.config
    hyperparams = put_hyperparams(setup.network, c.optim, optim.Hyperparams(0.0, {}, {}, True))
    step = make_step(setup.network, c.optim, c.data, batch=32, seed=0)
    state, losses = init_state(setup), []
    for _ in range(2):
        state, (loss, _) = step(state, setup.normalization, batch, hyperparams)
        losses.append(np.asarray(loss))
    assert np.abs(losses[0] - losses[1]).min() > 0


def test_bfloat16_trains_float32_parameters(records, tmp_path):
    c = make_config(records, steps=2, dtype="bfloat16", **LAST)
    fit(c, tmp_path)
    params = saved(c, tmp_path).state["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    assert np.isfinite(read_metrics(tmp_path)[-1]["train/loss"])


# --- other data than the config says ------------------------------------------------------------


def test_records_of_another_source_are_refused_before_anything_is_written(records, tmp_path):
    c = make_config(records, data__source="folder:/nowhere")
    with pytest.raises(UserError, match=r"source=folder:/nowhere, but .* made of generated:256;"):
        fit(c, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_knows_its_source_even_if_the_config_left_it_open(records, tmp_path):
    fit(make_config(records, steps=1, data__source="ilsvrc2012:PATH", **LAST), tmp_path)
    assert workdir.read_config(tmp_path).data.source == "generated:256"
