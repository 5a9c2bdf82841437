"""What a command sets up in its process."""

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
