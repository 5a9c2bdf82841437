"""The GPUs for which a step can be compiled without having one, and what they can do at most."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

BANDWIDTH_SHARE = 0.9  # of the data sheet's: what a long copy reaches
PRODUCT_SHARE = 0.8  # of the data sheet's dense rate: what a large matrix product reaches


class Target(NamedTuple):
    """A GPU, by NVIDIA's data sheets; the sizes on the chip as XLA's own descriptions have them."""

    name: str  # as the driver says it
    capability: tuple[int, int]  # 'compute capability'
    cores: int  # streaming multiprocessors
    lanes: int  # of float32 in each of them
    clock: float  # Hz, boost
    memory: int  # bytes
    bandwidth: float  # bytes/s
    cache: int  # bytes, L2
    shared: int  # bytes of shared memory in a core
    bfloat16: float  # FLOP/s of dense products
    tfloat32: float  # FLOP/s of dense products, which is what float32 is there by default


H100 = Target(
    name="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    cores=132,
    lanes=128,
    clock=1.98e9,
    memory=84_942_979_072,
    bandwidth=3.352e12,
    cache=50 << 20,
    shared=228 << 10,
    bfloat16=989e12,
    tfloat32=494.5e12,
)

TARGETS = {
    "h100": H100,
    "h200": H100._replace(name="NVIDIA H200", memory=150_754_820_096, bandwidth=4.8e12),
    "a100": Target(
        name="NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        cores=108,
        lanes=64,
        clock=1.41e9,
        memory=85_100_068_864,
        bandwidth=2.039e12,
        cache=40 << 20,
        shared=164 << 10,
        bfloat16=312e12,
        tfloat32=156e12,
    ),
    "l4": Target(
        name="NVIDIA L4",
        capability=(8, 9),
        cores=58,
        lanes=128,
        clock=2.04e9,
        memory=23_836_819_456,
        bandwidth=300e9,
        cache=48 << 20,
        shared=100 << 10,
        bfloat16=121e12,
        tfloat32=60.5e12,
    ),
}
"""By the name that --target takes. H100 is the SXM5 module."""

# The fields of XLA's GpuTargetConfigProto. Only Hopper's code is compiled for its one architecture,
# 'sm_90a'. A block may have all of a core's shared memory but one KiB.
_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {threads}
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {optin} core_count: {cores} fpus_per_core: {lanes}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory} l2_cache_size: {cache}
  clock_rate_ghz: {gigahertz} registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} {feature} }}
}}
platform_name: "CUDA" device_description_str: "{name}"
dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 13 }}
"""


def target_devices(target: Target, count: int) -> Sequence[jax.Device]:
    """So many of this GPU in one machine. They can be compiled for; nothing can be placed on them.

    It needs the compiler's packages (see `program.require_compiler`), but no GPU and no driver.
    """
    major, minor = target.capability
    description = _DESCRIPTION.format(
        **target._asdict(),
        major=major,
        minor=minor,
        threads=1536 if target.capability == (8, 9) else 2048,
        optin=target.shared - 1024,
        gigahertz=target.clock / 1e9,
        feature="feature_extension: ACCELERATED_FEATURES" if major == 9 else "",
    )
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=description, topology=f"1x1x{count}"
    )
    return list(topology.devices)
