"""What the C library does with memory that has been freed."""

from __future__ import annotations

import ctypes

# mallopt(3): glibc's numbers of the two parameters.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed() -> bool:
    """Let this process keep what it frees, for its next batch; False where it cannot be told to.

    By default glibc gives large blocks back to the system at once. A model on a CPU frees and takes
    gigabytes of the same sizes batch after batch, and the system would fill each page with zeros
    again: up to a quarter of the time. With this the process stays at the size of its largest
    batch, and some more where gaps are left (measured in ``docs/benchmarks.md``). It holds for the
    whole process, so it is up to commands and workers and no matter of functions that anyone may
    call. Elsewhere (macOS, Windows, musl) nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
