"""Charts as inline SVG. Colours come from the page's style sheet, so they follow light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

SERIES_COLORS = 6  # classes s0 .. s5 of the style sheet


def tick(x: float, y: float, anchor: str, text: str) -> str:
    """A label of an axis. ``text`` is markup."""
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def cut(text: str, length: int) -> str:
    """At most ``length`` characters of a text."""
    return text if len(text) <= length else text[: length - 1] + "…"


@dataclass(frozen=True)
class Bar:
    """One line of a bar chart: a value, or several that are stacked."""

    name: str
    values: Sequence[float]
    label: str  # at the end of the bar


def bar_chart(bars: Sequence[Bar], series: Sequence[str] = ("",), width: int = 520) -> Markup:
    """Horizontal bars, one below the other; the longest one takes the whole width."""
    if not bars:
        return Markup("")
    row, left, right = 20, 150, 96
    longest = max(sum(bar.values) for bar in bars) or 1
    height = row * len(bars) + 4
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" class="chart">']
    for number, bar in enumerate(bars):
        top, x = row * number + 4, float(left)
        parts.append(
            f"<g><title>{escape(bar.name)}: {escape(bar.label)}</title>"
            + tick(left - 8, top + 11, "end", str(escape(cut(bar.name, 24))))
        )
        for index, value in enumerate(bar.values):
            span = value / longest * (width - left - right)
            name = f"<title>{escape(bar.name)}, {escape(series[index])}: {value:,g}</title>"
            parts.append(
                f'<rect class="fill s{index % SERIES_COLORS}" x="{x:.1f}" y="{top}" '
                f'width="{max(span, 0.8 if value else 0):.1f}" height="{row - 6}">'
                f"{name if series[index] else ''}</rect>"
            )
            x += span
        parts.append(tick(x + 6, top + 11, "start", str(escape(bar.label))) + "</g>")
    return Markup("".join(parts) + "</svg>")  # names are escaped above


def histogram(
    counts: Sequence[int],
    edges: Sequence[float],
    titles: Sequence[str],
    ticks: Sequence[tuple[float, str]],
    *,
    unit: str,
    mark: tuple[float, str] | None = None,
    width: int = 340,
    height: int = 180,
) -> Markup:
    """Columns between ``edges`` (one more than ``counts``), each with its title.

    ``ticks`` and ``mark`` (a line across, with a name) stand at positions on the axis of the edges,
    which is linear; for a logarithmic one give logarithms.
    """
    if not sum(counts):
        return Markup("")
    left, right, top, bottom = 46, 12, 14, 24
    most = max(counts)
    span = edges[-1] - edges[0] or 1

    def across(value: float) -> float:
        return left + (value - edges[0]) / span * (width - left - right)

    def up(count: float) -> float:
        return height - bottom - count / most * (height - top - bottom)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" class="chart">']
    for count in sorted({0, most // 2, most}):
        y = up(count)
        parts.append(
            f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}"/>'
        )
        parts.append(tick(left - 5, y + 3, "end", f"{count:,}"))
    for index, count in enumerate(counts):
        if not count:
            continue
        x, end = across(edges[index]), across(edges[index + 1])
        y = min(up(count), up(0) - 1)  # a single object among thousands is seen
        parts.append(
            f'<rect class="fill s0" x="{x + 0.4:.1f}" y="{y:.1f}" width="{end - x - 0.8:.1f}" '
            f'height="{up(0) - y:.1f}"><title>{escape(titles[index])}: {count:,} '
            f"{escape(unit)}</title></rect>"
        )
    for value, text in ticks:
        parts.append(tick(across(value), height - 8, "middle", str(escape(text))))
    if mark is not None and edges[0] <= mark[0] <= edges[-1]:
        x = across(mark[0])
        anchor, shift = ("end", -4) if x > width / 2 else ("start", 4)
        parts.append(
            f'<line class="mark" x1="{x:.1f}" y1="{top - 4}" x2="{x:.1f}" y2="{up(0):.1f}"/>'
            + tick(x + shift, top + 2, anchor, str(escape(mark[1])))
        )
    return Markup("".join(parts) + "</svg>")  # names are escaped above
