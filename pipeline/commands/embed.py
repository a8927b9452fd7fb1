"""``pipeline embed``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pipeline.commands.caption_options import (
    CaptionerOption,
    CaptionerViewsOption,
    CaptionsOption,
    TextSourcesOption,
    TextsPerSourceOption,
    caption_options,
)
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
    chosen_renderer,
    source_options,
)
from pipeline.common import byte_size
from pipeline.console import (
    ESTIMATE,
    EXIT_TOO_MANY_FAILURES,
    MAX_FAILURES,
    MODEL,
    OUTPUT,
    SPLIT,
    VIEWS,
    WORKERS,
    JsonOption,
    MaxFailuresOption,
    goes_on,
    note,
    print_json,
)
from pipeline.datasets.sources import make_dataset


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(embed)


def embed(
    dataset: DatasetOption,
    out: Annotated[
        str,
        typer.Option("--out", help="Shard set to write or continue.", rich_help_panel=OUTPUT),
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
    captions: CaptionsOption = None,
    text_sources: TextSourcesOption = None,
    texts_per_source: TextsPerSourceOption = None,
    captioner: CaptionerOption = None,
    captioner_views: CaptionerViewsOption = 4,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher",
            help="demo (default), MODEL:TAG, MODEL:/path/to/weights, hf-hub:ORG/NAME. Repeat it "
            "to encode with several in one pass: each gets its own shard set in --out.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    text_embeddings: Annotated[
        str | None,
        typer.Option(
            "--text-embeddings",
            help="Vectors by name (.npy, .npz) that replace the text tower. Views are encoded by "
            "--teacher; without it, by demo if the widths match, otherwise not at all.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            "--names",
            help="Names of the rows of --text-embeddings: .txt, .json, .csv.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    cameras: CamerasOption = "ring",
    views: ViewsOption = None,
    fov: FovOption = None,
    image_size: SizeOption = 224,
    background: BackgroundOption = "white",
    light: LightOption = "headlight",
    thumbnail: Annotated[
        bool,
        typer.Option(
            "--thumbnail",
            help="Encode an additional three-quarter view that fills the frame.",
            rich_help_panel=VIEWS,
        ),
    ] = False,
    keep_images: Annotated[
        str | None,
        typer.Option(
            "--keep-images",
            metavar="FORMAT",
            help="Keep the views next to the shards: webp (quality 90), webp-QUALITY, "
            "webp-lossless.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    points: Annotated[
        int, typer.Option("--points", min=16, help="Points per object.", rich_help_panel=VIEWS)
    ] = 10_000,
    renderer: RendererOption = "raster",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Render workers; default: every CPU.", rich_help_panel=WORKERS
        ),
    ] = None,
    worker_cpus: Annotated[
        float,
        typer.Option(
            "--worker-cpus",
            min=0.1,
            help="CPUs that each worker counts for; lower if workers wait.",
            rich_help_panel=WORKERS,
        ),
    ] = 1.0,
    encoders: Annotated[
        int | None,
        typer.Option(
            "--encoders",
            min=1,
            help="Encoders on GPUs; default: one per GPU.",
            rich_help_panel=WORKERS,
        ),
    ] = None,
    encoder_gpus: Annotated[
        float,
        typer.Option(
            "--encoder-gpus",
            min=0.05,
            help="GPUs that each encoder counts for.",
            rich_help_panel=WORKERS,
        ),
    ] = 1.0,
    object_store: Annotated[
        str,
        typer.Option(
            "--object-store",
            help="Memory of Ray's object store, if Ray is started here.",
            rich_help_panel=WORKERS,
        ),
    ] = "1GB",
    device: Annotated[
        str,
        typer.Option(
            "--device", help="Device of the teacher: auto, cpu, cuda.", rich_help_panel=MODEL
        ),
    ] = ("auto"),
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="Precision of the teacher: auto (by device), fp32, bf16, fp16.",
            rich_help_panel=MODEL,
        ),
    ] = "auto",
    address: Annotated[
        str | None,
        typer.Option("--address", help="Ray cluster to join, e.g. auto.", rich_help_panel=WORKERS),
    ] = None,
    rows_per_part: Annotated[
        int,
        typer.Option(
            "--rows-per-part", min=1, help="Objects per Parquet file.", rich_help_panel=OUTPUT
        ),
    ] = 256,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", min=1, help="Seconds allowed per object.", rich_help_panel=WORKERS
        ),
    ] = 120.0,
    max_failures: MaxFailuresOption = MAX_FAILURES,
    holdout: Annotated[
        float,
        typer.Option(
            "--holdout",
            min=0,
            max=0.9,
            help="Fraction of the objects without a split to assign to `test`.",
            rich_help_panel=SPLIT,
        ),
    ] = 0.0,
    retry_failures: Annotated[
        bool,
        typer.Option(
            "--retry-failures",
            help="Try again objects that failed in earlier runs.",
            rich_help_panel=WORKERS,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only estimate size, time and cost from a few objects.",
            rich_help_panel=ESTIMATE,
        ),
    ] = False,
    dry_run_objects: Annotated[
        int,
        typer.Option(
            "--dry-run-objects",
            min=1,
            help="Objects used for the estimate.",
            rich_help_panel=ESTIMATE,
        ),
    ] = 8,
    price_per_hour: Annotated[
        float | None,
        typer.Option(
            "--price-per-hour",
            min=0,
            help="Price of all machines together, for --dry-run.",
            rich_help_panel=ESTIMATE,
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Render, encode and sample every object, and write embedding shards.

    Run the same command again to resume after an interruption: finished objects are skipped.

    Examples:

      pipeline embed --dataset folder --root meshes/ --out shards/mine

      pipeline embed --dataset procedural --count 2000 --out shards/proc

      pipeline embed --dataset folder --root meshes/ --captions cap3d=Cap3D.csv --out shards/mine

      pipeline embed --dataset folder --root meshes/ --text-embeddings lvis.npz --out shards/lvis
    """
    from pipeline.cameras import make_cameras
    from pipeline.job import EmbedOptions, tell
    from pipeline.job import embed as run
    from pipeline.objects import ObjectSettings
    from pipeline.pictures import kept_format
    from pipeline.renderers.base import make_config
    from pipeline.teachers.vectors import teacher_specs

    specs = teacher_specs(teacher or [], text_embeddings, names)
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
    objects = ObjectSettings(
        dataset=source,
        cameras=make_cameras(cameras, views, fov),
        render=make_config(image_size, background, light),
        renderer=chosen_renderer(renderer),
        n_points=points,
        n_fps=min(points, 2048),
        thumbnail=thumbnail,
        keep_images=kept_format(keep_images) if keep_images else None,
        captions=caption_options(
            captions, text_sources, texts_per_source, captioner, captioner_views
        ),
    )
    options = EmbedOptions(
        objects=objects,
        out=out,
        teachers=specs,
        teacher_options={"precision": precision},
        workers=workers,
        worker_cpus=worker_cpus,
        encoders=encoders,
        encoder_gpus=encoder_gpus,
        object_store_bytes=byte_size("--object-store", object_store),
        device=device,
        address=address,
        rows_per_part=rows_per_part,
        timeout_s=timeout,
        max_failures=max_failures,
        retry_failures=retry_failures,
        limit=count,
        holdout=holdout,
    )
    if dry_run:
        from pipeline.estimate import estimate, show

        found = estimate(options, dry_run_objects, price_per_hour)
        if json_output:
            print_json(asdict(found))
        else:
            show(found)
        return
    goes_on(out)
    if text_embeddings and specs[0].count(",") < 2:  # no teacher of pictures
        note(f"{text_embeddings}: text embeddings only; the set has no views")
    summary = run(options)
    tell(summary, out)
    if json_output:
        print_json(asdict(summary))
    if summary.too_many_failures:
        note(f"more than {max_failures:.0%} of the objects failed; see `pipeline inspect {out}`")
        raise typer.Exit(EXIT_TOO_MANY_FAILURES)
