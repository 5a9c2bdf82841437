"""Batches of uint8 images, drawn and read on the host by Grain.

A batch depends on (seed, step) alone: all random numbers are drawn for the global batch, then each
process reads its own rows. So the number of processes, threads and restarts changes nothing.
Float arithmetic (mean, mirroring, lighting) is left to `augment`, on the device: a uint8 crop has a
quarter of the bytes, and on the host mirroring takes longer than cutting.
"""

import functools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import grain
import numpy as np
from jaxtyping import Int32, UInt8

from alexnet_jax.config import Data
from alexnet_jax.data import cores
from alexnet_jax.data.records import Split

Batch = dict[str, np.ndarray]
Rows = Sequence[tuple[int, int]]  # (start, stop) ranges of the global batch


class StepIterator(grain.DatasetIterator):
    """Batches from step `first_step` on. Its whole state is the number of the next step.

    Grain's own states fit only the same number of workers and processes. This one fits any number,
    and works with ``grain.checkpoint.CheckpointSave`` and ``CheckpointRestore``. Reading ahead
    begins when the first batch is asked for.
    """

    def __init__(self, batches: grain.MapDataset, threads: int, first_step: int = 0):
        super().__init__()
        threads = threads or cores()  # one thread reads a batch
        self._batches = batches
        # Grain's default would read 500 batches ahead.
        self._options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        self._next_step = first_step
        self._running: grain.DatasetIterator | None = None

    def __next__(self) -> Batch:
        if self._closed:
            raise ValueError("this iterator is closed")
        if self._running is None:
            ahead = self._batches[self._next_step :].to_iter_dataset(self._options)
            self._running = iter(ahead)
        try:
            batch = next(self._running)
        except Exception:
            self._stop()  # asked again, it reads the same batch; Grain would go to the next one
            raise
        self._next_step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """{'next_step': the step whose batch comes next}."""
        return {"next_step": self._next_step}

    def set_state(self, state: dict[str, int]) -> None:
        """Resumes at ``state['next_step']``."""
        self._stop()
        self._next_step = int(state["next_step"])

    def close(self) -> None:
        """Ends the threads."""
        self._stop()
        super().close()

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None


def train_batches(
    split: Split, data: Data, *, batch: int, seed: int, rows: Rows, first_step: int = 0
) -> StepIterator:
    """Endless training batches (§4.1), in a new order for each epoch, every image once in each.

    Args:
      split: the training images. A batch may reach into the next epoch, or be larger than `split`.
      data: its crop, random_crop, mirror and threads (0: one for each core) are used.
      batch: images in a global batch.
      seed: of the order and of all that is drawn; 0 to 2^32 - 1.
      rows: the (start, stop) ranges of the global batch to read here, concatenated to b rows.
      first_step: the number of the first batch.

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
    steps = grain.MapDataset.range(sys.maxsize).seed(seed)
    read = _TrainRead(split, data, _Order(len(split), seed), batch, _row_numbers(rows))
    return StepIterator(steps.random_map(read), data.threads, first_step)


def eval_batches(split: Split, *, batch: int, rows: Rows, threads: int) -> StepIterator:
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
    steps = grain.MapDataset.range(eval_steps(len(split), batch))
    return StepIterator(steps.map(_EvalRead(split, batch, _row_numbers(rows))), threads)


def eval_steps(images: int, batch: int) -> int:
    """The number of batches of `eval_batches`."""
    return -(-images // batch)


class _Order:
    """The order in which images are drawn: a new permutation for each epoch.

    Grain's `shuffle` computes one index at a time, in 11 microseconds for ImageNet and in 70 for a
    set of 500 images: up to half of the time that it takes to read a raw image.
    """

    def __init__(self, images: int, seed: int) -> None:
        self._images = images

        @functools.lru_cache(maxsize=2)  # a batch may reach into the next epoch
        def permutation(epoch: int) -> np.ndarray:
            return np.random.default_rng((seed, epoch)).permutation(np.arange(images, dtype="i4"))

        self._permutation = permutation

    def indices(self, start: int, count: int) -> Int32[np.ndarray, " count"]:
        """The images at the places `start` to `start + count` of the endless order."""
        epochs, places = np.divmod(np.arange(start, start + count), self._images)
        drawn = [self._permutation(e)[places[epochs == e]] for e in np.unique(epochs).tolist()]
        return np.concatenate(drawn)


@dataclass(frozen=True)
class _TrainRead(grain.transforms.RandomMap):
    """From a step and its random generator to this process' rows of the batch."""

    split: Split
    data: Data
    order: _Order
    batch: int
    rows: Int32[np.ndarray, " b"]

    def random_map(self, step: int, rng: np.random.Generator) -> Batch:
        batch, crop, free = self.batch, self.data.crop, self.split.size - self.data.crop
        indices = self.order.indices(step * batch, batch)
        # Everything is always drawn, so switching off one option does not change the other draws.
        corner = rng.integers(0, free + 1, (batch, 2), np.int32)
        mirror = rng.random(batch) < 0.5
        light = rng.standard_normal((batch, 3), np.float32)
        if not self.data.random_crop:
            corner[:] = free // 2
        if not self.data.mirror:
            mirror[:] = False

        rows = self.rows
        image = _aligned(len(rows), crop, crop, 3)
        places = corner[rows].tolist()
        for out, index, (top, left) in zip(image, indices[rows].tolist(), places, strict=True):
            self.split.read(index, out, top, left)
        return {
            "image": image,
            "corner": corner[rows],
            "mirror": mirror[rows],
            "light": light[rows],
            "label": self.split.labels[indices[rows]],
            "row": rows,
        }


@dataclass(frozen=True)
class _EvalRead(grain.transforms.Map):
    """From a step to this process' rows of the batch."""

    split: Split
    batch: int
    rows: Int32[np.ndarray, " b"]

    def map(self, step: int) -> Batch:
        indices = step * self.batch + self.rows
        valid = indices < len(self.split)
        image = _aligned(len(indices), self.split.size, self.split.size, 3)
        image[~valid] = 0
        label = np.zeros(len(indices), np.int32)
        label[valid] = self.split.labels[indices[valid]]
        for row in np.flatnonzero(valid):
            self.split.read(int(indices[row]), image[row])
        return {"image": image, "label": label}


def _aligned(*shape: int) -> UInt8[np.ndarray, "..."]:
    """An uninitialized uint8 array, aligned so that CPU devices use its memory without a copy.

    XLA needs an address that is a multiple of 64 bytes; numpy's are multiples of 16.
    """
    memory = np.empty(math.prod(shape) + 63, np.uint8)
    return memory[-memory.ctypes.data % 64 :][: math.prod(shape)].reshape(shape)


def _row_numbers(ranges: Rows) -> Int32[np.ndarray, " b"]:
    return np.concatenate([np.arange(*one, dtype=np.int32) for one in ranges])
