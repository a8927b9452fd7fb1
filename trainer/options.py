"""Options that several commands of the trainer share, and what some of them may be."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.console import INPUT, OUTPUT, TRAINING, WORKERS


class Layout(StrEnum):
    """Whose released weights."""

    openshape = "openshape"
    uni3d = "uni3d"


class Axes(StrEnum):
    """Order of the coordinates that a model takes."""

    xyz = "xyz"
    xzy = "xzy"


class ExportFormat(StrEnum):
    """What a student is exported to."""

    safetensors = "safetensors"
    onnx = "onnx"
    pt2 = "pt2"


ShardsOption = Annotated[
    list[str] | None,
    typer.Option(help="Shard set, folder or URI; repeat it to mix several.", rich_help_panel=INPUT),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override of the recipe, key=value; repeat it for more.",
        rich_help_panel=TRAINING,
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=WORKERS)]
WorkersOption = Annotated[
    int,
    typer.Option(
        help="Processes, one a GPU; several are started by Ray Train.", rich_help_panel=WORKERS
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to run on. Default: one of this machine.", rich_help_panel=WORKERS
    ),
]
RestartsOption = Annotated[
    int,
    typer.Option(min=0, help="How often lost workers are started again.", rich_help_panel=WORKERS),
]
LeastOption = Annotated[
    int | None,
    typer.Option(
        "--min-workers",
        help="Go on with so many where no more are to be had. Default: --workers.",
        rich_help_panel=WORKERS,
    ),
]
ResultsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--result",
        help="Result file of the evaluation, for the model card; repeatable.",
        rich_help_panel=OUTPUT,
    ),
]
