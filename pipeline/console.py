"""One command-line manner for all three packages: Typer app, errors, exit codes, progress bar.

Exit codes: 0 success, 2 bad input (one line, no traceback unless ``--debug``), 3 too many failed
objects, 130 interrupted (Ctrl-C, SIGTERM).
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from types import TracebackType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from pipeline.common import InputError, terminable, versions

EXIT_BAD_INPUT = 2
EXIT_TOO_MANY_FAILURES = 3
EXIT_INTERRUPTED = 130

_ANYWHERE = ("--debug", "--quiet")  # of a line: users add them at the end of an earlier command

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)
_UNBOUNDED = 10_000  # wider than any table
_quiet = False  # set by ``run_app``

# Typer carries its own copy of click since 0.2x and used the package before: the classes are
# found through what Typer exports, so that either works.
_UsageErrors: tuple[type[Exception], ...] = tuple(
    kind
    for kind in typer.BadParameter.__mro__
    if issubclass(kind, Exception) and kind.__name__ == "ClickException"
)

# Headings of the options in --help: those of one matter stand together, in every command.
INPUT = "Input"
SPLIT = "Duplicates and splits"
TEXTS = "Texts"
VIEWS = "Points and views"
MODEL = "Model and teacher"
TRAINING = "Training"
MEASURE = "Measurement"
SEARCH = "Retrieval"
WORKERS = "Workers and failures"
ESTIMATE = "Estimate"
SERVER = "Server"
OUTPUT = "Output"
PANELS = (
    INPUT, SPLIT, TEXTS, VIEWS, MODEL, TRAINING, MEASURE, SEARCH, WORKERS, ESTIMATE, SERVER, OUTPUT,
)  # fmt: skip

JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print JSON instead of a table.", rich_help_panel=OUTPUT),
]
MAX_FAILURES = 0.05
MaxFailuresOption = Annotated[
    float,
    typer.Option(
        "--max-failures",
        min=0,
        max=1,
        help="Fraction of failed objects above which the exit code is 3.",
        rich_help_panel=WORKERS,
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace existing output, once the new one is complete.",
        rich_help_panel=OUTPUT,
    ),
]


def _nothing() -> str:
    return "nothing was written"


_left: Callable[[], str] = _nothing


class _Command(TyperCommand):
    """A command that refuses an option given twice, of which the first would be lost unsaid."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
            for option, count in Counter(given).items():
                flag = getattr(option, "is_flag", False) or getattr(option, "count", False)
                if (
                    count > 1
                    and option.param_type_name == "option"
                    and not (option.multiple or flag)
                ):
                    raise InputError(
                        f"{max(option.opts, key=len)}: given {count} times, and takes one value"
                    )
        return super().parse_args(ctx, args)


class _App(typer.Typer):
    def command(self, name: str | None = None, **settings: Any) -> Any:
        return super().command(name, **{"cls": _Command, **settings})


def make_app(name: str, help_text: str) -> typer.Typer:
    """Typer app with the house's settings; every package's ``cli.py`` starts with it."""
    app = _App(
        name=name,
        help=help_text,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def root(
        debug: Annotated[
            bool, typer.Option("--debug", help="Show the traceback of an error.")
        ] = False,
        quiet: Annotated[
            bool,
            typer.Option("--quiet", help="Print only results and errors, no notes or progress."),
        ] = False,
        version: Annotated[
            bool,
            typer.Option("--version", help="Show the version.", callback=_version, is_eager=True),
        ] = False,
    ) -> None:
        del debug, quiet, version  # listed here for --help; run_app takes them off the line

    return app


def _version(asked: bool) -> None:
    if asked:
        out.print(f"mrd3d {versions('mrd3d')['mrd3d']}", highlight=False)
        raise typer.Exit


def run_app(app: typer.Typer) -> None:
    """Run ``app`` on ``sys.argv`` with the house's error style, then exit the process."""
    global _quiet
    interruption_leaves(_nothing)
    debug, _quiet = "--debug" in sys.argv, "--quiet" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument not in _ANYWHERE]
    try:
        with terminable():
            code = app(args=arguments, prog_name=app.info.name, standalone_mode=False)
        sys.stdout.flush()
        if code == EXIT_INTERRUPTED:  # newer versions of Typer turn Ctrl-C into this
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except InputError as error:
        if debug:
            traceback.print_exc()
        fail(str(error))
    except BrokenPipeError:
        # `... | head` has seen enough. Without this the interpreter complains when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)  # as Typer does when the pipe breaks inside of a command
    except _UsageErrors as error:
        _fail_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        err.print("[yellow]interrupted[/]: ", end="")
        err.print(" ".join(_left().split()), markup=False, highlight=False)
        sys.exit(EXIT_INTERRUPTED)


def interruption_leaves(told: str | Callable[[], str]) -> None:
    """Say what an interruption of the command leaves, and how to go on; asked when it comes.

    What a command does not say is that nothing was written: files appear when they are whole.
    """
    global _left
    _left = told if callable(told) else lambda: told


def goes_on(out: object, things: str = "parts") -> None:
    """``interruption_leaves`` of commands that keep finished ``things`` and skip them next time."""
    interruption_leaves(
        f"finished {things} are kept in {out}; run the same command again to continue"
    )


def _fail_usage(error: Any) -> NoReturn:
    """One line for a wrong command line; the help text when nothing was given."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(EXIT_BAD_INPUT)
    hint = f"; see `{context.command_path} --help`" if context is not None else ""
    fail(f"{error.format_message().rstrip('.')}{hint}")


def fail(message: str) -> NoReturn:
    """Print a one-line error and exit with code 2."""
    one_line = " ".join(message.split())
    err.print("[bold red]error[/]: ", end="")
    err.print(one_line, markup=False, highlight=False)
    sys.exit(EXIT_BAD_INPUT)


def note(message: str) -> None:
    """Print a line about what goes on to stderr, unless ``--quiet``; results alone go to stdout."""
    if _quiet:
        return
    # No markup: file names and messages may hold square brackets.
    err.print(message, markup=False, highlight=False)


def print_json(value: Any) -> None:
    """Print ``value`` as JSON to stdout, for pipes.

    Bytes are hex, decimals numbers, dates and the like text. NaN and infinity, which JSON has no
    word for, are null.
    """
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(text + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, str | int) else str(value)


def table_width() -> int:
    """Columns that a table on stdout may take: the terminal's, or ``COLUMNS``.

    A pipe or a file has no width, so that nothing is folded there.
    """
    return out.width if out.is_terminal or "COLUMNS" in os.environ else _UNBOUNDED


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table to stdout; numbers are right-aligned."""
    table = Table(title=Text(title), title_justify="left")
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows) and bool(rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(
            *[Text(f"{cell:.4g}" if isinstance(cell, float) else str(cell)) for cell in row]
        )
    # Rich prints no wider than its console is.
    wide = Console(file=out.file, width=table_width(), soft_wrap=True)
    (out if out.is_terminal else wide).print(table)


def tell_failed_before(count: int) -> None:
    """Name the objects that failed in an earlier run, which this one has left alone."""
    if count:
        note(f"  {count} of those were failures; --retry-failures tries them again")


class ProgressBar:
    """The one progress bar: rate, ETA and a free status on a terminal, plain lines elsewhere.

    Used as a context manager. ``advance(n, status)`` adds ``n`` finished units. Work that ends
    within ``after_s`` shows nothing.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        unit: str,
        *,
        plain_every_s: float = 10.0,
        after_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self._plain_every_s, self._after_s, self._clock = plain_every_s, after_s, clock
        self._done, self._start, self._last_line = 0, clock(), clock()
        self._told = 0  # done when the last plain line was printed
        self._status = ""
        self._bar: Progress | None = None
        if err.is_terminal and not _quiet:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}", markup=False),
                console=err,
                transient=False,
            )
            self._task = self._bar.add_task(label, total=total, rate="", status="")

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return self._done / max(self._clock() - self._start, 1e-9)

    def __enter__(self) -> ProgressBar:
        self._show()
        return self

    def _show(self) -> bool:
        """Whether it is time to show anything; the bar of a terminal starts then."""
        due = self._clock() - self._start >= self._after_s
        if self._bar and due:
            self._bar.start()  # which does nothing from the second time on
        return due

    def advance(self, count: int = 1, status: str = "") -> None:
        """Add ``count`` finished units and show ``status`` at the end of the line."""
        self._done += count
        self._status = status
        shown = self._show()
        if self._bar:
            rate = f"{self.rate:.3g} {self.unit}/s"
            self._bar.update(self._task, advance=count, rate=rate, status=status)
        elif shown and self._clock() - self._last_line >= self._plain_every_s:
            self._last_line = self._clock()
            self._print_line()

    def _print_line(self) -> None:
        self._told = self._done
        total = f"/{self.total}" if self.total is not None else ""
        eta = ""
        if self.total is not None and self._done:
            eta = f", {(self.total - self._done) / self.rate:.0f} s left"
        status = f", {self._status}" if self._status else ""
        note(f"{self.label}: {self._done}{total} {self.unit}, {self.rate:.3g}/s{eta}{status}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            if self._bar.live.is_started:
                self._bar.stop()
        elif self._done != self._told and self._show():
            self._print_line()
