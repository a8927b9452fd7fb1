"""One process at a time for a run folder."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.common import InputError

BUSY = (errno.EWOULDBLOCK, errno.EACCES)


@contextmanager
def exclusive(run: Path) -> Iterator[None]:
    """Keep a second command off a run folder, which must exist.

    The kernel drops the lock with the process, so nothing is left of one that was killed. Where
    the file system knows no locks nothing is kept off.

    Raises ``InputError`` when another process has it.
    """
    handle = os.open(run, os.O_RDONLY)  # the folder itself: no file is left in it
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in BUSY:
                raise InputError(
                    f"{run}: another command is using this run; wait for it, or end it first"
                ) from error
        yield
    finally:
        os.close(handle)
