"""Pictures: where they come from, how they are stored, and how batches are drawn from them."""

import os


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; a container may have fewer than its machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
