"""What is shown to someone who watches."""

import sys

from tqdm import tqdm


def progress_bar(total: int, what: str, *, initial: int = 0, leave: bool = True) -> tqdm:
    """A bar with rate and time left; where no one watches, a line every half minute."""
    interval = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, desc=what, initial=initial, leave=leave, mininterval=interval)


def say(text: str) -> None:
    """Prints a line above the bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()
