from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest

from evaluation.published import benchmark_of, beside, published, tables
from evaluation.tables import comparisons
from tests.running import Cli


@pytest.mark.parametrize(
    ("count", "classes", "name"),
    [
        (46205, 1156, "objaverse-lvis"),
        (46832, 1156, "objaverse-lvis"),
        (2468, 40, "modelnet40"),
        (2890, 15, "scanobjectnn"),
        (581, 15, None),  # other scans: no paper's figure stands beside them
        (2468, 10, None),
        (2467, 40, None),
    ],
)
def test_benchmark_of__known_by_objects_and_classes(
    count: int, classes: int, name: str | None
) -> None:
    record = {"task": "zeroshot", "count": count, "protocol": {"n_classes": classes}}
    assert benchmark_of(record) == name
    table = beside(record)
    assert (table is None) == (name is None)
    if table is not None and name is not None:
        wanted = sorted(row[name] for row in published()["zeroshot_top1"] if name in row)
        assert sorted(float(row[2]) for row in table[2]) == wanted


def test_beside__figures_of_the_field() -> None:
    record = {"task": "zeroshot", "count": 2468, "protocol": {"n_classes": 40}}
    table = beside(record)
    assert table is not None
    assert ["OpenShape, PointBERT 32M", "with LVIS shapes", "84.4", ""] in table[2]
    assert "2,468" in table[0]
    few = beside({**record, "task": "probe"})
    assert few is not None
    assert few[2][1][-1] == "85.9"
    assert beside({**record, "task": "recall"}) is None


def test_published__every_figure_is_a_percentage_of_a_known_benchmark() -> None:
    known = published()
    for row in known["zeroshot_top1"]:
        figures = {key: row[key] for key in row if key in known["benchmarks"]}
        assert figures
        assert all(0 < value < 100 for value in figures.values())
        assert set(row) <= {*known["benchmarks"], "training", "model", "paper", "note"}
        assert row["paper"] in known["papers"]
    for row in known["few_shot_top1"]:
        assert list(row["modelnet40"].values()) == sorted(row["modelnet40"].values())
    assert {
        row["paper"] for key in ("zeroshot_top1", "few_shot_top1") for row in known[key]
    } == set(known["papers"])
    assert len(tables()) == 5


def test_comparisons__published_figures_follow_their_benchmark_only(
    command: Cli, fakes: Path, shards: Path
) -> None:
    record = command.json("zeroshot", "--checkpoint", fakes, "--shards", shards)
    assert len(comparisons([record])) == 1
    same = deepcopy(record)
    same["count"], same["protocol"]["n_classes"] = 2468, 40
    first, second = comparisons([same])
    assert first[0].startswith("Zero-shot on")
    assert second[0].startswith("Published zero-shot on modelnet40")


def test_published_command__prints_tables_and_json(command: Cli) -> None:
    assert command.json("published") == published()
    assert "ULIP-2" in command.ok("published")
