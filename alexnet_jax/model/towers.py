"""Where the two towers lie, and the only two places where they meet (§3.2, Fig. 2).

Inside `jax.shard_map` a device sees its own part of each array: with two towers on two devices, one
tower; else all of them. An activation is a list with one array for each tower on this device. Where
all towers see the same (the image, or what was gathered), it is a list of that one array. So layers
and operations are written for one tower, and only `gather` and `add` know that there may be another
device.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

DATA, TOWER = "data", "tower"  # the axes of the device mesh

Towers = list[Float[Array, "b ..."]]
"""[b, height, width, maps] or [b, neurons] of each tower here, A's first; or a list of one."""

Operation = Callable[[jax.Array], jax.Array]
"""A function of one tower's activation."""


def apart() -> bool:
    """Whether each tower has a device of its own; False outside of `shard_map`."""
    return TOWER in jax.sharding.get_abstract_mesh().manual_axes and lax.axis_size(TOWER) > 1


def here(towers: int) -> int:
    """How many of a network's `towers` are on this device."""
    return 1 if apart() else towers


def first() -> Int[Array, ""] | int:
    """The number of the first tower on this device: 0 for A, 1 for B."""
    return lax.axis_index(TOWER) if apart() else 0


def gather(x: Towers) -> Towers:
    """A meeting: all towers' maps or neurons, A's first, as one array that every tower sees."""
    mine = concatenate(x)
    return [lax.all_gather(mine, TOWER, axis=mine.ndim - 1, tiled=True) if apart() else mine]


def with_neighbours(x: Float[Array, "*places n"], before: int, after: int) -> jax.Array:
    """The maps on this device between so many nearest ones of the other: [..., before + n + after].

    Zeros stand before A's and after B's, and on both sides where both towers are here.
    """
    if not apart():
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)])
    # A device to which nobody sends gets zeros.
    last_of_a = lax.ppermute(x[..., x.shape[-1] - before :], TOWER, [(0, 1)])
    first_of_b = lax.ppermute(x[..., :after], TOWER, [(1, 0)])
    return jnp.concatenate([last_of_a, x, first_of_b], axis=-1)


def add(x: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """The sum of both devices' `x`; `x` itself where both towers are on this device."""
    return lax.psum(x, TOWER) if apart() else x


def concatenate(x: Towers) -> Float[Array, "b ..."]:
    """The towers here as one array, A's maps or neurons first."""
    return jnp.concatenate(x, axis=-1) if len(x) > 1 else x[0]


def split(
    x: Float[Array, "*axes units"], towers: int
) -> list[Float[Array, "*axes units/{towers}"]]:
    """The last axis cut into the shares of so many towers: undoes `concatenate`."""
    return jnp.split(x, towers, axis=-1) if towers > 1 else [x]


def each(operation: Operation) -> Callable[[Towers], Towers]:
    """`operation`, which is written for one tower, done in every tower by itself."""
    return lambda x: [operation(one) for one in x]
