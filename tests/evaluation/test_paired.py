from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2

from evaluation.benchmarks.recall import prepare
from evaluation.paired import compare, hits, paired_tables
from evaluation.results import by_uid
from evaluation.sources import StudentEncoder
from pipeline.shards import ShardSet, create_or_open, write_part
from tests.evaluation import world
from tests.running import Cli


def test_compare__difference_interval_and_mcnemar() -> None:
    rng = np.random.default_rng(0)
    control = rng.random(4000) < 0.5
    other = np.where(rng.random(4000) < 0.9, control, rng.random(4000) < 0.8)
    found = compare(control, other)
    assert found["difference"] == pytest.approx(other.mean() - control.mean())
    assert found["won"] - found["lost"] == int(other.sum()) - int(control.sum())
    spread = 1.96 * (other.astype(float) - control).std() / np.sqrt(4000)
    assert found["high"] - found["difference"] == pytest.approx(spread, rel=1e-3)
    # The chi-square form of the test is close for as many disagreements.
    statistic = (abs(found["won"] - found["lost"]) - 1) ** 2 / (found["won"] + found["lost"])
    assert found["p"] == pytest.approx(chi2.sf(statistic, 1), abs=0.01)
    assert found["p"] < 0.05


def test_compare__few_disagreements_prove_nothing() -> None:
    control = np.array([True] * 10 + [False] * 3)
    found = compare(control, np.ones(13, np.bool_))
    assert (found["won"], found["lost"], found["p"]) == (3, 0, 0.25)
    same = compare(control, control)
    assert same["p"] == 1
    assert np.isnan(same["low"])


def test_compare__all_won_is_not_all_agree_and_no_interval_leaves_the_possible() -> None:
    found = compare(np.zeros(40, np.bool_), np.ones(40, np.bool_))
    assert (found["difference"], found["won"], found["lost"]) == (1, 40, 0)
    assert found["p"] < 1e-9
    nearly = compare(np.zeros(5, np.bool_), np.array([True] * 4 + [False]))
    assert nearly["high"] == 1
    assert nearly["low"] == pytest.approx(0.8 - 2.7764 * np.sqrt(0.2 / 5), abs=1e-4)


def test_by_uid__the_order_of_rows_does_not_matter() -> None:
    assert by_uid(["b", "a", "c"], [2, 1, 3]) == by_uid(["c", "a", "b"], [3, 1, 2]) == [1, 2, 3]


def test_recall__ranks_do_not_depend_on_the_order_of_rows(tmp_path: Path, shards: Path) -> None:
    opened = ShardSet.open(shards)
    rows = [row for group in opened.row_groups for row in opened.rows(group)]
    turned = tmp_path / "turned"
    create_or_open(turned, opened.manifest)
    write_part(turned, opened.manifest, rows[::-1])
    found = []
    for root in (shards, turned):
        there = ShardSet.open(root)
        record = prepare(
            there, StudentEncoder(world.student(), there), text_source="caption"
        ).measure()
        found.append({name: figures["ranks"] for name, figures in record["directions"].items()})
    assert set(found[0]) == {
        *("text->3d", "3d->text", "image->3d", "3d->image", "3d->3d"),
        *("image->3d class", "class->3d"),
    }
    assert found[0] == found[1]


def test_paired_tables__on_the_same_objects_only(command: Cli, fakes: Path, shards: Path) -> None:
    def result(task: str, name: str, *more: object) -> dict[str, object]:
        run = fakes.parent / name
        found: dict[str, object] = command.json(
            task, "--checkpoint", run, "--shards", shards, *more
        )
        return found

    records = [result("zeroshot", "blind"), result("zeroshot", "run"), result("recall", "blind")]
    records += [result("recall", "run"), result("zeroshot", "run", "--split", "train")]
    tables = paired_tables(records)
    assert [len(rows) for _, _, rows in tables] == [1, 7]
    title, columns, rows = tables[0]
    assert title.startswith("Differences to blind on tiny, 39 objects")
    cells = dict(zip(columns, rows[0], strict=True))
    top1 = [record["metrics"]["top1"]["value"] for record in records[:2]]  # type: ignore[index]
    assert cells["difference"] == f"{100 * (top1[1] - top1[0]):+.1f}"
    assert cells["lost"] == "0"
    assert float(cells["p (Holm)"]) < 0.001
    assert paired_tables(records[4:]) == []


def test_paired_tables__what_all_queries_say_is_told(
    command: Cli, fakes: Path, shards: Path
) -> None:
    record = command.json("zeroshot", "--checkpoint", fakes, "--shards", shards)
    ranks = {"right": [1] * 39, "wrong": [2] * 39, "also right": [1] * 39}
    records = [{**record, "ranks": r, "model": {"name": n}} for n, r in ranks.items()]
    ((_, columns, rows),) = paired_tables(records)
    cells = [dict(zip(columns, row, strict=True)) for row in rows]
    assert [(c["difference"], c["95 %"], c["lost"]) for c in cells] == [
        ("-100.0", "-", "39"),
        ("+0.0", "all agree", "0"),
    ]


def test_paired_tables__other_questions_answers_or_teachers_are_not_paired(
    command: Cli, fakes: Path, shards: Path
) -> None:
    record = command.json("recall", "--checkpoint", fakes, "--shards", shards)
    assert len(paired_tables([record, record])) == 1
    teacher = {**record["teacher"], "pretrained": "v2"}
    for change in (
        {"query_hash": "other"},
        {"label_hash": "other"},
        {"teacher": teacher},
        {"query_hash": None},
    ):
        assert paired_tables([record, {**record, **change}]) == [], change
    older = {k: v for k, v in record.items() if k not in ("query_hash", "label_hash")}
    assert paired_tables([record, older]) == []
    assert len(paired_tables([older, older])) == 1
    # Each teacher has a control of its own.
    other = {**record, "teacher": teacher, "model": {**record["model"], "name": "other"}}
    titles = [title for title, _, _ in paired_tables([record, other, record, other])]
    assert [title.split(" on ")[0] for title in titles] == [
        f"Differences to {record['model']['name']}",
        "Differences to other",
    ]


def test_hits__older_results_without_ranks_have_none(
    command: Cli, fakes: Path, shards: Path
) -> None:
    record = command.json("zeroshot", "--checkpoint", fakes, "--shards", shards)
    share = hits(record)["top-1"].mean()
    assert share == pytest.approx(record["metrics"]["top1"]["value"])
    del record["ranks"]
    assert hits(record) == {}
    assert paired_tables([record, record]) == []


def test_hits__queries_without_an_answer_are_left_out() -> None:
    record = {"task": "recall", "directions": {"text->3d": {"ranks": [1, 0, 2, 1]}}}
    assert hits(record)["text->3d R@1"].tolist() == [True, False, True]
