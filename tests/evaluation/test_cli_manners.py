"""How the commands treat what is there, what they print for programs, and Ctrl-C."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from tests.running import Cli, run

Line = tuple[object, ...]


@pytest.fixture
def lines(
    fakes: Path, shards: Path, embedded: Path, indexed: Path, meshes: Path
) -> dict[str, Line]:
    """A cheap command line of everything that writes, less its --out."""
    of_student = ("--checkpoint", fakes, "--shards", shards)
    return {
        "encode": ("encode", *of_student),
        "encode meshes": ("encode", "--checkpoint", fakes, "--meshes", meshes / "000.glb"),
        "index": ("index", "--embeddings", embedded, "--shards", shards),
        "zeroshot": ("zeroshot", *of_student),
        "recall": ("recall", *of_student),
        "retrieve": ("retrieve", "--index", indexed, "--text", "mug"),
        "score": (
            "score",
            meshes / "000.glb",
            "--text",
            "mug",
            "--checkpoint",
            fakes,
            "--views",
            2,
        ),
    }


OUTS = [
    ("encode", "out.parquet"),
    ("encode meshes", "out.parquet"),
    ("index", "out"),
    ("zeroshot", "out.json"),
    ("recall", "out.json"),
    ("retrieve", "out.json"),
    ("retrieve", "out.csv"),
    ("retrieve", "out.html"),
    ("score", "out.json"),
    ("score", "out.csv"),
]


def content(path: Path) -> dict[str, bytes]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize(("name", "out"), OUTS)
def test_overwrite__what_is_there_stays_until_it_is_asked_for(
    name: str, out: str, command: Cli, lines: dict[str, Line], tmp_path: Path
) -> None:
    target = tmp_path / "new" / out
    line = (*lines[name], "--out", target)
    command.ok(*line)
    before = content(target)
    victim = target / "ids.parquet" if target.is_dir() else target
    victim.write_bytes(b"older")
    assert "is there already; add --overwrite" in command.refused(*line)
    assert victim.read_bytes() == b"older"
    printed = command.json(*line, "--overwrite")  # one document, whatever else it does
    assert printed
    assert content(target).keys() == before.keys()
    assert victim.read_bytes() != b"older"
    assert [path.name for path in target.parent.iterdir()] == [out]


def test_json__of_a_report_are_its_tables(
    command: Cli, lines: dict[str, Line], tmp_path: Path
) -> None:
    result = tmp_path / "z.json"
    record = command.json(*lines["zeroshot"], "--out", result)
    found = command.json("report", result, "--out", tmp_path / "r.html")
    assert found["out"] == str(tmp_path / "r.html")
    (table,) = found["tables"]
    cells = dict(zip(table["columns"], table["rows"][0], strict=True))
    assert cells["top-1"].startswith(f"{100 * record['metrics']['top1']['value']:.1f} [")


@pytest.mark.parametrize(
    "line",
    [("benchmarks",), ("published",), ("update", "--index", "INDEX", "--remove", "tiny/000")],
)
def test_json__of_what_writes_no_result(line: Line, command: Cli, indexed: Path) -> None:
    assert command.json(*(indexed if word == "INDEX" else word for word in line))


def asked_to_stop(original: Callable[..., Any]) -> Callable[..., Any]:
    """As ``original``, with Ctrl-C when it is called."""

    def call(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return original(*arguments, **options)

    return call


@pytest.mark.parametrize(
    ("name", "out", "where"),
    [
        ("encode", "out.parquet", "evaluation.student.Student.embed"),
        ("encode meshes", "out.parquet", "evaluation.student.Student.embed_mesh"),
        ("index", "out", "faiss.write_index"),
        ("zeroshot", "out.json", "evaluation.student.Student.embed"),
        ("score", "out.csv", "evaluation.score.write_csv"),
    ],
)
def test_sigint__one_line_and_nothing_partial(
    name: str,
    out: str,
    where: str,
    lines: dict[str, Line],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "new" / out
    line = (*lines[name], "--out", target)
    assert run(monkeypatch, "evaluation", *line) == 0
    before = content(target)
    capsys.readouterr()
    original = resolve_name(where)
    for options in (("--overwrite",), ()):
        if not options:  # as on the first run
            target.rename(tmp_path / "elsewhere")
        with monkeypatch.context() as patch:
            patch.setattr(where, asked_to_stop(original))
            assert run(monkeypatch, "evaluation", *line, *options) == 130
        printed = capsys.readouterr()
        assert printed.err.splitlines()[-1] == "interrupted: nothing was written"
        assert "Traceback" not in printed.err
        assert printed.out == ""
        if options:
            assert content(target) == before
            assert [path.name for path in target.parent.iterdir()] == [out]
        else:
            assert not list(target.parent.iterdir())


def test_introductions__say_what_is_about_to_be_done(
    lines: dict[str, Line],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    assert (
        run(monkeypatch, "evaluation", *lines["encode"], "--out", tmp_path / "a.parquet", "--json")
        == 0
    )
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    size = summary["rows"] * summary["width"] * 4
    assert (
        f"{summary['rows']} objects by reader: {summary['width']} float32 values each"
        in printed.err
    )
    assert f"at most {size / 1000:.1f} kB" in printed.err
    assert printed.err.startswith(f"{summary['rows']} objects by reader: ")
    assert run(monkeypatch, "evaluation", *lines["index"], "--out", tmp_path / "a.index") == 0
    told = f"{summary['rows']} vectors of width {summary['width']}; trying in order: flat ("
    notes = capsys.readouterr().err
    assert told in notes
    assert f"trying flat\nadd: {summary['rows']}/{summary['rows']} vectors" in notes
