"""Result files: JSON with everything needed to repeat and compare a number."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.embeddings import ModelInfo
from pipeline.common import InputError, atomic_path, content_hash, versions
from pipeline.shards import TeacherInfo
from trainer.metrics import wilson

FORMAT = "mrd3d-result"
VERSION = 1
REMEDY = "give a file that `evaluation zeroshot` or `evaluation recall` wrote"

# What tables and pages take from a result, as paths: ``*`` is every entry, ``?`` is one that may be
# absent. What came later than version 1 of the format is not among it.
_SHARES = ("recall@1.value", "recall@5.value", "recall@10.value")
_FIGURES = (*_SHARES, "median_rank", "map", "n_queries", "chance_recall@1")
_SHARED = (
    *("task", "benchmark", "variant", "count", "uid_hash", "model.name", "model.kind"),
    *("teacher.model", "data", "protocol", "versions"),
)
_NEEDED = {
    "zeroshot": (
        *("protocol.n_classes", "confusion.classes.*", "confusion.matrix.*"),
        *("metrics.top1.value", "metrics.top3.value", "metrics.top5.value"),
        *("metrics.class_mean", "metrics.macro_f1", "metrics.chance_top1"),
        *("per_class.*.name", "per_class.*.count", "per_class.*.recall"),
    ),
    "recall": (
        "protocol.text_source",
        *(f"directions.*.{name}" for name in _FIGURES),
        *(f"teacher_ceiling?.*.{name}" for name in _FIGURES),
    ),
    "probe": (
        *("protocol.classifier", "protocol.n_train", "protocol.n_classes", "linear.top1.value"),
        *("few_shot.*.shots", "few_shot.*.top1.value", "knn.*.k", "knn.*.top1.value"),
    ),
    "parts": (
        *("protocol.classifier", "protocol.n_train", "protocol.n_classes", "protocol.n_parts"),
        *("metrics.instance_miou.value", "metrics.class_miou"),
        *("per_class.*.name", "per_class.*.miou"),
    ),
}


def result_record(
    task: str,
    benchmark: str,
    model: ModelInfo,
    teacher: TeacherInfo,
    data: dict[str, Any],
    uids: Sequence[str],
    protocol: dict[str, Any],
) -> dict[str, Any]:
    """The part of a result that all tasks share; the task adds its figures.

    ``uid_hash`` is over the sorted uids, so that two results can be seen to be of the same objects.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "task": task,
        "benchmark": benchmark,
        "variant": data.get("split") or "all",
        "count": len(uids),
        "uid_hash": content_hash("\n".join(sorted(uids)))[:16],
        "model": {
            "kind": model.kind,
            "name": model.name,
            "hash": model.hash,
            "step": model.step,
        },
        "teacher": {
            "model": teacher.model,
            "pretrained": teacher.pretrained,
            "width": teacher.width,
        },
        "data": data,
        "protocol": protocol,
        "versions": versions("mrd3d", "torch", "numpy", "open_clip_torch", "faiss-cpu"),
    }


def labels_hash(uids: Sequence[str], labels: Sequence[object]) -> str:
    """Hash of what is right for whom, as a result keeps it: ``uid_hash`` says only of whom."""
    pairs = sorted(f"{uid}\t{label}" for uid, label in zip(uids, labels, strict=True))
    return content_hash("\n".join(pairs))[:16]


def by_uid(uids: Sequence[str], values: Sequence[int]) -> list[int]:
    """Values in the order of their uids, so that those of two results can be paired."""
    return [value for _, value in sorted(zip(uids, values, strict=True))]


def proportion(hits: float, n: int) -> dict[str, float | None]:
    """A share with its 95 % Wilson interval, for JSON."""
    low, high = wilson(hits, n)
    return {"value": hits / n if n else None, "low": low, "high": high}


def plain(value: float) -> float | None:
    """A float for JSON: None for NaN and infinities."""
    return float(value) if math.isfinite(value) else None


def write_result(path: Path, record: dict[str, Any]) -> None:
    """Write a result atomically; inner rows of numbers stay on one line each."""
    with atomic_path(path) as temporary:
        temporary.write_text(_dump(record) + "\n", encoding="utf-8")


def _dump(value: Any, indent: str = "") -> str:
    inner = indent + " "
    if isinstance(value, dict) and any(isinstance(item, dict | list) for item in value.values()):
        lines = [f"{inner}{json.dumps(k)}: {_dump(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(inner + _dump(item, inner) for item in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file. Raises ``InputError`` for one that is missing, incomplete, or no such."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: no such file; {REMEDY}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON; {REMEDY}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"{path}: not a result file; {REMEDY}")
    if not isinstance(record.get("version"), int) or record["version"] > VERSION:
        raise InputError(f"{path}: of a newer version than this installation reads; upgrade mrd3d")
    for needed in (*_SHARED, *_NEEDED.get(str(record.get("task")), ())):
        if not _holds(record, needed.split(".")):
            raise InputError(f"{path}: incomplete, {needed} is not in it; measure again")
    return record


def _holds(value: Any, steps: Sequence[str]) -> bool:
    """Whether the path leads somewhere, for every entry where it forks."""
    if not steps:
        return True
    step, rest = steps[0].removesuffix("?"), steps[1:]
    if step == "*":
        entries = value.values() if isinstance(value, dict) else value
        return isinstance(value, dict | list) and all(_holds(entry, rest) for entry in entries)
    if not isinstance(value, dict):
        return False
    if step not in value:
        return steps[0].endswith("?")
    return _holds(value[step], rest)


def percent(share: dict[str, Any]) -> str:
    """``{"value": .5, "low": .4, "high": .6}`` as ``50.0 [40.0, 60.0]``; a dash for no value."""
    if share.get("value") is None:
        return "-"
    if None in (share.get("low"), share.get("high")):  # runs that agree exactly have no interval
        return f"{100 * share['value']:.1f}"
    return f"{100 * share['value']:.1f} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"
