"""Each operation against its formula written out plainly, PyTorch, or differences of values.

Outside of a mesh the definitions run, on a mesh of CPU devices the fast forms: `everywhere` tests
both.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from alexnet_jax.config import Formula
from alexnet_jax.model import ops
from alexnet_jax.model.ops import convolution, pooling
from alexnet_jax.runtime.sharding import make_mesh

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def on_mesh(function):
    """The function inside of `shard_map`, on a mesh of one CPU device."""
    mesh = make_mesh(1, towers=1)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=P(), out_specs=P()))


everywhere = pytest.mark.parametrize("run", [jax.jit, on_mesh], ids=["definition", "fast"])
NEAR = {"rtol": 1e-4, "atol": 1e-4}


def test_the_platform_is_the_meshs():
    assert ops.platform() is None
    seen = []
    on_mesh(lambda x: seen.append(ops.platform()) or x)(jnp.zeros(1))
    assert set(seen) == {"cpu"}


@pytest.mark.parametrize("function", [ops.convolve, ops.add_bias])
def test_a_form_for_cpus_is_not_in_another_platforms_program(function):
    x, kernel = jnp.zeros((1, 5, 5, 3)), jnp.zeros((3, 3, 3, 4))
    arguments = (x, kernel) if function is ops.convolve else (x, jnp.zeros(3))
    programs = {}
    for platform in (None, "cpu", "gpu"):
        device = AbstractDevice("any", 1, platform) if platform else None
        mesh = AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            assert ops.platform() == platform
            programs[platform] = str(jax.make_jaxpr(partial(function))(*arguments))  # traced anew
    assert programs["gpu"] == programs[None] != programs["cpu"]


@everywhere
@pytest.mark.parametrize(("window", "side"), [(5, 8), (5, 7), (4, 9), (1, 4)])
@pytest.mark.parametrize("seen", [3, 5])
def test_a_convolution_with_bias_and_its_gradients_are_pytorchs(run, window, side, seen):
    torch = pytest.importorskip("torch")
    x, kernel, bias = normal(2, side, side + 3, seen), normal(window, window, seen, 6), normal(6)
    convolution = run(lambda x, k, b: ops.add_bias(ops.convolve(x, k), b))
    y, backward = jax.vjp(convolution, x, kernel, bias)
    gradient = normal(*y.shape)
    tx, tk, tb = (torch.tensor(value, requires_grad=True) for value in (x, kernel, bias))
    before, after = ops.conv_padding(side, window, 1)
    padded = torch.nn.functional.pad(tx.permute(0, 3, 1, 2), (before, after, before, after))
    theirs = torch.nn.functional.conv2d(padded, tk.permute(3, 2, 0, 1), tb).permute(0, 2, 3, 1)
    theirs.backward(torch.tensor(gradient))
    np.testing.assert_allclose(y, theirs.detach(), **NEAR)
    for ours, their in zip(backward(jnp.asarray(gradient)), (tx, tk, tb), strict=True):
        np.testing.assert_allclose(ours, their.grad, **NEAR)


def test_conv1_pads_three_pixels_right_and_below_only():
    assert ops.conv_padding(224, 11, 4) == (0, 3)
    image, kernel = np.zeros((1, 224, 224, 3), np.float32), normal(11, 11, 3, 2)
    image[0, 0, 0] = 1  # the top left pixel is seen by the first window's first weights
    out = ops.convolve(jnp.asarray(image), jnp.asarray(kernel), stride=4)
    assert out.shape == (1, 55, 55, 2)
    np.testing.assert_allclose(out[0, 0, 0], kernel[0, 0].sum(0), rtol=1e-5)


def test_conv1_at_exact_sizes_pads_nothing():
    assert ops.conv_padding(227, 11, 4) == (0, 0)
    assert ops.conv_padding(64, 11, 4) == (0, 3)


@pytest.mark.parametrize(
    ("side", "window", "stride", "seen", "zeros"),
    [
        (64, 11, 4, 3, None),
        (33, 5, 2, 3, None),
        (30, 5, 2, 1, 2),
        (29, 3, 4, 2, 0),
        (31, 5, 3, 3, 1),
    ],
)
def test_a_convolution_by_blocks_is_the_definition(side, window, stride, seen, zeros):
    """On images that are no squares, with its gradients; blocks need not fit the image."""
    with jax.enable_x64(True):
        x = jnp.asarray(RNG.normal(size=(2, side, side + 3, seen)))
        kernel = jnp.asarray(RNG.normal(size=(window, window, seen, 5)))
        both = [
            ops.conv_padding(n, window, stride) if zeros is None else (zeros, zeros)
            for n in x.shape[1:3]
        ]
        results = []
        for form in (convolution.convolve_definition, convolution.convolve_blocks):
            y, back = jax.vjp(partial(form, stride=stride, padding=tuple(both)), x, kernel)
            results.append([y, *back(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))])
        for ours, theirs in zip(*results, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)


def test_a_gpu_has_conv1_by_blocks(monkeypatch):
    monkeypatch.setattr(convolution, "platform", lambda: "gpu")
    x, kernel = jnp.ones((1, 224, 224, 3)), jnp.ones((11, 11, 3, 4))
    program = str(jax.make_jaxpr(partial(ops.convolve, stride=4))(x, kernel))
    assert "1,57,57,48" in program.replace(" ", "")


@everywhere
@pytest.mark.parametrize("shape", [(16, 16, 16, 3), (4096, 3)], ids=["maps", "neurons"])
def test_the_gradient_of_a_bias_is_summed_in_float32(run, shape):
    """4,096 equal numbers: bfloat16 has 256 steps between powers of two, so a sum would stop."""
    bias, pull = jnp.zeros(3), jnp.full(shape, 2**-12, jnp.bfloat16)
    _, back = jax.vjp(run(lambda b: ops.add_bias(jnp.zeros(shape, jnp.bfloat16), b)), bias)
    np.testing.assert_array_equal(back(pull)[0], np.ones(3, np.float32))


# --- local response normalisation -------------------------------------------------------------


def lrn_by_hand(x, formula):
    """§3.3 with loops; the sum runs from max(0, i - n/2) to min(N - 1, i + n/2)."""
    f, size, out = formula, formula.size, np.empty_like(x)
    for i in range(x.shape[-1]):
        low, high = max(0, i - size // 2), min(x.shape[-1] - 1, i + (size - 1) // 2)
        total = (x[..., low : high + 1].astype(np.float64) ** 2).sum(-1)
        out[..., i] = x[..., i] / (f.k + f.alpha * total) ** f.beta
    return out


def lrn_within_by_hand(x, formula):
    f, out, half = formula, np.empty_like(x), formula.size // 2
    for y in range(x.shape[1]):
        for z in range(x.shape[2]):
            window = x[:, max(0, y - half) : y + half + 1, max(0, z - half) : z + half + 1]
            total = (window.astype(np.float64) ** 2).sum((1, 2))
            out[:, y, z] = x[:, y, z] / (f.k + f.alpha * total) ** f.beta
    return out


@everywhere
@pytest.mark.parametrize(
    ("maps", "size", "beta"), [(48, 5, 0.75), (3, 5, 0.75), (8, 4, 0.5), (5, 1, 0.75)]
)
def test_lrn(run, maps, size, beta):
    x, formula = normal(2, 3, 5, maps) * 30, Formula(size=size, k=2.0, alpha=0.01, beta=beta)
    ours = run(lambda x: ops.lrn(x, formula))(jnp.asarray(x))
    np.testing.assert_allclose(ours, lrn_by_hand(x, formula), rtol=2e-5)


@everywhere
@pytest.mark.parametrize("side", [3, 8])
def test_lrn_within(run, side):
    x, formula = normal(2, side, side, 3) * 30, Formula(size=5, k=1.0, alpha=4e-3, beta=0.75)
    ours = run(lambda x: ops.lrn_within(x, formula))(jnp.asarray(x))
    np.testing.assert_allclose(ours, lrn_within_by_hand(x, formula), rtol=2e-5)


@everywhere
@pytest.mark.parametrize(("size", "beta"), [(5, 0.75), (4, 0.5)])
@pytest.mark.parametrize("op", [ops.lrn, ops.lrn_within])
def test_lrn_has_the_gradient_of_its_formula(run, op, size, beta):
    formula = Formula(size=size, k=2.0, alpha=0.3, beta=beta)
    check_grads(run(lambda x: op(x, formula)), [normal(2, 3, 4, 7)], 1, "rev")


@everywhere
@pytest.mark.parametrize(("op", "size"), [(ops.lrn, 7), (ops.lrn_within, 3)])
def test_plain_normalization_is_the_formula_with_k_0_too(run, op, size):
    """(k, alpha, beta, n) = (0, 1, 1, N): each value over the squares of its neighbours."""
    x, formula = normal(2, 4, 4, 7) * 30, Formula(size=size, k=0.0, alpha=1.0, beta=1.0)
    by_hand = lrn_by_hand if op is ops.lrn else lrn_within_by_hand
    ours = run(lambda x: op(x, formula))
    np.testing.assert_allclose(ours(jnp.asarray(x)), by_hand(x, formula), rtol=2e-5)
    check_grads(ours, [normal(2, 3, 3, 7)], 1, "rev")
    silent = np.asarray(ours(jnp.zeros((1, 4, 4, 7))))
    assert np.isnan(silent).all()  # 0 / 0, which ends a training


@everywhere
def test_lrn_sums_in_float32_when_the_rest_is_bfloat16(run):
    x = jnp.asarray(normal(1, 2, 2, 8) * 100, jnp.bfloat16)
    formula = Formula(size=5, k=2.0, alpha=1e-4, beta=0.75)
    ours = run(lambda x: ops.lrn(x, formula))(x)
    assert ours.dtype == jnp.bfloat16
    exact = lrn_by_hand(np.asarray(x, np.float32), formula)
    np.testing.assert_array_equal(ours, jnp.asarray(exact, jnp.bfloat16))


@everywhere
def test_lrn_computes_in_float64_where_its_input_is(run):
    with jax.enable_x64(True):
        x = RNG.normal(size=(2, 3, 3, 7)) * 30
        formula = Formula(size=5, k=2.0, alpha=0.01, beta=0.75)
        ours = run(lambda x: ops.lrn(x, formula))(jnp.asarray(x))
    np.testing.assert_allclose(ours, lrn_by_hand(x, formula), rtol=1e-13)


# --- pooling ----------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2), (3, 1), (5, 3)])
@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("ties", [False, True])
def test_pooling_and_its_gradient_are_pytorchs(run, window, stride, side, ties):
    torch = pytest.importorskip("torch")
    x = normal(2, side, side + 1, 3)
    x = np.maximum(np.round(x), 0) if ties else x  # as after a ReLU
    theirs_in = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    theirs = torch.nn.functional.max_pool2d(theirs_in, window, stride)
    pull = normal(*theirs.shape)
    theirs.backward(torch.tensor(pull))

    ours, vjp = jax.vjp(run(lambda x: ops.max_pool(x, window, stride)), x)
    np.testing.assert_array_equal(ours, theirs.detach().permute(0, 2, 3, 1))
    (gradient,) = vjp(jnp.asarray(pull.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(gradient, theirs_in.grad.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


SIZES = [(1, 2), (3, 7), (8, 10), (24, 9)]
EDGES = [
    pytest.param(*one, marks=() if one in ((2, 3), (1, 2), (3, 2)) else pytest.mark.slow)
    for one in itertools.product((1, 2, 3, 4), (1, 2, 3, 5))
]


@pytest.mark.parametrize("platform", ["cpu", "gpu", pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("window", "stride"), EDGES)
def test_windows_over_the_edges_are_those_of_pytorchs_ceil_mode(
    window, stride, platform, monkeypatch
):
    """Also where a window is smaller than its stride: none lies wholly outside of the image."""
    functional = pytest.importorskip("torch").nn.functional
    monkeypatch.setattr(pooling, "platform", lambda: platform)
    sizes = [one for one in SIZES if min(one) + stride > window]  # others have no window there
    images = [jnp.asarray(normal(1, *size, 2)) for size in sizes]

    def sums(images, pulls, pool):
        pooled = [pool(x, window, stride) for x in images]
        return sum(jnp.vdot(p, y) for p, y in zip(pulls, pooled, strict=True)), pooled

    average = partial(functional.avg_pool2d, count_include_pad=False)
    for ours, theirs in (
        (ops.max_pool_over_edges, functional.max_pool2d),
        (ops.average_pool_over_edges, average),
    ):
        inputs = [torch_of(x).requires_grad_() for x in images]
        expected = [theirs(x, window, stride, ceil_mode=True) for x in inputs]
        pulls = [normal(*y.shape) for y in expected]
        for y, pull in zip(expected, pulls, strict=True):
            y.backward(y.new_tensor(pull))
        differentiate = jax.jit(jax.grad(partial(sums, pool=ours), has_aux=True))
        gradients, pooled = differentiate(
            images, [jnp.asarray(pull.transpose(0, 2, 3, 1)) for pull in pulls]
        )
        for found, wanted in (
            *zip(pooled, expected, strict=True),
            *zip(gradients, [x.grad for x in inputs], strict=True),
        ):
            np.testing.assert_allclose(torch_of(found), wanted.detach(), **NEAR)
        for size, y in zip(sizes, pooled, strict=True):
            hang = (ops.hang_over(side, window, stride) for side in size)
            sides = [(n + over - window) // stride + 1 for n, over in zip(size, hang, strict=True)]
            assert list(y.shape[1:3]) == sides


def torch_of(x: jax.Array):
    """[b, h, w, maps] as PyTorch has it: [b, maps, h, w]."""
    return pytest.importorskip("torch").tensor(np.asarray(x).transpose(0, 3, 1, 2))


# --- dropout ----------------------------------------------------------------------------------


def key(step: int = 0, rows: int = 64) -> ops.DropoutKey:
    return ops.DropoutKey(jax.random.fold_in(jax.random.key(0), step), jnp.arange(rows))


ONES = jnp.ones((64, 256))


def test_dropout_zeroes_in_training_and_scales_in_testing():
    dropped = np.asarray(ops.dropout(ONES, 0.5, key(), 6, 0))
    assert set(np.unique(dropped)) == {0.0, 1.0}  # kept values are not scaled
    assert abs(dropped.mean() - 0.5) < 4 * 0.5 / np.sqrt(dropped.size)
    np.testing.assert_array_equal(ops.dropout(ONES, 0.5, None, 6, 0), 0.5 * np.asarray(ONES))
    np.testing.assert_array_equal(ops.dropout(ONES, 0.0, key(), 6, 0), ONES)


def test_masks_differ_between_steps_layers_rows_and_towers():
    first = np.asarray(ops.dropout(ONES, 0.5, key(), 6, 0))
    others = [
        ops.dropout(ONES, 0.5, key(step=1), 6, 0),
        ops.dropout(ONES, 0.5, key(), 7, 0),
        ops.dropout(ONES, 0.5, key(), 6, 1),
        np.roll(first, 1, axis=0),
    ]
    for other in others:
        assert abs(np.mean(first == np.asarray(other)) - 0.5) < 0.03


def test_a_mask_belongs_to_the_row_in_the_global_batch():
    whole = ops.dropout(ONES, 0.5, key(), 6, 0)
    later = ops.DropoutKey(key().key, jnp.arange(32, 64))
    np.testing.assert_array_equal(whole[32:], ops.dropout(ONES[32:], 0.5, later, 6, 0))
