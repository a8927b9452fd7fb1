from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from pipeline.charts import Bar, bar_chart, cut, histogram


def rects(drawn: str) -> list[dict[str, str]]:
    return [node.attrib for node in ET.fromstring(drawn).iter("rect")]


def test_bar_chart__lengths_are_in_proportion_and_names_are_escaped() -> None:
    bars = [Bar("a <b>", [30], "30"), Bar("c", [15], "15"), Bar("d", [0], "0")]
    drawn = str(bar_chart(bars))
    widths = [float(rect["width"]) for rect in rects(drawn)]
    assert widths[0] == 2 * widths[1]
    assert widths[2] == 0
    assert "a &lt;b&gt;" in drawn
    assert str(bar_chart([])) == ""


def test_bar_chart__stacks_one_after_another() -> None:
    first, second = rects(str(bar_chart([Bar("a", [10, 30], "")], ("yes", "no"))))
    assert float(second["x"]) == float(first["x"]) + float(first["width"])
    assert float(second["width"]) == 3 * float(first["width"])
    assert [r["class"] for r in (first, second)] == ["fill s0", "fill s1"]


def test_histogram__heights_are_in_proportion_and_one_in_a_million_is_seen() -> None:
    counts = [4, 0, 2]
    drawn = str(histogram(counts, [0, 1, 2, 3], ["p", "q", "r"], [(0, "0")], unit="x"))
    heights = [float(rect["height"]) for rect in rects(drawn)]
    assert len(heights) == 2
    assert heights[0] == 2 * heights[1]
    drawn = str(histogram([1, 10**6], [0, 1, 2], ["p", "q"], [], unit="x"))
    assert float(rects(drawn)[0]["height"]) == 1
    assert str(histogram([0, 0], [0, 1, 2], ["p", "q"], [], unit="x")) == ""


def test_histogram__mark_stands_at_its_value_or_not_at_all() -> None:
    for value, expected in ((1.0, True), (2.5, False)):
        drawn = str(
            histogram([1, 1], [0, 1, 2], ["p", "q"], [(1.0, "one")], unit="x", mark=(value, "m"))
        )
        found = re.search(r'class="mark" x1="([\d.]+)"', drawn)
        assert bool(found) is expected
        if found:
            assert f'x="{found[1]}" y="172.0"' in drawn  # where the tick of that value stands


def test_cut__to_the_length() -> None:
    assert [cut("abcdef", n) for n in (6, 5)] == ["abcdef", "abcd…"]
