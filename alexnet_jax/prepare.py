"""Prepares records from images, once for a whole set: rescale, cut, store, compute statistics (§2).

python -m alexnet_jax.prepare --source=folder:PATH --out=DIR

If it is stopped, the same command resumes. Threads share the work: decoding, rescaling, encoding
and summing run without Python's lock, and unlike processes no thread outlives the command.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import cv2
import numpy as np
from absl import flags
from jaxtyping import UInt8

from alexnet_jax.data import cores, images, layout, records, shards, sources
from alexnet_jax.runtime import cli
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.terminal import progress_bar

OPTIONS = flags.FlagValues()
SOURCE = flags.DEFINE_string("source", None, f"Where the images are: {sources.KINDS}.", OPTIONS)
OUT = flags.DEFINE_string("out", None, "The folder to write; nothing else is written.", OPTIONS)
SIZE = flags.DEFINE_integer("size", 256, "Side of the images, pixels.", flag_values=OPTIONS)
FORMAT = flags.DEFINE_enum("format", "jpeg", get_args(layout.Format), "Of the records.", OPTIONS)
SKIP_BAD = flags.DEFINE_bool("skip-bad", False, "Leave out images that cannot be decoded.", OPTIONS)
VERIFY = flags.DEFINE_bool(
    "verify", False, "Read all records again, and check their checksums.", OPTIONS
)
THREADS = flags.DEFINE_integer(
    "threads", 0, "Threads that share the work; 0: one for each core.", flag_values=OPTIONS
)


def prepare(
    source: str,
    out: str | os.PathLike[str],
    *,
    size: int = 256,
    format: layout.Format = "jpeg",  # noqa: A002
    skip_bad: bool = False,
    threads: int = 0,
) -> layout.Manifest:
    """Writes the records of `source` to the folder `out`, or resumes writing them.

    The result depends on source, size, format and skip_bad alone: not on threads or interruptions.

    Args:
      source: see `sources.open_source`.
      out: a new folder, or the folder of an interrupted run.
      size: side of the images, pixels.
      format: 'jpeg' or 'raw'.
      skip_bad: leave out images that cannot be decoded, and list them in the manifest.
      threads: that read and write; 0: one for each core.

    Returns:
      What `out` now holds. If it was complete before, nothing is done.

    Raises:
      UserError: the source is not there, an image cannot be decoded, a label is outside the
        classes, or `out` holds something else. Finished shards stay, so the same call resumes.
    """
    folder, options = Path(out), layout.PrepareOptions(source, size, format)
    if size < 1 or threads < 0:
        raise UserError(f"--size={size} must be at least 1, and --threads={threads} at least 0")
    if records.is_prepared(folder):
        manifest = records.open_records(folder).manifest
        options.require_same(folder, "prepared", vars(manifest))
        return manifest
    opened = sources.open_source(source, size)
    _refuse_empty(source, {name: len(split) for name, split in opened.splits.items()})
    layout.begin(folder, options, _fingerprint(opened))
    tasks = [task for split in opened.splits for task in _tasks(opened, split, folder, options)]
    try:
        made = _write_shards(tasks, options, skip_bad, threads or cores())
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: {error.strerror or error}; fix this; "
            f"the same command then resumes"
        ) from error
    by_split = {
        name: [shard for task, shard in zip(tasks, made, strict=True) if task.split == name]
        for name in opened.splits
    }
    _refuse_empty(source, {n: sum(s.file.count for s in of) for n, of in by_split.items()})
    return shards.finish(folder, options, opened.classes, by_split)


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
        skip_bad=SKIP_BAD.value,
        threads=THREADS.value,
    )
    if VERIFY.value:
        records.verify(out)
        print(f"{out} holds what was prepared, to the last bit")
    counts = ", ".join(f"{split.count:,} {name}" for name, split in manifest.splits.items())
    print(f"{out} {'was prepared before' if done else 'is prepared'}: {counts} images")
    if "validation" not in manifest.splits:
        there = ", ".join(manifest.splits)
        print(
            f"There is no validation split (only {there}); training scores one: "
            f"name another by --config.data.validation"
        )
    if manifest.skipped:
        where = Path(out, layout.MANIFEST)
        print(f"Left out, as they cannot be decoded: {len(manifest.skipped)}, listed in {where}")


def _refuse_empty(source: str, counts: Mapping[str, int]) -> None:
    for split, count in counts.items():
        if not count:
            raise UserError(f"--source={source} has no images in its split {split!r}")


def _fingerprint(source: sources.Source) -> str:
    """A hash of the names of all classes and images."""
    digest = hashlib.sha256("\n".join(source.classes).encode())
    for name, split in source.splits.items():
        digest.update(f"\n\n{name} {len(split)}".encode())
        for index in range(len(split)):
            digest.update(f"\n{split.name(index)}".encode())
    return digest.hexdigest()


# --- shards -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """One shard to write: the images of `range`."""

    path: Path
    split: str
    images: sources.SourceSplit
    range: range
    classes: int


def _tasks(
    source: sources.Source, split: str, folder: Path, options: layout.PrepareOptions
) -> Iterator[_Task]:
    """Shards of a split: 64, unless they would have less than 128 or more than 8192 images."""
    count = len(source.splits[split])
    per_shard = min(max(-(-count // 64), 128), 8192)
    for number, start in enumerate(range(0, count, per_shard)):
        path = layout.shard_path(folder, options.format, split, number)
        part = range(start, min(start + per_shard, count))
        yield _Task(path, split, source.splits[split], part, len(source.classes))


def _write_shards(
    tasks: Sequence[_Task], options: layout.PrepareOptions, skip_bad: bool, threads: int
) -> list[shards.Shard]:
    """Writes the shards that do not exist yet; returns all, in order."""
    made = [shards.finished_shard(task.path) for task in tasks]
    for shard in made:
        if shard is not None and shard.skipped and not skip_bad:
            raise _bad_image(shard.skipped[0])
    sizes = [len(task.range) for task in tasks]
    done = sum(size for size, shard in zip(sizes, made, strict=True) if shard is not None)
    stop, lock = threading.Event(), threading.Lock()
    cv2.setNumThreads(1)  # OpenCV's own threads would compete with these
    with (
        progress_bar(sum(sizes), "preparing", "images", initial=done) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):

        def advance() -> None:
            if stop.is_set():
                raise CancelledError
            with lock:
                bar.update()

        missing = {
            number: pool.submit(_write_shard, task, options, skip_bad, advance)
            for number, task in enumerate(tasks)
            if made[number] is None
        }
        try:
            finished, _ = wait(missing.values(), return_when=FIRST_EXCEPTION)
            for number, future in missing.items():  # in order: the first image's error is raised
                if future in finished:
                    made[number] = future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [shard for shard in made if shard is not None]


def _write_shard(
    task: _Task, options: layout.PrepareOptions, skip_bad: bool, advance: Callable[[], None]
) -> shards.Shard:
    """Writes one shard; calls `advance` after each image, which raises an error to stop it.

    Raises:
      UserError: an image cannot be decoded, or its label is outside the classes.
    """
    writer = shards.ShardWriter(task.path, options)
    try:
        for index in task.range:
            try:
                image, label = _read(task, index)
            except ValueError as error:
                problem = f"{task.images.name(index)}: {error}"
                if not skip_bad:
                    raise _bad_image(problem) from error
                writer.skip(problem)
            else:
                writer.add(images.centre_square(image, options.size), label)
            advance()
    except BaseException:
        writer.abandon()
        raise
    return writer.close()


def _read(task: _Task, index: int) -> tuple[UInt8[np.ndarray, "height width 3"], int]:
    """An image and its label.

    Raises:
      ValueError: the image cannot be decoded.
      UserError: the label is outside the classes.
    """
    image, label = task.images.read(index)
    if not 0 <= label < task.classes:
        raise UserError(
            f"{task.images.name(index)} has label {label}; "
            f"the {task.classes} classes are 0 to {task.classes - 1}: the source is damaged"
        )
    return images.decode(image) if isinstance(image, bytes) else image, label


def _bad_image(problem: str) -> UserError:
    return UserError(f"{problem}; fix or remove it, or leave out such images with --skip-bad")


if __name__ == "__main__":
    main()
