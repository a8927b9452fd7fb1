"""What ``pipeline datasets`` tells of the sources: complete, and as a user would type it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.common import InputError
from pipeline.datasets.sources import Source, SourceOptions, make_dataset, sources
from tests.running import run

SOURCES = sorted(sources().values(), key=lambda source: source.name)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_source__says_all_that_a_user_needs(source: Source) -> None:
    told = source.to_json()
    for name in ("summary", "licence", "size", "get"):
        assert told[name]
        assert "\n" not in told[name]
    if "root" in source.options and source.name not in ("folder", "points"):
        assert told["layout"], "what is to lie below --root"
    assert set(told["required"]) <= set(told["options"])
    assert len(set(told["options"])) == len(told["options"])


def test_datasets__json_holds_options_that_embed_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "pipeline", "datasets", "--json") == 0
    listed: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert {entry["name"] for entry in listed} == set(sources())
    assert run(monkeypatch, "pipeline", "embed", "--help") == 0
    help_text = capsys.readouterr().out
    for entry in listed:
        for option in entry["options"]:
            assert f"{option} " in help_text, (entry["name"], option)
    folder = next(entry for entry in listed if entry["name"] == "folder")
    assert folder["options"] == ["--root", "--metadata", "--up-axis", "--pattern", "--count"]
    assert folder["required"] == ["--root"]
    objaverse = next(entry for entry in listed if entry["name"] == "objaverse")
    assert "--cache-size" in objaverse["options"]


def test_datasets__the_table_names_every_source_and_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "pipeline", "datasets") == 0
    lines = capsys.readouterr().out.splitlines()
    assert set(sources()) <= set(lines)
    assert any("--root (needed)" in line for line in lines)
    assert not any("root-uri" in line or "cache-bytes" in line for line in lines)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_make__an_option_that_is_not_read_is_refused_by_its_name(source: Source) -> None:
    given = {"cache_bytes": 5, "pattern": "*", "seed": 3}
    refused = [name for name in given if name not in source.options]
    root = Path() if "root" in source.options else None
    for name in refused:
        options = SourceOptions(root, count=1, **{name: given[name]})  # type: ignore[arg-type]
        typed = {"cache_bytes": "--cache-size"}.get(name, f"--{name}")
        with pytest.raises(InputError, match=f"^{typed}: the source {source.name} does not read"):
            make_dataset(source.name, options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--dataset", "foldr"], "--dataset foldr"),
        (["--dataset", "folder", "--root", "nowhere"], "--root nowhere"),
        (["--dataset", "procedural", "--count", "2", "--cameras", "rings"], "--cameras rings"),
        (["--dataset", "procedural", "--count", "2", "--captions", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_embed__tells_wrong_options_before_it_loads_a_model(
    options: list[str], named: str, tmp_path: Path
) -> None:
    script = (
        "import sys\n"
        "from pipeline.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(sorted({'torch', 'open_clip', 'ray'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "embed", *options, "--out", "made"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert named in done.stderr
    assert done.stdout.strip() == "[]"
    assert not (tmp_path / "made").exists()
