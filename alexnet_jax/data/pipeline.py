"""Batches of uint8 images, drawn and read on the host by Grain.

A batch depends on (seed, step) alone: all random numbers are drawn for the global batch, then each
process reads its own rows. So the number of processes, threads and restarts changes nothing.
Float arithmetic (mean, mirroring, lighting) is left to `augment`, on the device: a uint8 crop has a
quarter of the bytes, and on the host mirroring takes longer than cutting.
"""

import functools
import sys
from collections.abc import Sequence

import grain
import jax
import numpy as np
from jaxtyping import Bool, Int32, UInt8

from alexnet_jax.config import Data
from alexnet_jax.data import cores
from alexnet_jax.data.epochs import Epochs, Stretch
from alexnet_jax.data.records import Split

Batch = dict[str, np.ndarray]
Rows = Sequence[tuple[int, int]]  # (start, stop) ranges of the global batch


def train_batches(
    split: Split,
    data: Data,
    *,
    batch: int,
    seed: int,
    rows: Rows,
    first_step: int = 0,
    order: Epochs | None = None,
) -> grain.DatasetIterator[Batch]:
    """Endless training batches (§4.1), every image once in each epoch.

    The order is new for each epoch; or always that of the first, if ``data.order`` is 'fixed'.
    Each image has a crop and a mirror of its own, or shares them with the other images of its
    chunk: in an epoch the first ``data.chunk`` images are one, the next are another.

    Reading ahead begins when the first batch is asked for. Close the iterator after use.

    Args:
      split: the training images. A batch may reach into the next epoch, or be larger than `split`.
      data: its crop, random_crop, mirror, order, chunk and threads (0: one for each core) are used.
      batch: images in a global batch.
      seed: of the order and of all that is drawn; 0 to 2^32 - 1.
      rows: the (start, stop) ranges of the global batch to read here, concatenated to b rows.
      first_step: the number of the first batch.
      order: the epochs; None: all have all images of `split`.

    Yields:
      image: uint8 [b, crop, crop, 3], not mirrored.
      corner: int32 [b, 2], row and column of the crop's first pixel in the image.
      mirror: bool [b], whether to use the mirror image.
      light: float32 [b, 3], drawn from N(0, 1) for the three components of the lighting.
      label: int32 [b].
      row: int32 [b], the place in the global batch.

    Raises:
      UserError: while iterating, at a damaged record.
    """
    row, free = _row_numbers(rows), split.size - data.crop
    order = order or Epochs(len(split))

    def read(step: int, rng: np.random.Generator) -> Batch:
        stretches = list(order.stretches(step * batch, batch))
        indices = _in_order(stretches, seed, fixed=data.order == "fixed")[row]
        # Everything is always drawn, so switching off one option does not change the other draws.
        corner = rng.integers(0, free + 1, (batch, 2), np.int32)[row]
        mirror = rng.random(batch)[row] < 0.5
        light = rng.standard_normal((batch, 3), np.float32)[row]
        if data.chunk > 1:
            shared = _drawn_for_chunks(stretches, seed, data.chunk, free)
            corner, mirror = (drawn[row] for drawn in shared)
        if not data.random_crop:
            corner[:] = free // 2
        if not data.mirror:
            mirror[:] = False
        image = _aligned(len(row), data.crop)
        for out, index, place in zip(image, indices.tolist(), corner.tolist(), strict=True):
            split.read(index, out, *place)
        drawn = {"corner": corner, "mirror": mirror, "light": light}
        return {"image": image, **drawn, "label": split.labels[indices], "row": row}

    steps = grain.MapDataset.range(sys.maxsize).seed(seed)
    return _read_ahead(steps.random_map(read)[first_step:], data.threads)


def train_batch_shapes(data: Data, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the whole batches of `train_batches`; nothing is read."""
    image = jax.ShapeDtypeStruct((batch, data.crop, data.crop, 3), np.uint8)
    corner = jax.ShapeDtypeStruct((batch, 2), np.int32)
    mirror = jax.ShapeDtypeStruct((batch,), np.bool_)
    light = jax.ShapeDtypeStruct((batch, 3), np.float32)
    number = jax.ShapeDtypeStruct((batch,), np.int32)
    drawn = {"corner": corner, "mirror": mirror, "light": light}
    return {"image": image, **drawn, "label": number, "row": number}


def eval_batches(
    split: Split, *, batch: int, rows: Rows, threads: int
) -> grain.DatasetIterator[Batch]:
    """Every image once and in order, in `eval_steps` batches. Read it to its end, or close it.

    Args:
      split: the images.
      batch: images in a global batch. The last one is filled up with black images.
      rows: the (start, stop) ranges of the global batch to read here, concatenated to b rows.
      threads: that read; 0: one for each core.

    Yields:
      image: uint8 [b, size, size, 3].
      label: int32 [b]; 0 for the black images.

    Raises:
      UserError: while iterating, at a damaged record.
    """
    row = _row_numbers(rows)

    def read(step: int) -> Batch:
        indices = step * batch + row
        valid = indices < len(split)
        image, label = _aligned(len(row), split.size), np.zeros(len(row), np.int32)
        image[~valid] = 0
        label[valid] = split.labels[indices[valid]]
        for place in np.flatnonzero(valid):
            split.read(int(indices[place]), image[place])
        return {"image": image, "label": label}

    steps = grain.MapDataset.range(eval_steps(len(split), batch))
    return _read_ahead(steps.map(read), threads)


def eval_steps(images: int, batch: int) -> int:
    """The number of batches of `eval_batches`."""
    return -(-images // batch)


def _read_ahead(batches: grain.MapDataset, threads: int) -> grain.DatasetIterator[Batch]:
    threads = threads or cores()  # one thread reads a batch
    # By default Grain would read 500 batches ahead.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(batches.to_iter_dataset(options))


def _in_order(
    stretches: Sequence[Stretch], seed: int, *, fixed: bool
) -> Int32[np.ndarray, " images"]:
    """The images of some stretches of the training.

    Grain's `shuffle` computes one index at a time, in 11 microseconds for ImageNet and in 70 for a
    set of 500 images: up to half of the time that it takes to read a raw image.
    """
    drawn = [
        _permutation(one.images, seed, 0 if fixed else one.epoch)[
            one.places.start : one.places.stop
        ]
        for one in stretches
    ]
    return np.concatenate(drawn)


def _drawn_for_chunks(
    stretches: Sequence[Stretch], seed: int, chunk: int, free: int
) -> tuple[Int32[np.ndarray, "images 2"], Bool[np.ndarray, " images"]]:
    """Corners and mirrors that depend on the epoch and on the chunk in it alone.

    So they are the same for all images of a chunk, also of one that lies in two batches.
    """
    corners, mirrors = [], []
    for one in stretches:
        chunks, counts = np.unique(np.asarray(one.places) // chunk, return_counts=True)
        for number, count in zip(chunks.tolist(), counts.tolist(), strict=True):
            # Numbers from 1: numpy's generator takes (seed, epoch, 0) for (seed, epoch).
            rng = np.random.default_rng((seed, one.epoch, number + 1))
            corners.append(np.tile(rng.integers(0, free + 1, 2, np.int32), (count, 1)))
            mirrors.append(np.full(count, rng.random() < 0.5))
    return np.concatenate(corners), np.concatenate(mirrors)


@functools.lru_cache(maxsize=2)  # a batch may reach into the next epoch
def _permutation(images: int, seed: int, epoch: int) -> Int32[np.ndarray, " images"]:
    return np.random.default_rng((seed, epoch)).permutation(np.arange(images, dtype=np.int32))


def _aligned(images: int, side: int) -> UInt8[np.ndarray, "{images} {side} {side} 3"]:
    """Uninitialized images, aligned so that CPU devices use their memory without a copy.

    XLA needs an address that is a multiple of 64 bytes; numpy's are multiples of 16.
    """
    size = images * side * side * 3
    memory = np.empty(size + 63, np.uint8)
    return memory[-memory.ctypes.data % 64 :][:size].reshape(images, side, side, 3)


def _row_numbers(ranges: Rows) -> Int32[np.ndarray, " b"]:
    return np.concatenate([np.arange(*one, dtype=np.int32) for one in ranges])
