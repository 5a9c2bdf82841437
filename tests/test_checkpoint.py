"""Which checkpoints are kept, and what is in them."""

import absl.logging
import jax
import jax.numpy as jnp
import pytest

from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.errors import UserError


def save(checkpoints, step, error=None):
    scores = {} if error is None else {"val/top1_error": error}
    state = {"w": jnp.full(3, step)}
    checkpoints.save(step, state, {"note": step}, scores)


def test_the_newest_two_and_the_best_are_kept_also_over_a_restart(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        for step, error in ((1, 0.9), (2, 0.2), (3, 0.5), (4, None)):
            save(checkpoints, step, error)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.best_step() == 2
        for step, error in ((5, 0.6), (6, None)):
            save(checkpoints, step, error)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6]
        assert checkpoints.best_step() == 2


def test_a_checkpoint_brings_back_state_and_meta_on_another_device(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        save(checkpoints, 3)
    placed = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    abstract = {"w": jax.ShapeDtypeStruct((3,), jnp.int32, sharding=placed)}
    with Checkpoints(tmp_path / "c") as checkpoints:
        restored = checkpoints.restore(abstract)
    assert (restored.step, restored.meta) == (3, {"note": 3})
    assert restored.state["w"].tolist() == [3, 3, 3]
    assert restored.state["w"].devices() == {jax.devices()[1]}


def test_only_orbax_logs_nothing(tmp_path, caplog):
    with Checkpoints(tmp_path / "c") as checkpoints:
        save(checkpoints, 1)
        absl.logging.warning("from another library")
    assert [record.message for record in caplog.records] == ["from another library"]


def test_a_step_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.restore({}) is None
        save(checkpoints, 3)
        checkpoints.wait()
        with pytest.raises(UserError, match="has no checkpoint of step 4; it has 3"):
            checkpoints.restore({}, step=4)
