"""Parts that several pieces of furniture share: legs, feet, outlines, shades."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pipeline.datasets.shapes.builder import Builder
from pipeline.datasets.shapes.primitives import F64, arc, from_y_to

SIDES = (-1, 1)
LEG_STYLES = {"square": "", "round": "", "tapered": "", "turned": ""}


def leg(
    b: Builder, foot: ArrayLike, top: ArrayLike, thick: float, style: str, color: str = "main"
) -> None:
    """One leg between two points."""
    low, high = np.asarray(foot, np.float64), np.asarray(top, np.float64)
    along = high - low
    length = float(np.linalg.norm(along))
    if style == "square":
        b.box((thick, length, thick), (low + high) / 2, color, from_y_to(along))
    elif style == "tapered":
        b.cyl(low, high, thick * 0.3, thick * 0.6, color, n=10)
    elif style == "turned":
        rows = [(0, 0), (0.3, 0), (0.5, 0.1), (0.25, 0.2), (0.65, 0.42), (0.5, 0.62), (0.25, 0.7)]
        profile = np.array([*rows, (0.6, 0.76), (0.6, 1), (0, 1)]) * (thick, length)
        b.lathe(profile, low, color, from_y_to(along), n=10)
    else:
        b.cyl(low, high, thick / 2, color=color, n=10)


def legs(
    b: Builder,
    size: tuple[float, float, float],
    thick: float,
    style: str,
    splay: float = 0,
    color: str = "main",
) -> None:
    """Four legs under a top of ``size`` (width, height, depth); ``splay`` moves the feet out."""
    x, height, z = size[0] / 2 - thick / 2, size[1], size[2] / 2 - thick / 2
    for sx in SIDES:
        for sz in SIDES:
            foot = (sx * (x + splay), 0, sz * (z + splay))
            leg(b, foot, (sx * x, height, sz * z), thick, style, color)


def star(b: Builder, height: float, reach: float, arms: int) -> None:
    """Central column on a star of arms with feet."""
    b.cyl((0, 0.08, 0), (0, height, 0), 0.03)
    for turn in np.arange(arms) * 2 * np.pi / arms:
        tip = np.array([reach * np.sin(turn), 0.05, reach * np.cos(turn)])
        b.cyl((0, 0.1, 0), tip, 0.025, 0.018, n=8)
        b.ball(0.035, tip - (0, 0.015, 0), "black", n=8)


def outline(width: float, height: float, top: str) -> F64:
    """Counter-clockwise path over an opening, from its right foot to its left one."""
    half = width / 2
    if top == "arched":
        over = arc(half, 0, 180, 12, (0, height - half))
    elif top == "pointed":
        right = arc(width, 0, 60, 6, (-half, height - width * 0.866))
        over = np.concatenate([right, right[-2::-1] * (-1, 1)])
    else:
        over = np.array([(half, height), (-half, height)])
    return np.concatenate([[(half, 0)], over, [(-half, 0)]])


def rim(
    b: Builder, outer: F64, inner: F64, depth: float, at: ArrayLike, color: str = "main"
) -> None:
    """Flat closed band between two outlines with as many points each, facing z."""
    half = len(outer) // 2
    for first, last in ((0, half), (half, len(outer))):
        index = np.arange(first, last + 1) % len(outer)
        b.extrude(np.concatenate([outer[index], inner[index][::-1]]), depth, at, color)


def shade(b: Builder, style: str, radius: float) -> float:
    """Lamp shade whose lower rim lies at y = 0; returns its height."""
    height = radius * {"cone": 1.15, "drum": 1.3, "dome": 0.8, "globe": 1.8}[style]
    if style == "globe":
        b.ball((radius * 0.9,) * 3, (0, radius * 0.9, 0), "second")
        return height
    if style == "dome":
        out = arc((radius, height), 0, 84, 8)
    else:
        out = np.array([(radius, 0), (radius * (0.5 if style == "cone" else 0.96), height)])
    inside = out[::-1] * 0.95
    inside[-1, 1] = 0
    b.lathe(np.concatenate([out, inside, out[:1]]), color="second", n=24)
    b.ball(radius * 0.28, (0, height * 0.5, 0), "yellow", n=8)
    b.cyl((0, height * 0.5, 0), (0, height, 0), radius * 0.08, n=8)
    bar = radius * {"cone": 1.0, "drum": 1.88, "dome": 0.66}[style]
    b.box((bar, 0.012, 0.02), (0, height * 0.93, 0))
    return height
