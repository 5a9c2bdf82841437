"""The benchmark: its reference programs, and that every section runs."""

import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx

from alexnet_jax import config
from alexnet_jax.benchmark import (
    input_time,
    layer_time,
    program,
    startup_time,
    step_time,
    timing,
)
from alexnet_jax.benchmark.__main__ import main
from alexnet_jax.benchmark.bench import Bench, Step
from alexnet_jax.configs import alexnet, cifar10
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.runtime import host
from alexnet_jax.runtime.errors import UserError
from tests.conftest import make_config
from tests.test_main import fails_in_one_line


def bench(folder, c, **values):
    defaults = {"batches": (8,), "dtypes": ("float32",), "devices": (1,), "peer": False}
    return Bench(**(defaults | {"config": c, "repeats": 1, "folder": folder} | values))


def test_things_are_timed_in_turn():
    calls = []
    works = {name: lambda count, name=name: calls.append((name, count)) for name in "ab"}
    times = timing.alternate(works, repeats=3, seconds=0)
    assert calls[:4] == [("a", 1), ("a", 1), ("b", 1), ("b", 1)]  # not timed
    assert calls[4:] == [("a", 1), ("b", 1)] * 3
    assert all(one.low <= one.median <= one.high for one in times.values())


def test_plain_jax_gives_our_logits():
    plain_jax = pytest.importorskip("tests.reference.plain_jax")
    plain = config.as_dict(config.parse(alexnet.get_config()))
    plain["model"] |= {"width": 0.125, "dropout": 0.0, "classes": 10}
    c = config.parse(plain).model
    net = AlexNet(c, 64, rngs=nnx.Rngs(0))
    images = 50 * jax.random.normal(jax.random.key(0), (4, 64, 64, 3))
    plain_logits = jax.jit(functools.partial(plain_jax.logits, c))
    theirs = plain_logits(nnx.to_pure_dict(nnx.state(net)), images, jax.random.key(0))
    np.testing.assert_allclose(
        nnx.jit(lambda net, x: net(x))(net, images), theirs, rtol=1e-4, atol=1e-5
    )


def test_operations_are_counted_as_usual():
    """Six for each of the 0.724 G multiply-adds forward, see test_alexnet: 4.35 GFLOP."""
    assert step_time.training_flop(config.parse(alexnet.get_config())) == 6 * 724_406_816


@pytest.mark.slow
def test_a_step_is_timed_beside_its_peers(records, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "compile", lambda net: net)  # minutes, for what is PyTorch's
    once = functools.partial(timing.alternate, seconds=0)
    monkeypatch.setattr(step_time, "alternate", once)
    paper = {"model__lrn__before_activation": (), "model__within_map__layers": ()}
    for c in (make_config(records, **paper), cifar(records)):
        rows = step_time.measure(bench(tmp_path, c, devices=(1, 2), peer=True))
        names = [row["what"] for row in rows]
        assert names[:3] == ["ours, 1 device(s)", "ours, 2 device(s)", "PyTorch eager"]
        assert ("plain JAX" in names) == isinstance(c.model, config.AlexNet)
        assert rows[0]["ours over it"] == 1
        for row in rows:
            assert row["lowest"] <= row["images/s"] <= row["highest"]


def cifar(records):
    plain = config.as_dict(config.parse(cifar10.get_config("18")))
    plain["data"] |= {"records": str(records), "validation": "validation", "size": 72}
    return config.parse(plain)


@pytest.mark.slow
@pytest.mark.long
def test_each_layer_has_a_row_on_a_grid_of_both_axes(records, tmp_path):
    rows = layer_time.measure(bench(tmp_path, make_config(records), devices=(4,)))
    assert [row["layer"] for row in rows] == [*make_config().model.names, "input, loss, update"]


def test_input_and_training_are_timed(records, tmp_path, monkeypatch):
    monkeypatch.setattr(input_time, "SECONDS", 0.2)
    c = make_config(records)
    jpeg, raw = input_time.measure_input(bench(tmp_path, c))
    assert jpeg["ratio"] == jpeg["images/CPU-s"] / jpeg["decoding alone, images/CPU-s"]
    assert raw["format"] == "raw"
    (row,) = input_time.measure_train(bench(tmp_path, c))
    assert row["ratio"] == pytest.approx(row["from records"] / row["one batch again, images/s"])
    assert row["checkpoint holds up, s"] <= row["written after, s"]


def test_memory_counts_the_state_once(records, tmp_path):
    """The new state takes the old one's place: 8 bytes a parameter, and the batch."""
    one, two = program.measure_memory(bench(tmp_path, make_config(records), devices=(1, 2)))
    made = Step(make_config(records))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(made.setup.network.shapes))
    assert 8e-6 * parameters < one["state and input, MB"] < 8e-6 * parameters + 1
    assert two["peak, MB"] < one["peak, MB"]


@pytest.mark.slow
def test_a_second_start_finds_the_compiled_programs(records, tmp_path):
    (row,) = startup_time.measure(bench(tmp_path, make_config(records)))
    assert row["ratio"] == row["second start, s"] / row["first start, s"]
    assert list((tmp_path / "cache-0").iterdir())


def test_a_start_that_fails_says_why(tmp_path):
    with pytest.raises(UserError, match="a process that only starts ended with status 1"):
        startup_time.measure(bench(tmp_path, make_config(tmp_path / "none")))


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(host, "configure_jax", lambda *_, **__: None)  # the process has begun
    file = tmp_path / "memory.json"
    arguments = ["memory", "--config=tiny", "--batch=8", f"--json={file}"]
    main([*arguments, f"--config.data.records={tmp_path / 'none'}"])
    result = json.loads(file.read_text())
    assert [row["batch"] for row in result["rows"]] == [8]
    assert "| batch |" in capsys.readouterr().out
    assert result["machine"]["jax"] == jax.__version__


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stpe", "--config=configs/tiny.py"], "error: give one of step, layers, input"),
        (["input", "--config=configs/tiny.py", "--peer"], "error: --peer: only the section step"),
        (
            ["memory", "--config=configs/tiny.py", "--json=no/x"],
            "error: --json=no/x: there is no folder",
        ),
        (["step", "--config=configs/tiny.py", "--batch=x"], "error: --batch=x: give whole numbers"),
        (["step", "--config=configs/tiny.py", "--dtype=f8"], "error: --dtype=f8: give float32"),
    ],
)
def test_a_wrong_command_gets_one_clear_line(arguments, said, capsys, monkeypatch):
    fails_in_one_line(main, arguments, said, capsys, monkeypatch)
