"""Images: their sources, the records that store them, and the batches drawn from the records."""

import os

# OpenCV reads these when it is loaded. Its own limit is 2^30 pixels, for which it would allocate
# 3 GB. By default it also prints a message of its own for each image that it cannot decode.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**28))
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")


def cores() -> int:
    """The number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: a container may have fewer than its machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
