"""A shard set of the rows that a condition holds for."""

from __future__ import annotations

import json
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

    With ``seconds``, for conditions of strangers: it may compare, compute and look into texts, but
    call nothing that could take much memory, or time that no interruption ends.

    Raises ``InputError`` with DuckDB's message when it is wrong, for what strangers may not ask,
    and where it takes more than ``seconds``.
    """
    if not where.strip():
        raise InputError(f'--where {where!r}: no condition; give one such as "n_faces < 100000"')
    columns: list[str] = []
    try:
        with opened as db:
            view = db.view(table)
            columns = view.columns
            # A parsed expression, not text put into a statement: brackets and comments in it
            # cannot change the rest, and a second one is refused.
            condition = duckdb.SQLExpression(where)
            if seconds is not None:
                _check_modest(db, where)
            late = threading.Event()

            def stop() -> None:
                late.set()
                db.interrupt()

            timer = threading.Timer(seconds or 0, stop)
            if seconds is not None:
                timer.start()
            # Rows are found by uid; a query has no order to rely on.
            try:
                return set(view.filter(condition).project("uid").fetchnumpy()["uid"].tolist())
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


# What conditions of strangers may call, by DuckDB's names; operators are functions to it.
_MODEST = frozenset(
    [
        *("+", "-", "*", "/", "//", "%", "**", "^", "||", "~~", "!~~", "~~*", "!~~*", "~~~"),
        *("like_escape", "not_like_escape", "ilike_escape", "not_ilike_escape"),
        *("abs", "round", "floor", "ceil", "ln", "log", "sqrt", "greatest", "least"),
        *("lower", "upper", "lcase", "ucase", "length", "len", "strlen", "strip_accents"),
        *("trim", "ltrim", "rtrim", "contains", "starts_with", "ends_with", "prefix", "suffix"),
        *("regexp_matches", "regexp_full_match", "list_value", "list_extract", "array_extract"),
        *("array_contains", "array_has", "array_length", "list_contains", "list_has"),
        *("list_has_any", "list_has_all"),
    ]
)


def _check_modest(db: duckdb.DuckDBPyConnection, where: str) -> None:
    """Raise ``InputError`` unless an expression calls nothing but ``_MODEST`` on the columns.

    DuckDB works out constants such as ``len(range(2000000000))`` before there is a query that it
    could interrupt, and beyond its limit of memory.
    """
    ((text,),) = db.execute("select json_serialize_sql(?)", [f"select\n{where}\n"]).fetchall()
    pending: list[object] = [json.loads(text)["statements"][0]["node"]["select_list"]]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending += node
        elif isinstance(node, dict):
            pending += node.values()
            name = str(node.get("function_name", "")).lower()
            # An array has its full length in every row, also where it is NULL.
            kind = str(node.get("type_name" if node.get("class") == "TYPE" else "class")).lower()
            if kind in ("subquery", "window", "lambda", "array") or (name and name not in _MODEST):
                told = f"{name} is no function" if name else f"{kind} is nothing"
                raise InputError(
                    f"--where {where}: {told} that a condition may use here; compare columns, or "
                    "use functions of text such as lower, contains and like"
                )


def matching(source: ShardSet, where: str) -> Mask:
    """(B,) for every row, in reading order, whether the expression is true.

    Raises ``InputError`` with DuckDB's message when it is wrong.
    """
    wanted = uids_where(connect(source), "shards", where)
    uids = column(source, "uid").to_pylist()
    return np.fromiter((uid in wanted for uid in uids), np.bool_, len(uids))
