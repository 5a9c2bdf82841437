"""The lines on disk, the events, and the clock."""

import json

import pytest

from alexnet_jax.runtime import metrics
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.metrics import Clock, MetricsLog, read_metrics


def test_lines_are_on_disk_when_written(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.write(10, 0.5, {"train/loss": 2.5})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 10,
        "epoch": 0.5,
        "train/loss": 2.5,
    }
    log.close()


def test_opening_at_a_step_drops_what_came_later_and_what_was_cut_off(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.write(step, step / 20, {"train/loss": 1.0})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "epo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 20, 30]
    log = MetricsLog(tmp_path, 20)
    log.write(30, 1.5, {"train/loss": 0.5})
    log.close()
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert lines[-1]["train/loss"] == 0.5


def test_tensorboard_events_have_the_same_names_and_steps(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.write(7, 0.5, {"val/top1_error": 0.25})
    log.close()
    from tensorboardX.proto.event_pb2 import Event

    (file,) = tmp_path.glob("events.out.tfevents.*")
    data, found = file.read_bytes(), []
    while data:  # a record: length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    assert found == [(7, "val/top1_error", 0.25)]


def test_what_is_not_finite_is_null(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.write(1, 0.5, {"val/loss": float("inf"), "update/fc8": float("nan"), "train/loss": 1.5})
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert (line["val/loss"], line["update/fc8"], line["train/loss"]) == (None, None, 1.5)


@pytest.mark.parametrize(
    "bad",
    [
        *("not json", "[1]", '{"epoch": 1}', '{"step": 2}', '{"step": 2, "epoch": null}'),
        *('{"step": 2, "epoch": 1, "train/loss": "low"}', '{"step": 2, "epoch": 1, "\xff": 1}'),
    ],
)
def test_a_damaged_line_is_named(tmp_path, bad):
    good = '{"step": 1, "epoch": 0.5, "train/loss": null}'
    (tmp_path / "metrics.jsonl").write_bytes(f"{good}\n{bad}\n{good}\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is damaged"):
        read_metrics(tmp_path)


def test_a_workdir_without_metrics_has_no_lines(tmp_path):
    assert read_metrics(tmp_path) == []


def test_the_clock_keeps_training_apart_from_the_rest(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    clock = Clock(images_per_step=32, step=10)
    with clock.apart("compile"):
        now[0] += 50
    for _ in range(4):
        with clock.apart("input"):
            now[0] += 0.5
        now[0] += 1.5
    with clock.apart("evaluate"):
        now[0] += 10
    read = clock.read(14, steps_left=6, evaluations_left=2)
    assert read == {
        "time/compile_s": 50,
        "time/evaluate_s": 10,
        "time/images_per_s": pytest.approx(32 * 4 / 8),
        "time/input_wait": 0.25,
        "time/left_s": 6 * 2 + 2 * 10,
    }
    now[0] += 3  # nothing new is known
    assert clock.read(14, steps_left=3, evaluations_left=1) == {"time/left_s": 3 * 2 + 10}
