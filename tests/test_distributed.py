"""Several processes: the same result as one; a signal, an error or a death in one ends all."""

import os
import shutil
import signal
import sys
import time
from collections import namedtuple

import pytest

from alexnet_jax.runtime import distributed, workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.sharding import by_machine
from alexnet_jax.train import fit
from alexnet_jax.training.progress import header
from tests.conftest import make_config
from tests.processes import (
    VALUES,
    assert_same_end,
    assert_same_state,
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
    """The end of the same run in one process with two devices: this one."""
    folder = tmp_path_factory.mktemp("alone")
    fit(make_config(records, **VALUES), folder)
    return end_of(records, folder)


# --- the same result ----------------------------------------------------------------------------

PATCHED = """
import os, signal, sys, time
from alexnet_jax import main, train
from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import scores
{}
main.main()
"""
STOP_IN_SAVE = PATCHED.format("""
save = Checkpoints.save
def interrupted(self, *what):
    save(self, *what)
    if distributed.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3)  # JAX looks once a second
Checkpoints.save = interrupted
""")
STOP_IN_EVALUATION = PATCHED.format("""
score = scores.Evaluator.score
def interrupted(self, *what, **how):
    if distributed.process_index() == 1:
        os.kill(os.getpid(), signal.SIGINT)
    return score(self, *what, **how)
scores.Evaluator.score = interrupted
""")


def start_patched(code, records, folder, *options):
    """Two processes that train, with `code` before."""
    return start([sys.executable, "-c", code, *command(records, folder, *options)[3:]], 2)


def test_a_signal_to_one_stops_all_and_any_number_resumes(records, alone, tmp_path):
    """Two processes with a tower each, stopped in their first save; then one, then two again.

    In a save Orbax could ask JAX for signals, too, and get the answer that was meant for us.
    """
    folder = tmp_path / "run"
    results = finish(start_patched(STOP_IN_SAVE, records, folder))
    assert [one.status for one in results] == [75, 75], results
    assert "resumes from the newest checkpoint" in results[0].errors.splitlines()[-1]
    assert results[0].output.count(" *  ") == 1  # a line for the evaluation of step 8
    assert header(top5=True) not in results[1].output  # the main process prints for all
    stopped = end_of(records, folder)
    assert stopped.step == 8
    assert stopped.lines == [line for line in alone.lines if line["step"] <= 8]
    assert len((folder / workdir.STARTS).read_text().splitlines()) == 1
    assert len(list(folder.glob("events.*"))) == 1

    fit(make_config(records, **VALUES, steps=10), folder)
    train(records, folder, 2)
    ended = end_of(records, folder)
    assert_same_state(ended, alone)
    assert ended.lines[-1] == alone.lines[-1]


@pytest.mark.slow
def test_two_processes_train_as_one(records, alone, tmp_path):
    """Crops, lighting, dropout, evaluation by one and ten views, layers' health, checkpoints."""
    train(records, tmp_path / "run", 2)
    assert_same_end(end_of(records, tmp_path / "run"), alone)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_four_devices_in_several_processes_train_as_in_one(records, tmp_path, count):
    """Two processes with both towers of a row each, and four with one."""
    own = {"devices": 4, "evaluate__batch": 48}  # the last batch of an evaluation is filled up
    fit(make_config(records, **VALUES | own), tmp_path / "alone")
    train(records, tmp_path / "run", count, "devices=4", "evaluate.batch=48")
    assert_same_end(end_of(records, tmp_path / "run"), end_of(records, tmp_path / "alone"))


@pytest.mark.slow
def test_two_processes_evaluate_a_checkpoint_as_one(records, tmp_path):
    line = command(records, tmp_path / "run", "evaluate.batch=48", "steps=2")
    results = finish(start(line, 2))
    assert [one.status for one in results] == [0, 0], results
    found = []
    for count in (1, 2):
        results = finish(start([*line, "--mode=evaluate"], count))
        assert [one.status for one in results] == [0] * count, results
        lines = results[0].output.splitlines()
        found.append([line for line in lines if line.startswith("step 2, ")])
    assert len(found[0]) == 2
    assert found[0] == found[1]


@pytest.mark.slow
def test_an_interrupt_during_evaluation_stops_all(records, alone, tmp_path):
    folder = tmp_path / "run"
    results = finish(start_patched(STOP_IN_EVALUATION, records, folder))
    assert [one.status for one in results] == [75, 130], results
    assert end_of(records, folder).step == 8
    train(records, folder, 2)
    assert_same_end(end_of(records, folder), alone)


# --- an error or a death in one -----------------------------------------------------------------

FAILING = """
import os, signal
from absl import flags
from alexnet_jax.runtime import cli, distributed
from alexnet_jax.runtime.errors import UserError
distributed.HEARTBEAT_SECONDS = 10

def wrong():
    raise UserError("the cat is out")

def job(arguments):
    distributed.initialize()
    main = distributed.process_index() == 0
    assert distributed.gather_text(str(main)) == ["True", "False"]
    {}
    distributed.gather_text("")  # waits for the other

cli.run(job, flags.FlagValues(), None, [])
"""
FAULTS = {
    "all": "wrong()",
    "work of the main process": "distributed.on_main_process(wrong)",
    "different": "distributed.require_same('the cat', str(main))",
    "main": "if main: raise RuntimeError('the cat is out')",
    "other": "if not main: wrong()",
    "killed": "if not main: os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.fixture(scope="module")
def failed():
    """For each of `FAULTS` two processes that do not train; all of them at the same time."""
    running = {
        name: start([sys.executable, "-c", FAILING.format(fault)], 2)
        for name, fault in FAULTS.items()
    }
    return {name: finish(processes) for name, processes in running.items()}


@pytest.mark.parametrize("fault", ["all", "work of the main process", "different"])
def test_an_error_in_all_gives_its_status_in_all(failed, fault):
    for number, result in enumerate(failed[fault]):
        assert result.status == 2, failed[fault]
        said = result.errors.splitlines()[-1]
        assert said.startswith(f"error: process {number} on ")
        assert "the cat" in said


@pytest.mark.parametrize(("fault", "number", "status"), [("main", 0, 1), ("other", 1, 2)])
def test_a_process_that_fails_says_why_and_ends_the_other(failed, fault, number, status):
    failing, other = failed[fault][number], failed[fault][1 - number]
    assert failing.status == status
    assert f"error: process {number} on " in failing.errors
    assert "the cat is out" in failing.errors
    assert ("Traceback" in failing.errors) == (status == 1)
    assert other.status not in (0, 2, 75)


def test_a_death_ends_the_other(failed):
    main, other = failed["killed"]
    assert other.status == -signal.SIGKILL
    assert main.status not in (0, 2, 75)


RAISE = PATCHED.format("""
after = train.log_step
def fails(run, *rest):
    if distributed.process_index() == {number} and run.step == 8:
        raise {error}
    after(run, *rest)
train.log_step = fails
""")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "error", "status"),
    [(0, "RuntimeError('the cat is out')", 1), (1, "UserError('the cat is out')", 2)],
)
def test_an_error_in_the_training_of_one_ends_all(records, tmp_path, number, error, status):
    """While a checkpoint is written, which needs all."""
    code = RAISE.replace("{number}", str(number)).replace("{error}", error)
    running = start_patched(code, records, tmp_path, "checkpoint_every=7")
    wait_for_lines(tmp_path, running, 1)
    begun = time.monotonic()
    results = finish(running)
    assert time.monotonic() - begun < 60
    assert results[number].status == status, results
    assert f"process {number} on " in results[number].errors.splitlines()[-1]
    assert "the cat is out" in results[number].errors.splitlines()[-1]
    assert results[1 - number].status not in (0, 2, 75), results


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_after_a_death_the_same_command_ends_with_the_same_result(records, alone, tmp_path, killed):
    running = start(command(records, tmp_path, "checkpoint_every=2"), 2)
    wait_for_lines(tmp_path, running)
    running[killed].kill()
    begun = time.monotonic()
    results = finish(running)
    assert time.monotonic() - begun < 60
    assert results[killed].status == -signal.SIGKILL
    assert results[1 - killed].status in (1, -signal.SIGABRT), results
    train(records, tmp_path, 2, "checkpoint_every=2")
    ended = end_of(records, tmp_path)
    assert_same_state(ended, alone)
    assert ended.lines[-1]["val/loss"] == alone.lines[-1]["val/loss"]


# --- disks --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_part_of_a_checkpoint_that_one_finds_damaged_is_damaged_for_all(records, alone, tmp_path):
    train(records, tmp_path, 2, "steps=12")
    newest = tmp_path / workdir.CHECKPOINTS / "00000012" / "state"
    # Each process has written files of its own. Those of process 1 are truncated.
    for file in (newest / "ocdbt.process_1").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    output = train(records, tmp_path, 2)[0].output
    assert "checkpoint 12 in" in output
    assert "resuming from the checkpoint of step 8" in output
    assert_same_state(end_of(records, tmp_path), alone)


@pytest.mark.slow
def test_folders_that_the_processes_do_not_share_are_refused(records, tmp_path):
    """Each process starts in its own folder, so the same relative path leads to two places."""
    homes = [tmp_path / "a", tmp_path / "b"]
    for home in homes:
        home.mkdir()
        (home / "configs").symlink_to(os.path.abspath("configs"))
    shutil.copytree(records, homes[0] / "records")
    line = command("records", "run")

    without_records = finish(start(line, 2, cwd=homes))[1]
    assert without_records.status == 2
    said = without_records.errors.splitlines()[-1]
    assert "process 1 on " in said
    assert "records" in said
    shutil.copytree(records, homes[1] / "records")
    results = finish(start(line, 2, cwd=homes))
    assert [one.status for one in results] == [2, 2], results
    assert all("does not see what process 0 wrote into run" in one.errors for one in results)


# --- the place of a process ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, None),  # for a scheduler that JAX knows
        ({"JAX_NUM_PROCESSES": "1"}, None),
        (ADDRESS, ("a:1", 4, 3)),
        (ADDRESS | {"SLURM_NTASKS": "2"}, ("a:1", 4, 3)),  # the three variables come first
        ({"SLURM_NTASKS": "1"}, None),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "n[1-2]"}, (None, None, None)),
        ({"KUBERNETES_SERVICE_HOST": "x"}, None),
        ({"KUBERNETES_SERVICE_HOST": "x", "JOB_COMPLETION_INDEX": "0"}, (None, None, None)),
    ],
)
def test_the_environment_gives_the_place_of_a_process(environment, place):
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
