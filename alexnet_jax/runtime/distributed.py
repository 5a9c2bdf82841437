"""The processes of a run: one, or several that a scheduler starts, on one machine or on many.

All run the same command, and JAX combines their devices. The main process (number 0) writes the
files and prints. The processes exchange text over JAX's coordination service. The service waits as
long as all processes live, and ends the others when one has died.
"""

import functools
import itertools
import json
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax

# Private, because nothing public tells the number of processes before JAX has looked for devices,
# or exchanges text without a computation on them. Used here only, in `process_count`,
# `process_index` and `_client`. Tried with jax 0.10.2, 0.11.2 and 0.12.0.
from jax._src.distributed import global_state as _jax_state

from alexnet_jax.runtime import terminal
from alexnet_jax.runtime.errors import UserError, system_error

HEARTBEAT_SECONDS = 30  # a process that is silent for so long counts as dead
START_SECONDS = 600  # all must have started by then: machines may start one after the other
END_SECONDS = 5  # how long a process that fails waits for others that fail, too
_WEEK = 7 * 24 * 3600 * 1000  # milliseconds
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_T = TypeVar("_T")

# The n-th call in one process belongs to the n-th call in each other process.
_exchanges, _stop_questions = itertools.count(), itertools.count(1)


class Place(NamedTuple):
    """What `jax.distributed.initialize` needs to know; None where JAX finds it out itself."""

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def initialize() -> None:
    """Connects this process with the others of its run, if there are any.

    Call it before JAX looks for devices. After it only the main process prints. JAX kills the
    process if the others have not started after `START_SECONDS`.

    Raises:
      UserError: see `find_place`; or JAX cannot connect, for example because the port is in use.
    """
    place = find_place(os.environ)
    if place is None:
        return
    # At level INFO it prints at each start what it connects to.
    logging.getLogger("jax._src.distributed").setLevel(logging.WARNING)
    try:
        jax.distributed.initialize(
            *place,
            # JAX would ask the scheduler for the local devices even when the rest is given.
            cluster_detection_method="deactivate" if place.num_processes else None,
            coordinator_bind_address=_local_address(place.coordinator_address),
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the processes of this run could not be connected: {reason}; see launch/README.md"
        ) from error
    if process_index() != 0:
        terminal.be_silent()


def find_place(environment: Mapping[str, str]) -> Place | None:
    """The place of this process in a run of several processes; None if it runs alone.

    The variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID count first. Else
    JAX finds the place itself, in a step of SLURM and in a pod of an Indexed Job of Kubernetes.

    Raises:
      UserError: the variables contradict each other; or SLURM has tasks, but srun is missing.
    """
    if "JAX_NUM_PROCESSES" in environment or "JAX_PROCESS_ID" in environment:
        return _given_place(environment)
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


def _given_place(environment: Mapping[str, str]) -> Place | None:
    values = {name: environment.get(name, "") for name in _VARIABLES}
    address, processes, number = values.values()
    if processes == "1":
        return None
    for name, value in values.items():
        if not value:
            raise UserError(f"{name} is not set; several processes need {', '.join(_VARIABLES)}")
    if not (processes.isdecimal() and number.isdecimal() and int(number) < int(processes)):
        raise UserError(
            f"JAX_PROCESS_ID={number} must be a number from 0 on, below "
            f"JAX_NUM_PROCESSES={processes}"
        )
    if not address.rpartition(":")[2].isdecimal():
        raise UserError(f"JAX_COORDINATOR_ADDRESS={address} has no port; give one, as host:8476")
    return Place(address, int(processes), int(number))


def _local_address(coordinator: str | None) -> str | None:
    """Where the service listens if all processes are on this machine; None for JAX's default.

    The default is all networks of the machine.
    """
    host = (coordinator or "").rpartition(":")[0]
    local = host in ("localhost", "127.0.0.1")
    return coordinator if local and "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ else None


# --- what a process knows of the others ---------------------------------------------------------


def process_count() -> int:
    """The number of processes of this run."""
    return _jax_state.num_processes or 1


def process_index() -> int:
    """The number of this process, from 0 on; 0 is the main process."""
    return _jax_state.process_id or 0


def _client() -> Any:
    """JAX's client of the coordination service."""
    return _jax_state.client


def process_name() -> str:
    """This process, as messages name it: 'process 1 on node-b'."""
    return f"process {process_index()} on {socket.gethostname()}"


@functools.cache
def hosts() -> tuple[int, ...]:
    """For each process, the lowest number of a process on the same machine."""
    names = gather_text(socket.gethostname())
    return tuple(names.index(name) for name in names)


def gather_text(text: str) -> list[str]:
    """The texts that all processes gave, in the order of their numbers.

    All processes must call it, in the same order as its other calls. It waits until all have.
    """
    if process_count() == 1:
        return [text]
    client, key = _client(), f"alexnet_jax/exchange/{next(_exchanges)}"
    client.key_value_set(f"{key}/{process_index()}", text)
    return [client.blocking_key_value_get(f"{key}/{i}", _WEEK) for i in range(process_count())]


def on_main_process(work: Callable[[], _T]) -> _T:
    """Calls `work` in the main process; returns its result, a JSON value, in all processes.

    All processes must call it, and wait until the work is done.

    Raises:
      UserError: the work raised it or OSError; in all processes, so that all end with status 2.
    """
    if process_count() == 1:
        return work()
    outcome: dict[str, Any] = {}
    if process_index() == 0:
        try:
            outcome["result"] = work()
        except UserError as error:
            outcome["error"] = str(error)
        except OSError as error:
            outcome["error"] = system_error(error)
    outcome = json.loads(gather_text(json.dumps(outcome))[0])
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["result"]


def require_same(what: str, value: str) -> None:
    """Raises UserError unless `value` is the same in all processes."""
    values = gather_text(value)
    others = [i for i, other in enumerate(values) if other != values[0]]
    if others:
        raise UserError(
            f"{what} of process {others[0]} differs from that of process 0; give all the same"
        )


def asked_to_stop() -> bool:
    """Whether SIGTERM came to any of several processes; True at one call only.

    All processes must call it equally often, and get the same answer at the same call: JAX
    catches the signal, and the processes agree on a call.
    """
    from jax.experimental.multihost_utils import reached_preemption_sync_point

    return reached_preemption_sync_point(next(_stop_questions))


# --- the end of one process, which ends all -----------------------------------------------------


def end(status: int, reason: str = "") -> NoReturn:
    """Prints `reason` if there is one, and ends this process with exit status `status`.

    One of several processes leaves without JAX's normal exit, which waits for all the others.
    These are then ended by JAX: at once if this was the main process; else when an exchange with
    this process fails, or after `HEARTBEAT_SECONDS`.
    """
    if process_count() == 1:
        if reason:
            terminal.complain(reason)
        sys.exit(status)
    if reason:
        terminal.complain(f"{process_name()}: {reason}")
    sys.stdout.flush()
    sys.stderr.flush()
    # If all processes fail, for example because of a wrong option, each shall end with its own
    # status. But as soon as the main process ends, JAX kills the others: so it goes last.
    with suppress(jax.errors.JaxRuntimeError):
        _client().wait_at_barrier("alexnet_jax/end", END_SECONDS * 1000)
    if process_index() == 0:
        time.sleep(1)
    os._exit(status)


def end_with_traceback(error: Exception) -> NoReturn:
    """Prints the traceback of an unexpected error in one of several processes, and ends it."""
    traceback.print_exception(error)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    end(1, f"{reason}; if another process ended before this one, see its output first")
