"""The metrics of a run: JSON lines, TensorBoard events, and where its time goes."""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.files import named, write_text

FILE = "metrics.jsonl"


class MetricsLog:
    """`metrics.jsonl` and TensorBoard events in a workdir, with the same names and steps.

    Opened at the step from which a run resumes, it drops the lines after that step, which the run
    will write again.

    Attributes:
      path: of the JSON lines.
      kept: the lines up to that step.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        # Here and not above: where PyTorch is installed tensorboardX imports it, which takes a
        # second. Its SummaryWriter writes in a thread, where a full disk would go unnoticed.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self.path = workdir / FILE
        self.kept = [line for line in read_metrics(workdir) if line["step"] <= step]
        with self._write_errors():
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in self.kept))
            self._file = self.path.open("a")
            self._events = EventsWriter(str(workdir / "events"))
            # Tells TensorBoard to drop what an interrupted run wrote after this step.
            self._add_event(step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """One line, on disk when this returns. JSON has no infinity and no NaN: they are null.

        Raises:
          UserError: it cannot be written.
        """
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"step": step, "epoch": round(epoch, 6), **known}
        with self._write_errors():
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            for name, value in values.items():
                self._add_event(step, summary={"value": [{"tag": name, "simple_value": value}]})
            self._events.flush()

    def show(self, step: int, summaries: Iterable[Any]) -> None:
        """Summaries of tensorboardX, for TensorBoard alone.

        Raises:
          UserError: they cannot be written.
        """
        with self._write_errors():
            for one in summaries:
                self._add_event(step, summary=one)
            self._events.flush()

    def close(self) -> None:
        """Closes both files."""
        for file in (self._file, self._events):
            with suppress(OSError):  # `write` has raised it
                file.close()

    def _add_event(self, step: int, **what: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(wall_time=time.time(), step=step, **what))

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror}; fix this, and the same "
                f"command resumes from the newest checkpoint"
            ) from error


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of a workdir's metrics, in order; a last line that was cut off is left out.

    Raises:
      UserError: another line is no JSON object of numbers, or has no step or epoch.
    """
    path = workdir / FILE
    with named(path):
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [_parse(line, f"{path}:{i}") for i, line in enumerate(lines, 1) if line.endswith(b"\n")]


def _parse(text: bytes, where: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
        if not isinstance(line["epoch"], int | float):
            raise TypeError
        if any(isinstance(value, str | list | dict) for value in line.values()):
            raise TypeError
        return line | {"step": int(line["step"])}
    except (ValueError, TypeError, KeyError):
        shown = text.decode(errors="replace")[:40]
        raise UserError(f"{where} is damaged: {shown!r}; remove this line") from None


class Clock:
    """Where the time of a run goes: training, and apart from it evaluation, checkpoints, ..."""

    def __init__(self, images_per_step: int, step: int) -> None:
        """Starts at a run's `step`."""
        self._images, self._step = images_per_step, step
        self._since, self._apart = time.monotonic(), dict[str, float]()
        self._step_seconds = self._evaluation_seconds = 0.0  # of the newest ones

    @contextmanager
    def apart(self, what: str) -> Iterator[None]:
        """Counts the time inside as `what`. 'input' is the time that training waits for batches."""
        start = time.monotonic()
        yield
        self._apart[what] = self._apart.get(what, 0.0) + time.monotonic() - start

    def read(self, step: int, steps_left: int, evaluations_left: int) -> dict[str, float]:
        """Metrics since the last call, and the time left at this speed; `step` is done.

        'time/images_per_s' is over all devices. It includes the time that training waits for
        batches; 'time/input_wait' is the share of this time. Other times are in seconds.
        """
        now, steps = time.monotonic(), step - self._step
        waiting = self._apart.pop("input", 0.0)
        training = now - self._since - sum(self._apart.values())
        values = {f"time/{what}_s": seconds for what, seconds in self._apart.items()}
        if steps:
            self._step_seconds = training / steps
            values["time/images_per_s"] = self._images / self._step_seconds
            values["time/input_wait"] = waiting / training
        if self._step_seconds:
            self._evaluation_seconds = self._apart.get("evaluate", self._evaluation_seconds)
            left = steps_left * self._step_seconds + evaluations_left * self._evaluation_seconds
            values["time/left_s"] = left
        self._apart, self._since, self._step = {}, now, step
        return {name: round(value, 6) for name, value in values.items()}
