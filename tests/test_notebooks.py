"""The notebooks: both files of each hold the same cells, and they run."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
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
    shutil.copytree(ROOT / "tests" / "photos", folder / "tests" / "photos")
    return folder


def test_the_cell_that_installs_is_the_same_in_all():
    cells = [jupytext.read(script).cells for script in SCRIPTS]
    first = {next(cell.source for cell in some if cell.cell_type == "code") for some in cells}
    assert len(first) == 1
    assert 'REPOSITORY = ""' in first.pop()


@pytest.fixture(scope="module")
def colab(checkout, tmp_path_factory):
    """Python that has all that the package needs, but not the package; pip finds it in a folder."""
    folder = tmp_path_factory.mktemp("colab")
    source = folder / "source"
    copied = shutil.ignore_patterns("__pycache__", "configs")
    shutil.copytree(ROOT / "alexnet_jax", source / "alexnet_jax", ignore=copied)
    shutil.copytree(checkout / "configs", source / "configs")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    wheel = ("pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source)
    subprocess.run([sys.executable, "-m", *wheel], check=True)
    venv.create(folder / "venv", with_pip=False)
    (site,) = folder.glob("venv/lib/*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    kernel = folder / "kernels" / "colab"
    kernel.mkdir(parents=True)
    line = [str(folder / "venv/bin/python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": line, "display_name": "colab", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    return folder, site


def run_in(folder, script, kernel, keep, monkeypatch):
    """Runs a notebook; what its kernel caches is in `keep`."""
    for name in ("JAX_COMPILATION_CACHE_DIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(keep / name.lower()))
    notebook, where = jupytext.read(script), {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name=kernel, resources=where).execute()
    assert figures(notebook) == figures(kept(script))
    assert not [one for one in outputs(notebook) if one.output_type == "error"]
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS[:1], ids=["00_start"])
def test_a_notebook_runs_in_the_checkout(script, checkout, monkeypatch):
    """The first; what all of them do is seen in the next test."""
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    run_in(checkout / "notebooks", script, "python3", checkout, monkeypatch)
    assert list((checkout / "records").glob("*/manifest.json"))


@pytest.mark.slow
def test_a_notebook_installs_the_package_and_runs_alone(script, colab, tmp_path, monkeypatch):
    folder, site = colab
    monkeypatch.setenv("JUPYTER_PATH", str(folder))
    values = {"FIND_LINKS": folder, "NO_INDEX": 1, "NO_DEPS": 1, "IGNORE_INSTALLED": 1}
    for name, value in values.items():
        monkeypatch.setenv(f"PIP_{name}", str(value))
    for installed in site.glob("alexnet_jax*"):
        shutil.rmtree(installed)
    run_in(tmp_path, script, "colab", folder, monkeypatch)
    assert (site / "alexnet_jax").is_dir()
    assert list((tmp_path / "records").glob("*/manifest.json"))
