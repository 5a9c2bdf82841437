"""The notebooks: both files of each hold the same cells, and they run."""

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

# A run of a few seconds with everything that the notebooks read: diagnostics of the layers in each
# epoch, and a drop of the learning rate.
SMALL = """

_whole = get_config


def get_config() -> ConfigDict:
    config = _whole()
    config.epochs = 2
    config.data.source = "generated:512"
    config.model.width = 0.125
    config.policy = alexnet_2012.as_noted({"rate": 1e-2}, {"epoch": 1, "rate": 1e-3})
    config.log.every, config.log.layers_every = 4, 8
    return config
"""


@pytest.fixture(params=SCRIPTS, ids=lambda script: script.stem)
def script(request):
    return request.param


def kept(script):
    """The committed .ipynb of a script, with its outputs."""
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def outputs(notebook):
    return [one for cell in notebook.cells for one in cell.get("outputs", [])]


def figures(notebook):
    """The image types among the outputs, in order."""
    kinds = [kind for one in outputs(notebook) for kind in one.get("data", {})]
    return [kind for kind in kinds if kind.startswith("image/")]


def test_both_files_hold_the_same_cells(script):
    written, executed = jupytext.read(script), kept(script)
    sources = [[(cell.cell_type, cell.source) for cell in n.cells] for n in (written, executed)]
    assert sources[0] == sources[1]
    assert written.metadata.jupytext.formats == executed.metadata.jupytext.formats
    nbformat.validate(executed)


def test_the_committed_outputs_are_of_one_run_and_name_no_machine(script):
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
    """A copy of the repository with a smaller `tiny`; records and runs are made here."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "alexnet_jax").mkdir()
    for part in (ROOT / "alexnet_jax").iterdir():
        (folder / "alexnet_jax" / part.name).symlink_to(part)
    # In an editable install this package is the repository's configs; here it is the copy.
    (folder / "alexnet_jax" / "configs").symlink_to(folder / "configs")
    with (folder / "configs" / "tiny.py").open("a") as file:
        file.write(SMALL)
    (folder / "notebooks").mkdir()
    return folder


@pytest.mark.slow
def test_a_notebook_runs_and_shows_its_figures(script, checkout, monkeypatch):
    for name in ("JAX_COMPILATION_CACHE_DIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(checkout / name.lower()))
    notebook = jupytext.read(script)
    where = {"metadata": {"path": str(checkout / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    assert figures(notebook) == figures(kept(script))
    assert not [one for one in outputs(notebook) if one.output_type == "error"]
    assert list((checkout / "records").glob("*/manifest.json"))
