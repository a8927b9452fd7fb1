"""What papers report, as data: shown beside a result of the same benchmark and of no other.

A benchmark is known by how many objects and classes were measured, not by its name: two papers call
different selections of the same source by one name.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

Record = dict[str, Any]
Table = tuple[str, list[str], list[list[str]]]


@cache
def published() -> Record:
    """The shipped figures: ``zeroshot_top1`` and ``few_shot_top1`` in percent.

    Each has the key of its paper in ``papers``; ``benchmarks`` and ``protocol`` say of what.
    """
    text = files("evaluation").joinpath("data/published.json").read_text(encoding="utf-8")
    found: Record = json.loads(text)
    return found


def benchmark_of(record: Record) -> str | None:
    """The published benchmark that a zero-shot or probe result is of; None for any other set."""
    classes = record["protocol"].get("n_classes")
    for name, known in published()["benchmarks"].items():
        if record["count"] in known["counts"] and classes == known["classes"]:
            return str(name)
    return None


def beside(record: Record) -> Table | None:
    """The published figures of the result's task and benchmark as a table, if there are any."""
    name = benchmark_of(record)
    if name is None or record["task"] not in ("zeroshot", "probe"):
        return None
    return zeroshot_table(name) if record["task"] == "zeroshot" else few_shot_table(name)


def zeroshot_table(name: str) -> Table | None:
    """Zero-shot top-1 of one benchmark, best last within each kind of training data."""
    rows = [row for row in published()["zeroshot_top1"] if name in row]
    rows.sort(key=lambda row: (row["training"], row[name]))
    known = published()["benchmarks"][name]
    title = f"Published zero-shot on {name}, top-1 in percent; {known['told']}"
    cells = [
        [row["model"], row["training"], f"{row[name]:.1f}", row.get("note", "")] for row in rows
    ]
    return (title, ["model", "trained", "top-1", "note"], cells) if rows else None


def few_shot_table(name: str) -> Table | None:
    """Few-shot linear probes of one benchmark."""
    rows = [row for row in published()["few_shot_top1"] if name in row]
    if not rows:
        return None
    shots = list(rows[0][name])
    columns = ["model", "trained", *[f"{k} shot{'s' if k != '1' else ''}" for k in shots]]
    cells = [
        [row["model"], row["training"], *[f"{row[name][k]:.1f}" for k in shots]] for row in rows
    ]
    return f"Published few-shot probes on {name}, top-1 in percent", columns, cells


def tables() -> list[Table]:
    """All of it, and where it was reported."""
    names = published()["benchmarks"]
    found = [make(name) for make in (zeroshot_table, few_shot_table) for name in names]
    papers = [[name, title] for name, title in published()["papers"].items()]
    sources = (f"Reported in; {published()['protocol']}", ["model", "paper"], papers)
    return [*(table for table in found if table is not None), sources]
