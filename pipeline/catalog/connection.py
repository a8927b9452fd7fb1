"""DuckDB over a shard set: the views, and one SELECT on them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from pipeline.catalog.columns import open_parts
from pipeline.common import InputError
from pipeline.shards import ShardSet
from pipeline.shards.schema import row_schema

T = TypeVar("T")

BULK = ("xyz", "rgb", "image_embeds", "thumbnail_embed", "text_embeds")
_LOCK = "set lock_configuration = true"
# The fault of the statement. Any other error of DuckDB may come from a damaged part.
_STATEMENT_ERRORS = (
    duckdb.ParserException,
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.ConversionException,
    duckdb.PermissionException,
)


def query(root: str | Path, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Run one SELECT on the shard set at ``root``: column names, and rows as Python values.

    Tables: ``shards`` (every column but the bulk ones), ``shards_full`` (with xyz, rgb and the
    embeddings as raw bytes) and ``failures`` (one row for each object that failed and has no row
    in ``shards``). The statement cannot write, open files or reach the network.

    Raises ``InputError`` with DuckDB's message when the statement is wrong.
    """
    try:
        with connect(ShardSet.open(root)) as db:
            statements = db.extract_statements(sql)
            readable = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
            if len(statements) != 1 or statements[0].type not in readable:
                raise InputError(
                    "query: not one SELECT statement; ask for example "
                    '"select category, count(*) from shards group by category"'
                )
            return interruptible(db, lambda: _fetched(db.execute(statements[0])))
    except duckdb.Error as error:
        raise InputError(
            f"query: {one_line(error)}; the tables are shards, shards_full and failures"
        ) from error


def _fetched(result: duckdb.DuckDBPyConnection) -> tuple[list[str], list[tuple[Any, ...]]]:
    rows = result.fetchall()
    names: list[str] = []
    for column in result.description or []:
        # Of a join two may have one name; in JSON the second would take the place of the first.
        others = (f"{column[0]}_{number}" for number in count(1))
        names.append(next(name for name in chain([column[0]], others) if name not in names))
    return names, rows


def interruptible(db: duckdb.DuckDBPyConnection, statement: Callable[[], T]) -> T:
    """What ``statement`` gives; Ctrl-C ends it at once.

    DuckDB itself looks for signals between large pieces of work, which may take minutes.
    """
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(statement)
        try:
            return running.result()
        except KeyboardInterrupt:
            running.cancel()
            # Again and again: what comes before the statement has begun is not heard.
            while not running.done():
                db.interrupt()
                wait([running], timeout=0.1)
            raise


def one_line(error: duckdb.Error) -> str:
    """DuckDB's message without the excerpt of the statement that it draws below."""
    return " ".join(str(error).split("\n\nLINE ")[0].split())


@contextmanager
def connect(shards: ShardSet) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that sees the views of ``query`` and nothing else of the machine."""
    open_parts(shards)  # so that damage is told as such
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
    bulk = ", ".join(name for name in BULK if name in row_schema(manifest).names)
    with _database() as db:
        try:
            db.register("shards_full", dataset)
            db.register("failures_all", shards.failures_table())
            db.execute(f"create view shards as select * exclude ({bulk}) from shards_full")
            # An object that failed, and again or not at all in a later try, counts once or not.
            db.execute(
                "create view failures as select distinct on (uid) * from failures_all "
                "where uid not in (select uid from shards_full) "
                "order by uid, stage, error, message"
            )
            db.execute(_LOCK)
            yield db
        except duckdb.Error as error:
            if not isinstance(error, _STATEMENT_ERRORS):
                _tell_damage(shards)
            raise


@contextmanager
def table_database(name: str, table: pa.Table) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that sees one table and nothing else of the machine."""
    with _database() as db:
        db.register(name, table)
        db.execute(_LOCK)
        yield db


@contextmanager
def _database() -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty one that reaches no file and no network; ``_LOCK`` it before a user's SQL."""
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
            yield db
        except RuntimeError as error:
            if str(error) == "Query interrupted":  # DuckDB's word for Ctrl-C
                raise KeyboardInterrupt from error
            raise
        finally:
            db.close()


def _tell_damage(shards: ShardSet) -> None:
    """Read everything, so that a damaged part raises the ``InputError`` that names it."""
    for _ in shards.batches():
        pass
