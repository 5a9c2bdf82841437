"""Seals: whether what comes back from a disk is what went there."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def seal(values: Mapping[str, Any]) -> str:
    """A hash of JSON values: SHA-256, in hex."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def array_checksums(state: Any) -> list[int]:
    """A number below 2^32 for each leaf of a tree, which no change of a single element leaves be.

    Arrays that are written without compression have no checksum of their own. This one is computed
    where they are: their elements' bits are summed up modulo 2^32, each multiplied by an odd number
    of its own. Order is of no matter to such a sum, so the devices over which an array is spread
    are not, either; they send each other nothing but their sums.
    """
    import jax  # `prepare` seals, too, and does without

    return [int(one) for one in jax.device_get(jax.jit(_sums)(state))]


def _sums(state: Any) -> list[Any]:
    import jax
    import jax.numpy as jnp

    def sum_of(leaf: jax.Array) -> jax.Array:
        width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)
        place = jnp.zeros(leaf.shape, jnp.uint32)  # in the array laid out row by row
        for axis, size in enumerate(leaf.shape):
            place = place * size + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

    return [sum_of(leaf) for leaf in jax.tree.leaves(state)]
