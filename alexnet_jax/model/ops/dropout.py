"""Dropout (§4.2), with masks that no mesh and no restart changes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


class DropoutKey(NamedTuple):
    """Where the dropout masks of a step come from.

    A mask depends on the seed, the step, the layer, the tower and the image's row in the GLOBAL
    batch. So masks are the same on every mesh and after a restart.
    """

    key: Key[Array, ""]  # of the seed and the step
    rows: Int[Array, " b"]  # the images' rows in the global batch


def dropout(
    x: Float[Array, " b *units"],
    rate: float,
    key: DropoutKey | None,
    layer: int,
    tower: Int[Array, ""] | int,
) -> Float[Array, " b *units"]:
    """Zero with probability `rate` in training; times 1 - rate in testing (`key` is None).

    This is not the inverted form, which scales in training: with the paper's initial weights the
    two train differently.
    """
    if not rate:
        return x
    if key is None:
        return x * jnp.asarray(1 - rate, x.dtype)
    of_layer = jax.random.fold_in(key.key, layer)

    def keep(row: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(of_layer, row), tower)
        return jax.random.bernoulli(own, 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(keep)(key.rows), x, 0)
