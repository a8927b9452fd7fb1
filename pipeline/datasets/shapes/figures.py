"""Animals, figures and what they wear."""

from __future__ import annotations

import numpy as np

from pipeline.datasets.shapes.builder import Builder
from pipeline.datasets.shapes.primitives import curve, rotation
from pipeline.datasets.shapes.schema import (
    FABRIC,
    PLAIN,
    Choice,
    Count,
    Flag,
    Num,
    Values,
    shape,
)


@shape(
    "snowman",
    Num("base", 0.7, 1.0, "", "fat"),
    Count("balls", 2, 3),
    Flag("hat", 0.6, "a hat"),
    Flag("arms", 0.7, "arms"),
    Flag("scarf", 0.5, "a scarf"),
    materials=PLAIN,
    colors=("white",),
    typical=0.9,
    second="buttons",
)
def snowman(p: Values, b: Builder) -> None:
    """Stacked balls with a carrot nose."""
    r, y = p.base, 0.0
    for i in range(p.balls):
        size = r * (1, 0.74, 0.52)[i + (p.balls == 2) * i]
        b.ball(size, (0, y + size * 0.92, 0), n=20)
        middle, y = y + size * 0.92, y + 1.6 * size
        if i == (p.balls - 2) and p.arms:
            for side in (-1, 1):
                b.cyl(
                    (side * 0.7 * size, middle + 0.1, 0),
                    (side * (size + 0.75), middle + 0.55, 0),
                    0.05,
                    color="brown",
                    n=6,
                )
    for side in (-1, 1):
        b.ball(0.07, (side * 0.19, middle + 0.14, 0.88 * size), "black", n=8)
    b.cyl((0, middle, 0.9 * size), (0, middle - 0.03, size + 0.4), 0.09, 0.01, "orange", n=8)
    for k in range(3):
        b.ball(0.07, (0, 0.75 * r + 0.28 * k, 0.97 * r - 0.1 * k), "second", n=8)
    if p.scarf:
        b.ring(0.82 * size, 0.12, (0, middle - 0.62 * size, 0), "second")
    if p.hat:
        top = middle + 0.78 * size
        b.cyl((0, top, 0), (0, top + 0.07, 0), 0.9 * size, color="black", n=18)
        b.cyl((0, top, 0), (0, top + 0.55, 0), 0.58 * size, color="black", n=18)


@shape(
    "hat",
    Num("crown", 0.5, 1.3, "low", "tall"),
    Num("brim", 0.25, 0.9, "narrow-brimmed", "wide-brimmed"),
    Choice("kind", {"top": "cylindrical", "bowler": "round", "witch": "pointed"}),
    Flag("band", 0.7),
    materials=FABRIC,
    second="a ribbon",
    second_needs="band",
)
def hat(p: Values, b: Builder) -> None:
    """Crown on a flat brim."""
    h, w = p.crown, 0.6 + p.brim
    b.lathe([(0, 0), (w, 0), (w + 0.02, 0.04), (w, 0.08), (0, 0.08)], n=28)
    if p.kind == "top":
        b.cyl((0, 0.05, 0), (0, h, 0), 0.56, 0.6, n=24)
    elif p.kind == "bowler":
        b.dome((0.6, h, 0.6), (0, 0.05, 0))
    else:
        b.tube(
            np.array(
                [(0, 0.05, 0), (0, 0.6 * h + 0.2, 0), (0.1, h + 0.5, 0), (0.3, 1.4 * h + 0.4, 0)]
            ),
            [0.58, 0.3, 0.14, 0.02],
            n=20,
        )
    if p.band:
        r = 0.62 if p.kind != "witch" else 0.54
        b.lathe([(0, 0.1), (r, 0.1), (r, 0.26), (0, 0.26)], color="second", n=24)


@shape(
    "robot",
    Num("body", 0.8, 1.3, "short", "tall"),
    Num("width", 0.6, 1.0, "slim", "broad"),
    Choice("head", {"box": "", "dome": "round-headed"}),
    Count("antennas", 0, 2, "antenna", "antennas"),
    Choice("legs", {"two": "", "wheels": ""}),
    materials={"metal": 0.5, "plain": 0.5},
    second="a head",
)
def robot(p: Values, b: Builder) -> None:
    """Box body, head, two arms; on legs or on tracks."""
    h, w, y = p.body, p.width, 0.75
    if p.legs == "two":
        for side in (-1, 1):
            b.cyl((side * 0.28 * w, 0.1, 0), (side * 0.28 * w, y, 0), 0.12)
            b.box((0.32, 0.16, 0.5), (side * 0.28 * w, 0.08, 0.08), "gray")
    else:
        for side in (-1, 1):
            b.soft((0.28, 0.5, 1.0), (side * 0.4 * w, 0.25, 0), "black", roundness=0.5)
        b.box((0.5 * w, 0.5, 0.4), (0, 0.5, 0), "gray")
    b.box((w, h, 0.55), (0, y + h / 2, 0))
    b.box((0.5 * w, 0.3 * h, 0.06), (0, y + 0.55 * h, 0.28), "gray")
    top = y + h
    b.cyl((0, top, 0), (0, top + 0.15, 0), 0.1, color="gray", n=10)
    if p.head == "box":
        b.box((0.6, 0.5, 0.5), (0, top + 0.38, 0), "second")
    else:
        b.cyl((0, top + 0.12, 0), (0, top + 0.34, 0), 0.34, color="second", n=18)
        b.dome((0.34, 0.36, 0.34), (0, top + 0.34, 0), "second")
    for side in (-1, 1):
        b.ball(0.085, (side * 0.14, top + 0.42, 0.27), "yellow", n=8)
        x = side * (w / 2 + 0.12)
        b.cyl((side * w / 2, top - 0.15, 0), (x, top - 0.15, 0), 0.12, color="gray", n=10)
        b.cyl((x, top - 0.1, 0), (x, top - 0.1 - 0.75 * h, 0.05), 0.09)
        b.ball(0.14, (x, top - 0.15 - 0.75 * h, 0.05), "gray", n=10)
    for i in range(p.antennas):
        x = 0.15 * (2 * i - 1) * (p.antennas == 2)
        b.cyl((x, top + 0.5, 0), (1.6 * x, top + 1.05, 0), 0.025, color="gray", n=6)
        b.ball(0.07, (1.6 * x, top + 1.08, 0), "red", n=8)


@shape(
    "fish",
    Num("length", 1.4, 2.2, "short", "long"),
    Num("height", 0.35, 0.7, "slim", "high-backed"),
    Num("tail", 0.35, 0.65, "", "big-tailed"),
    Flag("fin", 0.75, "a back fin"),
    materials={"plain": 0.5, "striped": 0.3, "spotted": 0.2},
    second="fins",
)
def fish(p: Values, b: Builder) -> None:
    """Body along z, nose to the front, upright tail fin."""
    n, h = p.length, p.height
    z = np.linspace(-0.5, 0.5, 12)
    thick = np.sqrt(np.clip(1 - (2 * z * 0.98 - 0.06) ** 2, 0.02, 1)) * (
        0.6 + 0.4 * np.clip(z + 0.6, 0, 1)
    )
    b.loft(np.stack([z * n, 0 * z, 0 * z, 0.45 * h * thick, h * thick], axis=1))
    back = -0.47 * n
    t = p.tail
    b.extrude(
        [
            (back + 0.1, 0.06),
            (back - 0.5, t),
            (back - 0.32, 0.0),
            (back - 0.5, -t),
            (back + 0.1, -0.06),
        ],
        0.08,
        color="second",
        axis="x",
    )
    if p.fin:
        b.extrude(
            [(0.25 * n, 0.7 * h), (-0.05 * n, h + 0.42), (-0.25 * n, 0.6 * h)],
            0.07,
            color="second",
            axis="x",
        )
    for side in (-1, 1):
        b.ball(
            (0.3, 0.04, 0.16),
            (side * (0.4 * h + 0.1), -0.3 * h, 0.1 * n),
            "second",
            rotation(z=-side * 35),
            n=8,
        )
        b.ball(0.07, (side * 0.3 * h, 0.22 * h, 0.36 * n), "black", n=8)


@shape(
    "duck",
    Num("body", 0.8, 1.2, "short", "long"),
    Num("neck", 0.15, 0.8, "", "long-necked"),
    Num("bill", 0.25, 0.5, "", ""),
    Flag("feet", 0.5, "feet"),
    materials=PLAIN,
    colors=("yellow", "white", "brown"),
    second="a bill",
    second_colors=("orange", "yellow", "red", "black"),
)
def duck(p: Values, b: Builder) -> None:
    """Boat-shaped body with a tail, a neck, a round head and a flat bill."""
    n, k = p.body, p.neck
    b.ball((0.55, 0.48, n), (0, 0.5, 0), n=20)
    b.cyl((0, 0.6, -0.75 * n), (0, 0.98, -1.15 * n), 0.26, 0.05)
    head = (0, 1.2 + k, 0.72 * n)
    b.cyl((0, 0.65, 0.6 * n), head, 0.28, 0.2)
    b.ball(0.36, head, n=16)
    b.soft(
        (0.34, 0.12, 2 * p.bill),
        (0, head[1] - 0.06, head[2] + 0.28 + 0.4 * p.bill),
        "second",
        roundness=0.6,
    )
    for side in (-1, 1):
        b.ball(0.06, (side * 0.22, head[1] + 0.12, head[2] + 0.25), "black", n=8)
        b.ball((0.12, 0.28, 0.6 * n), (side * 0.52, 0.62, -0.12), rot=rotation(x=12), n=12)
        if p.feet:
            b.cyl((side * 0.25, 0.15, 0), (side * 0.25, -0.2, 0.05), 0.05, color="second", n=6)
            b.box((0.3, 0.05, 0.42), (side * 0.25, -0.2, 0.15), "second")


@shape(
    "dog",
    Num("body", 0.9, 1.7, "short", "long"),
    Num("legs", 0.35, 0.95, "short-legged", "long-legged"),
    Num("snout", 0.2, 0.5, "", "long-nosed"),
    Choice("ears", {"hanging": "floppy-eared", "upright": ""}),
    Choice("tail", {"up": "", "down": ""}),
    materials={"plain": 0.75, "spotted": 0.25},
    colors=("brown", "black", "white", "beige", "gray"),
    typical=0.8,
    second="a collar",
)
def dog(p: Values, b: Builder) -> None:
    """Four legs, body along z, head with snout and ears, tail."""
    n, y = p.body, p.legs + 0.3
    b.soft((0.6, 0.62, n + 0.3), (0, y, 0), roundness=0.65)
    for side in (-1, 1):
        for z in (-0.42 * n, 0.42 * n):
            b.cyl((side * 0.2, y, z), (side * 0.2, 0, z), 0.13, 0.1, n=10)
            b.box((0.2, 0.1, 0.3), (side * 0.2, 0.05, z + 0.06))
    head = np.array([0, y + 0.62, n / 2 + 0.25])
    b.cyl((0, y + 0.1, 0.42 * n), head, 0.22, 0.2)
    b.cyl(
        (0, y + 0.24, 0.42 * n + 0.08), (0, y + 0.34, 0.42 * n + 0.14), 0.25, color="second", n=14
    )
    b.ball((0.3, 0.29, 0.34), head, n=14)
    b.cyl(head + [0, -0.08, 0.2], head + [0, -0.1, 0.3 + p.snout], 0.17, 0.12)
    b.ball(0.07, head + [0, -0.05, 0.34 + p.snout], "black", n=8)
    for side in (-1, 1):
        b.ball(0.05, head + [side * 0.14, 0.1, 0.28], "black", n=6)
        if p.ears == "hanging":
            b.ball(
                (0.07, 0.27, 0.15),
                head + [side * 0.3, -0.08, -0.02],
                rot=rotation(z=side * 10),
                n=10,
            )
        else:
            b.cyl(head + [side * 0.19, 0.18, 0], head + [side * 0.24, 0.52, 0], 0.13, 0.01, n=8)
    rise = 0.65 if p.tail == "up" else -0.25
    b.tube(
        curve(
            [
                (0, y + 0.15, -n / 2 - 0.05),
                (0, y + 0.2 + 0.3 * rise, -n / 2 - 0.4),
                (0, y + 0.2 + rise, -n / 2 - 0.55),
            ],
            3,
        ),
        np.linspace(0.1, 0.05, 7),
    )


@shape(
    "sunflower",
    Num("height", 1.2, 2.4, "short", "tall"),
    Num("head", 0.3, 0.5, "", ""),
    Count("petals", 8, 16, step=4),
    Count("leaves", 1, 3, "leaf", "leaves"),
    materials=PLAIN,
    synonyms=("flower",),
    colors=("yellow", "orange"),
    typical=0.85,
    second="a stem",
    second_colors=("green", "light green"),
)
def sunflower(p: Values, b: Builder) -> None:
    """Thin stem with leaves and one disc of petals that faces the front."""
    h, r = p.height, p.head
    b.cyl((0, 0, 0), (0, h, 0), 0.05, color="second", n=8)
    for i in range(p.leaves):
        side = (-1, 1)[i % 2]
        b.ball(
            (0.34, 0.03, 0.15),
            (side * 0.32, h * (0.25 + 0.18 * i), 0),
            "second",
            rotation(z=side * 28),
            n=10,
        )
    with b.group((0, h, 0.06), rotation(x=72)):
        b.cyl((0, -0.06, 0), (0, 0.06, 0), r, color="brown", n=20)
        for i in range(p.petals):
            with b.group(rot=rotation(y=360 * i / p.petals)):
                b.ball((0.3, 0.03, min(0.2, 2.6 * r / p.petals)), (r + 0.22, 0, 0), n=8)


@shape(
    "pumpkin",
    Num("height", 0.55, 1.0, "flat", "tall"),
    Count("ribs", 7, 11),
    Flag("leaf", 0.3, "a leaf"),
    Num("stalk", 0.15, 0.5, "", "long-stalked"),
    materials=PLAIN,
    colors=("orange", "yellow", "green"),
    typical=0.9,
)
def pumpkin(p: Values, b: Builder) -> None:
    """Ring of fat ribs with a stalk."""
    h, k = p.height, p.ribs
    for i in range(k):
        a = 2 * np.pi * i / k
        b.ball(
            (0.5, h * 0.62, 0.5 * 5.4 / k),
            (0.5 * np.cos(a), h * 0.6, -0.5 * np.sin(a)),
            rot=rotation(y=float(np.degrees(a))),
            n=12,
        )
    top = h * 1.08
    b.tube(
        curve([(0, h * 0.8, 0), (0, top, 0), (0.12, top + p.stalk, 0)], 3),
        np.linspace(0.13, 0.08, 7),
        "brown",
        n=6,
    )
    if p.leaf:
        b.ball((0.36, 0.03, 0.22), (-0.36, top + 0.02, 0.05), "green", rotation(z=-12), n=10)
