"""Several processes: one run, the same result; what ends one ends all, soon and with a reason."""

import os
import shutil
import signal
import sys
import time
from collections import namedtuple

import jax
import numpy as np
import pytest

from alexnet_jax.runtime import distributed, workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.sharding import by_machine
from tests.processes import (
    assert_same_end,
    command,
    end_of,
    finish,
    start,
    train,
    wait_for_lines,
)

ADDRESS = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


@pytest.fixture(scope="module")
def alone(records, tmp_path_factory):
    """What one process comes to with two devices."""
    folder = tmp_path_factory.mktemp("alone")
    train(records, folder, 1)
    return end_of(records, folder)


# --- the same result ----------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_with_a_tower_each_train_as_one(records, alone, tmp_path):
    """Crops, lighting, dropout, evaluation by one and ten views, layers' health, checkpoints."""
    told = train(records, tmp_path / "run", 2)
    assert_same_end(end_of(records, tmp_path / "run"), alone)
    assert "ten views: validation" in told[0][0]
    assert "validation" not in "".join(told[1])  # one speaks for all
    assert len((tmp_path / "run" / workdir.STARTS).read_text().splitlines()) == 1
    assert len(list((tmp_path / "run").glob("events.*"))) == 1


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("count", [2, 4])
def test_four_devices_in_several_processes_train_as_in_one(records, tmp_path, count):
    """Two processes with both towers of a row each, and four with one."""
    options = ["devices=4", "evaluate.batch=48"]  # its last batch is filled up
    train(records, tmp_path / "alone", 1, *options)
    train(records, tmp_path / "run", count, *options)
    assert_same_end(end_of(records, tmp_path / "run"), end_of(records, tmp_path / "alone"))


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_score_a_checkpoint_as_one(records, tmp_path):
    line = [*command(records, tmp_path / "run", "evaluate.batch=48", "steps=2")]
    assert [status for status, *_ in finish(start(line, 2))] == [0, 0]
    lines = []
    for count in (1, 2):
        told = finish(start([*line, "--mode=evaluate"], count))
        assert [status for status, *_ in told] == [0] * count, told
        lines.append([one for one in told[0][1].splitlines() if one.startswith("step 2, ")])
    assert len(lines[0]) == 2
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_any_number_goes_on(records, alone, tmp_path):
    """While a checkpoint is saved: Orbax could ask JAX, too, and with another count than ours."""
    folder = tmp_path / "run"
    line = [sys.executable, "-c", STOP_IN_SAVE, *command(records, folder)[3:]]
    told = finish(start(line, 2))
    assert [status for status, *_ in told] == [75, 75], told
    assert "goes on from the newest checkpoint" in told[0][2].splitlines()[-1]
    assert end_of(records, folder)[0] == 8

    # One process goes on with two devices, and two with what it has left; so to the same end.
    train(records, folder, 1, "steps=10")
    train(records, folder, 2)
    ended = end_of(records, folder)
    jax.tree.map(np.testing.assert_array_equal, ended[3], alone[3])
    assert ended[4][-1] == alone[4][-1]


@pytest.mark.slow
@pytest.mark.long
def test_an_interrupt_during_evaluation_stops_all(records, alone, tmp_path):
    folder = tmp_path / "run"
    line = [sys.executable, "-c", STOP_IN_EVALUATION, *command(records, folder)[3:]]
    told = finish(start(line, 2))
    assert [status for status, *_ in told] == [75, 130], told
    assert end_of(records, folder)[0] == 8
    train(records, folder, 2)
    assert_same_end(end_of(records, folder), alone)


CHILD = """
import os, signal, sys
from alexnet_jax.runtime import cli, distributed
from alexnet_jax import main, train
from alexnet_jax.training import scores
{}
cli.run(main.main, "stopped; the same command resumes from the newest checkpoint")
"""
STOP_IN_SAVE = CHILD.format("""
import time
from alexnet_jax.runtime.checkpoint import Checkpoints
save = Checkpoints.save
def interrupted(self, *what):
    save(self, *what)
    if distributed.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3)  # JAX looks once a second
Checkpoints.save = interrupted
""")
STOP_IN_EVALUATION = CHILD.format("""
score = scores.Evaluator.score
def interrupted(self, *what, **how):
    if distributed.process_index() == 1:
        os.kill(os.getpid(), signal.SIGINT)
    return score(self, *what, **how)
scores.Evaluator.score = interrupted
""")


# --- what ends one ends all ---------------------------------------------------------------------

RAISE = CHILD.format("""
from alexnet_jax.runtime.errors import UserError
after = train.Run._after_step
def fails(self, *what):
    if distributed.process_index() == {number} and self.step == 5:
        raise {error}
    after(self, *what)
train.Run._after_step = fails
""")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "error", "status"),
    [
        (0, "RuntimeError('the cat is out')", 1),
        pytest.param(1, "UserError('the cat is out')", 2, marks=pytest.mark.long),
    ],
)
def test_an_error_in_one_ends_all_with_its_reason(records, tmp_path, number, error, status):
    child = RAISE.replace("{number}", str(number)).replace("{error}", error)
    running = start([sys.executable, "-c", child, *command(records, tmp_path)[3:]], 2)
    wait_for_lines(tmp_path, running, 1)
    begun = time.monotonic()
    told = finish(running)
    assert time.monotonic() - begun < 20
    for result in told:
        assert result[0] == status, told
        assert f"process {number} on " in result[2].splitlines()[-1]
        assert "the cat is out" in result[2].splitlines()[-1]
    assert ("Traceback" in told[number][2]) == (status == 1)
    assert "Traceback" not in told[1 - number][2]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_death_ends_all_and_the_same_command_comes_to_the_same_end(
    records, alone, tmp_path, killed
):
    running = start(command(records, tmp_path, "checkpoint_every=2"), 2)
    wait_for_lines(tmp_path, running)
    running[killed].kill()
    begun = time.monotonic()
    told = finish(running)
    assert time.monotonic() - begun < 20
    assert told[killed][0] == -signal.SIGKILL
    assert told[1 - killed][0] in (1, -signal.SIGABRT), told
    train(records, tmp_path, 2, "checkpoint_every=2")
    ended = end_of(records, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, ended[3], alone[3])
    assert ended[4][-1]["val/loss"] == alone[4][-1]["val/loss"]


@pytest.mark.slow
@pytest.mark.long
def test_a_part_of_a_checkpoint_that_one_finds_damaged_is_damaged_for_all(records, alone, tmp_path):
    train(records, tmp_path, 2, "steps=12")
    newest = tmp_path / workdir.CHECKPOINTS / "00000012" / "state"
    # Each process has written files of its own; those of the second are cut off.
    for file in (newest / "ocdbt.process_1").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    told = train(records, tmp_path, 2)
    assert "checkpoint 12 in" in told[0][0]
    assert "resuming from the checkpoint of step 8" in told[0][0]
    jax.tree.map(np.testing.assert_array_equal, end_of(records, tmp_path)[3], alone[3])


@pytest.mark.slow
@pytest.mark.long
def test_what_the_processes_do_not_share_is_refused(records, tmp_path):
    """Started in folders of their own, with paths that lead to different places."""
    homes = [tmp_path / "a", tmp_path / "b"]
    for home in homes:
        home.mkdir()
        (home / "configs").symlink_to(os.path.abspath("configs"))
    shutil.copytree(records, homes[0] / "records")
    line = command("records", "run")

    def errors():
        told = finish(start(line, 2, cwd=homes))
        assert [status for status, *_ in told] == [2, 2], told
        return [error.splitlines()[-1] for _, _, error in told]

    assert all("process 1 on " in one and "holds no records" in one for one in errors())
    shutil.copytree(records, homes[1] / "records")
    assert all("does not see what process 0 wrote into run" in one for one in errors())


# --- where a process stands ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, None),  # for an engine that JAX knows
        ({"JAX_NUM_PROCESSES": "1"}, None),
        (ADDRESS, ("a:1", 4, 3)),
        (ADDRESS | {"SLURM_NTASKS": "2"}, ("a:1", 4, 3)),  # what is stated comes first
        ({"SLURM_NTASKS": "1"}, None),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "n[1-2]"}, (None, None, None)),
        ({"KUBERNETES_SERVICE_HOST": "x"}, None),
        ({"KUBERNETES_SERVICE_HOST": "x", "JOB_COMPLETION_INDEX": "0"}, (None, None, None)),
    ],
)
def test_the_environment_tells_where_a_process_stands(environment, place):
    assert distributed.find_place(environment) == place


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID is not set"),
        ({"JAX_NUM_PROCESSES": ""}, "JAX_NUM_PROCESSES is not set"),
        ({"JAX_COORDINATOR_ADDRESS": ""}, "JAX_COORDINATOR_ADDRESS is not set"),
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4 must be .* below JAX_NUM_PROCESSES=4"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two"),
        ({"JAX_COORDINATOR_ADDRESS": "node"}, "ADDRESS=node has no port"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(changed, said):
    with pytest.raises(UserError, match=said):
        distributed.find_place(ADDRESS | changed)


def test_tasks_without_srun_are_refused():
    with pytest.raises(UserError, match="started without srun"):
        distributed.find_place({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"})


def test_a_process_that_is_alone_needs_no_service():
    assert (distributed.process_count(), distributed.process_index()) == (1, 0)
    assert distributed.gather_text("x") == ["x"]
    assert distributed.on_main_process(lambda: 7) == 7
    distributed.require_same("it", "x")


def test_devices_are_sorted_by_machine_whatever_the_order_of_the_processes():
    """Tasks dealt out in turn: processes 0 and 2 on one machine, 1 and 3 on another."""
    Device = namedtuple("Device", "id process_index")
    devices = [Device(number, number) for number in range(4)]
    assert [d.id for d in by_machine(devices, hosts=(0, 1, 0, 1))] == [0, 2, 1, 3]
    two_each = [Device(number, number // 2) for number in range(4)]
    assert [d.id for d in by_machine(two_each, hosts=(0, 1))] == [0, 1, 2, 3]
