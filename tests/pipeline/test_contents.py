"""The record of a set's files: what was lost since a run finished, and what a killed run left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.catalog import inspect
from pipeline.cli import app
from pipeline.common import InputError
from pipeline.sets.verify import verify_set
from pipeline.shards import (
    Failure,
    compare_contents,
    mark_unfinished,
    record_contents,
    what_lacks,
    write_failures,
)
from tests.pipeline.set_tools import sound_manifest, sound_row, write_set

MANIFEST = sound_manifest()


def some_set(root: str | Path, parts: int = 2) -> None:
    rows = [[sound_row(MANIFEST, f"toy/{part}{i}") for i in range(3)] for part in range(parts)]
    write_set(root, MANIFEST, rows)
    write_failures(root, [Failure("bad", "toy", "bad.glb", "load", "empty_mesh", "none")])


@pytest.mark.parametrize("remote", [False, True])
def test_contents__of_a_finished_set(remote: bool, tmp_path: Path) -> None:
    root = "memory://contents-finished" if remote else str(tmp_path)
    some_set(root)
    assert compare_contents(root) is None
    record_contents(root)
    found = compare_contents(root)
    assert found is not None
    assert (found.recorded, found.missing, found.added) == (3, [], [])
    assert found.finished
    assert what_lacks(root) is None
    assert inspect(root).state == "yes"
    verdict = verify_set(root)
    assert verdict.sound
    assert verdict.notes == []
    assert verdict.looked_at["contents"] == 3


@pytest.mark.parametrize("kind", ["part", "failures"])
def test_contents__a_file_that_was_lost_is_named(kind: str, tmp_path: Path) -> None:
    some_set(tmp_path)
    record_contents(tmp_path)
    lost = next(tmp_path.glob(f"{kind}-*"))
    lost.unlink()
    found = compare_contents(tmp_path)
    assert found is not None
    assert found.missing == [lost.name]
    assert not found.finished
    told = "files missing: 1; `pipeline verify` names them"
    assert what_lacks(tmp_path) == f"{tmp_path}: {told}"
    assert inspect(tmp_path).state == f"no, {told}"
    (problem,) = verify_set(tmp_path).problems
    assert problem.line.startswith(f"{lost.name}: missing; copy it again")


def test_contents__of_a_run_that_was_killed(tmp_path: Path) -> None:
    write_set(tmp_path, MANIFEST, [])
    mark_unfinished(tmp_path)
    assert what_lacks(tmp_path) is None  # empty, which is told elsewhere
    assert inspect(tmp_path).state == "no; run the same command again to complete the set"
    some_set(tmp_path)
    found = compare_contents(tmp_path)
    assert found is not None
    assert len(found.added) == 3
    assert "has not finished" in str(what_lacks(tmp_path))
    assert inspect(tmp_path).state == "no; run the same command again to complete the set"
    verdict = verify_set(tmp_path)
    assert verdict.sound
    assert verdict.notes == [
        "a run that has not finished added files: 3; run the same command again to complete the set"
    ]


def test_contents__a_later_run_that_was_killed_keeps_the_record(tmp_path: Path) -> None:
    some_set(tmp_path, parts=1)
    record_contents(tmp_path)
    mark_unfinished(tmp_path)
    assert not inspect(tmp_path).finished
    assert what_lacks(tmp_path) is None  # nothing that was there is gone
    some_set(tmp_path, parts=3)
    found = compare_contents(tmp_path)
    assert found is not None
    assert (found.recorded, len(found.added), found.missing) == (2, 2, [])
    record_contents(tmp_path)
    assert inspect(tmp_path).finished


def test_contents__equal_sets_have_equal_records(tmp_path: Path) -> None:
    for name in "ab":
        some_set(tmp_path / name)
        record_contents(tmp_path / name)
    records = [(tmp_path / name / "contents.json").read_bytes() for name in "ab"]
    assert records[0] == records[1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not the record of a shard set"),
        ('{"format": "mrd3d-contents", "version": 2}', "version 2 is unknown; upgrade"),
        ('{"format": "mrd3d-contents", "version": 1}', "holds no list of files"),
        ('{"format": "mrd3d-contents", "version": 1, "files": [[]]}', "holds no list of files"),
    ],
)
def test_contents__a_damaged_record_is_one_line(text: str, told: str, tmp_path: Path) -> None:
    some_set(tmp_path)
    (tmp_path / "contents.json").write_text(text)
    with pytest.raises(InputError, match=f"contents.json: {told}"):
        compare_contents(tmp_path)
    (problem,) = verify_set(tmp_path).problems
    assert (problem.check, problem.file) == ("contents", "contents.json")


def test_inspect__says_whether_the_set_is_finished(tmp_path: Path) -> None:
    some_set(tmp_path)
    runner = CliRunner()
    assert "not recorded" in runner.invoke(app, ["inspect", str(tmp_path)]).stdout
    record_contents(tmp_path)
    next(tmp_path.glob("part-*")).unlink()
    assert "files missing: 1" in runner.invoke(app, ["inspect", str(tmp_path)]).stdout
    value = json.loads(runner.invoke(app, ["inspect", str(tmp_path), "--json"]).stdout)
    assert (value["finished"], value["missing_files"]) == (False, 1)
