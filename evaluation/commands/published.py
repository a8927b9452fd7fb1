"""``evaluation benchmarks`` and ``published``: what there is to compare with."""

from __future__ import annotations

import typer

from pipeline.console import JsonOption, print_json, print_table


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(benchmarks)
    app.command()(published)


def benchmarks(json_output: JsonOption = False) -> None:
    """List the benchmarks that `--benchmark` knows: classes, objects, and the sets they are of.

    Example:

      evaluation benchmarks --json
    """
    from evaluation.benchmarks.known import BENCHMARKS

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
                for known in BENCHMARKS.values()
            ]
        )
        return
    rows: list[list[object]] = []
    for known in BENCHMARKS.values():
        for variant in known.variants:
            objects = " or ".join(f"{count:,}" for count in variant.counts) or "as in the set"
            classes = known.n_classes or "as in the set"
            rows.append([known.name, variant.name, objects, classes, ", ".join(known.sources)])
    print_table(
        "Benchmarks; any other set with categories can be measured too",
        ["--benchmark", "variant", "objects", "classes", "datasets"],
        rows,
    )


def published(json_output: JsonOption = False) -> None:
    """List what papers report, which results of the same benchmarks are shown beside.

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
