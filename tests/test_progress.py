"""What a run prints: epochs by hand from lines of metrics; a bar or lines; again after a resume."""

import contextlib
import gzip
import io
import re
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from alexnet_jax import config
from alexnet_jax.runtime import terminal
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.sharding import put_batch
from alexnet_jax.train import fit
from alexnet_jax.training import pictures
from alexnet_jax.training.pictures import kernel_mosaic
from alexnet_jax.training.progress import Progress, epochs, header
from alexnet_jax.training.setup import make_setup
from tests.conftest import make_config
from tests.runs import saved

HEADER = header(top5=True)
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


@pytest.mark.parametrize("top5", [True, False])
def test_columns_stand_under_their_heads(top5):
    head = header(top5=top5)
    heads = [(found.start(), found.end()) for found in re.finditer(r"\S+( \S+)*", head)]
    assert len(heads) == (8 if top5 else 7)
    for one in epochs(LINES, batch=20):
        ends = [found.end() for found in re.finditer(r"[\d.:%]+", one.text(top5=top5))]
        assert len(ends) == len(heads)
        assert all(start < end <= stop for end, (start, stop) in zip(ends, heads, strict=True))


def test_in_a_file_each_line_of_metrics_is_told(capsys):
    progress = Progress(LINES[:1], batch=20, first=3, last=10, top5=True)
    for line in LINES[1:]:
        progress.add(line)
    progress.close()
    told, bars = capsys.readouterr()
    assert not bars
    first, second = (one.text(top5=True) for one in epochs(LINES, batch=20))
    assert told.splitlines() == [HEADER, first, second]
    assert "*" in first
    assert "*" not in second
    assert progress.best() == "best: epoch 1, top-1 error 40.00%"

    Progress([], batch=20, first=0, last=10, top5=True).add(LINES[0])
    line = "step 3 of 10: loss 2.0000, error 90.00%, rate 0.1, 10 images/s, 1:30 left"
    assert capsys.readouterr().out.splitlines() == [HEADER, line]


def test_the_top5_error_is_left_out_where_it_says_nothing(capsys):
    """With five classes or fewer."""
    lines = [*LINES[:3], LINES[3] | {f"val_ten_views/top{k}_error": 0.3 - 0.06 * k for k in (1, 5)}]
    for classes, shown in ((5, False), (6, True)):
        c = make_config(model__classes=classes)
        progress = Progress(lines, batch=20, first=10, last=10, top5=c.has_top5)
        told = capsys.readouterr().out
        assert ("top-5" in told) is ("20.00%" in told) is shown
        end = "; at the end with ten views 24.00%" + (" (top-5 error 0.00%)" if shown else "")
        assert progress.best() == f"best: epoch 1, top-1 error 40.00%{end}"


def test_on_a_terminal_the_bar_has_the_newest_numbers(capsys, monkeypatch):
    monkeypatch.setattr(terminal.sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress([], batch=20, first=0, last=10, top5=True)
    progress.add(LINES[0])
    progress.step()
    progress.close()
    told, bar = capsys.readouterr()
    assert told.splitlines() == [HEADER]
    assert "loss 2.0000, error 90.00%, rate 0.1, 10 images/s" in bar


class Ended(NamedTuple):
    """A run of 20 steps, resumed until 32; an epoch has 16."""

    folder: Path
    c: config.Config
    before: list[str]  # what it printed
    after: list[str]


@pytest.fixture(scope="module")
def run(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("progress")
    values = {"devices": 2, "evaluate__ten_views_at_end": False, "log__layers_every": 0}
    values |= {"profile": "3:5"}
    told = [io.StringIO(), io.StringIO()]
    for steps, output in zip((20, 32), told, strict=True):
        c = make_config(records, **values, steps=steps)
        with contextlib.redirect_stdout(output):
            fit(c, folder)
    return Ended(folder, c, *(one.getvalue().splitlines() for one in told))


def test_a_resumed_run_tells_the_epochs_before(run):
    def shown(lines):
        return [line for line in lines if re.match(r" *[\d.]+  ", line)]

    assert len(shown(run.before)) == 2  # after an epoch, and at the end
    assert len(shown(run.after)) == 3
    start = run.after.index(HEADER) + 1
    assert run.after[start : start + 2] == shown(run.before)


def test_it_says_what_to_do_next(run):
    start = run.after.index("next")
    assert run.after[start - 2].startswith("best: epoch ")
    assert [line.split("  ")[1] for line in run.after[start + 1 :]] == [
        *("label a photo", "see its kernels", "see its curves", "share it")
    ]


def test_tensorboard_shows_kernels_weights_outputs_and_the_config(run):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    found = event_accumulator.EventAccumulator(str(run.folder), {"images": 0, "histograms": 0})
    found.Reload()
    params = saved(run.c, run.folder).state["params"]

    tags = found.Tags()
    image = found.Images("kernels/conv1")[-1]
    shown = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR_RGB)
    kernels = np.asarray(params["conv1"]["kernel"])
    expected = kernel_mosaic(kernels, 2).repeat(4, 0).repeat(4, 1)
    np.testing.assert_allclose(shown / 255, expected, atol=1 / 255)
    assert image.step == 32

    weights = found.Histograms("weights/conv2")[-1]
    kernel = np.asarray(params["conv2"]["kernel"], np.float64)
    value = weights.histogram_value
    assert (value.num, weights.step) == (kernel.size, 32)
    np.testing.assert_allclose(value.sum, kernel.sum(), rtol=1e-5)
    outputs = {tag for tag in tags["histograms"] if tag.startswith("highest_outputs/")}
    assert len(outputs) == len(run.c.model.names) - 1
    setup = make_setup(run.c)
    images = np.empty((16, 72, 72, 3), np.uint8)  # a batch of the first validation images
    for index, out in enumerate(images):
        setup.validation.read(index, out)
    placed = put_batch(setup.network.mesh, {"image": images}, 16)["image"]
    for layer, axes in (("conv2", (1, 2)), ("fc7", ())):
        events = found.Histograms(f"highest_outputs/{layer}")
        assert [one.step for one in events] == [16, 20, 32]  # each evaluation
        outputs = np.asarray(setup.evaluator.outputs_of(params, placed, layer)).max(axes)
        assert events[-1].histogram_value.num == outputs.size
        np.testing.assert_allclose(events[-1].histogram_value.sum, outputs.sum(), rtol=1e-4)

    text = found.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert '      "batch": 16,' in text.splitlines()


def test_mistakes_are_images_with_a_wrong_best_label(run):
    """Of the first batch of the validation split; by the scores of all."""
    setup = make_setup(run.c)
    params, split = setup.network.init(0), setup.validation
    log_probs = setup.evaluator.log_probs(params, split, views=1, what="test")[:16]
    wrong = np.flatnonzero(log_probs.argmax(1) != split.labels[:16])[:8]
    assert len(wrong) == 8
    classes = setup.records.manifest.classes
    (shown,) = pictures.of_mistakes(setup.evaluator, params, split, classes, 16)
    data = np.frombuffer(shown.value[0].image.encoded_image_string, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    assert image.shape == (44 + 224, 8 * 224, 3)
    for place, number in enumerate(wrong):
        original = np.empty((split.size, split.size, 3), np.uint8)
        split.read(int(number), original)
        tile = image[44:, 224 * place : 224 * (place + 1)]
        expected = cv2.resize(original, (224, 224), interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(tile, expected)


def test_steps_are_traced(run):
    (folder,) = run.folder.glob("profile/plugins/profile/*")
    (program,) = folder.glob("*.xplane.pb")
    assert b"conv1" in program.read_bytes()  # operations have the names of their layers
    assert b"traceEvents" in gzip.decompress((folder / "perfetto_trace.json.gz").read_bytes())
    assert sum("a trace from step 3 on is in" in line for line in run.before) == 1
    missing = "config.profile: no trace, as step 3 is not among 21 to 32"
    assert [line for line in run.after if "trace" in line] == [missing]


@pytest.mark.parametrize("profile", ["5", "5:5", "0:3", "a:b", "1:2:3", ":"])
def test_other_steps_to_trace_are_refused(profile):
    with pytest.raises(UserError, match="give steps as '100:110'"):
        make_config(profile=profile)
