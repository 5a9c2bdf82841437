"""Networks for tests that need no training."""

from pathlib import Path

import jax
import numpy as np

from alexnet_jax import config
from alexnet_jax.data.info import DataInfo
from alexnet_jax.data.layout import Statistics
from alexnet_jax.training.setup import NetSetup, make_net_setup
from alexnet_jax.training.trained import Net


def new_net(c: config.Config, seed: int = 0) -> Net[NetSetup]:
    """A network with random weights of a useful size, biases and a random mean image."""
    rng = np.random.default_rng(seed)
    mean = rng.uniform(90, 140, (c.data.size, c.data.size, 3)).astype(np.float32)
    names = tuple(f"class{number}" for number in range(c.model.classes))
    statistics = Statistics(mean, np.zeros(3), np.eye(3))
    setup = make_net_setup(c, DataInfo("none", "random", names, statistics))

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        inputs = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
        first = leaf.shape[-2:-1] == (3,)  # it sees grey levels
        return rng.normal(0, 1.4 * inputs**-0.5 / (8 if first else 1), leaf.shape).astype("f4")

    params = jax.tree.map(draw, setup.network.shapes)
    placed = jax.device_put(params, setup.network.shardings(setup.network.specs))
    return Net(Path("random"), 0, setup, placed)
