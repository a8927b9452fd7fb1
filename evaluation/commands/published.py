"""``evaluation benchmarks`` and ``published``: what there is to compare with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.common import InputError, check_new
from pipeline.console import (
    INPUT,
    OUTPUT,
    JsonOption,
    OverwriteOption,
    ProgressBar,
    note,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from evaluation.benchmarks.known.base import Benchmark


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(benchmarks)
    app.command()(published)


def benchmarks(
    name: Annotated[str | None, typer.Argument(help="Only this one. Default: all of them.")] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            help="For a benchmark defined by a list of files: a folder with them, under any names.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="With --root: CSV file to write, for `pipeline embed --metadata`.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """List the benchmarks known to `--benchmark`: classes, objects, and datasets.

    With --root and --out, find the files of a benchmark by their SHA-256 and write the metadata
    that `pipeline embed --dataset folder` needs to make its set.

    Examples:

      evaluation benchmarks --json

      evaluation benchmarks cc0-objects --root meshes --out cc0.csv
    """
    from evaluation.benchmarks.known import BENCHMARKS

    if name is not None and name not in BENCHMARKS:
        raise InputError(f"{name}: no such benchmark; there are {', '.join(BENCHMARKS)}")
    if (root is None) != (out is None):
        raise InputError("give --root and --out together")
    if root is not None and out is not None:
        _write_metadata(name, root, out, overwrite, json_output)
        return
    chosen = [known for known in BENCHMARKS.values() if name in (None, known.name)]
    if json_output:
        print_json(
            [
                {
                    "name": known.name,
                    "about": known.told,
                    "classes": known.n_classes,
                    "datasets": list(known.sources),
                    "variants": [
                        {"name": v.name, "split": v.split, "objects": list(v.counts)}
                        for v in known.variants
                    ],
                }
                for known in chosen
            ]
        )
        return
    _print(chosen)


def _print(chosen: list[Benchmark]) -> None:
    rows: list[list[object]] = []
    for known in chosen:
        for variant in known.variants:
            objects = " or ".join(f"{count:,}" for count in variant.counts) or "as in the set"
            classes = known.n_classes or "as in the set"
            rows.append([known.name, variant.name, objects, classes, ", ".join(known.sources)])
    print_table(
        "Benchmarks; any other set with categories can be measured too",
        ["--benchmark", "variant", "objects", "classes", "datasets"],
        rows,
    )


def _write_metadata(
    name: str | None, root: Path, out: Path, overwrite: bool, json_output: bool
) -> None:
    """Find the files of a list under ``root`` and say what was found."""
    from evaluation.benchmarks.known import cc0_objects

    listed = cc0_objects.CC0_OBJECTS.name
    if name != listed:
        raise InputError(f"--root and --out need a benchmark with a list of files: {listed}")
    check_new(out, "--out", overwrite)
    with ProgressBar("benchmarks", None, "files") as bar:
        found, others = cc0_objects.find_files(root, bar.advance)
    cc0_objects.write_metadata(out, root, found)
    members = cc0_objects.members()
    splits = Counter(member.split for member in members if member.sha256 in found)
    if json_output:
        print_json(
            {"found": len(found), "listed": len(members), "splits": splits, "others": others}
        )
        return
    print_table(
        f"{listed}: {len(found):,} of {len(members):,} objects found, in {out}",
        ["split", "objects", "in the list"],
        [
            [split, splits[split], sum(member.split == split for member in members)]
            for split in ("train", "val", "test")
        ],
    )
    if others:
        note(f"{others} other {cc0_objects.SUFFIX} files under {root} are not in the list")


def published(json_output: JsonOption = False) -> None:
    """List the results that papers report on the benchmarks.

    Example:

      evaluation published --json
    """
    from evaluation.published import published as known
    from evaluation.published import tables

    if json_output:
        print_json(known())
        return
    for title, columns, rows in tables():
        print_table(title, columns, rows)
