"""A submission to ILSVRC: for each unlabelled test image a line with its five best labels."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from alexnet_jax.data.sources import SourceSplit
from alexnet_jax.data.unprepared import rest_of
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.files import write_text
from alexnet_jax.runtime.terminal import say
from alexnet_jax.training.scores import Views
from alexnet_jax.training.trained import Net

BEST = 5


def write_submission(
    net: Net, images: SourceSplit, ids: Sequence[int], file: Path, *, views: Views = 10
) -> None:
    """Writes the ids of the five best classes of each image to `file`, best first, in their order.

    Until all are done they lie in `file` with .part at its end, and the same call resumes there.

    Args:
      net: a trained network.
      images: the test images, in their order.
      ids: of the network's classes.
      file: a new file.
      views: of each image, to average over.

    Raises:
      UserError: an image cannot be read; or the lines there are of other images, or of another
        network.
    """
    if file.exists():
        raise UserError(f"{file} is there already; remove it, or give another --submission")
    part = file.with_name(f"{file.name}.part")
    about = json.dumps(
        {
            "workdir": str(net.folder.resolve()),
            "step": net.step,
            "views": views,
            "images": images.count,
            "first": images.name(0),
            "last": images.name(images.count - 1),
            "ids": list(ids),
        }
    )
    lines = _lines_of(part, about)
    if lines:
        say(f"resuming after {len(lines):,} of {images.count:,} images, which are in {part}")
    write_text(part, "\n".join([about, *lines, ""]))
    numbers, setup = np.asarray(ids), net.setup
    if len(lines) < images.count:
        rest = rest_of(images, len(lines), setup.config.data.size, setup.config.data.resize)
        batches = setup.evaluator.log_probs_by_batch(
            net.params, rest, views=views, what=f"labels for {file}"
        )
        with closing(batches), part.open("a") as out:
            for log_probs in batches:
                best = np.argsort(-log_probs[:, : len(numbers)], axis=1, kind="stable")[:, :BEST]
                new = [" ".join(map(str, row)) for row in numbers[best].tolist()]
                out.write("\n".join([*new, ""]))
                out.flush()
                lines += new
    write_text(file, "\n".join([*lines, ""]))
    part.unlink()


def _lines_of(part: Path, about: str) -> list[str]:
    """The whole lines of an interrupted call; a line that was cut off is left out."""
    if not part.exists():
        return []
    head, *lines = part.read_text(errors="replace").splitlines(keepends=True) or [""]
    if head.rstrip("\n") != about:
        raise UserError(
            f"{part} has lines of other images, or of another network or checkpoint; "
            f"remove it, or give another --submission"
        )
    whole = re.compile(r"\d+( \d+)*\n")
    bad = (number for number, line in enumerate(lines) if not whole.fullmatch(line))
    return [line.rstrip("\n") for line in lines[: next(bad, len(lines))]]


def class_ids(classes: Sequence[str], devkit: Path | None) -> list[int]:
    """The numbers that a submission has for the classes.

    Args:
      classes: of the network.
      devkit: the unpacked development kit of ILSVRC, whose data/meta.mat numbers WNIDs; None: the
        classes are numbered from 1 on in their order.

    Raises:
      UserError: the classes are WNIDs, but there is no devkit; or it lacks classes.
    """
    if devkit is None:
        if all(re.fullmatch(r"n\d{8}", name) for name in classes):
            raise UserError(
                "--devkit is missing: the classes are WNIDs, whose numbers in a submission only "
                "ILSVRC's devkit knows; give the folder ILSVRC2012_devkit_t12"
            )
        return list(range(1, len(classes) + 1))
    known = _ids_of_wnids(devkit / "data" / "meta.mat")
    for name in classes:
        if name not in known:
            raise UserError(f"{devkit}/data/meta.mat has no class {name}, which the network has")
    return [known[name] for name in classes]


def _ids_of_wnids(meta: Path) -> Mapping[str, int]:
    from scipy.io import loadmat

    try:
        synsets = loadmat(str(meta), squeeze_me=True)["synsets"]
        (number,) = (name for name in synsets.dtype.names if name.endswith("_ID"))
        return {str(one["WNID"]): int(one[number]) for one in np.atleast_1d(synsets)}
    except FileNotFoundError:
        raise UserError(f"there is no {meta}; give the unpacked devkit as --devkit") from None
    except Exception as error:  # at a damaged file scipy may raise anything
        raise UserError(f"{meta} is not the meta.mat of an ILSVRC devkit ({error})") from None
