"""``pipeline``: embed assets into shards, look into shards, draw contact sheets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.common import InputError
from pipeline.console import (
    EXIT_TOO_MANY_FAILURES,
    JsonOption,
    make_app,
    note,
    print_json,
    print_table,
    run_app,
)
from pipeline.datasets.base import Dataset

if TYPE_CHECKING:
    from pipeline.catalog import Inspection

app = make_app("pipeline", "Turn 3D assets into embedding shards, and look into them.")

DatasetOption = Annotated[
    str, typer.Option("--dataset", help="Where objects come from: folder or procedural.")
]
RootOption = Annotated[
    Path | None, typer.Option("--root", help="Folder of meshes, searched recursively (folder).")
]
MetadataOption = Annotated[
    Path | None,
    typer.Option("--metadata", help="CSV or Parquet with captions and categories (folder)."),
]
UpAxisOption = Annotated[
    str,
    typer.Option(
        "--up-axis", help="Up axis of the files: auto, +x, -x, +y, -y, +z or -z (folder)."
    ),
]
CountOption = Annotated[
    int | None,
    typer.Option("--count", min=1, help="How many objects (procedural), or at most (folder)."),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of the procedural objects.")]
ViewsOption = Annotated[int, typer.Option("--views", min=1, max=360, help="Views per object.")]
SizeOption = Annotated[
    int, typer.Option("--image-size", min=16, max=2048, help="Pixels per side of a view.")
]
ShardsArgument = Annotated[str, typer.Argument(help="Shard set: a folder or a URI.")]


def make_dataset(
    name: str,
    root: Path | None,
    metadata: Path | None,
    up_axis: str,
    count: int | None,
    seed: int,
) -> Dataset:
    """The dataset that the options name. Raises ``InputError`` that names the option."""
    if name == "procedural":
        from pipeline.datasets.procedural import ProceduralDataset

        if root is not None:
            raise InputError("--root: the procedural dataset has no folder; leave it out")
        if count is None:
            raise InputError("--count: say how many procedural objects to make")
        return ProceduralDataset(count=count, seed=seed)
    if name == "folder":
        from pipeline.datasets.folder import FolderDataset

        if root is None:
            raise InputError("--root: say which folder of meshes to read")
        return FolderDataset(root, metadata=metadata, up_axis=up_axis)
    raise InputError(f"--dataset {name}: unknown; use folder or procedural")


@app.command()
def embed(
    dataset: DatasetOption,
    out: Annotated[str, typer.Option("--out", help="Shard set to write or to go on with.")],
    root: RootOption = None,
    metadata: MetadataOption = None,
    up_axis: UpAxisOption = "auto",
    count: CountOption = None,
    seed: SeedOption = 0,
    teacher: Annotated[
        str,
        typer.Option("--teacher", help="demo, MODEL:TAG, MODEL:/path/to/weights, hf-hub:ORG/NAME."),
    ] = "demo",
    views: ViewsOption = 12,
    image_size: SizeOption = 224,
    points: Annotated[int, typer.Option("--points", min=16, help="Points per object.")] = 10_000,
    renderer: Annotated[str, typer.Option("--renderer", help="raster.")] = "raster",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Render workers; default: every CPU.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Of the teacher: auto, cpu, cuda.")] = (
        "auto"
    ),
    address: Annotated[
        str | None, typer.Option("--address", help="Ray cluster to join, e.g. auto.")
    ] = None,
    rows_per_part: Annotated[
        int, typer.Option("--rows-per-part", min=1, help="Objects per Parquet file.")
    ] = 256,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds that one object may take.")
    ] = 120.0,
    max_failures: Annotated[
        float,
        typer.Option("--max-failures", min=0, max=1, help="Failed fraction above which to exit 3."),
    ] = 0.05,
    holdout: Annotated[
        float,
        typer.Option(
            "--holdout", min=0, max=0.9, help="Fraction of objects without a split to mark `test`."
        ),
    ] = 0.0,
    retry_failures: Annotated[
        bool, typer.Option("--retry-failures", help="Try objects that failed before once more.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Render, encode and sample every object, and write embedding shards.

    Run the same command again to go on after an interruption: what is done is skipped.

    Examples:

      pipeline embed --dataset folder --root meshes/ --out shards/mine

      pipeline embed --dataset procedural --count 2000 --out shards/proc
    """
    from pipeline.cameras import ring
    from pipeline.job import EmbedOptions, tell
    from pipeline.job import embed as run
    from pipeline.objects import ObjectSettings
    from pipeline.renderers.base import RenderConfig

    source = make_dataset(dataset, root, metadata, up_axis, count, seed)
    objects = ObjectSettings(
        dataset=source,
        cameras=ring(views),
        render=RenderConfig(image_size=image_size),
        renderer=renderer,
        n_points=points,
        n_fps=min(points, 2048),
    )
    summary = run(
        EmbedOptions(
            objects=objects,
            out=out,
            teacher=teacher,
            workers=workers,
            device=device,
            address=address,
            rows_per_part=rows_per_part,
            timeout_s=timeout,
            max_failures=max_failures,
            retry_failures=retry_failures,
            limit=count,
            holdout=holdout,
        )
    )
    tell(summary, out)
    if json_output:
        print_json(asdict(summary))
    if summary.too_many_failures:
        note(f"more than {max_failures:.0%} failed; see `pipeline inspect {out}`")
        raise typer.Exit(EXIT_TOO_MANY_FAILURES)


@app.command()
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


@app.command()
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


@app.command()
def preview(
    dataset: DatasetOption,
    out: Annotated[Path, typer.Option("--out", help="Picture to write: .jpg, .png or .webp.")],
    root: RootOption = None,
    metadata: MetadataOption = None,
    up_axis: UpAxisOption = "auto",
    count: CountOption = None,
    seed: SeedOption = 0,
    tiles: Annotated[int, typer.Option("--tiles", min=1, max=400, help="Objects to show.")] = 48,
    columns: Annotated[int, typer.Option("--columns", min=1, help="Objects per line.")] = 8,
    image_size: SizeOption = 160,
    view: Annotated[int, typer.Option("--view", min=0, max=11, help="Which of 12 views.")] = 0,
    renderer: Annotated[str, typer.Option("--renderer", help="raster.")] = "raster",
    max_bytes: Annotated[
        int | None, typer.Option("--max-bytes", min=1000, help="Largest size of the file.")
    ] = None,
) -> None:
    """Draw a contact sheet of a source, spread evenly over it.

    Example:

      pipeline preview --dataset folder --root meshes/ --out sheet.jpg
    """
    from pipeline.preview import preview_dataset

    source = make_dataset(dataset, root, metadata, up_axis, count, seed)
    shown, failed = preview_dataset(
        source,
        out,
        tiles=tiles,
        columns=columns,
        image_size=image_size,
        view=view,
        renderer=renderer,
        max_bytes=max_bytes,
    )
    note(f"{out}: {shown} objects" + (f", {failed} could not be drawn" if failed else ""))


def main() -> None:
    """Console entry point."""
    run_app(app)
