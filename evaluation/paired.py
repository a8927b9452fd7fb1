"""Comparing models on the same objects, query by query.

Two results of the same objects, right answers, questions, protocol and teacher are paired: their
difference has a narrower interval than two intervals side by side suggest, and McNemar's test
(1947) says whether the objects on which they disagree split evenly. The first result is the
control.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.published import Table
from evaluation.tables import groups, teacher_of
from trainer.statistics import holm, t_interval

Record = dict[str, Any]


def paired_tables(records: Sequence[Record]) -> list[Table]:
    """A table for each benchmark that several models were measured on; in percent."""
    found = []
    for heading, group in _of_one_teacher(records):
        control, others = group[0], group[1:]
        rows = []
        for other in others:
            for name, ours in hits(control).items():
                theirs = hits(other).get(name)
                if theirs is not None and len(theirs) == len(ours):
                    rows.append((other["model"]["name"], name, compare(ours, theirs)))
        if rows:
            adjusted = holm([difference["p"] for _, _, difference in rows])
            cells = [
                [model, name, *_cells(difference, p)]
                for (model, name, difference), p in zip(rows, adjusted, strict=True)
            ]
            title = f"Differences to {control['model']['name']} on {heading}, percent"
            columns = ["model", "hits at", "difference", "95 %", "won", "lost", "p", "p (Holm)"]
            found.append((title, columns, cells))
    return found


def _of_one_teacher(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """``groups``, parted by teacher: others ask by other vectors, and may be what differs."""
    return [
        (heading, [record for record in group if teacher_of(record) == teacher])
        for heading, group in groups(records)
        for teacher in dict.fromkeys(map(teacher_of, group))
    ]


def hits(record: Record) -> dict[str, NDArray[np.bool_]]:
    """Whether each query was answered at rank 1, by what was asked; {} for results without ranks.

    Queries without a right answer are left out: they are the same for every model.
    """
    if record["task"] == "zeroshot":
        ranks = {"top-1": record.get("ranks")}
    else:
        directions = record.get("directions", {})
        ranks = {f"{name} R@1": figures.get("ranks") for name, figures in directions.items()}
    arrays = {name: np.asarray(value) for name, value in ranks.items() if value}
    return {name: value[value > 0] == 1 for name, value in arrays.items()}


def compare(control: NDArray[np.bool_], other: NDArray[np.bool_]) -> dict[str, float]:
    """Difference of two shares over the same queries, its interval, and McNemar's exact test.

    ``low`` and ``high`` are within [-1, 1], and NaN where the difference is the same on every
    query: where all agree, or one is right on all and the other on none.
    """
    from scipy.stats import binomtest

    interval = t_interval((other.astype(float) - control.astype(float)).tolist())
    won, lost = int((other & ~control).sum()), int((control & ~other).sum())
    p = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return {
        "difference": interval.mean,
        "low": float(np.clip(interval.low, -1, 1)),
        "high": float(np.clip(interval.high, -1, 1)),
        "won": won,
        "lost": lost,
        "p": p,
    }


def _cells(found: dict[str, float], adjusted: float) -> list[str]:
    told = f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}"
    if math.isnan(found["low"]):
        told = "-" if found["won"] + found["lost"] else "all agree"
    return [
        f"{100 * found['difference']:+.1f}",
        told,
        f"{found['won']:g}",
        f"{found['lost']:g}",
        f"{found['p']:.3f}",
        f"{adjusted:.3f}",
    ]
