"""Plants and food."""

from __future__ import annotations

import numpy as np

from pipeline.datasets.shapes.builder import Builder
from pipeline.datasets.shapes.primitives import curve, rotation
from pipeline.datasets.shapes.schema import (
    PLAIN,
    Choice,
    Count,
    Flag,
    Num,
    Values,
    shape,
)


@shape(
    "tree",
    Num("trunk", 0.4, 1.2, "", "tall"),
    Num("crown", 0.8, 1.3, "slender", "wide"),
    Choice("kind", {"conifer": "conical", "leafy": "round", "poplar": ""}),
    Count("tiers", 2, 4),
    materials=PLAIN,
    colors=("green", "light green"),
    second="a trunk",
    second_colors=("brown", "gray"),
)
def tree(p: Values, b: Builder) -> None:
    """Trunk with cones, with lumpy balls of leaves, or with one tall crown."""
    t, c = p.trunk, p.crown
    b.cyl((0, 0, 0), (0, t + 0.6, 0), 0.16, 0.11, "second")
    if p.kind == "conifer":
        for i in range(p.tiers):
            y, r = t + 0.55 * i, c * (1 - 0.22 * i)
            b.lathe([(0, y), (r, y - 0.08), (0, y + 1.0)], n=14)
    elif p.kind == "poplar":
        b.blob((0.5 * c, 1.3, 0.5 * c), (0, t + 1.2, 0), amount=0.1, seed=p.detail)
    else:
        rng = p.rng()
        b.blob((0.8 * c, 0.7, 0.8 * c), (0, t + 1.0, 0), amount=0.25, seed=p.detail)
        for i in range(p.tiers):
            a = 2 * np.pi * (i + rng.random() * 0.5) / p.tiers
            at = (0.6 * c * np.cos(a), t + 0.75 + 0.4 * rng.random(), 0.6 * c * np.sin(a))
            b.cyl((0, 0.5 * t, 0), at, 0.06, color="second", n=6)
            b.blob((0.45 * c,) * 3, at, amount=0.25, seed=p.detail + i)


@shape(
    "palm tree",
    Num("height", 1.8, 3.2, "short", "tall"),
    Num("bend", 0.0, 0.9, "straight", "bent"),
    Count("leaves", 5, 9, "leaf", "leaves"),
    Flag("coconuts", 0.5, "coconuts"),
    materials=PLAIN,
    colors=("green", "light green"),
    typical=0.9,
    second="a trunk",
    second_colors=("brown", "beige"),
)
def palm_tree(p: Values, b: Builder) -> None:
    """Thin, often bent trunk with a head of drooping leaves."""
    h, d = p.height, p.bend
    path = curve([(0, 0, 0), (0.15 * d, 0.4 * h, 0), (0.5 * d, 0.75 * h, 0), (d, h, 0)], 4)
    b.tube(path, np.linspace(0.16, 0.09, len(path)), "second")
    for i in range(p.leaves):
        with b.group((d, h, 0), rotation(y=360 * i / p.leaves)):
            leaf = curve([(0, 0, 0), (0.5, 0.3, 0), (1.0, 0.15, 0), (1.35, -0.4, 0)], 4)
            width = 0.2 * np.sin(np.linspace(0.25, np.pi, len(leaf))) + 0.015
            b.tube(leaf, width, flatten=(1.0, 0.18), n=6)
    if p.coconuts:
        for i in range(3):
            b.ball(
                0.14, (d + 0.16 * np.cos(2.1 * i), h - 0.12, 0.16 * np.sin(2.1 * i)), "brown", n=10
            )


@shape(
    "mushroom",
    Num("stem", 0.5, 1.3, "short", "tall"),
    Num("cap", 0.6, 1.1, "narrow", "wide"),
    Num("dome", 0.3, 0.9, "flat", "pointed"),
    Flag("ring", 0.4, "a ring"),
    materials={"spotted": 0.5, "plain": 0.5},
    colors=("red", "brown", "beige"),
    second="a stem",
    second_colors=("white", "beige"),
)
def mushroom(p: Values, b: Builder) -> None:
    """Stem below an overhanging cap."""
    s, r, d = p.stem, p.cap, p.dome
    b.lathe([(0, 0), (0.3, 0), (0.22, 0.4 * s), (0.18, s + 0.1), (0, s + 0.1)], color="second")
    cap = [(0.15, s + 0.05), (0.8 * r, s - 0.08), (r, s), (0.93 * r, s + 0.35 * d)]
    b.lathe([*cap, (0.6 * r, s + 0.8 * d), (0.25 * r, s + 0.97 * d), (0, s + d)], n=24)
    if p.ring:
        b.lathe([(0.19, 0.66 * s), (0.38, 0.6 * s), (0.2, 0.72 * s)], color="second")


@shape(
    "cactus",
    Num("height", 1.4, 2.4, "short", "tall"),
    Num("girth", 0.22, 0.36, "thin", "thick"),
    Count("arms", 1, 3, "arm", "arms"),
    Flag("pot", 0.5, "a pot"),
    Flag("flower", 0.4, "a flower"),
    materials={"plain": 0.75, "striped": 0.25},
    colors=("green", "light green"),
    typical=0.9,
)
def cactus(p: Values, b: Builder) -> None:
    """Ribbed column with upturned arms."""
    h, g = p.height, p.girth
    b.lathe(
        [(0, 0), (0.9 * g, 0), (g, 0.5 * h), (0.95 * g, 0.88 * h), (0.6 * g, 0.97 * h), (0, h)],
        n=10,
    )
    for i in range(p.arms):
        with b.group((0, h * (0.35 + 0.13 * i), 0), rotation(y=180 * i + 15 * (i == 2))):
            path = curve(
                [(0.5 * g, 0, 0), (g + 0.35, 0.02, 0), (g + 0.5, 0.25, 0), (g + 0.5, 0.75, 0)], 4
            )
            b.tube(path, 0.6 * g, n=10)
            b.ball(0.6 * g, (g + 0.5, 0.75, 0), n=10)
    if p.pot:
        b.lathe([(0, -0.55), (0.4, -0.55), (0.55, 0.05), (0.6, 0.12), (0, 0.12)], color="brown")
    if p.flower:
        for i in range(5):
            a = 2 * np.pi * i / 5
            b.ball((0.13, 0.06, 0.13), (0.13 * np.cos(a), h + 0.04, 0.13 * np.sin(a)), "pink", n=8)


@shape(
    "apple",
    Num("height", 0.8, 1.1, "flat", "tall"),
    Num("dent", 0.12, 0.3, "", ""),
    Flag("leaf", 0.6, "a leaf"),
    Flag("bite", 0.2),
    materials=PLAIN,
    colors=("red", "green", "yellow", "light green"),
    typical=0.9,
)
def apple(p: Values, b: Builder) -> None:
    """Round with a dent, a stalk and perhaps a leaf."""
    h, d = p.height, p.dent
    profile = curve(
        [
            (0, 0.1),
            (0.3, 0.0),
            (0.72, 0.28 * h),
            (0.95, 0.65 * h),
            (0.75, 0.98 * h),
            (0.35, 1.04 * h),
            (0, h - d),
        ],
        4,
    )
    profile[:, 0] = np.maximum(profile[:, 0], 0) * 0.66
    b.lathe(profile, n=24)
    b.tube(
        curve([(0, h - d - 0.02, 0), (0.03, h + 0.1, 0), (0.12, h + 0.35, 0)], 3),
        0.045,
        "brown",
        n=6,
    )
    if p.leaf:
        b.ball((0.28, 0.03, 0.12), (0.32, h + 0.22, 0.02), "green", rotation(z=24), n=10)
    if p.bite:
        b.ball(0.3, (0.5, 0.55 * h, 0.16), "beige", n=12)


@shape(
    "banana",
    Num("length", 1.4, 2.2, "short", "long"),
    Num("bend", 0.35, 0.8, "straight", "curved"),
    Num("girth", 0.2, 0.32, "thin", "thick"),
    materials=PLAIN,
    colors=("yellow", "light green"),
    typical=0.95,
)
def banana(p: Values, b: Builder) -> None:
    """Curved, tapering to both ends, with a stalk."""
    n, c = p.length, p.bend
    x = np.linspace(-1, 1, 16)
    path = np.stack([x * n / 2, c * x**2, 0 * x], axis=1)
    radius = p.girth * np.sqrt(np.clip(1.04 - x**4, 0, 1)) + 0.02
    b.tube(path, radius, n=6)
    end = path[-1]
    b.cyl(end, end + [0.16, 0.22, 0], 0.07, 0.05, "brown", n=6)
    b.ball(0.07, path[0], "brown", n=6)


@shape(
    "carrot",
    Num("length", 1.2, 2.2, "short", "long"),
    Num("girth", 0.22, 0.42, "thin", "thick"),
    Count("leaves", 2, 5, "leaf", "leaves"),
    materials=PLAIN,
    colors=("orange",),
    typical=0.92,
    second="a top",
    second_colors=("green", "light green"),
)
def carrot(p: Values, b: Builder) -> None:
    """Root that tapers downwards, with a tuft of leaves on top."""
    n, r = p.length, p.girth
    b.lathe(
        [
            (0, 0),
            (0.06, 0.05),
            (0.55 * r, 0.45 * n),
            (0.95 * r, 0.88 * n),
            (0.8 * r, 0.98 * n),
            (0, n),
        ],
        n=14,
    )
    for i in range(p.leaves):
        with b.group((0, n - 0.02, 0), rotation(y=360 * i / p.leaves)):
            stalk = curve([(0.03, 0, 0), (0.1, 0.35, 0), (0.34, 0.72, 0)], 3)
            b.tube(stalk, 0.035, "second", n=5)
            b.ball((0.11, 0.24, 0.06), (0.36, 0.76, 0), "second", rotation(z=-40), n=8)


@shape(
    "ice cream",
    Num("cone", 1.0, 1.8, "short", "long"),
    Count("scoops", 1, 3, "scoop", "scoops"),
    Flag("cherry", 0.4, "a cherry"),
    Flag("wafer", 0.35, "a wafer"),
    synonyms=("ice cream cone",),
    materials={"plain": 0.7, "spotted": 0.3},
    colors=("pink", "white", "brown", "yellow", "turquoise"),
    second="a cone",
    second_colors=("beige", "brown", "orange"),
)
def ice_cream(p: Values, b: Builder) -> None:
    """Cone with a stack of scoops."""
    n, r = p.cone, 0.46
    b.lathe([(0, 0), (0.45, n), (0.5, n), (0.5, n + 0.1), (0, n + 0.1)], color="second", n=18)
    top = n + 0.1
    for i in range(p.scoops):
        size = r * (1 - 0.12 * i)
        b.blob(
            (size * 1.08, size, size * 1.08),
            (0, top + 0.5 * size, 0),
            amount=0.05,
            seed=p.detail + i,
        )
        top += 1.15 * size
    if p.cherry:
        b.ball(0.14, (0, top + 0.12, 0), "red", n=10)
    if p.wafer:
        b.cyl((0.1, top - 0.35, 0), (0.42, top + 0.5, 0), 0.07, color="brown", n=8)
