"""DuckDB over a shard set: what it holds, SQL on its metadata, and what is still to be done.

DuckDB never opens a file here. The parts are checked by ``ShardSet`` and handed over as one lazy
Arrow dataset, so local folders and remote stores behave alike, only the columns that a query
names are read, and the connection can be cut off from the outside world altogether.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from pipeline.common import InputError
from pipeline.datasets.base import Record
from pipeline.shards import ShardSet, clean_orphans
from pipeline.shards.schema import row_schema
from pipeline.shards.storage import Storage

_BULK = ("xyz", "rgb", "image_embeds", "thumbnail_embed", "text_embeds")
_FILES = ("part-", "failures-", "images-")
_FIRST_CHUNK = 1024  # the first pending record must not wait for a long listing
_QUANTILES = {"min": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}
# The fault of the statement. Any other error of DuckDB may come from a damaged part.
_STATEMENT_ERRORS = (
    duckdb.ParserException,
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.ConversionException,
    duckdb.PermissionException,
)


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

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def inspect(root: str | Path, *, top: int = 20) -> Inspection:
    """Counts over the shard set at ``root``, with the ``top`` most frequent categories.

    Raises ``InputError`` when there is no shard set or a file of it is damaged.
    """
    shards = ShardSet.open(root)
    manifest = shards.manifest
    with _connect(shards) as db:
        rows, unique, without_category, without_text, colored, n_categories = _one(
            db,
            "select count(*), count(distinct uid), count(*) filter (category is null), "
            "count(*) filter (len(texts) = 0), count(*) filter (has_color), "
            "count(distinct category) from shards",
        )
        kinds = db.execute(
            "select stage, error, count(*), min(uid), arg_min(message, uid) from failures "
            "group by stage, error order by count(*) desc, stage, error"
        ).fetchall()
        (faces,) = _one(
            db, f"select quantile_disc(n_faces, {list(_QUANTILES.values())}) from shards"
        )
        return Inspection(
            root=str(root),
            rows=rows,
            duplicates=rows - unique,
            failures=sum(kind[2] for kind in kinds),
            parts=len(shards.parts),
            bytes_on_disk=sum(
                size
                for name, size in shards.storage.sizes().items()
                if name == "manifest.json"
                or (name.startswith(_FILES) and name.endswith(".parquet"))
            ),
            datasets=_counts(db, "select dataset as key from shards"),
            splits=_counts(db, "select split as key from shards"),
            categories=_counts(db, "select category as key from shards", top),
            n_categories=n_categories,
            rows_without_category=without_category,
            text_sources=_counts(db, "select unnest(text_sources) as key from shards"),
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


def query(root: str | Path, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Run one SELECT on the shard set at ``root``: column names, and rows as Python values.

    Tables: ``shards`` (every column but the bulk ones), ``shards_full`` (with xyz, rgb and the
    embeddings as raw bytes) and ``failures`` (one row for each object that failed and has no row
    in ``shards``). The statement cannot write, open files or reach the network.

    Raises ``InputError`` with DuckDB's message when the statement is wrong.
    """
    try:
        with _connect(ShardSet.open(root)) as db:
            statements = db.extract_statements(sql)
            readable = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
            if len(statements) != 1 or statements[0].type not in readable:
                raise InputError(
                    "query: not one SELECT statement; ask for example "
                    '"select category, count(*) from shards group by category"'
                )
            result = db.execute(statements[0])
            rows = result.fetchall()
            return [column[0] for column in result.description or []], rows
    except duckdb.Error as error:
        # Without the excerpt of the statement that DuckDB draws below its message.
        message = " ".join(str(error).split("\n\nLINE ")[0].split())
        raise InputError(
            f"query: {message}; the tables are shards, shards_full and failures"
        ) from error


def pending(
    root: str | Path,
    records: Iterator[Record],
    *,
    retry_failures: bool = False,
    chunk: int = 65_536,
) -> Iterator[Record]:
    """Those ``records`` that the set holds neither as a row nor as a failure, in their order.

    With ``retry_failures`` an object that failed before is to be done again. Records pass through
    in chunks that grow to ``chunk``; only uids, which DuckDB holds and can spill to disk, are kept
    for longer. What is done is looked up once, at the first ``next``.

    Raises ``InputError`` that names the uid when a source yields it twice or when it is not valid
    Unicode, and what ``ShardSet.open`` raises.
    """
    with _connect(ShardSet.open(root)) as db:
        db.execute("create table done as select uid from shards")
        if not retry_failures:
            db.execute("insert into done select uid from failures")
        db.execute("create table seen (uid varchar)")
        size = min(_FIRST_CHUNK, chunk)
        while batch := list(islice(records, size)):
            db.register("batch", _uid_table([record.uid for record in batch]))
            _refuse_duplicates(db)
            db.execute("insert into seen select uid from batch")
            left = db.execute(
                "select i from batch anti join done using (uid) order by i"
            ).fetchnumpy()["i"]
            db.unregister("batch")
            for index in left:
                yield batch[index]
            size = min(2 * size, chunk)


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


@contextmanager
def _connect(shards: ShardSet) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that sees the views of ``query`` and nothing else of the machine."""
    _ = shards.row_groups  # opens and checks every part, so that damage is told as such
    manifest = shards.manifest
    dataset = pads.dataset(
        [shards.storage.join(part) for part in shards.parts],
        schema=row_schema(manifest),
        format=pads.ParquetFileFormat(
            default_fragment_scan_options=pads.ParquetFragmentScanOptions(
                page_checksum_verification=True
            )
        ),
        filesystem=shards.storage.filesystem,
    )
    bulk = ", ".join(name for name in _BULK if name in row_schema(manifest).names)
    with tempfile.TemporaryDirectory(prefix="mrd3d-") as spill:
        db = duckdb.connect(
            ":memory:",
            config={
                "enable_external_access": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "python_enable_replacements": False,  # no look at variables of this process
                "temp_directory": spill,
            },
        )
        try:
            db.execute("set enable_progress_bar = false")
            db.register("shards_full", dataset)
            db.register("failures_all", shards.failures_table())
            db.execute(f"create view shards as select * exclude ({bulk}) from shards_full")
            # An object that failed, and again or not at all in a later try, counts once or not.
            db.execute(
                "create view failures as select distinct on (uid) * from failures_all "
                "where uid not in (select uid from shards_full) "
                "order by uid, stage, error, message"
            )
            db.execute("set lock_configuration = true")
            yield db
        except duckdb.Error as error:
            if not isinstance(error, _STATEMENT_ERRORS):
                _tell_damage(shards)
            raise
        finally:
            db.close()


def _tell_damage(shards: ShardSet) -> None:
    """Read everything, so that a damaged part raises the ``InputError`` that names it."""
    for _ in shards.batches():
        pass


def _uid_table(uids: list[str]) -> pa.Table:
    try:
        column = pa.array(uids, pa.string())
    except UnicodeEncodeError as error:
        uid = str(error.object)
        raise InputError(f"{uid!r}: this uid is not valid Unicode; rename the object") from error
    return pa.table({"i": pa.array(range(len(uids)), pa.int64()), "uid": column})


def _refuse_duplicates(db: duckdb.DuckDBPyConnection) -> None:
    twice = db.execute(
        "select uid from (select uid, min(i) as i from batch group by uid having count(*) > 1 "
        "union all select uid, i from batch semi join seen using (uid)) order by i limit 1"
    ).fetchone()
    if twice:
        raise InputError(
            f"{twice[0]}: the source yields this uid twice; give every object a name of its own"
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
