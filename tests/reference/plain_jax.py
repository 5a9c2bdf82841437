"""The network as one writes it in JAX first: grouped convolutions, and windows by reduce_window."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from alexnet_jax import config


def knows(c: config.AlexNet | config.Cifar) -> bool:
    """Whether it is the network of the paper's text, for which alone this is."""
    own = isinstance(c, config.AlexNet) and c.towers == 2 and c.cross == ("conv3", "fc6", "fc7")
    return own and not (c.without or c.lrn.before_activation or c.within_map.layers)


def logits(c: config.AlexNet, params: dict, x: jax.Array, key: jax.Array) -> jax.Array:
    """[b, classes] of images [b, 224, 224, 3]."""
    x = _pool(c, _lrn(c, _conv(params["conv1"], x, 4, ((0, 3), (0, 3)), 1)))
    x = _pool(c, _lrn(c, _conv(params["conv2"], x, 1, "SAME", 2)))
    x = _conv(params["conv3"], x, 1, "SAME", 1)
    x = _conv(params["conv4"], x, 1, "SAME", 2)
    x = _pool(c, _conv(params["conv5"], x, 1, "SAME", 2))
    x = x.reshape(x.shape[0], -1)
    for layer, own in zip(("fc6", "fc7"), jax.random.split(key), strict=True):
        x = jax.nn.relu(_dense(params[layer], x))
        x = jnp.where(jax.random.bernoulli(own, 1 - c.dropout, x.shape), x, 0)
    return _dense(params["fc8"], x).astype(jnp.float32)


def step(
    c: config.Config, params: dict, images: np.ndarray, labels: np.ndarray
) -> Callable[[int], None]:
    """Does so many training steps."""
    o = c.optim
    rule = optax.chain(optax.add_decayed_weights(o.weight_decay), optax.sgd(1e-6, o.momentum))

    @jax.jit
    def train(state: tuple, images: jax.Array, labels: jax.Array) -> tuple:
        params, momentum, key = state
        key, own = jax.random.split(key)

        def loss(params: dict) -> jax.Array:
            cast = jax.tree.map(lambda leaf: leaf.astype(c.dtype), params)
            out = logits(c.model, cast, images.astype(c.dtype), own)
            return optax.softmax_cross_entropy_with_integer_labels(out, labels).mean()

        updates, momentum = rule.update(jax.grad(loss)(params), momentum, params)
        return optax.apply_updates(params, updates), momentum, key

    placed = jax.device_put(params)
    state = placed, rule.init(placed), jax.random.key(0)
    batch = jax.device_put((images, labels))

    def run(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state = train(state, *batch)
        jax.block_until_ready(state)

    return run


def _conv(p: dict, x: jax.Array, stride: int, padding: object, groups: int) -> jax.Array:
    x = lax.conv_general_dilated(
        x,
        p["kernel"],
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return jax.nn.relu(x + p["bias"])


def _dense(p: dict, x: jax.Array) -> jax.Array:
    return x @ p["kernel"] + p["bias"]


def _pool(c: config.AlexNet, x: jax.Array) -> jax.Array:
    window, stride = (1, c.pool_window, c.pool_window, 1), (1, c.pool_stride, c.pool_stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, stride, "VALID")


def _lrn(c: config.AlexNet, x: jax.Array) -> jax.Array:
    towers = jnp.square(x).reshape(*x.shape[:-1], 2, -1)
    window = (1, 1, 1, 1, c.lrn.size)
    total = lax.reduce_window(towers, 0.0, lax.add, window, (1,) * 5, "SAME")
    return x / (c.lrn.k + c.lrn.alpha * total.reshape(x.shape)) ** c.lrn.beta
