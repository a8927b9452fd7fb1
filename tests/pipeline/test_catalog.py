"""The catalogue against plain Python over the same rows."""

from __future__ import annotations

import math
import os
import re
import signal
import threading
import time
import tracemalloc
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalog import (
    clean_temporaries,
    connection,
    failed_uids,
    inspect,
    pending,
    query,
)
from pipeline.catalog.analysis import _across
from pipeline.catalog.connection import connect
from pipeline.common import InputError
from pipeline.datasets.base import Record
from pipeline.shards import Failure, Row, ShardSet, create_or_open, write_failures, write_part
from tests.pipeline.shard_tools import make_manifest, make_row, make_set

MANIFEST = make_manifest()


def record(uid: str) -> Record:
    return Record(uid=uid, dataset="toy", source=f"{uid}.glb", key=uid)


def failure(uid: str, error: str = "Empty", message: str = "no faces") -> Failure:
    return Failure(uid, "toy", f"{uid}.glb", "load", error, message)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """230 rows: few categories, some without category, split, text or colour."""
    made = []
    for i in range(230):
        row = make_row(MANIFEST, f"toy/{i:03d}", n_texts=i % 4)
        made.append(
            replace(
                row,
                dataset="toy" if i % 5 else "other",
                category=None if i % 7 == 0 else row.category,
                split=[None, "train", "val"][i % 3],
            )
        )
    return made


@pytest.fixture(scope="module", params=["local", "memory"])
def root(
    request: pytest.FixtureRequest, rows: list[Row], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The rows as a set of two parts with 30 failures, in a folder and in an fsspec store."""
    where = str(tmp_path_factory.mktemp("catalog"))
    if request.param == "memory":
        where = f"memory://{uuid.uuid4().hex}"
    make_set(where, MANIFEST, [rows[:150], rows[150:]])
    write_failures(where, [failure(f"bad/{i:02d}", "Empty", f"m{i}") for i in range(20)])
    write_failures(where, [failure(f"bad/{i:02d}", "Timeout") for i in range(20, 30)])
    return where


def test_inspect__counts_are_those_of_plain_python(root: str, rows: list[Row]) -> None:
    found = inspect(root)
    categories = Counter(row.category for row in rows if row.category is not None)
    assert found.rows == 230
    assert found.duplicates == 0
    assert found.parts == 2
    assert found.datasets == {"toy": 184, "other": 46}
    assert found.splits == dict(Counter(row.split for row in rows if row.split))
    assert list(found.categories.items()) == sorted(
        categories.items(), key=lambda item: (-item[1], item[0])
    )
    assert found.n_categories == len(categories) == 3
    assert found.rows_without_category == sum(row.category is None for row in rows)
    sources = Counter(source for row in rows for source in row.text_sources)
    assert found.text_sources == dict(sources)
    assert found.rows_without_text == sum(not row.texts for row in rows)
    assert found.rows_with_color == sum(row.has_color for row in rows)
    faces = sorted(row.n_faces for row in rows)
    assert list(found.n_faces.values()) == [
        faces[max(math.ceil(q * len(faces)) - 1, 0)] for q in (0, 0.25, 0.5, 0.75, 0.95, 1)
    ]
    assert (found.teacher, found.embed_width) == ("toy/v1", 4)
    assert (found.n_points, found.n_views, found.image_size) == (8, 2, 224)


def test_inspect__failures_by_kind_with_an_example(root: str) -> None:
    found = inspect(root)
    assert found.failures == 30
    assert [(kind.stage, kind.error, kind.count) for kind in found.failure_kinds] == [
        ("load", "Empty", 20),
        ("load", "Timeout", 10),
    ]
    assert found.failure_kinds[0].example_uid == "bad/00"
    assert found.failure_kinds[0].example == "m0"


def test_inspect__top_limits_the_categories_alone(root: str) -> None:
    found = inspect(root, top=1)
    assert list(found.categories.items()) == list(inspect(root).categories.items())[:1]
    assert found.n_categories == 3


def test_inspect__bytes_are_those_of_the_folder(tmp_path: Path, rows: list[Row]) -> None:
    make_set(tmp_path, MANIFEST, [rows[:10]])
    expected = sum(path.stat().st_size for path in tmp_path.iterdir())
    (tmp_path / "notes.txt").write_text("not of the set")
    assert inspect(tmp_path).bytes_on_disk == expected


def test_inspect__empty_set(tmp_path: Path) -> None:
    create_or_open(tmp_path, make_manifest(renderer={"name": "none"}, n_views=0))
    found = inspect(tmp_path)
    assert (found.rows, found.failures, found.parts) == (0, 0, 0)
    assert (found.n_faces, found.categories, found.failure_kinds) == ({}, {}, [])
    assert found.image_size is None


def test_inspect__rows_written_twice_are_told(tmp_path: Path, rows: list[Row]) -> None:
    make_set(tmp_path, MANIFEST, [rows[:10], rows[8:12]])
    assert (inspect(tmp_path).rows, inspect(tmp_path).duplicates) == (14, 2)


def test_inspect__object_that_failed_and_then_succeeded_is_no_failure(
    tmp_path: Path, rows: list[Row]
) -> None:
    make_set(tmp_path, MANIFEST, [rows[:10]])
    write_failures(tmp_path, [failure(rows[0].uid), failure("bad/1", "A"), failure("bad/1", "B")])
    assert inspect(tmp_path).failures == 1
    assert query(tmp_path, "select uid, error from failures")[1] == [("bad/1", "A")]
    assert failed_uids(tmp_path) == {"bad/1"}


def test_query__star_is_readable_and_blobs_are_in_the_full_view(root: str, rows: list[Row]) -> None:
    columns, found = query(root, "select * from shards where uid = 'toy/042'")
    row = rows[42]
    assert dict(zip(columns, found[0], strict=True)) == {
        name: getattr(row, name)
        for name in vars(row)
        if name not in ("xyz", "rgb", "image_embeds", "thumbnail_embed", "text_embeds")
    }
    columns, found = query(root, "select rgb, text_embeds from shards_full where uid = 'toy/042'")
    assert columns == ["rgb", "text_embeds"]
    assert found[0][0] == row.rgb.tobytes()
    assert found[0][1] == row.text_embeds.astype("<f2").tobytes()


def test_query__thumbnails_are_in_the_full_view_alone(tmp_path: Path) -> None:
    manifest = make_manifest(thumbnails=True)
    thumbnail = np.array([0, 1, 0, 0], np.float32)
    rows = [make_row(manifest, "a", thumbnail_embed=thumbnail), make_row(manifest, "b")]
    make_set(tmp_path, manifest, [rows])
    assert "thumbnail_embed" not in query(tmp_path, "select * from shards")[0]
    _, found = query(tmp_path, "select uid, thumbnail_embed from shards_full order by uid")
    assert found == [("a", thumbnail.astype("<f2").tobytes()), ("b", None)]


def test_query__aggregate_join_and_window_are_those_of_plain_python(
    root: str, rows: list[Row]
) -> None:
    _, found = query(root, "select category, sum(n_faces) from shards group by 1 order by 1")
    sums: Counter[str | None] = Counter()
    for row in rows:
        sums[row.category] += row.n_faces
    assert dict(found) == sums
    _, found = query(root, "select unnest(texts) as t from shards where split = 'val' order by t")
    assert [t for (t,) in found] == sorted(t for r in rows if r.split == "val" for t in r.texts)


def test_query__columns_of_one_name_are_kept_apart(root: str, rows: list[Row]) -> None:
    sql = "select a.uid, b.uid, 1 as uid_1 from shards a join shards b on a.uid = b.uid limit 1"
    names, ((first, second, one),) = query(root, sql)
    assert names == ["uid", "uid_1", "uid_1_1"]
    assert first == second in {row.uid for row in rows}
    assert one == 1


def test_query__set_without_views_has_no_such_column(tmp_path: Path) -> None:
    manifest = make_manifest(n_views=0)
    make_set(tmp_path, manifest, [[make_row(manifest, "toy/1")]])
    assert query(tmp_path, "select count(*) from shards")[1] == [(1,)]
    assert "image_embeds" not in query(tmp_path, "select * from shards_full")[0]


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("selec 1", "Parser Error: syntax error"),
        ("select nope from shards", 'Referenced column "nope" not found'),
        ("select * from shard", 'Did you mean "shards"'),
        ("select cast('a' as int)", "Conversion Error"),
        ("select uid from shards\nwhere", "Parser Error"),
        ("", "not one SELECT statement"),
        ("-- nothing", "not one SELECT statement"),
        ("select 1; select 2", "not one SELECT statement"),
    ],
)
def test_query__wrong_statement_is_one_line(root: str, sql: str, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        query(root, sql)
    message = str(caught.value)
    assert message.startswith("query: ")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "sql",
    [
        "drop view shards",
        "create table t as select 1",
        "insert into shards values (1)",
        "delete from shards",
        "attach '{file}.db' as x",
        "attach ':memory:' as x",
        "copy (select 1) to '{file}.csv'",
        "copy shards to '{file}.csv'",
        "export database '{file}.dir'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "pragma enable_profiling",
        "call pragma_version()",
        "select * from read_text('{file}')",
        "select * from read_csv('{file}')",
        "select * from read_parquet('{file}')",
        "select * from parquet_metadata('{file}')",
        "select * from '{file}'",
        "select * from '{file}.parquet'",
        "select * from glob('{file}*')",
        "select * from sniff_csv('{file}')",
        "select * from read_blob('https://127.0.0.1:9/x')",
        "select * from duckdb_secrets()",
        "explain analyze copy shards to '{file}.csv'",
        "select * from query('copy shards to ''{file}.csv''')",
        "with x as (select * from read_text('{file}')) select * from x",
        "select * from rows",
    ],
)
def test_query__cannot_write_or_leave_the_set(root: str, sql: str, tmp_path: Path) -> None:
    rows = [1]  # a variable of the caller: DuckDB would look at it by default
    secret = tmp_path / "secret"
    secret.write_text("hidden\n")
    with pytest.raises(InputError) as caught:
        query(root, sql.format(file=secret))
    assert "hidden" not in str(caught.value)
    refused = "disabled by configuration|not one SELECT|a single SELECT|does not exist"
    assert re.search(refused, str(caught.value))
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]
    assert query(root, "select count(*) from shards")[1] == [(230,)]
    assert rows == [1]


def test_query__leaves_no_files_in_the_working_folder(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    query(root, "select * from shards order by sha256, uid")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("column", ["uid", "category", "n_faces", "texts.list.element"])
def test_damage__part_is_named_rather_than_wrong_counts(column: str, tmp_path: Path) -> None:
    manifest = make_manifest()
    rows = [make_row(manifest, f"toy/{i}") for i in range(100)]
    make_set(tmp_path, manifest, [rows[:50]])
    name = write_part(tmp_path, manifest, rows[50:])
    path = tmp_path / name
    group = pq.read_metadata(path).row_group(0)
    (chunk,) = [
        group.column(i)
        for i in range(group.num_columns)
        if group.column(i).path_in_schema == column
    ]
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 6] ^= 1
    if chunk.has_dictionary_page:
        data[chunk.data_page_offset - 2] ^= 1
    path.write_bytes(data)
    calls: list[Callable[[], object]] = [
        lambda: inspect(tmp_path),
        lambda: query(tmp_path, "select * from shards"),
    ]
    if column == "uid":
        calls.append(lambda: list(pending(tmp_path, iter([record("a")]))))
    for call in calls:
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value).startswith(f"{path}: ")
        assert "delete this file" in str(caught.value)


def test_damage__truncated_part_is_named(tmp_path: Path) -> None:
    (name,) = make_set(tmp_path, MANIFEST, [[make_row(MANIFEST, "toy/1")]])
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
    with pytest.raises(InputError, match=name):
        inspect(tmp_path)
    with pytest.raises(InputError, match=name):
        query(tmp_path, "select 1")


def left_plain(done: set[str], uids: list[str]) -> list[str]:
    return [uid for uid in uids if uid not in done]


@pytest.mark.parametrize("chunk", [7, 64, 100_000])
@pytest.mark.parametrize("retry_failures", [False, True])
def test_pending__is_the_anti_join_in_order(
    root: str, rows: list[Row], chunk: int, retry_failures: bool
) -> None:
    rng = np.random.default_rng(chunk)
    uids = [row.uid for row in rows] + [f"bad/{i:02d}" for i in range(30)]
    uids += [f"new/{i}" for i in range(90)] + ["ü", "", "a'b", 'a"b', "toy/000 "]
    uids = [uids[i] for i in rng.permutation(len(uids))]
    done = {row.uid for row in rows}
    if not retry_failures:
        done |= {f"bad/{i:02d}" for i in range(30)}
    records = [record(uid) for uid in uids]
    found = list(pending(root, iter(records), retry_failures=retry_failures, chunk=chunk))
    assert [r.uid for r in found] == left_plain(done, uids)
    assert all(r is records[uids.index(r.uid)] for r in found[:20])


def test_pending__empty_source_and_empty_set(root: str, tmp_path: Path) -> None:
    assert list(pending(root, iter([]))) == []
    create_or_open(tmp_path, MANIFEST)
    assert [r.uid for r in pending(tmp_path, iter([record("b"), record("a")]))] == ["b", "a"]


@pytest.mark.parametrize("distance", [1, 5, 3000])
@pytest.mark.parametrize("done", [True, False])
def test_pending__uid_twice_in_the_source_is_named(root: str, distance: int, done: bool) -> None:
    twice = "toy/007" if done else "new/7"
    uids = [f"x/{i}" for i in range(3500)]
    uids.insert(10, twice)
    uids.insert(10 + distance, twice)
    with pytest.raises(InputError, match=f"^{twice}: the source yields this uid twice; give"):
        list(pending(root, map(record, uids)))


def test_pending__uid_that_is_not_unicode_is_named(root: str) -> None:
    with pytest.raises(InputError, match="not valid Unicode; rename"):
        list(pending(root, map(record, ["a", "caf\udce9"])))


def test_pending__resume_after_every_part_does_everything_once(tmp_path: Path) -> None:
    create_or_open(tmp_path, MANIFEST)
    uids = [f"toy/{i}" for i in range(40)]
    done: list[str] = []
    while todo := [r.uid for r in pending(tmp_path, map(record, uids))][:5]:
        done += todo
        write_part(tmp_path, MANIFEST, [make_row(MANIFEST, uid) for uid in todo[1:]])
        write_failures(tmp_path, [failure(todo[0])])
    assert done == uids


def test_pending__parts_written_meanwhile_do_not_disturb(tmp_path: Path) -> None:
    create_or_open(tmp_path, MANIFEST)
    found = []
    for item in pending(tmp_path, map(record, (f"toy/{i}" for i in range(30))), chunk=4):
        found.append(item.uid)
        write_part(tmp_path, MANIFEST, [make_row(MANIFEST, item.uid)])
    assert found == [f"toy/{i}" for i in range(30)]
    assert list(pending(tmp_path, map(record, found))) == []


def test_pending__reads_the_source_lazily(root: str) -> None:
    read = 0

    def endless() -> Iterator[Record]:
        nonlocal read
        while True:
            read += 1
            yield record(f"endless/{read}")

    source = pending(root, endless())
    assert next(source).uid == "endless/1"
    assert read <= 1024
    source.close()  # type: ignore[attr-defined]


def test_pending__records_that_passed_are_not_kept(root: str) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            for _ in pending(root, (record(f"n/{i}") for i in range(count)), chunk=2000):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2_000)
    assert peak(40_000) < 1.5 * peak(8_000)


def test_clean_temporaries__removes_files_and_folders_and_nothing_else(tmp_path: Path) -> None:
    make_set(tmp_path, MANIFEST, [[make_row(MANIFEST, "toy/1")]])
    before = sorted(tmp_path.iterdir())
    (tmp_path / ".tmp-abc-part-x.parquet").write_bytes(b"PAR1")
    (tmp_path / ".tmp-abc-folder").mkdir()
    (tmp_path / ".tmp-abc-folder" / "file").write_text("x")
    (tmp_path / ".tmp-link").symlink_to(tmp_path / "manifest.json")
    assert clean_temporaries(tmp_path) == 3
    assert sorted(tmp_path.iterdir()) == before
    assert clean_temporaries(tmp_path / "missing") == 0
    assert clean_temporaries("memory://nothing/here") == 0


def test_query__ctrl_c_ends_a_statement_that_takes_long(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = connection.interruptible

    def with_ctrl_c(*arguments: Any) -> Any:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        return original(*arguments)

    begun = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(connection, "interruptible", with_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            query(root, "select count(*) from range(9000000) a, range(9000000) b where a < b")
    assert time.monotonic() - begun < 20
    assert query(root, "select 1")[1] == [(1,)]


def test_connect__ctrl_c_within_a_statement_of_ours_is_no_error_of_duckdb(root: Path) -> None:
    def long_statement() -> None:
        with connect(ShardSet.open(root)) as db:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            db.execute("select sum(range * range % 7) from range(300000000)")

    with pytest.raises(KeyboardInterrupt):
        long_statement()


def test_across__rows_without_a_value_count_for_none() -> None:
    group = np.array([0, 0, 1, 1])
    assert _across(group, 2, pa.array(["train", None, "train", "test"])) == 1
