"""What is printed for the user."""

import sys
from collections.abc import Mapping, Sequence

from tqdm import tqdm

WITHOUT_RATE = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

_silent = False


def be_silent() -> None:
    """From now on `say` and `progress_bar` print nothing: another process does."""
    global _silent  # noqa: PLW0603
    _silent = True


def is_terminal() -> bool:
    """Whether a user reads along, on a terminal; else it is a file or a pipe."""
    return sys.stderr.isatty()


def progress_bar(
    total: int,
    what: str,
    unit: str,
    *,
    initial: int = 0,
    leave: bool = True,
    only_on_terminal: bool = False,
    rate: bool = True,
) -> tqdm:
    """A progress bar with time left; in a file, a line every 30 seconds after the first.

    Args:
      total: how many units there are.
      what: what is done, the text before the bar.
      unit: the name of one unit.
      initial: how many units were done before.
      leave: whether the bar stays when it is closed.
      only_on_terminal: not in a file, which gets other lines.
      rate: whether units per second are shown.
    """
    wait = 0.2 if is_terminal() else 30.0
    return tqdm(
        total=total,
        initial=initial,
        desc=what,
        unit=f" {unit}",
        leave=leave,
        bar_format=None if rate else WITHOUT_RATE,
        mininterval=wait,
        delay=0.0 if is_terminal() else wait,
        disable=_silent or (only_on_terminal and not is_terminal()),
    )


def duration(seconds: float) -> str:
    """For example '0:31', '12:05', '3:07:59'."""
    return tqdm.format_interval(seconds).removeprefix("0")


def say(text: str) -> None:
    """Prints a line above the progress bar."""
    if not _silent:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def complain(error: object) -> None:
    """Prints an error to stderr, in one line."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """A table in Markdown with aligned columns: one for every key that any row has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, *([row.get(name, "") for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ruled = [columns, ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in ruled
    )
