"""The network's input, against the same in numpy, one image at a time."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.config import Lighting
from alexnet_jax.data import augment
from alexnet_jax.data.layout import Statistics
from alexnet_jax.data.pipeline import train_batches

SIZE, CROP = 24, 16


@pytest.fixture
def statistics() -> Statistics:
    rng = np.random.default_rng(0)
    mean = rng.uniform(90, 150, (SIZE, SIZE, 3)).astype(np.float32)
    vectors, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return Statistics(mean, np.array([5000.0, 400.0, 90.0]), vectors)


@pytest.fixture
def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "image": rng.integers(0, 256, (10, CROP, CROP, 3), np.uint8),
        "corner": rng.integers(0, SIZE - CROP + 1, (10, 2), np.int32),
        "mirror": np.arange(10) % 2 == 0,
        "light": rng.normal(size=(10, 3)).astype(np.float32),
        "label": np.zeros(10, np.int32),
    }


def seen_in_training(batch, statistics, data, lit) -> jax.Array:
    """What `train_input` gives."""
    components = augment.lighting_components(statistics, data.lighting)
    # Compiled as a whole, which takes less time than to compile its operations one by one.
    seen = jax.jit(lambda *arrays: augment.train_input(*arrays[:3], data, arrays[3]))
    return seen(batch, statistics.mean, components, lit)


def by_hand(batch, mean, components, data, lit) -> np.ndarray:
    out = []
    for crop, (y, x), mirror, light in zip(
        *(batch[key] for key in ("image", "corner", "mirror", "light")), strict=True
    ):
        image = crop.astype(np.float64)
        if data.mean == "crop":
            image = image - mean[y : y + CROP, x : x + CROP]
        if mirror:
            image = image[:, ::-1]
        if data.mean == "centre":
            image = image - mean[4:20, 4:20]
        if lit:
            image = image + components.astype(np.float64) @ light
            if data.lighting.shrink:
                image = image / 1.1
        out.append(image)
    return np.stack(out)


@pytest.mark.parametrize(
    ("mean", "shrink", "lit"), itertools.product(["crop", "centre"], [True, False], [True, False])
)
def test_training_input(request, mean, shrink, lit, batch):
    statistics, make_data = map(request.getfixturevalue, ("statistics", "make_data"))
    data = make_data(mean=mean, lighting={"shrink": shrink})
    ours = seen_in_training(batch, statistics, data, lit)
    assert ours.dtype == jnp.float32
    components = augment.lighting_components(statistics, data.lighting)
    expected = by_hand(batch, statistics.mean, components, data, lit)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_lighting_is_switched_without_compiling(batch, statistics, make_data):
    seen = jax.jit(lambda lit: seen_in_training(batch, statistics, make_data(), lit))
    assert float(jnp.abs(seen(jnp.float32(1)) - seen(jnp.float32(0))).max()) > 1
    assert seen._cache_size() == 1


def test_an_example_does_not_depend_on_its_batch(batch, statistics, make_data):
    part = {key: value[3:5] for key, value in batch.items()}
    ours, whole = (seen_in_training(b, statistics, make_data(), True) for b in (part, batch))
    np.testing.assert_array_equal(ours, whole[3:5])


def test_mean_of_identical_images_leaves_nothing(raw_records, make_data):
    """End to end: crops of the mean itself, at their own corners, come out as zero."""
    data = make_data()
    read = train_batches(raw_records.split("train"), data, batch=32, seed=0, rows=[(0, 32)])
    batch = next(read)
    read.close()
    mean = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    batch["image"] = np.stack([mean[y : y + CROP, x : x + CROP] for y, x in batch["corner"]])
    statistics = replace(raw_records.statistics, mean=mean.astype(np.float32))
    assert not np.asarray(seen_in_training(batch, statistics, data, False)).any()


@pytest.mark.parametrize("mean", ["crop", "centre"])
def test_ten_views(mean, statistics, make_data):
    data = make_data(mean=mean)
    images = np.random.default_rng(2).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    arrays = jnp.array(images), jnp.array(statistics.mean)
    one = jax.jit(lambda number: augment.view(*arrays, data, number))
    ours = [np.asarray(one(number)) for number in augment.VIEWS[10]]
    m = statistics.mean
    places = [
        (slice(0, 16), slice(0, 16)),
        (slice(0, 16), slice(8, 24)),
        (slice(8, 24), slice(0, 16)),
        (slice(8, 24), slice(8, 24)),
        (slice(4, 20), slice(4, 20)),
    ]
    for number, (rows, columns) in enumerate(places):
        crops = images[:, rows, columns].astype(np.float32)
        if mean == "crop":
            plain, mirrored = crops - m[rows, columns], (crops - m[rows, columns])[:, :, ::-1]
        else:
            plain, mirrored = crops - m[4:20, 4:20], crops[:, :, ::-1] - m[4:20, 4:20]
        np.testing.assert_array_equal(ours[number], plain)
        np.testing.assert_array_equal(ours[number + 5], mirrored)


def test_nine_views_are_three_rows_of_three_crops_that_are_not_mirrored(statistics, make_data):
    """As the authors' data provider for CIFAR-10 cuts them, with the centre of the mean."""
    data, mean = make_data(mean="centre"), statistics.mean[4:20, 4:20]
    images = np.random.default_rng(2).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    arrays = jnp.array(images), jnp.array(statistics.mean)
    one = jax.jit(lambda number: augment.view(*arrays, data, number))
    ours = [np.asarray(one(number)) for number in augment.VIEWS[9]]
    places = itertools.product((0, 4, 8), repeat=2)
    for seen, (top, left) in zip(ours, places, strict=True):
        crops = images[:, top : top + 16, left : left + 16].astype(np.float32)
        np.testing.assert_array_equal(seen, crops - mean)


def test_odd_margin(statistics, make_data):
    """Where the margin cannot be halved, training's and testing's centre are the same."""
    data = make_data(crop=17)
    images = np.random.default_rng(2).integers(0, 256, (1, SIZE, SIZE, 3), np.uint8)
    seen = jax.jit(lambda *arrays: augment.view(*arrays, data, augment.CENTRE))(
        images, np.zeros((SIZE, SIZE, 3), np.float32)
    )
    np.testing.assert_array_equal(seen[0], images[0, 3:20, 3:20])


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        # sigma sqrt(l); and sigma 255 (sqrt(l) / 255)^2, by hand
        ("deviation", [12.178, 3.709, 1.972]),
        ("eigenvalue", [5.816, 0.5395, 0.1525]),
    ],
)
def test_spread_of_published_lighting(scale, expected, statistics, make_data):
    """In grey levels along each component; both far from the 1,483 of eigenvalues on 0..255."""
    lighting = Lighting(sigma=0.1, scale=scale, source="published", shrink=False)
    components = augment.lighting_components(statistics, lighting)
    np.testing.assert_allclose(np.linalg.norm(components, axis=0), expected, rtol=1e-3)
    # The published directions are orthogonal to three digits, and the first is grey.
    cosines = components.T @ components / np.outer(expected, expected)
    np.testing.assert_allclose(cosines, np.eye(3), atol=2e-3)
    assert np.ptp(components[:, 0]) < 0.03 * abs(components[:, 0].mean())


@pytest.mark.parametrize(
    ("scale", "expected"),
    [("deviation", [7.0711, 2.0, 0.94868]), ("eigenvalue", [1.9608, 0.15686, 0.03529])],
)
def test_spread_of_our_own_lighting(scale, expected, statistics):
    lighting = Lighting(sigma=0.1, scale=scale, source="training", shrink=False)
    components = augment.lighting_components(statistics, lighting)
    np.testing.assert_allclose(np.linalg.norm(components, axis=0), expected, rtol=1e-3)
    np.testing.assert_allclose(components / expected, statistics.eigenvectors, rtol=1e-3, atol=1e-6)


def test_measured_spread_of_drawn_batches(raw_records, make_data):
    """The shift is one colour for a whole image, with the covariance M M^T over images."""
    data = make_data(lighting={"source": "published", "scale": "deviation"})
    shifts = []
    read = train_batches(raw_records.split("train"), data, batch=500, seed=0, rows=[(0, 500)])
    seen = jax.jit(lambda batch, lit: seen_in_training(batch, raw_records.statistics, data, lit))
    for _ in range(8):
        batch = next(read)
        shift = np.asarray(seen(batch, True) - seen(batch, False))
        assert np.ptp(shift, axis=(1, 2)).max() < 1e-3
        shifts.append(shift[:, 0, 0])
    read.close()
    along = np.concatenate(shifts) @ augment.PUBLISHED_VECTORS
    np.testing.assert_allclose(along.std(0), [12.178, 3.709, 1.972], rtol=4 / np.sqrt(2 * 4000))
    np.testing.assert_allclose(along.mean(0) / along.std(0), 0, atol=4 / np.sqrt(4000))


def test_sigma_zero_changes_nothing(batch, statistics, make_data):
    data = make_data(lighting={"sigma": 0.0, "shrink": True})
    on, off = (seen_in_training(batch, statistics, data, lit) for lit in (True, False))
    np.testing.assert_array_equal(on, off)
