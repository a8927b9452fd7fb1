"""One self-contained HTML page of results: no script, no network, light and dark."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from evaluation.charts import Curve, heat_classes, heat_map, line_chart
from evaluation.embedding_map import map_section
from evaluation.gallery import GalleryRow
from evaluation.paired import paired_tables
from evaluation.results import read_result
from evaluation.student import run_name
from evaluation.tables import comparisons, groups, title_of
from pipeline.common import InputError, atomic_path, versions
from pipeline.pages import render_page

Record = dict[str, Any]
MAX_BAR_CLASSES = 60
MAX_CURVES = 12
# Bookkeeping of a training log; everything else in it is a curve.
NOT_CURVES = {"step", "kind", "best", "rows", "samples_seen", "seconds", "epoch", "time"}
FIRST_CURVES = ("val/score", "val/align", "val/top1_text", "val/top1_image", "train/loss")


@dataclass(frozen=True)
class BarRow:
    """One class: its size and, for each model, its recall in percent."""

    name: str
    count: int
    values: list[float]


@dataclass(frozen=True)
class ClassSection:
    """Per-class view of one benchmark, over all its models."""

    title: str
    models: list[str]
    rows: list[BarRow]
    left_out: int  # classes not shown
    heats: list[tuple[str, Markup, int]]  # (model, drawing, classes left out)


@dataclass(frozen=True)
class CurveSection:
    """One chart of the training logs."""

    name: str
    chart: Markup


def read_results(paths: Sequence[Path]) -> list[Record]:
    """Read result files in the order given. Raises ``InputError`` for one that is not."""
    records = [read_result(path) for path in paths]
    for path, record in zip(paths, records, strict=True):
        if record.get("task") not in ("zeroshot", "recall", "probe", "parts"):
            raise InputError(f"{path}: task {record.get('task')!r} is unknown; upgrade mrd3d")
    return records


def write_report(
    out: Path,
    title: str,
    records: Sequence[Record],
    gallery: Sequence[GalleryRow] = (),
    runs: Sequence[Path] = (),
    maps: Sequence[Path] = (),
) -> None:
    """Write the page atomically; ``maps`` are embeddings files.

    Raises ``InputError`` when a run has no metrics, or a file no embeddings.
    """
    page = render_page(
        "evaluation",
        "templates",
        "report.html.j2",
        title=title,
        tables=comparisons(records),
        paired=paired_tables(records),
        sections=class_sections(records),
        gallery=gallery,
        maps=[map_section(path) for path in maps],
        curves=curve_sections(runs),
        run_names=[run_name(run) for run in runs],
        protocols=[_protocol(record) for record in records],
        version=versions("mrd3d").get("mrd3d", ""),
    )
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _protocol(record: Record) -> tuple[str, str]:
    """Heading and text of everything needed to repeat one result."""
    kept = [
        *("task", "model", "teacher", "data", "count", "uid_hash", "label_hash", "query_hash"),
        *("protocol", "versions"),
    ]
    shown = {key: record[key] for key in kept if key in record}
    return (
        f"{record['task']} of {record['model']['name']} on {title_of(record)}",
        json.dumps(shown, indent=1, ensure_ascii=False),
    )


def class_sections(records: Sequence[Record]) -> list[ClassSection]:
    """Per-class bars and confusion of every classification benchmark."""
    sections = []
    for heading, group in groups(records):
        if group[0]["task"] != "zeroshot":
            continue
        rows = [
            BarRow(
                classes[0]["name"],
                classes[0]["count"],
                [100 * entry["recall"] for entry in classes],
            )
            for classes in zip(*(record["per_class"] for record in group), strict=True)
            if classes[0]["count"]
        ]
        # The last model is the one that the page is about: its worst classes come first.
        rows.sort(key=lambda row: (row.values[-1], row.name))
        heats = []
        for record in group:
            matrix = np.asarray(record["confusion"]["matrix"], np.int64)
            classes = record["confusion"]["classes"]
            seen = int(np.count_nonzero(matrix.sum(0) + matrix.sum(1)))
            left_out = seen - len(heat_classes(matrix))
            heats.append((record["model"]["name"], heat_map(matrix, classes), left_out))
        sections.append(
            ClassSection(
                heading,
                [record["model"]["name"] for record in group],
                rows[:MAX_BAR_CLASSES],
                max(0, len(rows) - MAX_BAR_CLASSES),
                heats,
            )
        )
    return sections


def curve_sections(runs: Sequence[Path]) -> list[CurveSection]:
    """Charts of ``metrics.jsonl`` of run folders, one line per run.

    Raises ``InputError`` when a folder has no such file.
    """
    by_name: dict[str, list[Curve]] = {}
    for place, run in enumerate(runs):
        for name, curve in read_curves(run).items():
            lines = by_name.setdefault(name, [])
            # A run without this value holds its place, so that colours mean the same everywhere.
            lines += [Curve("", [], []) for _ in range(place - len(lines))]
            lines.append(curve)
    order = [name for name in FIRST_CURVES if name in by_name]
    order += [name for name in by_name if name not in order]
    return [CurveSection(name, line_chart(by_name[name])) for name in order[:MAX_CURVES]]


def read_curves(run: Path) -> dict[str, Curve]:
    """Every number of a run's ``metrics.jsonl`` over steps, by ``kind/name``."""
    path = run / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: not there; give a run folder of `trainer run`") from error
    curves: dict[str, Curve] = {}
    for text in lines:
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            break  # a last line cut off by a kill
        step = record.get("step") if isinstance(record, dict) else None
        if not isinstance(step, int | float):
            continue
        for name, value in record.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name in NOT_CURVES or not number or math.isinf(value):
                continue
            full = f"{record.get('kind', 'train')}/{name}"
            curve = curves.setdefault(full, Curve(run_name(run), [], []))
            curve.x.append(float(step))
            curve.y.append(float(value))
    return curves
