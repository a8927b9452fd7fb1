"""``evaluation index``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.console import JsonOption, print_json
from pipeline.console import out as stdout


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(index)


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
