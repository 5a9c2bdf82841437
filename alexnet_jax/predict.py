"""The five best labels for your own images: JPEG, PNG and other common files.

python -m alexnet_jax.predict --workdir=runs/alexnet IMAGE... [--json=FILE] [--out=FILE]
python -m alexnet_jax.predict --workdir=runs/alexnet FOLDER_OR_TAR --submission=FILE --devkit=DIR

An image is rescaled and cut as the training images were (§2), and scored by ten views (§4.1).

--submission writes a line of five numbers for each image of a folder or a tar, sorted by name, as
ILSVRC's devkit wants them. If it is stopped, the same command resumes.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from absl import flags

from alexnet_jax.data.images import centre_square, decode
from alexnet_jax.data.sources import SourceSplit
from alexnet_jax.data.unprepared import unlabelled
from alexnet_jax.figures.figure4 import Guess, best_guesses, draw_guesses
from alexnet_jax.figures.sheet import image_file
from alexnet_jax.runtime import cli, host
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.files import write_text
from alexnet_jax.runtime.terminal import complain, progress_bar
from alexnet_jax.submission import class_ids, write_submission
from alexnet_jax.training import trained
from alexnet_jax.training.scores import Views

AT_ONCE = 16  # images at most, so that ten thousand need no more memory

OPTIONS = flags.FlagValues()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run.", OPTIONS)
VIEWS = flags.DEFINE_enum("views", "10", ["1", "10"], "Views of each image.", OPTIONS)
STEP = flags.DEFINE_string("step", "newest", "Checkpoint: newest, best or a number.", OPTIONS)
RECORDS = flags.DEFINE_string("records", None, "Where the run's records are now.", OPTIONS)
JSON = flags.DEFINE_string("json", None, "File to write the five best labels to.", OPTIONS)
SUBMISSION = flags.DEFINE_string("submission", None, "File for the lines of a submission.", OPTIONS)
DEVKIT = flags.DEFINE_string("devkit", None, "ILSVRC's devkit: numbers of classes.", OPTIONS)
OUT = flags.DEFINE_string("out", None, "Figure to draw: images and their best labels.", OPTIONS)


def predict(
    net: trained.Trained, files: Sequence[Path], *, views: Views = 10
) -> tuple[list[tuple[Path, Guess]], list[str]]:
    """The best labels of the images in `files`, and a line for each that cannot be read.

    Args:
      net: a trained network, on one device.
      files: JPEG, PNG and other common files.
      views: of each image, to average over; 1: the centre crop.
    """
    evaluator, size = net.setup.evaluator, net.setup.config.data.size
    classes = net.setup.records.manifest.classes
    found: list[tuple[Path, Guess]] = []
    unread: list[str] = []
    # Always the same number, because the network is compiled again for each number of images.
    images = np.zeros((min(AT_ONCE, len(files)), size, size, 3), np.uint8)
    with progress_bar(len(files), "images", "images", leave=False) as bar:
        for start in range(0, len(files), AT_ONCE):
            some = files[start : start + AT_ONCE]
            squares = _squares(some, size, unread)
            bar.update(len(some))
            if not squares:
                continue
            paths, own = zip(*squares, strict=True)
            images[: len(own)] = own
            log = evaluator.log_probs_of(net.params, images, views=views)[: len(own)]
            guesses = best_guesses(np.stack(own), np.exp(log), classes, [None] * len(own))
            found += zip(paths, guesses, strict=True)
    return found, unread


def _squares(files: Sequence[Path], size: int, unread: list[str]) -> list[tuple[Path, np.ndarray]]:
    """The files that can be read, as uint8 [size, size, 3]; `unread` gets a line for each other."""
    squares = []
    for file in files:
        try:
            squares.append((file, centre_square(decode(file.read_bytes()), size)))
        except OSError as error:
            unread.append(f"{file} cannot be read: {error.strerror}")
        except ValueError as error:
            unread.append(f"{file} {error}")
    return squares


def _test_images(arguments: Sequence[str]) -> SourceSplit:
    """The images of the only argument. UserError: there are more, or options that do not fit."""
    if len(arguments) > 1 or JSON.value or OUT.value:
        raise UserError("--submission takes one folder or tar of images, no --json and no --out")
    return unlabelled(Path(arguments[0]))


def _submit(net: trained.Trained, images: SourceSplit, file: Path) -> None:
    devkit = Path(DEVKIT.value) if DEVKIT.value else None
    classes = net.setup.records.manifest.classes
    ids = class_ids(classes, devkit)
    write_submission(net, images, ids, file, views=cast(Views, int(VIEWS.value)))
    print(f"{file} has {images.count:,} lines, for the images in the order of their names")
    if devkit is None:
        print(f"classes are numbered in their order: 1 is {classes[0]}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are those of the process if None."""
    resume = "stopped; the same command resumes a submission"
    cli.run(_run, OPTIONS, __doc__, arguments, stopped=resume)


def _run(arguments: Sequence[str]) -> None:
    if not arguments:
        raise UserError("give the files of images")
    host.configure_jax(1)
    step, file, out = trained.parse_step(STEP.value), cli.output(JSON), image_file(OUT)
    folder = Path(cli.required(WORKDIR, "runs/tiny"))
    submission = cli.output(SUBMISSION)
    if submission:
        images = _test_images(arguments)
    net = trained.open_trained(folder, step=step, records=RECORDS.value)
    if submission:
        _submit(net, images, submission)
        return
    found, unread = predict(net, list(map(Path, arguments)), views=cast(Views, int(VIEWS.value)))
    best = [(str(name), dict(zip(one.labels, one.probs, strict=True))) for name, one in found]
    for name, labels in best:
        print(f"{name}: " + ", ".join(f"{label} {prob:.1%}" for label, prob in labels.items()))
    if file:
        values = [{"image": name, "labels": labels} for name, labels in best]
        write_text(file, json.dumps(values, indent=2) + "\n")
    if out and found:
        draw_guesses([guess for _, guess in found]).savefig(out, dpi=150)
    for line in unread:
        complain(line)
    if unread:
        sys.exit(2)


if __name__ == "__main__":
    main()
