"""``pipeline doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.console import MODEL, OUTPUT, WORKERS, JsonOption, print_json, print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    teacher: Annotated[
        str,
        typer.Option("--teacher", help="Teacher to load, as for `embed`.", rich_help_panel=MODEL),
    ] = "demo",
    out: Annotated[
        str,
        typer.Option(
            "--out", help="Output location whose free space to check.", rich_help_panel=OUTPUT
        ),
    ] = ".",
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="Ray cluster to check; default: start one here.",
            rich_help_panel=WORKERS,
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Check what a job needs on this machine, and suggest a fix for whatever is missing.

    The exit code is 1 if something that every job needs does not work.

    Example:

      pipeline doctor --teacher ViT-B-32:laion2b_s34b_b79k --out shards/
    """
    from dataclasses import asdict

    from pipeline.doctor import checks

    found = list(checks(teacher, out, address))
    if json_output:
        print_json([asdict(check) for check in found])
    else:
        words = {"ok": "ok", "missing": "missing", "broken": "BROKEN"}
        rows: list[list[object]] = [
            [check.name, words[check.state], check.told, check.remedy] for check in found
        ]
        print_table("What a job needs", ["", "", "found", "what to do"], rows)
    if any(check.state == "broken" for check in found):
        raise typer.Exit(1)
