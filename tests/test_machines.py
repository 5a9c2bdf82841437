"""Two machines, each with its own name and network: one run, the same result.

By hand (-m long): only root can make them, and their processes share the cores of this machine.
"""

import time

import pytest

from alexnet_jax.benchmark.program import step_exchanges
from alexnet_jax.prepare import prepare
from alexnet_jax.training.setup import make_setup
from tests import machines
from tests.conftest import make_config
from tests.processes import (
    assert_same_end,
    assert_same_state,
    command,
    end_of,
    finish,
    train,
    wait_for_lines,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(bool(machines.missing()), reason=machines.missing()),
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with machines.two_machines(tmp_path_factory.mktemp("machines")) as made:
        yield made


def start(pair, line, order):
    """Starts `line` in one process for each of `order`: the number of its machine, 0 or 1."""
    return [pair[on].start(line, number, len(order)) for number, on in enumerate(order)]


@pytest.mark.parametrize("order", [(0, 1), (0, 0, 1, 1), (0, 1, 0, 1)])
def test_two_machines_train_as_one_process(pair, records, tmp_path, order):
    """In the last order the scheduler gives its tasks to the machines in turn."""
    options = [f"devices={len(order)}"]
    train(records, tmp_path / "alone", 1, *options)
    results = finish(start(pair, command(records, tmp_path / "run", *options), order))
    assert [one.status for one in results] == [0] * len(order), results
    assert_same_end(end_of(records, tmp_path / "run"), end_of(records, tmp_path / "alone"))


def test_when_the_cable_is_cut_both_end_and_the_same_command_resumes(pair, records, tmp_path):
    """Nothing is sent any more, not even that a connection is closed."""
    line = command(records, tmp_path / "run", "checkpoint_every=2", "epochs=4")
    train(records, tmp_path / "alone", 1, "checkpoint_every=2", "epochs=4")
    running = start(pair, line, (0, 1))
    wait_for_lines(tmp_path / "run", running)
    pair[0].plug("down")
    begun = time.monotonic()
    results = finish(running)
    assert time.monotonic() - begun < 90
    assert all(one.status not in (0, 2, 75) for one in results), results
    pair[0].plug("up")
    results = finish(start(pair, line, (0, 1)))
    assert [one.status for one in results] == [0, 0], results
    ended, alone = end_of(records, tmp_path / "run"), end_of(records, tmp_path / "alone")
    assert_same_state(ended, alone)
    assert ended.lines[-1]["val/loss"] == alone.lines[-1]["val/loss"]


@pytest.mark.parametrize("towers_apart", [True, False])
def test_as_many_bytes_cross_the_cable_as_the_step_is_said_to_send(pair, tmp_path, towers_apart):
    """12 steps, the difference of runs of 14 and 2, each with one save and one evaluation."""
    prepare("generated:2048", tmp_path / "records", size=72, format="raw")
    values = {"batch": 128, "model__width": 0.5, "devices": 2, "towers_apart": towers_apart}
    setup = make_setup(make_config(tmp_path / "records", **values))
    expected = sum(one.sent for one in step_exchanges(setup.config))
    assert expected > 1e6
    sent = []
    for steps in (2, 14):
        options = [f"{name.replace('__', '.')}={value}" for name, value in values.items()]
        options += [f"steps={steps}", "evaluate.ten_views_at_end=False"]
        before = [one.sent() for one in pair]
        line = command(tmp_path / "records", tmp_path / str(steps), *options)
        results = finish(start(pair, line, (0, 1)))
        assert [one.status for one in results] == [0, 0], results
        sent.append([one.sent() - was for one, was in zip(pair, before, strict=True)])
    for short, long in zip(*sent, strict=True):
        assert (long - short) / 12 == pytest.approx(expected, rel=0.05)
