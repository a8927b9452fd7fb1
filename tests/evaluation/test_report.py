from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest

from evaluation.charts import MAX_HEAT_CLASSES, Curve, heat_classes, heat_map, line_chart
from evaluation.report import read_curves
from evaluation.tables import comparisons
from pipeline.common import InputError
from tests.evaluation import world
from tests.evaluation.running import Cli


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
    assert "c&lt;3&gt; taken for" in drawn
    assert "<3>" not in drawn
