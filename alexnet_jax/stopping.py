"""How a signal ends a run: politely the first time, at once the second time."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, start the same command again
INTERRUPTED = 130  # what shells give for Ctrl-C
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """A signal has ended the work. `status` is the exit status that says so."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = INTERRUPTED if number == signal.SIGINT else REQUEUE


class Stop:
    """While it is entered, SIGTERM and SIGINT are taken note of; a second one kills the process.

    Attributes:
      asked: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._leaving = False  # whether the work under way may be left in the middle
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there signals arrive
            self._before = {one: signal.signal(one, self._notice) for one in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)  # type: ignore[arg-type]

    def check(self) -> None:
        """Raises Stopped if a signal came."""
        if self.asked is not None:
            raise Stopped(self.asked)

    @contextmanager
    def may_leave(self) -> Iterator[None]:
        """Inside, a signal raises Stopped at once: for long work that can be done again."""
        self.check()
        self._leaving = True
        try:
            yield
        finally:
            self._leaving = False

    def _notice(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.asked is not None:
            os._exit(128 + number)
        self.asked = number
        if self._leaving:
            self._leaving = False
            raise Stopped(number)
