"""``evaluation retrieve``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evaluation.commands.options import (
    TIMEOUT_S,
    DeviceOption,
    SeedOption,
    TeacherOption,
    TimeoutOption,
    UpAxisOption,
    check_result,
)
from pipeline.common import InputError
from pipeline.console import (
    INPUT,
    MODEL,
    OUTPUT,
    SEARCH,
    JsonOption,
    OverwriteOption,
    note,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from evaluation.index import Hit
    from evaluation.queries import Part
    from evaluation.shapes import Caller
    from pipeline.shards import ShardSet

HIT_COLUMNS = ("rank", "score", "uid", "category", "source", "texts")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(retrieve)


def retrieve(
    index: Annotated[
        Path, typer.Option("--index", help="Folder made by `index`.", rich_help_panel=INPUT)
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            help="Text to look for; VALUE@0.5 sets the weight of a part.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option("--image", help="Image to look for.", rich_help_panel=SEARCH),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            help="Mesh, or .npz point cloud (xyz, rgb), to look for.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    minus: Annotated[
        list[str] | None,
        typer.Option("--minus", help="Text to steer away from.", rich_help_panel=SEARCH),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            "--queries",
            help="Instead of these: CSV with text, image, shape, minus; one query per line.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    k: Annotated[
        int,
        typer.Option(
            "-k", "--top", min=1, help="Number of objects to show.", rich_help_panel=SEARCH
        ),
    ] = 10,
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            help="SQL condition on category, source, uid and texts.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            "--shards",
            help="Shard set of the objects: columns for --where, clouds for pictures in HTML.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    meshes: Annotated[
        Path | None,
        typer.Option(
            "--meshes",
            help="Folder with the meshes, to render them for HTML.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", help="For --shape: the student, if it was moved.", rich_help_panel=MODEL
        ),
    ] = None,
    teacher: TeacherOption = None,
    up_axis: UpAxisOption = "auto",
    seed: SeedOption = 0,
    timeout: TimeoutOption = TIMEOUT_S,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Also write the hits: a .json, .csv or .html file.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Search an index by text, image or shape, or by a combination of them.

    Examples:

      evaluation retrieve --index mugs.index --text "a red mug"

      evaluation retrieve --index idx --image chair.png --text wooden@0.5 --minus armrest

      evaluation retrieve --index idx --text "a chair" --shards set --where "n_faces < 5000"

      evaluation retrieve --index idx --queries asked.csv --shards set --out hits.html
    """
    from evaluation import isolated
    from evaluation.index import load_index
    from evaluation.queries import compose, parse_parts, read_queries
    from evaluation.search import Embedder, hits_json
    from evaluation.student import pick_device
    from pipeline.common import write_json
    from pipeline.shards import ShardSet

    ending = "" if out is None else out.suffix.lower()
    if out is not None and ending not in (".json", ".csv", ".html"):
        raise InputError(f"--out {out}: give a name that ends in .json, .csv or .html")
    check_result(out, overwrite)
    if queries is not None and (text or image or shape or minus):
        raise InputError("--queries contains the whole query: leave the other parts out")
    if shards is not None and where is None and ending != ".html":
        raise InputError(
            "--shards is used only with --where or --out FILE.html: give a condition or a page"
        )
    if meshes is not None and ending != ".html":
        raise InputError("--meshes is used only with --out FILE.html: give one")
    if meshes is not None and not meshes.is_dir():
        raise InputError(f"--meshes {meshes}: no such folder; give the folder of the meshes")
    opened = load_index(index)
    objects = ShardSet.open(shards) if shards is not None else None
    allowed = opened.rows_where(where, objects) if where is not None else None
    if where is not None and objects is not None:
        others = opened.about_others(objects)
        if others is not None:
            note(others)
    asked = (
        read_queries(queries)
        if queries is not None
        else [parse_parts(text or (), image or (), shape or (), minus or ())]
    )
    with isolated.IsolatedCalls(timeout) as call:
        if any(part.kind == "shape" for parts in asked for part in parts):
            call.start()  # while the student is loaded
        embed = Embedder(opened, checkpoint, teacher, pick_device(device), up_axis, seed, call)
        hits = [opened.search(compose(parts, embed), k, allowed) for parts in asked]
        told = [_told(parts) for parts in asked]
        if out is not None and ending == ".html":
            among = len(opened) if allowed is None else int(allowed.sum())
            rows = list(zip(told, hits, strict=True))
            _write_page(out, index, f"among {among:,} objects", rows, objects, meshes, call)
    found = [
        {"query": query, "hits": hits_json(one)} for query, one in zip(told, hits, strict=True)
    ]
    if out is not None and ending == ".csv":
        _write_csv(out, found)
    elif out is not None and ending == ".json":
        write_json(out, {"index": str(index), "queries": found})
    if json_output:
        print_json(found[0]["hits"] if queries is None else found)
        return
    for entry in found:
        _show(entry, len(opened) if allowed is None else int(allowed.sum()))


def _write_page(
    out: Path,
    index: Path,
    among: str,
    found: Sequence[tuple[str, Sequence[Hit]]],
    shards: ShardSet | None,
    meshes: Path | None,
    call: Caller,
) -> None:
    from evaluation.gallery import gallery_rows, write_gallery

    rows = gallery_rows(found, shards, meshes, call)
    told = f"The best matches by cosine {among}, best first."
    if not any(tile.picture for row in rows for tile in row.tiles):
        note("no pictures: give --shards SET or --meshes DIR that holds the objects")
    write_gallery(out, f"Search in {index.name}", told, rows)


def _told(parts: Sequence[Part]) -> str:
    return " + ".join(part.told() for part in parts).replace("+ -", "- ")


def _show(entry: dict[str, Any], size: int) -> None:
    columns = ["rank", "score", "uid", "category", "text"]
    rows = [
        [
            hit["rank"],
            hit["score"],
            hit["uid"],
            hit["category"] or "-",
            hit["texts"][-1] if hit["texts"] else "-",
        ]
        for hit in entry["hits"]
    ]
    print_table(f"{len(rows)} of {size} for {entry['query']}", columns, rows)


def _write_csv(path: Path, found: Sequence[dict[str, Any]]) -> None:
    """One line a hit; several texts of an object are joined by line breaks."""
    from pipeline.common import atomic_path

    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["query", *HIT_COLUMNS])
        for entry in found:
            for hit in entry["hits"]:
                cells = {**hit, "texts": "\n".join(hit["texts"]), "category": hit["category"] or ""}
                writer.writerow([entry["query"], *(cells[name] for name in HIT_COLUMNS)])
