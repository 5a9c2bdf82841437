"""Batches of uint8 images, drawn and read on the host by Grain.

A batch is a function of (seed, step) alone: everything random is drawn for the global batch, and
each process then reads the rows that are its own. So the number of processes, threads and restarts
changes nothing. What needs floats (mean, mirror image, lighting) is left to `augment`, on the
device: a uint8 crop is a quarter of the bytes, and mirroring costs the host more than cutting.
"""

import functools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import grain
import numpy as np

from alexnet_jax.config import Data
from alexnet_jax.data import cores
from alexnet_jax.data.records import Split

Batch = dict[str, np.ndarray]
Rows = Sequence[tuple[int, int]]  # (start, stop) ranges of the global batch


class StepIterator(grain.DatasetIterator):
    """Batches from step `first_step` on; its whole state is the number of the next step.

    Grain's own states only open again with the same number of workers and processes. This one fits
    any, and can be given to ``grain.checkpoint.CheckpointSave`` and ``CheckpointRestore``. Reading
    begins with the first batch asked for, or `start_prefetch`.

    After an error the iterator stays failed: it would otherwise go on with the next batch.
    """

    def __init__(self, batches: grain.MapDataset, threads: int, first_step: int = 0):
        super().__init__()
        self._batches = batches
        self._options = _read_options(threads)
        self._next_step = first_step
        self._running: grain.DatasetIterator | None = None
        self._failure: Exception | None = None

    def __next__(self) -> Batch:
        if self._failure is not None:
            raise self._failure
        self.start_prefetch()
        assert self._running is not None
        try:
            batch = next(self._running)
        except StopIteration:
            raise
        except Exception as failure:
            self._failure = failure
            raise
        self._next_step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """{'next_step': the step whose batch comes next}."""
        return {"next_step": self._next_step}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on at ``state['next_step']``."""
        self._stop()
        self._next_step = int(state["next_step"])
        self._failure = None

    def start_prefetch(self) -> None:
        """Begins to read ahead, as does asking for a batch."""
        if self._closed:
            raise ValueError("this iterator is closed")
        if self._running is None:
            ahead = self._batches[self._next_step :].to_iter_dataset(self._options)
            self._running = iter(ahead)
            self._running.start_prefetch()

    def close(self) -> None:
        """Ends its threads."""
        self._stop()
        super().close()

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None


def train_batches(
    split: Split, data: Data, *, batch: int, seed: int, rows: Rows, first_step: int = 0
) -> StepIterator:
    """Endless training batches (§4.1): shuffled anew for each epoch, every image once in each.

    Args:
      split: from which to draw. A batch may reach into the next epoch, or be larger than the split.
      data: crop, random_crop, mirror and threads (0: one for each core).
      batch: images in a global batch.
      seed: of the order and of all that is drawn; 0 to 2^32 - 1.
      rows: the (start, stop) ranges of the global batch to read here, concatenated to b rows.
      first_step: the number of the first batch.

    Yields:
      image: uint8 [b, crop, crop, 3], not mirrored.
      corner: int32 [b, 2], the row and column in the image at which the crop begins.
      mirror: bool [b], whether the mirror image is to be learnt from.
      light: float32 [b, 3], draws from N(0, 1) for the three components of the lighting.
      label: int32 [b].
      row: int32 [b], the place in the global batch.

    Raises:
      UserError: while iterating, at a damaged record.
    """
    steps = grain.MapDataset.range(sys.maxsize).seed(seed)
    read = _TrainRead(split, data, _Order(len(split), seed), batch, _rows(rows))
    return StepIterator(steps.random_map(read), data.threads, first_step)


def eval_batches(split: Split, *, batch: int, rows: Rows, threads: int) -> StepIterator:
    """Every image once and in order, in `eval_steps` batches. Close it when done, or exhaust it.

    Args:
      split: to be read.
      batch: images in a global batch. The last one is filled up with black images.
      rows: the (start, stop) ranges of the global batch to read here, concatenated to b rows.
      threads: that read; 0: one for each core.

    Yields:
      image: uint8 [b, size, size, 3].
      label: int32 [b]; 0 for what fills up the last batch.

    Raises:
      UserError: while iterating, at a damaged record.
    """
    steps = grain.MapDataset.range(eval_steps(len(split), batch))
    return StepIterator(steps.map(_EvalRead(split, batch, _rows(rows))), threads)


def eval_steps(images: int, batch: int) -> int:
    """The number of batches of `eval_batches`."""
    return -(-images // batch)


class _Order:
    """The order in which images are drawn: a new permutation in each epoch.

    Grain's `shuffle` finds one index at a time, in 11 microseconds for ImageNet and 70 for a set of
    500 images: up to half of what reading a raw image takes.
    """

    def __init__(self, images: int, seed: int) -> None:
        self._images = images

        @functools.lru_cache(maxsize=2)  # a batch may reach into the next epoch
        def permutation(epoch: int) -> np.ndarray:
            return np.random.default_rng((seed, epoch)).permutation(np.arange(images, dtype="i4"))

        self._permutation = permutation

    def indices(self, start: int, count: int) -> np.ndarray:
        """The images at the places `start` to `start + count` of the endless order: int32."""
        epochs, places = np.divmod(np.arange(start, start + count), self._images)
        drawn = [self._permutation(e)[places[epochs == e]] for e in np.unique(epochs).tolist()]
        return np.concatenate(drawn)


@dataclass(frozen=True)
class _TrainRead(grain.transforms.RandomMap):
    """From a step, and its own random generator, to this process' part of that batch."""

    split: Split
    data: Data
    order: _Order
    batch: int
    rows: np.ndarray

    def random_map(self, step: int, rng: np.random.Generator) -> Batch:
        batch, crop, free = self.batch, self.data.crop, self.split.size - self.data.crop
        indices = self.order.indices(step * batch, batch)
        # All is always drawn, so that switching one thing off leaves the others as they were.
        corner = rng.integers(0, free + 1, (batch, 2), np.int32)
        mirror = rng.random(batch) < 0.5
        light = rng.standard_normal((batch, 3), np.float32)
        if not self.data.random_crop:
            corner[:] = free // 2
        if not self.data.mirror:
            mirror[:] = False

        rows = self.rows
        image = _aligned(len(rows), crop, crop, 3)
        for out, index, (top, left) in zip(image, indices[rows], corner[rows], strict=True):
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
    """From a step to this process' part of that batch."""

    split: Split
    batch: int
    rows: np.ndarray

    def map(self, step: int) -> Batch:
        indices = step * self.batch + self.rows
        valid = indices < len(self.split)
        image = _aligned(len(indices), self.split.size, self.split.size, 3)
        image[~valid] = 0
        label = np.zeros(len(indices), np.int32)
        label[valid] = self.split.labels[indices[valid]]
        for row in np.flatnonzero(valid):
            self.split.read(indices[row], image[row])
        return {"image": image, "label": label}


def _aligned(*shape: int) -> np.ndarray:
    """An empty uint8 array whose memory a CPU's devices share with the host instead of copying.

    XLA does so where an address is a multiple of 64 bytes; numpy's own are multiples of 16.
    """
    memory = np.empty(math.prod(shape) + 63, np.uint8)
    return memory[-memory.ctypes.data % 64 :][: math.prod(shape)].reshape(shape)


def _rows(ranges: Rows) -> np.ndarray:
    """Their row numbers: int32 [b]."""
    return np.concatenate([np.arange(*one, dtype=np.int32) for one in ranges])


def _read_options(threads: int) -> grain.ReadOptions:
    """A batch is read by one thread. The default options would read 500 batches ahead."""
    threads = threads or cores()
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
