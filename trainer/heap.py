"""What the C library does with memory that a step has freed."""

from __future__ import annotations

import ctypes

# mallopt(3): glibc's numbers of the two parameters.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed() -> bool:
    """Let this process keep what it frees, for its next step; False where it cannot be told to.

    By default glibc gives large blocks back to the system at once. A step on a CPU frees and takes
    gigabytes of the same sizes as the one before, and the system would fill each page with zeros
    again. With this the process stays at the size of its largest step, which it has anyway
    (``docs/benchmarks.md``). It holds for the whole process, so it is up to a command and no
    matter of ``trainer.run.train``. Elsewhere (macOS, Windows, musl) nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
