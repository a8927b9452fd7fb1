"""``evaluation parts``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evaluation.commands.measure import tell
from evaluation.commands.options import DeviceOption, ResultOption, SeedOption, check_result
from pipeline.console import INPUT, MEASURE, MODEL, JsonOption, OverwriteOption, ProgressBar


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(parts)


def parts(
    root: Annotated[
        Path,
        typer.Option(
            "--root",
            help="shapenetcore_partanno_segmentation_benchmark_v0_normal.",
            rich_help_panel=INPUT,
        ),
    ],
    checkpoint: Annotated[
        Path,
        typer.Option(
            "--checkpoint",
            help="A checkpoint, or a run folder.",
            rich_help_panel=MODEL,
        ),
    ],
    split: Annotated[
        str, typer.Option("--split", help="Split to test on: test or val.", rich_help_panel=INPUT)
    ] = "test",
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, help="Maximum number of shapes per split.", rich_help_panel=INPUT
        ),
    ] = None,
    points: Annotated[
        int,
        typer.Option(
            "--points",
            min=1,
            help="Points per shape used to train the classifier.",
            rich_help_panel=MEASURE,
        ),
    ] = 128,
    epochs: Annotated[
        int,
        typer.Option(
            "--epochs", min=1, help="Training epochs of the classifier.", rich_help_panel=MEASURE
        ),
    ] = 20,
    seed: SeedOption = 0,
    out: ResultOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Segment parts with a linear probe on frozen patch features (ShapeNetPart's format).

    Example:

      evaluation parts --checkpoint runs/mrd --root shapenetpart --out parts.json
    """
    from evaluation import student as students
    from evaluation.benchmarks.parts import parts_probe
    from evaluation.benchmarks.shapenet_part import open_parts
    from evaluation.tables import one_table
    from pipeline.common import InputError

    check_result(out, overwrite)
    if split not in ("test", "val"):
        raise InputError(f"--split {split}: use test or val; the probe trains on train")
    data = open_parts(root)
    learned = ("train", "val") if split == "test" else ("train",)
    student = students.load_student(checkpoint, students.pick_device(device))
    sizes = [len(data.listed(name)) for name in (*learned, split)]
    total = sum(size if limit is None else min(size, limit) for size in sizes)
    with ProgressBar("parts", total, "shapes") as bar:
        record = parts_probe(
            data,
            student,
            learned=learned,
            split=split,
            limit=limit,
            points=points,
            epochs=epochs,
            seed=seed,
            advance=bar.advance,
        )
    tell(record, out, json_output, one_table)
