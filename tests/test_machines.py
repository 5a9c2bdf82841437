"""Two machines, each with its own name and network: one run, the same result.

By hand (-m long): they are made by root, and several processes wait for each other's cores.
"""

import time

import jax
import numpy as np
import pytest

from alexnet_jax.benchmark.hlo import collectives
from alexnet_jax.benchmark.program import compiled_step
from alexnet_jax.prepare import prepare
from alexnet_jax.training.setup import make_setup
from tests import machines
from tests.conftest import make_config
from tests.processes import assert_same_end, command, end_of, finish, train, wait_for_lines

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
    """`line` in one process for each of `order`, which names their machines: 0 or 1."""
    return [pair[on].start(line, number, len(order)) for number, on in enumerate(order)]


@pytest.mark.parametrize("order", [(0, 1), (0, 0, 1, 1), (0, 1, 0, 1)])
def test_two_machines_train_as_one_process(pair, records, tmp_path, order):
    """The last as an engine starts them that deals out its tasks in turn."""
    options = [f"devices={len(order)}"]
    train(records, tmp_path / "alone", 1, *options)
    told = finish(start(pair, command(records, tmp_path / "run", *options), order))
    assert [status for status, *_ in told] == [0] * len(order), told
    assert_same_end(end_of(records, tmp_path / "run"), end_of(records, tmp_path / "alone"))


def test_when_the_cable_is_cut_both_end_and_the_same_command_comes_to_the_same_end(
    pair, records, tmp_path
):
    """Nothing is sent any more, not even that a connection has ended."""
    line = command(records, tmp_path / "run", "checkpoint_every=2", "epochs=4")
    train(records, tmp_path / "alone", 1, "checkpoint_every=2", "epochs=4")
    running = start(pair, line, (0, 1))
    wait_for_lines(tmp_path / "run", running)
    pair[0].plug("down")
    begun = time.monotonic()
    told = finish(running)
    assert time.monotonic() - begun < 90
    assert all(status not in (0, 2, 75) for status, *_ in told), told
    pair[0].plug("up")
    told = finish(start(pair, line, (0, 1)))
    assert [status for status, *_ in told] == [0, 0], told
    ended, alone = end_of(records, tmp_path / "run"), end_of(records, tmp_path / "alone")
    jax.tree.map(np.testing.assert_array_equal, ended[3], alone[3])
    assert ended[4][-1]["val/loss"] == alone[4][-1]["val/loss"]


@pytest.mark.parametrize("towers_apart", [True, False])
def test_as_many_bytes_cross_the_cable_as_the_compiled_step_says(pair, tmp_path, towers_apart):
    """What 14 steps send more than 2: each run saves once, and scores once."""
    prepare("generated:2048", tmp_path / "records", size=72, format="raw")
    values = {"batch": 128, "model__width": 0.5, "devices": 2, "towers_apart": towers_apart}
    setup = make_setup(make_config(tmp_path / "records", **values))
    expected = sum(one.sent for one in collectives(compiled_step(setup).as_text()))
    assert expected > 1e6
    sent = []
    for steps in (2, 14):
        options = [f"{name.replace('__', '.')}={value}" for name, value in values.items()]
        options += [f"steps={steps}", "evaluate.ten_views_at_end=False"]
        before = [one.sent() for one in pair]
        line = command(tmp_path / "records", tmp_path / str(steps), *options)
        told = finish(start(pair, line, (0, 1)))
        assert [status for status, *_ in told] == [0, 0], told
        sent.append([one.sent() - was for one, was in zip(pair, before, strict=True)])
    for short, long in zip(*sent, strict=True):
        assert (long - short) / 12 == pytest.approx(expected, rel=0.05)
