"""What a killed run left behind in a shard set."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.shards import clean_orphans
from pipeline.shards.storage import Storage


def clean_temporaries(root: str | Path) -> int:
    """Remove what a killed run left half-written in a shard set; how many entries it was.

    Only for a set that no other run is writing to: within ``pipeline.lock.exclusive``.
    """
    storage = Storage.at(root)
    if not storage.is_local:
        names = storage.list(".tmp-", "")
        for name in names:
            storage.delete(name)
        return len(names) + clean_orphans(root)
    found = sorted(Path(storage.path).glob(".tmp-*"))
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return len(found) + clean_orphans(root)
