"""Every image counts once; ranks, views and averages are what they say."""

import jax
import numpy as np
import pytest

from alexnet_jax.training.scores import label_ranks, mean_scores
from alexnet_jax.training.setup import make_setup
from tests.conftest import make_config


def test_ranks_count_the_classes_before_the_right_one():
    scores = np.float32([[0.1, 0.5, 0.4], [0.1, 0.5, 0.4], [0.1, 0.5, 0.4]])
    np.testing.assert_array_equal(label_ranks(scores, np.int32([1, 2, 0])), [0, 1, 2])


def test_equal_scores_stand_in_the_order_of_their_numbers():
    scores = np.zeros((4, 4), np.float32)
    np.testing.assert_array_equal(label_ranks(scores, np.arange(4)), [0, 1, 2, 3])


def test_what_is_not_a_number_is_never_right():
    scores = np.float32([[np.nan, 0, 0], [0, np.nan, 0]])
    assert (np.asarray(label_ranks(scores, np.int32([0, 0]))) > 0).all()
    everything = np.full((1, 1000), np.nan, np.float32)
    assert label_ranks(everything, np.int32([3]))[0] == 1000


def test_ranks_agree_with_sorting():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 20)).astype(np.float32)
    labels = rng.integers(0, 20, 50)
    order = np.argsort(-scores, axis=1, kind="stable")
    expected = [list(row).index(label) for row, label in zip(order, labels, strict=True)]
    np.testing.assert_array_equal(label_ranks(scores, labels), expected)


def test_error_rates_are_shares_of_all_images():
    scored = mean_scores(np.float32([1, 2, 3, 6]), np.array([0, 1, 4, 5]))
    assert scored == (3.0, 0.75, 0.25, 4)
    assert scored.named("val") == {
        "val/loss": 3.0,
        "val/top1_error": 0.75,
        "val/top5_error": 0.25,
    }


def test_for_people_the_top5_error_is_there_only_if_it_says_something():
    scored = mean_scores(np.float32([1, 2, 3, 6]), np.array([0, 1, 4, 5]))
    assert scored.text(top5=True) == (
        "top-1 error 75.00%, top-5 error 25.00%, loss 3.0000 (4 images)"
    )
    assert scored.text(top5=False) == "top-1 error 75.00%, loss 3.0000 (4 images)"


@pytest.fixture(scope="module")
def scored(records):
    """The validation split's scores by one, nine and ten views, for several batches and grids."""

    def score(views, **values):
        setup = make_setup(make_config(records, **values))
        params = setup.network.init(0)
        found = setup.evaluator.score(params, setup.validation, views=views, what="test")
        return setup, params, found

    return score


def places(views, free):
    """Top, left and whether it is mirrored, of each of so many views."""
    half = free // 2
    if views == 1:
        return [(half, half, False)]
    if views == 9:
        return [(y, x, False) for y in (0, half, free) for x in (0, half, free)]
    five = [(0, 0), (0, free), (free, 0), (free, free), (half, half)]
    return [(y, x, mirrored) for mirrored in (False, True) for y, x in five]


def by_hand(setup, params, views):
    """Mean probabilities over so many views, cut with numpy, network run on one device."""
    c, split = setup.config, setup.validation
    images = np.zeros((len(split), split.size, split.size, 3), np.uint8)
    for i, out in enumerate(images):
        split.read(i, out)
    mean, crop, free = setup.records.statistics.mean, c.data.crop, split.size - c.data.crop
    half = free // 2
    network = jax.jit(setup.network.bind(jax.device_put(jax.device_get(params))))
    total = 0
    for y, x, mirrored in places(views, free):
        view = images[:, y : y + crop, x : x + crop].astype(np.float32)
        view = view[:, :, ::-1] if mirrored else view
        view = view - mean[half : half + crop, half : half + crop]  # the 2012 way, as in tiny
        total = total + np.asarray(jax.nn.softmax(network(view)))
    return total / views


@pytest.mark.parametrize("views", [1, 9, 10])
def test_scores_are_those_of_the_views_cut_by_hand(scored, views):
    setup, params, found = scored(views, evaluate__batch=48)  # 64 images: the last batch is partial
    probs, labels = by_hand(setup, params, views), setup.validation.labels
    own = probs[np.arange(len(labels)), labels]
    assert found.images == len(labels) == 64
    np.testing.assert_allclose(found.loss, -np.log(own).mean(), rtol=1e-4)
    ranks = (probs > own[:, None]).sum(1)
    assert abs(found.top1_error - (ranks >= 1).mean()) <= 2 / 64  # rounding may swap near ties
    assert abs(found.top5_error - (ranks >= 5).mean()) <= 2 / 64


def test_batches_and_devices_change_nothing(scored):
    _, _, ours = scored(1, evaluate__batch=48)
    for values in ({"evaluate__batch": 64}, {"evaluate__batch": 100, "devices": 4}):
        _, _, other = scored(1, **values)
        np.testing.assert_allclose(other, ours, rtol=1e-4, atol=2 / 64)
