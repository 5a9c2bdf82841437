"""Where the two towers lie, and where they meet (§3.2, Fig. 2)."""

import jax
from jax import lax

DATA, TOWER = "data", "tower"  # the axes of the device mesh


def towers_apart() -> bool:
    """Whether the towers lie on different devices; False outside ``shard_map``."""
    return TOWER in jax.sharding.get_abstract_mesh().manual_axes and lax.axis_size(TOWER) > 1


def first_tower() -> jax.Array | int:
    """Number of the first tower on this device: 0 for A, 1 for B."""
    return lax.axis_index(TOWER) if towers_apart() else 0


def gather_towers(x: jax.Array) -> jax.Array:
    """Both towers, A first: [..., n] -> [..., 2n]; as it is where both are on this device."""
    return lax.all_gather(x, TOWER, axis=x.ndim - 1, tiled=True) if towers_apart() else x


def sum_towers(x: jax.Array) -> jax.Array:
    """The sum of the towers' partial results; as it is where both are on this device."""
    return lax.psum(x, TOWER) if towers_apart() else x
