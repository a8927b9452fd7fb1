"""The command-line manner: one-line errors, exit codes, the progress bar without a terminal."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import pytest
import typer
from rich.console import Console

from pipeline import console
from pipeline.common import InputError
from pipeline.console import ProgressBar, make_app, note, print_json, print_table, run_app


def toy() -> typer.Typer:
    """An app with one command that ends in every way that a command can end."""
    app = make_app("toy", "A toy.")

    @app.command()
    def go(
        end: str = "well",
        count: Annotated[int, typer.Option("--count", help="A number.")] = 1,
    ) -> None:
        if end == "input":
            raise InputError("/data/[b]a.glb:\n  zero bytes; delete it")
        if end == "failures":
            raise typer.Exit(console.EXIT_TOO_MANY_FAILURES)
        if end == "sigterm":
            os.kill(os.getpid(), signal.SIGTERM)
        if end == "interrupt":
            raise KeyboardInterrupt
        if end == "abort":
            raise typer.Abort
        if end == "bug":
            raise RuntimeError("a bug")
        note("a note")
        with ProgressBar("work", 1, "things") as bar:
            bar.advance()
        print_json({"count": count})

    @app.command()
    def other() -> None:
        pass

    return app


def test_version__is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told, _ = run("--version", monkeypatch, capsys)
    assert code == 0
    assert told.split()[0] == "mrd3d"
    assert told.split()[1][0].isdigit()


def run(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the toy app with this command line."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/python", *line.split()])
    with pytest.raises(SystemExit) as caught:
        run_app(toy())
    captured = capsys.readouterr()
    code = caught.value.code
    assert isinstance(code, int)
    return code, captured.out, captured.err


def test_run__success(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("go --count 3", monkeypatch, capsys)
    assert (code, json.loads(out)) == (0, {"count": 3})
    assert "error" not in err


@pytest.mark.parametrize("line", ["--quiet go", "go --quiet", "go --quiet --count 2"])
def test_run__quiet_leaves_results_and_errors(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(line, monkeypatch, capsys)
    assert (code, err) == (0, "")
    assert "count" in out
    assert "zero bytes" in run(f"{line} --end input", monkeypatch, capsys)[2]
    code, out, err = run("go", monkeypatch, capsys)  # of that line alone
    assert "a note" in err
    assert "work: 1/1 things" in err


def test_run__bad_input_is_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run("go --end input", monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert err == "error: /data/[b]a.glb: zero bytes; delete it\n"


def test_run__long_message_stays_on_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        console.fail("word " * 200)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("line", ["--debug go --end input", "go --end input --debug"])
def test_run__debug_adds_the_traceback_anywhere_on_the_line(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(line, monkeypatch, capsys)
    assert code == 2
    assert "Traceback" in err
    assert "raise InputError" in err
    assert err.endswith("error: /data/[b]a.glb: zero bytes; delete it\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("go --cuont 3", "No such option: --cuont"),
        ("go --cuont 3", "--count"),
        ("go --cuont 3", "see `toy go --help`"),
        ("go --count three", "'--count'"),
        ("go --count", "--count"),
        ("go --count 3 --end well --count=4", "--count: given 2 times"),
        ("go extra", "extra"),
        ("goo", "No such command 'goo'"),
        ("goo", "see `toy --help`"),
        ("--colour go", "--colour"),
    ],
)
def test_run__wrong_command_line_is_one_line_and_code_2(
    line: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(line, monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err


@pytest.mark.parametrize(
    ("line", "expected"), [("", 2), ("--help", 0), ("go --help", 0), ("go -h", 0)]
)
def test_run__help(
    line: str, expected: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(line, monkeypatch, capsys)
    assert code == expected
    assert "Usage: " in out + err
    assert "error" not in err


def test_run__too_many_failures_is_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("go --end failures", monkeypatch, capsys)[0] == 3


@pytest.mark.parametrize("end", ["interrupt", "abort", "sigterm"])
def test_run__interrupted_it_tells_that_nothing_was_written_and_is_code_130(
    end: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(f"go --end {end}", monkeypatch, capsys)
    assert code == 130
    assert err.endswith("interrupted: nothing was written\n")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_run__a_bug_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["toy", "go", "--end", "bug"])
    with pytest.raises(RuntimeError, match="a bug"):
        run_app(toy())


def test_run__reader_of_the_pipe_that_leaves_is_no_noise() -> None:
    code = (
        "import sys, time; from pipeline.console import *\n"
        "app = make_app('toy', 'A toy.')\n"
        "@app.command()\n"
        "def go():\n"
        "    sys.stdin.read()\n"
        "    print_json(list(range(3)))\n"
        "app.command('other')(lambda: None)\n"
        "run_app(app)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "go"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # before anything is written
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_print_json__takes_what_a_query_gives(capsys: pytest.CaptureFixture[str]) -> None:
    print_json([{"rgb": b"\x00\xff", "day": date(2024, 5, 1), "n": 1, "none": None, "ü": [1.5]}])
    print_json(
        {"price": Decimal("1.50"), "share": math.nan, "ratio": (math.inf, True), "at": Path("a")}
    )
    first, second = capsys.readouterr().out.split("\n{")
    assert json.loads(first) == [
        {"rgb": "00ff", "day": "2024-05-01", "n": 1, "none": None, "ü": [1.5]}
    ]
    told = {"price": 1.5, "share": None, "ratio": [None, True], "at": "a"}
    assert json.loads("{" + second) == told


def test_print_table__is_not_folded_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ["x" * 150, "y" * 150]
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table("", ["a", "b"], [row])
    assert f"│ {row[0]} │ {row[1]} │" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "80")
    print_table("", ["a", "b"], [row])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_print_table__cells_are_text_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("[title]", ["name", "value"], [["[/x]", 1], ["[red]y", 123456.789]])
    out = capsys.readouterr().out
    for text in ("[title]", "[/x]", "[red]y", "1.235e+05"):
        assert text in out


def test_print_table__numbers_are_right_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("t", ["name", "n"], [["a", 1], ["b", 1000]])
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert lines[0].endswith("   1 │")
    assert lines[1].endswith("1000 │")


def test_note__brackets_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    note("[/data] and [b]")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "[/data] and [b]\n")


class Clock:
    """A clock that stands until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_progress__plain_lines_at_most_every_interval(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with ProgressBar("embed", 100, "objects", plain_every_s=10.0, clock=clock) as bar:
        for _ in range(40):  # 2 objects a second, told at 10 s and 20 s
            clock.now += 0.5
            bar.advance(1, "2 [failed]")
    assert capsys.readouterr().err.splitlines() == [
        "embed: 20/100 objects, 2/s, 40 s left, 2 [failed]",
        "embed: 40/100 objects, 2/s, 30 s left, 2 [failed]",
    ]


def test_progress__unknown_total_has_no_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with ProgressBar("embed", None, "objects", clock=clock) as bar:
        clock.now += 4
        bar.advance(10)
        assert bar.rate == pytest.approx(2.5)
    assert capsys.readouterr().err == "embed: 10 objects, 2.5/s\n"


def test_progress__nothing_done_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("embed", 0, "objects", clock=Clock()):
        pass
    assert capsys.readouterr().err == ""


def test_progress__short_work_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    for seconds in (1.9, 2.0):
        with ProgressBar("open", 8, "parts", after_s=2.0, clock=clock) as bar:
            clock.now += seconds
            bar.advance(8)
    assert capsys.readouterr().err == "open: 8/8 parts, 4/s, 0 s left\n"


@pytest.mark.parametrize("seconds", [1, 3])
def test_progress__terminal_shows_no_bar_of_short_work(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Console(force_terminal=True, width=140, record=True, file=sys.stdout)
    monkeypatch.setattr(console, "err", terminal)
    clock = Clock()
    with ProgressBar("open", 4, "parts", after_s=2.0, clock=clock) as bar:
        clock.now += seconds
        bar.advance(4)
    assert ("4/4" in terminal.export_text()) == (seconds > 2)


def test_progress__last_line_comes_with_an_error_too(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()

    def work() -> None:
        with ProgressBar("embed", 8, "objects", clock=clock) as bar:
            clock.now += 1
            bar.advance(2)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert capsys.readouterr().err == "embed: 2/8 objects, 2/s, 3 s left\n"


def test_progress__terminal_shows_a_bar_with_rate_and_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Console(force_terminal=True, width=140, record=True, file=sys.stdout)
    monkeypatch.setattr(console, "err", terminal)
    with ProgressBar("embed [x]", 4, "objects", clock=time.monotonic) as bar:
        bar.advance(4, "1 [/failed]")
    text = terminal.export_text()
    for part in ("embed [x]", "4/4", "objects/s", "1 [/failed]"):
        assert part in text
