"""Scores of networks on the same images: means over seeds, and how sure a difference is.

`evaluate --json` writes the files; `report --scores` prints tables, `figures differences` draws.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
from scipy import stats

from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.files import named
from alexnet_jax.runtime.terminal import markdown_table

RESAMPLES = 9999

Way = tuple[str, int]
"""How images are scored: the split, and the number of views of each image."""


OF_KIND = ("experiments", "configs", "steps", "records")
OF_NETWORKS = (*OF_KIND, "seeds", "weights", "against")  # equal in all lines of a file


class Scored(NamedTuple):
    """A network, or an average of several, in all the ways in which it was scored."""

    name: str
    kind: str  # equal for those that differ only in their seeds
    which: str  # step, config and records, to tell kinds of one name apart
    records: str  # the hash of those that were scored
    against: str  # the name of what it is compared with; "": nothing
    seeds: tuple[int, ...]  # of each network of an average
    wrong: dict[Way, np.ndarray]  # bool [images], whether the best label is wrong


class Difference(NamedTuple):
    """Of two mean error rates, in percentage points."""

    mean: float
    seeds: float | None  # its standard error over networks; None: one of them has only one
    low: float  # the 95% interval of a paired bootstrap over the images
    high: float

    def __str__(self) -> str:
        seeds = "" if self.seeds is None else f" ± {self.seeds:.2f}"
        return f"{self.mean:+.2f}{seeds} ({self.low:+.2f} to {self.high:+.2f})"


Differences = dict[tuple[str, str], dict[Way, Difference]]
"""By the names of what is compared, and of what it is compared with."""


def read_scores(file: Path) -> Scored:
    """A file of `evaluate --json`.

    Raises:
      UserError: it is not one, or was written for another purpose.
    """
    try:
        with named(file):
            lines = [json.loads(line) for line in file.read_text().splitlines()]
        first = lines[0]
        if any(one[key] != first[key] for one in lines for key in OF_NETWORKS):
            raise ValueError
        names, seeds, records = first["experiments"], tuple(first["seeds"]), first["records"]
        wrong = {(one["split"], one["views"]): np.array(one["ranks"]) > 0 for one in lines}
        if not all(ranks.ndim == 1 and len(ranks) for ranks in wrong.values()):
            raise ValueError
        kind, name = [first[key] for key in OF_KIND], names[0]
        which = f"step {first['steps'][0]}, config {first['configs'][0][:6]}, of {records[:6]}"
        weights, against = first["weights"], first["against"]
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{file} is no file of scores; write it with evaluate --json") from None
    if weights != "equal":
        raise UserError(f"{file} was scored with --weights={weights}, on a part of the images")
    if len(names) > 1:
        name, against = f"{' and '.join(dict.fromkeys(names))}, {len(names)} averaged", name
    return Scored(name, json.dumps(kind), which, records, against, seeds, wrong)


def score_tables(files: Sequence[Path]) -> str:
    """Two tables in Markdown: top-1 errors, and differences between those that are compared.

    Errors and differences are in percentage points, means over networks; ± is the standard error
    over networks. The interval of a difference is that of a paired bootstrap over the images, which
    says what other images would change, and not what other seeds would.

    Raises:
      UserError: see `read_scores`; or scores are given twice; or networks that are compared were
        not scored on the same images.
    """
    groups = _grouped(files)
    ways = sorted({way for group in groups for one in group for way in one.wrong})
    rows = [
        _about(group, groups) | {title(way): _error(group, way) for way in ways} for group in groups
    ]
    tables, compared = [markdown_table(rows)], _against(groups) | _more_views(groups)
    if compared:
        cells = [
            {"difference": " - ".join(names)}
            | {title(way): str(of[way]) if way in of else "" for way in ways}
            for names, of in compared.items()
        ]
        tables.append(markdown_table(cells))
    return "\n\n".join(tables)


def differences(files: Sequence[Path]) -> Differences:
    """Between each network and what it is compared with.

    Raises:
      UserError: see `score_tables`.
    """
    return _against(_grouped(files))


def _against(groups: list[list[Scored]]) -> Differences:
    found: Differences = {}
    for group in groups:
        others = [other for other in groups if other[0].name == group[0].against]
        same = [other for other in others if other[0].records == group[0].records]
        for other in same or others:  # the latter are refused
            names = (_name(group, groups), _name(other, groups))
            ways = sorted(_ways(group) & _ways(other))
            found[names] = {way: _difference(group, other, way) for way in ways}
    return found


def _more_views(groups: list[list[Scored]]) -> Differences:
    """Several views against one view of the same networks."""
    found: Differences = {}
    for group in groups:
        pairs = {way: (way[0], 1) for way in sorted(_ways(group)) if way[1] > 1}
        both = {
            way: [one for one in group if {way, single} <= one.wrong.keys()]
            for way, single in pairs.items()
        }
        if any(both.values()):
            found[f"{_name(group, groups)}: several views", "one view"] = {
                way: _own_difference(same, way, pairs[way]) for way, same in both.items() if same
            }
    return found


def _ways(group: list[Scored]) -> set[Way]:
    return {way for one in group for way in one.wrong}


def _name(group: list[Scored], groups: list[list[Scored]]) -> str:
    """The experiment's name; with step, config and records where several kinds have it."""
    one = group[0]
    alone = sum(other[0].name == one.name for other in groups) == 1
    return one.name if alone else f"{one.name} ({one.which})"


def _grouped(files: Sequence[Path]) -> list[list[Scored]]:
    """Those that differ only in their seeds together; one for all files of the same seeds."""
    groups: dict[str, dict[tuple[int, ...], Scored]] = {}
    for file in files:
        new = read_scores(file)
        group = groups.setdefault(new.kind, {})
        known = group.setdefault(new.seeds, new)
        if known is not new:
            if known.wrong.keys() & new.wrong.keys():
                raise UserError(f"{file} has scores of {new.name}, seed {new.seeds[0]}, once more")
            known.wrong.update(new.wrong)
    for group in groups.values():
        counts = [(split, len(w)) for one in group.values() for (split, _), w in one.wrong.items()]
        if len(set(counts)) > len(dict(counts)):
            name = next(iter(group.values())).name
            raise UserError(f"scores of {name} are of unequal numbers of images; write them again")
    return [list(group.values()) for group in groups.values()]


def _about(group: list[Scored], groups: list[list[Scored]]) -> dict[str, str]:
    seeds = ", ".join("+".join(map(str, one.seeds)) for one in group)
    return {"experiment": _name(group, groups), "n": str(len(group)), "seeds": seeds}


def title(way: Way) -> str:
    """'test, 10 views'."""
    split, views = way
    return f"{split}, {'one view' if views == 1 else f'{views} views'}"


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error: the standard deviation over the root of n; None for one."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return mean(values), error


def mean_text(values: Sequence[float], digits: int = 2) -> str:
    """The mean, and behind ± its standard error if there are several: "19.45 ± 0.10"."""
    value, error = mean_and_error(values)
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def _rates(group: list[Scored], way: Way) -> list[float]:
    return [100 * float(one.wrong[way].mean()) for one in group if way in one.wrong]


def _error(group: list[Scored], way: Way) -> str:
    rates = _rates(group, way)
    return mean_text(rates) if rates else ""


def _difference(group: list[Scored], other: list[Scored], way: Way) -> Difference:
    ours, theirs = ([one.wrong[way] for one in each if way in one.wrong] for each in (group, other))
    counts = {len(wrong) for wrong in (*ours, *theirs)}
    if group[0].records != other[0].records or len(counts) > 1:
        raise UserError(
            f"{group[0].name} and {other[0].name} were scored on different images; score both on "
            f"the same records"
        )
    errors = [mean_and_error(_rates(each, way))[1] for each in (group, other)]
    seeds = None if None in errors else float(np.linalg.norm(np.array(errors, float)))
    by_image = 100 * (np.mean(ours, axis=0) - np.mean(theirs, axis=0))
    return Difference(float(by_image.mean()), seeds, *interval(by_image))


def _own_difference(group: list[Scored], way: Way, other: Way) -> Difference:
    """Between two ways to score the same networks."""
    parts = [100.0 * one.wrong[way] - 100.0 * one.wrong[other] for one in group]
    seeds = mean_and_error([float(part.mean()) for part in parts])[1]
    by_image = np.mean(parts, axis=0)
    return Difference(float(by_image.mean()), seeds, *interval(by_image))


def interval(by_image: np.ndarray) -> tuple[float, float]:
    """The 95% interval of the mean of `by_image`, float [images], by a bootstrap over images."""
    if np.ptp(by_image) == 0:  # nothing to draw from
        return float(by_image[0]), float(by_image[0])
    found = stats.bootstrap(
        (by_image,), np.mean, n_resamples=RESAMPLES, batch=100, method="percentile",
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
