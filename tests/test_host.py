"""What a command sets up in its process."""

import os
import platform
import subprocess
import sys

import jax
import pytest

from alexnet_jax.runtime import distributed, host
from alexnet_jax.runtime.errors import UserError

FAULTS = """
import resource
import numpy as np
from alexnet_jax.runtime import host

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 * 2**20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = [faults() for _ in range(3)]
host._keep_freed_memory()
print(before[-1], [faults() for _ in range(3)][-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for the GNU C library")
def test_freed_memory_is_used_again_without_the_kernels_help():
    """Page faults of the third of three arrays of 64 MiB; the system's pages have 4 KiB or more."""
    output = subprocess.check_output([sys.executable, "-c", FAULTS], text=True)
    before, after = map(int, output.split())
    assert after < 10 <= before


def test_jax_gets_its_devices_and_flags_in_a_new_process():
    """With the user's own XLA_FLAGS, of which none is lost."""
    code = (
        "import os, jax; from alexnet_jax.runtime import host; "
        "host.configure_jax(2, deterministic=True); "
        "print(jax.device_count(), os.environ['XLA_FLAGS'])"
    )
    own = "--xla_cpu_enable_fast_math=false"
    environment = os.environ | {"XLA_FLAGS": own, "JAX_PLATFORMS": "cpu"}
    output = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert output.split() == ["2", own, "--xla_gpu_deterministic_ops=true"]


@pytest.fixture
def settings(monkeypatch):
    """What `configure_jax` sets in JAX, which can change no more in this process."""
    found = {}
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    monkeypatch.setattr(host, "_keep_freed_memory", lambda: None)
    monkeypatch.setattr(os, "environ", {"NCCL_DEBUG": "INFO", "XDG_CACHE_HOME": "/somewhere"})
    return found


def test_xla_gets_no_flags_unless_they_are_asked_for(settings):
    """XLA ends the process at a flag that it does not know."""
    host.configure_jax(4)
    assert "XLA_FLAGS" not in os.environ
    assert os.environ["NCCL_DEBUG"] == "INFO"  # the user's own
    assert settings["jax_compilation_cache_dir"] == "/somewhere/alexnet_jax"
    host.configure_jax(4, deterministic=True)
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_deterministic_ops=true"


def test_processes_share_the_devices_of_a_cpu(settings, monkeypatch):
    monkeypatch.setattr(distributed, "process_count", lambda: 2)
    host.configure_jax(4)
    assert settings["jax_num_cpu_devices"] == 2
    with pytest.raises(UserError, match=r"config\.devices=3 cannot be shared by 2 processes"):
        host.configure_jax(3)
