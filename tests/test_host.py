"""What a command sets up in its process."""

import os
import platform
import subprocess
import sys

import pytest

from alexnet_jax.runtime import distributed, host
from alexnet_jax.runtime.errors import UserError

FAULTS = """
import resource, sys
import numpy as np
from alexnet_jax.runtime import host
if sys.argv[1] == "keep":
    host._keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 * 2**20, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for the GNU C library")
def test_freed_memory_is_used_again_without_the_kernels_help():
    """Page faults of the third of three arrays of 64 MiB; the system's pages have 4 KiB or more."""
    faults = [
        int(subprocess.check_output([sys.executable, "-c", FAULTS, how])) for how in ("not", "keep")
    ]
    assert faults[1] < 10 <= faults[0]


SET_UP = """
import os, sys
from alexnet_jax.runtime import host
host.configure_jax(2, deterministic=sys.argv[1] == "True")
import jax
assert jax.device_count() == 2
print(os.environ.get("XLA_FLAGS"))
"""


@pytest.mark.parametrize(
    ("asked", "before", "after"),
    [
        ("False", "--xla_cpu_enable_fast_math=false", "--xla_cpu_enable_fast_math=false"),
        ("True", None, "--xla_gpu_deterministic_ops=true"),
        (
            "True",
            "--xla_cpu_enable_fast_math=false",
            "--xla_cpu_enable_fast_math=false --xla_gpu_deterministic_ops=true",
        ),
    ],
)
def test_deterministic_adds_xlas_flag_to_the_users_own(asked, before, after):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment |= {"XLA_FLAGS": before} if before else {}
    said = subprocess.check_output([sys.executable, "-c", SET_UP, asked], env=environment)
    assert said.decode().strip() == after


GPU = SET_UP.replace("host.configure_jax", "host._may_have_gpus = lambda: True\nhost.configure_jax")


def test_gpus_get_their_flags_but_for_what_the_user_has_set():
    """XLA would end the process at a flag that it does not know."""
    own = "--xla_gpu_nccl_termination_timeout_seconds=60"
    environment = os.environ | {"XLA_FLAGS": own, "JAX_PLATFORMS": "cpu"}
    said = subprocess.check_output([sys.executable, "-c", GPU, "False"], env=environment)
    assert said.decode().split() == [
        own,
        "--xla_gpu_enable_latency_hiding_scheduler=true",
        "--xla_gpu_nccl_terminate_on_error=true",
    ]


def test_processes_share_the_devices_of_a_cpu(monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: 2)
    with pytest.raises(UserError, match=r"config\.devices=3 cannot be shared by 2 processes"):
        host.configure_jax(3)
