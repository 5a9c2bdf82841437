"""Signals: the first one asks the run to save and stop, a second one ends it at once."""

import os
import signal
import threading
from typing import Any, Self

from alexnet_jax.runtime import distributed

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, start the same command again
INTERRUPTED = 130  # what shells give for Ctrl-C


class Stopped(KeyboardInterrupt):
    """A signal has ended the work. `status` is the exit status that tells it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = INTERRUPTED if number == signal.SIGINT else REQUEUE


class Stop:
    """A context that remembers SIGTERM and SIGINT; a second signal ends the process at once.

    With several processes JAX catches SIGTERM, so that all agree on the step at which they stop. A
    second SIGTERM is ignored then.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python sets handlers there only
            numbers = [signal.SIGINT]
            if distributed.process_count() == 1:
                numbers.append(signal.SIGTERM)
            self._before = {number: signal.signal(number, self._notice) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises Stopped if a signal came.

        Several processes must call it equally often; all raise at the same call, and only there.
        """
        alone = distributed.process_count() == 1
        if self._signal is not None if alone else distributed.asked_to_stop():
            raise Stopped(self._signal or signal.SIGTERM)

    def _notice(self, number: int, _: object) -> None:
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
        if distributed.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the others
