"""Household things: vases and pots, bins and barrels, candles, umbrellas; slices of pizza."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pipeline.datasets.shapes.builder import Builder
from pipeline.datasets.shapes.primitives import F64, arc, curve, lathe, lift, rotation
from pipeline.datasets.shapes.schema import (
    CERAMIC,
    FABRIC,
    PAINTED,
    PLAIN,
    Choice,
    Count,
    Flag,
    Num,
    Values,
    shape,
)
from pipeline.datasets.shapes.vessels import ear, fluted, hollow, points, square, warped


@shape(
    "vase",
    Choice(
        "form",
        {
            "bellied": "bellied",
            "hourglass": "waisted",
            "trumpet": "flared",
            "double": "gourd-shaped",
        },
    ),
    Num("height", 1.3, 2.6, "short", "tall"),
    Num("mouth", 0.2, 0.42, "narrow-mouthed", "wide-mouthed"),
    Choice("surface", {"smooth": "smooth", "fluted": "fluted", "twisted": "twisted"}),
    Flag("handles", 0.25, "handles"),
    Flag("flowers", 0.4, "flowers"),
    Count("stems", 2, 5),
    Num("bouquet", 0.4, 0.9),
    materials=CERAMIC,
    second="a base",
)
def vase(p: Values, b: Builder) -> None:
    """Curved slender vessel on a base."""
    h, m = p.height, p.mouth
    text, neck = {
        "bellied": ("0.24 0, 0.42 0.16, 0.55 0.4, 0.42 0.66", [(0.8 * m, 0.85), (m + 0.06, 1)]),
        "hourglass": ("0.5 0, 0.42 0.2, 0.22 0.5, 0.24 0.6", [(m + 0.02, 0.85), (m + 0.15, 1)]),
        "trumpet": ("0.2 0, 0.2 0.2, 0.24 0.5", [(0.1 + 0.6 * m, 0.78), (m + 0.28, 1)]),
        "double": ("0.3 0, 0.54 0.2, 0.46 0.4, 0.22 0.54", [(0.36, 0.72), (0.3, 0.86), (m, 1)]),
    }[p.form]
    side = curve(np.concatenate([points(text), neck]), 3 if p.surface == "smooth" else 2) * (1, h)
    part = lathe(hollow(side, 0.04, 0.1), 40 if p.surface != "smooth" else 24)
    if p.surface != "smooth":
        part = fluted(part, 10, 0.05, 1.1 / h if p.surface == "twisted" else 0.0)
    b.add(part)
    foot = float(side[0, 0])
    plinth = points("0 -0.12, 0.1 -0.12, 0.1 -0.06, 0 0.04") + (foot, 0)
    b.lathe([(0, -0.12), *plinth[1:], (0, 0.04)], color="second")
    if p.handles:
        low, high = (
            (float(np.interp(y * h, side[:, 1], side[:, 0])) - 0.03, y * h) for y in (0.48, 0.86)
        )
        ear(b, low, high, 0.24, 0.045)
        ear(b, low, high, 0.24, 0.045, side=-1)
    if p.flowers:
        rng = p.rng()
        inside = 0.5 * float(side[:, 0].min())
        for i in range(p.stems):
            turn = 2 * np.pi * (i + 0.5 * rng.random()) / p.stems
            out, up = 0.3 + 0.25 * rng.random(), p.bouquet * (0.8 + 0.5 * rng.random())
            way = np.array([np.cos(turn), 0, np.sin(turn)])
            top = out * way + (0, h + up, 0)
            path = curve([0.3 * inside * way + (0, 0.08, 0), 0.7 * inside * way + (0, h, 0), top])
            b.tube(path, 0.025, "green", 6)
            color = str(rng.choice(["red", "yellow", "pink", "purple", "white"]))
            b.ball((0.17, 0.1, 0.17), top, color, n=12)
            b.ball(0.07, top + (0, 0.08, 0), "orange", n=8)


@shape(
    "flower pot",
    Num("height", 0.55, 1.1, "low", "tall"),
    Num("taper", 0.5, 0.92),
    Choice("outline", {"round": "round", "square": "square"}),
    Choice("plant", {"leaves": "", "bush": "", "blossoms": ""}),
    Num("growth", 0.6, 1.5),
    Count("blades", 5, 9),
    Flag("saucer", 0.4, "a saucer"),
    synonyms=("potted plant",),
    colors=("orange", "brown", "white", "gray"),
    typical=0.5,
    materials=CERAMIC,
    second="a plant",
    second_colors=("green", "green", "light green", "purple"),
)
def flower_pot(p: Values, b: Builder) -> None:
    """Tapered pot with a collar, earth and a plant."""
    h, r, g = p.height, 0.55, p.growth
    pot = [(p.taper * r, 0), (r, 0.8 * h), (r + 0.08, 0.8 * h), (r + 0.08, h)]
    pieces = [(lathe(hollow(pot, 0.1, 0.1), 24), "main")]
    earth = [(0, 0.6 * h), (r - 0.08, 0.6 * h), (r, 0.93 * h), (0, 0.95 * h)]
    pieces.append((lathe(earth, 24), "brown"))
    if p.saucer:
        saucer = points("0 -0.06, 0.95 -0.06, 1.15 0.06, 1.1 0.06, 0.9 0, 0 0")
        pieces.append((lathe(saucer * (r, 1), 24), "main"))
    for part, color in pieces:
        b.add(square(part) if p.outline == "square" else part, color)
    rng = p.rng()
    turns = 2 * np.pi * (np.arange(p.blades) + 0.6 * rng.random(p.blades)) / p.blades
    if p.plant == "bush":
        b.cyl((0, 0.9 * h, 0), (0, h + 0.4 * g, 0), 0.07, color="brown", n=8)
        wide = 0.36 + 0.24 * g
        b.blob((wide, 0.5 * g, wide), (0, h + 0.7 * g, 0), "second", 0.3, p.detail)
        return
    for turn in turns:
        way = np.array([np.cos(turn), 0, np.sin(turn)])
        reach, up = (0.3 + 0.5 * rng.random()) * (0.5 + 0.4 * g), g * (0.7 + 0.5 * rng.random())
        steps = [0.08 * way + (0, 0.9 * h, 0), 0.35 * reach * way + (0, h + 0.6 * up, 0)]
        if p.plant == "leaves":
            path = curve([*steps, reach * way + (0, h + 0.75 * up, 0)], 4)
            shares = np.linspace(0, 1, len(path))
            width = 0.03 + 0.14 * np.sin(np.pi * shares**0.8)
            b.tube(path, width, "second", 8, flatten=(0.2, 1))
        else:
            top = 0.7 * reach * way + (0, h + up, 0)
            b.tube(curve([*steps, top]), 0.025, "second", 6)
            b.ball((0.13, 0.09, 0.13), top, ("red", "yellow", "pink")[p.detail % 3], n=10)
            leaf = 0.5 * (steps[0] + steps[1]) + 0.1 * way
            b.ball((0.14, 0.03, 0.07), leaf, "second", rotation(y=-float(np.degrees(turn))), n=8)


@shape(
    "bucket",
    Num("height", 0.8, 1.5, "short", "tall"),
    Num("floor", 0.32, 0.52, "tapered", "straight-sided"),
    Choice("pose", {"up": "", "tilted": "", "down": ""}),
    Count("bands", 1, 3, "raised band", "raised bands"),
    Num("bail", 0.02, 0.04),
    Flag("water", 0.25, "water"),
    Flag("spout", 0.2, "a spout"),
    synonyms=("pail",),
    materials={"metal": 0.35, "plain": 0.45, "wooden": 0.1, "striped": 0.1},
    second="a handle",
)
def bucket(p: Values, b: Builder) -> None:
    """Open pail, wider at the top, with a thin bail."""
    h, r = p.height, 0.58
    b.lathe(hollow([(p.floor, 0), (r, h)], 0.035, 0.05), n=28)
    b.ring(r, 0.035, (0, h, 0), n=28)
    for share in np.linspace(0, 1, p.bands + 2)[1:-1]:
        b.ring(p.floor + (r - p.floor) * float(share), 0.028, (0, h * float(share), 0), n=28)
    for side in (-1, 1):
        b.box((0.06, 0.16, 0.14), (side * (r + 0.02), h - 0.06, 0))
    with b.group(at=(0, h - 0.02, 0), rot=rotation(x={"up": 0, "tilted": 48, "down": 82}[p.pose])):
        b.tube(lift(arc((r + 0.07, 0.68), 0, 180, 18)), p.bail, "second", 8)
        b.cyl((-0.15, 0.68, 0), (0.15, 0.68, 0), 0.06, color="second", n=10)
    if p.water:
        level = p.floor + (r - p.floor) * 0.8
        b.cyl((0, 0.76 * h, 0), (0, 0.8 * h, 0), level - 0.02, color="light blue", n=24)
    if p.spout:
        lip = [(-0.16, r - 0.04), (0.16, r - 0.04), (0, r + 0.2)]
        b.extrude([(x, -z) for x, z in lip][::-1], 0.08, (0, h - 0.02, 0), axis="y")


@shape(
    "barrel",
    Num("height", 0.95, 1.8, "squat", "tall"),
    Num("bulge", 1.1, 1.42, "", "bulging"),
    Count("hoops", 2, 6, "hoop", "hoops", 2),
    Num("hoop", 0.04, 0.09),
    Choice("pose", {"standing": "standing", "lying": "lying"}),
    Flag("staves", 0.5),
    Flag("tap", 0.3, "a tap"),
    Flag("stand", 0.35, "a stand"),
    synonyms=("cask",),
    colors=("brown",),
    typical=0.5,
    materials={"wooden": 0.7, "plain": 0.15, "metal": 0.15},
    second="hoops",
    second_colors=("gray", "black", "silver", "gold", "copper", "red", "blue", "green"),
)
def barrel(p: Values, b: Builder) -> None:
    """Closed bulging cask with hoops."""
    h, r = p.height, 0.45

    def at(y: float) -> float:
        return r * float(1 + (p.bulge - 1) * np.sin(np.pi * y / h))

    side = [(at(y), float(y)) for y in np.linspace(0, h, 11)]
    end = points("0 0.06, -0.06 0.06, -0.06 0") + (r, 0)
    lower = [(0, 0.06), *end[1:]]
    upper = [(x, h - y) for x, y in lower[::-1]]
    part = lathe([*lower, *side, *upper], 48 if p.staves else 28)
    lying = p.pose == "lying"
    with b.group(at=(0, 0, -h / 2 * lying), rot=rotation(x=90.0 * lying)):
        b.add(fluted(part, 16, 0.02) if p.staves else part)
        for i in range(p.hoops // 2):
            y = h * (0.06 + 0.13 * i)
            for low in (y, h - y - p.hoop):
                high = low + p.hoop
                ring = [(0.9 * r, low), (at(low) + 0.03, low), (at(high) + 0.03, high)]
                b.lathe([*ring, (0.9 * r, high)], color="second", n=28)
    wide = r * p.bulge
    if p.tap:
        y, z = (-0.5 * r, h / 2 - 0.08) if lying else (0.25 * h, at(0.25 * h) - 0.04)
        b.cyl((0, y, z), (0, y, z + 0.3), 0.045, color="gold", n=10)
        b.cyl((0, y - 0.14, z + 0.26), (0, y + 0.04, z + 0.26), 0.04, color="gold", n=10)
        b.box((0.16, 0.04, 0.04), (0, y + 0.08, z + 0.18), "gold")
        b.cyl((0, y, z + 0.18), (0, y + 0.08, z + 0.18), 0.02, color="gold", n=8)
    if p.stand and lying:
        for z in (-0.25 * h, 0.25 * h):
            cradle = arc(at(0.25 * h), 215, 325, 10)
            floor = -wide - 0.18
            b.extrude([(-0.5, floor), (0.5, floor), *cradle[::-1]], 0.12, (0, 0, z), "gray")
    elif p.stand:
        b.box((1.1, 0.1, 1.1), (0, 0, 0), "gray")
        for x, z in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            b.box((0.12, 0.3, 0.12), (0.47 * x, -0.18, 0.47 * z), "gray")


@shape(
    "candle",
    Num("radius", 0.12, 0.4, "thin", "thick"),
    Choice("body", {"round": "round", "square": "square", "twisted": "twisted"}),
    Num("flame", 0.28, 0.5),
    Flag("dish", 0.4, "a dish"),
    Flag("stick", 0.35, "a candlestick"),
    Num("stem", 0.4, 1.0),
    Flag("drips", 0.35, "dripping wax"),
    materials={"plain": 0.75, "striped": 0.15, "spotted": 0.1},
    second="a flame",
    second_colors=("orange", "yellow"),
)
def candle(p: Values, b: Builder) -> None:
    """Wax stick with a burning wick, on its own, on a dish or on a stick."""
    h, r = 1.25, p.radius
    melted = [(0, 0), (r, 0), *zip([r] * 9, np.linspace(0.1, h, 9), strict=True)]
    part = lathe([*melted, (0.75 * r, h + 0.02), (0.5 * r, h - 0.04), (0, h - 0.04)], 24)
    if p.body == "square":
        part = square(part)
    elif p.body == "twisted":
        part = fluted(part, 5, 0.13, 3.0)
    b.add(part)
    b.cyl((0, h - 0.06, 0), (0, h + 0.14, 0), 0.022, color="black", n=6)
    f = p.flame
    drop = f * curve(points("0 0, 0.26 0.14, 0.3 0.36, 0.12 0.72, 0 1"), 3)
    drop[:, 0] = np.maximum(drop[:, 0], 0)
    b.lathe(drop, (0, h + 0.08, 0), "second", n=14)
    rng = p.rng()
    for turn in 2 * np.pi * (np.arange(5) + 0.6 * rng.random(5)) / 5 if p.drips else ():
        run, x, z = h * rng.uniform(0.2, 0.6), r * np.cos(turn), r * np.sin(turn)
        if p.body == "square":
            x, z = np.array([x, z]) * r / max(abs(x), abs(z)) * 0.95
        b.cyl((x, h - run, z), (x, h, z), 0.045, 0.035, n=8)
        b.ball((0.06, 0.09, 0.06), (x, h - run, z), n=8)
    foot = 0.0
    if p.stick:
        foot = -p.stem
        cup = [(0, -0.1), (0.08, -0.1), (r + 0.12, 0.02), (r + 0.12, 0.14), (0, 0.14)]
        b.lathe(cup, color="gold")
        base = points("0 0, 0.42 0, 0.4 0.06, 0.08 0.16") + (0, foot)
        b.lathe([*base, (0.07, -0.08), (0, -0.08)], color="gold")
        b.ball((0.13, 0.09, 0.13), (0, 0.5 * foot, 0), "gold", n=12)
    if p.dish:
        wide = max(r, 0.4 if p.stick else 0.0) + 0.28
        dish = [(wide - 0.12, foot - 0.05), (wide, foot + 0.1)]
        b.lathe(hollow(dish, 0.04, 0.06), color="gray", n=24)
        b.ring(0.13, 0.03, (wide + 0.1, foot + 0.03, 0), "gray", "z", 14)


@shape(
    "trash can",
    Num("height", 1.3, 2.2, "short", "tall"),
    Choice("lid", {"domed": "domed", "flat": "flat-topped", "swing": "pointed", "open": "open"}),
    Choice("outline", {"round": "round", "square": "square"}),
    Num("floor", 0.38, 0.54, "tapered", "straight-sided"),
    Flag("ribs", 0.35, "ribs"),
    Flag("pedal", 0.4, "a pedal"),
    Flag("handles", 0.35, "handles"),
    Flag("wheels", 0.25, "wheels"),
    synonyms=("garbage can", "dustbin"),
    materials=PAINTED,
    second="a lid",
)
def trash_can(p: Values, b: Builder) -> None:
    """Tall bin with a lid."""
    h, r = p.height, 0.55
    square_plan = p.outline == "square"

    def cut(profile: ArrayLike, color: str = "main", y: float = 0) -> None:
        part = lathe(profile, 32)
        b.add((square(part, 8) if square_plan else part).moved((0, y, 0)), color)

    cut(hollow([(p.floor, 0), (r, h)], 0.04, 0.06))
    for share in (0.2, 0.4, 0.6, 0.8) if p.ribs else ():
        wide = p.floor + (r - p.floor) * share
        rib = points("0 -0.04, 0.1 -0.04, 0.1 0.04, 0 0.04") + (wide - 0.05, share * h)
        cut(rib)
    e = r + 0.05
    flat = [(0, -0.02), (e, -0.02), (e, 0.08), (0, 0.1)]
    if p.lid == "domed":
        cut([(0, 0), (e, -0.05), *arc((e, 0.5), 0, 90, 6)], "second", h)
    elif p.lid == "swing":
        cut([(0, -0.02), (e, -0.02), (e, 0.06), (0.16, 0.5), (0, 0.5)], "second", h)
    elif p.lid == "flat":
        cut(flat, "second", h)
        b.tube(lift(arc((0.16, 0.16), 0, 180, 10)) + (0, h + 0.06, 0), 0.03, "second")
    else:
        with b.group(at=(0, h, -r), rot=rotation(x=-105)), b.group(at=(0, 0, e)):
            cut(flat, "second")
    if p.pedal:
        b.box((0.3, 0.05, 0.3), (0, 0.08, p.floor + 0.12), "black")
    for side in (-1, 1) if p.handles else ():
        x = p.floor + (r - p.floor) * 0.78
        with b.group(at=(side * (x - 0.02), 0.78 * h, 0)):
            b.tube(lift(arc((0.2 * side, 0.2), -90, 90, 10), "xz"), 0.04)
    for side in (-1, 1) if p.wheels else ():
        b.wheel(0.16, 0.1, (side * 0.3, 0.06, -p.floor - 0.04))


@shape(
    "umbrella",
    Choice("state", {"round": "open", "cone": "open", "closed": "closed"}),
    Count("panels", 5, 10, "panel", "panels"),
    Num("depth", 0.3, 0.75),
    Num("shaft", 0.8, 1.5, "short", "long"),
    Choice("end", {"hook": "", "straight": "", "ball": ""}),
    Num("hook", 0.12, 0.24),
    Num("thick", 0.02, 0.045),
    synonyms=("parasol",),
    materials=FABRIC,
    second="a handle",
)
def umbrella(p: Values, b: Builder) -> None:
    """Panelled canopy, open or folded, on a shaft with a handle."""
    d, n, low = p.depth, p.panels, -p.shaft

    def sag(v: F64) -> F64:
        r2 = (v[:, 0] ** 2 + v[:, 2] ** 2)[:, None]
        between = np.abs(np.sin(np.arctan2(v[:, 2], v[:, 0]) * n / 2))[:, None]
        out: F64 = v * (1 - 0.12 * between * r2 * (1, 0, 1))
        out[:, 1:2] += 0.1 * r2 * between
        return out

    tip = d
    if p.state == "closed":
        folded = points("0 0.4, 0.1 0.4, 0.17 0.55, 0.13 0.9") + (0, low)
        b.add(fluted(lathe([*folded, (0.04, d), (0, d)], 4 * n), n, 0.2))
        tip = d - 0.02
    else:
        t = np.linspace(0, 1, 9)
        top = d * np.sqrt(1 - t**2) if p.state == "round" else d * (1 - t**1.2)
        under = np.column_stack([t, top - 0.035])
        over = np.column_stack([t, top])[::-1]
        b.add(warped(lathe(np.concatenate([under, over]), 4 * n), sag))
    b.cyl((0, low, 0), (0, tip + 0.16, 0), p.thick, color="gray", n=10)
    thick = p.thick + 0.03
    if p.end == "hook":
        bend = arc(p.hook, 180, 375, 12, (p.hook, low))
        path = np.concatenate([[(0, low + 0.3), (0, low + 0.15)], bend])
        b.tube(lift(path), thick, "second", 10)
    elif p.end == "straight":
        b.cyl((0, low - 0.1, 0), (0, low + 0.3, 0), thick + 0.04, thick, "second")
    else:
        b.ball(0.07 + 0.5 * p.hook, (0, low, 0), "second")


@shape(
    "pizza",
    Num("angle", 26, 64, "narrow", "wide"),
    Num("thick", 0.05, 0.16, "thin", "thick"),
    Num("crust", 0.07, 0.14),
    Count("salami", 1, 6, "slice of salami", "slices of salami"),
    Flag("olives", 0.35, "olives"),
    Flag("basil", 0.35, "basil leaves"),
    Flag("drips", 0.3, "dripping cheese"),
    Choice("tip", {"whole": "", "bitten": "bitten"}),
    synonyms=("pizza slice", "slice of pizza"),
    colors=("yellow", "orange", "beige"),
    typical=0.85,
    materials=PLAIN,
    second="a crust",
    second_colors=("brown", "beige", "orange"),
)
def pizza(p: Values, b: Builder) -> None:
    """One slice, lying with its tip to the front."""
    r, half, t = 1.3, p.angle / 2, p.thick
    edge = arc(r, 90 - half, 90 + half, 10, (0, -0.6))
    tip: list[ArrayLike] = [(0, -0.6)]
    first = 0.2
    if p.tip == "bitten":
        first = 0.42
        ends = arc(0.38, 90 + half, 90 - half, 1, (0, -0.6))
        middle = ends.mean(0)
        tip = [ends[0], middle + (-0.03, 0.1), middle + (0.03, 0.1), ends[1]]
    b.extrude([*tip, *edge], t, axis="y")
    rim = lift(edge * (1, -1), "xz", 0.25 * t)
    b.tube(rim, p.crust, "second", 12)
    for end in (rim[0], rim[-1]):
        b.ball(p.crust, end, "second", n=12)
    rng = p.rng()

    def spot(share: float, turn: float, y: float) -> F64:
        """Point at a share of the radius from the tip, ``turn`` in [-1, 1] of the half angle."""
        a, q = np.radians(turn * half), r * share
        return np.array([q * np.sin(a), y, 0.6 - q * np.cos(a)], np.float64)

    for i in range(p.salami):
        share = first + 0.12 + (0.7 - first) * (i + 0.5) / p.salami
        size = min(0.13, 0.6 * r * share * float(np.sin(np.radians(half))))
        at = spot(share, 0.45 * (-1) ** i * rng.uniform(0.6, 1), t / 2 - 0.01)
        b.cyl(at, at + (0, 0.045, 0), size, color="red", n=14)
    for share, turn in ((0.5, -0.7), (0.66, 0.72), (0.85, -0.75)) if p.olives else ():
        b.ring(0.05, 0.022, spot(share, turn, t / 2 + 0.01), "black", n=10)
    for share, turn in ((0.56, 0.1), (0.8, 0.25)) if p.basil else ():
        leaf = rotation(y=360 * rng.random())
        b.ball((0.12, 0.03, 0.06), spot(share, turn, t / 2 + 0.02), "green", leaf, 10)
    for share in (0.45, 0.6, 0.75) if p.drips else ():
        for side in (-1, 1):
            long = rng.uniform(0.05, 0.14)
            b.ball((0.05, long, 0.05), spot(share, side, -0.5 * long), n=8)
