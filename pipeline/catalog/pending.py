"""Which records of a source a shard set does not hold yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import duckdb
import pyarrow as pa

from pipeline.catalog.connection import connect
from pipeline.common import InputError
from pipeline.datasets.base import Record
from pipeline.shards import ShardSet

_FIRST_CHUNK = 1024  # the first pending record must not wait for a long listing


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
    for record, _ in pending_sets([root], records, retry_failures=retry_failures, chunk=chunk):
        yield record


def pending_sets(
    roots: Sequence[str | Path | None],
    records: Iterator[Record],
    *,
    retry_failures: bool = False,
    chunk: int = 65_536,
) -> Iterator[tuple[Record, tuple[int, ...]]]:
    """As ``pending`` for several sets: each record, and the places of the sets that lack it.

    A record that every set holds is left out. None stands for a set that is not there yet.
    """
    with ExitStack() as stack:
        dbs = []
        for root in roots:
            if root is None:
                db = stack.enter_context(duckdb.connect(":memory:"))
                db.execute("create table done (uid varchar)")
            else:
                db = stack.enter_context(connect(ShardSet.open(root)))
                db.execute("create table done as select uid from shards")
                if not retry_failures:
                    db.execute("insert into done select uid from failures")
            dbs.append(db)
        dbs[0].execute("create table seen (uid varchar)")
        size = min(_FIRST_CHUNK, chunk)
        while batch := list(islice(records, size)):
            uids = _uid_table([record.uid for record in batch])
            lacking: list[list[int]] = [[] for _ in batch]
            for place, db in enumerate(dbs):
                db.register("batch", uids)
                if place == 0:
                    _refuse_duplicates(db)
                    db.execute("insert into seen select uid from batch")
                left = db.execute("select i from batch anti join done using (uid)").fetchnumpy()
                db.unregister("batch")
                for index in left["i"]:
                    lacking[index].append(place)
            for record, places in zip(batch, lacking, strict=True):
                if places:
                    yield record, tuple(places)
            size = min(2 * size, chunk)


def failed_uids(root: str | Path) -> set[str]:
    """Uids of objects that failed and that no later try made a row of."""
    with connect(ShardSet.open(root)) as db:
        return {uid for (uid,) in db.execute("select uid from failures").fetchall()}


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
