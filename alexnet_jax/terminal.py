"""What is shown to someone who watches."""

import sys

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
