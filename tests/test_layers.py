"""Each layer against its formula, written out plainly; gradients against differences or PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from alexnet_jax.config import Formula
from alexnet_jax.model import layers

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("window", "side"), [(5, 8), (5, 7), (3, 6), (4, 9), (2, 5), (1, 4)])
@pytest.mark.parametrize("seen", [1, 3, 4])
def test_a_convolution_of_a_image_and_its_gradients_are_pytorchs(window, side, seen):
    torch = pytest.importorskip("torch")
    layer = layers.TowerConv(window, seen, 6, name="conv1", std=0.1, bias=0.5, rngs=nnx.Rngs(0))
    x, pull = normal(2, side, side + 3, seen), normal(2, side, side + 3, 6)
    graph, state = nnx.split(layer)
    y, backward = jax.vjp(lambda x, state: nnx.merge(graph, state)(x), x, state)
    ours, gradients = nnx.to_pure_dict(state), backward(pull)
    tx, tk, tb = (
        torch.tensor(np.array(value), requires_grad=True)
        for value in (x, ours["kernel"], ours["bias"])
    )
    before, after = layer.padding(side, window)
    padded = torch.nn.functional.pad(tx.permute(0, 3, 1, 2), (before, after, before, after))
    theirs = torch.nn.functional.conv2d(padded, tk.permute(3, 2, 0, 1), tb).permute(0, 2, 3, 1)
    theirs.backward(torch.tensor(pull))
    near = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(y, theirs.detach(), **near)
    np.testing.assert_allclose(gradients[0], tx.grad, **near)
    of_parameters = nnx.to_pure_dict(gradients[1])
    np.testing.assert_allclose(of_parameters["kernel"], tk.grad, **near)
    np.testing.assert_allclose(of_parameters["bias"], tb.grad, **near)


def across_maps_by_hand(x, formula, maps):
    """§3.3 with loops; the sum runs from max(0, i - n/2) to min(N - 1, i + n/2) in a tower."""
    f, size, out = formula, formula.size, np.empty_like(x)
    for i in range(x.shape[-1]):
        tower = i // maps
        low = max(tower * maps, i - size // 2)
        high = min((tower + 1) * maps - 1, i + (size - 1) // 2)
        total = (x[..., low : high + 1].astype(np.float64) ** 2).sum(-1)
        out[..., i] = x[..., i] / (f.k + f.alpha * total) ** f.beta
    return out


@pytest.mark.parametrize("towers", [1, 2])
@pytest.mark.parametrize(("maps", "size"), [(7, 5), (48, 5), (3, 5), (8, 4), (5, 1)])
@pytest.mark.parametrize("beta", [0.75, 0.5])
def test_normalisation_across_maps(towers, maps, size, beta):
    x = normal(2, 3, 5, towers * maps) * 30
    formula = Formula(size=size, k=2.0, alpha=0.01, beta=beta)
    ours = layers.normalise_across_maps(jnp.asarray(x), formula, maps)
    np.testing.assert_allclose(ours, across_maps_by_hand(x, formula, maps), rtol=2e-5)


@pytest.mark.parametrize(("size", "beta"), [(5, 0.75), (4, 0.75), (3, 0.5), (9, 0.75)])
def test_normalisation_across_maps_has_the_gradient_of_its_formula(size, beta):
    formula = Formula(size=size, k=2.0, alpha=0.3, beta=beta)
    normalise = lambda x: layers.normalise_across_maps(x, formula, 7)  # noqa: E731
    check_grads(normalise, [normal(2, 2, 14)], 1, "rev")


def within_maps_by_hand(x, formula):
    f, out, half = formula, np.empty_like(x), formula.size // 2
    for y in range(x.shape[1]):
        for z in range(x.shape[2]):
            window = x[:, max(0, y - half) : y + half + 1, max(0, z - half) : z + half + 1]
            total = (window.astype(np.float64) ** 2).sum((1, 2))
            out[:, y, z] = x[:, y, z] / (f.k + f.alpha * total) ** f.beta
    return out


@pytest.mark.parametrize("side", [3, 13, 8])
def test_normalisation_within_maps(side):
    x, formula = normal(2, side, side, 3) * 30, Formula(size=5, k=1.0, alpha=4e-3, beta=0.75)
    ours = layers.normalise_within_maps(jnp.asarray(x), formula)
    np.testing.assert_allclose(ours, within_maps_by_hand(x, formula), rtol=2e-5)


@pytest.mark.parametrize("size", [5, 4])
def test_normalisation_within_maps_has_the_gradient_of_its_formula(size):
    formula = Formula(size=size, k=1.0, alpha=0.1, beta=0.75)
    normalise = lambda x: layers.normalise_within_maps(x, formula)  # noqa: E731
    check_grads(normalise, [normal(1, 4, 6, 2)], 1, "rev")


def test_normalisation_sums_in_float32_when_the_rest_is_bfloat16():
    x = jnp.asarray(normal(1, 2, 2, 8) * 100, jnp.bfloat16)
    formula = Formula(size=5, k=2.0, alpha=1e-4, beta=0.75)
    ours = layers.normalise_across_maps(x, formula, maps=8)
    assert ours.dtype == jnp.bfloat16
    exact = across_maps_by_hand(np.asarray(x, np.float32), formula, maps=8)
    np.testing.assert_array_equal(ours, jnp.asarray(exact, jnp.bfloat16))


@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2), (3, 1), (5, 3)])
@pytest.mark.parametrize("side", [7, 13, 8])
@pytest.mark.parametrize("ties", [False, True])
def test_pooling_and_its_gradient_are_pytorchs(window, stride, side, ties):
    torch = pytest.importorskip("torch")
    x = normal(2, side, side + 1, 3)
    x = np.maximum(np.round(x), 0) if ties else x  # as after a ReLU
    theirs_in = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    theirs = torch.nn.functional.max_pool2d(theirs_in, window, stride)
    pull = normal(*theirs.shape)
    theirs.backward(torch.tensor(pull))

    ours, vjp = jax.vjp(lambda x: layers.max_pool(x, window, stride), x)
    np.testing.assert_array_equal(ours, theirs.detach().permute(0, 2, 3, 1))
    (gradient,) = vjp(jnp.asarray(pull.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(gradient, theirs_in.grad.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


def conv(window, seen, kernels, stride=1):
    how = {"name": "conv", "std": 0.1, "bias": 0.5, "rngs": nnx.Rngs(0)}
    return layers.TowerConv(window, seen, kernels, stride=stride, **how)


def test_conv1_pads_three_pixels_right_and_below_only():
    layer = conv(11, 3, 2, stride=4)
    assert layer.padding(224, 11) == (0, 3)
    assert layer(jnp.zeros((1, 224, 224, 3))).shape == (1, 55, 55, 2)
    image = np.zeros((1, 224, 224, 3), np.float32)
    image[0, 0, 0] = 1  # the top left pixel is seen by the first window's first weights
    out = layer(jnp.asarray(image)) - 0.5
    np.testing.assert_allclose(out[0, 0, 0], layer.kernel[0, 0].sum(0), rtol=1e-5)


def test_conv1_at_exact_sizes_pads_nothing():
    assert conv(11, 3, 2, stride=4).padding(227, 11) == (0, 0)
    assert conv(11, 3, 2, stride=4).padding(64, 11) == (0, 3)


def test_each_tower_sees_its_own_maps_only():
    layer, x = conv(3, 4, 6), normal(1, 5, 5, 8)
    changed = x.copy()
    changed[..., 4:] += 1  # tower B's inputs
    before, after = layer(jnp.asarray(x)), layer(jnp.asarray(changed))
    np.testing.assert_array_equal(before[..., :3], after[..., :3])
    assert np.abs(before[..., 3:] - after[..., 3:]).min() > 0


def test_a_dense_layer_flattens_each_tower_by_itself():
    how = {"name": "fc", "std": 0.1, "bias": 0.0, "rngs": nnx.Rngs(0)}
    layer, x = layers.TowerDense(4, 3, 10, **how), normal(2, 2, 2, 6)
    a, b = x[..., :3].reshape(2, 12), x[..., 3:].reshape(2, 12)
    kernel = layer.kernel[...]
    expected = np.concatenate([a @ kernel[:, :5], b @ kernel[:, 5:]], axis=1)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


# --- dropout ----------------------------------------------------------------------------------


def draw(step: int = 0, rows: int = 64) -> layers.DropoutKey:
    return layers.DropoutKey(jax.random.fold_in(jax.random.key(0), step), jnp.arange(rows))


def test_dropout_zeroes_in_training_and_scales_in_testing():
    x = jnp.ones((64, 512))
    dropped = np.asarray(layers.dropout(x, 0.5, draw(), 6, 256))
    assert set(np.unique(dropped)) == {0.0, 1.0}  # kept values are not scaled
    assert abs(dropped.mean() - 0.5) < 4 * 0.5 / np.sqrt(dropped.size)
    np.testing.assert_array_equal(layers.dropout(x, 0.5, None, 6, 256), 0.5 * np.ones((64, 512)))
    np.testing.assert_array_equal(layers.dropout(x, 0.0, draw(), 6, 256), x)


def test_masks_differ_between_steps_layers_rows_and_towers():
    x = jnp.ones((64, 512))
    first = np.asarray(layers.dropout(x, 0.5, draw(), 6, 256))
    others = [
        layers.dropout(x, 0.5, draw(step=1), 6, 256),
        layers.dropout(x, 0.5, draw(), 7, 256),
        np.roll(first, 1, axis=0),
        np.roll(first, 256, axis=1),
    ]
    for other in others:
        assert abs(np.mean(first == np.asarray(other)) - 0.5) < 0.02


def test_a_mask_belongs_to_the_row_in_the_global_batch():
    x = jnp.ones((64, 512))
    whole = layers.dropout(x, 0.5, draw(), 6, 256)
    later = layers.DropoutKey(draw().key, jnp.arange(32, 64))
    np.testing.assert_array_equal(whole[32:], layers.dropout(x[32:], 0.5, later, 6, 256))
