"""Signals: a run that was stopped, whatever it was doing, resumes without a difference."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from alexnet_jax import train
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.metrics import read_metrics
from alexnet_jax.runtime.signals import REQUEUE, Stop, Stopped
from alexnet_jax.train import fit
from alexnet_jax.training.scores import Evaluator, RunningScores, mean_scores
from tests.conftest import make_config
from tests.runs import lines, saved

ROOT = Path(__file__).parents[1]
TWO_EPOCHS = {"epochs": 2, "log__every": 3, "batch": 32, "evaluate__batch": 32}


def assert_equal_runs(c, ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, saved(c, ours), saved(c, theirs))
    assert lines(ours) == lines(theirs)


@pytest.fixture(scope="module")
def whole(records, tmp_path_factory):
    """A run of 16 steps that nobody stopped; it scores after step 8 and, twice, after step 16."""
    folder = tmp_path_factory.mktemp("whole")
    fit(make_config(records, **TWO_EPOCHS), folder)
    return folder


def stop_during_step(monkeypatch, number):
    """A signal comes while step `number` is computed."""
    log_step = train.log_step

    def interrupted(run, *rest):
        if run.step == number:
            os.kill(os.getpid(), signal.SIGTERM)
        log_step(run, *rest)

    monkeypatch.setattr(train, "log_step", interrupted)


@pytest.mark.parametrize("number", [1, 5, 8, 16])
def test_a_signal_during_a_step_changes_no_result(records, whole, tmp_path, monkeypatch, number):
    """In the middle between two lines, at the end of an epoch, and in the last step of all."""
    c = make_config(records, **TWO_EPOCHS)
    with monkeypatch.context() as patch:
        stop_during_step(patch, number)
        with pytest.raises(Stopped) as stopped:
            fit(c, tmp_path)
    assert stopped.value.status == REQUEUE
    assert saved(c, tmp_path).step == number
    fit(c, tmp_path)
    assert_equal_runs(c, tmp_path, whole)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_signal_during_evaluation_leaves_it_and_it_is_done_again(
    records, whole, tmp_path, monkeypatch, number
):
    """Of the first epoch, of the second, and in the ten views at the end."""
    c = make_config(records, **TWO_EPOCHS)
    score, made = Evaluator.score, [0]

    def interrupted(self, params, split, **how):
        made[0] += 1
        if made[0] == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(self, params, split, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "score", interrupted)
        with pytest.raises(Stopped):
            fit(c, tmp_path)
    step = 8 if number == 1 else 16
    assert saved(c, tmp_path).step == step
    assert step not in [line["step"] for line in lines(tmp_path)]
    fit(c, tmp_path)
    assert_equal_runs(c, tmp_path, whole)


def test_a_plateau_is_not_counted_twice(records, tmp_path, monkeypatch):
    """The signal comes after the policy has seen the epoch's error, in the ten views."""
    policy = {"kind": "plateau", "rate": 0.0, "factor": 10.0, "drops": 0, "patience": 1}
    policy["least_improvement"] = 0.0  # and so the second epoch ends the run
    c = make_config(records, epochs=9, batch=128, evaluate__batch=32, policy=policy)
    score = Evaluator.score

    def interrupted(self, params, split, *, views, **how):
        if views == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(self, params, split, views=views, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "score", interrupted)
        with pytest.raises(Stopped):
            fit(c, tmp_path)
    fit(c, tmp_path)
    policy = saved(c, tmp_path).meta["policy"]
    assert (policy["drops"], policy["waited"]) == (1, 0)
    assert "val_ten_views/loss" in lines(tmp_path)[-1]
    assert lines(tmp_path)[-1]["step"] == 4


# --- as a user sees it --------------------------------------------------------------------------


def start(records, folder, *options):
    # A shell's background job ignores SIGINT, and so would its children.
    line = ["env", "--default-signal=INT", sys.executable, "-m", "alexnet_jax.main"]
    line += ["--config=configs/tiny.py"]
    line += [f"--workdir={folder}", f"--config.data.records={records}", "--config.batch=16"]
    line += ["--config.model.width=0.125", "--config.log.every=1", "--config.epochs=1000", *options]
    line += ["--config.data.source=folder:PATH"]
    pipe = subprocess.PIPE
    how = {"stdout": pipe, "stderr": pipe, "text": True, "start_new_session": True}
    return subprocess.Popen(line, cwd=ROOT, **how)


def wait_for_steps(folder, process):
    for _ in range(600):
        if len(read_metrics(folder)) > 2 or process.poll() is not None:
            return
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_the_process_saves_and_ends_with_a_status_that_says_why(records, tmp_path, number, status):
    with start(records, tmp_path / "run") as process:
        wait_for_steps(tmp_path / "run", process)
        second = subprocess.run(process.args, cwd=ROOT, capture_output=True, text=True, check=False)
        process.send_signal(number)
        said, error = process.communicate(timeout=60)
    assert process.returncode == status, error
    assert "resumes from the newest checkpoint" in error.splitlines()[-1]
    assert "Traceback" not in error
    with pytest.raises(ProcessLookupError):  # of what it has started nothing is left
        os.killpg(process.pid, 0)
    saved = int(said.rpartition("stopped after step ")[2].split(",")[0])
    assert (tmp_path / "run" / workdir.CHECKPOINTS / f"{saved:08d}").is_dir()
    # Meanwhile a second one was refused.
    assert second.returncode == 2
    assert f"is in use by process {process.pid} on " in second.stderr.splitlines()[-1]


CHILD = """
import time
from alexnet_jax.runtime.signals import Stop, Stopped
with Stop() as stop:
    print("ready", flush=True)
    try:
        while True:
            stop.check()
            time.sleep(0.01)
    except Stopped:
        print("asked", flush=True)
    time.sleep(60)
"""


def test_a_second_signal_ends_the_process_at_once():
    line = [sys.executable, "-c", CHILD]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.readline() == "asked\n"
        process.terminate()
        assert process.wait(timeout=30) == 128 + signal.SIGTERM


def test_after_it_signals_are_what_they_were():
    before = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        assert signal.getsignal(signal.SIGTERM) != before
        stop.check()
    assert signal.getsignal(signal.SIGTERM) == before


# --- what holds it ------------------------------------------------------------------------------


def test_a_workdir_is_held_by_one(records, tmp_path):
    c = make_config(records)
    with workdir.hold(tmp_path, c), pytest.raises(UserError, match=r"in use by process \d+ on "):
        workdir.hold(tmp_path, c).__enter__()
    with workdir.hold(tmp_path, c):
        pass


def test_running_scores_in_parts_and_through_json_are_exact():
    rng = np.random.default_rng(0)
    losses, ranks = rng.random(1000).astype(np.float32), rng.integers(0, 9, 1000)
    whole, parts = RunningScores(), RunningScores()
    for start_ in range(0, 1000, 100):
        part = slice(start_, start_ + 100)
        whole.add(losses[part], ranks[part])
        parts = RunningScores(**json.loads(json.dumps(vars(parts))))
        parts.add(losses[part], ranks[part])
    assert parts == whole
    by_hand = losses.astype(np.float64).mean(), (ranks > 0).mean(), (ranks > 4).mean()
    np.testing.assert_allclose(mean_scores(losses, ranks)[:3], by_hand, rtol=1e-12)
    np.testing.assert_allclose(whole.scores()[:3], by_hand, rtol=1e-12)
