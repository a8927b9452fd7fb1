"""Passes over all parts of a set; a bar tells of those that take long."""

from __future__ import annotations

import pyarrow as pa

from pipeline.console import ProgressBar
from pipeline.shards import ShardSet

_PATIENCE_S = 2.0  # of many parts, or of some in a remote store, a pass takes longer


def open_parts(shards: ShardSet) -> None:
    """Open and check every part, which ``row_groups`` then needs not. Raises as that does."""
    with ProgressBar("open", len(shards.parts), "parts", after_s=_PATIENCE_S) as bar:
        for part in shards.parts:
            shards.groups_of(part)
            bar.advance(1)


def column(shards: ShardSet, name: str) -> pa.Array:
    """One column of all rows, in reading order: metadata, not clouds or embeddings."""
    open_parts(shards)
    chunks = []
    with ProgressBar(f"read {name}", len(shards), "objects", after_s=_PATIENCE_S) as bar:
        for group in shards.row_groups:
            chunks.append(shards.table(group, [name]).column(0).combine_chunks())
            bar.advance(group.n_rows)
    return pa.chunked_array(chunks, shards.schema.field(name).type).combine_chunks()
