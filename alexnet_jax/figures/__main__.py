"""The paper's figures and training curves, drawn from workdirs, configs or results.

python -m alexnet_jax.figures figure1 --workdirs=runs/relu,runs/tanh --out=figure1.png
python -m alexnet_jax.figures figure2 --config=configs/alexnet.py --out=figure2.png
python -m alexnet_jax.figures kernels --workdir=runs/alexnet --out=kernels.png
python -m alexnet_jax.figures neighbours --model=FOLDER --records=DIR --layer=pool5 --out=near.jpg
python -m alexnet_jax.figures curves --workdirs=runs/a,runs/b --out=curves.png
python -m alexnet_jax.figures differences --scores=a.json,b.json --out=differences.png
python -m alexnet_jax.figures layer_bytes --results=before.json,after.json --out=bytes.png

figure1     Fig. 1: training error by epochs for each activation, and when it reached 25%; seeds
            of one activation are a band
figure2     Fig. 2: the network, a colour for each device, and the bytes between the devices
kernels     Fig. 3: the first layer's kernels, tower A above tower B
towers      how colourful and how oriented the kernels of each tower are, run by run; prints a table
figure4     Fig. 4, left: eight validation images with their five best labels
neighbours  Fig. 4, right: five of them, and the training images with the nearest outputs of fc7;
            with --layer of another layer, with --records among other images
subnetworks  means of sampled networks, some neurons left out, beside the one pass of testing (§4.2)
curves      loss, error rates and learning rate of each run
differences of the errors of networks and their ablations, from files of `evaluate --json`
layer_bytes what a step's program moves in each layer, from files of `benchmark program --json`
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from alexnet_jax.figures.curves import draw_curves
from alexnet_jax.figures.differences import draw_differences
from alexnet_jax.figures.figure1 import draw_figure1
from alexnet_jax.figures.figure2 import draw_figure2
from alexnet_jax.figures.figure4 import draw_figure4, draw_neighbours
from alexnet_jax.figures.kernels import draw_kernels
from alexnet_jax.figures.layer_bytes import draw_layer_bytes
from alexnet_jax.figures.sheet import image_file
from alexnet_jax.figures.subnetworks import draw_subnetworks
from alexnet_jax.figures.towers import draw_towers, measure_towers, towers_table
from alexnet_jax.runtime import cli, host, hub
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.files import new_file
from alexnet_jax.training.trained import downloaded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: dict[str, Callable[[Sequence[Path]], "Figure"]] = {
    "figure1": draw_figure1,
    "kernels": draw_kernels,
    "figure4": draw_figure4,
    "neighbours": draw_neighbours,
    "subnetworks": draw_subnetworks,
    "curves": draw_curves,
}
NO_RUNS = ("figure2", "layer_bytes", "differences")  # which are not drawn from runs
NAMES = (*FIGURES, "towers", *NO_RUNS)

OPTIONS = flags.FlagValues()
WORKDIRS = flags.DEFINE_list("workdirs", None, "Folders of runs: runs/a,runs/b.", OPTIONS)
flags.DEFINE_alias("workdir", "workdirs", OPTIONS)
flags.DEFINE_alias("model", "workdirs", OPTIONS)
CONFIG = cli.define_config(OPTIONS)
RESULTS = flags.DEFINE_list("results", None, "Files of `benchmark program --json`.", OPTIONS)
SCORES = flags.DEFINE_list("scores", None, "Files of `evaluate --json`.", OPTIONS)
RECORDS = flags.DEFINE_string("records", None, "Of neighbours: other images.", OPTIONS)
LAYER = flags.DEFINE_string("layer", None, "Of neighbours: as pool5; else fc7.", OPTIONS)
OUT = flags.DEFINE_string("out", None, "The image to write: figure.png.", OPTIONS)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are those of the process if None."""
    cli.run(_run, OPTIONS, __doc__, arguments)


ONLY = (  # options of one figure
    *((CONFIG, "figure2"), (RECORDS, "neighbours"), (LAYER, "neighbours")),
    *((SCORES, "differences"), (RESULTS, "layer_bytes")),
)


def _run(arguments: Sequence[str]) -> None:
    name = cli.one_of(NAMES, arguments)
    for option, of in ONLY:
        if option.value and name != of:
            raise UserError(f"--{option.name} is for {of}, not for {name}")
    if WORKDIRS.value and name in NO_RUNS:
        raise UserError(f"--workdirs and --model are not for {name}")
    host.configure_jax(1)
    cli.required(OUT, "figure.png")
    out = image_file(OUT)
    assert out is not None
    if name == "figure2":
        figure = draw_figure2(cli.given_config(CONFIG))
    elif name == "neighbours":
        figure = draw_neighbours(_folders(), RECORDS.value, LAYER.value)
    elif name == "layer_bytes":
        figure = draw_layer_bytes(cli.input_files(RESULTS, "b.json,a.json"))
    elif name == "differences":
        figure = draw_differences(cli.input_files(SCORES, "a.json,b.json"))
    elif name == "towers":
        runs = measure_towers(_folders())
        figure = draw_towers(runs)
        print(towers_table(runs))
    else:
        figure = FIGURES[name](_folders())
    with new_file(out) as file:
        figure.savefig(file, dpi=150, format=out.suffix[1:].lower())
    print(f"{name} in {out}")


def _folders() -> list[Path]:
    """Of ``--workdirs`` or ``--model``; what is on the Hub is downloaded."""
    cli.folders(WORKDIRS)
    names = [name for name in WORKDIRS.value or () if name]
    return [downloaded(name) if hub.is_address(name) else Path(name) for name in names]


if __name__ == "__main__":
    main()
