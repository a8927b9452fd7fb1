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
    typer.Option(
        help="Shard set: a folder or a URI; repeatable, to mix several.", rich_help_panel=INPUT
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override of a recipe key, key=value; repeatable.",
        rich_help_panel=TRAINING,
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=WORKERS)]
WorkersOption = Annotated[
    int,
    typer.Option(
        help="Number of processes, one per GPU; Ray Train starts more than one.",
        rich_help_panel=WORKERS,
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to run on. Default: start one on this machine.", rich_help_panel=WORKERS
    ),
]
RestartsOption = Annotated[
    int,
    typer.Option(
        min=0, help="Maximum number of restarts after workers are lost.", rich_help_panel=WORKERS
    ),
]
LeastOption = Annotated[
    int | None,
    typer.Option(
        "--min-workers",
        help="Continue with this many if no more are available. Default: --workers.",
        rich_help_panel=WORKERS,
    ),
]
ResultsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--result",
        help="Evaluation result file to add to the model card; repeatable.",
        rich_help_panel=OUTPUT,
    ),
]
