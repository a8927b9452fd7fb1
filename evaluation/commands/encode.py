"""``evaluation encode``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evaluation.commands.options import (
    TIMEOUT_S,
    BatchOption,
    CheckpointOption,
    DeviceOption,
    SeedOption,
    SplitOption,
    TeacherViewsOption,
    TimeoutOption,
    UpAxisOption,
    ViewsOption,
    counted,
    make_encoder,
)
from pipeline.common import InputError, check_new, shown_bytes
from pipeline.console import (
    EXIT_TOO_MANY_FAILURES,
    INPUT,
    MAX_FAILURES,
    OUTPUT,
    JsonOption,
    MaxFailuresOption,
    OverwriteOption,
    ProgressBar,
    note,
    print_json,
)
from pipeline.console import out as stdout

if TYPE_CHECKING:
    from evaluation.embeddings import EmbeddingsMeta


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(encode)


def encode(
    out: Annotated[
        Path,
        typer.Option("--out", help="Embeddings file (Parquet) to write.", rich_help_panel=OUTPUT),
    ],
    checkpoint: CheckpointOption = None,
    shards: Annotated[
        str | None, typer.Option("--shards", help="Shard set to embed.", rich_help_panel=INPUT)
    ] = None,
    meshes: Annotated[
        list[Path] | None,
        typer.Option(
            "--meshes", help="Mesh file, or folder of them; may be repeated.", rich_help_panel=INPUT
        ),
    ] = None,
    split: SplitOption = None,
    teacher_views: TeacherViewsOption = False,
    views: ViewsOption = "mean",
    dtype: Annotated[
        str, typer.Option("--dtype", help="float32 or float16.", rich_help_panel=OUTPUT)
    ] = "float32",
    up_axis: UpAxisOption = "auto",
    seed: SeedOption = 0,
    timeout: TimeoutOption = TIMEOUT_S,
    max_failures: MaxFailuresOption = MAX_FAILURES,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 64,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Embed shards or mesh files with a trained student.

    Example:

      evaluation encode --checkpoint runs/mrd --shards shards/mugs --out mugs.parquet
    """
    from evaluation import isolated
    from evaluation.embeddings import EmbeddingsMeta, write_embeddings
    from evaluation.sources import MeshSource, embed_shards, find_meshes, shards_data
    from evaluation.student import load_student, pick_device
    from pipeline.shards import ShardSet

    check_new(out, "--out", overwrite)
    if (shards is None) == (not meshes):
        raise InputError("give either --shards SET or --meshes DIR_OR_FILES")
    if dtype not in ("float32", "float16"):
        raise InputError(f"--dtype {dtype}: use float32 or float16")
    kind: Any = dtype
    failures: list[tuple[str, str]] = []
    if shards is not None:
        opened = ShardSet.open(shards)
        encoder = make_encoder(opened, checkpoint, teacher_views, views, device, batch_size)
        meta = EmbeddingsMeta(opened.manifest.teacher, encoder.model, shards_data(opened, split))
        _introduce(f"{len(opened):,} objects", meta, dtype, len(opened), out)
        with ProgressBar("encode", len(opened), "objects") as bar:
            rows = embed_shards(opened, encoder, split, bar.advance)
            count = write_embeddings(out, meta, rows, kind)
    else:
        if checkpoint is None:
            raise InputError("--meshes needs --checkpoint RUN")
        files = find_meshes(meshes or [])
        student = load_student(checkpoint, pick_device(device), batch_size)
        data = {"kind": "meshes", "name": files[0][1].parent.name, "config_hash": ""}
        meta = EmbeddingsMeta(student.teacher, student.model, data)
        _introduce(f"{len(files):,} meshes", meta, dtype, len(files), out)
        with (
            isolated.IsolatedCalls(timeout) as call,
            ProgressBar("encode", len(files), "meshes") as bar,
        ):
            source = MeshSource(student, files, up_axis, seed, failures, call)
            count = write_embeddings(out, meta, source.rows(counted(bar, failures)), kind)
    summary = {
        "out": str(out),
        "rows": count,
        "width": meta.teacher.width,
        "model": meta.model.name,
        "teacher": meta.teacher.label,
        "failures": [{"mesh": name, "reason": reason} for name, reason in failures],
    }
    if json_output:
        print_json(summary)
    else:
        for name, reason in failures[:20]:
            note(f"failed: {name}: {reason}")
        stdout.print(
            f"{count} embeddings of width {meta.teacher.width} by {meta.model.name} "
            f"in {out}" + (f", {len(failures)} meshes failed" if failures else ""),
            highlight=False,
        )
    if failures and len(failures) > max_failures * (count + len(failures)):
        raise typer.Exit(EXIT_TOO_MANY_FAILURES)


def _introduce(what: str, meta: EmbeddingsMeta, dtype: str, count: int, out: Path) -> None:
    """Tell what is about to be done, and how large it gets; texts come on top."""
    split = meta.data.get("split")
    size = count * meta.teacher.width * (2 if dtype == "float16" else 4)
    note(
        f"{what}{f', of them split {split},' if split else ''} by {meta.model.name}: "
        f"{meta.teacher.width} numbers each as {dtype}, {shown_bytes(size)} at most, to {out}"
    )
