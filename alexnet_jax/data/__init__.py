"""Images: where they come from, how they are stored, and how batches are drawn from them."""

import os

# OpenCV reads these when it is loaded. Its own limit is 2^30, for which it would allocate 3 GB; and
# of each image that it cannot decode it would tell in words of its own.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**28))
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; a container may have fewer than its machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
