"""``evaluation index`` and ``update``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.common import InputError
from pipeline.console import (
    INPUT,
    OUTPUT,
    SEARCH,
    JsonOption,
    OverwriteOption,
    ProgressBar,
    note,
    print_json,
)
from pipeline.console import out as stdout

if TYPE_CHECKING:
    from evaluation.index_choice import Plan


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(index)
    app.command()(update)


def index(
    embeddings: Annotated[
        Path, typer.Option("--embeddings", help="File made by `encode`.", rich_help_panel=INPUT)
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Index folder to write.", rich_help_panel=OUTPUT)
    ],
    shards: Annotated[
        str | None,
        typer.Option(
            "--shards",
            help="Shard set whose texts and images are also used to measure an approximate index.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="auto, flat, hnsw or ivfpq.", rich_help_panel=SEARCH)
    ] = "auto",
    recall: Annotated[
        float,
        typer.Option(
            "--recall",
            min=0,
            max=1,
            help="Minimum recall of the exact top ten.",
            rich_help_panel=SEARCH,
        ),
    ] = 0.95,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", help="Maximum memory of the index, e.g. 2GB.", rich_help_panel=SEARCH
        ),
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option(
            "--latency",
            help="Maximum 95th-percentile query time on this machine, e.g. 10ms.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    flat_limit: Annotated[
        int,
        typer.Option(
            "--flat-limit",
            min=0,
            help="Number of rows up to which auto tries flat first.",
            rich_help_panel=SEARCH,
        ),
    ] = 200_000,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Build a search index (FAISS) from an embeddings file.

    Exact (flat) up to --flat-limit rows. Above, the first of HNSW, IVF-PQ with increasing code
    length, and flat that reaches --recall for every kind of query within --memory and --latency.

    Examples:

      evaluation index --embeddings mugs.parquet --out mugs.index

      evaluation index --embeddings all.parquet --shards all --out all.index --memory 2GB
    """
    from evaluation.embeddings import read_embeddings
    from evaluation.index import build_index, check_target, sample_queries
    from evaluation.index_choice import Wanted, plans
    from evaluation.teachers import require_same_teacher
    from pipeline.common import byte_size, shown_bytes
    from pipeline.shards import ShardSet

    wanted = Wanted(
        kind,
        flat_limit,
        recall,
        None if memory is None else byte_size("--memory", memory),
        None if latency is None else milliseconds(latency),
    )
    check_target(out, overwrite)
    loaded = read_embeddings(embeddings)
    queries = None
    if shards is not None:
        opened = ShardSet.open(shards)
        require_same_teacher(
            loaded.meta.teacher, str(embeddings), opened.manifest.teacher, f"shards {shards}"
        )
        queries = sample_queries(opened)
    count, width = loaded.rows.vectors.shape
    tried = [f"{p.told()} ({shown_bytes(p.memory)})" for p in plans(count, width, wanted)]
    note(f"{count:,} vectors of width {width}; trying in order: {', '.join(tried)}")

    @contextmanager
    def trying(plan: Plan) -> Iterator[Callable[[int], None]]:
        trained = ": trained on a sample first" if plan.kind == "ivfpq" else ""
        note(f"trying {plan.told()}{trained}")
        with ProgressBar("add", count, "vectors") as bar:
            yield bar.advance

    manifest = build_index(loaded, out, wanted=wanted, queries=queries, trying=trying)
    if json_output:
        print_json(_short(manifest))
        return
    size = (out / "index.faiss").stat().st_size
    stdout.print(
        f"{manifest['kind']} index of {manifest['count']} objects in {out}, {size / 1e6:.3g} MB",
        highlight=False,
    )
    for entry in manifest["tried"][:-1]:
        note(f"{entry['kind']} rejected: {entry['refused']}")
    for name, value in (manifest["recall_against_exact"] or {}).items():
        stdout.print(
            f"recall@{value['k']} against exact search, {name} queries: {value['recall']:.3f}",
            highlight=False,
        )
    if manifest["latency_ms"] is not None:
        stdout.print(
            f"95 of 100 single queries answered within {manifest['latency_ms']:.2g} ms",
            highlight=False,
        )


def update(
    index: Annotated[
        Path,
        typer.Option(
            "--index", help="Folder made by `index`; updated in place.", rich_help_panel=INPUT
        ),
    ],
    add: Annotated[
        Path | None,
        typer.Option("--add", help="Embeddings file with objects to add.", rich_help_panel=INPUT),
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(
            "--remove",
            help="uid to remove, or a text file with one uid per line; repeatable.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Let added objects replace existing ones with the same uid.",
            rich_help_panel=INPUT,
        ),
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Add objects to an index, or remove them.

    Example:

      evaluation update --index mugs.index --add new.parquet --remove folder/broken
    """
    from evaluation.embeddings import read_embeddings
    from evaluation.index_update import update_index

    if add is None and not remove:
        raise InputError("nothing to do: give --add EMBEDDINGS, --remove UID, or both")
    note(f"updating {index}{f' from {add}' if add else ''}")
    gone = _uids(index, remove or [])
    done = update_index(index, read_embeddings(add) if add else None, gone, replace=replace)
    if json_output:
        print_json({**_short(done.manifest), "stale": done.stale})
        return
    stdout.print(
        f"{done.added} added, {done.replaced} replaced, {done.removed} removed: "
        f"{done.manifest['count']} objects in {index}",
        highlight=False,
    )
    if done.stale:
        note("the index has changed a lot since it was built: rebuild it with `evaluation index`")


def _uids(index: Path, given: list[str]) -> set[str]:
    """uids as they stand, and those in files; what is a uid of the index is no file.

    uids look like paths, and the mesh may lie there.
    """
    from evaluation.index import indexed_uids

    files = {value for value in given if _is_file(value)}
    if files:
        files -= indexed_uids(index)
    found = set(given) - files
    for value in files:
        try:
            lines = Path(value).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"--remove {value}: neither a uid of {index} nor a readable text file; give a uid, "
                "or a file with one per line"
            ) from error
        found |= {line.strip() for line in lines if line.strip()}
    return found


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except OSError:  # a uid longer than a name may be
        return False


def milliseconds(text: str) -> float:
    """``10ms``, ``0.5 s`` or ``10`` as milliseconds. Raises ``InputError``."""
    value = text.strip().lower()
    scale = 1.0
    for unit, factor in (("ms", 1.0), ("s", 1000.0)):
        if value.endswith(unit):
            value, scale = value.removesuffix(unit).strip(), factor
            break
    try:
        found = float(value) * scale
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise InputError(f"--latency {text}: not a time; write it as 10ms")
    return found


def _short(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest for JSON output, the teacher by its label."""
    from pipeline.shards import TeacherInfo

    return {**manifest, "teacher": TeacherInfo(**manifest["teacher"]).label}
