"""Adding objects to an index and removing them, by uid.

A flat index is written anew, without what was removed. The others keep a removed row, marked in
``ids.parquet``, and pass over it: neither a graph nor rows numbered by place can lose one.
Codebooks and lists stay as they were learned, so an index that has changed much should be made
again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from evaluation.embeddings import Embeddings, require_distinct
from evaluation.index import Index, ids_table, load_index, read_manifest, write_index
from pipeline.common import InputError

STALE = 0.2  # of the rows removed or added since the index was made: time to make it again


@dataclass(frozen=True)
class Changes:
    """What an update did."""

    manifest: dict[str, Any]
    added: int
    replaced: int
    removed: int
    stale: bool  # so much has changed that the index should be made again


def update_index(
    path: Path,
    add: Embeddings | None = None,
    remove: Collection[str] = (),
    *,
    replace: bool = False,
) -> Changes:
    """Change an index in place, atomically.

    ``replace`` lets rows of ``add`` take the place of objects of the same uid. Raises
    ``InputError`` for embeddings of another teacher, checkpoint or choice of views, uids that are
    not there, or that are there already without ``replace``, and when nothing would be left.
    """
    index = load_index(path, writable=True)
    place = {uid: row for row, uid in enumerate(index.uids()) if uid is not None}
    missing = sorted(set(remove) - set(place))
    if missing:
        others = f" and {len(missing) - 1} others that" if len(missing) > 1 else ", which"
        near = missing[0].rpartition(".")[0]
        remedy = f"its uid may be {near}" if near in place else "leave them out"
        raise InputError(f"{path}: has no object {missing[0]}{others} --remove names; {remedy}")
    gone = {place[uid] for uid in remove}
    replaced = 0
    if add is not None:
        twice = _check(index, add, place, gone)
        if twice and not replace:
            raise InputError(
                f"{path}: {len(twice)} of the new objects already exist ({min(twice)}); "
                "give --replace to replace them"
            )
        replaced = len(twice)
        gone |= {place[uid] for uid in twice}
    ids, engine = index.ids, index.engine
    removed = np.asarray(ids.column("removed").to_numpy(), np.bool_).copy()
    removed[sorted(gone)] = True
    if index.kind == "flat":
        kept = np.flatnonzero(~removed)
        vectors = engine.reconstruct_n(0, engine.ntotal)[kept] if engine.ntotal else None
        engine = faiss.IndexFlatIP(index.meta.teacher.width)
        if vectors is not None and len(vectors):
            engine.add(vectors)
        ids = ids.take(pa.array(kept))
    else:
        at = ids.column_names.index("removed")
        ids = ids.set_column(at, "removed", pa.array(removed))
    if add is not None:
        engine.add(np.ascontiguousarray(add.rows.vectors, np.float32))
        ids = pa.concat_tables([ids, ids_table(add.rows)])
    added = 0 if add is None else len(add.rows)
    if len(index) - len(gone) + added == 0:
        raise InputError(f"{path}: nothing would be left; delete the folder instead")
    record = read_manifest(path)
    names = ("kind", "settings", "memory", "recall_against_exact", "latency_ms", "tried", "updates")
    kept_record = {name: record[name] for name in names}
    entry = {"added": added - replaced, "replaced": replaced, "removed": len(gone) - replaced}
    kept_record["updates"] = [*record["updates"], entry]
    manifest = write_index(path, engine, ids, index.meta, kept_record)
    return Changes(
        manifest,
        **entry,
        stale=index.kind != "flat" and _changed(manifest) > STALE,
    )


def _check(index: Index, add: Embeddings, place: dict[str, int], gone: Collection[int]) -> set[str]:
    """uids that are in both, if the new embeddings fit at all. Raises ``InputError``."""
    index.require_teacher(add.meta.teacher, "the new embeddings")
    ours, theirs = index.meta.model, add.meta.model
    if ours.kind == theirs.kind == "teacher-views" and ours.name != theirs.name:
        # They have no weights to compare: which views were taken stands in the name.
        raise InputError(
            f"{index.path}: its vectors are by {ours.name}, the new ones by {theirs.name}; encode "
            "them with the same --views"
        )
    if (ours.kind, ours.hash) != (theirs.kind, theirs.hash):
        raise InputError(
            f"{index.path}: its vectors are by {ours.name} (step {ours.step}), the new ones by "
            f"{theirs.name} (step {theirs.step}); encode them with the checkpoint of the index"
        )
    require_distinct(add.rows.uid, "the new embeddings")
    return {uid for uid in add.rows.uid if uid in place and place[uid] not in gone}


def _changed(manifest: dict[str, Any]) -> float:
    """Share of the rows that came or went since the index was made."""
    changed = sum(e["added"] + 2 * e["replaced"] + e["removed"] for e in manifest["updates"])
    return float(changed / max(1, manifest["rows"]))
