"""What cannot fit the memory is refused in one line, before anything is compiled or written."""

from pathlib import Path

import jax
import pytest

from alexnet_jax import main
from alexnet_jax.runtime import cli, host
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.train import fit
from alexnet_jax.training import memory
from alexnet_jax.training.setup import make_network
from alexnet_jax.training.step import make_step, step_shapes
from tests.conftest import make_config
from tests.test_main import TINY, fails_in_one_line


def compiled(network, c):
    step = make_step(network, c.optim, c.data, batch=c.batch, seed=c.seed)
    return step.trace(*step_shapes(network, c)).lower().compile()


@pytest.mark.parametrize(("devices", "dtype"), [(1, "float32"), (2, "float32"), (2, "bfloat16")])
def test_what_is_counted_is_less_than_the_compiler_plans_and_not_much_less(devices, dtype):
    """So nothing is refused that fits."""
    c = make_config(devices=devices, dtype=dtype, batch=32)
    network = make_network(c)
    need, plan = memory.training_need(network, c), compiled(network, c).memory_analysis()
    new = plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    assert 0.25 < (need.weights + need.images) / (plan.argument_size_in_bytes + new) < 1
    assert need.waiting == 32 * 64 * 64 * 3


def test_towers_and_rows_share_what_is_counted():
    need = {}
    for devices in (1, 2, 4):
        c = make_config(devices=devices, batch=32)
        need[devices] = memory.training_need(make_network(c), c)
    assert need[2].weights == need[4].weights < 0.6 * need[1].weights
    assert need[4].images < 0.6 * need[2].images < 0.6 * need[1].images


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("batch=2147483647", "a training step (15.3 MB for the weights, 242.7 TB for config.batch"),
        ("evaluate.batch=2147483647", "scoring (5.1 MB for the weights, 79.8 TB for"),
        ("model.width=63.9", "scoring (328.7 GB for the weights"),
        ("model.classes=2000000000", "needs at least 9."),
        ("data.threads=2000000", "config.data.threads=2000000 must be less than or equal to 1024"),
        (
            "model.pool_window=2000000",
            "config.model.pool_window=2000000 must be less than or equal",
        ),
        ("devices=1000000", "config.devices=1000000, but this machine has 4 cpu device(s)"),
    ],
)
def test_a_config_that_is_far_too_large_gets_one_line(option, said, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(memory.host, "free_memory", lambda: 2**34)
    line = [TINY, "--workdir=none", f"--config.data.records={tmp_path}/none", "--config.devices=1"]
    line += [f"--config.{option}"]  # the table of layers comes before: it shows what is large
    fails_in_one_line(main.main, line, said, capsys, monkeypatch, first=False)
    assert not list(tmp_path.iterdir())


def test_too_many_devices_are_refused_before_jax_is_asked_for_them():
    with pytest.raises(UserError, match="1000000 devices: a process has 1024 at most"):
        host.configure_jax(1_000_000)


def test_the_memory_of_devices_counts_where_they_have_their_own(monkeypatch):
    c = make_config(devices=1, batch=64)
    network = make_network(c)
    need = memory.training_need(network, c)
    each = need.weights + need.images
    monkeypatch.setattr(host, "free_device_memory", lambda device: each - 1)
    with pytest.raises(
        UserError, match=r"a training step .* on each device, and .* are free; give"
    ):
        memory.check_memory(network, c, training=True)
    memory.check_memory(network, c, training=False)
    monkeypatch.setattr(host, "free_device_memory", lambda device: each)
    monkeypatch.setattr(host, "free_memory", lambda: need.waiting)
    memory.check_memory(network, c, training=True)
    monkeypatch.setattr(host, "free_memory", lambda: need.waiting - 1)
    with pytest.raises(UserError, match="for the images alone"):
        memory.check_memory(network, c, training=True)


def test_what_only_the_compiler_knows_is_refused_before_the_first_step(
    records, tmp_path, monkeypatch
):
    c = make_config(records, devices=1, steps=1)
    free = iter([2**40, 2**40, 2**20])  # for scoring, a step by its shapes, and as compiled
    monkeypatch.setattr(host, "free_memory", lambda: next(free))
    with pytest.raises(UserError, match="a training step of 16 images needs at least"):
        fit(c, tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore")]
)
def test_a_lack_of_memory_that_comes_later_is_one_line_too(error, capsys):
    def job(arguments):
        raise error

    with pytest.raises(SystemExit) as ended:
        cli.run(job, cli.flags.FlagValues(), "", [])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: not enough memory: ")
    assert said.count("\n") == 1


def test_the_free_memory_of_this_machine():
    total = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal")
    )
    assert 2**28 < host.free_memory() < total
    assert host.free_device_memory(jax.devices()[0]) is None
