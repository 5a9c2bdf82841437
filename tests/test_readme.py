"""What README tells people to type is what the commands take."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"^(?:.*&& .venv/bin/)?python3? -m alexnet_jax.*$", README, re.M)))


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_every_option_in_readme_is_one_of_its_command(line):
    module = re.search(r"-m (alexnet_jax\.\w+)", line)[1]
    help_ = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False
    ).stdout
    options = set(re.findall(r"--(\w+)", line.partition(module)[2]))
    assert options
    for option in options:
        assert re.search(rf"--(\[no\])?{option}\b", help_), f"{module} has no --{option}"


@pytest.mark.parametrize("name", sorted(set(re.findall(r"configs/\w+\.py", README))))
def test_every_config_in_readme_is_there(name):
    assert (Path(__file__).parents[1] / name).exists() or name == "configs/NAME.py"


def test_every_document_that_readme_links_is_there():
    for name in re.findall(r"\]\(([\w/.]+)\)", README):
        assert (Path(__file__).parents[1] / name).exists()
