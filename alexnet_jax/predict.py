"""The five best labels for your own images: JPEG, PNG and other common files.

python -m alexnet_jax.predict --model=MODEL IMAGE_OR_FOLDER... [--json=FILE] [--out=FILE]
python -m alexnet_jax.predict --model=MODEL FOLDER_OR_TAR --submission=FILE --devkit=DIR

MODEL is the workdir of a run, a folder that `weights save` made, hf://OWNER/NAME, or the name of a
network in the package, as tiny. It needs no records. An image is rescaled and cut as the training
images were (§2), and scored by ten views (§4.1). Of a folder all images are labelled, also those in
its folders.

--submission writes a line of five numbers for each image of a folder or a tar, sorted by name, as
ILSVRC's devkit wants them. If it is stopped, the same command resumes.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from absl import flags

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
MODEL = flags.DEFINE_string("model", None, "A workdir, a folder to share, hf://...", OPTIONS)
WORKDIR = flags.DEFINE_string("workdir", None, "Another name of --model.", OPTIONS)
VIEWS = flags.DEFINE_enum("views", "10", ["1", "10"], "Views of each image.", OPTIONS)
STEP = flags.DEFINE_string("step", "newest", "Checkpoint: newest, best or a number.", OPTIONS)
RECORDS = flags.DEFINE_string(
    "records", None, "The run's records, for runs of version 0.1.", OPTIONS
)
JSON = flags.DEFINE_string("json", None, "File to write the five best labels to.", OPTIONS)
SUBMISSION = flags.DEFINE_string("submission", None, "File for the lines of a submission.", OPTIONS)
DEVKIT = flags.DEFINE_string("devkit", None, "ILSVRC's devkit: numbers of classes.", OPTIONS)
OUT = flags.DEFINE_string("out", None, "Figure to draw: images and their best labels.", OPTIONS)


def predict(
    net: trained.Net, files: Sequence[Path], *, views: Views = 10
) -> tuple[list[tuple[Path, Guess]], list[str]]:
    """The best labels of the images in `files`, and a line for each that cannot be read.

    Args:
      net: a trained network, on one device.
      files: JPEG, PNG and other common files.
      views: of each image, to average over; 1: the centre crop.
    """
    found: list[tuple[Path, Guess]] = []
    unread: list[str] = []
    with progress_bar(len(files), "images", "images", leave=False) as bar:
        for start in range(0, len(files), AT_ONCE):
            squares: dict[Path, np.ndarray] = {}
            for file in files[start : start + AT_ONCE]:
                try:
                    squares[file] = net.preprocess(file)[0]
                except UserError as error:
                    unread.append(str(error))
                bar.update()
            if squares:
                images = np.stack(list(squares.values()))
                guesses = best_guesses(images, net.probs(images, views=views), net.labels)
                found += zip(squares, guesses, strict=True)
    return found, unread


def _files(arguments: Sequence[str]) -> list[Path]:
    """The files that are named, and those in the folders that are named, each once."""
    found: dict[Path, None] = {}
    for one in map(Path, arguments):
        inside = [one]
        if one.is_dir():
            below = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
            hidden = [any(part.startswith(".") for part in path.parts) for path in below]
            inside = [one / path for path, hide in zip(below, hidden, strict=True) if not hide]
            if not inside:
                raise UserError(f"{one} has no images")
        found |= dict.fromkeys(inside)
    return list(found)


def _test_images(arguments: Sequence[str]) -> SourceSplit:
    """The images of the only argument. UserError: there are more, or options that do not fit."""
    if len(arguments) > 1 or JSON.value or OUT.value:
        raise UserError("--submission takes one folder or tar of images, no --json and no --out")
    return unlabelled(Path(arguments[0]))


def _submit(net: trained.Net, images: SourceSplit, file: Path) -> None:
    devkit = Path(DEVKIT.value) if DEVKIT.value else None
    classes = net.setup.data.classes
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
    model = WORKDIR.value if MODEL.value is None else cli.required(MODEL, "runs/tiny")
    if not model or None not in (MODEL.value, WORKDIR.value):
        raise UserError("give a network: --model=runs/tiny, and no --workdir, its other name")
    submission = cli.output(SUBMISSION)
    if submission:
        images = _test_images(arguments)
    files = [] if submission else _files(arguments)
    net = trained.load(model, step=step, records=RECORDS.value)
    if submission:
        _submit(net, images, submission)
        return
    found, unread = predict(net, files, views=cast(Views, int(VIEWS.value)))
    for name, guess in found:
        best = zip(guess.labels, guess.probs, strict=True)
        print(f"{name}: " + ", ".join(f"{label} {prob:.1%}" for label, prob in best))
    if file:
        values = [_as_json(net, name, guess) for name, guess in found]
        write_text(file, json.dumps(values, indent=2) + "\n")
    if out and found:
        draw_guesses([guess for _, guess in found]).savefig(out, dpi=150)
    for line in unread:
        complain(line)
    if unread:
        sys.exit(2)


def _as_json(net: trained.Net, name: Path, guess: Guess) -> dict[str, Any]:
    """The labels and their probabilities, and the classes of these labels, such as WNIDs."""
    classes = [net.classes[net.labels.index(label)] for label in guess.labels]
    labels = dict(zip(guess.labels, guess.probs, strict=True))
    return {"image": str(name), "labels": labels, "classes": classes}


if __name__ == "__main__":
    main()
