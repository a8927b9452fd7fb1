"""FAISS indexes: build from an embeddings file, check, load, search.

A folder with ``index.faiss``, ``ids.parquet`` (row -> uid, source, category, texts, removed) and
``manifest.json`` (teacher, model, metric, kind, measured recall, SHA-256 of the two files). Which
index it is: see ``evaluation.index_choice``; how it changes: ``evaluation.index_update``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from evaluation.embeddings import (
    EmbeddingRows,
    Embeddings,
    EmbeddingsMeta,
    meta_from_record,
    normalise,
    parse_record,
    require_distinct,
)
from evaluation.exact import top_k
from evaluation.index_choice import RECALL_K, Trying, Wanted, choose, width_of
from evaluation.teachers import require_same_teacher
from pipeline.catalog.connection import BULK, connect, table_database
from pipeline.common import InputError, atomic_path, check_new, file_hash, versions
from pipeline.sets.filter import uids_where
from pipeline.shards import ShardSet, TeacherInfo

FORMAT = "mrd3d-index"
VERSION = 2
REMEDY = "make it again with `evaluation index`"
METRIC = "cosine"  # inner product of L2-normalised vectors
FILES = ("index.faiss", "ids.parquet")

FEW_ROWS = 50_000  # of an approximate index, that a condition leaves: all are looked at
IDS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("uid", "source", "category")),
        ("texts", pa.list_(pa.string())),
        ("removed", pa.bool_()),
    ]
)
_REACH = 8.0  # how much wider a search among some rows may look
RECALL_QUERIES = 500
QUERY_GROUPS = 64  # row groups that they are taken from

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
    row: int = -1  # in the index


class Index:
    """A loaded index. Open it with ``Index.open``."""

    def __init__(
        self, path: Path, engine: Any, ids: pa.Table, meta: EmbeddingsMeta, kind: str
    ) -> None:
        self.path, self.meta, self.kind = path, meta, kind
        self.engine, self.ids = engine, ids
        self._embedder: Any = None  # of ``query``
        self._beyond: dict[str, pa.Table] = {}  # by the set
        removed = ids.column("removed").to_numpy().astype(np.bool_)
        self._alive: NDArray[np.bool_] | None = ~removed if removed.any() else None

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """Open an index folder; see ``load_index``."""
        return load_index(Path(path))

    def query(
        self,
        text: str | None = None,
        *,
        image: str | Path | None = None,
        shape: str | Path | None = None,
        minus: str | None = None,
        where: str | None = None,
        shards: str | ShardSet | None = None,
        k: int = 10,
        checkpoint: str | Path | None = None,
        teacher: str | None = None,
    ) -> list[Hit]:
        """The best ``k`` objects for words, a picture, a mesh or .npz cloud, or several together.

        As `evaluation retrieve`: ``minus`` are words to keep away from, ``where`` is an SQL
        condition on the columns of the index or of ``shards``, a set that was opened or its place.
        Teacher and student are loaded when they are first needed and kept; ``checkpoint`` and
        ``teacher`` say where they are if not where they were. Raises ``InputError``.
        """
        from evaluation.queries import compose, parse_parts
        from evaluation.search import Embedder

        if k < 1:
            raise InputError(f"k {k}: no object is asked for; give 1 or more")

        def given(value: str | Path | None) -> list[str]:
            return [] if value is None else [str(value)]

        parts = parse_parts(given(text), given(image), given(shape), given(minus))
        if self._embedder is None or checkpoint is not None or teacher is not None:
            place = None if checkpoint is None else Path(checkpoint)
            self._embedder = Embedder(self, place, teacher)
        allowed = None if where is None else self.rows_where(where, shards)
        return self.search(compose(parts, self._embedder), k, allowed)

    def __len__(self) -> int:
        rows = int(self.engine.ntotal)
        return rows if self._alive is None else int(np.count_nonzero(self._alive))

    def uids(self) -> list[str | None]:
        """uid of every row; None where the object was removed."""
        uids: list[str | None] = self.ids.column("uid").to_pylist()
        if self._alive is None:
            return uids
        return [uid if alive else None for uid, alive in zip(uids, self._alive, strict=True)]

    @property
    def alive(self) -> NDArray[np.bool_]:
        """(rows,) whether the object of a row is still there."""
        return np.ones(self.ids.num_rows, np.bool_) if self._alive is None else self._alive

    def item(self, row: int) -> Item:
        """The object of a row."""
        values = self.ids.slice(row, 1).to_pylist()[0]
        return Item(values["uid"], values["source"], values["category"], values["texts"])

    def removed(self, row: int) -> bool:
        """Whether the object of a row was removed."""
        return self._alive is not None and not self._alive[row]

    def rows_where(
        self, where: str, shards: str | ShardSet | None = None, seconds: float | None = None
    ) -> NDArray[np.bool_]:
        """(rows,) for every row, whether an SQL condition is true of its object.

        The columns are those of the index (uid, source, category, texts), or with ``shards`` all of
        that set; of objects that it lacks, the others are NULL. Raises ``InputError`` for a wrong
        condition, a set of other objects, one that no object fulfils, or one that takes more than
        ``seconds``.
        """
        if shards is None:
            wanted = uids_where(table_database("objects", self._there), "objects", where, seconds)
        else:
            opened = ShardSet.open(shards) if isinstance(shards, str) else shards
            others = self.beyond(opened)
            wanted = uids_where(connect(opened), "shards", where, seconds)
            if len(others):
                wanted |= uids_where(table_database("shards", others), "shards", where, seconds)
        uids = self.uids()
        allowed = np.fromiter((uid in wanted for uid in uids), np.bool_, len(uids))
        if not allowed.any():
            raise InputError(f"--where {where}: no object of {self.path} is left")
        return allowed

    def beyond(self, shards: ShardSet) -> pa.Table:
        """The objects that a set lacks, in its columns, where all but those of the index are NULL.

        Kept: it takes all uids of the set. Raises ``InputError`` where it lacks them all.
        """
        root = shards.storage.root
        if root not in self._beyond:
            with connect(shards) as db:
                db.register("indexed", self._there)
                lacking = db.execute("select uid from indexed anti join shards using (uid)")
                uids = pa.array(lacking.fetchnumpy()["uid"], pa.string())
            if len(uids) == len(self):
                raise InputError(
                    f"--shards {root}: holds none of the objects of {self.path}; give the shard "
                    "set that was indexed"
                )
            known = self._there.filter(pc.is_in(self._there["uid"], uids))
            self._beyond[root] = pa.table(
                {
                    field.name: known[field.name]
                    if field.name in known.column_names
                    else pa.nulls(len(known), field.type)
                    for field in shards.schema
                    if field.name not in BULK
                }
            )
        return self._beyond[root]

    def about_others(self, shards: ShardSet) -> str | None:
        """A line about the objects that a set lacks; None where it has them all."""
        count = len(self.beyond(shards))
        if not count:
            return None
        return (
            f"{count:,} of the {len(self):,} objects of {self.path} are not in "
            f"{shards.storage.root}; conditions know only their uid, source, category and texts"
        )

    @property
    def _there(self) -> pa.Table:
        """What is known of the objects, each once: replaced ones keep their uid in an older row."""
        there = self.ids if self._alive is None else self.ids.filter(pa.array(self._alive))
        return there.drop_columns(["removed"])

    def search_rows(
        self, queries: F32, k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[F32, NDArray[np.int64]]:
        """Scores and rows, each (Q, min(k, size)), best first; equal scores by row number.

        ``allowed`` (rows,) leaves only those rows, whose number is then the size; nothing allowed
        gives no columns. An approximate index looks wider for more than the ten hits that its
        width was tuned for, and everywhere where even so it finds too few. Raises ``InputError``
        when the queries have another width than the index.
        """
        if queries.shape[1] != self.meta.teacher.width:
            raise InputError(
                f"{self.path}: holds vectors of width {self.meta.teacher.width}, the query has "
                f"{queries.shape[1]}; use the teacher of the index"
            )
        queries = np.ascontiguousarray(queries, np.float32)
        if self._alive is not None:
            allowed = self._alive if allowed is None else allowed & self._alive
        k = min(k, len(self) if allowed is None else int(np.count_nonzero(allowed)))
        if not k:  # FAISS takes no k of 0
            empty = (len(queries), 0)
            return np.zeros(empty, np.float32), np.zeros(empty, np.int64)
        scores, rows = self._search(queries, k, allowed)
        order = np.lexsort((rows, -scores), axis=1)
        scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        return scores.astype(np.float32), rows.astype(np.int64)

    def _search(
        self, queries: F32, k: int, allowed: NDArray[np.bool_] | None
    ) -> tuple[F32, NDArray[np.int64]]:
        """``search_rows`` in any order; ``k`` is at most the number of rows that are allowed."""
        library: Any = faiss
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        chosen = None if bits is None else library.IDSelectorBitmap(bits)
        if self.kind == "flat":
            params = library.SearchParameters(sel=chosen)
            found = self.engine.search(queries, k, params=params)
            return found[0], found[1]
        total = int(self.engine.ntotal)
        left = total if allowed is None else int(np.count_nonzero(allowed))
        # The search passes rows that are not allowed: it must look further for as many that are.
        reach = min(_REACH, total / left) * max(1.0, k / RECALL_K)
        width = math.ceil(reach * width_of(self.kind, self.engine))
        # Few lie far apart in the graph, and a walk would miss them.
        few = allowed is not None and left <= FEW_ROWS
        if few or width >= (self.engine.nlist if self.kind == "ivfpq" else total):
            return self._search_all(queries, k, allowed, chosen)
        if self.kind == "ivfpq":
            params = library.SearchParametersIVF(sel=chosen, nprobe=width)
        else:
            params = library.SearchParametersHNSW(sel=chosen, efSearch=width)
        scores, rows = self.engine.search(queries, k, params=params)
        short = np.flatnonzero((rows < 0).any(axis=1))
        if len(short):
            scores[short], rows[short] = self._search_all(queries[short], k, allowed, chosen)
        return scores, rows

    def _search_all(
        self, queries: F32, k: int, allowed: NDArray[np.bool_] | None, chosen: Any
    ) -> tuple[F32, NDArray[np.int64]]:
        """The best ``k`` of all rows that are allowed: by their codes, or the graph's vectors.

        ``chosen`` is the selector of ``allowed``.
        """
        library: Any = faiss
        if self.kind == "ivfpq":
            params = library.SearchParametersIVF(sel=chosen, nprobe=self.engine.nlist)
            found = self.engine.search(queries, k, params=params)
            return found[0], found[1]
        left = np.arange(self.engine.ntotal) if allowed is None else np.flatnonzero(allowed)
        best = np.zeros((len(queries), 0), np.float32)
        rows = np.zeros((len(queries), 0), np.int64)
        for start in range(0, len(left), FEW_ROWS):
            block = left[start : start + FEW_ROWS]
            scores, places = top_k(queries, self.engine.reconstruct_batch(block), k)
            best, rows = np.hstack([best, scores]), np.hstack([rows, block[places]])
            order = np.lexsort((rows, -best), axis=1)[:, :k]
            best, rows = np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)
        return best, rows

    def search(self, query: F32, k: int, allowed: NDArray[np.bool_] | None = None) -> list[Hit]:
        """Best ``k`` objects for one (D,) query; fewer when fewer are there, or ``allowed``."""
        scores, rows = self.search_rows(query[None], k, allowed)
        found = zip(scores[0], rows[0], strict=True)
        hits = [(float(score), int(row)) for score, row in found if row >= 0]
        return [Hit(i, score, self.item(row), row) for i, (score, row) in enumerate(hits, 1)]

    def require_teacher(self, teacher: TeacherInfo, name: str) -> None:
        """Raise ``InputError`` when ``teacher`` (of ``name``) is not that of the index."""
        require_same_teacher(self.meta.teacher, f"index {self.path}", teacher, name)


def build_index(
    embeddings: Embeddings,
    out: Path,
    *,
    wanted: Wanted | None = None,
    queries: Mapping[str, F32] | None = None,
    seed: int = 0,
    trying: Trying | None = None,
) -> dict[str, Any]:
    """Write an index folder and return its manifest.

    ``wanted`` says what kind of index, or what it is to reach. ``queries`` are (Q, D) vectors by
    modality (``text``, ``image``) on which recall and time are measured, beside shapes drawn from
    the rows. ``trying`` as ``choose`` takes it. Atomic; an earlier index at ``out`` is replaced.
    Raises ``InputError`` when ``out`` is anything else, two rows have one uid, or no index reaches
    what is wanted.
    """
    check_target(out, overwrite=True)
    rows = embeddings.rows
    require_distinct(rows.uid, "the embeddings")
    drawn = np.random.default_rng(seed).permutation(len(rows))[:RECALL_QUERIES]
    samples = {"shape": rows.vectors[np.sort(drawn)], **(queries or {})}
    built = choose(rows.vectors, samples, wanted or Wanted(), seed, trying)
    record = {
        "kind": built.plan.kind,
        "settings": built.plan.settings,
        "memory": built.plan.memory,
        "recall_against_exact": built.recall,
        "latency_ms": built.latency_ms,
        "tried": built.tried,
        "updates": [],
    }
    return write_index(out, built.engine, ids_table(rows), embeddings.meta, record)


def ids_table(rows: EmbeddingRows) -> pa.Table:
    """What is kept of each row beside its vector."""
    return pa.table(
        {
            "uid": pa.array(rows.uid, pa.string()),
            "source": pa.array(rows.source, pa.string()),
            "category": pa.array(rows.category, pa.string()),
            "texts": pa.array(rows.texts, pa.list_(pa.string())),
            "removed": pa.array(np.zeros(len(rows), np.bool_)),
        }
    )


def write_index(
    out: Path, engine: Any, ids: pa.Table, meta: EmbeddingsMeta, record: dict[str, Any]
) -> dict[str, Any]:
    """Write an index folder, atomically; ``record`` is what its manifest says of the kind."""
    with atomic_path(out) as folder:
        folder.mkdir(parents=True)
        faiss.write_index(engine, str(folder / FILES[0]))
        pq.write_table(ids, folder / FILES[1])
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "metric": METRIC,
            "count": ids.num_rows - int(np.count_nonzero(ids.column("removed").to_numpy())),
            "rows": ids.num_rows,
            "width": meta.teacher.width,
            **record,
            "sha256": {name: file_hash(folder / name) for name in FILES},
            **asdict(meta),
            "versions": versions("mrd3d", "faiss-cpu", "numpy", "pyarrow"),
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def check_target(out: Path, overwrite: bool) -> None:
    """Raise ``InputError`` where no index may be written; see ``pipeline.common.check_new``."""
    check_new(out, "--out", overwrite, kind="an index", marks=[("manifest.json", FORMAT)])


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an index folder. Raises ``InputError`` when it is missing or another's."""
    manifest_path = path / "manifest.json"
    if not manifest_path.is_file():
        raise InputError(
            f"{path}: no index there (no manifest.json); give the folder that `evaluation index "
            "--out` wrote"
        )
    return parse_record(manifest_path.read_bytes(), str(manifest_path), FORMAT, VERSION, REMEDY)


def indexed_uids(path: Path) -> set[str]:
    """uids of the objects of an index, without its vectors and unchecked.

    Raises ``InputError`` when there is no index.
    """
    read_manifest(path)
    try:
        ids = pq.read_table(path / FILES[1], columns=["uid", "removed"])
        uids, removed = (ids.column(name).to_pylist() for name in ids.column_names)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path / FILES[1]}: missing or damaged; {REMEDY}") from error
    return {uid for uid, gone in zip(uids, removed, strict=True) if not gone}


def load_index(path: Path, *, writable: bool = False) -> Index:
    """Open an index folder after checking it against its manifest.

    The vectors are memory-mapped: what a search does not touch is not held. ``writable`` reads them
    instead, for changes. Raises ``InputError`` when the index is missing, incomplete, damaged or
    newer than this installation. The hash is checked before FAISS parses a byte: its reader trusts
    the sizes in a file.
    """
    record = read_manifest(path)
    manifest_path = path / "manifest.json"
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
    library: Any = faiss
    flags = 0 if writable else library.IO_FLAG_MMAP_IFC
    try:
        engine = library.read_index(str(path / FILES[0]), flags)
        ids = pq.read_table(path / FILES[1])
        ids.validate(full=True)
        columns = ids.column_names  # not UTF-8: a ValueError
    except (RuntimeError, MemoryError, OSError, ValueError, pa.ArrowException) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: damaged ({first[:200]}); {REMEDY}") from error
    if "removed" not in columns:
        raise InputError(f"{path}: of an older version; {REMEDY}")
    if not ids.schema.equals(IDS_SCHEMA, check_metadata=False):
        raise InputError(f"{path / FILES[1]}: columns are not those of an index; {REMEDY}")
    rows = engine.ntotal == ids.num_rows == record.get("rows")
    if not rows or engine.d != meta.teacher.width:
        raise InputError(f"{path}: index, ids and manifest do not fit together; {REMEDY}")
    return Index(path, engine, ids, meta, str(record.get("kind")))


def sample_queries(shards: ShardSet, limit: int = RECALL_QUERIES) -> dict[str, F32]:
    """Up to ``limit`` embeddings of distinct texts, and of images, from all over a shard set.

    Sets lie in the order of their sources, so a part of one is often of one kind.
    """
    columns = ["texts", "text_embeds"] + (["image_embeds"] if shards.manifest.n_views else [])
    groups = _evenly(len(shards.row_groups), QUERY_GROUPS)
    texts, images = [], []
    known: set[str] = set()
    for batch in shards.batches(columns, [shards.row_groups[group] for group in groups]):
        if batch.texts is not None and batch.text_embeds is not None:
            fresh = []
            for place, text in enumerate(text for row in batch.texts for text in row):
                if text not in known:
                    known.add(text)
                    fresh.append(place)
            texts.append(batch.text_embeds[fresh])
        if batch.image_embeds is not None and batch.image_embeds.shape[1]:
            images.append(batch.image_embeds[:, 0])
    found = {}
    for name, parts in (("text", texts), ("image", images)):
        count = sum(map(len, parts))
        if count:
            found[name] = normalise(np.concatenate(parts)[_evenly(count, limit)])
    return found


def _evenly(count: int, limit: int) -> NDArray[np.int64]:
    """Up to ``limit`` of the numbers below ``count``, at equal distances."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(np.int64))
