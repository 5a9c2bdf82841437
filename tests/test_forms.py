"""The forms of layers: tried, checked, timed and kept. A CPU stands in for the GPU."""

import dataclasses
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alexnet_jax import config
from alexnet_jax.configs import alexnet, alexnet_2012, cifar10
from alexnet_jax.model import ops
from alexnet_jax.model.forms import DEFAULT, NO_FORMS, LayerForm
from alexnet_jax.model.towers import DATA
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.sharding import make_mesh
from alexnet_jax.train import fit
from alexnet_jax.training import forms
from alexnet_jax.training.forms import DEFINITION, Block, choose
from alexnet_jax.training.setup import make_network
from tests.conftest import make_config
from tests.processes import finish, start
from tests.runs import lines, saved

ONE, TWO = LayerForm(together=False, then="one pass"), LayerForm(together=False, then="two passes")
CHOSEN = {"conv1": TWO, "conv4": LayerForm(together=True, then="definition")}


@pytest.fixture
def gpu(monkeypatch):
    """From now on a CPU is taken for a GPU; timing is short."""
    monkeypatch.setattr(forms, "PLATFORM", "cpu")
    monkeypatch.setattr(forms, "LIMIT", 3600.0)
    monkeypatch.setattr(forms, "REPEATS", 2)
    monkeypatch.setattr(forms, "SECONDS", 0.01)


# --- one layer ----------------------------------------------------------------------------------

SMALL = Block(  # one tower, so that only the chain has forms
    "conv2",
    *(3, 2, 8, 1, None, 1),
    (jax.ShapeDtypeStruct((4, 9, 9, 2), jnp.float32),),
    (ops.relu, ops.Lrn(config.Formula(size=5, k=2.0, alpha=1e-4, beta=0.75)), ops.MaxPool(3, 2)),
    first=False,
)


def called(function, x):
    """`x`, after the host was called with a number of it; its gradient does not depend on that."""
    number = lax.stop_gradient(x.ravel()[0])
    return x + jax.pure_callback(function, jax.ShapeDtypeStruct((), x.dtype), number)


def slow(x):
    return called(lambda number: (time.sleep(0.03), np.zeros_like(number))[1], x)


def unsteady(x):
    return called(lambda number: np.float32(1e-4 * np.random.default_rng().random()), x)


def failing(x):
    def fail(number):
        raise RuntimeError("out of registers")

    return called(fail, x)


def untraceable(x):
    raise NotImplementedError("no such kernel\nin this version")


def wrong(x):
    return x * 1.1


def wrong_backward(x):
    return lax.stop_gradient(-0.1 * x) + 1.1 * x


@pytest.fixture
def fastest(gpu, monkeypatch, capsys):
    """The form that is chosen for SMALL if some forms are `spoiled`; and what is said."""
    chain = ops.chain

    def choice(block=SMALL, **spoiled):
        def spoiling(x, *operations, form=None):
            after = spoiled.get(str(form).replace(" ", "_"), lambda y: y)
            y = chain(x, *operations, form=form)
            return after(y) if operations == block.operations else y

        monkeypatch.setattr(ops, "chain", spoiling)
        found = forms._fastest(block, make_mesh(1, 1, jax.devices()[:1]))
        return found, capsys.readouterr().out.splitlines()

    return choice


def test_a_faster_form_is_taken(fastest):
    found, said = fastest(definition=slow, one_pass=slow)
    assert found == TWO
    assert len(said) == 1
    assert said[0].startswith("conv2: plain chain in two passes; ")
    assert float(said[0].split("; ")[1].split("x")[0]) > 1.5


def test_a_slower_form_is_not_taken(fastest):
    found, said = fastest(definition=slow, two_passes=slow)
    assert found == ONE
    assert said[0].startswith("conv2: plain chain in one pass; ")


@pytest.mark.parametrize(("seconds", "taken"), [(0.96, ONE), (0.94, TWO)])
def test_a_form_must_be_faster_than_the_default_by_5_percent(fastest, monkeypatch, seconds, taken):
    monkeypatch.setattr(forms, "_times", lambda runs: {DEFINITION: 2.0, ONE: 1.0, TWO: seconds})
    found, said = fastest()
    assert found == taken
    assert said[-1].endswith(f"; {2 / (seconds if taken == TWO else 1):.2f}x the definition")


@pytest.mark.parametrize(
    ("spoiled", "reason"),
    [
        (wrong, "its output is off the definition by 0.1; 1e-05 is allowed"),
        (wrong_backward, "its gradient is off the definition by 0.1; 3e-03 is allowed"),
        (lambda x: x * jnp.nan, "its output is off the definition by nan"),
        (unsteady, "it does not give the same bits twice"),
        (untraceable, "no such kernel"),
        (failing, "INTERNAL: "),
    ],
)
def test_a_form_that_cannot_be_trusted_is_left_out_in_one_line(fastest, spoiled, reason):
    """It would be the fastest."""
    slower = {"definition": lambda x: slow(slow(x)), "one_pass": slow}
    found, said = fastest(**slower, two_passes=spoiled)
    assert found == ONE
    assert len(said) == 2
    assert said[0].startswith("conv2: plain chain in two passes is left out: ")
    assert reason in said[0]


def test_if_the_default_is_wrong_another_form_is_taken(fastest):
    assert fastest(one_pass=wrong, definition=slow)[0] == TWO
    found, said = fastest(one_pass=wrong, two_passes=untraceable)
    assert found == DEFINITION
    assert said[-1] == "conv2: chain as defined; 1.00x the definition"


def test_without_a_definition_to_compare_with_the_default_stays(fastest):
    found, said = fastest(definition=untraceable)
    assert found == DEFAULT
    assert len(said) == 2
    assert "conv2: the default" in said[1]


def test_no_form_must_give_the_same_bits_twice_if_the_definition_does_not(fastest):
    found, said = fastest(
        definition=lambda x: slow(unsteady(x)), one_pass=slow, two_passes=unsteady
    )
    assert (found, len(said)) == (TWO, 1)


def test_a_trial_finds_a_wrong_formula(fastest):
    """The numbers of a trial are large enough for each part of LRN to matter, in bfloat16, too."""
    inputs = tuple(jax.ShapeDtypeStruct(one.shape, jnp.bfloat16) for one in SMALL.inputs)
    for name, value in (("k", 2.2), ("alpha", 2e-4), ("beta", 0.7), ("size", 3)):
        formula = dataclasses.replace(SMALL.operations[1].formula, **{name: value})
        chain = (ops.relu, ops.Lrn(formula), ops.MaxPool(3, 2))
        mesh = make_mesh(1, 1, jax.devices()[:1])
        right = dataclasses.replace(SMALL, inputs=inputs)
        other = dataclasses.replace(right, operations=chain)
        numbers = forms._numbers(right, mesh)
        ours, theirs = (forms._compiled(b, ONE, mesh, numbers)() for b in (other, right))
        for limit, one, two in zip((5e-3, 3e-2), ours, theirs, strict=True):
            assert forms._difference(one, two) > limit, name


# --- the layers of a network --------------------------------------------------------------------


def full_size(module, **values):
    c = module.get_config()
    c.batch = 64
    c.update(values)
    return config.parse(c)


@pytest.mark.parametrize(("devices", "rows", "towers"), [(1, 64, 2), (2, 64, 1), (4, 32, 1)])
def test_layers_are_tried_as_one_device_computes_them(devices, rows, towers):
    """By hand, from the paper's Fig. 2."""
    c = full_size(alexnet_2012, devices=devices, dtype="bfloat16")
    found = {block.layer: block for block in forms.blocks(make_network(c), c)}
    own = [(rows, 27, 27, 48)], [(rows, 13, 13, 192)]
    assert {layer: [x.shape for x in block.inputs] for layer, block in found.items()} == {
        "conv1": [(rows, 224, 224, 3)],
        "conv2": towers * own[0],
        "conv3": [(rows, 13, 13, 256)],
        "conv4": towers * own[1],
        "conv5": towers * own[1],
    }
    sizes = {layer: (b.window, b.seen, b.units, b.stride) for layer, b in found.items()}
    assert sizes["conv1"] == (11, 3, 48, 4)
    assert sizes["conv2"] == (5, 48, 128, 1)
    assert sizes["conv3"] == (3, 256, 192, 1)
    assert sizes["conv5"] == (3, 192, 128, 1)
    assert {block.towers for block in found.values()} == {towers}
    assert {block.dtype for block in found.values()} == {"bfloat16"}
    assert [block.first for block in found.values()] == [True, False, False, False, False]
    lrn1, relu, pool = found["conv1"].operations
    assert (lrn1.formula.alpha, relu, pool) == (2e-5, ops.relu, ops.MaxPool(3, 2))
    assert [type(one) for one in found["conv2"].operations[1:]] == [
        *(ops.Lrn, ops.LrnWithin, ops.MaxPool)
    ]
    assert found["conv4"].operations == (ops.relu,)
    counts = {layer: len(forms.candidates(block)) for layer, block in found.items()}
    assert list(counts.values()) == ([5, 2, 2, 1, 1] if towers == 2 else [3, 2, 1, 1, 1])


@pytest.mark.parametrize("recipe", [alexnet, alexnet_2012])
def test_the_first_candidate_is_what_a_gpu_does_by_default(recipe, monkeypatch):
    """The same program, operation by operation."""
    modules = [
        sys.modules[f"alexnet_jax.model.ops.{n}"] for n in ("chain", "convolution", "pooling")
    ]
    for module in [*modules, ops]:
        monkeypatch.setattr(module, "platform", lambda: "gpu")
    c = full_size(recipe, devices=1)
    first = {b.layer: forms.candidates(b)[0] for b in forms.blocks(make_network(c), c)}
    other = {b.layer: forms.candidates(b)[-1] for b in forms.blocks(make_network(c), c)}
    default, explicit, another = (gradients(c, chosen).as_text() for chosen in ({}, first, other))
    assert default == explicit != another


def gradients(c, chosen, arguments=None):
    """The lowered program that gives the loss and all gradients."""
    network = make_network(c, forms=chosen)

    def loss(params, images, pull):
        return jnp.vdot(network.bind(params)(images), pull)

    def both(params, images, pull):
        value, gradient = jax.value_and_grad(loss)(params, images, pull)
        total = lax.psum(value, DATA) if network.mesh.shape[DATA] > 1 else value
        return total, gradient

    rows, crop = network.spec(DATA), c.data.crop
    shapes = (c.batch, crop, crop, 3), (c.batch, c.model.classes)
    numbers = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    specs = (network.specs, rows, rows), (network.spec(), network.specs)
    return network.jit(network.shard_map(both, *specs)).lower(network.shapes, *numbers)


QUICKLY = {"xla_backend_optimization_level": 0}  # LLVM's; the programs stay the same
ALL = [
    {f"conv{n}": LayerForm(together=together, then=then) for n in range(1, 6)}
    for together, then in [(True, "one pass"), (False, "two passes"), (True, "definition")]
]


@pytest.mark.parametrize(
    ("recipe", "devices"),
    [(alexnet, 1), (alexnet_2012, 1), (alexnet_2012, 2), (alexnet, 4)],
)
def test_every_form_gives_the_same_loss_and_gradients(recipe, devices):
    values = {"devices": devices, "model.classes": 10, "model.width": 0.125, "data.crop": 64}
    c = recipe.get_config()
    c.batch = c.evaluate.batch = 4
    c.update_from_flattened_dict({"data.size": 72} | values)
    c.model.std = dict.fromkeys(c.model.std, 0.05)
    c = config.parse(c)
    network = make_network(c)
    key = jax.random.key(0)
    images = 60 * jax.random.normal(key, (4, 64, 64, 3))
    numbers = network.init(0), images, jax.random.normal(key, (4, 10))
    loss, expected = gradients(c, {}).compile(QUICKLY)(*numbers)
    for chosen in ALL if devices == 1 else ALL[:1]:
        found, ours = gradients(c, chosen).compile(QUICKLY)(*numbers)
        np.testing.assert_allclose(found, loss, rtol=1e-5)
        for one, other in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max())


def test_the_real_forms_agree_and_are_said_layer_by_layer(gpu, tmp_path, capsys):
    c = make_config(devices=1, dtype="bfloat16")
    found = choose(make_network(c), c, tmp_path)
    assert list(found) == ["conv1", "conv2", "conv3"]
    said = capsys.readouterr().out
    assert "left out" not in said
    told = [line for line in said.splitlines() if line.endswith("x the definition")]
    assert [line.partition(":")[0] for line in told] == list(found)
    assert all("for each tower" in line or "for all towers" in line for line in told)
    assert f"kept in {tmp_path / 'forms.json'}" in said


def test_what_takes_too_long_is_not_tried(gpu, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(forms, "LIMIT", -1.0)
    c = make_config(devices=1)
    assert choose(make_network(c), c, tmp_path) == NO_FORMS
    assert capsys.readouterr().out.count("the default, untried") == 3


# --- what is kept -------------------------------------------------------------------------------


@pytest.fixture
def trials(gpu, monkeypatch):
    """What was tried: a config for each trial, which ends with CHOSEN."""
    tried = []
    monkeypatch.setattr(forms, "try_forms", lambda network, c: tried.append(c) or CHOSEN)
    return tried


def chosen(folder, **values):
    c = make_config(**{"devices": 1} | values)
    return choose(make_network(c), c, folder)


def test_a_kept_choice_is_taken_without_a_trial(trials, tmp_path, capsys):
    assert chosen(tmp_path) == chosen(tmp_path) == CHOSEN
    assert len(trials) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"layers are computed as kept in {tmp_path / 'forms.json'}"
    assert not any("from here on" in line for line in said)


def test_a_trial_that_ends_the_process_is_not_tried_again(trials, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as dying:
        dying.setattr(forms, "try_forms", lambda *_: sys.exit(134))
        with pytest.raises(SystemExit):
            chosen(tmp_path)
    assert chosen(tmp_path) == NO_FORMS
    assert not trials
    said = capsys.readouterr().out.splitlines()
    path = tmp_path / "forms.json"
    default = "layers are of the default forms: a trial of others did not end"
    assert said == [f"{default}; to try again, remove {path}"]
    path.unlink()
    assert chosen(tmp_path) == CHOSEN


def test_another_machine_jax_or_shape_chooses_anew_and_says_so(
    trials, tmp_path, capsys, monkeypatch
):
    chosen(tmp_path)
    for values, key in [
        ({"devices": 2}, "devices"),
        ({"devices": 2, "towers_apart": False}, "towers_apart"),
        ({"batch": 32}, "batch, devices, towers_apart"),
        ({"dtype": "bfloat16"}, "batch, dtype"),
        ({"model__width": 0.25}, "dtype, model"),
    ]:
        capsys.readouterr()
        assert chosen(tmp_path, **values) == CHOSEN
        line = capsys.readouterr().out.splitlines()[0]
        assert f"was made for another {key}; choosing anew, so results may differ" in line
    assert len(trials) == 6
    chosen(tmp_path)  # the first one is still there
    assert len(trials) == 6
    monkeypatch.setattr(jax, "__version__", "0.99")
    chosen(tmp_path)
    path = tmp_path / "forms.json"
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "H900"'))
    chosen(tmp_path)
    assert len(trials) == 8
    assert "was made for another device; choosing anew" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[{",
        "{}",
        '[{"forms": {}}]',
        '[{"place": {}, "forms": {"conv1": {"together": true, "then": "by magic"}}}]',
        '[{"place": {}, "forms": {"conv9": {"together": true, "then": null}}}]',
    ],
)
def test_a_damaged_choice_is_made_anew_and_nothing_is_lost(trials, tmp_path, capsys, text):
    path = tmp_path / "forms.json"
    path.write_text(text)
    assert chosen(tmp_path) == CHOSEN
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{path} cannot be used (")
    assert said[0].endswith("; choosing anew, so results may differ in rounding from here on")
    assert chosen(tmp_path) == CHOSEN
    assert len(trials) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["forms.json"]


def test_a_choice_that_cannot_be_read_is_made_anew(trials, tmp_path, capsys, monkeypatch):
    def fail(path):
        raise OSError(5, "Input/output error")

    (tmp_path / "forms.json").write_text("[]")
    monkeypatch.setattr(Path, "read_bytes", fail)
    assert chosen(tmp_path) == CHOSEN
    assert (
        "forms.json cannot be used (Input/output error); choosing anew" in capsys.readouterr().out
    )


def test_a_choice_that_cannot_be_written_ends_in_one_line(trials, tmp_path):
    with pytest.raises(UserError, match="cannot write in the workdir"):
        chosen(tmp_path / "missing")


def test_there_is_no_choice_on_a_cpu_without_forms_or_by_the_config(trials, tmp_path, monkeypatch):
    c = config.parse(cifar10.get_config("18"))
    assert choose(make_network(c), c, tmp_path) == NO_FORMS
    assert chosen(tmp_path, forms="default") == NO_FORMS
    monkeypatch.undo()
    assert chosen(tmp_path) == NO_FORMS
    assert not trials
    assert not list(tmp_path.iterdir())


TWO_PROCESSES = """
import sys
from pathlib import Path
from alexnet_jax.runtime import distributed
distributed.initialize()
from alexnet_jax.runtime import host
from alexnet_jax.training import forms
from alexnet_jax.training.setup import make_network
from tests.conftest import make_config

folder = Path(sys.argv[1]) / str(distributed.process_index())
host.configure_jax(2)
forms.PLATFORM, blocks = "cpu", forms.blocks
forms.blocks = lambda network, c: [one for one in blocks(network, c) if one.layer == "conv3"]
c = make_config(towers_apart=False)
print(forms.choose(make_network(c), c, folder))
"""


@pytest.mark.parametrize("kept_by", [0, 1])
def test_all_processes_take_the_main_processs_choice(trials, tmp_path, kept_by):
    """One of them has a choice, another one than a trial would end with."""
    for number in (0, 1):
        (tmp_path / str(number)).mkdir()
    chosen(tmp_path / str(kept_by), devices=2, towers_apart=False)
    results = finish(start([sys.executable, "-c", TWO_PROCESSES, str(tmp_path)], 2))
    assert [one.status for one in results] == [0, 0], results
    main, other = (one.output.splitlines() for one in results)
    assert main[-1] == other[-1]
    assert len(other) == 1
    if kept_by == 0:
        assert main[-1] == str(CHOSEN)
    else:
        assert main[-1].startswith("{'conv3': LayerForm(together=")
        assert any(line.endswith("x the definition") for line in main)
    files = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.json"))
    assert files == (["0/forms.json"] if kept_by == 0 else ["0/forms.json", "1/forms.json"])


# --- runs ---------------------------------------------------------------------------------------


def test_a_resumed_run_keeps_its_forms_and_its_bits(trials, records, tmp_path, monkeypatch):
    values = {"devices": 1, "log__every": 2, "checkpoint_every": 3}
    values |= {"evaluate__ten_views_at_end": False}
    c, stopped = (make_config(records, **values, steps=steps) for steps in (6, 3))
    fit(c, tmp_path / "whole")
    fit(stopped, tmp_path / "resumed")
    monkeypatch.setattr(forms, "try_forms", lambda network, c: ALL[1])  # would now time otherwise
    fit(c, tmp_path / "resumed")
    assert len(trials) == 2
    whole, resumed = saved(c, tmp_path / "whole"), saved(c, tmp_path / "resumed")
    assert resumed.step == 6
    jax.tree.map(np.testing.assert_array_equal, whole.state, resumed.state)
    assert lines(tmp_path / "whole")[-1] == lines(tmp_path / "resumed")[-1]

    fit(dataclasses.replace(c, forms="default"), tmp_path / "default")  # the forms have an effect
    default = saved(c, tmp_path / "default").state
    same = jax.tree.map(np.array_equal, default, whole.state)
    assert not all(jax.tree.leaves(same))
    assert not (tmp_path / "default" / "forms.json").exists()


def test_a_workdir_from_before_there_were_forms_resumes(records, tmp_path, capsys, trials):
    c = make_config(records, devices=1, steps=2, forms="default")
    fit(c, tmp_path)
    path = tmp_path / workdir.CONFIG
    values = json.loads(path.read_text())
    del values["forms"]
    path.write_text(json.dumps(values))
    assert workdir.read_config(tmp_path).forms == "default"
    fit(dataclasses.replace(c, steps=3, forms="fastest"), tmp_path)
    said = capsys.readouterr().out
    assert f"the run in {tmp_path} began without forms.json; choosing anew" in said
    assert "resuming from the checkpoint of step 2" in said
    assert json.loads((tmp_path / "forms.json").read_text())[0]["place"]["device"] == "cpu"
