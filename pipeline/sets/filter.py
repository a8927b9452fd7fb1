"""A shard set of the rows that a condition holds for."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from pathlib import Path

import duckdb
import numpy as np

from pipeline.catalog.columns import column
from pipeline.catalog.connection import connect, one_line
from pipeline.common import InputError
from pipeline.console import ProgressBar
from pipeline.sets.writing import Mask, Written, check_out, derived, new_set
from pipeline.shards import ShardSet
from pipeline.shards.storage import Storage


def filter_set(
    shards: str | Path, where: str, out: str | Path, *, overwrite: bool = False
) -> Written:
    """Write the rows of ``shards`` for which ``where`` is true to a new set, in their order.

    ``where`` is an SQL expression over the columns of the view ``shards`` (see
    ``pipeline.catalog.query``): it cannot read files or change anything. Failures are left behind:
    an object without a row has no columns that a condition could be about.

    Raises ``InputError`` for a wrong expression, one that leaves no row, and as ``new_set`` does.
    """
    source = ShardSet.open(shards)
    check_out(Storage.at(out), [source], overwrite)
    keep = matching(source, where)
    if not keep.any():
        raise InputError(
            f"--where {where}: no row of {len(keep)} is left; "
            'look with `pipeline query SHARDS "select * from shards limit 5"`'
        )
    manifest = derived(source.manifest, {"step": "filter", "where": where})
    with (
        new_set(out, manifest, [source], overwrite=overwrite) as writer,
        ProgressBar("filter", len(keep), "objects") as bar,
    ):
        writer.copy(source, bar, keep)
        return writer.finish()


def uids_where(
    opened: AbstractContextManager[duckdb.DuckDBPyConnection],
    table: str,
    where: str,
    seconds: float | None = None,
) -> set[str]:
    """Uids of the rows of a table of the database for which the expression is true.

    Raises ``InputError`` with DuckDB's message when it is wrong, and where it takes more than
    ``seconds``.
    """
    if not where.strip():
        raise InputError(f'--where {where!r}: no condition; give one such as "n_faces < 100000"')
    columns: list[str] = []
    try:
        with opened as db:
            view = db.view(table)
            columns = view.columns
            late = threading.Event()

            def stop() -> None:
                late.set()
                db.interrupt()

            timer = threading.Timer(seconds or 0, stop)
            if seconds is not None:
                timer.start()
            # A parsed expression, not text put into a statement: brackets and comments in it
            # cannot change the rest. Rows are found by uid; a query has no order to rely on.
            try:
                return set(view.filter(where).project("uid").fetchnumpy()["uid"].tolist())
            except (duckdb.Error, RuntimeError):
                if late.is_set():
                    raise InputError(
                        f"--where {where}: takes more than {seconds:g} s; ask for something simpler"
                    ) from None
                raise
            finally:
                timer.cancel()
    except duckdb.Error as error:
        raise InputError(
            f"--where {where}: {one_line(error)}; the columns are {', '.join(columns)}"
        ) from error


def matching(source: ShardSet, where: str) -> Mask:
    """(B,) for every row, in reading order, whether the expression is true.

    Raises ``InputError`` with DuckDB's message when it is wrong.
    """
    wanted = uids_where(connect(source), "shards", where)
    uids = column(source, "uid").to_pylist()
    return np.fromiter((uid in wanted for uid in uids), np.bool_, len(uids))
