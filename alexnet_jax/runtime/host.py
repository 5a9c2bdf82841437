"""What a command sets up in its own process before anything is computed."""

import ctypes
import logging
import os
import platform
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import jax

from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.errors import UserError

MOST_DEVICES = 1024
"""Of one process. JAX makes so many CPU devices in two seconds, and aborts at 4096."""


def configure_jax(devices: int, *, deterministic: bool = False) -> None:
    """Sets up JAX for a command that computes on `devices` devices; call it before JAX starts.

    On CPUs JAX makes as many devices as this process needs: all, or its share of them. GPUs are
    there or not. Compiled programs are kept in ``JAX_COMPILATION_CACHE_DIR``, or in ``~/.cache``.

    Args:
      devices: the devices of all processes together.
      deterministic: XLA uses no GPU operation whose result depends on the order in which threads
        finish. On CPUs there are none.

    Raises:
      UserError: the processes cannot share the devices equally, or there are too many.
    """
    processes = distributed.process_count()
    if devices % processes:
        raise UserError(
            f"config.devices={devices} cannot be shared by {processes} processes; "
            f"give a multiple of {processes}"
        )
    if devices // processes > MOST_DEVICES:
        raise UserError(
            f"{devices} devices: a process has {MOST_DEVICES} at most, and there are {processes} "
            f"processes and {os.cpu_count()} CPU cores here; give fewer devices"
        )
    os.environ.setdefault("NCCL_DEBUG", "WARN")  # without it NCCL does not say what went wrong
    if deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    # At level INFO it prints at each start that there is no TPU.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    logging.getLogger("jax._src.xla_bridge").addFilter(_concerns_this_machine)
    jax.config.update("jax_num_cpu_devices", devices // processes)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "alexnet_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small programs, too
    if jax.default_backend() == "cpu":
        _keep_freed_memory()


def _concerns_this_machine(record: logging.LogRecord) -> bool:
    """False for what JAX says of CUDA on a machine without an NVIDIA GPU.

    With XLA's compiler for GPUs (the extra gpu-program) but without their libraries it would print
    a traceback at each start. With a GPU it says why that cannot be used.
    """
    gpus = any(Path("/dev").glob("nvidia*")) or Path("/dev/dxg").exists()  # the latter: WSL
    return gpus or "xla_cuda" not in record.getMessage()


def describe(devices: Sequence[jax.Device]) -> dict[str, str | int]:
    """What a run computes on, to be written beside its results.

    Args:
      devices: those of all processes.
    """
    return {
        "devices": len(devices),
        "kind": devices[0].device_kind,
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "processes": distributed.process_count(),
        "jax": jax.__version__,
    }


def free_device_memory(device: jax.Device) -> int | None:
    """Bytes that a device can still give; None for a CPU, whose memory is the machine's."""
    found = device.memory_stats() or {}
    if "bytes_limit" not in found:
        return None
    return int(found["bytes_limit"] - found.get("bytes_in_use", 0))


def free_memory() -> int | None:
    """Bytes of this machine's memory that a process can still get; None where Linux does not tell.

    A job of a scheduler or a container may have less than the machine.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (free,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
        (group,) = re.findall(r"^0::/(.*)$", Path("/proc/self/cgroup").read_text(), re.M) or [""]
    except (OSError, ValueError):
        return None
    root = Path("/sys/fs/cgroup")
    for folder in (root / group, *(root / group).parents):
        with suppress(OSError, ValueError, KeyError):  # no limit, or none of this kind
            limit = int((folder / "memory.max").read_text())
            used = int((folder / "memory.current").read_text())
            parts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            free = min(free, limit - used + int(parts["inactive_file"]))  # which can be dropped
    return free


def _cpu() -> str:
    """The processor's name, as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.machine()


def _keep_freed_memory() -> None:
    """Makes the GNU C library keep freed memory for the next step.

    On a CPU, XLA allocates one large block for the temporary arrays of each step, and frees it
    after the step. By default the library returns it to the kernel, which clears it page by page
    when it is needed again: a sixth of the time of a step (docs/performance.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # constants of malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(arena_max, 1)
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)
