"""What the user did, and can fix: one line, no traceback."""

import re


class UserError(Exception):
    """Bad input. The message says in one line what is wrong, where, and what to do."""

    __module__ = "alexnet_jax"  # where Python finds it, too, and what a traceback shows


def system_error(error: OSError) -> str:
    """One line about what the operating system refused: the file, why, what to do."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; fix this, and run the same command again"


def system_reason(error: Exception) -> str | None:
    """The operating system's words, if it is not the file that is at fault; else None.

    For errors while a file is read, by Python or by array_record.
    """
    if isinstance(error, FileNotFoundError):
        return None
    if isinstance(error, OSError):
        return error.strerror
    found = re.search(
        r"\w\(\) failed: ([^;\[]+)", str(error)
    )  # "pread() failed: Input/output error"
    return found[1].strip() if found else None
