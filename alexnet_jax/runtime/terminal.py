"""What is shown to someone who watches."""

import sys
from collections.abc import Sequence

from tqdm import tqdm

_silent = False


def be_silent() -> None:
    """From now on nothing is said or shown here: another process does."""
    global _silent  # noqa: PLW0603
    _silent = True


def progress_bar(total: int, what: str, unit: str, *, initial: int = 0, leave: bool = True) -> tqdm:
    """A bar with rate and time left for `total` units; in a log, a line every half minute."""
    interval = 0.2 if sys.stderr.isatty() else 30.0
    shown = {"desc": what, "unit": f" {unit}", "leave": leave, "mininterval": interval}
    shown["disable"] = _silent
    return tqdm(total=total, initial=initial, **shown)


def say(text: str) -> None:
    """Prints a line above the bar."""
    if _silent:
        return
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def complain(error: object) -> None:
    """Tells of an error in one line."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its columns aligned; the first of `lines` is the head."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in ruled
    )
