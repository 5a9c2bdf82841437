"""The paper's operations by themselves, with its values, for networks of other people.

They are those of the network here: outside of a device mesh their plain definitions run.
"""

from jaxtyping import Array, Float

from alexnet_jax.config import Formula
from alexnet_jax.model import ops


def lrn(
    x: Float[Array, "*places maps"],
    *,
    size: int = 5,
    k: float = 2.0,
    alpha: float = 1e-4,
    beta: float = 0.75,
) -> Float[Array, "*places maps"]:
    """Local response normalization (§3.3): a / (k + alpha * (sum of the neighbours' squares))^beta.

    As in the paper, alpha is not divided by `size`; PyTorch and Caffe divide it.

    Args:
      x: [..., maps], of one tower.
      size: maps in a sum, that of the result included.
      k: at least 1e-6, or 0.
      alpha: 0 or more.
      beta: 0 or more.

    Returns:
      As x, in its dtype; computed in float32 at least.
    """
    return ops.lrn(x, Formula(size=size, k=k, alpha=alpha, beta=beta))


def max_pool(
    x: Float[Array, "b h w maps"], *, window: int = 3, stride: int = 2
) -> Float[Array, "b h2 w2 maps"]:
    """Overlapping max pooling (§3.4): h2 = (h - window) // stride + 1; windows lie wholly inside.

    Args:
      x: [b, h, w, maps].
      window: side of the windows, pixels.
      stride: between their first pixels.
    """
    return ops.max_pool(x, window, stride)
