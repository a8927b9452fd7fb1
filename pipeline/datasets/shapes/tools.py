"""Hand tools and weapons. Long things stand upright in the xy plane, front towards +z."""

from __future__ import annotations

import numpy as np

from pipeline.datasets.shapes.builder import Builder
from pipeline.datasets.shapes.primitives import F64, arc, curve, lift, rotation
from pipeline.datasets.shapes.schema import (
    METAL,
    TOOL,
    Choice,
    Count,
    Flag,
    Num,
    Values,
    shape,
)


def mirrored(half: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Right outline from bottom to top, closed by its mirror image: counter-clockwise."""
    return half + [(-x, y) for x, y in reversed(half) if abs(x) > 1e-9]


@shape(
    "hammer",
    Num("length", 1.6, 2.8, "short", "long"),
    Num("head", 0.7, 1.2, "small", "big"),
    Choice("claw", {"claw": "", "ball": "", "mallet": ""}),
    materials=TOOL,
    second="a handle",
)
def hammer(p: Values, b: Builder) -> None:
    """Handle with a heavy cross head."""
    top, w = p.length, p.head
    b.cyl((0, 0, 0), (0, top, 0), 0.09, 0.075, "second")
    if p.claw == "mallet":
        b.cyl((-w * 0.6, top, 0), (w * 0.6, top, 0), 0.34)
        return
    b.box((0.5 * w, 0.24, 0.26), (0, top, 0))
    b.cyl((0.2 * w, top, 0), (0.62 * w, top, 0), 0.14)
    b.cyl((0.5 * w, top, 0), (0.66 * w, top, 0), 0.19)
    if p.claw == "ball":
        b.cyl((-0.2 * w, top, 0), (-0.45 * w, top, 0), 0.11)
        b.ball(0.19, (-0.5 * w, top, 0))
    else:
        for z in (-0.08, 0.08):
            path = curve(
                [
                    (-0.2 * w, top, z),
                    (-0.45 * w, top - 0.02, z * 1.3),
                    (-0.75 * w, top - 0.3, z * 1.5),
                ]
            )
            b.tube(path, np.linspace(0.1, 0.03, len(path)))


@shape(
    "screwdriver",
    Num("shaft", 0.9, 2.2, "short", "long"),
    Num("grip", 0.14, 0.24, "thin", "thick"),
    Choice("tip", {"flat": "", "pointed": ""}),
    materials={"plain": 0.6, "striped": 0.2, "wooden": 0.2},
)
def screwdriver(p: Values, b: Builder) -> None:
    """Fluted grip on top of a thin shaft."""
    r, s = p.grip, p.shaft
    b.cyl((0, 0.15, 0), (0, s, 0), 0.05, color="silver", n=10)
    if p.tip == "flat":
        b.extrude([(-0.05, 0.16), (-0.1, 0), (0.1, 0), (0.05, 0.16)], 0.04, color="silver")
    else:
        b.cyl((0, 0, 0), (0, 0.16, 0), 0.008, 0.05, "silver")
    b.lathe(
        [
            (0, s),
            (0.6 * r, s),
            (0.6 * r, s + 0.12),
            (r, s + 0.25),
            (r, s + 0.8),
            (0.7 * r, s + 0.95),
            (0, s + 1),
        ],
        n=8,
    )


@shape(
    "wrench",
    Num("length", 1.4, 2.6, "short", "long"),
    Num("jaw", 0.3, 0.5, "", ""),
    Choice("end", {"ring": "", "open": "double-ended", "plain": ""}),
    materials=METAL,
)
def wrench(p: Values, b: Builder) -> None:
    """Flat bar with an open jaw."""
    j, n = p.jaw, p.length

    def jaw(up: float, y: float) -> None:
        notch = [(0.45 * j, 0.0), (-0.45 * j, 0.0)]
        c = arc(j, -230, 50, 20)
        polygon: F64 = np.concatenate([c, [(0.45 * j, 0.75 * j), *notch, (-0.45 * j, 0.75 * j)]])
        b.extrude(polygon, 0.16, (0, y, 0), rot=None if up > 0 else rotation(z=180))

    b.box((0.26, n, 0.12), (0, n / 2, 0))
    jaw(1, n + 0.6 * j)
    if p.end == "ring":
        b.ring(0.8 * j, 0.1, (0, -0.5 * j, 0), axis="z")
    elif p.end == "open":
        jaw(-1, -0.6 * j)
    else:
        b.cyl((0, 0, -0.07), (0, 0, 0.07), 0.16)


@shape(
    "axe",
    Num("length", 1.8, 2.8, "short", "long"),
    Num("blade", 0.6, 1.1, "small", "big"),
    Flag("double", 0.3, "a second blade"),
    materials=TOOL,
    second="a handle",
)
def axe(p: Values, b: Builder) -> None:
    """Handle with one or two flaring blades."""
    top, w = p.length, p.blade
    b.cyl((0, 0, 0), (0, top + 0.15, 0), 0.08, color="second")
    edge = arc((0.25 * w, 0.62 * w), -70, 70, 10, at=(0.75 * w, 0))
    blade = [(0.0, -0.16), *map(tuple, edge), (0.0, 0.16)]
    b.extrude(blade, 0.12, (0, top - 0.2, 0))
    if p.double:
        b.extrude(blade, 0.12, (0, top - 0.2, 0), rot=rotation(y=180))
    else:
        b.box((0.3, 0.3, 0.2), (-0.08, top - 0.2, 0))


@shape(
    "shovel",
    Num("length", 1.6, 3.0, "short", "long"),
    Num("width", 0.6, 1.0, "narrow", "wide"),
    Choice("blade", {"pointed": "pointed", "square": "square"}),
    Flag("grip", 0.6, "a grip"),
    materials=TOOL,
    second="a blade",
)
def shovel(p: Values, b: Builder) -> None:
    """Broad curved blade below a long shaft."""
    w, top = p.width, p.length + 0.9
    if p.blade == "pointed":
        half = [(0.0, 0.0), (0.3 * w, 0.25), (0.5 * w, 0.6), (0.5 * w, 1.0)]
    else:
        half = [(0.5 * w, 0.0), (0.5 * w, 1.0)]
    b.extrude(mirrored(half), 0.06, color="second", rot=rotation(x=-8))
    for x in (-0.5, 0.5):
        b.box((0.05, 0.75, 0.16), (x * w, 0.65, 0.0), "second", rotation(x=-8))
    b.cyl((0, 0.8, -0.12), (0, top, 0), 0.07)
    if p.grip:
        b.tube(lift(arc((0.28, 0.3), 0, 360, 16)[:-1] + [0, top + 0.25]), 0.06, closed=True)


@shape(
    "scissors",
    Num("blade", 1.0, 1.8, "short", "long"),
    Num("opening", 12, 34, "", "open"),
    Num("loop", 0.28, 0.42, "", ""),
    materials={"plain": 0.8, "striped": 0.2},
)
def scissors(p: Values, b: Builder) -> None:
    """Two crossed blades, each with a finger loop."""
    r = p.loop
    for side in (-1, 1):
        turn = rotation(z=side * p.opening / 2)
        with b.group((0, 0, 0.05 * side), turn):
            b.extrude(
                [(-0.1, -0.1), (0.1, -0.1), (0.1, 0.2), (0.0, p.blade), (-0.1, 0.2)],
                0.06,
                color="silver",
            )
            b.cyl((0, -0.05, 0), (side * 0.1, -0.7, 0), 0.08)
            b.ring(r, 0.09, (side * 0.5 * r, -0.7 - r, 0), axis="z")
    b.cyl((0, 0, -0.12), (0, 0, 0.12), 0.09, color="gray")


@shape(
    "key",
    Num("length", 1.0, 2.0, "short", "long"),
    Count("teeth", 2, 4, "tooth", "teeth"),
    Choice("bow", {"ring": "", "heart": "", "square": ""}),
    materials=METAL,
    colors=("gold", "silver", "copper"),
)
def key(p: Values, b: Builder) -> None:
    """Shaft with teeth at one end and a bow at the other."""
    n = p.length
    b.cyl((0, 0, 0), (0, n, 0), 0.08)
    for i in range(p.teeth):
        b.box((0.36 - 0.06 * (i % 2), 0.1, 0.1), (0.18, 0.08 + 0.2 * i, 0))
    if p.bow == "ring":
        b.ring(0.36, 0.09, (0, n + 0.4, 0), axis="z")
    elif p.bow == "heart":
        for side in (-1, 1):
            b.ring(0.24, 0.08, (0.24 * side, n + 0.4, 0), axis="z")
        b.cyl((0, n, 0), (0, n + 0.3, 0), 0.14)
    else:
        for x, y, w, h in (
            (0, 0, 0.8, 0.14),
            (0, 0.66, 0.8, 0.14),
            (-0.33, 0.33, 0.14, 0.6),
            (0.33, 0.33, 0.14, 0.6),
        ):
            b.box((w, h, 0.16), (x, n + 0.07 + y, 0))


@shape(
    "sword",
    Num("blade", 2.0, 3.4, "short", "long"),
    Num("width", 0.16, 0.34, "narrow", "broad"),
    Num("guard", 0.5, 1.1, "", ""),
    Flag("curved", 0.3, "a curved blade"),
    materials=TOOL,
    second="a grip",
)
def sword(p: Values, b: Builder) -> None:
    """Pointed blade above a cross guard."""
    w, n = p.width, p.blade
    if p.curved:
        t = np.linspace(0, 1, 12)
        path = np.stack([0.5 * t**2, 0.75 + n * t, 0 * t], axis=1)
        b.tube(path, w * np.sqrt(1.02 - t) * 0.62 + 0.01, "silver", flatten=(1.0, 0.22))
    else:
        b.extrude(
            [
                (-w / 2, 0.7),
                (w / 2, 0.7),
                (w / 2, 0.7 + 0.85 * n),
                (0, 0.7 + n),
                (-w / 2, 0.7 + 0.85 * n),
            ],
            0.06,
            color="silver",
        )
    b.box((p.guard, 0.12, 0.2), (0, 0.7, 0))
    b.cyl((0, 0.1, 0), (0, 0.66, 0), 0.085, color="second")
    b.ball(0.14, (0, 0.06, 0))
