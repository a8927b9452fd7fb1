"""``--json``: one document on stdout, whatever else a command says elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.shards import Failure, write_failures
from tests.pipeline.set_tools import sound_manifest, sound_row, write_set
from tests.running import run

MANIFEST = sound_manifest()


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """``a`` with 12 objects and a failure, ``b`` with 3 others."""
    rows = [sound_row(MANIFEST, f"toy/{i:02d}", category=f"class {i % 2}") for i in range(15)]
    write_set(tmp_path / "a", MANIFEST, [rows[:12]])
    write_failures(
        tmp_path / "a", [Failure("toy/bad", "toy", "bad.glb", "load", "no_faces", "no faces")]
    )
    write_set(tmp_path / "b", MANIFEST, [rows[12:]])
    return tmp_path


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("inspect a", "rows", 12),
        ("query a SQL", 0, {"n": 12}),
        ("verify a", "root", "a"),
        ("split a --test 0.5 --val 0 --no-near-duplicates --out new", "written", None),
        ("merge a b --out new", "written", {"rows": 15, "parts": 1, "failures": 1}),
        ("filter a --where true --out new", "rows", 12),
        ("export a --format npz --out new", "objects", 12),
        ("datasets", 0, None),
    ],
)
def test_json__is_all_that_stands_on_stdout(
    line: str,
    key: Any,
    value: Any,
    sets: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(sets)
    words = ["select count(*) as n from shards" if w == "SQL" else w for w in line.split()]
    again = [*words, "--overwrite"] if "--out" in words else words
    for arguments in (words, again):  # the second time something is there
        code = run(monkeypatch, "pipeline", *arguments, "--json")
        printed = capsys.readouterr()
        assert code == 0, printed.err
        found = json.loads(printed.out)[key]
        assert found == value if value is not None else found


def test_json__of_an_import(
    sets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(sets)
    for line, key, value in (
        ("export a --format openshape --out release", "objects", 12),
        ("import openshape release --workers 1 --out back", "imported", 12),
        ("import openshape release --workers 1 --out back", "skipped", 12),
    ):
        run(monkeypatch, "pipeline", *line.split(), "--json")
        assert json.loads(capsys.readouterr().out)[key] == value
