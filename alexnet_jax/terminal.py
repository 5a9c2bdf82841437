"""What is shown to someone who watches."""

import sys
from collections.abc import Sequence

from tqdm import tqdm


def progress_bar(total: int, what: str, unit: str, *, initial: int = 0, leave: bool = True) -> tqdm:
    """A bar with rate and time left for `total` units; in a log, a line every half minute."""
    interval = 0.2 if sys.stderr.isatty() else 30.0
    shown = {"desc": what, "unit": f" {unit}", "leave": leave, "mininterval": interval}
    return tqdm(total=total, initial=initial, **shown)


def say(text: str) -> None:
    """Prints a line above the bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its columns aligned; the first of `lines` is the head."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in ruled
    )
