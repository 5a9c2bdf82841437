"""Epochs, of all images or of a part, against a list of all images that is written out."""

import itertools

import numpy as np
import pytest

from alexnet_jax import config
from alexnet_jax.configs import alexnet_2012, cifar10, tiny
from alexnet_jax.configs.alexnet_2012 import as_noted
from alexnet_jax.data.epochs import Epochs
from alexnet_jax.data.pipeline import train_batches
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.plan import Plan
from tests.data.test_pipeline import take


def schedule(*notes) -> config.Schedule:
    values = tiny.get_config()
    values.policy = as_noted(*({"rate": 0.0} | note for note in notes))
    return config.parse(values).policy


PARTS = {
    "all": ({},),
    "a part, then all": ({"images": 7}, {"epoch": 2, "images": 0}),
    "all, a part, another": ({}, {"epoch": 1, "images": 5}, {"epoch": 4, "images": 8}),
    "other phases between": ({"images": 7}, {"epoch": 0.5}, {"epoch": 3, "images": 0}),
}


def written_out(policy, epochs: int) -> list[tuple[int, int]]:
    """(epoch, images in it) of every image of so many epochs of ten images."""
    sizes = []
    for epoch in range(epochs):
        phase = [phase for phase in policy.phases if phase.epoch <= epoch][-1]
        sizes.append(phase.images or 10)
    return [(epoch, size) for epoch, size in enumerate(sizes) for _ in range(size)]


@pytest.mark.parametrize("notes", PARTS.values(), ids=PARTS)
def test_every_place_is_in_its_epoch(notes):
    policy = schedule(*notes)
    order, places = Epochs(10, policy), written_out(policy, 6)
    starts = {epoch: places.index((epoch, size)) for epoch, size in places}
    for place, (epoch, size) in enumerate(places):
        assert order.whole(place) == epoch
        assert order.done(place) == pytest.approx(epoch + (place - starts[epoch]) / size)
    for epoch, start in starts.items():
        assert order.place(epoch) == start
    for start, count in itertools.product(range(0, 40, 3), (1, 4, 23)):
        listed = [
            (one.epoch, one.images, place)
            for one in order.stretches(start, count)
            for place in one.places
        ]
        expected = [
            (e, n, start + i - starts[e]) for i, (e, n) in enumerate(places[start:][:count])
        ]
        assert listed[: len(expected)] == expected
        assert len(listed) == count


def test_the_first_images_only_and_then_all_each_once_an_epoch(raw_records, make_data):
    """Batches of 64 also lie in two epochs, and in two parts."""
    policy = schedule({"images": 100}, {"epoch": 3, "images": 0})
    split = raw_records.split("train")
    order = Epochs(len(split), policy)
    numbers = {image_bytes(split, i): i for i in range(len(split))}
    assert len(numbers) == 300
    data = make_data(crop=24)
    read = take(
        train_batches(split, data, batch=64, seed=0, rows=[(0, 64)], order=order), 1 + 900 // 64
    )
    seen = [numbers[image.tobytes()] for batch in read for image in batch["image"]]
    for epoch in (seen[:100], seen[100:200], seen[200:300]):
        assert sorted(epoch) == list(range(100))
    assert sorted(seen[300:600]) == list(range(300))
    later = train_batches(split, data, batch=64, seed=0, rows=[(0, 64)], order=order, first_step=3)
    (fourth,) = take(later, 1)
    np.testing.assert_array_equal(fourth["image"], read[3]["image"])


def image_bytes(split, index) -> bytes:
    out = np.zeros((split.size, split.size, 3), np.uint8)
    split.read(index, out)
    return out.tobytes()


def test_a_fixed_order_is_the_same_in_all_epochs(raw_records, make_data):
    split = raw_records.split("train")
    for fixed, data in ((True, make_data(order="fixed")), (False, make_data())):
        read = take(train_batches(split, data, batch=30, seed=0, rows=[(0, 30)]), 30)
        first, second, third = (
            np.concatenate([b["label"] for b in read[i : i + 10]]) for i in (0, 10, 20)
        )
        assert (first == second).all() == (first == third).all() == fixed
        assert (np.diff(first) != 0).any()  # not sorted by class


def test_the_images_of_a_chunk_share_crop_and_mirror(raw_records, make_data):
    """Chunks of 32 of each epoch of 300 images; batches of 48 cut chunks in two."""
    split, data = raw_records.split("train"), make_data(chunk=32)
    read = take(train_batches(split, data, batch=48, seed=0, rows=[(0, 48)]), 26)
    drawn = np.concatenate(
        [np.column_stack([b["corner"], b["mirror"]]) for b in read]  # row, column, mirrored
    )[:1200]
    chunks = [e[i : i + 32] for e in drawn.reshape(4, 300, 3) for i in range(0, 300, 32)]
    assert len(chunks) == 40
    assert all((chunk == chunk[0]).all() for chunk in chunks)
    assert len({tuple(chunk[0]) for chunk in chunks}) > 25  # of 9 * 9 * 2
    assert {bool(chunk[0, 2]) for chunk in chunks} == {True, False}
    rows = [(20, 29)]  # another process reads the same
    (part,) = take(train_batches(split, data, batch=48, seed=0, rows=rows, first_step=7), 1)
    np.testing.assert_array_equal(part["corner"], read[7]["corner"][20:29])
    np.testing.assert_array_equal(part["image"], read[7]["image"][20:29])
    light = np.concatenate([b["light"] for b in read])
    assert len(np.unique(light, axis=0)) == len(light)  # colour noise is for each image


def test_a_part_must_not_be_larger_than_the_split():
    with pytest.raises(UserError, match=r"phases\[0\]\.images=11: the training split has 10 im"):
        Epochs(10, schedule({"images": 11}))


def test_a_part_begins_at_a_whole_epoch():
    with pytest.raises(UserError, match=r"whole epoch where images changes, not at 1\.5"):
        schedule({"images": 5}, {"epoch": 1.5, "images": 0})


@pytest.mark.parametrize(
    ("name", "epochs", "images"),
    [("13", 160, 100 * 40_000 + 60 * 50_000), ("11", 520, 350 * 40_000 + 170 * 50_000)],
)
def test_13_and_11_train_on_four_batches_first(name, epochs, images):
    c = config.parse(cifar10.get_config(name))
    plan = Plan(c, Epochs(50_000, c.policy))
    assert c.epochs == epochs
    assert plan.last == -(-images // 128)
    assert plan.epochs(plan.last) == pytest.approx(epochs, abs=0.003)
    ends = [step for step in range(1, plan.last + 1) if plan.ends_epoch(step)]
    assert len(ends) == epochs


def test_only_the_weights_rates_fall_in_13_and_11():
    for name, lower in (("13", 140), ("11", 500)):
        phases = config.parse(cifar10.get_config(name)).policy.phases
        at = {phase.epoch: (phase.rate, phase.biases) for phase in phases}
        biases = {"all": 0.002}
        assert at[0] == (1e-3, biases)
        assert at[lower] == (1e-4, biases)
        assert at[lower + 10] == (1e-5, biases)


def test_the_2012_recipe_trains_on_all_images():
    c = config.parse(alexnet_2012.get_config())
    assert Plan(c, Epochs(1_281_167, c.policy)).last == -(-91 * 1_281_167 // 128)


def test_13_and_11_subtract_the_centre_of_the_mean():
    for name in ("13", "11", "13_lrn", "13_wide", "13_lrn_wide"):
        c = config.parse(cifar10.get_config(name))
        assert (c.data.mean, c.data.crop) == ("centre", 24)
        assert (c.evaluate.nine_views_at_end, c.evaluate.ten_views_at_end) == (True, True)
