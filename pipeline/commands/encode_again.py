"""``pipeline encode-again``."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.commands.options import ShardsArgument
from pipeline.console import MODEL, OUTPUT, JsonOption, goes_on, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="encode-again")(encode_again)


def encode_again(
    shards: ShardsArgument,
    teacher: Annotated[
        str,
        typer.Option(
            "--teacher",
            help="demo, MODEL:TAG, MODEL:/path/to/weights, hf-hub:ORG/NAME.",
            rich_help_panel=MODEL,
        ),
    ],
    out: Annotated[
        str,
        typer.Option("--out", help="Shard set to write or continue.", rich_help_panel=OUTPUT),
    ],
    keep_images: Annotated[
        bool,
        typer.Option("--keep-images", help="Also copy the kept views.", rich_help_panel=OUTPUT),
    ] = False,
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
            help="Precision of the teacher: fp32, bf16, fp16, or auto: fp32 on a CPU, bf16 "
            "(older cards: fp16) on a GPU.",
            rich_help_panel=MODEL,
        ),
    ] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=1,
            help="Images or texts per batch; default: 256, or 32 on a CPU.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile",
            help="Use torch.compile on a GPU: slower start, then faster.",
            rich_help_panel=MODEL,
        ),
    ] = True,
    rows_per_part: Annotated[
        int,
        typer.Option(
            "--rows-per-part", min=1, help="Objects per Parquet file.", rich_help_panel=OUTPUT
        ),
    ] = 256,
    json_output: JsonOption = False,
) -> None:
    """Encode the texts and kept views of a shard set with another teacher, without rendering.

    Run the same command again to resume after an interruption: finished objects are skipped. If
    a set has no kept views (`pipeline embed --keep-images`), only its texts are encoded.

    Example:

      pipeline encode-again shards/mine --teacher ViT-L-14:laion2b_s32b_b82k --out shards/mine-l14
    """
    from pipeline.encode_again import EncodeAgainOptions, tell
    from pipeline.encode_again import encode_again as run
    from pipeline.heap import keep_freed

    goes_on(out)
    keep_freed()
    summary = run(
        EncodeAgainOptions(
            shards=shards,
            teacher=teacher,
            out=out,
            device=device,
            precision=precision,
            batch_size=batch_size,
            compiled=compiled,
            keep_images=keep_images,
            rows_per_part=rows_per_part,
        )
    )
    tell(summary, out)
    if json_output:
        print_json(summary.to_json())
