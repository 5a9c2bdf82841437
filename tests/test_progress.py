"""What a run prints: epochs by hand from lines of metrics; a bar or lines; again after a resume."""

import re

import pytest

from alexnet_jax.runtime import terminal
from alexnet_jax.train import fit
from alexnet_jax.training.progress import HEADER, Progress, epochs
from tests.conftest import make_config

LINES = [
    {"step": 3, "epoch": 0.6, "train/loss": 2.0, "train/top1_error": 0.9, "opt/lr": 0.1}
    | {"time/images_per_s": 10.0, "time/compile_s": 4.0, "time/left_s": 90.0},
    {"step": 4, "epoch": 0.8, "weight/conv1": 0.1, "time/images_per_s": 10.0, "time/layers_s": 1.0},
    {"step": 5, "epoch": 1.0, "train/loss": 1.0, "train/top1_error": 0.5, "opt/lr": 0.1}
    | {"time/images_per_s": 20.0, "time/evaluate_s": 2.0, "time/left_s": 60.0}
    | {"val/loss": 1.1, "val/top1_error": 0.4, "val/top5_error": 0.2},
    {"step": 10, "epoch": 2.0, "train/loss": 0.5, "train/top1_error": 0.25, "opt/lr": 0.01}
    | {"time/images_per_s": 20.0, "time/checkpoint_s": 3.0, "time/left_s": 0.0}
    | {"val/loss": 1.1, "val/top1_error": 0.5, "val/top5_error": 0.1},
]


def test_an_epoch_is_the_mean_of_its_lines():
    """Batch 20: steps 1 to 4 at 10 images/s, the others at 20."""
    first, second = epochs(LINES, batch=20)
    assert first.train_loss == pytest.approx((3 * 2.0 + 2 * 1.0) / 5)  # the mean of steps 4 and 5
    assert first.train_error == pytest.approx((3 * 0.9 + 2 * 0.5) / 5)
    assert (first.val_top1, first.val_top5, first.rate, first.best) == (0.4, 0.2, 0.1, True)
    assert first.seconds == pytest.approx(6 + 2 + 1 + 4 + 1 + 2)
    assert first.images_per_s == pytest.approx(5 * 20 / 9)
    assert (second.train_loss, second.val_top1, second.best) == (0.5, 0.5, False)
    assert second.seconds == pytest.approx(5 + 3)


def test_columns_stand_under_their_heads():
    heads = [(found.start(), found.end()) for found in re.finditer(r"\S+( \S+)*", HEADER)]
    for one in epochs(LINES, batch=20):
        ends = [found.end() for found in re.finditer(r"[\d.:%]+", one.text())]
        assert len(ends) == len(heads)
        assert all(start < end <= stop for end, (start, stop) in zip(ends, heads, strict=True))


def test_in_a_file_each_line_of_metrics_is_told(capsys):
    progress = Progress(LINES[:1], batch=20, first=3, last=10)
    for line in LINES[1:]:
        progress.add(line)
    progress.close()
    told, bars = capsys.readouterr()
    assert not bars
    first, second = (one.text() for one in epochs(LINES, batch=20))
    assert told.splitlines() == [HEADER, first, second]
    assert "*" in first
    assert "*" not in second
    assert progress.best() == "best: epoch 1, top-1 error 40.00%"

    Progress([], batch=20, first=0, last=10).add(LINES[0])
    line = "step 3 of 10: loss 2.0000, error 90.00%, rate 0.1, 10 images/s, 1:30 left"
    assert capsys.readouterr().out.splitlines() == [HEADER, line]


def test_on_a_terminal_the_bar_has_the_newest_numbers(capsys, monkeypatch):
    monkeypatch.setattr(terminal.sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress([], batch=20, first=0, last=10)
    progress.add(LINES[0])
    progress.step()
    progress.close()
    told, bar = capsys.readouterr()
    assert told.splitlines() == [HEADER]
    assert "loss 2.0000, error 90.00%, rate 0.1, 10 images/s" in bar


def test_a_resumed_run_tells_the_epochs_before(records, tmp_path, capsys):
    values = {"devices": 1, "evaluate__ten_views_at_end": False, "log__layers_every": 0}
    fit(make_config(records, **values, steps=20), tmp_path)
    before = capsys.readouterr().out.splitlines()
    fit(make_config(records, **values, steps=32), tmp_path)
    after = capsys.readouterr().out.splitlines()
    shown = [line for line in before if re.match(r" +[\d.]+ ", line)]
    assert len(shown) == 2  # after an epoch of 16 steps, and at the end
    start = after.index(HEADER) + 1
    assert after[start : start + 2] == shown
    assert len([line for line in after if re.match(r" +[\d.]+ ", line)]) == 3
