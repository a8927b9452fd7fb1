"""``evaluation published``."""

from __future__ import annotations

import typer

from pipeline.console import JsonOption, print_json, print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(published)


def published(json_output: JsonOption = False) -> None:
    """List what papers report, which results of the same benchmarks are shown beside.

    Example: evaluation published --json
    """
    from evaluation.published import published as known
    from evaluation.published import tables

    if json_output:
        print_json(known())
        return
    for title, columns, rows in tables():
        print_table(title, columns, rows)
