"""``evaluation``: a checkpoint and shards to numbers, indexes and search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.common import InputError
from pipeline.console import (
    EXIT_TOO_MANY_FAILURES,
    JsonOption,
    ProgressBar,
    make_app,
    note,
    print_json,
    print_table,
    run_app,
)
from pipeline.console import out as stdout

if TYPE_CHECKING:
    from evaluation.sources import Encoder
    from pipeline.shards import ShardSet

app = make_app("evaluation", "Measure a checkpoint, index what it embeds, and search.")

CheckpointOption = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="A checkpoint, or a run folder (its newest checkpoint)."),
]
ShardsOption = Annotated[str, typer.Option("--shards", help="Shard set: a folder or a URI.")]
SplitOption = Annotated[
    str | None, typer.Option("--split", help="Only rows of this split; default: all rows.")
]
TeacherViewsOption = Annotated[
    bool,
    typer.Option("--teacher-views", help="Take the teacher on rendered views: the ceiling."),
]
ViewsOption = Annotated[
    str, typer.Option("--views", help="With --teacher-views: mean of all views, or the first.")
]
TeacherOption = Annotated[
    str | None,
    typer.Option("--teacher", help="Where the teacher is now, if it was a local file."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Clouds at a time.")]
BenchmarkOption = Annotated[
    str | None,
    typer.Option("--benchmark", help="Name for tables; default: the dataset's name."),
]
ResultOption = Annotated[Path | None, typer.Option("--out", help="Result file (JSON) to write.")]
UpAxisOption = Annotated[
    str, typer.Option("--up-axis", help="Up axis of mesh files: auto, +x, -x, +y, -y, +z or -z.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of the point sampling.")]


def make_encoder(
    shards: ShardSet,
    checkpoint: Path | None,
    teacher_views: bool,
    views: str,
    device: str,
    batch_size: int,
) -> Encoder:
    """The encoder that the options name. Raises ``InputError`` that names the option."""
    from evaluation.sources import StudentEncoder, ViewsEncoder
    from evaluation.student import load_student, pick_device

    if teacher_views == (checkpoint is not None):
        raise InputError("give either --checkpoint RUN or --teacher-views")
    if views not in ("mean", "first"):
        raise InputError(f"--views {views}: use mean or first")
    if checkpoint is not None:
        return StudentEncoder(load_student(checkpoint, pick_device(device), batch_size), shards)
    return ViewsEncoder(shards, "mean" if views == "mean" else "first")


@app.command()
def encode(
    out: Annotated[Path, typer.Option("--out", help="Embeddings file (Parquet) to write.")],
    checkpoint: CheckpointOption = None,
    shards: Annotated[str | None, typer.Option("--shards", help="Shard set to embed.")] = None,
    meshes: Annotated[
        list[Path] | None,
        typer.Option("--meshes", help="Mesh file, or folder of them; may be repeated."),
    ] = None,
    split: SplitOption = None,
    teacher_views: TeacherViewsOption = False,
    views: ViewsOption = "mean",
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or float16.")] = "float32",
    up_axis: UpAxisOption = "auto",
    seed: SeedOption = 0,
    max_failures: Annotated[
        float,
        typer.Option("--max-failures", min=0, max=1, help="Failed fraction above which to exit 3."),
    ] = 0.05,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 64,
    json_output: JsonOption = False,
) -> None:
    """Embed shards or mesh files with a trained student.

    Example: evaluation encode --checkpoint runs/mrd --shards shards/mugs --out mugs.parquet
    """
    from evaluation.embeddings import EmbeddingsMeta, write_embeddings
    from evaluation.sources import MeshSource, embed_shards, find_meshes, shards_data
    from evaluation.student import load_student, pick_device
    from pipeline.shards import ShardSet

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
        source = MeshSource(student, files, up_axis, seed)
        with ProgressBar("encode", len(files), "meshes") as bar:
            count = write_embeddings(out, meta, source.rows(bar.advance), kind)
        failures = source.failures
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


@app.command()
def index(
    embeddings: Annotated[Path, typer.Option("--embeddings", help="File made by `encode`.")],
    out: Annotated[Path, typer.Option("--out", help="Index folder to write.")],
    shards: Annotated[
        str | None,
        typer.Option(
            "--shards",
            help="Also measure an approximate index on texts and images of this shard set.",
        ),
    ] = None,
    flat_limit: Annotated[
        int, typer.Option("--flat-limit", min=0, help="Rows up to which the index is exact.")
    ] = 200_000,
    json_output: JsonOption = False,
) -> None:
    """Build a search index (FAISS) from an embeddings file.

    Exact up to --flat-limit rows, HNSW above with its recall against exact search recorded.

    Example: evaluation index --embeddings mugs.parquet --out mugs.index
    """
    from evaluation.embeddings import read_embeddings
    from evaluation.index import build_index, check_target, sample_queries
    from evaluation.teachers import require_same_teacher
    from pipeline.shards import ShardSet

    check_target(out)
    loaded = read_embeddings(embeddings)
    queries = None
    if shards is not None:
        opened = ShardSet.open(shards)
        require_same_teacher(
            loaded.meta.teacher, str(embeddings), opened.manifest.teacher, f"shards {shards}"
        )
        queries = sample_queries(opened)
    manifest = build_index(loaded, out, flat_limit=flat_limit, queries=queries)
    if json_output:
        short = {k: v for k, v in manifest.items() if k != "teacher"}
        print_json({**short, "teacher": loaded.meta.teacher.label})
        return
    stdout.print(
        f"{manifest['kind']} index of {manifest['count']} objects in {out}",
        highlight=False,
    )
    for name, value in (manifest["recall_against_exact"] or {}).items():
        stdout.print(
            f"recall@{value['k']} against exact search, {name} queries: {value['recall']:.3f}",
            highlight=False,
        )


@app.command()
def zeroshot(
    shards: ShardsOption,
    checkpoint: CheckpointOption = None,
    teacher_views: TeacherViewsOption = False,
    views: ViewsOption = "mean",
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="Class names: one a line, JSON list, or JSON object category -> name. "
            "Default: the categories of the shards.",
        ),
    ] = None,
    templates: Annotated[
        str,
        typer.Option(
            "--templates",
            help="manifest (those of the shards), field64, bare, or a file of one a line.",
        ),
    ] = "manifest",
    split: SplitOption = None,
    benchmark: BenchmarkOption = None,
    out: ResultOption = None,
    teacher: TeacherOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 64,
    json_output: JsonOption = False,
) -> None:
    """Classify shapes by the nearest class text.

    Example: evaluation zeroshot --checkpoint runs/mrd --shards shards/test --out zeroshot.json
    """
    from evaluation import teachers
    from evaluation.benchmarks.labels import from_categories, from_file
    from evaluation.benchmarks.templates import load_templates
    from evaluation.benchmarks.zeroshot import zeroshot as run
    from evaluation.results import write_result
    from evaluation.sources import split_categories
    from evaluation.student import pick_device
    from evaluation.tables import zeroshot_tables
    from pipeline.shards import ShardSet

    opened = ShardSet.open(shards)
    prompts = load_templates(templates, opened.manifest)
    classes = from_file(labels) if labels else from_categories(split_categories(opened, split))
    encoder = make_encoder(opened, checkpoint, teacher_views, views, device, batch_size)
    tower = teachers.open_teacher(opened.manifest.teacher, teacher, pick_device(device))
    with ProgressBar("zeroshot", len(opened), "objects") as bar:
        record = run(
            opened,
            encoder,
            tower,
            classes,
            prompts,
            split=split,
            benchmark=benchmark,
            advance=bar.advance,
        )
    if out:
        write_result(out, record)
    if json_output:
        print_json(record)
    else:
        zeroshot_tables(record)


@app.command()
def recall(
    shards: ShardsOption,
    checkpoint: CheckpointOption = None,
    teacher_views: TeacherViewsOption = False,
    views: ViewsOption = "mean",
    texts: Annotated[
        str | None,
        typer.Option(
            "--texts",
            help="Which texts ask: a source of the shards (caption, name ...) or all. "
            "Default: captions where there are some, else names.",
        ),
    ] = None,
    split: SplitOption = None,
    benchmark: BenchmarkOption = None,
    out: ResultOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 64,
    json_output: JsonOption = False,
) -> None:
    """Measure retrieval: text, image and shape against shape, and back.

    Example: evaluation recall --checkpoint runs/mrd --shards shards/test --out recall.json
    """
    from evaluation.benchmarks.recall import recall as run
    from evaluation.results import write_result
    from evaluation.tables import recall_table
    from pipeline.shards import ShardSet

    opened = ShardSet.open(shards)
    encoder = make_encoder(opened, checkpoint, teacher_views, views, device, batch_size)
    with ProgressBar("recall", len(opened), "objects") as bar:
        record = run(
            opened,
            encoder,
            text_source=texts,
            split=split,
            benchmark=benchmark,
            advance=bar.advance,
        )
    if out:
        write_result(out, record)
    if json_output:
        print_json(record)
    else:
        recall_table(record)


@app.command()
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


@app.command()
def report(
    results: Annotated[
        list[Path], typer.Argument(help="Result files of `zeroshot` and `recall`, any number.")
    ],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")],
    title: Annotated[str, typer.Option("--title", help="Heading of the page.")] = "Evaluation",
    gallery: Annotated[
        Path | None, typer.Option("--gallery", help="Index to answer --queries from.")
    ] = None,
    queries: Annotated[
        list[str] | None,
        typer.Option("--queries", "--query", help="Text to search for; may be repeated."),
    ] = None,
    shards: Annotated[
        str | None, typer.Option("--shards", help="Shard set with the clouds of the gallery.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--top", min=1, max=24, help="Pictures a query.")] = 6,
    runs: Annotated[
        list[Path] | None,
        typer.Option("--run", help="Run folder whose curves to show; may be repeated."),
    ] = None,
    teacher: TeacherOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Write one self-contained HTML page: figures, confusion, curves, retrieved shapes.

    Example: evaluation report z.json r.json --out report.html --gallery mugs.index
    --queries "a red mug" --shards shards/test --run runs/mrd
    """
    from evaluation.gallery import build_gallery
    from evaluation.report import read_results, write_report
    from evaluation.student import pick_device
    from evaluation.tables import comparison_tables

    asked = [gallery is not None, bool(queries), shards is not None]
    if any(asked) and not all(asked):
        raise InputError("a gallery needs all of --gallery INDEX, --queries TEXT and --shards SET")
    records = read_results(results)
    rows = []
    if gallery is not None and shards is not None:
        rows = build_gallery(gallery, queries or [], shards, k, teacher, pick_device(device))
    write_report(out, title, records, rows, runs or [])
    comparison_tables(records)
    stdout.print(f"report: {out}", highlight=False, markup=False)


def main() -> None:
    """Entry point of the console script."""
    run_app(app)


if __name__ == "__main__":
    main()
