"""The wheel, installed: it has its own configs, and trains in a folder that has none."""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = ("steps=3", "batch=8", "model.width=0.125", "data.source=generated:64")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the package, as pip unpacks it from the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("alexnet_jax", "configs"):  # a copy, because building writes beside the sources
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    _run(folder, "pip", "wheel", "--no-deps", *_isolation(), "-w", "dist", "./source")
    (wheel,) = (folder / "dist").glob("*.whl")
    _run(folder, "pip", "install", "--no-deps", "--target", "site", str(wheel))
    return folder / "site"


@pytest.fixture
def empty(tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(installed))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return tmp_path


@pytest.mark.slow
def test_the_installed_files_are_used_and_a_config_is_found_by_its_name(empty, installed):
    assert "1,279,082" in _run(empty, "alexnet_jax.main", "--config=tiny", "--mode=describe")
    code = "import alexnet_jax, alexnet_jax.configs as c; print(alexnet_jax.__file__, c.__file__)"
    files = subprocess.check_output([sys.executable, "-c", code], cwd=empty, text=True).split()
    assert [Path(file).relative_to(installed) for file in files] == [
        Path("alexnet_jax", "__init__.py"),
        Path("alexnet_jax", "configs", "__init__.py"),
    ]


@pytest.mark.slow
def test_the_installed_package_trains_with_a_packaged_config(empty, installed):
    line = ["--config=configs/tiny.py", "--workdir=run", *(f"--config.{one}" for one in SMALL)]
    line += ["--config.evaluate.ten_views_at_end=False"]
    said = _run(empty, "alexnet_jax.main", *line)
    assert "\nbest: epoch " in said
    assert (empty / "run" / "metrics.jsonl").exists()
    (empty / "records").rename(empty / "gone")  # the workdir is enough
    code = (
        "import alexnet_jax, numpy as np; from alexnet_jax.data.info import imagenet_words;"
        "net = alexnet_jax.load('run'); print(net, len(imagenet_words()));"
        "print(net.top5(np.zeros((9, 9, 3), np.uint8)), alexnet_jax.tiny.batch)"
    )
    said = subprocess.check_output([sys.executable, "-c", code], cwd=empty, text=True)
    assert "AlexNet(two towers, 10 classes, 64 pixels) from run, step 3" in said
    assert said.endswith(" 64\n")
    assert (installed / "alexnet_jax" / "py.typed").exists()


@pytest.mark.slow
def test_the_installed_package_has_its_networks(empty, installed):
    names = sorted(one.name for one in (ROOT / "alexnet_jax" / "pretrained").iterdir())
    code = f"import alexnet_jax; [print(alexnet_jax.from_pretrained(name)) for name in {names}]"
    said = subprocess.check_output([sys.executable, "-c", code], cwd=empty, text=True)
    for name, line in zip(names, said.splitlines(), strict=True):
        assert f" from {installed / 'alexnet_jax' / 'pretrained' / name}, step " in line


def _run(folder: Path, module: str, *arguments: str) -> str:
    """What `python -m module` prints, run in `folder`."""
    line = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True, timeout=600)
    return done.stdout


def _isolation() -> list[str]:
    """Without a network if setuptools is here: pip then needs to fetch nothing."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        return []
    return ["--no-build-isolation"] if int(version.split(".")[0]) >= 77 else []
