"""Images to records: rescales, cuts, stores and sums up a whole set, once (§2).

python -m alexnet_jax.prepare --source=folder:PATH --out=DIR

Stopped half-way, the same command resumes. Threads share the work: decoding,
rescaling, encoding and summing all leave Python's lock, and threads cannot be orphaned.
"""

import argparse
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import cv2
from tqdm import tqdm

from alexnet_jax.data import cores, images, layout, records, shards, sources
from alexnet_jax.runtime import cli
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.terminal import progress_bar


def prepare(
    source: str,
    out: str | os.PathLike[str],
    *,
    size: int = 256,
    format: layout.Format = "jpeg",  # noqa: A002
    skip_bad: bool = False,
    threads: int = 0,
) -> layout.Manifest:
    """Writes the records of `source` to the folder `out`, or goes on writing them.

    The result depends on the source, size and format alone: not on threads or interruptions.

    Args:
      source: as `sources.open_source` takes it.
      out: a new folder, or one that an interrupted run left.
      size: side of the images, pixels.
      format: 'jpeg' or 'raw'.
      skip_bad: leave out images that cannot be decoded, and list them in the manifest.
      threads: that read; 0: one for each core.

    Returns:
      What `out` now holds. If it was complete before, nothing is done.

    Raises:
      UserError: the source is not there, a image cannot be decoded, a label is outside the
        classes, or `out` holds something else. Finished shards stay, so that the run can go on.
    """
    folder = Path(out)
    if size < 1 or threads < 0:
        raise UserError(f"--size={size} must be at least 1, and --threads={threads} at least 0")
    if records.is_prepared(folder):
        return _already_done(folder, source, size, format)
    opened = sources.open_source(source, size)
    _refuse_empty(source, {name: len(split) for name, split in opened.splits.items()})
    settings = layout.PrepareOptions(source, size, format, _fingerprint(opened))
    settings.begin(folder)
    tasks = [task for name in opened.splits for task in _tasks(opened, name)]
    try:
        made = _run(tasks, folder, settings, skip_bad, threads or cores())
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: {error.strerror or error}; fix this, and the same "
            f"command goes on where it was"
        ) from error
    by_split = {
        name: [shard for task, shard in zip(tasks, made, strict=True) if task.split == name]
        for name in opened.splits
    }
    _refuse_empty(source, {n: sum(s.file.count for s in of) for n, of in by_split.items()})
    return shards.finish(folder, settings, opened.classes, by_split)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are the process' own if not given."""
    flags = vars(_parser().parse_args(arguments))
    out = flags["out"]
    cli.guard(lambda: _prepare_and_say(flags), f"stopped; the same command resumes in {out}")


def _prepare_and_say(flags: dict[str, Any]) -> None:
    out, verify = flags["out"], flags.pop("verify")
    done = records.is_prepared(out)
    manifest = prepare(**flags)
    if verify:
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


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("prepare", __doc__)
    add = parser.add_argument
    add("--source", required=True, help=f"where the images are: {sources.KINDS}")
    add("--out", required=True, help="the folder to write; nothing is written elsewhere")
    add("--size", type=int, default=256, help="side of the images, pixels; 256")
    add("--format", choices=get_args(layout.Format), default="jpeg", help="of the records; jpeg")
    add("--skip-bad", action="store_true", help="leave out images that cannot be decoded")
    add("--verify", action="store_true", help="read all again, and compare with what was written")
    add("--threads", type=int, default=0, help="that share the work; 0: one for each core")
    return parser


def _already_done(
    folder: Path,
    source: str,
    size: int,
    format: layout.Format,  # noqa: A002
) -> layout.Manifest:
    """The manifest, if it is of the same preparation."""
    manifest = records.open_records(folder).manifest
    wanted = {"source": source, "size": size, "format": format}
    for key, value in wanted.items():
        if getattr(manifest, key) != value:
            raise UserError(
                f"{folder} was prepared with --{key}={getattr(manifest, key)}, not {value}; "
                f"delete it or choose another --out"
            )
    return manifest


def _refuse_empty(source: str, counts: Mapping[str, int]) -> None:
    for split, count in counts.items():
        if not count:
            raise UserError(f"--source={source} has no images in its split {split!r}")


def _fingerprint(source: sources.Source) -> str:
    """Of the names of all classes and images."""
    digest = hashlib.sha256("\n".join(source.classes).encode())
    for name, split in source.splits.items():
        digest.update(f"\n\n{name} {len(split)}".encode())
        for index in range(len(split)):
            digest.update(f"\n{split.name(index)}".encode())
    return digest.hexdigest()


# --- shards -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """One shard to write."""

    classes: int
    split: str
    images: sources.Split
    number: int
    range: range


def _tasks(source: sources.Source, name: str) -> Iterator[_Task]:
    """Shards of 128 to 8192 images, 64 of them in between: enough for all cores to share."""
    count = len(source.splits[name])
    per_shard = min(max(-(-count // 64), 128), 8192)
    for number, start in enumerate(range(0, count, per_shard)):
        part = range(start, min(start + per_shard, count))
        yield _Task(len(source.classes), name, source.splits[name], number, part)


class _Progress:
    """What the threads and the main one tell each other."""

    def __init__(self, bar: tqdm):
        self._bar = bar
        self._lock = threading.Lock()
        self.stop = threading.Event()

    def advance(self) -> None:
        with self._lock:
            self._bar.update()


def _run(
    tasks: Sequence[_Task],
    folder: Path,
    settings: layout.PrepareOptions,
    skip_bad: bool,
    threads: int,
) -> list[shards.Shard]:
    """Writes the shards that are not there yet; returns all, in order."""
    made = [shards.finished_shard(folder, settings, task.split, task.number) for task in tasks]
    for shard in made:
        if shard is not None and shard.skipped and not skip_bad:
            raise _bad_image(shard.skipped[0])
    there = sum(len(t.range) for t, shard in zip(tasks, made, strict=True) if shard is not None)
    total = sum(len(task.range) for task in tasks)
    cv2.setNumThreads(1)  # its own would compete with ours
    with (
        progress_bar(total, "preparing", "images", initial=there) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        progress = _Progress(bar)
        missing = {
            number: pool.submit(_write_shard, task, folder, settings, skip_bad, progress)
            for number, task in enumerate(tasks)
            if made[number] is None
        }
        try:
            done, _ = wait(missing.values(), return_when=FIRST_EXCEPTION)
            for future in missing.values():  # of several errors by now, the first image's
                if future in done:
                    future.result()
        except BaseException:
            progress.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        for number, future in missing.items():
            made[number] = future.result()
    return [shard for shard in made if shard is not None]


def _write_shard(
    task: _Task,
    folder: Path,
    settings: layout.PrepareOptions,
    skip_bad: bool,
    progress: _Progress,
) -> shards.Shard:
    """Writes one shard.

    Raises:
      UserError: a image cannot be decoded, or has a label outside the classes.
      CancelledError: `progress` says to stop.
    """
    writer = shards.ShardWriter(folder, settings, task.split, task.number)
    try:
        for index in task.range:
            if progress.stop.is_set():
                raise CancelledError
            try:
                whole, label = _read(task, index)
            except ValueError as error:
                problem = f"{task.images.name(index)}: {error}"
                if not skip_bad:
                    raise _bad_image(problem) from error
                writer.skip(problem)
            else:
                writer.add(images.centre_square(whole, settings.size), label)
            progress.advance()
    except BaseException:
        writer.abandon()
        raise
    return writer.close()


def _read(task: _Task, index: int) -> tuple[Any, int]:
    """A image, uint8 [height, width, 3], and its label.

    Raises:
      ValueError: it cannot be decoded.
      UserError: its label is none of the classes.
    """
    image, label = task.images.read(index)
    if not 0 <= label < task.classes:
        raise UserError(
            f"{task.images.name(index)} has label {label}; "
            f"the {task.classes} classes are 0 to {task.classes - 1}"
        )
    return images.decode(image) if isinstance(image, bytes) else image, label


def _bad_image(problem: str) -> UserError:
    return UserError(f"{problem}; fix or remove it, or leave such images out with --skip-bad")


if __name__ == "__main__":
    main()
