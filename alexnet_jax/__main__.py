"""python -m alexnet_jax: lists the commands.

Each is a module with a function `main`; its line is the first of its docstring. The modules are
read and not imported, which would take seconds.
"""

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import alexnet_jax
from alexnet_jax.runtime.terminal import complain


def commands() -> Iterator[tuple[str, str]]:
    """The name of each command and its line."""
    root = Path(__file__).parent
    for file in sorted([*root.glob("[!_]*.py"), *root.glob("*/__main__.py")]):
        module = ast.parse(file.read_text())
        names = {one.name for one in module.body if isinstance(one, ast.FunctionDef)}
        if "main" in names:
            line, *_ = (ast.get_docstring(module) or "").splitlines()
            yield file.parent.name if file.stem == "__main__" else file.stem, line


def main(arguments: Sequence[str]) -> int:
    """Prints the list, or the version; returns the exit status."""
    if "--version" in arguments:
        print(f"alexnet_jax {alexnet_jax.__version__}")
        return 0
    given = [one for one in arguments if one not in ("--help", "-h")]
    if given:
        complain(f"{given[0]!r}: give the command with a dot, as python -m alexnet_jax.main")
        return 2
    print("AlexNet of 2012 in JAX. The commands; each has --help:\n")
    for name, line in sorted(commands()):
        print(f"  python -m alexnet_jax.{name:9}  {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
