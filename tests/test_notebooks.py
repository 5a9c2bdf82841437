"""The notebooks: their two files hold the same cells, they are short, and they run."""

import ast
import shutil
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "notebooks").glob("0*.py"))

# A run of seconds. Everything that the notebooks read from it is there: each epoch measures the
# layers, and the learning rate drops.
SMALL = """

_whole = get_config


def get_config() -> ConfigDict:
    config = _whole()
    config.epochs = 2
    config.data.source = "generated:512"
    config.model.width = 0.125
    config.policy.phases = (
        {"epoch": 0, "rate": 1e-2, "layers": {}, "lighting": True},
        {"epoch": 1, "rate": 1e-3, "layers": {}, "lighting": True},
    )
    config.log.every, config.log.layers_every = 4, 8
    return config
"""


@pytest.fixture(params=SCRIPTS, ids=lambda script: script.stem)
def script(request):
    return request.param


def kept(script):
    """The notebook beside a script, as it is kept with its outputs."""
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def outputs(notebook):
    return [one for cell in notebook.cells for one in cell.get("outputs", [])]


def figures(notebook):
    """The kinds of image among the outputs, in order."""
    kinds = [kind for one in outputs(notebook) for kind in one.get("data", {})]
    return [kind for kind in kinds if kind.startswith("image/")]


def test_there_are_five():
    assert [script.stem[:2] for script in SCRIPTS] == ["01", "02", "03", "04", "05"]


def test_both_files_hold_the_same_cells(script):
    written, executed = jupytext.read(script), kept(script)
    sources = [[(cell.cell_type, cell.source) for cell in n.cells] for n in (written, executed)]
    assert sources[0] == sources[1]
    assert written.metadata.jupytext.formats == executed.metadata.jupytext.formats
    nbformat.validate(executed)


def test_a_notebook_is_short(script):
    assert len(jupytext.read(script).cells) < 40
    assert script.with_suffix(".ipynb").stat().st_size < 500_000
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            assert node.end_lineno - node.lineno < 10, f"line {node.lineno} of {script.name}"


def test_what_is_kept_ran_in_order_and_holds_nothing_of_the_machine_it_ran_on(script):
    notebook = kept(script)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert figures(notebook)
    assert not [one for one in outputs(notebook) if one.output_type == "error"]
    streams = [one for one in outputs(notebook) if one.output_type == "stream"]
    assert {one.name for one in streams} <= {"stdout"}
    assert str(ROOT) not in "".join(one.text for one in streams)
    assert {"kernelspec", "language_info", "jupytext"} == set(notebook.metadata)
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The package and the configs with a smaller `tiny`; records and runs go here as well."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "alexnet_jax").symlink_to(ROOT / "alexnet_jax")
    shutil.copytree(ROOT / "configs", folder / "configs")
    with (folder / "configs" / "tiny.py").open("a") as file:
        file.write(SMALL)
    (folder / "notebooks").mkdir()
    return folder


@pytest.mark.slow
def test_a_notebook_runs_and_draws_its_figures(script, checkout, monkeypatch):
    for name in ("JAX_COMPILATION_CACHE_DIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(checkout / name.lower()))
    notebook = jupytext.read(script)
    where = {"metadata": {"path": str(checkout / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    assert figures(notebook) == figures(kept(script))
    assert not [one for one in outputs(notebook) if one.output_type == "error"]
    assert list((checkout / "records").glob("*/manifest.json"))
