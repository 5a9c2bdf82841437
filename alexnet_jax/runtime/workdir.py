"""The workdir of a run: files with fixed names, and a lock that only one run can hold."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TextIO

from alexnet_jax import config
from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.files import make_folder, named, new_file

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
DATA = "data.safetensors"
STARTS = "starts.jsonl"
FORMS = "forms.json"
LOCK = "lock"
SHOWN = 4  # of the keys in which a config differs


def claim(workdir: Path, c: config.Config) -> None:
    """Writes `config.json` in a new workdir, or in one that holds a run of this config.

    Keys that change no result (devices, epochs, logging ...) may differ from those before.

    Raises:
      UserError: the folder holds a run of another config, or cannot be written.
    """
    if (workdir / CONFIG).exists():
        check(workdir, c)
    with _write_errors(workdir):
        make_folder(workdir)
    write(workdir / CONFIG, json.dumps(config.as_dict(c), indent=2) + "\n")


def write(path: Path, content: str | bytes) -> None:
    """Writes a file of a workdir; whatever happens, it is whole, the old one or the new one.

    Raises:
      UserError: it cannot be written.
    """
    with _write_errors(path.parent), new_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def hold(workdir: Path, c: config.Config) -> Iterator[None]:
    """Claims and locks `workdir`: no other run can until this one leaves or its process ends.

    The main process does so for all processes of a run; they must share the folder.

    Raises:
      UserError: another process holds it; or a process of this run has another disk; or see
        `claim`.
    """
    with ExitStack() as stack:
        holder = distributed.on_main_process(lambda: _lock(workdir, c, stack))
        seen = ""
        with suppress(OSError):
            seen = (workdir / LOCK).read_text().strip()
        others = distributed.gather_text("" if seen == holder else distributed.process_name())
        blind = [name for name in others if name]
        if blind:
            raise UserError(
                f"{blind[0]} does not see what process 0 wrote into {workdir}; give a --workdir "
                f"on a disk that all of them share"
            )
        yield


def _lock(workdir: Path, c: config.Config, stack: ExitStack) -> str:
    """Claims and locks `workdir` until `stack` is left; returns the text in the lock file."""
    with _write_errors(workdir):
        make_folder(workdir)
        file = stack.enter_context((workdir / LOCK).open("a+"))
    holder = lock(file, workdir, "--workdir")
    claim(workdir, c)
    return holder


def lock(file: TextIO, folder: Path, option: str) -> str:
    """Locks `file`, which is in `folder`, until it is closed; returns the text that is in it then.

    Raises:
      UserError: another process holds it; advises to give another value of `option`.
    """
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise UserError(
            f"{folder} is in use by {file.read().strip() or 'another process'}; "
            f"wait for its end, or give another {option}"
        ) from None
    with named(Path(file.name)):
        file.truncate(0)
        file.write(f"{holder}\n")
        file.flush()
        os.fsync(file.fileno())  # for processes that see it over a network
    return holder


@contextmanager
def _write_errors(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write in the workdir {workdir}: {error.strerror}") from None


def check(workdir: Path, c: config.Config) -> None:
    """Raises UserError unless `workdir` holds a run of this config."""
    before = _read(workdir)
    changed = sorted(config.differences(before, c), key=lambda key: (key.count("."), key))
    if changed:
        first, more = ", ".join(changed[:SHOWN]), len(changed) - SHOWN
        raise UserError(
            f"{workdir} holds a run of another config{_recipes(before, c)}; it differs in {first}"
            f"{f' and {more} more' if more > 0 else ''}; give another --workdir, or the same values"
        )


def _recipes(before: Mapping[str, object], c: config.Config) -> str:
    """Names both recipes if they are two, which says more than any key."""
    experiment = before.get("experiment")
    name = experiment.get("name") if isinstance(experiment, Mapping) else None
    return "" if name == c.experiment.name else f" ({name}, not {c.experiment.name})"


def read_config(workdir: Path) -> config.Config:
    """The config of the run in `workdir`.

    Raises:
      UserError: there is none, or this version cannot read it.
    """
    values = _read(workdir)
    try:
        return config.parse(values)
    except UserError as error:
        raise UserError(f"{workdir / CONFIG} is of another version: {error}") from None


def record_start(workdir: Path, step: int, records: str, machine: Mapping[str, str | int]) -> None:
    """Adds a line to `starts.jsonl`: a command starts or resumes the run.

    Args:
      workdir: the run's.
      step: training steps done before.
      records: the hash of the records that it trains on.
      machine: see `host.describe`.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    line = {"step": step, "time": now, "records": records, **machine}
    path = workdir / STARTS
    # Written anew: a line that a power cut had cut off would make one bad line with a new one.
    write(path, "".join([*_whole_lines(path), json.dumps(line) + "\n"]))


def _whole_lines(path: Path) -> list[str]:
    with named(path):
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


class Start(NamedTuple):
    """What a line of `starts.jsonl` says of results: see `record_start` and `host.describe`."""

    records: str
    devices: int
    kind: str
    cpu: str
    cores: int


def read_starts(workdir: Path) -> list[Start]:
    """The starts of the run in `workdir`, in order; a last line that was cut off is left out.

    Raises:
      UserError: another line is damaged.
    """
    path = workdir / STARTS
    try:
        found = [json.loads(line) for line in _whole_lines(path)]
        return [Start(*(line[field] for field in Start._fields)) for line in found]
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{path} is damaged; restore it, or remove it: training resumes without it, but "
            f"`report` does not know the run's records then"
        ) from None


def records_of(workdir: Path) -> str:
    """The hash of the records that the run in `workdir` was trained on; "" if it is not known.

    If it was resumed on other records, all their hashes, joined by '+'.

    Raises:
      UserError: see `read_starts`.
    """
    return "+".join(dict.fromkeys(start.records for start in read_starts(workdir)))


def _read(workdir: Path) -> dict[str, object]:
    path = workdir / CONFIG
    if not path.exists():
        raise UserError(f"{workdir} holds no run: there is no {CONFIG} in it; train first")
    try:
        with named(path):
            values = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read ({error}); restore it or remove the workdir"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a config; restore it or remove the workdir")
    if "model_type" in values:
        raise UserError(f"{workdir} is a folder to share a network, and not a run's workdir")
    return config.completed(values)
