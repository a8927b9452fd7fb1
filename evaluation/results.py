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
    """Read a result file. Raises ``InputError`` when it is missing or something else."""
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
    return record


def percent(share: dict[str, Any]) -> str:
    """``{"value": .5, "low": .4, "high": .6}`` as ``50.0 [40.0, 60.0]``; a dash for no value."""
    if share.get("value") is None:
        return "-"
    if share.get("low") is None:  # runs that agree exactly have no interval
        return f"{100 * share['value']:.1f}"
    return f"{100 * share['value']:.1f} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"
