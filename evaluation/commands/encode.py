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
            "--meshes", help="Mesh file, or folder of meshes; repeatable.", rich_help_panel=INPUT
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
    batch_size: BatchOption = None,
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
    from pipeline.catalog.columns import open_parts
    from pipeline.heap import keep_freed
    from pipeline.shards import ShardSet, what_lacks

    check_new(out, "--out", overwrite)
    if (shards is None) == (not meshes):
        raise InputError("give either --shards SET or --meshes DIR_OR_FILES")
    if dtype not in ("float32", "float16"):
        raise InputError(f"--dtype {dtype}: use float32 or float16")
    _check_options(
        *(shards is not None, teacher_views, split, views, up_axis, seed, timeout, max_failures)
    )
    keep_freed()
    kind: Any = dtype
    failures: list[tuple[str, str]] = []
    if shards is not None:
        opened = ShardSet.open(shards)
        open_parts(opened)
        lacking = what_lacks(shards)
        if lacking:
            note(lacking)
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
        data = {"kind": "meshes", "name": files[0].path.parent.name, "config_hash": ""}
        meta = EmbeddingsMeta(student.teacher, student.model, data)
        _introduce(f"{len(files):,} meshes", meta, dtype, len(files), out)
        with (
            isolated.IsolatedCalls(timeout) as call,
            ProgressBar("encode", len(files), "meshes") as bar,
        ):
            source = MeshSource(student, files, up_axis, seed, failures, call)
            try:
                count = write_embeddings(out, meta, source.rows(counted(bar, failures)), kind)
            except InputError:
                if len(failures) < len(files):
                    raise
                count = 0  # nothing to write: why is told below
    summary = {
        "out": str(out) if count else None,
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
        if count:
            told = f"{count} embeddings of width {meta.teacher.width} by {meta.model.name} in {out}"
            told += f", {len(failures)} meshes failed" if failures else ""
        else:
            told = f"all {len(failures)} meshes failed: {out} was not written"
        stdout.print(told, highlight=False)
    if failures and (not count or len(failures) > max_failures * (count + len(failures))):
        raise typer.Exit(EXIT_TOO_MANY_FAILURES)


def _check_options(
    of_shards: bool,
    teacher_views: bool,
    split: str | None,
    views: str,
    up_axis: str,
    seed: int,
    timeout: float,
    max_failures: float,
) -> None:
    """Raise ``InputError`` for an option that would do nothing with what is embedded."""
    if of_shards:
        given = {
            "--up-axis": up_axis != "auto",
            "--seed": seed != 0,
            "--timeout": timeout != TIMEOUT_S,
            "--max-failures": max_failures != MAX_FAILURES,
        }
        why = "applies to mesh files only"
    else:
        given = {"--split": split is not None, "--teacher-views": teacher_views}
        why = "applies to shard sets only"
    for option, there in given.items():
        if there:
            raise InputError(f"{option}: {why}; leave it out")
    if views != "mean" and not teacher_views:
        raise InputError(f"--views {views}: applies to --teacher-views only; leave it out")


def _introduce(what: str, meta: EmbeddingsMeta, dtype: str, count: int, out: Path) -> None:
    """Tell what is about to be done, and how large it gets; texts come on top."""
    split = meta.data.get("split")
    size = count * meta.teacher.width * (2 if dtype == "float16" else 4)
    note(
        f"{what}{f' (split {split} only)' if split else ''} by {meta.model.name}: "
        f"{meta.teacher.width} {dtype} values each, at most {shown_bytes(size)}, to {out}"
    )
