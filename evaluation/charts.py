"""Charts as inline SVG. Colours come from the page's style sheet, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from pipeline.charts import SERIES_COLORS, cut, tick

MAX_HEAT_CLASSES = 60


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    name: str
    x: list[float]
    y: list[float]


def line_chart(curves: Sequence[Curve], width: int = 340, height: int = 190) -> Markup:
    """Lines over a common step axis; values that are not finite leave a gap."""
    left, right, top, bottom = 46, 10, 10, 24
    points = [(x, y) for c in curves for x, y in zip(c.x, c.y, strict=True) if math.isfinite(y)]
    if not points:
        return Markup("")
    x_low, x_high = min(p[0] for p in points), max(p[0] for p in points)
    y_low, y_high = min(p[1] for p in points), max(p[1] for p in points)
    if y_high == y_low:
        y_low, y_high = y_low - 0.5, y_high + 0.5

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (y - y_low) / (y_high - y_low)
        return (
            left + across * (width - left - right),
            height - bottom - up * (height - top - bottom),
        )

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" class="chart">']
    for value in (y_low, (y_low + y_high) / 2, y_high):
        y = place(x_low, value)[1]
        parts.append(
            f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}"/>'
        )
        parts.append(tick(left - 5, y + 3, "end", f"{value:.3g}"))
    for value, anchor in ((x_low, "start"), (x_high, "end")):
        x = place(value, y_low)[0]
        parts.append(tick(x, height - 8, anchor, f"{value:g}"))
    for number, curve in enumerate(curves):
        for piece in _pieces(curve):
            color = f"s{number % SERIES_COLORS}"
            if len(piece) == 1:
                x, y = place(*piece[0])
                parts.append(f'<circle class="dot {color}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>')
                continue
            path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in piece)
            parts.append(
                f'<polyline class="line {color}" points="{path}">'
                f"<title>{escape(curve.name)}</title></polyline>"
            )
    parts.append("</svg>")
    return Markup("".join(parts))  # names are escaped above


def _pieces(curve: Curve, limit: int = 400) -> list[list[tuple[float, float]]]:
    """Runs of finite values, thinned to about ``limit`` points by averaging neighbours."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(curve.x, curve.y, strict=True):
        if math.isfinite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    step = max(1, len(curve.x) // limit)
    return [
        [tuple(np.mean(piece[i : i + step], axis=0)) for i in range(0, len(piece), step)]
        for piece in pieces
        if piece
    ]


def heat_map(matrix_CC: NDArray[np.int64], classes: Sequence[str]) -> Markup:
    """Confusion as shares of each row (true class); at most ``MAX_HEAT_CLASSES`` classes.

    Of more, those with the most confusions are shown. Pointing at a cell names it.
    """
    shown = heat_classes(matrix_CC)
    part = matrix_CC[np.ix_(shown, shown)]
    totals = np.maximum(matrix_CC.sum(1)[shown], 1)
    count = len(shown)
    cell = 16 if count <= 30 else 11
    font = min(11, cell - 1)
    label = min(150, 10 + int(0.62 * font * max(len(classes[i]) for i in shown)))
    side = label + cell * count
    parts = [
        f'<svg viewBox="0 0 {side + 4} {side + 4}" role="img" class="heat" '
        f'style="max-width:{side + 4}px"><rect class="empty" x="{label}" y="{label}" '
        f'width="{cell * count}" height="{cell * count}"/>'
    ]
    for row in range(count):
        name = escape(cut(classes[shown[row]], 24))
        middle = label + cell * row + cell / 2
        parts.append(
            f'<text class="tick" style="font-size:{font}px" text-anchor="end" x="{label - 4}" '
            f'y="{middle + font / 3:.1f}">{name}</text>'
            f'<text class="tick" style="font-size:{font}px" text-anchor="start" '
            f'transform="translate({middle + font / 3:.1f} {label - 4}) rotate(-90)">{name}</text>'
        )
        for column in range(count):
            if not part[row, column]:
                continue
            share = part[row, column] / totals[row]
            kind = "right" if row == column else "wrong"
            title = (
                f"{classes[shown[row]]} predicted as {classes[shown[column]]}: "
                f"{part[row, column]} of {totals[row]}"
            )
            parts.append(
                f'<rect class="{kind}" fill-opacity="{0.12 + 0.88 * share:.2f}" '
                f'x="{label + cell * column}" y="{label + cell * row}" width="{cell - 1}" '
                f'height="{cell - 1}"><title>{escape(title)}</title></rect>'
            )
    parts.append("</svg>")
    return Markup("".join(parts))  # names are escaped above


def heat_classes(matrix_CC: NDArray[np.int64]) -> list[int]:
    """Classes to show in a heat map, in their own order: those with rows or predictions."""
    wrong = matrix_CC.copy()
    np.fill_diagonal(wrong, 0)
    involved = wrong.sum(0) + wrong.sum(1)
    seen = np.flatnonzero(matrix_CC.sum(0) + matrix_CC.sum(1))
    worst = seen[np.argsort(-involved[seen], kind="stable")][:MAX_HEAT_CLASSES]
    return [int(i) for i in np.sort(worst)]
