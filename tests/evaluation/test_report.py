from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.charts import MAX_HEAT_CLASSES, Curve, heat_classes, heat_map, line_chart
from evaluation.paired import paired_tables
from evaluation.report import class_sections, read_curves, read_results
from evaluation.results import read_result, write_result
from evaluation.tables import comparisons, title_of
from pipeline.common import InputError
from pipeline.shards import ShardSet, create_or_open, write_part
from tests.evaluation import world
from tests.running import Cli


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and collects what the page would fetch or run."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parse(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    assert not page.open
    return page


@pytest.fixture
def page(command: Cli, fakes: Path, shards: Path, indexed: Path, tmp_path: Path) -> Path:
    paths = []
    for name in ("run", "blind"):
        for task in ("zeroshot", "recall"):
            paths.append(tmp_path / f"{task}-{name}.json")
            command.ok(
                task, "--checkpoint", fakes.parent / name, "--shards", shards, "--out", paths[-1]
            )
    lines = [{"kind": "train", "step": i, "loss": 3 / i, "rows": 1} for i in range(1, 30)]
    lines += [{"kind": "val", "step": 20, "score": 0.5, "best": True}]
    text = "\n".join(map(json.dumps, lines)) + '\n{"kind": "tra'
    (fakes / "metrics.jsonl").write_text(text)
    out = tmp_path / "report.html"
    printed = command.ok(
        "report", *paths, "--out", out, "--title", "Mugs & <chairs>", "--run", fakes,
        "--gallery", indexed, "--queries", "a red mug", "--queries", "an <oak> tree",
        "--shards", shards, "-k", 4, "--map", tmp_path / "e.parquet",
    )  # fmt: skip
    assert "Zero-shot on tiny" in printed
    assert "Retrieval on tiny" in printed
    return out


def test_report__is_one_file_that_fetches_and_runs_nothing(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"https?://|//cdn|@import|url\(", text)
    found = parse(page)
    assert not {"script", "link", "iframe", "object", "embed"} & set(found.tags)
    assert found.sources
    assert all(source.startswith("data:image/png;base64,") for source in found.sources)
    assert "prefers-color-scheme: dark" in text


def test_report__shows_tables_gallery_bars_heat_and_curves(page: Path) -> None:
    found = parse(page)
    assert found.tags.count("img") == 8
    for words in ("Mugs & <chairs>", "an <oak> tree", "text->3d", "Confusion", "train/loss"):
        assert words in found.text
    assert "val/score" in found.text
    assert "train/rows" not in found.text
    assert found.tags.count("rect") > 4
    assert "polyline" in found.tags
    assert "blind" in found.text
    assert "Differences on the same objects" in found.text
    assert "McNemar" in found.text
    assert found.tags.count("circle") >= 40
    assert "40 objects" in found.text


def test_report__a_gallery_needs_its_three_options(
    command: Cli, indexed: Path, fakes: Path, shards: Path, tmp_path: Path
) -> None:
    result = tmp_path / "z.json"
    command.ok("zeroshot", "--checkpoint", fakes, "--shards", shards, "--out", result)
    report = ("report", result, "--out", tmp_path / "r.html")
    assert "--queries" in command.refused(*report, "--gallery", indexed)
    other = world.make_shards(tmp_path / "few", 1)
    assert "metrics.jsonl" in command.refused(*report, "--run", tmp_path)
    error = command.refused(
        *report, "--gallery", indexed, "--queries", "fish", "--shards", other, "-k", 1
    )
    assert "holds none of the objects" in error
    assert not (tmp_path / "r.html").exists()


def test_comparisons__results_of_other_objects_never_share_a_table(
    command: Cli, fakes: Path, shards: Path
) -> None:
    arguments = ("zeroshot", "--checkpoint", fakes, "--shards", shards)
    records = [command.json(*arguments), command.json(*arguments)]
    records.append(command.json(*arguments, "--split", "train"))
    tables = comparisons(records)
    assert [len(rows) for _, _, rows in tables] == [2, 1]


def test_comparisons__what_tells_tables_of_one_title_apart_is_told(
    command: Cli, fakes: Path, shards: Path
) -> None:
    arguments = ("zeroshot", "--checkpoint", fakes, "--shards", shards)
    records = [command.json(*arguments), command.json(*arguments, "--templates", "bare")]
    first, second = (title for title, _, _ in comparisons(records))
    assert "class texts by 2 templates" in first
    assert "class texts by template '{}'" in second
    assert "class texts" not in comparisons(records[:1])[0][0]
    older = {k: v for k, v in records[0].items() if k != "label_hash"}
    first, second = (title for title, _, _ in comparisons([records[0], older]))
    assert f"labels {records[0]['label_hash']}" in first
    assert "labels not recorded" in second


def test_comparisons__results_of_other_draws_of_points_never_share_a_table(
    command: Cli, fakes: Path, shards: Path
) -> None:
    arguments = ("zeroshot", "--checkpoint", fakes, "--shards", shards)
    one, seeded = command.json(*arguments), command.json(*arguments, "--seed", 5)
    two = [command.json(*arguments, "--draws", 2, "--seed", seed) for seed in (0, 0, 5)]
    views = command.json("zeroshot", "--teacher-views", "--shards", shards)
    tables = comparisons([one, *two, seeded, views])
    assert [len(rows) for _, _, rows in tables] == [3, 2, 1]
    told = [title.partition(":")[0].rpartition(", ")[2] for title, _, _ in tables]
    assert told == ["draws 1", "draws 2 from seed 0", "draws 2 from seed 5"]
    assert "draws" not in comparisons([one, views])[0][0]
    assert [len(rows) for _, _, rows in paired_tables([one, *two])] == [1]


def relabelled(tmp_path: Path, shards: Path) -> Path:
    """The same objects, of which those of one class are said to be of another."""
    opened, root = ShardSet.open(shards), tmp_path / "relabelled"
    rows = [row for group in opened.row_groups for row in opened.rows(group)]
    create_or_open(root, opened.manifest)
    moved = [replace(r, category="mug" if r.category == "fish" else r.category) for r in rows]
    write_part(root, opened.manifest, moved)
    return root


def test_report__other_labels_of_the_same_objects_are_another_table(
    command: Cli, fakes: Path, shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "l.txt").write_text("mug\nchair\noak tree\nfish\n")
    paths = []
    for number, root in enumerate((shards, relabelled(tmp_path, shards))):
        paths.append(tmp_path / f"{number}.json")
        common = ("zeroshot", "--checkpoint", fakes, "--shards", root)
        command.ok(*common, "--labels", tmp_path / "l.txt", "--out", paths[-1])
    records = read_results(paths)
    assert records[0]["uid_hash"] == records[1]["uid_hash"]
    assert [len(section.models) for section in class_sections(records)] == [1, 1]
    printed = command.ok("report", *paths, "--out", tmp_path / "r.html")
    assert printed.count("Zero-shot on") == 2
    assert "Differences on the same objects" not in parse(tmp_path / "r.html").text
    for record in records:  # as results were before they told of their labels
        del record["label_hash"]
    assert [len(section.models) for section in class_sections(records)] == [1, 1]


def test_comparisons__every_teacher_has_a_ceiling_of_its_own(
    command: Cli, fakes: Path, shards: Path
) -> None:
    record = command.json("recall", "--checkpoint", fakes, "--shards", shards)
    directions = list(record["teacher_ceiling"])
    ceiling = {name: deepcopy(record["teacher_ceiling"][name]) for name in directions}
    ceiling[directions[0]]["recall@1"]["value"] = 0.123
    other = {**record, "teacher": {**record["teacher"], "model": "big"}, "teacher_ceiling": ceiling}
    views = command.json("recall", "--teacher-views", "--shards", shards)

    def ceilings(*records: dict[str, object]) -> list[list[str]]:
        ((_, _, rows),) = comparisons(records, compact=True)
        return [row for row in rows if row[0] in ("teacher", "teacher fake v1", "teacher big v1")]

    assert [row[0] for row in ceilings(record, record)] == ["teacher"] * len(directions)
    both = ceilings(record, other, record)
    assert [row[0] for row in both] == [
        *["teacher fake v1"] * len(directions),
        *["teacher big v1"] * len(directions),
    ]
    assert both[len(directions)][2] == "12.3"
    assert {row[0] for row in ceilings(record, other, views)} == {"teacher big v1"}
    assert ceilings(record, views) == []
    first = command.json("recall", "--teacher-views", "--views", "first", "--shards", shards)
    assert {row[0] for row in ceilings(record, first)} == {"teacher"}
    assert ceilings(record, first, views) == []


def test_title__fewer_classes_than_the_benchmark_has_are_told(
    command: Cli, fakes: Path, shards: Path
) -> None:
    record = command.json("zeroshot", "--checkpoint", fakes, "--shards", shards)
    assert "classes (set" not in title_of(record)
    assert "39 objects, 4 of 1,156 classes (set" in title_of({**record, "benchmark_classes": 1156})
    assert "classes (set" not in title_of({**record, "benchmark_classes": 4})


@pytest.mark.parametrize("task", ["zeroshot", "recall", "probe"])
def test_report__an_incomplete_result_is_one_line(
    command: Cli, fakes: Path, tmp_path: Path, task: str
) -> None:
    """Whatever is taken from what tables show, it is named and nothing else is said."""
    shards = world.make_shards(tmp_path / "shards", run=4)
    path = tmp_path / "r.json"
    command.ok(task, "--checkpoint", fakes, "--shards", shards, "--out", path)
    whole = read_result(path)
    lacking = 0
    for steps in places(whole):
        record = deepcopy(whole)
        inner: Any = record
        for step in steps[:-1]:
            inner = inner[step]
        del inner[steps[-1]]
        write_result(path, record)
        try:
            records = read_results([path])
        except InputError:
            lacking += 1
            continue
        comparisons(records, compact=True)
        comparisons(records)
        class_sections(records)
    assert lacking > 15
    write_result(path, {name: value for name, value in whole.items() if name != "uid_hash"})
    told = "r.json: incomplete, uid_hash is not in it"
    assert told in command.refused("report", path, "--out", tmp_path / "page.html")


def places(value: object, depth: int = 4) -> Iterator[tuple[object, ...]]:
    """Every key of a record, of lists those of the first entry."""
    if isinstance(value, dict) and depth:
        for key, inner in value.items():
            yield (key,)
            yield from ((key, *more) for more in places(inner, depth - 1))
    if isinstance(value, list) and depth and value and isinstance(value[0], dict):
        yield from ((0, *more) for more in places(value[0], depth - 1))


def test_read_curves__without_metrics_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a run folder"):
        read_curves(tmp_path)


def test_line_chart__gaps_single_points_and_nothing() -> None:
    nan = float("nan")
    drawn = str(line_chart([Curve("a<b", [1, 2, 3, 4, 5], [1, 2, nan, 4, nan])]))
    assert drawn.count("<polyline") == 1
    assert drawn.count("<circle") == 1
    assert "a&lt;b" in drawn
    assert line_chart([]) == ""
    assert "nan" not in str(line_chart([Curve("flat", [1], [2])]))


def test_heat_map__keeps_the_most_confused_of_many_classes() -> None:
    count = MAX_HEAT_CLASSES + 10
    matrix = np.diag(np.full(count, 5))
    matrix[3, count - 1] = 4
    shown = heat_classes(matrix)
    assert len(shown) == MAX_HEAT_CLASSES
    assert {3, count - 1} <= set(shown)
    assert shown == sorted(shown)
    drawn = str(heat_map(matrix, [f"c<{i}>" for i in range(count)]))
    assert "c&lt;3&gt; predicted as" in drawn
    assert "<3>" not in drawn
