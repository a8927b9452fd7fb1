"""What holds for every command of the three packages: help, headings, examples, completion."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import evaluation.cli
import pipeline.cli
import trainer.cli
from pipeline.console import PANELS

APPS: dict[str, tuple[typer.Typer, Callable[[], None]]] = {
    "pipeline": (pipeline.cli.app, pipeline.cli.main),
    "trainer": (trainer.cli.app, trainer.cli.main),
    "evaluation": (evaluation.cli.app, evaluation.cli.main),
}
MANY = 8  # options from which on they stand under headings of their own
# They go on where they were stopped, or change what is there; `ablate` replaces its table alone.
GOES_ON = {
    *("pipeline embed", "pipeline encode-again", "pipeline import"),
    *("trainer run", "trainer resume"),
}
WITHOUT_JSON = {"evaluation serve"}


def commands() -> Iterator[Any]:
    """(app, name, command) of every command."""
    for app, (typed, _) in APPS.items():
        group: Any = get_command(typed)
        for name, command in group.commands.items():
            yield pytest.param(app, name, command, id=f"{app} {name}")


def options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option" and p.name != "help"]


def examples(app: str, name: str, command: Any) -> list[str]:
    lines = [line.strip() for line in (command.help or "").splitlines()]
    return [line for line in lines if line.startswith(f"{app} {name}")]


every_command = pytest.mark.parametrize(("app", "name", "command"), list(commands()))


@every_command
def test_help__has_examples_that_the_command_takes(app: str, name: str, command: Any) -> None:
    found = examples(app, name, command)
    assert found, f"{app} {name}: no example in its help"
    for line in found:
        words = shlex.split(line)[2:]
        context = command.make_context(name, words)  # an error for options that it has not
        assert context.params, line


@every_command
def test_help__every_option_is_told_and_stands_under_a_known_heading(
    app: str, name: str, command: Any
) -> None:
    for parameter in [p for p in command.params if p.name != "help"]:
        assert parameter.help, f"{app} {name}: {parameter.name} has no help text"
    headings = {option.rich_help_panel for option in options(command)}
    assert headings <= set(PANELS)
    if len(options(command)) > MANY:
        assert len(headings) > 1


@every_command
def test_help__is_shown_as_it_is_written(app: str, name: str, command: Any) -> None:
    """Words in square brackets would be taken for markup and vanish."""
    shown = CliRunner(env={"COLUMNS": "300"}).invoke(APPS[app][0], [name, "--help"])
    assert shown.exit_code == 0
    text = " ".join(shown.output.split())
    for parameter in command.params:
        assert " ".join((parameter.help or "").split()) in text, parameter.name
    for line in examples(app, name, command):
        assert line in text
    for option in options(command):
        assert re.search(rf"─ {re.escape(option.rich_help_panel)} ─", text)


@every_command
def test_json__is_an_option_of_all_that_print_figures(app: str, name: str, command: Any) -> None:
    has = any("--json" in option.opts for option in options(command))
    assert has != (f"{app} {name}" in WITHOUT_JSON)


@every_command
def test_overwrite__is_an_option_of_all_that_write_anew(app: str, name: str, command: Any) -> None:
    flags = {flag for option in options(command) for flag in option.opts}
    writes = bool({"--out", "--html"} & flags) and name != "doctor"
    assert ("--overwrite" in flags) == (writes and f"{app} {name}" not in GOES_ON)


def said(
    main: Callable[[], None],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """What a console script prints."""
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr()
    assert stop.value.code in (0, None), printed.err
    return printed.out


@pytest.mark.parametrize("app", APPS)
def test_completion__script_for_the_shell_and_what_it_asks(
    app: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed, main = APPS[app]
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    script = said(main, [app, "--show-completion", "bash"], monkeypatch, capsys)
    variable = f"_{app.upper()}_COMPLETE"
    assert f"complete -o default -F _{app}_completion {app}" in script
    assert f"{variable}=complete_bash" in script
    # As the script asks when the first letters of a command, and of an option, are there.
    group: Any = get_command(typed)
    name, command = next(iter(group.commands.items()))
    monkeypatch.setenv(variable, "complete_bash")
    for line, wanted in (
        (f"{app} {name[:2]}", name),
        (f"{app} {name} --j", "--json"),
    ):
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
        assert wanted in said(main, [app], monkeypatch, capsys).split()
    assert any("--json" in option.opts for option in options(command))


# Command lines whose input is not there, by the kind of thing that stands at OUT.
FILES = [
    "pipeline preview --dataset folder --root none --out OUT.png",
    "pipeline inspect none --html OUT.html",
    "evaluation encode --shards none --checkpoint none --out OUT.parquet",
    "evaluation zeroshot --shards none --checkpoint none --out OUT.json",
    "evaluation recall --shards none --checkpoint none --out OUT.json",
    "evaluation probe --shards none --checkpoint none --out OUT.json",
    "evaluation parts --root none --checkpoint none --out OUT.json",
    "evaluation retrieve --index none --text mug --out OUT.csv",
    "evaluation score none.glb --text mug --checkpoint none --out OUT.csv",
    "evaluation report none.json --out OUT.html",
    "evaluation benchmarks cc0-objects --root none --out OUT.csv",
]
FOLDERS = [
    ("trainer export none --out OUT", "config.json", "mrd3d-checkpoint"),
    ("trainer import-weights uni3d none.pt --out OUT", "config.json", "mrd3d-checkpoint"),
    ("evaluation index --embeddings none --out OUT", "manifest.json", "mrd3d-index"),
]
# These look into their sets first, among others whether --out lies in one of them.
ELSEWHERE = {
    *("pipeline split", "pipeline merge", "pipeline filter", "pipeline export"),
    "trainer ablate",
}


def refused(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one-line error of a command line that must end with exit code 2."""
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(SystemExit) as stop:
        APPS[sys.argv[0]][1]()
    printed = capsys.readouterr()
    assert (stop.value.code, printed.out) == (2, "")
    (error,) = [text for text in printed.err.splitlines() if text.startswith("error: ")]
    return error


def test_overwrite__every_command_that_has_it_is_tried() -> None:
    tried = {" ".join(line.split()[:2]) for line in [*FILES, *(line for line, *_ in FOLDERS)]}
    has = {
        f"{parameter.values[0]} {parameter.values[1]}"
        for parameter in commands()
        if any("--overwrite" in option.opts for option in options(parameter.values[2]))
    }
    assert tried | ELSEWHERE == has


@pytest.mark.parametrize("line", FILES)
def test_overwrite__a_file_is_refused_before_the_work_and_kept_when_that_fails(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path(line.split()[-1])
    out.write_text("mine")
    option = line.split()[-2]
    assert refused(line, monkeypatch, capsys) == (
        f"error: {option} {out}: is there already; add --overwrite to replace it"
    )
    assert "none" in refused(f"{line} --overwrite", monkeypatch, capsys)
    assert out.read_text() == "mine"
    out.unlink()
    out.mkdir()
    assert "a folder; name a file" in refused(f"{line} --overwrite", monkeypatch, capsys)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize(("line", "mark", "kind"), FOLDERS)
def test_overwrite__a_folder_is_replaced_only_where_it_is_of_the_kind(
    line: str,
    mark: str,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("OUT").mkdir()
    assert "none" in refused(line, monkeypatch, capsys)  # empty: as if it were not there
    Path("OUT/photo.jpg").write_text("mine")
    assert "so it is not replaced; name" in refused(f"{line} --overwrite", monkeypatch, capsys)
    for others in ("{}", "[]", "no JSON", '{"format": "mrd3d-shards"}'):  # a web project's, a set's
        Path("OUT", mark).write_text(others)
        assert "so it is not replaced; name" in refused(f"{line} --overwrite", monkeypatch, capsys)
    Path("OUT", mark).write_text(json.dumps({"format": kind}))
    assert refused(line, monkeypatch, capsys) == (
        "error: --out OUT: is there already; add --overwrite to replace it"
    )
    assert "none" in refused(f"{line} --overwrite", monkeypatch, capsys)
    assert Path("OUT/photo.jpg").read_text() == "mine"
