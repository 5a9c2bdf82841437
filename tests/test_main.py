"""The command main, and what all commands share: options, configs and one line for each error."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import ConfigDict

import alexnet_jax
from alexnet_jax import config, evaluate, main, predict, report, weights
from alexnet_jax.benchmark import __main__ as benchmark
from alexnet_jax.figures import __main__ as figures
from alexnet_jax.runtime import cli, host, workdir
from alexnet_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[1]
TINY = "--config=configs/tiny.py"
KINDS = "--config.data.source=foldr:x: there is no source 'foldr'; a source is folder:PATH, ilsvrc"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "alexnet_jax.main", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.slow
def test_describe_prints_the_papers_table_and_runs_nothing():
    done = command("--config=configs/alexnet.py", "--mode=describe")
    assert done.returncode == 0, done.stderr
    assert "60,965,224" in done.stdout
    assert "2 x cpu" in done.stdout


@pytest.mark.slow
def test_in_a_process_an_error_is_the_last_line_and_the_status():
    done = command(TINY, "--workdir=none", "--mode=evaluate")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: none holds no run")
    assert not (ROOT / "none").exists()


def fails_in_one_line(run, arguments, said, capsys, monkeypatch, *, first=True):
    monkeypatch.setattr(host, "configure_jax", lambda *_, **__: None)  # the process has begun
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        run(arguments)
    told, error = capsys.readouterr()
    assert not (first and told)  # what is wrong comes before all that is printed
    assert ended.value.code == 2
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (ROOT / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "error: --config is missing"),
        ([TINY], "error: --workdir is missing: give it, as --workdir=runs/tiny"),
        ([TINY, "--workdir="], "error: --workdir is missing: give it, as --workdir=runs/tiny"),
        ([TINY, "--workdir=none", "--mode=evaluate"], "error: none holds no run: there is no con"),
        ([TINY, "--workdir=none", "--step=bset"], "error: --step=bset: give newest, best or the"),
        (["--config=configs/none.py"], "there is no config configs/none.py; give a file, or one"),
        (
            ["--config=tinny"],
            "one of ablations, alexnet, alexnet_2012, bvlc_alexnet, caffenet, cifar10, cloth",
        ),
        (["--config=README.md"], "README.md cannot be loaded: SyntaxError"),
        (["--config=configs/__init__.py"], "cannot be loaded: KeyError: 'get_config'"),
        (["--config=configs/cifar10.py:19"], "has no net '19'; there are relu, tanh, sigmoid, 26"),
        (["--config"], "Missing value for flag --config"),
        ([TINY, "--config.bacth=3"], "config has no key 'bacth'; did you mean 'batch'?"),
        ([TINY, "--config.a.b=3"], "the config has no such key: a"),
        ([TINY, "--config.batch=x"], "error: --config.batch=x must be an integer"),
        ([TINY, "--config.batch="], "error: --config.batch= must be an integer"),
        ([TINY, "--config.batch=1.5"], "error: --config.batch=1.5 must be an integer"),
        ([TINY, "--config.optim.momentum=x"], "error: --config.optim.momentum=x must be a number"),
        ([TINY, "--config.data.mirror=x"], "error: --config.data.mirror=x must be true or false"),
        ([TINY, "--config.model.kernels=(1,"], "--config.model.kernels=(1, must be a tuple, as (1"),
        ([TINY, "--config.data.source=foldr:x", "--workdir=none"], KINDS),
        (
            [TINY, "--config.data.source=folder:", "--workdir=none"],
            "does not say where it is; a so",
        ),
        ([TINY, "--config.batch=0"], "config.batch=0 must be greater than or equal to 1"),
        (["--config.batch=3", TINY], "before a value for --config"),
        ([TINY, "--mode=tarin"], "flag --mode=tarin: value should be one of <train|evaluate"),
        ([TINY, "mode=evaluate"], "error: 'mode=evaluate' is not an option"),
        ([TINY, "--wrokdir=x"], "Unknown command line flag 'wrokdir'. Did you mean: workdir"),
        (
            [TINY, "--workdir=none", "--mode=evaluate", "--step=last"],
            "error: --step=last: give newest, best or the number of a checkpoint",
        ),
        (
            ["--config=alexnet", "--workdir=none", "--config.data.records=none"],
            "python -m alexnet_jax.prepare",
        ),
    ],
)
def test_a_wrong_command_gets_one_clear_line(arguments, said, capsys, monkeypatch):
    first = "prepare" not in said  # records are opened after the table of layers
    fails_in_one_line(main.main, arguments, said, capsys, monkeypatch, first=first)


def test_a_workdir_that_cannot_be_written_too(records, capsys, monkeypatch):
    arguments = [TINY, "--workdir=/proc/none", f"--config.data.records={records}"]
    arguments += ["--config.data.source=generated:256"]
    said = "the workdir /proc/none"
    fails_in_one_line(main.main, arguments, said, capsys, monkeypatch, first=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export"], "error: --workdir is missing"),
        (["export", "--workdir=none"], "error: --file is missing"),
        (["save", "--workdir=", "--out=none"], "error: --workdir is missing"),
        (
            ["save", "--workdir=none", "--out=none"],
            "error: there is no folder none, and the package",
        ),
        (
            ["save", "--workdir=none", "--out=none", "--step=bset"],
            "error: --step=bset: give newest",
        ),
        (["import", TINY, "--workdir=", "--file=none"], "error: --workdir is missing"),
        (
            ["import", TINY, "--layers=conv1"],
            "error: --layers is not an option of `weights import`",
        ),
        (["import", "--from=onnx", "--layout=caffe"], "error: --layout is not an option of `weig"),
        (["export", "--mean=1,2,3"], "error: --mean is not an option of `weights export`"),
        (["save", TINY], "error: --config is not an option of `weights save`"),
        (
            ["export", "--model=tiny", "--file=none", "--to=torch", "--layout=caffe"],
            "error: --layout is of safetensors files alone; give it, or --to",
        ),
        (["--workdir=x", "--file=y"], "error: give one of save, export, import"),
        (["export", "import"], "error: give one of save, export, import"),
        (["import", "--workdir=none", "--file=none"], "error: --config is missing"),
    ],
)
def test_a_wrong_command_of_weights_too(arguments, said, capsys, monkeypatch):
    fails_in_one_line(weights.main, arguments, said, capsys, monkeypatch)


def test_a_wrong_workdir_comes_first_in_the_others(capsys, monkeypatch):
    for run, line, said in (
        (predict.main, ["--model=", "a.jpg"], "error: --model is missing: give it, as --model="),
        (predict.main, ["--workdir=", "a.jpg"], "error: give a network: --model=runs/tiny"),
        (predict.main, ["--model=none", "a.jpg"], "error: there is no folder none, and the pa"),
        (predict.main, ["--model=none", "a.jpg", "--step=bset"], "error: --step=bset: give newest"),
        (evaluate.main, ["--workdirs="], "error: --workdirs is missing"),
        (evaluate.main, ["--workdirs=none"], "error: none holds no run"),
        (figures.main, ["kernels", "--workdirs=,", "--out=none.png"], "error: --workdirs is missi"),
        (
            figures.main,
            ["kernels", "--workdirs=none", "--out=none.png"],
            "error: there is no folder none",
        ),
        (report.main, ["--workdirs=none"], "error: none holds no run"),
    ):
        fails_in_one_line(run, line, said, capsys, monkeypatch)


@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_a_workdir_of_another_recipe_names_both_and_some_keys(tmp_path, capsys, monkeypatch, mode):
    c = cli.load_config("tiny")
    workdir.claim(tmp_path, c)
    line = ["--config=alexnet", f"--workdir={tmp_path}", f"--mode={mode}"]
    different = len(config.differences(config.as_dict(c), cli.load_config("alexnet")))
    assert different > 20
    said = (
        f"{tmp_path} holds a run of another config (tiny, not alexnet); it differs in batch, "
        f"data.crop, data.format, data.mean and {different - 4} more; give another --workdir, or"
    )
    fails_in_one_line(main.main, line, said, capsys, monkeypatch)
    line = [TINY, f"--workdir={tmp_path}", f"--mode={mode}", "--config.seed=7", "--config.batch=8"]
    said = "a run of another config; it differs in batch, seed; give another --workdir, or the same"
    fails_in_one_line(main.main, line, said, capsys, monkeypatch)


def test_the_package_lists_its_commands():
    """Those with a `main`, each with the first line that its --help prints."""
    line = [sys.executable, "-m", "alexnet_jax"]
    done = [
        subprocess.run([*line, *more], cwd=ROOT, capture_output=True, text=True, check=False)
        for more in ([], ["--help"], ["--version"], ["train"])
    ]
    assert done[0].stdout == done[1].stdout
    listed = re.findall(r"^  python -m alexnet_jax\.(\w+) +(.+)$", done[0].stdout, re.M)
    modules = {
        name: importlib.import_module(f"alexnet_jax.{name}")
        for name in ("evaluate", "main", "predict", "prepare", "probe", "report", "weights")
    } | {"benchmark": benchmark, "figures": figures}
    assert dict(listed) == {name: one.__doc__.splitlines()[0] for name, one in modules.items()}
    assert all(len(text) < 100 and not text.startswith("python") for _, text in listed)
    assert done[2].stdout == f"alexnet_jax {alexnet_jax.__version__}\n"
    assert [one.returncode for one in done] == [0, 0, 0, 2]
    assert done[3].stderr.startswith("error: 'train': give the command with a dot")


def test_help_prints_the_docstring_and_each_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as ended:
        main.main(["--help"])
    assert not ended.value.code
    text = capsys.readouterr().out
    assert text.startswith(main.__doc__.strip())
    for name in ("--config", "--workdir", "--mode", "--step"):
        assert f"\n  {name}: " in text
    assert "(default: 'newest')" in text
    assert "<train|evaluate|describe>" in text


# --- what is parsed -----------------------------------------------------------------------------


@pytest.fixture
def parse(monkeypatch):
    """Runs a command with two options and --config; gives what it sees."""
    monkeypatch.chdir(ROOT)
    options = flags.FlagValues()
    given = cli.define_config(options)
    name = flags.DEFINE_string("name", "nobody", "A name.", options)
    seen = []

    def job(arguments):
        seen[:] = [cli.given_config(given), name.value, list(arguments)]

    def run(*arguments):
        cli.run(job, options, "About.", arguments)
        return seen

    return run


@pytest.mark.parametrize(
    "line",
    [[TINY], ["--config", "configs/tiny.py"], ["--config=tiny"], ["--config=configs/tiny.py"]],
)
def test_a_config_is_named_in_these_ways(parse, line):
    c, name, rest = parse(*line, "a", "--name=b", "--config.batch=8", "-")
    assert (c.experiment.name, c.batch, c.model.width, name) == ("tiny", 8, 0.25, "b")
    assert rest == ["a", "-"]


def test_one_command_line_leaves_nothing_for_the_next(parse):
    parse(TINY, "--config.batch=8", "--name=b")
    c, name, _ = parse(TINY, "--config.batch=16", "--config.batch=32")
    assert (c.batch, name) == (32, "nobody")
    c, _, _ = parse(TINY)
    assert c.batch == 64


def test_values_of_every_kind_can_be_set(parse):
    c, _, _ = parse(
        *("--config=ablations:no_lrn", "--config.model.kernels=(8, 8, 8, 8, 8)"),
        *("--config.data.mirror=false", "--config.optim.layer_decay.fc8=0.5"),
        "--config.model.lrn.layers=('conv1',)",
    )
    assert c.experiment.name == "no_lrn"
    assert c.model.kernels == (8,) * 5
    assert c.data.mirror is False
    assert c.optim.layer_decay == {"fc8": 0.5}
    assert c.model.lrn.layers == ("conv1",)


OWN = "from alexnet_jax.configs import tiny\ndef get_config():\n    c = tiny.get_config()\n"


def test_a_file_of_the_current_folder_comes_before_the_packaged_one(parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(TINY)[0].batch == 64
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.py").write_text(f"{OWN}    c.batch = 24\n    return c\n")
    assert parse(TINY)[0].batch == 24
    assert parse("--config=tiny")[0].batch == 64
    (tmp_path / "mine.py").write_text(f"{OWN}    return c.to_dict()\n")
    assert parse("--config=mine.py", "--config.batch=4")[0].batch == 4


@pytest.mark.parametrize("name", ["others/tiny.py", "tiny.py", "configs/tiny", ""])
def test_no_other_name_stands_for_a_packaged_config(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"there is no config {name}; give a file, or one of abl"):
        cli.load_configs(name)


def test_all_variants_of_a_file_or_one(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def names(text: str) -> list[str]:
        return [one.experiment.name for one in cli.load_configs(text, all_variants=True)]

    assert len(names("configs/ablations.py")) == 22
    assert names("cifar10:18") == ["cifar10_18"]
    assert names("alexnet") == ["alexnet"]
    assert all(isinstance(one, ConfigDict) for one in cli.load_configs("tiny"))


def test_ctrl_c_is_one_line_and_status_130(capsys):
    def job(arguments):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        cli.run(job, flags.FlagValues(), "", [], stopped="stopped; resume")
    assert ended.value.code == 130
    assert capsys.readouterr().err == f"stopped; resume{os.linesep}"
