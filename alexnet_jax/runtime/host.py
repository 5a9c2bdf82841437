"""What a command sets up in its own process before anything is computed."""

import ctypes
import logging
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import jax

from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.errors import UserError

GPU_FLAGS = {
    "xla_gpu_enable_latency_hiding_scheduler": "true",  # exchanges go on beside the computation
    "xla_gpu_nccl_terminate_on_error": "true",  # else a process whose peer died would hang
    "xla_gpu_nccl_termination_timeout_seconds": "600",
}
"""What XLA is told where there are NVIDIA GPUs; what the user's XLA_FLAGS say goes before it."""


def configure_jax(devices: int, *, deterministic: bool = False) -> None:
    """For a command that computes on `devices` devices; call it before JAX has done anything.

    A CPU counts as as many devices as are asked for, or as its process' share of them; other
    platforms take no notice. Programs that have been compiled once are kept in
    ``JAX_COMPILATION_CACHE_DIR``, or else in ``~/.cache``.

    With `deterministic`, XLA uses no GPU operation whose result depends on the order in which
    threads come to their end. CPUs have none.

    Raises:
      UserError: several processes cannot share the devices equally.
    """
    processes = distributed.process_count()
    if devices % processes:
        raise UserError(
            f"config.devices={devices} cannot be shared by {processes} processes; "
            f"give a multiple of {processes}"
        )
    if _may_have_gpus():
        _add_gpu_flags()
        os.environ.setdefault("NCCL_DEBUG", "WARN")
    if deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    # It would say at every start that there is no TPU.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    jax.config.update("jax_num_cpu_devices", devices // processes)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "alexnet_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small programs, too
    if jax.default_backend() == "cpu":
        _keep_freed_memory()


def _may_have_gpus() -> bool:
    """Whether JAX could use a GPU; to look whether there is one would start it."""
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    plugins = (plugin.name for plugin in metadata.entry_points(group="jax_plugins"))
    return platforms != "cpu" and any("cuda" in plugin for plugin in plugins)


def _add_gpu_flags() -> None:
    """Adds to XLA_FLAGS what the user has not set there."""
    given = os.environ.get("XLA_FLAGS", "")
    added = [f"--{name}={value}" for name, value in GPU_FLAGS.items() if f"--{name}=" not in given]
    os.environ["XLA_FLAGS"] = " ".join([*given.split(), *added])


def describe(devices: Sequence[jax.Device]) -> dict[str, str | int]:
    """What a run computes on, as a result is to tell: its devices, the processor, JAX's version."""
    return {
        "devices": len(devices),
        "kind": devices[0].device_kind,
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "processes": distributed.process_count(),
        "jax": jax.__version__,
    }


def _cpu() -> str:
    """The processor's name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.machine()


def _keep_freed_memory() -> None:
    """Has the GNU C library keep what is freed, for the next step, instead of returning it.

    On a CPU, XLA asks for one large piece of memory for each step's temporary arrays and frees it
    after the step. By default the kernel then clears it page by page, each time anew: a sixth of
    the time of a step (docs/performance.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # names in malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(arena_max, 1)
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)
