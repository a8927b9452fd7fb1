"""What a shard set is like beyond its counts: balance, distributions, duplicates, outliers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.catalog.columns import column, open_parts
from pipeline.catalog.connection import connect
from pipeline.catalog.features import features, mean_images, mean_texts
from pipeline.catalog.grouping import GroupSizes, same_file, sizes
from pipeline.catalog.neighbours import near_groups, nearest
from pipeline.catalog.summary import Inspection, inspect
from pipeline.common import InputError
from pipeline.shards import ShardSet

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Db = duckdb.DuckDBPyConnection

REFERENCE = 20_000  # objects among which nearest neighbours are looked for
FACE_BINS = 4  # per factor of ten
MAX_WORDS = 40  # longer texts are in the last column
SHOWN_CLASSES, SHOWN_GROUPS, SHOWN_MEMBERS, SHOWN_OUTLIERS, SHOWN_TEXTS = 40, 16, 8, 12, 12


@dataclass(frozen=True)
class TextSource:
    """Texts of one source."""

    name: str
    texts: int
    objects: int
    distinct: int
    mean_words: float
    max_words: int


@dataclass(frozen=True)
class Member:
    """An object of a group, or an outlier."""

    row: int  # in reading order
    uid: str
    category: str | None
    split: str | None
    value: float  # a cosine; what of is told where it stands
    nearest_uid: str | None = None


@dataclass(frozen=True)
class DuplicateGroups:
    """Groups of objects that are the same, or nearly."""

    sizes: GroupSizes
    across_splits: int  # groups with objects in more than one split
    across_categories: int
    shown: list[list[Member]]  # the largest groups; their first members. Value: to the first one
    shown_sizes: list[int]


@dataclass(frozen=True)
class Analysis:
    """Everything that the page shows."""

    inspection: Inspection
    class_counts: list[int]  # every category's objects, the largest first
    effective_classes: float  # exp of the entropy: as many classes of one size
    faces: dict[int, int]  # objects by floor(FACE_BINS * log10(faces))
    rows_without_faces: int  # clouds
    colors: dict[str, tuple[int, int]]  # dataset: objects with colour, without
    words: list[int]  # texts by number of words, 0 to MAX_WORDS and more
    text_sources: list[TextSource]
    repeated_texts: list[tuple[str, int]]  # texts that several objects have, the most frequent
    measure: str
    threshold: float
    near: DuplicateGroups
    same_files: DuplicateGroups
    nearest: F32  # (B,) cosine to the nearest other object
    reference: int  # how many objects that was looked for among
    lonely: list[Member]  # lowest first
    agreement: F32  # (A,) cosine of mean image and mean text embedding; objects that have both
    disagreeing: list[Member]


def analyse(root: str | Path, *, near: float | None = None) -> Analysis:
    """Look at all of the set at ``root``; ``near`` is the least cosine of near-duplicates.

    Raises ``InputError`` for a set without rows, a ``near`` that is no cosine, and damaged sets.
    """
    if near is not None and not 0 < near <= 1:
        raise InputError(f"--near {near:g}: a cosine above 0 and up to 1, such as 0.99")
    shards = ShardSet.open(root)
    open_parts(shards)
    if not len(shards):
        raise InputError(f"{root}: holds no rows, so there is nothing to draw")
    objects = _Objects(shards)
    with features(shards) as found:
        threshold = found.threshold if near is None else near
        labels = near_groups(found.vectors, threshold)
        among = np.arange(len(shards))
        if len(among) > REFERENCE:
            among = np.sort(np.random.default_rng(0).choice(among, REFERENCE, replace=False))
        cosines, others = nearest(found.vectors, among)
        near_duplicates = objects.groups(labels, found.vectors)
        same_files = objects.groups(same_file(shards), found.vectors)
        measure = found.measure
    lonely = np.argsort(cosines, kind="stable")[:SHOWN_OUTLIERS]
    agreement = _agreement(shards)
    there = np.flatnonzero(np.isfinite(agreement))
    lowest = there[np.argsort(agreement[there], kind="stable")[:SHOWN_OUTLIERS]]
    with connect(shards) as db:
        class_counts = _class_counts(db)
        faces, without = _faces(db)
        return Analysis(
            inspection=inspect(root, top=SHOWN_CLASSES),
            class_counts=class_counts,
            effective_classes=_effective(class_counts),
            faces=faces,
            rows_without_faces=without,
            colors=_colors(db),
            words=_words(db),
            text_sources=_text_sources(db),
            repeated_texts=_repeated_texts(db),
            measure=measure,
            threshold=threshold,
            near=near_duplicates,
            same_files=same_files,
            nearest=cosines,
            reference=len(among),
            lonely=[objects.member(int(i), float(cosines[i]), int(others[i])) for i in lonely],
            agreement=agreement[there],
            disagreeing=[objects.member(int(i), float(agreement[i])) for i in lowest],
        )


class _Objects:
    """Who the rows of a set are."""

    def __init__(self, shards: ShardSet) -> None:
        self.uids, self.categories, self.splits = (
            column(shards, name) for name in ("uid", "category", "split")
        )

    def member(self, row: int, value: float, other: int = -1) -> Member:
        return Member(
            row,
            self.uids[row].as_py(),
            self.categories[row].as_py(),
            self.splits[row].as_py(),
            value,
            self.uids[other].as_py() if other >= 0 else None,
        )

    def groups(self, labels: I64, vectors: F32) -> DuplicateGroups:
        """The groups of equal labels, the largest first."""
        kinds, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        largest = [int(kind) for kind in order[:SHOWN_GROUPS] if counts[kind] > 1]
        shown = []
        for kind in largest:
            rows = np.flatnonzero(inverse == kind)[:SHOWN_MEMBERS]
            cosines = np.clip(vectors[rows] @ vectors[rows[0]], -1, 1)
            shown.append(
                [self.member(int(r), float(c)) for r, c in zip(rows, cosines, strict=True)]
            )
        return DuplicateGroups(
            sizes=sizes(labels),
            across_splits=_across(inverse, len(kinds), self.splits),
            across_categories=_across(inverse, len(kinds), self.categories),
            shown=shown,
            shown_sizes=[int(counts[kind]) for kind in largest],
        )


def _across(group: I64, count: int, values: pa.Array) -> int:
    """How many groups hold more than one value; rows without a value count for none."""
    codes = pc.fill_null(values.dictionary_encode().indices.cast(pa.int64()), -1)
    codes = codes.to_numpy(zero_copy_only=False)
    told = codes >= 0
    pairs = np.unique(np.stack([group[told], codes[told]]), axis=1)
    return int((np.bincount(pairs[0], minlength=count) > 1).sum())


def _class_counts(db: Db) -> list[int]:
    found = db.execute(
        "select count(*) from shards where category is not null group by category order by 1 desc"
    ).fetchall()
    return [count for (count,) in found]


def _effective(counts: list[int]) -> float:
    total = sum(counts)
    return math.exp(-sum(n / total * math.log(n / total) for n in counts)) if total else 0.0


def _faces(db: Db) -> tuple[dict[int, int], int]:
    found = db.execute(
        f"select floor({FACE_BINS} * log10(n_faces))::int as bin, count(*) from shards "
        "where n_faces > 0 group by bin order by bin"
    ).fetchall()
    without = db.execute("select count(*) from shards where n_faces = 0").fetchall()[0][0]
    return dict(found), without


def _colors(db: Db) -> dict[str, tuple[int, int]]:
    found = db.execute(
        "select dataset, count(*) filter (has_color), count(*) filter (not has_color) "
        "from shards group by dataset order by count(*) desc, dataset"
    ).fetchall()
    return {name: (colored, plain) for name, colored, plain in found}


_TEXTS = (
    "(select uid, text, source, len(regexp_extract_all(text, '\\S+')) as words from "
    "(select uid, unnest(texts) as text, unnest(text_sources) as source from shards))"
)


def _words(db: Db) -> list[int]:
    found = db.execute(
        f"select least(words, {MAX_WORDS}) as words, count(*) from {_TEXTS} group by 1"
    ).fetchall()
    by_words = dict(found)
    return [by_words.get(words, 0) for words in range(MAX_WORDS + 1)]


def _text_sources(db: Db) -> list[TextSource]:
    found = db.execute(
        "select source, count(*), count(distinct uid), count(distinct text), avg(words), max(words)"
        f" from {_TEXTS} group by source order by count(*) desc, source"
    ).fetchall()
    return [TextSource(*row) for row in found]


def _repeated_texts(db: Db) -> list[tuple[str, int]]:
    return db.execute(
        f"select text, count(distinct uid) as objects from {_TEXTS} group by text "
        f"having objects > 1 order by objects desc, text limit {SHOWN_TEXTS}"
    ).fetchall()


def _agreement(shards: ShardSet) -> F32:
    """(B,) cosine of each object's mean image and mean text embedding; NaN where one lacks."""
    result = np.full(len(shards), np.nan, np.float32)
    if shards.manifest.n_views == 0:
        return result
    start = 0
    for batch in shards.batches(["image_embeds", "text_embeds"]):
        texts = mean_texts(batch)
        cosine = np.einsum("bd,bd->b", mean_images(batch), texts)
        cosine[~texts.any(axis=1)] = np.nan
        result[start : start + len(batch)] = cosine
        start += len(batch)
    return result
