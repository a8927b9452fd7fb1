"""Counts over a shard set."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb

from pipeline.catalog.connection import connect
from pipeline.shards import ShardSet, compare_contents

_FILES = ("part-", "failures-", "images-")
_QUANTILES = {"min": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}


@dataclass(frozen=True)
class FailureKind:
    """How often objects failed in one way, with the message of one of them."""

    stage: str
    error: str
    count: int
    example_uid: str
    example: str


@dataclass(frozen=True)
class Inspection:
    """What a shard set holds. Counts run from the most frequent to the least."""

    root: str
    rows: int
    duplicates: int  # rows whose uid another row has too; 0 in a sound set
    failures: int  # objects without a row
    parts: int  # files
    finished: bool | None  # as a finished run left it; None: not recorded
    missing_files: int  # lost since then
    bytes_on_disk: int  # of parts, failures, kept images and manifest
    datasets: dict[str, int]
    splits: dict[str, int]  # rows without a split are not in it
    categories: dict[str, int]  # the most frequent ones
    n_categories: int
    rows_without_category: int
    text_sources: dict[str, int]  # texts by source
    rows_without_text: int
    rows_with_color: int
    n_faces: dict[str, int]  # by quantile: min, 25 %, median, 75 %, 95 %, max; {} without rows
    teacher: str
    embed_width: int
    n_points: int
    n_views: int
    image_size: int | None  # pixels; None when the renderer does not tell
    failure_kinds: list[FailureKind]

    @property
    def state(self) -> str:
        """Whether the set is complete, for people."""
        if self.missing_files:
            return f"no, files missing: {self.missing_files}; `pipeline verify` names them"
        if self.finished is None:
            return "not recorded"
        return "yes" if self.finished else "no; run the same command again to complete the set"

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def inspect(root: str | Path, *, top: int = 20) -> Inspection:
    """Counts over the shard set at ``root``, with the ``top`` most frequent categories.

    Raises ``InputError`` when there is no shard set or a file of it is damaged.
    """
    shards = ShardSet.open(root)
    manifest = shards.manifest
    contents = compare_contents(root)
    with connect(shards) as db:
        # Read once, not for each count: of thousands of parts every pass takes seconds.
        db.execute(
            "create temp table read as select uid, dataset, split, category, has_color, n_faces, "
            "len(texts) as n_texts, text_sources from shards"
        )
        rows, unique, without_category, without_text, colored, n_categories = _one(
            db,
            "select count(*), count(distinct uid), count(*) filter (category is null), "
            "count(*) filter (n_texts = 0), count(*) filter (has_color), "
            "count(distinct category) from read",
        )
        kinds = db.execute(
            "select stage, error, count(*), min(uid), arg_min(message, uid) from failures "
            "group by stage, error order by count(*) desc, stage, error"
        ).fetchall()
        (faces,) = _one(db, f"select quantile_disc(n_faces, {list(_QUANTILES.values())}) from read")
        return Inspection(
            root=str(root),
            rows=rows,
            duplicates=rows - unique,
            failures=sum(kind[2] for kind in kinds),
            parts=len(shards.parts),
            finished=None if contents is None else contents.finished,
            missing_files=0 if contents is None else len(contents.missing),
            bytes_on_disk=sum(
                size
                for name, size in shards.storage.sizes().items()
                if name in ("manifest.json", "contents.json")
                or (name.startswith(_FILES) and name.endswith(".parquet"))
            ),
            datasets=_counts(db, "select dataset as key from read"),
            splits=_counts(db, "select split as key from read"),
            categories=_counts(db, "select category as key from read", top),
            n_categories=n_categories,
            rows_without_category=without_category,
            text_sources=_counts(db, "select unnest(text_sources) as key from read"),
            rows_without_text=without_text,
            rows_with_color=colored,
            n_faces=dict(zip(_QUANTILES, faces, strict=True)) if faces else {},
            teacher=manifest.teacher.label,
            embed_width=manifest.teacher.width,
            n_points=manifest.n_points,
            n_views=manifest.n_views,
            image_size=_image_size(manifest.renderer),
            failure_kinds=[FailureKind(*kind) for kind in kinds],
        )


def _one(db: duckdb.DuckDBPyConnection, sql: str) -> Any:
    return db.execute(sql).fetchone()


def _counts(db: duckdb.DuckDBPyConnection, keys: str, top: int | None = None) -> dict[str, int]:
    limit = "" if top is None else f"limit {int(top)}"
    found = db.execute(
        f"select key, count(*) from ({keys}) where key is not null "
        f"group by key order by count(*) desc, key {limit}"
    ).fetchall()
    return dict(found)


def _image_size(renderer: dict[str, Any]) -> int | None:
    settings = renderer.get("settings")
    size = settings.get("image_size") if isinstance(settings, dict) else None
    return size if isinstance(size, int) else None
