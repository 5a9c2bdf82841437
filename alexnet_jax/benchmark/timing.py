"""Alternating repetitions: on a machine whose speed changes, only they can be compared."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from alexnet_jax.runtime.terminal import progress_bar

Work = Callable[[int], None]
"""Does a thing so many times, and returns when all of it is done."""


class Times(NamedTuple):
    """Seconds for doing a thing once."""

    median: float
    low: float
    high: float


def alternate(works: Mapping[str, Work], repeats: int, seconds: float = 1.0) -> dict[str, Times]:
    """Times things in turn: a b c, a b c, ...

    Args:
      works: the things; each is done twice before anything is timed.
      repeats: of which the median, the lowest and the highest are taken.
      seconds: that a repetition lasts, about; a thing is done at least once in it.
    """
    counts: dict[str, int] = {}
    taken: dict[str, list[float]] = {name: [] for name in works}
    with progress_bar((repeats + 1) * len(works), "timing", "repetitions", leave=False) as bar:
        for name, work in works.items():
            work(1)
            counts[name] = max(1, round(seconds / _seconds(work, 1)))
            bar.update()
        for _ in range(repeats):
            for name, work in works.items():
                taken[name].append(_seconds(work, counts[name]))
                bar.update()
    return {name: Times(statistics.median(t), min(t), max(t)) for name, t in taken.items()}


def in_turn(call: Callable[[], Any], count: int) -> None:
    """Calls so often something whose result may not be there yet; two may be under way.

    As in training: many programs at once whose devices wait for each other can block a CPU.
    """
    results: list[Any] = []
    for _ in range(count):
        results = [*results[-2:], call()]
        jax.block_until_ready(results[:-2])
    jax.block_until_ready(results)


def _seconds(work: Work, count: int) -> float:
    start = time.perf_counter()
    work(count)
    return (time.perf_counter() - start) / count
