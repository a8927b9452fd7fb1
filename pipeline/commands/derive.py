"""Commands that make a shard set of others: ``pipeline split``, ``merge`` and ``filter``."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import NearOption, ShardsArgument
from pipeline.console import (
    INPUT,
    OUTPUT,
    SPLIT,
    JsonOption,
    OverwriteOption,
    note,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from pipeline.sets.split import Split

OutOption = Annotated[
    str,
    typer.Option("--out", help="Shard set to write: a folder or a URI.", rich_help_panel=OUTPUT),
]
SHOWN_SHORTFALLS = 20


class OnDuplicate(StrEnum):
    """What to do about a uid that several sets have."""

    error = "error"
    first = "first"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(split)
    app.command()(merge)
    app.command(name="filter")(filter_)


def split(
    shards: ShardsArgument,
    out: OutOption,
    test: Annotated[
        float,
        typer.Option("--test", help="Fraction of the objects for test.", rich_help_panel=SPLIT),
    ] = 0.1,
    val: Annotated[
        float, typer.Option("--val", help="Fraction of the objects for val.", rich_help_panel=SPLIT)
    ] = 0.05,
    seed: Annotated[
        int,
        typer.Option("--seed", min=0, help="Random seed of the split.", rich_help_panel=SPLIT),
    ] = 0,
    near: NearOption = None,
    look_for_near: Annotated[
        bool,
        typer.Option(
            "--near-duplicates/--no-near-duplicates",
            help="Keep near-duplicates in one split; objects of the same file always are.",
            rich_help_panel=SPLIT,
        ),
    ] = True,
    by_name: Annotated[
        bool,
        typer.Option(
            "--same-name",
            help="Also keep objects with the same name and category together.",
            rich_help_panel=SPLIT,
        ),
    ] = False,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Write a set with a new train, val and test split, stratified by category, without leaks.

    Example:

      pipeline split shards/mine --out shards/split --test 0.1 --val 0.05 --seed 0
    """
    from pipeline.sets.split import SplitOptions, split_set

    options = SplitOptions(test, val, seed, near, look_for_near, by_name)
    found = split_set(shards, out, options, overwrite=overwrite)
    if json_output:
        print_json(found.to_json())
    else:
        show_split(out, found)


def show_split(out: str, found: Split) -> None:
    """Print how a set was split."""
    total = found.written.rows
    print_table(
        out,
        ["split", "objects", "share", "target"],
        [
            [name, count, f"{count / total:.2%}", found.wanted[name]]
            for name, count in found.counts.items()
        ],
    )
    how = "of the same file"
    if found.measure is not None:
        how += f", or with a cosine of the {found.measure} of {found.threshold:g} and more"
    groups = found.groups
    note(
        f"{groups.objects:,} of {total:,} objects are in {groups.groups:,} groups that stay "
        f"together ({how}); the largest has {groups.largest:,}"
    )
    for name, count in found.categories_without.items():
        if count:
            note(f"{count:,} of {found.categories:,} categories have no object in {name}")
    if found.shortfalls:
        rows: list[list[object]] = [
            [s.category or "(none)", s.split, s.wanted, s.got]
            for s in sorted(found.shortfalls, key=lambda s: s.got - s.wanted)
        ]
        print_table(
            f"categories short of their share ({len(rows)}): no group fits",
            ["category", "split", "target", "objects"],
            [list(row) for row in rows[:SHOWN_SHORTFALLS]],
        )


def merge(
    shards: Annotated[list[str], typer.Argument(help="Shard sets: folders or URIs.")],
    out: OutOption,
    on_duplicate: Annotated[
        OnDuplicate,
        typer.Option(
            "--on-duplicate", help="What to do if a uid occurs twice.", rich_help_panel=INPUT
        ),
    ] = OnDuplicate.error,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            help="Merge even if the sets differ in this: cameras, renderer, sampling_seed or "
            "templates; repeatable.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Combine several sets that were made with the same settings into one.

    Example:

      pipeline merge shards/a shards/b --out shards/both
    """
    from pipeline.sets.merge import merge_sets

    found = merge_sets(
        shards, out, on_duplicate=on_duplicate.value, allow=allow or (), overwrite=overwrite
    )
    if json_output:
        print_json(found.to_json())
        return
    rows = zip(shards, found.given, found.left_out, strict=True)
    print_table(out, ["set", "objects", "left out"], [list(row) for row in rows])
    note(f"{out}: {found.written.rows:,} objects, {found.written.failures:,} failures")


def filter_(
    shards: ShardsArgument,
    where: Annotated[
        str,
        typer.Option(
            "--where",
            help="SQL condition on the columns of `shards`, as in a WHERE clause.",
            rich_help_panel=INPUT,
        ),
    ],
    out: OutOption,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Write the rows for which an SQL expression is true as a new set, in the original order.

    Example:

      pipeline filter shards/mine --where "has_color and n_faces < 100000" --out shards/colored
    """
    from pipeline.sets.filter import filter_set

    written = filter_set(shards, where, out, overwrite=overwrite)
    note(f"{out}: {written.rows:,} objects in {written.parts:,} parts")
    if json_output:
        print_json(written.to_json())
