"""Makes records from images, once for a whole set: rescaled and cut, with their statistics (§2).

python -m alexnet_jax.prepare --source=folder:PATH --out=DIR

If it is stopped, the same command resumes. Threads share the work: decoding, rescaling, encoding
and summing run without Python's lock, and unlike processes no thread outlives the command.
"""

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import cast, get_args

import cv2
from absl import flags

from alexnet_jax.config import Resize
from alexnet_jax.data import cores, images, layout, records, shards, sources
from alexnet_jax.runtime import cli, host, workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.files import make_folder
from alexnet_jax.runtime.terminal import progress_bar, say

LARGEST = 65_500  # pixels: the longest side that a JPEG encoder takes

OPTIONS = flags.FlagValues()
SOURCE = flags.DEFINE_string("source", None, f"Where the images are: {sources.KINDS}.", OPTIONS)
OUT = flags.DEFINE_string("out", None, "The folder to write; nothing else is written.", OPTIONS)
SIZE = flags.DEFINE_integer("size", 256, "Side of the images, pixels.", flag_values=OPTIONS)
FORMAT = flags.DEFINE_enum("format", "jpeg", get_args(layout.Format), "Of the records.", OPTIONS)
RESIZE = flags.DEFINE_enum(
    "resize", "area", get_args(Resize), "The paper's way, torchvision's, or Caffe's.", OPTIONS
)
SKIP_BAD = flags.DEFINE_bool("skip-bad", False, "Leave out images that cannot be decoded.", OPTIONS)
VERIFY = flags.DEFINE_bool("verify", False, "Read all records again and check them.", OPTIONS)
THREADS = flags.DEFINE_integer("threads", 0, "0: one for each core.", flag_values=OPTIONS)


def prepare(
    source: str,
    out: str | os.PathLike[str],
    *,
    size: int = 256,
    format: layout.Format = "jpeg",  # noqa: A002
    resize: Resize = "area",
    skip_bad: bool = False,
    threads: int = 0,
) -> layout.Manifest:
    """Writes the records of `source` to the folder `out`, or resumes writing them.

    The result depends on source, size, format, resize and skip_bad alone: not on threads or
    interruptions.

    Args:
      source: see `sources.open_source`.
      out: a new folder, or the folder of an interrupted run.
      size: side of the images, pixels.
      format: 'jpeg' or 'raw'.
      resize: how an image becomes a square, see `images.square`.
      skip_bad: leave out images that cannot be decoded, and list them in the manifest.
      threads: that read and write; 0: one for each core.

    Returns:
      What `out` now holds. If it was complete before, nothing is done.

    Raises:
      UserError: the source is not there, an image cannot be decoded, a label is outside the
        classes, or `out` holds something else or is being written by another process. Finished
        shards stay, so the same call resumes.
      OSError: a file cannot be read or written; the same holds.
    """
    folder, options = Path(out), layout.PrepareOptions(source, size, format, resize)
    if size < 1 or threads < 0:
        raise UserError(f"--size={size} must be at least 1, and --threads={threads} at least 0")
    _check_size(size, threads)
    if records.is_prepared(folder):
        manifest = records.open_records(folder).manifest
        options.require_same(folder, "prepared", vars(manifest))
        return manifest
    opened = sources.open_source(source, size)
    say(_summary(source, opened))
    _refuse_empty(source, {name: split.count for name, split in opened.splits.items()})
    layout.refuse_other_files(folder)
    with _hold(folder):
        if records.is_prepared(folder):  # by another process, since we looked
            (folder / layout.LOCK).unlink(missing_ok=True)
            return prepare(source, out, size=size, format=format, resize=resize)
        layout.begin(folder, options, _fingerprint(opened))
        made = {
            name: _write_split(folder, name, opened, options, skip_bad=skip_bad, threads=threads)
            for name in opened.splits
        }
        _refuse_empty(source, {n: sum(shard.file.count for shard in of) for n, of in made.items()})
        return shards.finish(folder, options, opened.classes, made)


@contextmanager
def _hold(folder: Path) -> Iterator[None]:
    """Makes `folder` and locks it: no other process can prepare in it until this one leaves.

    The file of the lock is removed with the others that a finished folder does not need.

    Raises:
      UserError: another process holds it.
    """
    make_folder(folder)
    with (folder / layout.LOCK).open("a+") as file:
        workdir.lock(file, folder, "--out")
        yield


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are those of the process if None."""
    cli.run(_run, OPTIONS, __doc__, arguments, stopped="stopped; the same command resumes")


def _run(arguments: Sequence[str]) -> None:
    cli.no_more(arguments)
    source, out = cli.required(SOURCE, "folder:photos"), cli.required(OUT, "records/photos")
    done = records.is_prepared(out)
    manifest = prepare(
        source,
        out,
        size=SIZE.value,
        format=cast(layout.Format, FORMAT.value),
        resize=cast(Resize, RESIZE.value),
        skip_bad=SKIP_BAD.value,
        threads=THREADS.value,
    )
    if VERIFY.value:
        records.verify(out)
        print(f"{out} holds what was prepared, to the last bit")
    counts = ", ".join(f"{split.count:,} {name}" for name, split in manifest.splits.items())
    print(f"{out} {'was prepared before' if done else 'is prepared'}: {counts} images")
    if note := manifest.note():
        print(f"Its images are of an earlier version of this program ({note})")
    if "validation" not in manifest.splits:
        print(
            f"There is no validation split (only {', '.join(manifest.splits)}); "
            f"training scores one: name another by --config.data.validation"
        )
    if manifest.skipped:
        count = len(manifest.skipped)
        print(f"Left out, as they cannot be decoded: {count}, listed in {out}/{layout.MANIFEST}")


def _summary(source: str, opened: sources.Source) -> str:
    counts = " and ".join(f"{split.count:,} {name}" for name, split in opened.splits.items())
    note = f"; {opened.note}" if opened.note else ""
    return f"{source}: {counts} images in {len(opened.classes):,} classes{note}"


def _refuse_empty(source: str, counts: Mapping[str, int]) -> None:
    for split, count in counts.items():
        if not count:
            raise UserError(f"--source={source} has no images in its split {split!r}")


def _check_size(size: int, threads: int) -> None:
    """Raises UserError if images of this size are none that a JPEG has, or need too much memory."""
    # Of each thread: the image, its copies as it is encoded, and the sum of all in int64.
    needed, free = (threads or cores()) * 3 * size**2 * (8 + 4), host.free_memory()
    if size > LARGEST:
        raise UserError(f"--size={size} must be at most {LARGEST}, as a JPEG's sides")
    if free is not None and needed > free:
        raise UserError(
            f"--size={size} needs about {needed / 1e9:,.1f} GB of memory in "
            f"{threads or cores()} threads, and {free / 1e9:,.1f} GB are free; "
            f"give a smaller --size or fewer --threads"
        )


def _fingerprint(source: sources.Source) -> str:
    """A hash of the names of all classes and images."""
    digest = hashlib.sha256("\n".join(source.classes).encode())
    for name, split in source.splits.items():
        digest.update(f"\n\n{name} {split.count}".encode())
        for index in range(split.count):
            digest.update(f"\n{split.name(index)}".encode())
    return digest.hexdigest()


def _write_split(
    folder: Path,
    name: str,
    source: sources.Source,
    options: layout.PrepareOptions,
    *,
    skip_bad: bool,
    threads: int,
) -> list[shards.Shard]:
    """Writes the shards of a split that do not exist yet; returns all, in order."""
    split = source.splits[name]
    # 64 shards, unless they would have less than 128 or more than 8192 images.
    per_shard = min(max(-(-split.count // 64), 128), 8192)
    starts = range(0, split.count, per_shard)
    stop, lock = threading.Event(), threading.Lock()
    cv2.setNumThreads(1)  # OpenCV's own threads would compete with these

    def write(number: int) -> shards.Shard:
        path = layout.shard_path(folder, options.format, name, number)
        part = range(starts[number], min(starts[number] + per_shard, split.count))
        shard = shards.finished_shard(path)
        if shard is None:
            return shards.write_shard(path, options, read(part))
        if shard.skipped and not skip_bad:
            raise _bad_image(shard.skipped[0])
        with lock:
            bar.update(len(part))
        return shard

    def read(part: range) -> Iterator[shards.LabelledImage | str]:
        for index in part:
            if stop.is_set():
                raise CancelledError
            yield _read(split, index, len(source.classes), options, skip_bad)
            with lock:
                bar.update()

    with (
        progress_bar(split.count, f"preparing {name}", "images") as bar,
        ThreadPoolExecutor(threads or cores()) as pool,
    ):
        try:
            return list(pool.map(write, range(len(starts))))  # raises the first shard's error
        finally:
            stop.set()  # after an error or a signal the other threads stop too


def _read(
    split: sources.SourceSplit,
    index: int,
    classes: int,
    options: layout.PrepareOptions,
    skip_bad: bool,
) -> shards.LabelledImage | str:
    """An image of the records and its label, or why it is left out.

    Raises:
      UserError: it cannot be decoded and may not be left out, or its label is outside the classes.
    """
    try:
        image, label = split.read(index)
        if isinstance(image, bytes):
            image = images.decode(image)
    except ValueError as error:
        problem = f"{split.name(index)}: {error}"
        if skip_bad:
            return problem
        raise _bad_image(problem) from error
    if not 0 <= label < classes:
        raise UserError(
            f"{split.name(index)} has label {label}; "
            f"the {classes} classes are 0 to {classes - 1}: the source is damaged"
        )
    return images.square(image, options.size, options.resize), label


def _bad_image(problem: str) -> UserError:
    return UserError(
        f"{problem}; fix or remove it, or leave out such images with prepare --skip-bad"
    )


if __name__ == "__main__":
    main()
