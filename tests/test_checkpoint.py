"""Which checkpoints are kept, and what is in them."""

import json
import shutil
from pathlib import Path

import absl.logging
import jax
import jax.numpy as jnp
import pytest

from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.checksum import json_checksum
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


# --- the scores that choose the best --------------------------------------------------------------


def change(path: Path, checkpoint: int, what: str) -> None:
    """Does to the scores of a checkpoint what a disk, or a person, may do."""
    step = path / f"{checkpoint:08d}"
    scores, meta = step / "metrics" / "metrics", step / "meta" / "metadata"
    if what == "another number":
        scores.write_text(scores.read_text().replace("0.5", "0.1"))
    elif what == "another key":
        scores.write_text(scores.read_text().replace("val/", "xal/"))
    elif what == "gone":
        shutil.rmtree(scores.parent)
    else:  # as version 0.1 wrote them, and then another number
        sealed = json.loads(meta.read_text())
        del sealed["seal"], sealed["scores"]
        meta.write_text(json.dumps(sealed | {"seal": json_checksum(sealed)}))
        scores.write_text(scores.read_text().replace("0.5", "0.1"))


@pytest.mark.parametrize(
    ("what", "best"),
    [("another number", 2), ("another key", 2), ("gone", 2), ("saved by 0.1", 3)],
)
def test_scores_that_have_changed_do_not_choose_the_best(tmp_path, what, best, capsys):
    path = tmp_path / "c"
    with Checkpoints(path) as checkpoints:
        for step, error in ((2, 0.2), (3, 0.5), (4, 0.6)):
            save(checkpoints, step, error)
    assert (path / "00000003").is_dir()
    change(path, 3, what)
    if best == 2:
        with pytest.raises(UserError, match=r"the checkpoints of step 3 in .* are damaged"):
            Checkpoints(path, read_only=True)
    with Checkpoints(path) as checkpoints:
        assert checkpoints.best_step() == best
        assert checkpoints.steps() == ([2, 4] if best == 2 else [2, 3, 4])
    assert (tmp_path / "damaged-3").exists() == (best == 2)
    assert ("the scores of checkpoint 3" in capsys.readouterr().out) == (best == 2)


def test_scores_that_appear_are_noticed(tmp_path):
    """A checkpoint that was saved between two epochs has none, and is never the best."""
    path = tmp_path / "c"
    with Checkpoints(path) as checkpoints:
        save(checkpoints, 1, 0.5)
        save(checkpoints, 2)
    shutil.copytree(path / "00000001" / "metrics", path / "00000002" / "metrics")
    with Checkpoints(path) as checkpoints:
        assert checkpoints.steps() == [1]
