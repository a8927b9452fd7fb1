"""FAISS indexes: build from an embeddings file, check, load, search.

A folder with ``index.faiss``, ``ids.parquet`` (row -> uid, source, category, texts) and
``manifest.json`` (teacher, model, metric, kind, measured recall, SHA-256 of the two files). Up to
``FLAT_LIMIT`` rows the index is exact. Above that it is HNSW, whose recall against exact search is
measured per query modality: it can be good for one and poor for another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from evaluation.embeddings import (
    Embeddings,
    EmbeddingsMeta,
    meta_from_record,
    normalise,
    parse_record,
)
from evaluation.teachers import require_same_teacher
from pipeline.catalog.connection import connect, table_database
from pipeline.common import InputError, atomic_path, file_hash, versions
from pipeline.sets.filter import uids_where
from pipeline.shards import ShardSet, TeacherInfo

FORMAT = "mrd3d-index"
VERSION = 1
REMEDY = "make it again with `evaluation index`"
METRIC = "cosine"  # inner product of L2-normalised vectors
FILES = ("index.faiss", "ids.parquet")

# Exact search of 200,000 rows of 512 takes about 20 ms a query on one core: nothing to gain below.
FLAT_LIMIT = 200_000
HNSW = {"neighbours": 32, "ef_construction": 200, "ef_search": 128}
FEW_ROWS = 50_000  # of an approximate index, that a condition leaves: searched one by one
RECALL_QUERIES = 500
RECALL_K = 10

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Item:
    """What is known of one indexed object."""

    uid: str
    source: str
    category: str | None
    texts: list[str]


@dataclass(frozen=True)
class Hit:
    """One search result; ``rank`` starts at 1, ``score`` is a cosine."""

    rank: int
    score: float
    item: Item


class Index:
    """A loaded index. Open it with ``load_index``."""

    def __init__(
        self, path: Path, engine: Any, ids: pa.Table, meta: EmbeddingsMeta, kind: str
    ) -> None:
        self.path, self.meta, self.kind = path, meta, kind
        self._engine, self._ids = engine, ids

    def __len__(self) -> int:
        return int(self._engine.ntotal)

    def item(self, row: int) -> Item:
        """The object of a row."""
        values = self._ids.slice(row, 1).to_pylist()[0]
        return Item(values["uid"], values["source"], values["category"], values["texts"])

    def rows_where(self, where: str, shards: str | None = None) -> NDArray[np.bool_]:
        """(size,) for every row, whether an SQL condition is true of its object.

        The columns are those of the index (uid, source, category, texts), or with ``shards`` all of
        that set; objects that it lacks are left out. Raises ``InputError`` for a wrong condition, a
        set of other objects, or one that no object fulfils.
        """
        if shards is not None:
            opened = ShardSet.open(shards)
            known = set(opened.uids())
            if known.isdisjoint(self._ids.column("uid").to_pylist()):
                raise InputError(
                    f"--shards {shards}: holds none of the objects of {self.path}; give the shard "
                    "set that was indexed"
                )
            wanted = uids_where(connect(opened), "shards", where)
        else:
            wanted = uids_where(table_database("objects", self._ids), "objects", where)
        uids = self._ids.column("uid").to_pylist()
        allowed = np.fromiter((uid in wanted for uid in uids), np.bool_, len(uids))
        if not allowed.any():
            raise InputError(f"--where {where}: no object of {self.path} is left")
        return allowed

    def search_rows(
        self, queries: F32, k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[F32, NDArray[np.int64]]:
        """Scores and rows, each (Q, min(k, size)), best first; equal scores by row number.

        ``allowed`` (size,) leaves only those rows; where an approximate index finds fewer, the
        last rows are -1. Raises ``InputError`` when the queries have another width than the index.
        """
        if queries.shape[1] != self.meta.teacher.width:
            raise InputError(
                f"{self.path}: holds vectors of width {self.meta.teacher.width}, the query has "
                f"{queries.shape[1]}; use the teacher of the index"
            )
        queries = np.ascontiguousarray(queries, np.float32)
        k = min(k, len(self) if allowed is None else int(np.count_nonzero(allowed)))
        if allowed is None:
            scores, rows = self._engine.search(queries, k)
        else:
            scores, rows = self._search_allowed(queries, k, allowed)
        order = np.lexsort((rows, -scores), axis=1)
        scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        return scores.astype(np.float32), rows.astype(np.int64)

    def _search_allowed(
        self, queries: F32, k: int, allowed: NDArray[np.bool_]
    ) -> tuple[F32, NDArray[np.int64]]:
        library: Any = faiss  # its stubs know nothing of selectors
        bits = np.packbits(allowed, bitorder="little")
        chosen = library.IDSelectorBitmap(bits)
        if self.kind == "flat":
            found = self._engine.search(queries, k, params=library.SearchParameters(sel=chosen))
            return found[0], found[1]
        few = np.flatnonzero(allowed)
        if len(few) > FEW_ROWS:
            # The walk passes rows that are not allowed: it must go further for as many that are.
            reach = min(8.0, len(allowed) / len(few))
            params = library.SearchParametersHNSW(
                sel=chosen, efSearch=int(reach * max(k, HNSW["ef_search"]))
            )
            found = self._engine.search(queries, k, params=params)
            return found[0], found[1]
        # Few lie far apart in the graph, and a walk would miss them.
        exact: Any = faiss.IndexFlatIP(self._engine.d)
        exact.add(self._engine.reconstruct_batch(few))
        scores, places = exact.search(queries, k)
        return scores, few[places]

    def search(self, query: F32, k: int, allowed: NDArray[np.bool_] | None = None) -> list[Hit]:
        """Best ``k`` objects for one (D,) query; fewer when fewer are there, or ``allowed``."""
        scores, rows = self.search_rows(query[None], k, allowed)
        found = zip(scores[0], rows[0], strict=True)
        hits = [(float(score), int(row)) for score, row in found if row >= 0]
        return [Hit(i, score, self.item(row)) for i, (score, row) in enumerate(hits, 1)]

    def require_teacher(self, teacher: TeacherInfo, name: str) -> None:
        """Raise ``InputError`` when ``teacher`` (of ``name``) is not that of the index."""
        require_same_teacher(self.meta.teacher, f"index {self.path}", teacher, name)


def build_index(
    embeddings: Embeddings,
    out: Path,
    *,
    flat_limit: int = FLAT_LIMIT,
    queries: Mapping[str, F32] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write an index folder and return its manifest.

    ``queries`` are (Q, D) vectors by modality (``text``, ``image``) on which the recall of an
    approximate index is measured, beside shapes drawn from the rows. Atomic; an earlier index at
    ``out`` is replaced. Raises ``InputError`` when ``out`` is anything else.
    """
    check_target(out)
    vectors = np.ascontiguousarray(embeddings.rows.vectors, np.float32)
    count, width = vectors.shape
    flat: Any = faiss.IndexFlatIP(width)
    flat.add(vectors)
    engine: Any = flat
    kind, settings, recall = "flat", {}, None
    if count > flat_limit:
        kind, settings = "hnsw", dict(HNSW)
        engine = faiss.IndexHNSWFlat(width, HNSW["neighbours"], faiss.METRIC_INNER_PRODUCT)
        engine.hnsw.efConstruction = HNSW["ef_construction"]
        engine.hnsw.efSearch = HNSW["ef_search"]
        engine.add(vectors)
        chosen = np.random.default_rng(seed).permutation(count)[:RECALL_QUERIES]
        samples = {"shape": vectors[np.sort(chosen)], **(queries or {})}
        recall = {name: recall_against(engine, flat, sample) for name, sample in samples.items()}
    with atomic_path(out) as folder:
        folder.mkdir(parents=True)
        faiss.write_index(engine, str(folder / FILES[0]))
        rows = embeddings.rows
        table = pa.table(
            {
                "uid": pa.array(rows.uid, pa.string()),
                "source": pa.array(rows.source, pa.string()),
                "category": pa.array(rows.category, pa.string()),
                "texts": pa.array(rows.texts, pa.list_(pa.string())),
            }
        )
        pq.write_table(table, folder / FILES[1])
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "kind": kind,
            "metric": METRIC,
            "count": count,
            "width": width,
            "settings": settings,
            "recall_against_exact": recall,
            "sha256": {name: file_hash(folder / name) for name in FILES},
            **asdict(embeddings.meta),
            "versions": versions("mrd3d", "faiss-cpu", "numpy", "pyarrow"),
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def recall_against(approximate: Any, exact: Any, queries: F32) -> dict[str, float | int]:
    """Share of the exact best ``RECALL_K`` that the approximate index finds, over ``queries``."""
    k = min(RECALL_K, int(exact.ntotal))
    _, wanted = exact.search(queries, k)
    _, found = approximate.search(queries, k)
    hits = [len(np.intersect1d(a, b)) for a, b in zip(wanted, found, strict=True)]
    return {"k": k, "queries": len(queries), "recall": float(np.mean(hits) / k) if hits else 0.0}


def check_target(out: Path) -> None:
    """Raise ``InputError`` when ``out`` is there and neither empty nor an index."""
    if not out.exists():
        return
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.is_dir() and (out / "manifest.json").is_file():
        try:
            if json.loads((out / "manifest.json").read_text()).get("format") == FORMAT:
                return
        except (ValueError, AttributeError, OSError):
            pass
    raise InputError(f"--out {out}: exists and is not an index; give a new folder")


def load_index(path: Path) -> Index:
    """Open an index folder after checking it against its manifest.

    Raises ``InputError`` when it is missing, incomplete, damaged or newer than this installation.
    The hash is checked before FAISS parses a byte: its reader trusts the sizes in a file.
    """
    manifest_path = path / "manifest.json"
    if not manifest_path.is_file():
        raise InputError(
            f"{path}: no index there (no manifest.json); give the folder that `evaluation index "
            "--out` wrote"
        )
    record = parse_record(manifest_path.read_bytes(), str(manifest_path), FORMAT, VERSION, REMEDY)
    meta = meta_from_record(record, str(manifest_path), REMEDY)
    hashes = record.get("sha256")
    for name in FILES:
        file = path / name
        if not file.is_file():
            raise InputError(f"{file}: missing from the index; {REMEDY}")
        if not isinstance(hashes, dict) or file_hash(file) != hashes.get(name):
            raise InputError(
                f"{file}: damaged or exchanged (SHA-256 is not that of the manifest); {REMEDY}"
            )
    engine = faiss.read_index(str(path / FILES[0]))
    ids = pq.read_table(path / FILES[1])
    if not engine.ntotal == ids.num_rows == record.get("count") or engine.d != meta.teacher.width:
        raise InputError(f"{path}: index, ids and manifest do not fit together; {REMEDY}")
    return Index(path, engine, ids, meta, str(record.get("kind")))


def sample_queries(shards: ShardSet, limit: int = RECALL_QUERIES) -> dict[str, F32]:
    """Up to ``limit`` text and image embeddings of a shard set, spread over its row groups."""
    columns = ["text_embeds"] + (["image_embeds"] if shards.manifest.n_views else [])
    stride = max(1, len(shards.row_groups) * 64 // limit)
    texts, images = [], []
    for batch in shards.batches(columns, shards.row_groups[::stride]):
        if batch.text_embeds is not None:
            texts.append(batch.text_embeds)
        if batch.image_embeds is not None and batch.image_embeds.shape[1]:
            images.append(batch.image_embeds[:, 0])
    named = {"text": texts, "image": images}
    return {
        name: normalise(np.concatenate(parts)[:limit])
        for name, parts in named.items()
        if parts and sum(map(len, parts))
    }
