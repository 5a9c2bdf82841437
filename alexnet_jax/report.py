"""The results of runs as a Markdown table, beside those of the paper and of the logs of 2012.

python -m alexnet_jax.report --workdirs=runs/a,runs/b [--configs=configs/cifar10.py:18] [--out=FILE]
python -m alexnet_jax.report --scores=a.json,b.json

Runs that differ only in their seed share a row: the mean and, from two seeds on, its standard error
(the standard deviation over the root of n). Errors are top-1 / top-5 in percent, on the validation
split of the run. The configs of --configs have a row even if they were not run; of a file with
several variants all have one, or only that of FILE:VARIANT. --comparators adds the other rows of
the paper's Tables 1 and 2.

--scores compares networks image by image, from files of `evaluate --json`: a table of top-1 errors,
and one of differences, with the 95% interval of a paired bootstrap over the images.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from absl import flags

from alexnet_jax import config
from alexnet_jax.compare import mean_text, score_tables
from alexnet_jax.figures.figure1 import GOAL, epochs_to, training_errors
from alexnet_jax.runtime import cli, workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.files import write_text
from alexnet_jax.runtime.metrics import read_metrics
from alexnet_jax.runtime.terminal import markdown_table

NOT_RUN = "not run"

COMPARATORS = {  # what the paper compares with, and its own averages; top-1 / top-5 in percent
    "sparse coding (Table 1)": "47.1 / 28.2 on ILSVRC-2010",
    "SIFT + FVs (Table 1)": "45.7 / 25.7 on ILSVRC-2010",
    "one network (Table 1)": "37.5 / 17.0 on ILSVRC-2010",
    "SIFT + FVs (Table 2)": "test: top-5 26.2",
    "one network (Table 2)": "40.7 / 18.2",
    "five networks (Table 2)": "38.1 / 16.4, test: top-5 16.4",
    "one network, pre-trained (Table 2)": "39.0 / 16.6",
    "seven networks, two pre-trained (Table 2)": "36.7 / 15.4, test: top-5 15.3",
    "the best before, ImageNet 2009 (§6)": "78.1 / 60.9",
    "one network with a sixth convolution, ImageNet 2009 (§6)": "67.4 / 40.9",
}

OPTIONS = flags.FlagValues()
WORKDIRS = flags.DEFINE_list("workdirs", None, "Folders of runs: runs/a,runs/b.", OPTIONS)
CONFIGS = flags.DEFINE_list("configs", [], "Configs that have a row even if not run.", OPTIONS)
WITH_COMPARATORS = flags.DEFINE_bool("comparators", False, "Rows of Tables 1 and 2.", OPTIONS)
SCORES = flags.DEFINE_list("scores", [], "Files of `evaluate --json`.", OPTIONS)
OUT = flags.DEFINE_string("out", None, "File to write the table to.", OPTIONS)


Errors = tuple[float, ...]
"""Top-1 and top-5 error on a split, in [0, 1]; with five classes or fewer the first alone."""


@dataclass(frozen=True)
class Run:
    """What a workdir holds about its run. Errors are None where they were not measured."""

    config: config.Config
    records: str  # their hash; of a run that was resumed on other records all hashes
    steps: int
    epochs: float
    one_view: Errors | None
    ten_views: Errors | None
    nine_views: Errors | None
    to_goal: float | None  # epochs to 25% training error; None: never, or no epoch has ended
    machines: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Equal for runs that differ only in their seed."""
        c = self.config
        # Not fixed, but runs of another length are another kind.
        length = [c.epochs, c.steps, self.finished or self.steps]
        on = [self.records, c.data.validation]
        return json.dumps([c.experiment.name, on, length, config.but_seed(c)], sort_keys=True)

    @property
    def finished(self) -> bool:
        """Whether it was trained for as long as its config says, or its policy ended it."""
        c = self.config
        scored = self.ten_views or self.nine_views  # as only the end of a run is
        return self.epochs >= c.epochs or self.steps == c.steps or scored is not None


def read_run(folder: Path) -> Run:
    """The run in a workdir, finished or not.

    Raises:
      UserError: there is none, or it has no metrics yet.
    """
    c, lines = workdir.read_config(folder), read_metrics(folder)
    starts = workdir.read_starts(folder)
    if not lines:
        raise UserError(f"{folder} has no metrics yet; train first")
    # All errors from the last evaluation: a run that was made longer has ten views of before, too.
    evaluated = [one for one in lines if "val/top1_error" in one]
    scored = evaluated[-1] if evaluated else {}
    return Run(
        config=c,
        records=workdir.records_of(folder) or c.data.source,
        steps=lines[-1]["step"],
        epochs=lines[-1]["epoch"],
        one_view=_errors(scored, "val", c),
        ten_views=_errors(scored, "val_ten_views", c),
        nine_views=_errors(scored, "val_nine_views", c),
        to_goal=_to_goal(folder, lines),
        machines=tuple(dict.fromkeys(_machine(start) for start in starts)),
    )


def report(
    folders: Sequence[Path],
    planned: Sequence[config.Experiment] = (),
    *,
    comparators: bool = False,
) -> str:
    """The table of the runs in `folders`, and of the `planned` that are not among them.

    With `comparators`, the paper's Tables 1 and 2 follow.

    Raises:
      UserError: see `read_run`.
    """
    groups: dict[str, list[Run]] = {}
    for run in map(read_run, folders):
        groups.setdefault(run.kind, []).append(run)
    rows = [_row(runs, list(groups.values())) for runs in groups.values()]
    known = {runs[0].config.experiment.name for runs in groups.values()}
    not_run = {"ours, ten views": NOT_RUN, "ours, centre crop": NOT_RUN}
    rows += [_about(one) | not_run for one in planned if one.name not in known]
    if comparators:
        rows += [{"experiment": name, "paper": told} for name, told in COMPARATORS.items()]
    return markdown_table(rows)


def _about(experiment: config.Experiment) -> dict[str, str]:
    """The cells of a row that do not depend on runs, by column."""
    return {"experiment": experiment.name, "paper": experiment.paper, "2012 log": experiment.log}


def _row(runs: list[Run], groups: list[list[Run]]) -> dict[str, str]:
    c = runs[0].config
    nine = [run.nine_views for run in runs]
    return _about(c.experiment) | {
        "experiment": c.experiment.name + _apart(runs, groups),
        "ours, ten views": _text([run.ten_views for run in runs]),
        **({"ours, nine views": _text(nine)} if any(nine) else {}),
        "ours, centre crop": _text([run.one_view for run in runs]),
        **_reached(runs),
        "compared": _compared(runs, groups),
        "images": f"{c.data.source}, {c.data.validation}",
        "n": str(len(runs)),
        "seeds": ", ".join(str(run.config.seed) for run in runs),
        "trained": ", ".join(dict.fromkeys(_trained(run) for run in runs)),
        "on": "; ".join(dict.fromkeys(machine for run in runs for machine in run.machines)),
    }


def _name(runs: list[Run]) -> str:
    return runs[0].config.experiment.name


def _apart(runs: list[Run], groups: list[list[Run]]) -> str:
    """The values in which runs differ from others with the same name."""
    mine = config.fixed_values(config.as_dict(runs[0].config))
    namesakes = [group for group in groups if _name(group) == _name(runs)]
    keys = {key for group in namesakes for key in _differing(group[0].config, runs[0].config)}
    return "".join(f", {key}={mine[key]}" for key in sorted(keys & mine.keys() - {"seed"}))


def _compared(runs: list[Run], groups: list[list[Run]]) -> str:
    """The difference from the runs that these are compared with, in percentage points.

    Between finished runs only: one that has just begun is worse for that reason alone.
    """
    first = runs[0]
    against, split = first.config.experiment.against, first.config.data.validation
    others = [
        group
        for group in groups
        if (_name(group), group[0].records) == (against, first.records)
        and group[0].config.data.validation == split
        and group[0].finished
    ]
    if not others or not first.finished:
        return ""

    def distance(group: list[Run]) -> tuple[int, bool]:
        other = group[0].config
        length = (other.epochs, other.steps) != (first.config.epochs, first.config.steps)
        return len(_differing(other, first.config)), length

    nearest = min(others, key=distance)
    for views, of in (("ten_views", ""), ("one_view", ", centre crop")):
        ours, theirs = (_means([getattr(run, views) for run in g]) for g in (runs, nearest))
        if ours and theirs:
            points = [f"{100 * (a - b):+.2f}" for a, b in zip(ours, theirs, strict=True)]
            return f"{' / '.join(points)} to {against}{of}"
    return ""


def _to_goal(folder: Path, lines: list[dict[str, Any]]) -> float | None:
    errors = [line for line in lines if line.get("train/top1_error") is not None]
    return epochs_to(GOAL, *training_errors(folder)) if errors and lines[-1]["epoch"] >= 1 else None


def _reached(runs: list[Run]) -> dict[str, str]:
    """The column of what Fig. 1 compares, for nets on CIFAR-10."""
    if not isinstance(runs[0].config.model, config.Cifar):
        return {}
    known = [run.to_goal for run in runs if run.to_goal is not None]
    told = mean_text(known) if len(known) == len(runs) else f"{len(known)} of {len(runs)} reach it"
    if len(known) < len(runs) and not runs[0].finished:
        told += " so far"
    return {f"epochs to {GOAL:.0%} training error": told}


def _differing(a: config.Config, b: config.Config) -> list[str]:
    return config.differences(config.as_dict(a), b)


def _means(errors: list[Errors | None]) -> list[float]:
    return [mean(rates) for rates in zip(*filter(None, errors), strict=True)]


def _text(errors: list[Errors | None]) -> str:
    """The mean in percent, with its standard error over seeds; how many, if not all have it."""
    known = [one for one in errors if one]
    if not known:
        return NOT_RUN
    text = " / ".join(mean_text([100 * rate for rate in one]) for one in zip(*known, strict=True))
    return text if len(known) == len(errors) else f"{text} (n={len(known)})"


def _trained(run: Run) -> str:
    c = run.config
    of = "" if run.finished else f" of {c.epochs}, unfinished"
    return f"{run.epochs:.3g} epochs{of} ({run.steps} steps of {c.batch})"


def _machine(start: workdir.Start) -> str:
    """The devices of a machine. CPU devices share its cores."""
    if start.kind == "cpu":
        return f"{start.devices} CPU devices, {start.cores} cores of {start.cpu}"
    return f"{start.devices} x {start.kind}"


def _errors(line: dict[str, Any], prefix: str, c: config.Config) -> Errors | None:
    """The errors in a line of metrics, if it has them."""
    names = ("top1_error", "top5_error") if c.has_top5 else ("top1_error",)
    found = [line.get(f"{prefix}/{name}") for name in names]
    known = tuple(one for one in found if one is not None)
    return known if len(known) == len(found) else None


# --- the command --------------------------------------------------------------------------------


def planned_in(text: str) -> list[config.Experiment]:
    """The experiments of a config file: of all its variants, or of the one in FILE:VARIANT.

    Raises:
      UserError: it cannot be loaded.
    """
    configs = cli.load_configs(text, all_variants=True)
    return [config.parse(one).experiment for one in configs]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are those of the process if None."""
    cli.run(_run, OPTIONS, __doc__, arguments)


def _run(arguments: Sequence[str]) -> None:
    cli.no_more(arguments)
    out = cli.output(OUT)
    if SCORES.value:
        if WORKDIRS.value or CONFIGS.value or WITH_COMPARATORS.value:
            raise UserError(
                "--scores makes other tables than --workdirs, --configs and --comparators; give "
                "it alone"
            )
        table = score_tables(cli.input_files(SCORES, "a.json,b.json"))
    else:
        planned = [one for text in CONFIGS.value if text for one in planned_in(text)]
        table = report(cli.folders(WORKDIRS), planned, comparators=WITH_COMPARATORS.value)
    print(table)
    if out:
        write_text(out, table + "\n")


if __name__ == "__main__":
    main()
