"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.common import byte_size
from pipeline.console import INPUT, SPLIT, VIEWS, note
from pipeline.datasets.sources import SourceOptions
from pipeline.shards.storage import Storage, is_uri

DatasetOption = Annotated[
    str,
    typer.Option(
        "--dataset",
        help="Source of the objects: see `pipeline datasets`; or a Python file with a SOURCE.",
        rich_help_panel=INPUT,
    ),
]
RootOption = Annotated[
    str | None,
    typer.Option(
        "--root",
        help="Folder with the files of the source; for `folder` also s3://bucket/folder.",
        rich_help_panel=INPUT,
    ),
]
MetadataOption = Annotated[
    Path | None,
    typer.Option(
        "--metadata",
        help="CSV or Parquet with captions and categories (folder, points); taxonomy.json "
        "(shapenet) or model_info.json (3d-future) if it is not in --root.",
        rich_help_panel=INPUT,
    ),
]
UpAxisOption = Annotated[
    str | None,
    typer.Option(
        "--up-axis",
        help="Up axis of the files: auto, +x, -x, +y, -y, +z or -z.",
        rich_help_panel=INPUT,
    ),
]
CountOption = Annotated[
    int | None,
    typer.Option(
        "--count",
        min=1,
        help="Number of objects (procedural), or maximum number (other sources).",
        rich_help_panel=INPUT,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="Seed of the procedural objects.", rich_help_panel=INPUT),
]
SubsetOption = Annotated[
    str | None,
    typer.Option("--subset", help="Part or variant of the source.", rich_help_panel=INPUT),
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split", help="Only this split of the source: train, val, test.", rich_help_panel=INPUT
    ),
]
PatternOption = Annotated[
    str | None,
    typer.Option(
        "--pattern", help="Only files that match, as in a shell: *_lod0.glb.", rich_help_panel=INPUT
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Folder for downloads (objaverse, objaverse-xl).",
        rich_help_panel=INPUT,
    ),
]
CacheSizeOption = Annotated[
    str | None,
    typer.Option(
        "--cache-size", help="Maximum size of the cache: 500MB, 50GB.", rich_help_panel=INPUT
    ),
]
DeleteOption = Annotated[
    bool | None,
    typer.Option(
        "--delete-after-use/--keep",
        help="Delete each downloaded mesh after embedding it.",
        rich_help_panel=INPUT,
    ),
]
CamerasOption = Annotated[
    str,
    typer.Option(
        "--cameras",
        help="Camera positions: ring, sphere, openshape, ulip.",
        rich_help_panel=VIEWS,
    ),
]
ViewsOption = Annotated[
    int | None,
    typer.Option(
        "--views", min=1, help="Views per object; default: 12, or ULIP's 30.", rich_help_panel=VIEWS
    ),
]
FovOption = Annotated[
    float | None,
    typer.Option(
        "--fov",
        help="Field of view in degrees; default: 40, or 49 (openshape, ulip).",
        rich_help_panel=VIEWS,
    ),
]
BackgroundOption = Annotated[
    str, typer.Option("--background", help="white, black, grey or #rrggbb.", rich_help_panel=VIEWS)
]
LightOption = Annotated[
    str,
    typer.Option(
        "--light",
        help="headlight, soft, flat (surface colours), or AMBIENT,DIFFUSE.",
        rich_help_panel=VIEWS,
    ),
]
SizeOption = Annotated[
    int,
    typer.Option(
        "--image-size", min=16, max=2048, help="Pixels per side of a view.", rich_help_panel=VIEWS
    ),
]
RendererOption = Annotated[
    str,
    typer.Option(
        "--renderer",
        help="raster, gl (OpenGL), or auto: gl if there is a GPU.",
        rich_help_panel=VIEWS,
    ),
]
NearOption = Annotated[
    float | None,
    typer.Option(
        "--near",
        help="Minimum cosine of near-duplicates; default: 0.99 for mean image embeddings, or "
        "0.984 to 0.998, by the number of points, for point occupancy if there are no views.",
        rich_help_panel=SPLIT,
    ),
]
ShardsArgument = Annotated[str, typer.Argument(help="Shard set: a folder or a URI.")]


def source_options(cache_size: str | None, root: str | None, **given: Any) -> SourceOptions:
    """The options about the source as they stand on the command line. Raises ``InputError``."""
    limit = None if cache_size is None else byte_size("--cache-size", cache_size)
    place: dict[str, Any] = {"root": None if root is None else Path(root)}
    if root is not None and is_uri(root):
        storage = Storage.at(root)
        place = {"root": Path(storage.path)} if storage.is_local else {"root_uri": root}
    return SourceOptions(cache_bytes=limit, **place, **given)


def chosen_renderer(name: str) -> str:
    """The renderer that ``--renderer`` means on this machine, told where it was left open."""
    from pipeline.renderers import get_renderer

    found = get_renderer(name).name
    if name == "auto":
        note(f"--renderer auto: drawing with {found}")
    return found
