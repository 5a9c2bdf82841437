"""Runs the notebooks' .py files and writes the .ipynb files with their figures and output.

python notebooks/refresh.py [NAME ...]

Progress bars, execution times and everything else that depends on the machine are removed.
"""

import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def refresh(script: Path) -> None:
    """Runs `script` in its folder and writes its notebook."""
    notebook = jupytext.read(script)
    where = {"metadata": {"path": str(script.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    kept = ("kernelspec", "language_info", "jupytext")
    for key in set(notebook.metadata) - set(kept):
        del notebook.metadata[key]
    nbformat.write(notebook, script.with_suffix(".ipynb"))


if __name__ == "__main__":
    names = sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("0*.py"))
    for name in names:
        print(name, flush=True)
        refresh(FOLDER / f"{name}.py")
