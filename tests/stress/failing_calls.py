"""Each system call that reads or writes can fail: one clear line, nothing lost, the same end?

    python -m tests.stress.failing_calls [--each=3] [--seed=0]

Small commands run in this process, one at a time: `prepare`, training from its first step and from
a checkpoint, `evaluate`, `predict`. A library in C that is preloaded (faults.c) counts their calls
to open, read, write, fsync, rename and so on under one folder. Then each command runs again and
again. Each time one call fails: of each kind, `--each` of its calls, with each error that it may
have. The command must either do its work all the same, or end with status 2 and one line, without
a traceback. The same command, run again, must then come to the same end as a run without a fault.
Only for EIO, the error of a damaged disk, may a checkpoint be put aside.

The last line of the output says how many did. Needs gcc.
"""

import argparse
import collections
import contextlib
import ctypes
import errno
import faulthandler
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from alexnet_jax import evaluate, predict, prepare
from alexnet_jax.runtime import host
from tests.stress import power_cut

ERRORS = {
    "open": ["EIO", "EMFILE", "EINTR", "ENOSPC"],
    "read": ["EIO", "EINTR"],
    "write": ["EIO", "ENOSPC", "EINTR"],
    "fsync": ["EIO", "ENOSPC", "EINTR"],
    "rename": ["EIO", "ENOSPC"],
    "unlink": ["EIO"],
    "mkdir": ["EIO", "ENOSPC"],
    "rmdir": ["EIO"],
    "opendir": ["EIO", "EMFILE"],
    "readdir": ["EIO"],
    "mmap": ["ENOMEM"],
    "truncate": ["EIO", "EINTR"],
}


class Job(NamedTuple):
    """A command."""

    name: str
    begin: Path | None  # a copy of this folder is there when it starts
    run: Callable[[Path], None]
    end: Callable[[Path, str], Any]  # what it has come to, from its folder and what it printed


class Ended(NamedTuple):
    """How a command ended: its status, what it printed, and to stderr."""

    status: int
    output: str
    errors: str


def start(run: Callable[[Path], None], folder: Path) -> Ended:
    """Runs a command."""
    status, output, errors = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            run(folder)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException as error:
            status = 1
            errors.write(f"Traceback: {type(error).__name__}: {error}")
    return Ended(status, output.getvalue(), errors.getvalue())


def jobs(images: Path, base: Path) -> Iterator[Job]:
    """The commands, and what each begins with."""
    folder = base.parent / "disk"

    def scores(_: Path, output: str) -> str:
        return "".join(
            line for line in output.splitlines(True) if "loss" in line or ".png:" in line
        )

    def prepared(kind: str) -> Job:
        options = [f"--source=folder:{images}", f"--out={folder / kind}", "--size=64"]
        options += [f"--format={kind}", "--threads=1", "--verify"]
        return Job(
            f"prepare {kind}",
            None,
            lambda _: prepare.main(options),
            lambda at, _: power_cut.hash_of(at / kind),
        )

    yield from (prepared("raw"), prepared("jpeg"))
    train = lambda at: power_cut.train(images, at)  # noqa: E731
    end = lambda at, _: power_cut.end_of(at)  # noqa: E731
    yield Job("train", base / "prepared", train, end)
    yield Job("train from a checkpoint", base / "begun", train, end)
    run = f"{folder}/runs/one"
    yield Job(
        "evaluate",
        base / "trained",
        lambda _: evaluate.main([f"--workdirs={run}", "--views=1", f"--json={folder}/scores"]),
        lambda at, output: [scores(at, output), json.loads((at / "scores").read_text())],
    )
    shown = [str(images / "val" / "class0" / f"{number}.png") for number in (0, 2)]
    yield Job(
        "predict",
        base / "trained",
        lambda _: predict.main(
            [f"--workdir={run}", "--views=1", f"--json={folder}/labels", *shown]
        ),
        lambda at, output: [scores(at, output), json.loads((at / "labels").read_text())],
    )


def make_bases(images: Path, base: Path) -> None:
    """Folders with records; with a run that has been stopped; with a run that is trained."""
    folder = base.parent / "disk"
    folder.mkdir()
    power_cut.make_records(images, folder)
    shutil.copytree(folder, base / "prepared")
    power_cut.train(images, folder)
    shutil.copytree(folder, base / "trained")
    checkpoints = folder / "runs" / "one" / "checkpoints"
    for newest in sorted(checkpoints.glob("0*"))[-1:]:
        shutil.rmtree(newest)
    shutil.copytree(folder, base / "begun")


def settle(folder: Path) -> None:
    """Waits for threads of a failed command that still write; the end of its process ends them."""
    before = None
    while before != (now := {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}):
        before = now
        time.sleep(0.3)


def lay_out(job: Job, folder: Path) -> None:
    """Makes the folder with which a job begins."""
    if folder.exists():
        shutil.rmtree(folder)
    if job.begin is None:
        folder.mkdir()
    else:
        shutil.copytree(job.begin, folder)


class Fault(NamedTuple):
    """The nth call of its kind fails with an error."""

    call: str
    number: int
    error: str


def judge(ended: Ended, error: str, folder: Path) -> str:
    """What is wrong with the way in which a command ended at a fault, or ''."""
    told = [line for line in ended.errors.splitlines() if line.startswith("error: ")]
    if ended.status not in (0, 2):
        return f"status {ended.status}: {ended.errors[-1000:]}"
    if "Traceback" in ended.errors:
        return f"a traceback: {ended.errors[-3000:]}"
    if len(told) != (ended.status == 2):
        return f"{len(told)} lines"
    if error != "EIO" and any(word in "".join(told) for word in ("damaged", "delete", "remove")):
        return f"advice to delete what is sound: {told[0]}"
    if error != "EIO" and list(folder.rglob("damaged-*")):
        return "a sound checkpoint is put aside"
    return ""


def try_fault(library: Any, job: Job, folder: Path, fault: Fault, expected: Any) -> str:
    """Runs a job with a fault, and again; what is wrong, or how the first run ended."""
    lay_out(job, folder)
    number = getattr(errno, fault.error)
    library.fault_arm(str(folder).encode(), fault.call.encode(), fault.number, number)
    first = start(job.run, folder)
    failed = library.fault_failed().decode().replace(str(folder), "DISK")
    library.fault_arm(b"", b"none", 0, 0)
    if first.status:
        settle(folder)
    if not failed:
        return "not reached"
    wrong, fallen_back = judge(first, fault.error, folder), ""
    if fault.error == "EIO" and first.status == 0 and "is damaged: " in first.output:
        fallen_back = " by the checkpoint before"
    elif not wrong and first.status == 0 and job.end(folder, first.output) != expected:
        wrong = "another end without an error"
    again = start(job.run, folder)
    output = first.output if "is trained already" in again.output else again.output
    if not wrong and again.status != 0:
        wrong = f"does not go on: {again.errors[-300:]!r}"
    if not wrong and job.end(folder, output) != expected:
        wrong = "another end when it has gone on"
    if wrong:
        return f"WRONG: {failed}: {wrong}"
    told = first.errors.partition("error: ")[2].strip().replace(str(folder), "DISK")
    return f"one line: {failed}: {told}" if told else f"went on{fallen_back}: {failed}"


def main() -> int:
    """0 if all faults ended well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", default="", help="only those whose names begin so")
    parser.add_argument("--calls", default=",".join(ERRORS), help="only these")
    given = parser.parse_args()
    if "FAULTS" not in os.environ:
        with tempfile.TemporaryDirectory() as name:
            built = Path(name) / "faults.so"
            source = Path(__file__).with_name("faults.c")
            subprocess.run(
                ["gcc", "-shared", "-fPIC", "-O2", "-o", built, source, "-ldl"], check=True
            )
            again = [sys.executable, "-m", "tests.stress.failing_calls", *sys.argv[1:]]
            environment = {"FAULTS": str(built), "LD_PRELOAD": str(built)}
            return subprocess.run(again, env=os.environ | environment, check=False).returncode
    library = ctypes.CDLL(os.environ["FAULTS"])
    library.fault_failed.restype = ctypes.c_char_p
    library.fault_count.restype = ctypes.c_long
    tally = collections.Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as name:
        images, base, folder = (Path(name) / part for part in ("images", "base", "disk"))
        jax.config.update("jax_compilation_cache_dir", str(Path(name) / "cache"))
        host.configure_jax(2)
        host.configure_jax = lambda *_, **__: None  # once: the commands share this process
        power_cut.draw_images(images)
        start(lambda _: make_bases(images, base), folder)
        for job in jobs(images, base):
            if job.name.startswith(given.jobs):
                tally += try_job(library, job, folder, given)
    total = tally.total()
    wrong = sum(count for (_, how), count in tally.items() if how == "WRONG")
    for (what, how), count in sorted(tally.items()):
        print(f"{what}: {count} {how}")
    print(f"{total} faults: {total - wrong} of {total} ended well")
    return 1 if wrong else 0


def try_job(
    library: Any, job: Job, folder: Path, given: argparse.Namespace
) -> "collections.Counter[tuple[str, str]]":
    """Tries the faults of one job; returns how often the job ended in which way."""
    tally, rng = collections.Counter[tuple[str, str]](), random.Random(given.seed)
    lay_out(job, folder)
    start(job.run, folder)  # compiles
    lay_out(job, folder)
    library.fault_arm(str(folder).encode(), b"none", 0, 0)
    plain = start(job.run, folder)
    counts = {call: library.fault_count(call.encode()) for call in ERRORS}
    library.fault_arm(b"", b"none", 0, 0)
    assert plain.status == 0, plain
    expected = job.end(folder, plain.output)
    print(f"{job.name}: {counts}", flush=True)
    for call in given.calls.split(","):
        numbers = rng.sample(range(1, counts[call] + 1), min(given.each, counts[call]))
        for fault in (Fault(call, n, error) for n in sorted(numbers) for error in ERRORS[call]):
            faulthandler.dump_traceback_later(300, exit=True)
            how = try_fault(library, job, folder, fault, expected)
            faulthandler.cancel_dump_traceback_later()
            print(f"{job.name}: {' '.join(map(str, fault))}: {how}", flush=True)
            if how != "not reached":
                tally[job.name, how.partition(":")[0]] += 1
    return tally


if __name__ == "__main__":
    sys.exit(main())
