"""Passes over all parts of a set."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.catalog import columns
from pipeline.catalog.columns import column, open_parts
from pipeline.common import InputError
from pipeline.shards import ShardSet
from tests.pipeline.set_tools import sound_manifest, sound_row, write_set


def made(root: Path) -> ShardSet:
    manifest = sound_manifest()
    rows = [sound_row(manifest, f"{i:03d}") for i in range(100)]
    write_set(root, manifest, [rows[:70], rows[70:]])
    return ShardSet.open(root)


def test_column__is_that_of_every_batch(tmp_path: Path) -> None:
    shards = made(tmp_path)
    assert column(shards, "uid").to_pylist() == shards.uids()
    assert column(shards, "sha256").to_pylist() == [
        sha256 for batch in shards.batches(["sha256"]) for sha256 in batch.sha256 or []
    ]


def test_column__of_no_parts_is_empty(tmp_path: Path) -> None:
    write_set(tmp_path, sound_manifest(), [])
    assert len(column(ShardSet.open(tmp_path), "uid")) == 0


def test_open_parts__opens_each_part_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = made(tmp_path)
    opened: list[str] = []
    plain = ShardSet._file

    def counted(own: ShardSet, part: str, check_pages: bool = False) -> object:
        opened.append(part)
        return plain(own, part, check_pages)

    monkeypatch.setattr(ShardSet, "_file", counted)
    open_parts(shards)
    assert opened == shards.parts
    assert sum(group.n_rows for group in shards.row_groups) == 100
    open_parts(shards)
    assert opened == shards.parts


def test_open_parts__names_a_damaged_part(tmp_path: Path) -> None:
    shards = made(tmp_path)
    (tmp_path / shards.parts[1]).write_bytes(b"PAR1")
    with pytest.raises(InputError, match=shards.parts[1]):
        open_parts(shards)


def test_passes__tell_of_themselves_where_they_take_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    column(made(tmp_path), "uid")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(columns, "_PATIENCE_S", 0.0)
    column(ShardSet.open(tmp_path), "uid")
    told = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == ["open: 2/2 parts", "read uid: 100/100 objects"]
