"""Tableware, cutlery and pots."""

from __future__ import annotations

import numpy as np

from pipeline.datasets.shapes.builder import Builder
from pipeline.datasets.shapes.primitives import F64, arc, curve, dome, lathe, lift, rotation
from pipeline.datasets.shapes.schema import (
    CERAMIC,
    PLAIN,
    TOOL,
    Choice,
    Count,
    Flag,
    Num,
    Values,
    shape,
)
from pipeline.datasets.shapes.vessels import ear, fluted, hollow, points, square, warped


def _egg(b: Builder, at: tuple[float, float, float], size: float) -> None:
    """Fried egg on a level surface."""
    x, y, z = at
    b.add(fluted(dome((size, 0.12 * size, size)), 3, 0.14).moved(at), "white")
    b.dome((0.42 * size, 0.36 * size, 0.42 * size), (x + 0.08 * size, y, z), "yellow")


@shape(
    "mug",
    Num("height", 0.7, 1.5, "short", "tall"),
    Choice("body", {"straight": "", "tapered": "tapered", "rounded": "rounded", "waisted": ""}),
    Choice("handle", {"round": "", "square": ""}),
    Num("ear", 0.5, 0.85),
    Num("reach", 0.22, 0.42),
    Num("wall", 0.03, 0.1, "thin-walled", "thick-walled"),
    Flag("lid", 0.2, "a lid"),
    Flag("saucer", 0.2, "a saucer"),
    synonyms=("cup",),
    materials=CERAMIC,
    second="a handle",
)
def mug(p: Values, b: Builder) -> None:
    """Open cup with one ear."""
    h, r = p.height, 0.5
    text = {
        "straight": "1 0, 1 1",
        "tapered": "0.68 0, 1 1",
        "rounded": "0.55 0, 0.95 0.22, 1.04 0.55, 0.88 1",
        "waisted": "1 0, 0.86 0.45, 0.88 0.7, 1.05 1",
    }[p.body]
    outer = curve(points(text)) * (r, h)
    b.lathe(hollow(outer, p.wall, 0.08), n=28)
    ends = [h * (0.5 + s * p.ear / 2) for s in (-1, 1)]
    low, high = ((float(np.interp(y, outer[:, 1], outer[:, 0])) - 0.02, y) for y in ends)
    ear(b, low, high, p.reach, 0.055 + 0.3 * p.wall, p.handle == "square", "second")
    if p.lid:
        top = float(outer[-1, 0]) + 0.04
        b.dome((top, 0.16, top), (0, h, 0))
        b.ball(0.09, (0, h + 0.2, 0))
    if p.saucer:
        b.lathe(points("0 -0.1, 0.4 -0.1, 0.9 0.02, 0.9 0.07, 0.4 -0.02, 0 -0.02"), n=28)
        b.cyl((0, -0.05, 0), (0, 0.02, 0), 0.34)


@shape(
    "bowl",
    Num("depth", 0.4, 0.9, "shallow", "deep"),
    Choice("form", {"round": "round", "conical": "conical", "bell": "flared"}),
    Num("rim", 0.025, 0.075, "thin-rimmed", "thick-rimmed"),
    Flag("foot", 0.4, "a foot"),
    Num("foot_height", 0.08, 0.25),
    Flag("handles", 0.2, "handles"),
    Flag("soup", 0.25, "soup"),
    synonyms=("dish",),
    materials=CERAMIC,
    second="a rim",
)
def bowl(p: Values, b: Builder) -> None:
    """Wide open vessel."""
    d = p.depth
    outer = {
        "round": arc((1, d), -76, 0, 9, (0, d)),
        "conical": np.array([(0.34, 0), (1, d)]),
        "bell": curve([(0.3, 0), (0.7, 0.2 * d), (0.8, 0.6 * d), (1, d)]),
    }[p.form]
    b.lathe(hollow(outer, 0.06, 0.06), n=28)
    b.ring(0.97, p.rim, (0, d, 0), "second", n=28)
    if p.foot:
        b.cyl((0, -p.foot_height, 0), (0, 0.12 * d, 0), 0.5, 0.33, n=20)
    for side in (1, -1) if p.handles else ():
        with b.group(at=(side * 0.97, d - 0.03, 0)):
            b.tube(lift(arc((0.26 * side, 0.26), -90, 90, 10), "xz"), 0.045)
    if p.soup:
        y = 0.72 * d
        fill = float(np.interp(y, outer[:, 1], outer[:, 0])) - 0.03
        b.cyl((0, y - 0.04, 0), (0, y, 0), fill, color="orange", n=24)


@shape(
    "plate",
    Num("depth", 0.04, 0.2, "flat", "deep"),
    Num("rim", 0.14, 0.5, "narrow-rimmed", "wide-rimmed"),
    Choice("outline", {"round": "round", "square": "square", "oval": "oval", "wavy": "wavy-edged"}),
    Num("thick", 0.03, 0.07),
    Flag("egg", 0.2, "a fried egg"),
    Flag("peas", 0.2, "green peas"),
    materials=CERAMIC,
    second="a rim",
)
def plate(p: Values, b: Builder) -> None:
    """Flat disc with a raised border."""
    c, d, t = 1 - p.rim, p.depth, p.thick
    pieces = [
        (lathe([(0, 0), (c, 0), (c, t), (0, t)], 32), "main"),
        (lathe([(c - 0.01, 0), (c, 0), (1, d), (1, d + t), (c, t), (c - 0.01, t)], 32), "second"),
    ]
    for part, color in pieces:
        if p.outline == "square":
            part = square(part)
        elif p.outline == "wavy":
            part = fluted(part, 8, 0.045)
        elif p.outline == "oval":
            part = part.moved(scale=(1, 1, 0.66))
        b.add(part, color)
    if p.egg:
        _egg(b, (-0.14, t, 0.02), 0.3)
    if p.peas:
        rng = p.rng()
        for x, z in rng.uniform(-0.14, 0.14, (7, 2)):
            b.ball(0.06, (0.3 + 0.8 * x, t + 0.04, z), "green", n=8)


@shape(
    "bottle",
    Num("height", 1.5, 3.2, "short", "tall"),
    Num("neck", 0.2, 0.42, "short-necked", "long-necked"),
    Num("mouth", 0.13, 0.25, "narrow-mouthed", "wide-mouthed"),
    Choice("shoulder", {"round": "", "sloped": "", "abrupt": ""}),
    Choice("body", {"round": "round", "square": "square", "waisted": "waisted"}),
    Num("label", 0.3, 0.6),
    Flag("cap", 0.55, "a cap"),
    Flag("handle", 0.2, "a handle"),
    colors=("green", "brown", "white", "light blue"),
    typical=0.5,
    materials=PLAIN,
    second="a label",
)
def bottle(p: Values, b: Builder) -> None:
    """Closed body, shoulder and neck, with a label around the body."""
    h, r, m = p.height, 0.5, p.mouth
    neck = h * (1 - p.neck)
    rise = {"round": 0.45, "sloped": 0.6, "abrupt": 0.1}[p.shoulder]
    top = neck - rise * min(1.0, 0.5 * h)  # where the body ends and the shoulder begins
    y = np.linspace(0, top, 9)
    body = np.full(9, r)
    if p.body == "waisted":
        body = r * (1 - 0.24 * np.sin(np.pi * y / top) ** 2)
    if p.shoulder == "round":
        turn = np.radians(np.linspace(15, 90, 6))
        shoulder = np.column_stack([m + (r - m) * np.cos(turn), top + (neck - top) * np.sin(turn)])
    else:
        shoulder = np.array([(m, neck)])
    side = np.column_stack([body, y])
    whole = np.concatenate([[(0, 0)], side, shoulder, [(m, h), (0, h)]])
    low, high = top * (0.5 - p.label / 2), top * (0.5 + p.label / 2)
    band = np.column_stack([np.interp(np.linspace(low, high, 7), y, body) + 0.015, np.zeros(7)])
    band[:, 1] = np.linspace(low, high, 7)
    pieces = [lathe(whole, 24), lathe([(0, low), *band, (0, high)], 24)]
    if p.body == "square":
        pieces = [square(piece, 5) for piece in pieces]
    b.add(pieces[0])
    b.add(pieces[1], "second")
    if p.cap:
        b.cyl((0, h - 0.12, 0), (0, h + 0.06, 0), m + 0.04, color="black", n=18)
    else:
        b.ring(m, 0.04, (0, h - 0.03, 0))
    if p.handle:
        ear(b, (r - 0.06, 0.7 * top), (m - 0.03, neck + 0.5 * (h - neck)), 0.22, 0.05)


@shape(
    "wine glass",
    Num("stem", 0.4, 1.3, "short-stemmed", "long-stemmed"),
    Choice("form", {"tulip": "", "flute": "slender", "coupe": "shallow", "cone": "conical"}),
    Num("size", 0.8, 1.2),
    Num("base", 0.34, 0.52),
    Num("thick", 0.035, 0.075, "thin-stemmed", "thick-stemmed"),
    Flag("wine", 0.4, "red wine"),
    Flag("straw", 0.2, "a straw"),
    synonyms=("goblet",),
    colors=("white", "light blue", "silver"),
    typical=0.5,
    materials={"plain": 0.8, "metal": 0.2},
    second="a stem",
)
def wine_glass(p: Values, b: Builder) -> None:
    """Thin bowl on a stem with a round base."""
    s, k = p.stem, p.size
    w, h, text = {
        "tulip": (0.46, 0.95, "0.1 0, 0.8 0.18, 1 0.42, 0.9 0.75, 0.72 1"),
        "flute": (0.27, 1.3, "0.16 0, 0.8 0.2, 1 0.5, 0.98 0.8, 0.86 1"),
        "coupe": (0.62, 0.42, "0.08 0, 0.6 0.18, 0.88 0.5, 1 1"),
        "cone": (0.62, 0.68, "0.06 0, 1 1"),
    }[p.form]
    side = curve(points(text)) * (w * k, h * k)
    b.lathe(hollow(side, 0.025, 0.05), (0, s, 0), n=28)
    b.lathe([(0, 0), (p.base, 0), (p.base, 0.03), (0.3 * p.base, 0.07), (0, 0.1)], n=28)
    b.cyl((0, 0.04, 0), (0, s + 0.04, 0), p.thick, color="second", n=12)
    if p.wine:
        keep = side[side[:, 1] <= 0.62 * h * k]
        level = float(np.interp(0.62 * h * k, side[:, 1], side[:, 0]))
        fill = [(0, 0.03), *(keep[1:] - (0.015, 0)), (level - 0.015, 0.62 * h * k)]
        b.lathe([*fill, (0, 0.62 * h * k)], (0, s, 0), "red", n=24)
    if p.straw:
        tip = (0.75 * w * k + 0.15, s + h * k + 0.45, 0)
        b.cyl((-0.25 * w * k, s + 0.25 * h * k, 0), tip, 0.03, color="black", n=8)


@shape(
    "teapot",
    Num("height", 0.7, 1.35, "squat", "tall"),
    Choice("body", {"round": "round", "straight": "straight-sided", "pear": "pear-shaped"}),
    Choice("handle", {"side": "", "square": "", "top": "top-handled"}),
    Choice("spout", {"curved": "", "straight": ""}),
    Num("reach", 0.35, 0.75, "short-spouted", "long-spouted"),
    Flag("feet", 0.25, "feet"),
    synonyms=("tea pot",),
    materials=CERAMIC,
    second="a lid",
)
def teapot(p: Values, b: Builder) -> None:
    """Bellied pot with a spout, a handle and a lid."""
    h, r = p.height, 0.6
    text = {
        "round": "0.55 0, 0.93 0.22, 1 0.5, 0.86 0.8, 0.5 1",
        "straight": "0.85 0, 0.88 0.45, 0.92 0.88, 0.9 0.92, 0.5 1",
        "pear": "0.7 0, 1.05 0.2, 0.95 0.45, 0.6 0.8, 0.48 1",
    }[p.body]
    outer = curve(points(text)) * (r, h)
    b.lathe([(0, 0), *outer, (0, h)], n=28)

    def at(y: float) -> float:
        return float(np.interp(y, outer[:, 1], outer[:, 0])) - 0.03

    low = 0.3 * h
    start = at(low)
    if p.spout == "curved":
        mid = start + 0.62 * p.reach
        bends = [(start, low), (mid, 0.5 * h), (mid + 0.1 * p.reach, 0.8 * h), (start + p.reach, h)]
    else:
        bends = [(start, low), (start + p.reach, 0.95 * h)]
    path = curve(bends, 5)
    b.tube(lift(path), np.linspace(0.17, 0.075, len(path)), n=12)
    if p.handle == "top":
        grip = arc((at(0.78 * h), 0.22 * h + 0.42), 0, 180, 14, (0, 0.78 * h))
        b.tube(lift(grip), 0.05)
    else:
        boxy = p.handle == "square"
        ear(b, (at(0.22 * h), 0.22 * h), (at(0.85 * h), 0.85 * h), 0.36, 0.055, boxy, side=-1)
    b.dome((0.54 * r, 0.18, 0.54 * r), (0, h - 0.01, 0), "second")
    b.ball(0.085, (0, h + 0.22, 0), "second")
    for turn in (30, 150, 270) if p.feet else ():
        x, z = 0.42 * np.cos(np.radians(turn)), 0.42 * np.sin(np.radians(turn))
        b.cyl((x, -0.16, z), (x, 0.12, z), 0.05, 0.09, n=8)


def _grip(b: Builder, length: float, style: str, hole: bool) -> None:
    """Handle of a spoon or fork, downwards from the origin, in the second colour."""
    y = np.linspace(0.06, -length, 12)
    z = 0.05 * np.sin(np.pi * np.linspace(0, 1, 12)) * length
    if style == "round":
        b.tube(np.column_stack([0 * y, y, z]), 0.055, "second", 10)
        b.ball((0.085, 0.1, 0.085), (0, -length, 0), "second", n=12)
    else:
        width = np.interp(np.linspace(0, 1, 12), [0, 0.3, 0.9, 1], [0.06, 0.055, 0.13, 0.08])
        b.tube(np.column_stack([0 * y, y, z]), width, "second", 10, flatten=(0.4, 1))
    if hole:
        b.ring(0.1, 0.03, (0, -length - 0.1, 0), "second", "z", 16)


@shape(
    "spoon",
    Num("length", 1.0, 2.4, "short", "long"),
    Num("width", 0.26, 0.46, "narrow", "wide"),
    Num("depth", 0.1, 0.36, "shallow", "deep"),
    Choice("grip", {"flat": "flat-handled", "round": "round-handled"}),
    Num("taper", 0.0, 0.35),
    Flag("ring", 0.25, "a hanging ring"),
    colors=("silver", "gold", "brown"),
    typical=0.5,
    materials=TOOL,
    second="a handle",
)
def spoon(p: Values, b: Builder) -> None:
    """Hollow oval on a handle, standing with its hollow to the front."""

    def narrow(v: F64) -> F64:
        out = v.copy()
        out[:, 0] *= 1 - p.taper * v[:, 1] / 0.45
        return out

    part = lathe(hollow(arc(1, -85, 0, 8, (0, 1)), 0.1, 0.12), 24)
    part = part.moved(rot=rotation(x=90), scale=(p.width, p.depth, 0.45))
    b.add(warped(part, narrow).moved((0, 0.4, 0.04 - p.depth)))
    with b.group(at=(0, 0, -0.25 * p.depth)):
        _grip(b, p.length, p.grip, p.ring)


@shape(
    "fork",
    Count("tines", 2, 5, "tine", "tines"),
    Num("length", 1.0, 2.4, "short", "long"),
    Num("width", 0.3, 0.62, "narrow", "wide"),
    Num("tine", 0.4, 0.9, "short-tined", "long-tined"),
    Choice("head", {"round": "", "angular": ""}),
    Choice("grip", {"flat": "flat-handled", "round": "round-handled"}),
    Num("bend", 0.02, 0.16),
    colors=("silver", "gold", "brown"),
    typical=0.5,
    materials=TOOL,
    second="a handle",
)
def fork(p: Values, b: Builder) -> None:
    """Row of tines on a flat head and a handle, standing."""
    w = p.width / 2
    if p.head == "round":
        turn = np.radians(np.linspace(180, 360, 13))
        head = np.column_stack([w * np.cos(turn), 0.3 + 0.34 * np.sin(turn)])
        outline = np.concatenate([head, [(w, 0.42), (-w, 0.42)]])
    else:
        outline = np.array(
            [(-0.06, -0.05), (0.06, -0.05), (w, 0.25), (w, 0.42), (-w, 0.42), (-w, 0.25)]
        )
    b.extrude(outline, 0.09)
    thick = min(0.3 * p.width / p.tines, 0.06)
    t = np.linspace(0, 1, 9)
    for x in np.linspace(-w + thick, w - thick, p.tines):
        path = np.column_stack([0 * t + x, 0.38 + p.tine * t, -p.bend * np.sin(np.pi * t)])
        b.tube(path, np.interp(t, [0, 0.75, 1], [thick, thick, 0.35 * thick]), n=8)
    _grip(b, p.length, p.grip, False)


@shape(
    "knife",
    Choice("blade", {"table": "blunt", "chef": "pointed", "cleaver": "square-ended"}),
    Num("length", 1.0, 2.0, "short-bladed", "long-bladed"),
    Num("width", 0.22, 0.46, "narrow", "broad"),
    Choice("grip", {"straight": "", "round": "", "curved": ""}),
    Num("handle", 0.8, 1.2),
    Flag("serrated", 0.25, "a serrated edge"),
    Flag("rivets", 0.3, "rivets"),
    colors=("silver", "gray"),
    typical=0.6,
    materials={"metal": 0.6, "plain": 0.4},
    second="a handle",
    second_colors=("brown", "black", "red", "blue", "green", "white", "orange", "gray"),
)
def knife(p: Values, b: Builder) -> None:
    """Flat blade with its edge to the left, above a handle."""
    length, w = p.length, p.width / 2 * (1.8 if p.blade == "cleaver" else 1.0)
    tip, start = {
        "table": (arc(w, 0, 180, 8, (0, length - w)), length - w),
        "chef": (points("1 0.62, 0.7 1, -0.25 0.82, -1 0.5") * (w, length), 0.5 * length),
        "cleaver": (np.array([(w, length), (-w, length)]), length),
    }[p.blade]
    edge = [(-w, 0.0)]
    if p.serrated:
        y = np.linspace(start - 0.04, 0.06, 22)
        edge = [(-w + (0.09 * (i % 2) * min(1, 4 * w)), float(v)) for i, v in enumerate(y)] + edge
    b.extrude([(w, 0), *tip, *edge], 0.045)
    h = p.handle
    bolster = w - 0.1 if p.blade != "table" else 0.0
    with b.group(at=(bolster, 0, 0)):
        b.box((0.2, 0.1, 0.13), (0, -0.01, 0))
        if p.grip == "round":
            b.cyl((0, -h, 0), (0, 0, 0), 0.12, 0.085, "second")
            b.ball(0.12, (0, -h, 0), "second", n=12)
        elif p.grip == "straight":
            b.soft((0.22, h + 0.04, 0.14), (0, -h / 2 + 0.02, 0), "second", roundness=0.3)
        else:
            back = curve(points("0.09 0, 0.1 -0.5, 0.08 -0.85, -0.02 -1"))
            front = curve(points("-0.16 -0.97, -0.1 -0.8, -0.15 -0.45, -0.08 0"))
            contour = np.concatenate([back, front])[::-1] * (1, h)
            b.extrude(contour, 0.14, color="second")
        for share in (0.25, 0.5, 0.75) if p.rivets else ():
            b.cyl((0, -share * h, -0.125), (0, -share * h, 0.125), 0.035, color="silver", n=10)


@shape(
    "frying pan",
    Num("handle", 0.7, 1.7, "short-handled", "long-handled"),
    Num("depth", 0.16, 0.42, "shallow", "deep"),
    Choice("outline", {"round": "round", "square": "square"}),
    Num("flare", 0.75, 0.98),
    Num("grip", 0.05, 0.1),
    Num("rise", 0.02, 0.4),
    Flag("helper", 0.25, "a helper handle"),
    Flag("ring", 0.35, "a hanging ring"),
    Flag("egg", 0.25, "a fried egg"),
    synonyms=("pan", "skillet"),
    colors=("black", "gray", "silver"),
    typical=0.6,
    materials={"plain": 0.7, "metal": 0.3},
    second="a handle",
)
def frying_pan(p: Values, b: Builder) -> None:
    """Low open pan with one long handle."""
    r, d = 0.8, p.depth
    part = lathe(hollow([(p.flare * r, 0), (r, d)], 0.05, 0.05), 32)
    b.add(square(part, 5) if p.outline == "square" else part)
    x = np.linspace(r - 0.05, r + p.handle, 10)
    t = np.linspace(0, 1, 10)
    y = d - 0.05 + p.rise * np.sin(t * np.pi / 2)
    wide = p.grip * np.interp(t, [0, 0.3, 0.9, 1], [0.8, 0.9, 1.3, 0.9])
    b.tube(lift(np.column_stack([x, y])), wide, "second", 10, flatten=(0.6, 1))
    if p.ring:
        b.ring(0.1, 0.03, (r + p.handle + 0.1, y[-1], 0), "second")
    if p.helper:
        with b.group(at=(0.04 - r, d - 0.06, 0)):
            b.tube(lift(arc((0.24, 0.24), 90, 270, 10), "xz"), 0.045, "second")
    if p.egg:
        _egg(b, (0.05, 0.05, 0.02), 0.48)
