"""``pipeline import`` and ``pipeline export``: other layouts to shards, and shards to others."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import ShardsArgument
from pipeline.console import (
    EXIT_TOO_MANY_FAILURES,
    INPUT,
    MAX_FAILURES,
    OUTPUT,
    SPLIT,
    VIEWS,
    WORKERS,
    JsonOption,
    MaxFailuresOption,
    OverwriteOption,
    goes_on,
    note,
    print_json,
)


class Kind(StrEnum):
    """What is imported."""

    openshape = "openshape"
    openshape_lvis = "openshape-lvis"
    openshape_modelnet40 = "openshape-modelnet40"
    openshape_scanobjectnn = "openshape-scanobjectnn"


class Format(StrEnum):
    """What is exported."""

    npz = "npz"
    webdataset = "webdataset"
    openshape = "openshape"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="import")(import_)
    app.command()(export)


def import_(
    kind: Annotated[Kind, typer.Argument(help="The training data, or an evaluation set.")],
    root: Annotated[Path, typer.Argument(help="Folder of the release: archives and meta_data/.")],
    out: Annotated[
        str,
        typer.Option("--out", help="Shard set to write or continue.", rich_help_panel=OUTPUT),
    ],
    split_file: Annotated[
        str,
        typer.Option(
            "--split-file",
            help="Training objects to import: train_all, train_no_lvis, train_shapenet_only, all "
            "(every object found), or a JSON file in the same format.",
            rich_help_panel=INPUT,
        ),
    ] = "train_all",
    holdout_lvis: Annotated[
        bool,
        typer.Option(
            "--holdout-lvis/--train-on-lvis",
            help="Assign LVIS objects to the split `test`.",
            rich_help_panel=SPLIT,
        ),
    ] = False,
    text_filter: Annotated[
        bool,
        typer.Option(
            "--text-filter/--no-text-filter",
            help="Omit the raw texts that gpt4_filtering.json marks N.",
            rich_help_panel=INPUT,
        ),
    ] = True,
    up_axis: Annotated[
        str, typer.Option("--up-axis", help="Up axis of the stored clouds.", rich_help_panel=INPUT)
    ] = "+y",
    points: Annotated[
        int, typer.Option("--points", min=16, help="Points per object.", rich_help_panel=VIEWS)
    ] = 10_000,
    views: Annotated[
        int, typer.Option("--views", min=1, help="Views per object.", rich_help_panel=VIEWS)
    ] = 12,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Processes; default: one per CPU.", rich_help_panel=WORKERS
        ),
    ] = None,
    rows_per_part: Annotated[
        int,
        typer.Option(
            "--rows-per-part", min=1, help="Objects per Parquet file.", rich_help_panel=OUTPUT
        ),
    ] = 256,
    count: Annotated[
        int | None,
        typer.Option(
            "--count", min=1, help="Maximum number of new objects.", rich_help_panel=INPUT
        ),
    ] = None,
    max_failures: MaxFailuresOption = MAX_FAILURES,
    retry_failures: Annotated[
        bool,
        typer.Option(
            "--retry-failures",
            help="Try again objects that failed in earlier runs.",
            rich_help_panel=WORKERS,
        ),
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Convert released point clouds and embeddings to shards, without a renderer or a teacher.

    Reads packed archives as streams, and unpacked folders. Run the same command again to resume
    after an interruption.

    Examples:

      pipeline import openshape release/ --out shards/openshape --holdout-lvis

      pipeline import openshape-modelnet40 release/ --out shards/modelnet40
    """
    from pipeline.imports.openshape_eval import EvalOptions, import_eval
    from pipeline.imports.run import ImportOptions, import_openshape, tell

    goes_on(out)
    if kind in (Kind.openshape, Kind.openshape_lvis):
        summary = import_openshape(
            ImportOptions(
                root=root,
                out=out,
                only_lvis=kind is Kind.openshape_lvis,
                split_file=split_file,
                holdout_lvis=holdout_lvis,
                text_filter=text_filter,
                up_axis=up_axis,
                n_points=points,
                n_views=views,
                workers=workers,
                rows_per_part=rows_per_part,
                max_failures=max_failures,
                retry_failures=retry_failures,
                limit=count,
            )
        )
    else:
        summary = import_eval(
            EvalOptions(
                root=root,
                out=out,
                name=kind.value.removeprefix("openshape-"),
                up_axis=up_axis,
                n_points=points,
                rows_per_part=rows_per_part,
                max_failures=max_failures,
                retry_failures=retry_failures,
                limit=count,
            )
        )
    tell(summary, out)
    if json_output:
        print_json(summary.to_json())
    if summary.too_many_failures:
        note(f"more than {max_failures:.0%} of the objects failed; see `pipeline inspect {out}`")
        raise typer.Exit(EXIT_TOO_MANY_FAILURES)


def export(
    shards: ShardsArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.", rich_help_panel=OUTPUT)],
    layout: Annotated[
        Format, typer.Option("--format", help="Layout of the files.", rich_help_panel=OUTPUT)
    ],
    rows_per_file: Annotated[
        int,
        typer.Option(
            "--rows-per-file",
            min=1,
            help="Objects per file; with npz, 1 writes one file per object, named by uid.",
            rich_help_panel=OUTPUT,
        ),
    ] = 1000,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Export a shard set as .npz files, WebDataset tars, or in OpenShape's layout.

    Example:

      pipeline export shards/mine --format webdataset --out exported/
    """
    from pipeline.export import export as run

    summary = run(shards, out, layout.value, rows_per_file=rows_per_file, overwrite=overwrite)
    note(f"{out}: {summary.objects} objects in {summary.files} files, {summary.bytes:,} bytes")
    if json_output:
        print_json(summary.to_json())
