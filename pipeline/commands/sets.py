"""Commands that look into a shard set: ``pipeline inspect`` and ``pipeline query``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import ShardsArgument
from pipeline.console import JsonOption, print_json, print_table

if TYPE_CHECKING:
    from pipeline.catalog import Inspection


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(inspect)
    app.command()(query)


def inspect(shards: ShardsArgument, json_output: JsonOption = False) -> None:
    """Print counts, categories, teacher, failures by reason and size of a shard set."""
    from pipeline.catalog import inspect as look

    found = look(shards)
    if json_output:
        print_json(found.to_json())
    else:
        show_inspection(found)


def show_inspection(found: Inspection) -> None:
    """Print an inspection as tables."""
    rows: list[list[object]] = [
        ["objects", found.rows],
        ["failures", found.failures],
        ["files, bytes", f"{found.parts}, {found.bytes_on_disk:,}"],
        ["teacher, width", f"{found.teacher}, {found.embed_width}"],
        ["views", f"{found.n_views} of {found.image_size} px"],
        ["points", f"{found.n_points:,}"],
        ["with colour", found.rows_with_color],
        ["without text", found.rows_without_text],
        ["texts", ", ".join(f"{k} {v}" for k, v in found.text_sources.items()) or "none"],
        ["splits", ", ".join(f"{k} {v}" for k, v in found.splits.items()) or "none"],
        ["faces", ", ".join(f"{k} {v:,}" for k, v in found.n_faces.items()) or "-"],
    ]
    if found.duplicates:
        rows.append(["DUPLICATE UIDS", found.duplicates])
    print_table(found.root, ["", ""], [[k, str(v)] for k, v in rows])
    if found.categories:
        print_table(
            f"categories ({found.n_categories})",
            ["category", "objects"],
            [list(item) for item in found.categories.items()],
        )
    if found.failure_kinds:
        print_table(
            "failures",
            ["stage", "error", "objects", "for example"],
            [
                [k.stage, k.error, k.count, f"{k.example_uid}: {k.example}"]
                for k in found.failure_kinds
            ],
        )


def query(
    shards: ShardsArgument,
    sql: Annotated[str, typer.Argument(help="SQL over the views `shards` and `failures`.")],
    json_output: JsonOption = False,
) -> None:
    """Run SQL (DuckDB) on the metadata of a shard set.

    Example:

      pipeline query shards/mine "select category, count(*) from shards group by 1 order by 2 desc"
    """
    from pipeline.catalog import query as run

    columns, rows = run(shards, sql)
    if json_output:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        print_table("", columns, [list(row) for row in rows])
