"""``evaluation report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evaluation.commands.options import DeviceOption, TeacherOption, check_result
from pipeline.common import InputError
from pipeline.console import INPUT, OUTPUT, SEARCH, JsonOption, OverwriteOption, print_json
from pipeline.console import out as stdout


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(
    results: Annotated[
        list[Path],
        typer.Argument(help="Result files of `zeroshot`, `recall`, `probe` and `parts`."),
    ],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.", rich_help_panel=OUTPUT)],
    title: Annotated[
        str, typer.Option("--title", help="Heading of the page.", rich_help_panel=OUTPUT)
    ] = "Evaluation",
    gallery: Annotated[
        Path | None,
        typer.Option("--gallery", help="Index to search for --queries.", rich_help_panel=SEARCH),
    ] = None,
    queries: Annotated[
        list[str] | None,
        typer.Option(
            "--queries",
            "--query",
            help="Text to search for; repeatable.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            "--shards", help="Shard set with the clouds of the gallery.", rich_help_panel=SEARCH
        ),
    ] = None,
    k: Annotated[
        int,
        typer.Option(
            "-k", "--top", min=1, max=24, help="Pictures per query.", rich_help_panel=SEARCH
        ),
    ] = 6,
    runs: Annotated[
        list[Path] | None,
        typer.Option(
            "--run", help="Run folder whose curves to show; repeatable.", rich_help_panel=INPUT
        ),
    ] = None,
    maps: Annotated[
        list[Path] | None,
        typer.Option(
            "--map",
            help="Embeddings file to show as a map; repeatable.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    teacher: TeacherOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Write a self-contained HTML page: results, differences, confusions, curves, maps, shapes.

    Examples:

      evaluation report zeroshot.json recall.json --out report.html --run runs/mrd

      evaluation report z.json --out r.html --gallery idx --shards set --query "a red mug"
    """
    from evaluation.gallery import build_gallery
    from evaluation.report import read_results, write_report
    from evaluation.student import pick_device
    from evaluation.tables import comparison_tables, comparisons

    check_result(out, overwrite)
    asked = [gallery is not None, bool(queries), shards is not None]
    if any(asked) and not all(asked):
        raise InputError("a gallery needs all of --gallery INDEX, --queries TEXT and --shards SET")
    records = read_results(results)
    rows = []
    if gallery is not None and shards is not None:
        rows = build_gallery(gallery, queries or [], shards, k, teacher, pick_device(device))
    write_report(out, title, records, rows, runs or [], maps or [])
    if json_output:
        tables = [
            {"title": title, "columns": columns, "rows": rows}
            for title, columns, rows in comparisons(records)
        ]
        print_json({"out": str(out), "tables": tables})
        return
    comparison_tables(records)
    stdout.print(f"report: {out}", highlight=False, markup=False)
