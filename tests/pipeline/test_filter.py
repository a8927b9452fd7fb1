"""Filtered sets, and what every command that writes a set has in common: whole or not at all."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.common import InputError
from pipeline.lock import exclusive
from pipeline.sets.filter import filter_set
from pipeline.shards import Failure, ImageSet, Row, ShardSet, read_manifest, write_failures
from pipeline.shards.storage import Storage
from tests.pipeline.set_tools import assert_same_rows, rows_of, sound_manifest, sound_row, write_set

MANIFEST = sound_manifest()


@pytest.fixture(scope="module", params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """600 rows in parts of uneven size, whose order is not that of the uids."""
    where = str(tmp_path_factory.mktemp("filter"))
    if request.param == "memory":
        where = f"memory://{uuid.uuid4().hex}"
    rows = [sound_row(MANIFEST, f"toy/{(i * 37) % 600:03d}") for i in range(600)]
    write_set(where, MANIFEST, [rows[:300], rows[300:310], rows[310:]])
    write_failures(where, [Failure("bad", "toy", "bad.glb", "load", "Empty", "no faces")])
    return where


def out_of(root: str, tmp_path: Path) -> str:
    """A place for a new set on the same kind of storage."""
    return f"memory://{uuid.uuid4().hex}" if root.startswith("memory") else str(tmp_path / "out")


CONDITIONS: dict[str, Callable[[Row], bool]] = {
    "n_faces > 5000": lambda row: row.n_faces > 5000,
    "category = 'mug' and not has_color": lambda row: row.category == "mug" and not row.has_color,
    "uid like '%7' or false -- a comment": lambda row: row.uid.endswith("7"),
    "uid in (select uid from shards order by uid limit 3)": lambda row: row.uid < "toy/003",
    "list_contains(texts, 'text 0 of toy/100')": lambda row: row.uid == "toy/100",
    "true": lambda _: True,
}


@pytest.mark.parametrize("where", CONDITIONS)
def test_filter__keeps_what_plain_python_keeps_in_order(
    where: str, root: str, tmp_path: Path
) -> None:
    out = out_of(root, tmp_path)
    written = filter_set(root, where, out)
    expected = [row for row in rows_of(root) if CONDITIONS[where](row)]
    assert 0 < len(expected) == written.rows
    assert_same_rows(rows_of(out), expected)
    (step,) = read_manifest(out).dataset["derived"]
    assert step == {"step": "filter", "where": where}
    assert ShardSet.open(out).failures() == []


def test_filter__of_a_filtered_set_tells_both_steps(root: str, tmp_path: Path) -> None:
    filter_set(root, "has_color", tmp_path / "a")
    filter_set(tmp_path / "a", "n_faces > 10", tmp_path / "b")
    steps = read_manifest(tmp_path / "b").dataset["derived"]
    assert [step["where"] for step in steps] == ["has_color", "n_faces > 10"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("n_face > 1", 'Referenced column "n_face" not found'),
        ("n_face > 1", "the columns are uid, .*n_faces"),
        ("n_faces >", "Parser Error: syntax error"),
        ("", "no condition; give one such as"),
        ("  ", "no condition; give one such as"),
        ("true) union select * from shards where (true", "Parser Error"),
        ("true; drop view shards", "Parser Error"),
        ("uid = 7", "Conversion Error: Could not convert string"),
        ("xyz is not null", 'Referenced column "xyz" not found'),
        ("uid in (select content from read_text('{file}'))", "disabled by configuration"),
        ("count(*) > 1", "aggregate|WHERE clause cannot contain"),
        ("n_faces < 0", "no row of 600 is left"),
        ("category = null", "no row of 600 is left"),
    ],
)
def test_filter__wrong_condition_is_one_line_and_leaves_nothing(
    where: str, message: str, root: str, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("toy/000")
    with pytest.raises(InputError) as caught:
        filter_set(root, where.format(file=secret), tmp_path / "out")
    assert str(caught.value).startswith("--where ")
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_filter__pictures_of_the_kept_rows_alone(tmp_path: Path) -> None:
    manifest = sound_manifest(kept_images="webp-90", thumbnails=True)
    rows = [sound_row(manifest, f"toy/{i:03d}{'x' * (i % 2)}") for i in range(150)]
    write_set(tmp_path / "set", manifest, [rows[:100], rows[100:]])
    filter_set(tmp_path / "set", "n_faces % 3 = 0", tmp_path / "out")
    kept = {row.uid for row in rows if row.n_faces % 3 == 0}
    before, after = (
        [
            item
            for batch in ImageSet.open(tmp_path / name).batches()
            for item in zip(batch.uid, batch.views, batch.thumbnails, strict=True)
        ]
        for name in ("set", "out")
    )
    assert after == [item for item in before if item[0] in kept]
    assert 0 < len(after) < len(before)


def test_writing__parts_are_full_and_read_in_their_order(root: str, tmp_path: Path) -> None:
    filter_set(root, "true", tmp_path / "out")
    shards = ShardSet.open(tmp_path / "out")
    rows = [pq.read_metadata(tmp_path / "out" / part).num_rows for part in shards.parts]
    assert rows == [256, 256, 88]
    assert [part[:12] for part in shards.parts] == ["part-000000-", "part-000001-", "part-000002-"]
    assert shards.uids() == ShardSet.open(root).uids()


def test_writing__existing_set_is_refused_or_replaced(root: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    filter_set(root, "has_color", out)
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(InputError, match=r"--out .*is there already; add --overwrite"):
        filter_set(root, "not has_color", out)
    assert sorted(path.name for path in out.iterdir()) == before
    filter_set(root, "not has_color", out, overwrite=True)
    assert all(not row.has_color for row in rows_of(out))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "empty").mkdir()
    filter_set(root, "has_color", tmp_path / "empty")


def test_writing__what_must_not_be_replaced(tmp_path: Path) -> None:
    rows = [sound_row(MANIFEST, str(i)) for i in range(4)]
    write_set(tmp_path / "sets" / "a", MANIFEST, [rows])
    (tmp_path / "file").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").touch()
    for name, text in (("web", "{}"), ("index", '{"format": "mrd3d-index"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(text)
    for out, message in (
        (tmp_path / "sets" / "a", "is the shard set that is read"),
        (tmp_path / "sets" / "a" / ".." / "a", "is the shard set that is read"),
        (tmp_path / "sets", "holds the shard set"),
        (tmp_path / "file", "a file; name a folder"),
        (tmp_path / "file" / "x", "file is a file, not a folder; name another place"),
        (tmp_path / "sets" / "a" / "x", "lies in the shard set"),
        (tmp_path / "photos", "not a shard set, so it is not replaced"),
        (tmp_path / "web", "not a shard set, so it is not replaced"),
        (tmp_path / "index", "not a shard set, so it is not replaced"),
    ):
        with pytest.raises(InputError, match=message):
            filter_set(tmp_path / "sets" / "a", "true", out, overwrite=True)
    assert len(rows_of(tmp_path / "sets" / "a")) == 4
    with exclusive(str(tmp_path / "sets" / "a")):
        write_set(tmp_path / "b", MANIFEST, [rows[:1]])
        with pytest.raises(InputError, match="another run is using"):
            filter_set(tmp_path / "b", "true", tmp_path / "sets" / "a", overwrite=True)


def test_writing__remote_store_must_be_empty(root: str) -> None:
    write_set("memory://taken", MANIFEST, [[sound_row(MANIFEST, "a")]])
    with pytest.raises(InputError, match=r"--out memory://taken: holds files already"):
        filter_set(root, "true", "memory://taken", overwrite=True)


@pytest.mark.parametrize("remote", [False, True])
def test_writing__error_on_the_way_leaves_no_set(remote: bool, tmp_path: Path) -> None:
    rows = [sound_row(MANIFEST, f"{i:03d}") for i in range(270)]
    write_set(tmp_path / "set", MANIFEST, [rows[:260], rows[260:]])
    part = sorted((tmp_path / "set").glob("part-*"))[1]
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    out = f"memory://{uuid.uuid4().hex}" if remote else str(tmp_path / "out")
    with pytest.raises(InputError, match=part.name):
        filter_set(tmp_path / "set", "true", out)
    if remote:
        assert Storage.at(out).list("part-", "")  # written before the damage was met
        with pytest.raises(InputError, match=r"no manifest\.json"):
            ShardSet.open(out)
    else:
        assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_command__filter(tmp_path: Path) -> None:
    write_set(tmp_path / "set", MANIFEST, [[sound_row(MANIFEST, str(i)) for i in range(10)]])
    arguments = ["filter", str(tmp_path / "set"), "--where", "uid < '5'"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"rows": 5, "parts": 1, "failures": 0}
