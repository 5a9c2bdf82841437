"""Local response normalization (§3.3): the definition, and the form that is fast on a CPU."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from alexnet_jax.config import Formula
from alexnet_jax.model.ops.platform import platform
from alexnet_jax.model.ops.windows import Maps, window_views


def lrn(x: Float[Array, "*places maps"], formula: Formula) -> Float[Array, "*places maps"]:
    """Local response normalisation over the nearest maps of the same tower.

    b_i = a_i / (k + alpha * sum of a_j^2)^beta, with the sum over the `formula.size` maps around i,
    cut off at the first and the last map. Computed in float32 at least; the result has x's dtype.
    """
    with jax.named_scope("lrn"):
        return _lrn(x, formula, (x.ndim - 1,))


def lrn_within(x: Maps, formula: Formula) -> Maps:
    """The same formula, but the sum is over `size` x `size` places of the same map.

    The paper does not mention it; the 2012 code has it after layer 2.
    """
    with jax.named_scope("lrn_within"):
        return _lrn(x, formula, (2, 1))


def _lrn(x: jax.Array, formula: Formula, axes: tuple[int, ...]) -> jax.Array:
    precise = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    form = _lrn_fast if platform() else lrn_definition
    return form(precise, formula, axes).astype(x.dtype)


def lrn_definition(x: jax.Array, formula: Formula, axes: tuple[int, ...]) -> jax.Array:
    """The formula, with windows of `formula.size` values along each of `axes`."""
    return x * power(_lrn_base(x, formula, axes), formula.beta)


def _lrn_base(x: jax.Array, formula: Formula, axes: tuple[int, ...]) -> jax.Array:
    before, after = formula.size // 2, (formula.size - 1) // 2
    return formula.k + formula.alpha * _window_sums(jnp.square(x), before, after, axes)


def _window_sums(x: jax.Array, before: int, after: int, axes: tuple[int, ...]) -> jax.Array:
    """Sums over the values that lie so far before and after each, along each of `axes`."""
    # With an axis of one before the last, XLA adds in the order of version 0.1: the same bits.
    y = x[..., None, :] if axes == (x.ndim - 1,) else x
    axes = (y.ndim - 1,) if y.ndim > x.ndim else axes
    y = jnp.pad(y, [(before, after) if axis in axes else (0, 0) for axis in range(y.ndim)])
    for axis in axes:
        y = reduce(jnp.add, window_views(y, axis, before + 1 + after, 1))
    return y.reshape(x.shape)


def power(x: jax.Array, beta: float) -> jax.Array:
    """x ** -beta. The paper's 0.75 is computed by square roots, which are faster than a power."""
    return lax.rsqrt(x * jnp.sqrt(x)) if beta == 0.75 else x**-beta


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _lrn_fast(x: jax.Array, formula: Formula, axes: tuple[int, ...]) -> jax.Array:
    """`lrn_definition` with its gradient written out: half of the time of both passes on a CPU."""
    return lrn_definition(x, formula, axes)


def _lrn_forward(
    x: jax.Array, formula: Formula, axes: tuple[int, ...]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    base = _lrn_base(x, formula, axes)
    return x * power(base, formula.beta), (x, base)


def _lrn_backward(
    formula: Formula,
    axes: tuple[int, ...],
    saved: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array]:
    x, base = saved
    direct = gradient * power(base, formula.beta)
    # The adjoint of a sum over windows is a sum over the mirrored windows.
    before, after = (formula.size - 1) // 2, formula.size // 2
    through = _window_sums(direct * x / base, before, after, axes)
    return (direct - 2 * formula.alpha * formula.beta * x * through,)


_lrn_fast.defvjp(_lrn_forward, _lrn_backward)
