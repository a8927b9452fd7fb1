"""Profiles, cross-sections and handles that vessels and their like are made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from pipeline.datasets.shapes.builder import Builder
from pipeline.datasets.shapes.primitives import F64, Part, lift, unit


@lru_cache(maxsize=256)
def points(text: str) -> F64:
    """Plane points (k, 2) from text: "x y, x y, ..."."""
    pairs = np.array([pair.split() for pair in text.split(",")], np.float64)
    pairs.setflags(write=False)
    return pairs


def hollow(outer: ArrayLike, wall: float, floor: float) -> F64:
    """Profile of a vessel: the outer side (k, 2) from the bottom up, then down its inside."""
    out = np.asarray(outer, np.float64)
    inner = out[::-1] - (wall, 0.0)
    inner[:, 0] = np.maximum(inner[:, 0], 0.0)
    inner[:, 1] = np.maximum(inner[:, 1], out[0, 1] + floor)
    return np.concatenate([[(0, out[0, 1])], out, inner, [(0, out[0, 1] + floor)]])


def warped(part: Part, bend: Callable[[F64], F64]) -> Part:
    """The part under a smooth map of space; normals by finite differences along the surface."""
    v, n = part.vertices, part.normals
    helper = np.where(np.abs(n[:, :1]) < 0.9, [[1.0, 0, 0]], [[0, 0, 1.0]])
    along = unit(np.cross(n, helper))
    across = np.cross(n, along)
    moved = bend(v)
    normals = np.cross(bend(v + 1e-4 * along) - moved, bend(v + 1e-4 * across) - moved)
    return Part(moved, unit(normals), part.faces)


def square(part: Part, power: float = 6.0) -> Part:
    """A solid of revolution with square, slightly rounded cross-sections."""

    def bend(v: F64) -> F64:
        r = np.maximum(np.hypot(v[:, 0], v[:, 2]), 1e-9)
        c, s = np.abs(v[:, 0]) / r, np.abs(v[:, 2]) / r
        out = v.copy()
        out[:, ::2] *= (np.maximum(c**power + s**power, 1e-6) ** (-1 / power))[:, None]
        return out

    return warped(part, bend)


def fluted(part: Part, waves: int, depth: float, twist: float = 0.0) -> Part:
    """A solid of revolution with ``waves`` upright grooves; ``twist`` in radians per unit of y."""

    def bend(v: F64) -> F64:
        angle = np.arctan2(v[:, 2], v[:, 0]) * waves + twist * waves * v[:, 1]
        out = v.copy()
        out[:, ::2] *= (1 + depth * np.cos(angle))[:, None]
        return out

    return warped(part, bend)


def ear(
    b: Builder,
    low: tuple[float, float],
    high: tuple[float, float],
    reach: float,
    thick: float,
    square: bool = False,
    color: str = "main",
    side: int = 1,
) -> None:
    """Handle in the xy plane between two points (x, y), bulging outwards on one side."""
    t = np.radians(np.linspace(-90, 90, 13))
    power = 0.4 if square else 1.0
    out, up = np.cos(t).clip(0) ** power, np.sign(t) * np.abs(np.sin(t)) ** power
    share = (up + 1) / 2
    x = low[0] + (high[0] - low[0]) * share + reach * out
    y = low[1] + (high[1] - low[1]) * share
    b.tube(lift(np.column_stack([side * x, y])), thick, color, 8)
