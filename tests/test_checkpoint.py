"""Which checkpoints are kept."""

import jax
import jax.numpy as jnp
import pytest

from alexnet_jax.data.pipeline import train_batches
from alexnet_jax.data.records import open_records
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.errors import UserError
from tests.conftest import make_config


@pytest.fixture
def batches(records):
    split, data = open_records(records).split("train"), make_config(records).data
    iterator = train_batches(split, data, batch=8, seed=0, rows=[(0, 8)])
    yield iterator
    iterator.close()


def save(checkpoints, batches, step, error=None):
    scores = {} if error is None else {"val/top1_error": error}
    state = {"w": jnp.full(3, step)}
    checkpoints.save(step, state, batches, {"note": step}, scores)


def test_the_newest_two_and_the_best_are_kept_also_over_a_restart(tmp_path, batches):
    with Checkpoints(tmp_path / "c") as checkpoints:
        for step, error in ((1, 0.9), (2, 0.2), (3, 0.5), (4, None)):
            save(checkpoints, batches, step, error)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.best_step() == 2
        for step, error in ((5, 0.6), (6, None)):
            save(checkpoints, batches, step, error)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6]
        assert checkpoints.best_step() == 2


def test_a_checkpoint_brings_back_state_position_and_meta(tmp_path, batches):
    for _ in range(3):
        next(batches)
    with Checkpoints(tmp_path / "c") as checkpoints:
        save(checkpoints, batches, 3)
    expected = next(batches)
    placed = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    abstract = {"w": jax.ShapeDtypeStruct((3,), jnp.int32, sharding=placed)}
    with Checkpoints(tmp_path / "c") as checkpoints:
        restored = checkpoints.restore(abstract, batches, lambda meta: None)
    assert (restored.step, restored.meta) == (3, {"note": 3})
    assert restored.state["w"].tolist() == [3, 3, 3]
    assert restored.state["w"].devices() == {jax.devices()[1]}
    again = next(batches)
    assert all((again[name] == expected[name]).all() for name in expected)


def test_a_step_that_is_not_there_is_refused_with_those_that_are(tmp_path, batches):
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.restore({}, None, lambda meta: None) is None
        save(checkpoints, batches, 3)
        checkpoints.wait()
        with pytest.raises(UserError, match="has no checkpoint of step 4; it has 3"):
            checkpoints.restore({}, None, lambda meta: None, step=4)
