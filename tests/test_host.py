"""What a command sets up in its process."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from alexnet_jax import host
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
from alexnet_jax import host
host.set_up(2, deterministic=sys.argv[1] == "True")
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
