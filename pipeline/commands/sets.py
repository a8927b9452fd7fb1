"""Commands that look into a shard set: ``pipeline inspect``, ``query`` and ``verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import NearOption, ShardsArgument
from pipeline.console import (
    EXIT_BAD_INPUT,
    MEASURE,
    OUTPUT,
    JsonOption,
    OverwriteOption,
    interruption_leaves,
    note,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from pipeline.catalog import Inspection
    from pipeline.sets.verify import Verdict


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(inspect)
    app.command()(query)
    app.command()(verify)


def inspect(
    shards: ShardsArgument,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            help="Also write a page: distributions, near-duplicates, outliers, pictures.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    near: NearOption = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Print the counts, categories, teacher, failures by reason and size of a shard set.

    Example:

      pipeline inspect shards/mine --html mine.html
    """
    from pipeline.catalog import inspect as look

    if html is not None:
        from pipeline.catalog.analysis import analyse
        from pipeline.catalog.page import write_page
        from pipeline.common import check_new

        check_new(html, "--html", overwrite)  # before a set of any size is looked through
        write_page(html, shards, analyse(shards, near=near))
        note(f"{html}: written")
        interruption_leaves(f"{html} is written")
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
        ["finished", found.state],
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


def verify(
    shards: ShardsArgument,
    order_sample: Annotated[
        int,
        typer.Option(
            "--order-sample",
            min=0,
            help="Objects whose whole farthest-point order is checked; in all others, only the "
            "first 64 points are.",
            rich_help_panel=MEASURE,
        ),
    ] = 100,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", min=0, help="Seed that selects these objects.", rich_help_panel=MEASURE
        ),
    ] = 0,
    show: Annotated[
        int,
        typer.Option(
            "--show", min=1, help="Maximum number of problems to print.", rich_help_panel=OUTPUT
        ),
    ] = 20,
    json_output: JsonOption = False,
) -> None:
    """Read a whole shard set and report every problem.

    Checks hashes and checksums of every file, the range of coordinates, the norm of embeddings,
    the order of points, uids, and kept pictures. The exit code is 0 if the set is sound, else 2.

    Example:

      pipeline verify shards/mine
    """
    from pipeline.sets.verify import verify_set

    verdict = verify_set(shards, order_sample=order_sample, seed=seed)
    if json_output:
        print_json(verdict.to_json())
    else:
        _show_verdict(verdict)
    for problem in verdict.problems[:show]:
        note(f"problem: {problem.line}")
    count = sum(verdict.by_check.values())
    if count > show:
        note(f"... and {count - min(show, len(verdict.problems)):,} more")
    if not verdict.sound:
        raise typer.Exit(EXIT_BAD_INPUT)


def _show_verdict(verdict: Verdict) -> None:
    from pipeline.sets.verify import CHECKS

    rows: list[list[object]] = [
        [check, told, verdict.looked_at.get(check, 0), verdict.by_check.get(check, 0)]
        for check, told in CHECKS.items()
        if check in verdict.looked_at or check in verdict.by_check
    ]
    title = f"{verdict.root}: {'sound' if verdict.sound else 'NOT SOUND'}"
    print_table(title, ["check", "what it checks", "checked", "problems"], [list(r) for r in rows])
    for told in verdict.notes:
        note(f"note: {told}")
