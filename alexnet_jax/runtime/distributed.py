"""The processes of a run: one, or several that an engine has started, on one machine or on many.

Each runs the same command; JAX makes their devices one. The first of them writes and speaks for
all. What they tell each other here goes over JAX's coordination service, which waits as long as is
needed for a process that lives, and ends all of them when one has died.
"""

import functools
import itertools
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax

# What is public of it tells neither the number of processes before the devices are known, nor
# lets them exchange text.
from jax._src.distributed import global_state as _jax_state

from alexnet_jax.runtime import terminal
from alexnet_jax.runtime.errors import UserError

HEARTBEAT = 30  # seconds of silence after which a process counts as dead
START = 600  # seconds within which all must have come: machines may start one after the other
_FOREVER = 7 * 24 * 3600 * 1000  # milliseconds
_ENDED = "alexnet_jax/ended"  # why the run was ended, by the process that did it
_KNOWN = "alexnet_jax/known"  # and which processes know
_NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_BIND = "JAX_COORDINATOR_BIND_ADDRESS"  # which JAX reads
_POLL = 0.5  # seconds between two looks whether another has ended the run
_LINGER = 5  # seconds that the first process waits at its end for others to know why
_T = TypeVar("_T")

# All processes count alike, for they call alike.
_exchanges, _looks = itertools.count(), itertools.count(1)
_leaving = threading.Lock()  # the thread that watches may be first to learn why this process ends


class Place(NamedTuple):
    """Where a process stands in its run, if its environment tells; else JAX finds out."""

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def initialize() -> None:
    """Connects this process with the others of its run, if there are any.

    To be called before JAX has looked for devices. From then on only the first process speaks, and
    an error in one ends all.

    Raises:
      UserError: see `find_place`; or the others did not come.
    """
    place = find_place(os.environ)
    if place is None:
        return
    # It would say at every start what it connects to.
    logging.getLogger("jax._src.distributed").setLevel(logging.WARNING)
    try:
        jax.distributed.initialize(
            *place,
            # Else JAX would ask the engine even for what is stated: which devices are this one's.
            cluster_detection_method="deactivate" if place.num_processes else None,
            coordinator_bind_address=_own_address(place.coordinator_address),
            initialization_timeout=START,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the processes of this run could not be connected: {reason}; see launch/README.md"
        ) from error
    if process_index():
        terminal.be_silent()
    sys.excepthook = _end_with_traceback
    threading.Thread(target=_watch, daemon=True, name="the other processes").start()


def find_place(environment: Mapping[str, str]) -> Place | None:
    """Whether, and where, this process stands in a run of several; None if it is alone.

    The three variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, if they are
    set; else a step of SLURM or a pod of an Indexed Job of Kubernetes, which JAX knows.

    Raises:
      UserError: the variables contradict each other; or tasks were asked for, but not started.
    """
    if "JAX_NUM_PROCESSES" in environment or "JAX_PROCESS_ID" in environment:
        return _stated_place(environment)
    if int(environment.get("SLURM_NTASKS", 1)) > 1:
        if "SLURM_STEP_NODELIST" not in environment:
            raise UserError(
                f"SLURM was asked for {environment['SLURM_NTASKS']} tasks, but this process was "
                f"started without srun; write srun before the command (see launch/slurm.sbatch)"
            )
        return Place()
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys():
        return Place()
    return None


def _stated_place(environment: Mapping[str, str]) -> Place | None:
    values = {name: environment.get(name, "") for name in _NAMES}
    processes, number = values["JAX_NUM_PROCESSES"], values["JAX_PROCESS_ID"]
    if processes == "1":
        return None
    for name, value in values.items():
        if not value:
            raise UserError(f"{name} is not set; several processes need {', '.join(_NAMES)}")
    if not (processes.isdecimal() and number.isdecimal() and int(number) < int(processes)):
        raise UserError(
            f"JAX_PROCESS_ID={number} must be a number from 0 on, below "
            f"JAX_NUM_PROCESSES={processes}"
        )
    if not values["JAX_COORDINATOR_ADDRESS"].rpartition(":")[2].isdecimal():
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS={values['JAX_COORDINATOR_ADDRESS']} has no port; give one, "
            f"as host:8476"
        )
    return Place(values["JAX_COORDINATOR_ADDRESS"], int(processes), int(number))


def _own_address(coordinator: str | None) -> str | None:
    """Where the first process listens: not on every network when all are on this machine."""
    host = (coordinator or "").rpartition(":")[0]
    on_this_machine = host in ("localhost", "127.0.0.1") and _BIND not in os.environ
    return coordinator if on_this_machine else None


# --- what they know of each other ---------------------------------------------------------------


def process_count() -> int:
    """How many there are."""
    return _jax_state.num_processes or 1


def process_index() -> int:
    """Which this one is, from 0 on."""
    return _jax_state.process_id or 0


def _client() -> Any:
    """Of the coordination service; None before `join`, and after JAX has left it."""
    return _jax_state.client


def process_name() -> str:
    """This one, for people: 'process 1 on node-b'."""
    return f"process {process_index()} on {socket.gethostname()}"


@functools.cache
def hosts() -> tuple[int, ...]:
    """For each process, the first process on its machine."""
    names = gather_text(socket.gethostname())
    return tuple(names.index(one) for one in names)


def gather_text(text: str) -> list[str]:
    """What each process gave, in the order of their numbers; all must call it alike."""
    if process_count() == 1:
        return [text]
    client, at = _client(), f"alexnet_jax/exchange/{next(_exchanges)}"
    client.key_value_set(f"{at}/{process_index()}", text)
    return [
        client.blocking_key_value_get(f"{at}/{one}", _FOREVER) for one in range(process_count())
    ]


def on_main_process(work: Callable[[], _T]) -> _T:
    """What `work`, done by the first process, has given, as JSON has it: in all, when it is done.

    Should it fail, that ends all of them.
    """
    if process_count() == 1:
        return work()
    return json.loads(gather_text(json.dumps(None if process_index() else work()))[0])


def require_same(what: str, value: str) -> None:
    """Raises UserError unless `value` is the same in every process."""
    values = gather_text(value)
    others = [one for one, theirs in enumerate(values) if theirs != values[0]]
    if others:
        raise UserError(
            f"{what} of process {others[0]} is not that of process 0; give all the same"
        )


def asked_to_stop() -> bool:
    """Whether SIGTERM has come to any of several processes.

    All get the same answer at the same call, so all must ask alike; it is True once. JAX takes
    the signal from Python and settles on the call.
    """
    from jax.experimental.multihost_utils import reached_preemption_sync_point

    return reached_preemption_sync_point(next(_looks))


# --- how one ends all ---------------------------------------------------------------------------


def end(status: int, why: str) -> NoReturn:
    """Ends this process with exit status `status`, and every other of its run.

    `why`, which may be empty, goes to stderr: of several processes that of the first to end.
    """
    if process_count() > 1:
        _end_together(status, f"{process_name()}: {why}" if why else "")
    if why:
        terminal.complain(why)
    sys.exit(status)


@contextmanager
def together() -> Iterator[None]:
    """Inside, what is nobody's doing ends all processes at once.

    To close the run's files first would be to wait for the others, of which one may have died.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if process_count() > 1:
            _end_with_traceback(type(error), error, error.__traceback__)
        raise


def _end_together(status: int, why: str) -> NoReturn:
    """At once: what JAX does at the end of a process would wait for all others."""
    try:
        _client().key_value_set(_ENDED, json.dumps([status, why]))
    except jax.errors.JaxRuntimeError:  # another has; or the first process is gone, and with it all
        _leave(*(_told() or (status, why)))
    _leave(status, why)


def _told() -> tuple[int, str] | None:
    """The status and the reason with which another process has ended the run, if one has."""
    client = _client()
    if client is None:
        return None
    try:
        status, why = json.loads(client.key_value_try_get(_ENDED))
    except jax.errors.JaxRuntimeError:
        return None
    return status, why


def _leave(status: int, why: str) -> NoReturn:
    _leaving.acquire()
    if why:
        terminal.complain(why)
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(jax.errors.JaxRuntimeError):
        _await_others()
    os._exit(status)


def _await_others() -> None:
    """The coordination service dies with the first process, and its clients with the service."""
    client, end = _client(), time.monotonic() + (_LINGER if process_index() == 0 else 0)
    client.key_value_set(f"{_KNOWN}/{process_index()}", "")
    while time.monotonic() < end and len(client.key_value_dir_get(_KNOWN)) < process_count():
        time.sleep(_POLL / 10)


def _watch() -> None:
    """Ends this process when another has ended the run."""
    while _client() is not None:
        if told := _told():
            _leave(*told)
        time.sleep(_POLL)


def _end_with_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """For what nobody caught. When a process dies, the others' exchanges with it fail here."""
    if told := _told():
        _leave(*told)
    traceback.print_exception(kind, error, trace)
    reason = (str(error).strip() or kind.__name__).splitlines()[0]
    _end_together(1, f"{process_name()} failed ({reason}); if another died before, see its output")
