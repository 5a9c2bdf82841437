"""The five best labels for images of one's own.

python -m alexnet_jax.predict --workdir=runs/alexnet IMAGE... [--json=FILE] [--out=FILE]

A image is rescaled and cut as the training images were (§2), and looked at in ten views (§4.1).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alexnet_jax.data.images import centre_square, decode
from alexnet_jax.figures.figure4 import Guess, best_guesses, draw_guesses
from alexnet_jax.figures.sheet import image_file, save
from alexnet_jax.runtime import cli, host
from alexnet_jax.runtime.terminal import complain, progress_bar
from alexnet_jax.training import trained
from alexnet_jax.training.scores import Evaluator

AT_ONCE = 16  # images at most; ten thousand need no more memory than these


def predict(
    net: trained.Trained, files: Sequence[Path], *, ten_views: bool = True
) -> tuple[list[tuple[Path, Guess]], list[str]]:
    """The best labels of the images in `files`, and a line for each that cannot be read.

    Args:
      net: a trained network, on one device.
      files: JPEG, PNG and other common files.
      ten_views: average over ten views; else the centre crop.
    """
    evaluator, size = Evaluator(net.setup), net.setup.config.data.size
    classes = net.setup.records.manifest.classes
    found: list[tuple[Path, Guess]] = []
    unread: list[str] = []
    # Always as many: a network is compiled anew for each number of images.
    images = np.zeros((min(AT_ONCE, len(files)), size, size, 3), np.uint8)
    with progress_bar(len(files), "images", "images", leave=False) as bar:
        for start in range(0, len(files), AT_ONCE):
            some = files[start : start + AT_ONCE]
            squares = _squares(some, size, unread)
            bar.update(len(some))
            if not squares:
                continue
            images[: len(squares)] = [square for _, square in squares]
            log = evaluator.log_probs_of(net.params, images, ten_views=ten_views)[: len(squares)]
            images = images[: len(squares)].copy()
            guesses = best_guesses(images, np.exp(log), classes, [None] * len(squares))
            found += [(file, guess) for (file, _), guess in zip(squares, guesses, strict=True)]
    return found, unread


def _squares(files: Sequence[Path], size: int, unread: list[str]) -> list[tuple[Path, np.ndarray]]:
    """Those that can be read, as uint8 [size, size, 3]; of the others a line goes to `unread`."""
    squares = []
    for file in files:
        try:
            squares.append((file, centre_square(decode(file.read_bytes()), size)))
        except OSError as error:
            unread.append(f"{file} cannot be read: {error.strerror}")
        except ValueError as error:
            unread.append(f"{file} {error}")
    return squares


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are the process' own if not given."""
    given = _parser().parse_args(arguments)

    def job() -> None:
        host.configure_jax(1)
        step, out = trained.parse_step(given.step), given.out and image_file(given.out)
        file = cli.output("--json", given.json)
        net = trained.open_trained(Path(given.workdir), step=step, records=given.records)
        files = [Path(name) for name in given.images]
        found, unread = predict(net, files, ten_views=given.views == 10)
        for name, guess in found:
            best = zip(guess.labels, guess.probs, strict=True)
            print(f"{name}: " + ", ".join(f"{label} {chance:.1%}" for label, chance in best))
        if file:
            values = [{"image": str(name), "labels": _named(guess)} for name, guess in found]
            file.write_text(json.dumps(values, indent=2) + "\n")
        if out and found:
            save(draw_guesses([guess for _, guess in found]), out)
        for line in unread:
            complain(line)
        if unread:
            sys.exit(2)

    cli.guard(job, "stopped")


def _named(guess: Guess) -> dict[str, float]:
    return dict(zip(guess.labels, guess.probs, strict=True))


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("predict", __doc__)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="JPEG, PNG and other common files")
    add("--workdir", required=True, help="the folder of a run")
    add("--views", type=int, choices=(1, 10), default=10, help="of each image; 10")
    add("--step", default="newest", help="the checkpoint: newest, best or a number; newest")
    add("--records", help="where the run's records are, if not where they were")
    add("--json", help="a file to write the five best labels to")
    add("--out", help="a image to draw: each image with its best labels as bars")
    return parser


if __name__ == "__main__":
    main()
