"""How a signal ends a run: politely the first time, at once the second time."""

import os
import signal
import threading
from types import FrameType
from typing import Self

from alexnet_jax.runtime import distributed

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, start the same command again
INTERRUPTED = 130  # what shells give for Ctrl-C


class Stopped(KeyboardInterrupt):
    """A signal has ended the work. `status` is the exit status that says so."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = INTERRUPTED if number == signal.SIGINT else REQUEUE


class Stop:
    """While it is entered, SIGTERM and SIGINT are taken note of; a second one kills the process.

    Where several processes share a run, SIGTERM is JAX's, which settles with the others where to
    stop, and takes no notice of a second one.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._agreed = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there signals arrive
            ours = (
                (signal.SIGINT,)
                if distributed.process_count() > 1
                else (signal.SIGINT, signal.SIGTERM)
            )
            self._before = {one: signal.signal(one, self._notice) for one in ours}
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)  # type: ignore[arg-type]

    def asked(self) -> bool:
        """Whether a signal came; several processes must all ask alike, and get one answer."""
        if distributed.process_count() == 1:
            return self._signal is not None
        self._agreed = self._agreed or distributed.asked_to_stop()
        return self._agreed

    def check(self) -> None:
        """Raises Stopped if a signal came; several processes must all call it alike."""
        if self.asked():
            raise self.stopped()

    def stopped(self) -> Stopped:
        """What says that the signal has ended the work."""
        return Stopped(self._signal or signal.SIGTERM)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
        if distributed.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # so that JAX tells the others
