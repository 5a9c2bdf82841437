"""What each tower's units see, and how a parameter is declared."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alexnet_jax.model.layers import Conv, Dense, Initial, Logits
from alexnet_jax.model.towers import TOWER

RNG = np.random.default_rng(0)


def initial() -> Initial:
    return Initial("layer", 0.1, 0.5, nnx.Rngs(0))


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def test_each_tower_of_a_convolution_sees_its_own_maps_only():
    layer, a, b = Conv(initial(), 3, 4, 3, towers=2), normal(1, 5, 5, 4), normal(1, 5, 5, 4)
    before, after = layer([a, b]), layer([a, b + 1])
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).min() > 0


def test_after_a_meeting_both_towers_see_the_same():
    layer, x = Conv(initial(), 3, 8, 3, towers=2), normal(1, 5, 5, 8)
    one, other = layer([x])
    kernels = layer.kernel[...]
    for ours, kernel in ((one, kernels[..., :3]), (other, kernels[..., 3:])):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        expected = (padded[0, 1:4, 1:4, :, None] * kernel).sum((0, 1, 2)) + 0.5
        np.testing.assert_allclose(ours[0, 1, 1], expected, rtol=1e-4, atol=1e-5)


def test_a_dense_layer_flattens_each_tower_by_itself():
    layer, a, b = Dense(initial(), (2, 2, 3), 5, towers=2), normal(2, 2, 2, 3), normal(2, 2, 2, 3)
    kernel = layer.kernel[...]
    for ours, x, own in zip(layer([a, b]), (a, b), (kernel[:, :5], kernel[:, 5:]), strict=True):
        np.testing.assert_allclose(ours, x.reshape(2, 12) @ own + 0.5, rtol=1e-4, atol=1e-5)


def test_the_logits_are_the_sum_of_both_towers():
    layer, a, b = Logits(initial(), (1, 1, 6), 4), normal(2, 3), normal(2, 3)
    kernel = layer.kernel[...]
    expected = a @ kernel[:3] + b @ kernel[3:] + 0.5
    np.testing.assert_allclose(layer([a, b]), expected, rtol=1e-4, atol=1e-5)
    assert layer([a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)]).dtype == jnp.float32


def test_a_parameter_is_declared_once():
    """Its shape, its split over the devices and its axes follow from the declaration."""
    kernel = Dense(initial(), (6, 6, 256), 2048, towers=2).kernel
    assert kernel.axes == {"height": 6, "width": 6, "in": 256, "out": 4096}
    assert kernel[...].shape == (9216, 4096)
    assert kernel.out_sharding == (None, TOWER)
    assert Logits(initial(), (1, 1, 4096), 1000).kernel.out_sharding == (TOWER, None)
    conv = Conv(initial(), 5, 48, 128, towers=2)
    assert conv.kernel[...].shape == (5, 5, 48, 256)
    assert conv.kernel.out_sharding == (None, None, None, TOWER)
    assert conv.bias.out_sharding == (TOWER,)
