"""``evaluation report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evaluation.commands.options import DeviceOption, TeacherOption
from pipeline.common import InputError
from pipeline.console import out as stdout


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(
    results: Annotated[
        list[Path], typer.Argument(help="Result files of `zeroshot` and `recall`, any number.")
    ],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")],
    title: Annotated[str, typer.Option("--title", help="Heading of the page.")] = "Evaluation",
    gallery: Annotated[
        Path | None, typer.Option("--gallery", help="Index to answer --queries from.")
    ] = None,
    queries: Annotated[
        list[str] | None,
        typer.Option("--queries", "--query", help="Text to search for; may be repeated."),
    ] = None,
    shards: Annotated[
        str | None, typer.Option("--shards", help="Shard set with the clouds of the gallery.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--top", min=1, max=24, help="Pictures a query.")] = 6,
    runs: Annotated[
        list[Path] | None,
        typer.Option("--run", help="Run folder whose curves to show; may be repeated."),
    ] = None,
    maps: Annotated[
        list[Path] | None,
        typer.Option("--map", help="Embeddings file to show as a map; may be repeated."),
    ] = None,
    teacher: TeacherOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Write one self-contained HTML page: figures, differences, confusion, curves, maps, shapes.

    Example: evaluation report z.json r.json --out report.html --gallery mugs.index
    --queries "a red mug" --shards shards/test --run runs/mrd
    """
    from evaluation.gallery import build_gallery
    from evaluation.report import read_results, write_report
    from evaluation.student import pick_device
    from evaluation.tables import comparison_tables

    asked = [gallery is not None, bool(queries), shards is not None]
    if any(asked) and not all(asked):
        raise InputError("a gallery needs all of --gallery INDEX, --queries TEXT and --shards SET")
    records = read_results(results)
    rows = []
    if gallery is not None and shards is not None:
        rows = build_gallery(gallery, queries or [], shards, k, teacher, pick_device(device))
    write_report(out, title, records, rows, runs or [], maps or [])
    comparison_tables(records)
    stdout.print(f"report: {out}", highlight=False, markup=False)
