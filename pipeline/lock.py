"""One writer at a time for a shard set."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.common import InputError
from pipeline.shards.storage import Storage


@contextmanager
def exclusive(out: str) -> Iterator[None]:
    """Keep a second run off the same local folder. The kernel drops the lock with the process.

    Raises ``InputError`` when another run has it. Remote folders are not locked.
    """
    storage = Storage.at(out)
    if not storage.is_local:
        yield
        return
    path = Path(storage.join(".lock"))
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{out}: another run is at work on this folder; wait for it or use another --out"
            ) from error
        yield
