"""What a killed run left behind in a shard set."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.shards import clean_orphans
from pipeline.shards.storage import Storage


def clean_temporaries(root: str | Path) -> int:
    """Remove what a killed run left half-written in a local shard set; how many entries it was.

    Only for a set that no other run is writing to. Remote stores keep nothing half-written.
    """
    storage = Storage.at(root)
    if not storage.is_local:
        return 0
    found = sorted(Path(storage.path).glob(".tmp-*"))
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return len(found) + clean_orphans(root)
