"""Instruments, treasures, devices. Front towards +z."""

from __future__ import annotations

import numpy as np

from pipeline.datasets.shapes.builder import Builder
from pipeline.datasets.shapes.primitives import arc, curve, lift, rotation
from pipeline.datasets.shapes.schema import (
    FABRIC,
    METAL,
    PAINTED,
    PLAIN,
    Choice,
    Count,
    Flag,
    Num,
    Values,
    shape,
)
from pipeline.datasets.shapes.tools import mirrored


@shape(
    "guitar",
    Num("neck", 1.2, 1.9, "", "long-necked"),
    Num("body", 0.55, 0.8, "slim", "wide"),
    Num("depth", 0.14, 0.34, "flat", "deep"),
    Count("pegs", 4, 6, "tuning peg", "tuning pegs", 2),
    materials={"wooden": 0.55, "plain": 0.35, "striped": 0.1},
    colors=("brown", "beige", "red", "black"),
    second="a neck",
)
def guitar(p: Values, b: Builder) -> None:
    """Waisted body, sound hole, long neck with a head."""
    w, n = p.body, p.neck
    half = curve(
        [
            (0.0, 0.0),
            (0.75 * w, 0.12),
            (w, 0.5),
            (0.6 * w, 0.95),
            (0.74 * w, 1.35),
            (0.4 * w, 1.62),
            (0.0, 1.68),
        ],
        4,
    )
    half[:, 0] = np.maximum(half[:, 0], 0)
    b.extrude(mirrored([tuple(q) for q in half]), p.depth, smooth=True)
    z = p.depth / 2
    b.cyl((0, 1.0, z - 0.02), (0, 1.0, z + 0.015), 0.24 * w / 0.7, color="black")
    b.box((0.4, 0.08, 0.06), (0, 0.45, z), "black")
    b.box((0.16, n + 0.5, 0.1), (0, 1.4 + n / 2, z), "second")
    b.box((0.26, 0.42, 0.09), (0, 1.75 + n, z - 0.02), "second")
    for i in range(p.pegs):
        side, place = (-1, 1)[i % 2], i // 2
        b.cyl(
            (side * 0.1, 1.62 + n + 0.13 * place, z),
            (side * 0.24, 1.62 + n + 0.13 * place, z),
            0.035,
            color="silver",
            n=6,
        )


@shape(
    "drum",
    Num("height", 0.5, 1.5, "flat", "tall"),
    Num("radius", 0.6, 0.9, "", "wide"),
    Count("rods", 4, 8, "rod", "rods"),
    Flag("sticks", 0.5, "drumsticks"),
    materials=PAINTED,
    second="hoops",
)
def drum(p: Values, b: Builder) -> None:
    """Shell with two hoops and tension rods, sometimes two sticks on it."""
    h, r = p.height, p.radius
    b.cyl((0, 0.04, 0), (0, h - 0.04, 0), r, n=24)
    b.cyl((0, 0, 0), (0, h, 0), 0.97 * r, color="white", n=24)
    for y in (0.05, h - 0.05):
        b.ring(r + 0.03, 0.07, (0, y, 0), "second")
    for i in range(p.rods):
        a = 2 * np.pi * (i + 0.5) / p.rods
        x, z = (r + 0.06) * np.cos(a), (r + 0.06) * np.sin(a)
        b.cyl((x, 0.05, z), (x, h - 0.05, z), 0.035, color="silver", n=6)
    if p.sticks:
        for side in (-1, 1):
            start, stop = (
                np.array([side * 0.3, h + 0.05, -0.5]),
                np.array([side * -0.2, h + 0.16, 1.1 * r + 0.3]),
            )
            b.cyl(start, stop, 0.045, color="beige", n=8)
            b.ball(0.075, start, "beige", n=8)


@shape(
    "trophy",
    Num("height", 1.2, 2.0, "short", "tall"),
    Num("cup", 0.45, 0.75, "narrow", "wide"),
    Flag("ears", 0.75, "handles"),
    Choice("base", {"square": "", "round": ""}),
    materials=METAL,
    colors=("gold", "silver"),
    second="a base",
)
def trophy(p: Values, b: Builder) -> None:
    """Cup on a stem and a base, usually with two ears."""
    h, r = p.height, p.cup
    if p.base == "square":
        b.box((0.9, 0.28, 0.9), (0, 0.14, 0), "second")
        b.box((0.7, 0.2, 0.7), (0, 0.38, 0), "second")
    else:
        b.cyl((0, 0, 0), (0, 0.28, 0), 0.5, color="second", n=20)
        b.cyl((0, 0.28, 0), (0, 0.48, 0), 0.38, color="second", n=20)
    y = 0.48
    b.lathe(
        [
            (0, y),
            (0.32, y),
            (0.1, y + 0.15),
            (0.09, y + 0.4),
            (0.5 * r, y + 0.5),
            (0.85 * r, y + 0.5 + 0.35 * h),
            (r, y + 0.5 + h * 0.7),
            (0.92 * r, y + 0.5 + h * 0.7),
            (0.7 * r, y + 0.6 + 0.25 * h),
            (0, y + 0.6),
        ],
        n=24,
    )
    if p.ears:
        for side in (-1, 1):
            loop = arc((0.38, 0.28 * h), -100, 100, 12, at=(0.85 * r, y + 0.5 + 0.4 * h)) * [
                side,
                1,
            ]
            b.tube(lift(loop), 0.06)


@shape(
    "crown",
    Num("height", 0.5, 1.0, "low", "high"),
    Count("points", 4, 8, "point", "points"),
    Flag("pearls", 0.6, "pearls"),
    materials={"metal": 0.7, "plain": 0.3},
    colors=("gold", "silver"),
    second="jewels",
)
def crown(p: Values, b: Builder) -> None:
    """Open band with a row of spikes."""
    h, k, r = p.height, p.points, 1.0
    b.lathe([(0.94 * r, 0), (r, 0), (1.04 * r, 0.4), (0.98 * r, 0.4), (0.94 * r, 0)], n=28)
    b.ring(r, 0.07, (0, 0.06, 0))
    for i in range(k):
        a = 360 * i / k
        with b.group(rot=rotation(y=a)):
            half = min(0.42, np.pi / k)
            b.extrude(
                [(-half, 0.0), (half, 0.0), (0.0, h)], 0.07, (0, 0.36, 1.01), rot=rotation(x=6)
            )
            if p.pearls:
                b.ball(0.09, (0, 0.38 + h, 1.01 + 0.1 * h), "white", n=8)
        with b.group(rot=rotation(y=a + 180 / k)):
            b.ball((0.1, 0.1, 0.06), (0, 0.22, 1.03), "second", n=8)


@shape(
    "anchor",
    Num("height", 1.6, 2.4, "short", "tall"),
    Num("span", 0.7, 1.1, "narrow", "wide"),
    Num("stock", 0.5, 0.9, "", ""),
    materials=METAL,
    colors=("black", "gray", "silver"),
    typical=0.4,
)
def anchor(p: Values, b: Builder) -> None:
    """Shank with ring, stock and two curved arms."""
    h, s = p.height, p.span
    b.cyl((0, 0, 0), (0, h, 0), 0.11)
    b.ring(0.22, 0.07, (0, h + 0.2, 0), axis="z")
    b.cyl((-p.stock, h - 0.3, 0), (p.stock, h - 0.3, 0), 0.09)
    arms = arc((s, 0.8), 190, 350, 16, at=(0, 0.7))
    b.tube(lift(arms), 0.11)
    for side in (-1, 1):
        b.extrude(
            [(-0.26, -0.05), (0.26, -0.05), (0.0, 0.42)],
            0.12,
            (side * s * 0.98, 0.55, 0),
            rot=rotation(z=side * -12),
        )


@shape(
    "dumbbell",
    Num("length", 1.2, 2.4, "short", "long"),
    Num("weight", 0.35, 0.6, "small", "heavy"),
    Choice("plates", {"discs": "", "balls": "round", "hexagons": "hexagonal"}),
    Count("discs", 1, 3),
    materials={"plain": 0.5, "metal": 0.5},
    second="a bar",
)
def dumbbell(p: Values, b: Builder) -> None:
    """Bar along x with weights at both ends."""
    n, r = p.length, p.weight
    b.cyl((-n / 2, 0, 0), (n / 2, 0, 0), 0.1, color="second")
    for side in (-1, 1):
        x = side * n / 2
        if p.plates == "balls":
            b.ball(r, (x, 0, 0))
        elif p.plates == "hexagons":
            b.cyl((x - 0.3, 0, 0), (x + 0.3, 0, 0), r, n=6)
        else:
            for i in range(p.discs):
                inner = x - side * i * 0.2
                b.cyl((inner - 0.08, 0, 0), (inner + 0.08, 0, 0), r * (1 - 0.15 * i), n=20)


@shape(
    "bell",
    Num("height", 0.8, 1.5, "low", "tall"),
    Num("flare", 0.6, 0.95, "narrow", "wide"),
    Choice("top", {"loop": "", "handle": ""}),
    materials=METAL,
    colors=("gold", "copper"),
    second="a clapper",
)
def bell(p: Values, b: Builder) -> None:
    """Flaring shell with a clapper, hung from a loop or held by a handle."""
    h, r = p.height, p.flare
    outer = curve(
        [
            (r, 0),
            (0.68 * r, 0.25 * h),
            (0.5 * r, 0.6 * h),
            (0.42 * r, 0.85 * h),
            (0.2 * r, 0.98 * h),
        ],
        3,
    )
    inner = outer[::-1] * [0.92, 0.97]
    b.lathe([*map(tuple, outer), (0.0, h), (0.0, 0.94 * h), *map(tuple, inner)], n=24)
    b.cyl((0, 0.1, 0), (0, 0.9 * h, 0), 0.04, color="second", n=8)
    b.ball(0.16, (0, 0.02, 0), "second")
    if p.top == "loop":
        b.ring(0.17, 0.06, (0, h + 0.14, 0), axis="z")
    else:
        b.cyl((0, h - 0.02, 0), (0, h + 0.8, 0), 0.1, 0.13, "brown")


@shape(
    "book",
    Num("thickness", 0.14, 0.5, "thin", "thick"),
    Num("width", 0.8, 1.3, "narrow", "wide"),
    Flag("open", 0.4, "open pages"),
    Flag("ribbon", 0.4, "a bookmark"),
    materials=FABRIC,
    second="a spine",
)
def book(p: Values, b: Builder) -> None:
    """Lying closed, or open like a shallow V."""
    t, w, d = p.thickness, p.width, 1.5
    if p.open:
        for side in (-1, 1):
            with b.group(rot=rotation(z=side * 14)):
                b.box((w, 0.06, d), (side * w / 2, 0, 0))
                b.soft(
                    (0.94 * w, 0.7 * t + 0.08, 0.94 * d),
                    (side * w * 0.47, 0.35 * t + 0.06, 0),
                    "white",
                    roundness=0.25,
                )
        b.box((0.16, 0.08, d), (0, -0.02, 0), "second")
    else:
        b.box((w, 0.06, d), (0, 0.03, 0))
        b.box((w, 0.06, d), (0, t + 0.09, 0))
        b.box((0.94 * w, t, 0.94 * d), (0, t / 2 + 0.06, 0), "white")
        b.box((0.07, t + 0.12, d), (-w / 2, t / 2 + 0.06, 0), "second")
    if p.ribbon:
        b.box((0.1, 0.03, 0.6), (0.1 * w, t * 0.5 + 0.06, d / 2), "red")


@shape(
    "laptop",
    Num("width", 1.4, 2.1, "narrow", "wide"),
    Num("tilt", 8, 40, "", "opened"),
    Num("base", 0.08, 0.18, "thin", "thick"),
    materials={"plain": 0.6, "metal": 0.4},
    colors=("silver", "black", "white"),
    typical=0.4,
)
def laptop(p: Values, b: Builder) -> None:
    """Keyboard slab with a hinged screen."""
    w, t, d = p.width, p.base, 1.15
    b.box((w, t, d), (0, t / 2, 0))
    b.box((0.86 * w, 0.03, 0.5 * d), (0, t + 0.005, -0.12 * d), "gray")
    b.box((0.3 * w, 0.03, 0.22 * d), (0, t + 0.005, 0.3 * d), "gray")
    with b.group((0, t, -d / 2), rotation(x=-p.tilt)):
        b.box((w, d, 0.07), (0, d / 2, 0))
        b.box((0.9 * w, 0.86 * d, 0.03), (0, d / 2, 0.035), "black")


@shape(
    "television",
    Num("width", 1.6, 2.6, "small", "wide"),
    Num("depth", 0.1, 0.9, "flat", "deep"),
    Choice("stand", {"foot": "", "legs": ""}),
    Flag("antenna", 0.4, "an antenna"),
    materials={"plain": 0.7, "wooden": 0.3},
    colors=("black", "gray"),
    typical=0.4,
)
def television(p: Values, b: Builder) -> None:
    """Upright screen on a foot or legs; deep ones are old tubes."""
    w, h, d, y = p.width, 1.3, p.depth, 0.35
    b.box((w, h, 0.14), (0, y + h / 2, 0))
    b.box((0.9 * w, 0.86 * h, 0.03), (0, y + h / 2, 0.075), "black" if p.depth > 0.2 else "blue")
    b.soft((0.85 * w, 0.85 * h, d), (0, y + h / 2, -d / 2), roundness=0.3)
    if p.stand == "foot":
        b.box((0.18, y, 0.1), (0, y / 2, -0.06))
        b.box((0.5 * w, 0.06, 0.5), (0, 0.03, -0.06))
    else:
        for x in (-0.38, 0.38):
            b.cyl((x * w * 1.1, 0, 0.2), (x * w, y + 0.05, -0.05), 0.05, n=8)
            b.cyl((x * w * 1.1, 0, -0.35), (x * w, y + 0.05, -0.1), 0.05, n=8)
    if p.antenna:
        for side in (-1, 1):
            b.cyl((0, y + h, -0.05), (side * 0.55, y + h + 0.8, -0.05), 0.03, color="silver", n=6)


@shape(
    "camera",
    Num("width", 1.1, 1.7, "compact", "wide"),
    Num("lens", 0.3, 1.1, "", ""),
    Num("radius", 0.3, 0.42, "", ""),
    Flag("flash", 0.5, "a flash"),
    Flag("strap", 0.35, "a strap"),
    materials=PLAIN,
    colors=("black", "silver", "gray"),
    typical=0.4,
    second="a lens ring",
)
def camera(p: Values, b: Builder) -> None:
    """Body with a protruding lens and a viewfinder hump."""
    w, h, r = p.width, 0.9, p.radius
    b.box((w, h, 0.45), (0, h / 2, 0))
    b.cyl((0, h * 0.48, 0.2), (0, h * 0.48, 0.22 + p.lens), r, 0.9 * r, "gray", n=20)
    b.ring(r, 0.05, (0, h * 0.48, 0.24 + 0.7 * p.lens), "second", axis="z")
    b.cyl((0, h * 0.48, 0.2), (0, h * 0.48, 0.235 + p.lens), 0.7 * r, color="black", n=16)
    b.box((0.42, 0.24, 0.4), (0, h + 0.1, 0))
    b.cyl((-0.38 * w, h, 0), (-0.38 * w, h + 0.1, 0), 0.09, color="silver", n=10)
    if p.flash:
        b.box((0.28, 0.2, 0.14), (0.34 * w, h + 0.08, 0.1), "white")
    if p.strap:
        loop = curve(
            [
                (-w / 2, 0.8 * h),
                (-0.6 * w, h + 0.5),
                (0, h + 1.0),
                (0.6 * w, h + 0.5),
                (w / 2, 0.8 * h),
            ],
            5,
        )
        b.tube(lift(loop), 0.045, "brown", n=6)
