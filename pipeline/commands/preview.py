"""``pipeline preview`` and ``pipeline datasets``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import (
    BackgroundOption,
    CacheOption,
    CacheSizeOption,
    CamerasOption,
    CountOption,
    DatasetOption,
    DeleteOption,
    FovOption,
    LightOption,
    MetadataOption,
    PatternOption,
    RendererOption,
    RootOption,
    SeedOption,
    SizeOption,
    SplitOption,
    SubsetOption,
    UpAxisOption,
    ViewsOption,
    source_options,
)
from pipeline.console import (
    OUTPUT,
    VIEWS,
    JsonOption,
    OverwriteOption,
    note,
    print_json,
    print_table,
)
from pipeline.datasets.sources import make_dataset, sources


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(preview)
    app.command()(datasets)


def preview(
    dataset: DatasetOption,
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="Image file to write: .jpg, .png or .webp.", rich_help_panel=OUTPUT
        ),
    ],
    root: RootOption = None,
    metadata: MetadataOption = None,
    up_axis: UpAxisOption = None,
    count: CountOption = None,
    seed: SeedOption = None,
    subset: SubsetOption = None,
    split: SplitOption = None,
    pattern: PatternOption = None,
    cache: CacheOption = None,
    cache_size: CacheSizeOption = None,
    delete_after_use: DeleteOption = None,
    tiles: Annotated[
        int,
        typer.Option("--tiles", min=1, max=400, help="Pictures to show.", rich_help_panel=OUTPUT),
    ] = 48,
    columns: Annotated[
        int | None,
        typer.Option(
            "--columns",
            min=1,
            help="Pictures per line; default: 8, or the views of one object.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    cameras: CamerasOption = "ring",
    views: ViewsOption = None,
    fov: FovOption = None,
    view: Annotated[
        str,
        typer.Option(
            "--view",
            help="Which views to show: all, thumbnail, or numbers such as 0,6.",
            rich_help_panel=VIEWS,
        ),
    ] = "0",
    image_size: SizeOption = 160,
    background: BackgroundOption = "white",
    light: LightOption = "headlight",
    renderer: RendererOption = "raster",
    max_bytes: Annotated[
        int | None,
        typer.Option(
            "--max-bytes", min=1000, help="Maximum file size in bytes.", rich_help_panel=OUTPUT
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Draw a contact sheet of objects spread evenly over a source.

    Examples:

      pipeline preview --dataset folder --root meshes/ --out sheet.jpg

      pipeline preview --dataset procedural --cameras sphere --view all --out views.png
    """
    from pipeline.cameras import make_cameras
    from pipeline.common import check_new
    from pipeline.preview import check_suffix, preview_dataset
    from pipeline.renderers.base import make_config

    check_new(out, "--out", overwrite)
    check_suffix(out)
    source = make_dataset(
        dataset,
        source_options(
            root=root,
            metadata=metadata,
            up_axis=up_axis,
            count=count,
            seed=seed,
            subset=subset,
            split=split,
            pattern=pattern,
            cache=cache,
            cache_size=cache_size,
            delete_after_use=delete_after_use,
        ),
    )
    shown, failed = preview_dataset(
        source,
        out,
        tiles=tiles,
        columns=columns,
        cameras=make_cameras(cameras, views, fov),
        config=make_config(image_size, background, light),
        view=view,
        renderer=renderer,
        max_bytes=max_bytes,
    )
    for uid, reason in failed[:20]:
        note(f"{uid}: {reason}")
    told = f", {len(failed)} objects could not be drawn" if failed else ""
    note(f"{out}: {shown} pictures{told}")
    if json_output:
        print_json({"out": str(out), "pictures": shown, "failed": dict(failed)})


def datasets(json_output: JsonOption = False) -> None:
    """List the sources, with content, licence, size, and how to get them.

    Example:

      pipeline datasets
    """
    known = list(sources().values())
    if json_output:
        print_json([source.to_json() for source in known])
        return
    for source in known:
        told = source.to_json()
        options = [o + " (needed)" * (o in told["required"]) for o in told["options"]]
        print_table(
            source.name,
            ["", ""],
            [
                ["what", source.summary],
                ["licence", source.licence],
                ["size", source.size],
                ["to get it", source.get],
                *([["layout", source.layout]] if source.layout else []),
                *([["--subset", ", ".join(source.subsets)]] if source.subsets else []),
                ["options", ", ".join(options)],
            ],
        )
