"""``evaluation retrieve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evaluation.commands.options import DeviceOption, SeedOption, TeacherOption, UpAxisOption
from pipeline.common import InputError
from pipeline.console import JsonOption, print_json, print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(retrieve)


def retrieve(
    index: Annotated[Path, typer.Option("--index", help="Folder made by `index`.")],
    text: Annotated[str | None, typer.Option("--text", help="What to look for, in words.")] = None,
    image: Annotated[Path | None, typer.Option("--image", help="Picture to look for.")] = None,
    shape: Annotated[
        Path | None, typer.Option("--shape", help="Mesh, or .npz cloud (xyz, rgb), to look for.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--top", min=1, help="How many objects to show.")] = 10,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="With --shape: the student, if it was moved."),
    ] = None,
    teacher: TeacherOption = None,
    up_axis: UpAxisOption = "auto",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    out: Annotated[Path | None, typer.Option("--out", help="Also write the hits as JSON.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Search an index by text, image or shape.

    Example: evaluation retrieve --index mugs.index --text "a red mug"
    """
    from evaluation import search, teachers
    from evaluation.index import load_index
    from evaluation.student import pick_device
    from pipeline.common import write_json

    if sum(query is not None for query in (text, image, shape)) != 1:
        raise InputError("give one of --text, --image and --shape")
    opened = load_index(index)
    if shape is not None:
        if not shape.is_file():
            raise InputError(f"--shape {shape}: no such file; give a mesh or an .npz cloud")
        student = search.index_student(opened, checkpoint, pick_device(device))
        query = search.shape_query(shape, student, up_axis, seed)
    else:
        if text is not None and not text.strip():
            raise InputError('--text: is empty; say what to look for, as in --text "a red mug"')
        tower = teachers.open_teacher(opened.meta.teacher, teacher, pick_device(device))
        opened.require_teacher(tower.info, "the query's teacher")
        if text is not None:
            query = search.text_query(text, tower)
        else:
            assert image is not None
            query = search.image_query(image, tower, search.index_background(opened))
    hits = search.hits_json(opened.search(query, k))
    if out:
        write_json(out, {"query": text or str(image or shape), "index": str(index), "hits": hits})
    if json_output:
        print_json(hits)
        return
    columns = ["rank", "score", "uid", "category", "text"]
    rows = [
        [
            hit["rank"],
            hit["score"],
            hit["uid"],
            hit["category"] or "-",
            hit["texts"][-1] if hit["texts"] else "-",
        ]
        for hit in hits
    ]
    asked = text or str(image or shape)
    print_table(f"{len(hits)} of {len(opened)} for {asked}", columns, rows)
