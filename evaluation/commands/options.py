"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.common import InputError, check_new
from pipeline.console import INPUT, MEASURE, MODEL, OUTPUT, VIEWS, WORKERS, ProgressBar

if TYPE_CHECKING:
    from evaluation.sources import Centre, Encoder
    from pipeline.shards import ShardSet

CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        help="A run folder (its newest checkpoint; RUN/best: its best by validation), a "
        "checkpoint, released weights, or demo: the small student included in this package.",
        rich_help_panel=MODEL,
    ),
]
ShardsOption = Annotated[
    str, typer.Option("--shards", help="Shard set: a folder or a URI.", rich_help_panel=INPUT)
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split", help="Only rows of this split; default: all rows.", rich_help_panel=INPUT
    ),
]
TeacherViewsOption = Annotated[
    bool,
    typer.Option(
        "--teacher-views",
        help="Use the teacher on rendered views instead of a student: the ceiling.",
        rich_help_panel=MODEL,
    ),
]
ViewsOption = Annotated[
    str,
    typer.Option(
        "--views",
        help="With --teacher-views: mean (of all views) or first.",
        rich_help_panel=MODEL,
    ),
]
TeacherOption = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        help="New location of the teacher, if it was a local file.",
        rich_help_panel=MODEL,
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu or cuda.", rich_help_panel=MODEL)
]
BatchOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Point clouds per batch. Default: 16 on a CPU, 64 on a GPU.",
        rich_help_panel=MODEL,
    ),
]
BenchmarkOption = Annotated[
    str | None,
    typer.Option(
        "--benchmark",
        help="One from `evaluation benchmarks`, or any name for tables. Default: the dataset.",
        rich_help_panel=MEASURE,
    ),
]
ResultOption = Annotated[
    Path | None, typer.Option("--out", help="Result file (JSON) to write.", rich_help_panel=OUTPUT)
]
UpAxisOption = Annotated[
    str,
    typer.Option(
        "--up-axis",
        help="Up axis of mesh files: auto, +x, -x, +y, -y, +z or -z.",
        rich_help_panel=INPUT,
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, help="Seed of the point sampling.", rich_help_panel=VIEWS)
]
TimeoutOption = Annotated[
    float,
    typer.Option("--timeout", min=1, help="Seconds allowed per mesh.", rich_help_panel=WORKERS),
]
TIMEOUT_S = 120.0  # as of `pipeline embed`


def check_result(out: Path | None, overwrite: bool) -> None:
    """Refuse a ``--out`` that is there, before the work starts. Raises ``InputError``."""
    if out is not None:
        check_new(out, "--out", overwrite)


def counted(bar: ProgressBar, failures: Sequence[object]) -> Callable[[int], None]:
    """``bar.advance`` that tells how many have failed so far."""
    return lambda count: bar.advance(count, f"{len(failures)} failed" if failures else "")


def make_encoder(
    shards: ShardSet,
    checkpoint: Path | None,
    teacher_views: bool,
    views: str,
    device: str,
    batch_size: int | None,
    draws: int = 1,
    seed: int = 0,
    centre: Centre = "box",
) -> Encoder:
    """The encoder that the options name. Raises ``InputError`` that names the option."""
    from evaluation.sources import StudentEncoder, ViewsEncoder
    from evaluation.student import load_student, pick_device

    if teacher_views == (checkpoint is not None):
        raise InputError("give either --checkpoint RUN or --teacher-views")
    if views not in ("mean", "first"):
        raise InputError(f"--views {views}: use mean or first")
    if checkpoint is not None:
        student = load_student(checkpoint, pick_device(device), batch_size)
        return StudentEncoder(student, shards, draws, seed, centre)
    if draws > 1:
        raise InputError("--draws: applies to point clouds only; leave it out with --teacher-views")
    return ViewsEncoder(shards, "mean" if views == "mean" else "first")
