"""The commands that make embeddings and indexes: ``encode``, ``index`` and ``update``."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.datasets.folder import FolderDataset
from pipeline.shards import ShardSet, create_or_open, record_contents, write_part
from tests.evaluation import world
from tests.running import Cli, run


def test_encode__teacher_views_and_float16(
    command: Cli, fakes: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "views.parquet"
    summary = command.json(
        "encode", "--teacher-views", "--shards", shards, "--dtype", "float16", "--out", out
    )
    assert summary["rows"] == 40
    command.ok("index", "--embeddings", out, "--out", tmp_path / "views.index")
    hits = command.json("retrieve", "--index", tmp_path / "views.index", "--text", "mug", "-k", 3)
    assert {hit["category"] for hit in hits} == {"mug"}
    error = command.refused(
        "retrieve", "--index", tmp_path / "views.index", "--shape", tmp_path / "views.parquet"
    )
    assert "text or image" in error


def test_encode__a_set_that_lacks_files_is_told(
    command: Cli, fakes: Path, shards: Path, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(shards, root)
    record_contents(root)
    asked = ("encode", "--checkpoint", fakes, "--shards", root, "--out")
    assert "files missing" not in command(*asked, tmp_path / "whole.parquet").err
    mark = root / "contents.json"
    mark.write_text(mark.read_text().replace("part-", "part-gone-"))
    told = command(*asked, tmp_path / "lacking.parquet").err
    assert f"{root}: files missing: 1; `pipeline verify` names them" in told


def test_update__adds_and_removes_by_uid(
    command: Cli, fakes: Path, shards: Path, indexed: Path, tmp_path: Path
) -> None:
    (tmp_path / "uids.txt").write_text("tiny/001\n\ntiny/002\n")
    done = command.json("update", "--index", indexed, "--remove", tmp_path / "uids.txt")
    assert done["count"] == 38
    assert done["updates"] == [{"added": 0, "replaced": 0, "removed": 2}]
    new = tmp_path / "new.parquet"
    command.ok("encode", "--checkpoint", fakes, "--shards", shards, "--out", new)
    refused = command.refused("update", "--index", indexed, "--add", new)
    assert "38 of the new objects already exist (tiny/000); give --replace" in refused
    printed = command.ok("update", "--index", indexed, "--add", new, "--replace")
    assert "2 added, 38 replaced, 0 removed: 40 objects" in printed
    assert "nothing to do" in command.refused("update", "--index", indexed)
    assert "has no object nobody, which" in command.refused(
        "update", "--index", indexed, "--remove", "nobody"
    )


def test_update__what_is_a_uid_is_one_though_a_file_lies_there(
    command: Cli, indexed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "001").write_bytes(b"glTF \xff")
    (tmp_path / "tiny" / "gone").write_text("tiny/002\n")
    (tmp_path / "x.glb").write_bytes(b"glTF \xff")
    asked = ("update", "--index", indexed, "--remove")
    told = command.refused(*asked, "x.glb")
    assert f"--remove x.glb: neither a uid of {indexed} nor a readable text file" in told
    assert command.json(*asked, "tiny/001", "--remove", "tiny/gone")["count"] == 38
    # No longer a uid: the file is meant.
    assert "--remove tiny/001: neither" in command.refused(*asked, "tiny/001")
    assert "no index there" in command.refused("update", "--index", "no", "--remove", "x.glb")
    assert "has no object " + "u" * 300 in command.refused(*asked, "u" * 300)


def test_encode__a_folder_has_the_uids_of_its_shard_set(
    command: Cli, fakes: Path, meshes: Path, tmp_path: Path
) -> None:
    (meshes / "001.glb").unlink()
    records = FolderDataset(meshes, auto_metadata=False).records()
    root, made = tmp_path / "set", world.manifest()
    create_or_open(root, made)
    first = ShardSet.open(world.make_shards(tmp_path / "one", 1))
    (row,) = first.rows(first.row_groups[0])
    write_part(root, made, [replace(row, uid=r.uid, source=r.source) for r in records])
    common = ("encode", "--checkpoint", fakes)
    command.ok(*common, "--shards", root, "--out", tmp_path / "a.parquet")
    command.ok("index", "--embeddings", tmp_path / "a.parquet", "--out", tmp_path / "idx")
    command.ok(*common, "--meshes", meshes, "--out", tmp_path / "b.parquet")
    update = ("update", "--index", tmp_path / "idx", "--add", tmp_path / "b.parquet")
    assert "already exist (folder/000); give --replace" in command.refused(*update)
    done = command.json(*update, "--replace")
    assert (done["count"], done["updates"]) == (1, [{"added": 0, "replaced": 1, "removed": 0}])


def test_encode__meshes_that_all_fail_are_told_and_exit_with_3(
    fakes: Path,
    meshes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (meshes / "000.glb").write_bytes(b"")
    out = tmp_path / "x.parquet"
    line = ("encode", "--checkpoint", fakes, "--meshes", meshes, "--out", out)
    for options in ((), ("--max-failures", 1)):
        assert run(monkeypatch, "evaluation", *line, *options) == 3
        printed = capsys.readouterr()
        assert "failed: 000.glb: " in printed.err
        assert "empty_file" in printed.err
        assert "failed: 001.glb: " in printed.err
        assert "all 2 meshes failed" in printed.out
        assert "Traceback" not in printed.err
        assert not out.exists()
    assert run(monkeypatch, "evaluation", *line, "--json") == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["out"]) == (0, None)
    assert [one["mesh"] for one in told["failures"]] == ["000.glb", "001.glb"]


def test_encode__options_that_would_do_nothing_are_refused(
    command: Cli, fakes: Path, shards: Path, meshes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.parquet"
    student = ("encode", "--checkpoint", fakes, "--out", out)
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--meshes", meshes, "--split", "test"), "--split: applies to shard sets only"),
        (("--meshes", meshes, "--teacher-views"), "--teacher-views: applies to shard sets only"),
        (
            ("--meshes", meshes, "--views", "first"),
            "--views first: applies to --teacher-views only",
        ),
        (
            ("--shards", shards, "--views", "first"),
            "--views first: applies to --teacher-views only",
        ),
        (("--shards", shards, "--seed", 1), "--seed: applies to mesh files only"),
        (("--shards", shards, "--up-axis", "+z"), "--up-axis: applies to mesh files only"),
        (("--shards", shards, "--timeout", 5), "--timeout: applies to mesh files only"),
        (("--shards", shards, "--max-failures", 0.5), "--max-failures: applies to mesh files only"),
    ]
    for arguments, told in cases:
        error = command.refused(*student, *arguments)
        assert told in error
        assert error.endswith("; leave it out")
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kind", "tree"), "--kind tree: use auto, flat, hnsw, ivfpq"),
        (("--memory", "lots"), "--memory lots: not a size"),
        (("--latency", "soon"), "--latency soon: not a time; write it as 10ms"),
        (("--memory", "1kB"), "no index reaches recall 0.95, 0.001 MB"),
    ],
)
def test_index__wishes_that_cannot_be_met_are_refused(
    command: Cli, embedded: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    common = ("index", "--embeddings", embedded, "--out", tmp_path / "new.index")
    assert message in command.refused(*common, *arguments)
    assert not (tmp_path / "new.index").exists()


def test_index__says_what_it_took(command: Cli, embedded: Path, tmp_path: Path) -> None:
    common = ("index", "--embeddings", embedded, "--out", tmp_path / "x")
    printed = command.ok(*common, "--kind", "hnsw", "--latency", "10s")
    assert "hnsw index of 40 objects" in printed
    assert "95 of 100 single queries answered within" in printed
