"""Checksums: whether a disk returns what was written to it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def json_checksum(values: Mapping[str, Any]) -> str:
    """A hash of JSON values: SHA-256, in hex."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def array_checksums(state: Any) -> list[int]:
    """A number below 2^32 for each leaf of a tree. A change of any single element changes it.

    Arrays are written without compression, and so without a checksum of their own. This one is
    computed where they are: the sum, modulo 2^32, of the bits of all elements, each multiplied by
    an odd number of its own. Such a sum does not depend on its order, and so not on how an array is
    split over devices, which exchange nothing but their sums.
    """
    return [int(value) for value in jax.device_get(_sums(state))]


@jax.jit
def _sums(state: Any) -> list[jax.Array]:
    def sum_of(leaf: jax.Array) -> jax.Array:
        width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)
        place = jnp.zeros(leaf.shape, jnp.uint32)  # of each element, in C order
        for axis, size in enumerate(leaf.shape):
            place = place * size + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

    return [sum_of(leaf) for leaf in jax.tree.leaves(state)]
