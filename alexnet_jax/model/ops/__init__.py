"""The operations of §3 and §4.2: each as it is defined, and below it the forms that are fast.

They are written for one tower: arrays are [batch, height, width, maps] or [batch, neurons]. A name
that ends in `_definition` is the plain definition. It is what runs outside of a device mesh, and
what the fast forms below it are tested against. The platform is that of the mesh for which a
program is compiled, so that no form that was made for a CPU comes into a GPU's program.
"""

from alexnet_jax.model.ops.chain import Form, Lrn, LrnWithin, MaxPool, Operation, chain, chain_forms
from alexnet_jax.model.ops.convolution import add_bias, conv_padding, convolve
from alexnet_jax.model.ops.dropout import DropoutKey, dropout
from alexnet_jax.model.ops.normalization import lrn, lrn_within
from alexnet_jax.model.ops.platform import platform
from alexnet_jax.model.ops.pooling import (
    average_pool_over_edges,
    hang_over,
    max_pool,
    max_pool_over_edges,
    pooled_side,
)
from alexnet_jax.model.ops.rectifier import relu

__all__ = [
    "DropoutKey",
    "Form",
    "Lrn",
    "LrnWithin",
    "MaxPool",
    "Operation",
    "add_bias",
    "average_pool_over_edges",
    "chain",
    "chain_forms",
    "conv_padding",
    "convolve",
    "dropout",
    "hang_over",
    "lrn",
    "lrn_within",
    "max_pool",
    "max_pool_over_edges",
    "platform",
    "pooled_side",
    "relu",
]
