"""The paper's figures, and training curves, drawn from workdirs.

python -m alexnet_jax.figures figure1 --workdirs=runs/relu,runs/tanh --out=figure1.png
python -m alexnet_jax.figures kernels --workdir=runs/alexnet --out=kernels.png
python -m alexnet_jax.figures curves --workdirs=runs/a,runs/b --out=curves.png

figure1     Fig. 1: training error by epochs for each activation, and when it reached 25%
kernels     Fig. 3: the first layer's kernels, tower A above tower B
towers      how colourful and how oriented the kernels of each tower are, run by run
figure4     Fig. 4, left: eight validation images with their five best labels
neighbours  Fig. 4, right: five of them, and the training images that fc7 takes for most alike
curves      loss, error rates and learning rate of each run
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet_jax.figures.curves import draw_curves
from alexnet_jax.figures.figure1 import draw_figure1
from alexnet_jax.figures.figure4 import draw_figure4, draw_neighbours
from alexnet_jax.figures.kernels import draw_kernels, draw_towers
from alexnet_jax.figures.sheet import image_file, save
from alexnet_jax.runtime import cli, host

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: dict[str, Callable[[Sequence[Path]], "Figure"]] = {
    "figure1": draw_figure1,
    "kernels": draw_kernels,
    "towers": draw_towers,
    "figure4": draw_figure4,
    "neighbours": draw_neighbours,
    "curves": draw_curves,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are the process' own if not given."""
    given = _parser().parse_args(arguments)

    def job() -> None:
        host.configure_jax(1)
        folders, out = cli.folders(given.workdirs), image_file(given.out)
        save(FIGURES[given.name](folders), out)
        print(f"{given.name} in {out}")

    cli.guard(job, "stopped")


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("figures", __doc__)
    add = parser.add_argument
    add("name", choices=tuple(FIGURES), help="which figure")
    add("--workdirs", "--workdir", required=True, help="the runs' folders, by commas")
    add("--out", required=True, help="the image to write, as figure.png")
    return parser


if __name__ == "__main__":
    main()
