"""Batches: every image once an epoch, and the same for any number of threads and processes."""

import itertools
import shutil

import grain
import numpy as np
import pytest

from alexnet_jax.data import layout, records, shards
from alexnet_jax.data.pipeline import eval_batches, eval_steps, train_batches
from alexnet_jax.runtime.errors import UserError


def take(batches: grain.DatasetIterator, count: int) -> list[dict[str, np.ndarray]]:
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_shapes_and_types(raw_records, make_data):
    (batch,) = take(
        train_batches(raw_records.split("train"), make_data(), batch=8, seed=0, rows=[(0, 8)]), 1
    )
    assert {key: (str(value.dtype), value.shape) for key, value in batch.items()} == {
        "image": ("uint8", (8, 16, 16, 3)),
        "corner": ("int32", (8, 2)),
        "mirror": ("bool", (8,)),
        "light": ("float32", (8, 3)),
        "label": ("int32", (8,)),
        "row": ("int32", (8,)),
    }


def tagged(tmp_path, count: int) -> records.Split:
    """Images whose every pixel is the image's own number (below 65,536)."""
    options = layout.PrepareOptions("tags", 4, "raw")
    images = (
        (np.full((4, 4, 3), (number // 256, number % 256, 0), np.uint8), number % 2)
        for number in range(count)
    )
    path = layout.shard_path(tmp_path, "raw", "train", 0)
    made = {"train": [shards.write_shard(path, options, images)]}
    shards.finish(tmp_path, options, ("a", "b"), made)
    return records.open_records(tmp_path).split("train")


def test_every_image_once_an_epoch_in_a_new_order(tmp_path, make_data):
    split = tagged(tmp_path, 310)
    data = make_data(size=4, crop=3)
    for batch in (31, 64, 500):  # divides an epoch; straddles two; is more than one
        read = take(train_batches(split, data, batch=batch, seed=3, rows=[(0, batch)]), 40)
        colours = np.concatenate([b["image"][:, 0, 0].astype(int) for b in read])
        numbers = colours[:, 0] * 256 + colours[:, 1]
        labels = np.concatenate([b["label"] for b in read])
        np.testing.assert_array_equal(labels, numbers % 2)
        epochs = [numbers[i : i + 310] for i in range(0, len(numbers) - 309, 310)]
        assert len(epochs) >= 4
        for epoch in epochs:
            np.testing.assert_array_equal(np.sort(epoch), np.arange(310))
        assert not any((a == b).all() for a, b in itertools.combinations(epochs, 2))


def test_crops_are_cut_at_their_corner(raw_records, make_data):
    split = raw_records.split("train")
    images = {}
    for index in range(len(split)):
        out = np.zeros((24, 24, 3), np.uint8)
        split.read(index, out)
        images[out.tobytes()] = out
    data = make_data(crop=22)
    read = take(train_batches(split, data, batch=64, seed=0, rows=[(0, 64)]), 5)
    corners = np.concatenate([batch["corner"] for batch in read])
    assert {tuple(c) for c in corners.tolist()} == set(itertools.product(range(3), repeat=2))
    for batch in read:
        for image, (top, left) in zip(batch["image"], batch["corner"], strict=True):
            cuts = (p[top : top + 22, left : left + 22] for p in images.values())
            assert any((image == cut).all() for cut in cuts)


def test_draws_have_the_right_distribution(raw_records, make_data):
    data = make_data(crop=24)
    read = take(
        train_batches(raw_records.split("train"), data, batch=500, seed=1, rows=[(0, 500)]), 8
    )
    mirror = np.concatenate([b["mirror"] for b in read])
    light = np.concatenate([b["light"] for b in read])
    assert abs(mirror.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)
    assert np.abs(light.mean(0)).max() < 4 / np.sqrt(4000)
    np.testing.assert_allclose(light.std(0), 1, atol=4 / np.sqrt(8000))


def test_options_do_not_change_the_other_draws(raw_records, make_data):
    split = raw_records.split("train")
    rows = [(0, 32)]
    free = take(train_batches(split, make_data(), batch=32, seed=5, rows=rows), 2)
    fixed = make_data(random_crop=False, mirror=False)
    still = take(train_batches(split, fixed, batch=32, seed=5, rows=rows), 2)
    for one, other in zip(free, still, strict=True):
        np.testing.assert_array_equal(one["label"], other["label"])
        np.testing.assert_array_equal(one["light"], other["light"])
        np.testing.assert_array_equal(other["corner"], 4)
        assert one["mirror"].any()
        assert not other["mirror"].any()


@pytest.mark.parametrize("kind", ["raw_records", "jpeg_records"])
def test_the_number_of_threads_changes_nothing(kind, request, make_data):
    split = request.getfixturevalue(kind).split("train")
    runs = [
        take(train_batches(split, make_data(threads=n), batch=48, seed=7, rows=[(0, 48)]), 20)
        for n in (1, 2, 4)
    ]
    assert_equal(runs[0], runs[1])
    assert_equal(runs[0], runs[2])
    other = take(train_batches(split, make_data(), batch=48, seed=8, rows=[(0, 48)]), 1)
    assert (other[0]["label"] != runs[0][0]["label"]).any()


def test_processes_read_parts_of_one_batch(raw_records, make_data):
    split = raw_records.split("train")
    whole = take(train_batches(split, make_data(), batch=12, seed=7, rows=[(0, 12)]), 5)
    for rows in ([(0, 5)], [(5, 12)], [(2, 4), (8, 11)]):
        part = take(train_batches(split, make_data(), batch=12, seed=7, rows=rows), 5)
        own = np.concatenate([np.arange(*one) for one in rows])
        assert_equal(part, [{key: value[own] for key, value in b.items()} for b in whole])
        np.testing.assert_array_equal(part[0]["row"], own)


def test_begins_at_any_step(raw_records, make_data):
    """With another number of threads; the batch of step 4 reaches into the second epoch."""
    split = raw_records.split("train")

    def batches(threads: int, first_step: int = 0) -> grain.DatasetIterator:
        data = make_data(threads=threads)
        return train_batches(split, data, batch=64, seed=7, rows=[(0, 64)], first_step=first_step)

    whole = take(batches(2), 9)
    for first_step, threads in ((1, 1), (4, 2), (7, 4)):
        assert_equal(take(batches(threads, first_step), 9 - first_step), whole[first_step:])


def test_closed(raw_records, make_data):
    batches = train_batches(raw_records.split("train"), make_data(), batch=4, seed=0, rows=[(0, 4)])
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_a_damaged_record_is_named(jpeg_records, make_data, tmp_path):
    path = shutil.copytree(jpeg_records.path, tmp_path / "copy")
    shard = path / "train-00000.array_record"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    split = records.open_records(path).split("train")
    batches = train_batches(split, make_data(), batch=300, seed=0, rows=[(0, 300)])
    with pytest.raises(UserError, match=r"train-00000\.array_record: record"):
        next(batches)
    batches.close()


@pytest.mark.parametrize("batch", [1, 100, 256, 512, 700])
def test_evaluation_reads_every_image_once_in_order(raw_records, batch):
    split = raw_records.split("validation")
    read = list(eval_batches(split, batch=batch, rows=[(0, batch)], threads=2))
    assert len(read) == eval_steps(512, batch)
    assert all(len(b["image"]) == len(b["label"]) == batch for b in read)
    filled = [0] * (batch * len(read) - 512)
    np.testing.assert_array_equal(
        np.concatenate([b["label"] for b in read]), [*split.labels, *filled]
    )
    images = np.concatenate([b["image"] for b in read])
    out = np.zeros((24, 24, 3), np.uint8)
    for index in range(512):
        split.read(index, out)
        np.testing.assert_array_equal(images[index], out)
    assert not images[512:].any()


def test_processes_evaluate_parts(raw_records):
    split = raw_records.split("validation")
    whole = list(eval_batches(split, batch=100, rows=[(0, 100)], threads=1))
    part = list(eval_batches(split, batch=100, rows=[(20, 40), (60, 90)], threads=4))
    own = [*range(20, 40), *range(60, 90)]
    assert_equal(part, [{key: value[own] for key, value in b.items()} for b in whole])
