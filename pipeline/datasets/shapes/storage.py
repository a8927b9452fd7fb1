"""Tables, beds, shelves and lamps. Lengths are about metres; floor at y = 0, front at +z."""

from __future__ import annotations

import numpy as np

from pipeline.datasets.shapes.builder import Builder
from pipeline.datasets.shapes.joinery import LEG_STYLES, SIDES, leg, legs, shade
from pipeline.datasets.shapes.primitives import arc, lift, rotation
from pipeline.datasets.shapes.schema import (
    FURNITURE,
    Choice,
    Count,
    Flag,
    Num,
    Values,
    shape,
)


@shape(
    "table",
    Num("size", 0.75, 1.9, "small", "large"),
    Num("aspect", 0.5, 0.85),
    Num("height", 0.42, 0.8, "low", "tall"),
    Num("thick", 0.025, 0.09, "thin-topped", "thick-topped"),
    Choice("top", {"flat": "", "round": "round", "oval": "oval", "octagonal": "octagonal"}),
    Choice("base", {"legs": "", "splayed": "", "pedestal": "pedestal", "trestle": "trestle"}),
    Choice("leg", LEG_STYLES),
    Num("leg_width", 0.04, 0.1),
    materials=FURNITURE,
    second="a base",
)
def table(p: Values, b: Builder) -> None:
    """Flat top on open supports."""
    h, t = p.height, p.thick
    w, d = p.size, p.size * (p.aspect if p.top in ("flat", "oval") else 1)
    if p.top == "flat":
        b.box((w, t, d), (0, h - t / 2, 0))
    else:
        n, start = (8, 22.5) if p.top == "octagonal" else (28, 0)
        edge = arc((w / 2, d / 2), start, start + 360, n)[:-1]
        b.extrude(edge, t, (0, h - t / 2, 0), axis="y", smooth=n > 8)
    inset = 0.92 if p.top == "flat" else 0.68
    under, thick = (w * inset, h - t, d * inset), p.leg_width
    if p.base == "pedestal":
        foot, r = 0.3 * d, thick * 0.6
        rows = [(foot, 0), (foot, 0.03), (r, 0.14), (r * 1.3, h * 0.5), (r, h * 0.8)]
        b.lathe([(0, 0), *rows, (2.5 * r, h - t), (0, h - t)], color="second")
    elif p.base == "trestle":
        for x in (-under[0] * 0.4, under[0] * 0.4):
            b.box((thick, 0.05, under[2]), (x, 0.025, 0), "second")
            b.box((thick, h - t, under[2] * 0.35), (x, (h - t) / 2, 0), "second")
            b.box((thick, 0.05, under[2] * 0.9), (x, h - t - 0.025, 0), "second")
        b.box((under[0] * 0.8, 0.07, 0.04), (0, h * 0.4, 0), "second")
    else:
        legs(b, under, thick, p.leg, 0.09 if p.base == "splayed" else 0, "second")
        for s in SIDES:
            b.box((under[0] - thick, 0.06, 0.02), (0, h - t - 0.03, s * (under[2] - thick) / 2))
            b.box((0.02, 0.06, under[2] - thick), (s * (under[0] - thick) / 2, h - t - 0.03, 0))


@shape(
    "desk",
    Num("width", 1.05, 1.75, "narrow", "wide"),
    Num("depth", 0.5, 0.75),
    Num("height", 0.66, 0.84, "low", "tall"),
    Count("drawers", 2, 6, "drawer", "drawers"),
    Choice("sides", {"left": "", "right": "", "both": "symmetrical"}),
    Choice("leg", LEG_STYLES),
    Flag("hutch", 0.35, "a hutch"),
    Flag("screen", 0.5, "a back panel"),
    materials=FURNITURE,
    second="drawers",
)
def desk(p: Values, b: Builder) -> None:
    """Table top over blocks of drawers with room for the knees."""
    w, d, h, wide = p.width, p.depth, p.height, 0.36
    b.box((w, 0.04, d), (0, h - 0.02, 0))
    first = (p.drawers + 1) // 2 if p.sides == "both" else p.drawers
    for s, number in ((-1 if p.sides == "left" else 1, first), (0, p.drawers - first)):
        if number:
            x = (s or -1) * (w / 2 - wide / 2 - 0.02)
            b.box((wide, h - 0.1, d - 0.06), (x, (h + 0.02) / 2, -0.01))
            b.box((wide - 0.06, 0.08, d - 0.12), (x, 0.04, -0.01))
            tall = (h - 0.12) / number
            for i in range(number):
                y = 0.07 + (i + 0.5) * tall
                b.box((wide - 0.03, tall - 0.025, 0.04), (x, y, d / 2 - 0.04), "second")
                b.cyl((x - 0.06, y, d / 2), (x + 0.06, y, d / 2), 0.022, color="silver", n=8)
    if p.sides != "both":
        x = (w / 2 - 0.05) * (1 if p.sides == "left" else -1)
        for z in (d / 2 - 0.05, 0.05 - d / 2):
            leg(b, (x, 0, z), (x, h - 0.02, z), 0.06, p.leg)
    if p.screen:
        b.box((w - 0.08, h * 0.55, 0.025), (0, h * 0.7, 0.05 - d / 2))
    if p.hutch:
        for x in np.linspace(0.015 - w / 2, w / 2 - 0.015, 4):
            b.box((0.03, 0.42, 0.2), (x, h + 0.21, 0.1 - d / 2))
        b.box((w, 0.03, 0.22), (0, h + 0.42, 0.1 - d / 2))
        b.box((w, 0.42, 0.02), (0, h + 0.21, 0.01 - d / 2))


@shape(
    "bed",
    Num("width", 0.85, 1.9, "narrow", "wide"),
    Num("height", 0.3, 0.58, "low", "high"),
    Num("head", 0.3, 0.85),
    Num("blanket", 0.45, 0.75),
    Choice("board", {"solid": "", "slatted": "slatted", "arched": ""}),
    Choice("top", {"open": "", "plain": "", "posts": "four-poster", "bunk": "bunk"}),
    Flag("foot", 0.5, "a footboard"),
    Num("leg", 0.06, 0.12),
    materials=FURNITURE,
    second="a blanket",
)
def bed(p: Values, b: Builder) -> None:
    """Mattress on a frame, its head towards -z."""
    w, long, h = p.width, 2.0, p.height
    for level in (h, h + 0.95) if p.top == "bunk" else (h,):
        b.box((w + 0.06, 0.14, long + 0.06), (0, level - 0.16, 0))
        b.soft((w, 0.24, long), (0, level - 0.04, 0), "white", roundness=0.15)
        size = (w + 0.05, 0.25, long * p.blanket)
        b.soft(size, (0, level - 0.02, (long - size[2]) / 2 + 0.02), "second", roundness=0.15)
        number = 1 if w < 1.2 else 2
        for i in range(number):
            x = (i - (number - 1) / 2) * w / number
            at = (x, level + 0.1, 0.24 - long / 2)
            b.soft((w / number * 0.85, 0.16, 0.4), at, "white", roundness=0.6)
    tall = {"posts": 1.9, "bunk": h + 1.35}.get(p.top, 0)
    legs(b, (w + 0.1, h - 0.1, long + 0.1), p.leg, "square")
    for s, up in ((-1, p.head), (1, p.head * 0.5 if p.foot else 0)):
        z = s * (long / 2 + 0.05)
        if p.board == "slatted" and up:
            b.box((w + 0.1, 0.08, 0.05), (0, h + up, z))
            for x in np.linspace(-w / 2, w / 2, 2 * int(2 + 2 * w) + 1):
                b.box((0.04, up + 0.2, 0.03), (x, h + up / 2 - 0.1, z))
        elif up:
            rise = arc((w / 2 + 0.05, 0.3 * up), 0, 180, 12, (0, up * 0.75))
            flat = [(w / 2 + 0.05, up), (-w / 2 - 0.05, up)]
            edge = [(-w / 2 - 0.05, -0.2), (w / 2 + 0.05, -0.2)]
            b.extrude([*edge, *(rise if p.board == "arched" else flat)], 0.05, (0, h, z))
        for x in (-w / 2 - 0.03, w / 2 + 0.03) if tall else ():
            b.box((0.07, tall, 0.07), (x, tall / 2, z))
        if tall:
            b.box((w + 0.13, 0.06, 0.06), (0, tall - 0.03, z))
            x = s * (w / 2 + 0.03)
            b.box((0.05, 0.06, long + 0.1), (x, tall - (0.03 if p.top == "posts" else 0.2), 0))
    if p.top == "bunk":
        for s in SIDES:
            b.box((0.04, h + 1.2, 0.04), (w / 2 + 0.08, (h + 1.2) / 2, 0.55 + s * 0.18))
        for y in np.arange(0.2, h + 1.1, 0.26):
            b.box((0.03, 0.03, 0.36), (w / 2 + 0.08, y, 0.55))


@shape(
    "bookshelf",
    Num("width", 0.5, 1.3, "narrow", "wide"),
    Num("height", 0.8, 2.1, "short", "tall"),
    Num("depth", 0.24, 0.4),
    Count("rows", 2, 6, "shelf", "shelves"),
    Num("full", 0.2, 0.95, "half-empty", "full"),
    Choice("case", {"boards": "", "posts": "open-sided"}),
    Flag("back", 0.5, "a back panel"),
    synonyms=("bookcase",),
    materials=FURNITURE,
    second="shelves",
)
def bookshelf(p: Values, b: Builder) -> None:
    """Open rows of boards with books on them."""
    w, h, d, rng = p.width, p.height, p.depth, p.rng()
    for s in SIDES:
        if p.case == "boards":
            b.box((0.035, h, d), (s * w / 2, h / 2, 0))
        else:
            for z in (d / 2 - 0.02, 0.02 - d / 2):
                b.box((0.035, h, 0.035), (s * w / 2, h / 2, z))
    if p.case == "boards":
        b.box((w, 0.035, d), (0, h - 0.02, 0))
    if p.back:
        b.box((w, h - 0.06, 0.015), (0, h / 2 + 0.02, 0.015 - d / 2))
    pitch = (h - (0.1 if p.case == "boards" else 0.25)) / p.rows
    for i in range(p.rows):
        y = 0.07 + i * pitch
        b.box((w, 0.03, d - 0.01), (0, y, 0), "second")
        x, stop = 0.02 - w / 2, (p.full - 0.5) * w
        while x < stop:
            thick = rng.uniform(0.05, 0.1)
            tall, deep = pitch * rng.uniform(0.55, 0.85), d * rng.uniform(0.6, 0.8)
            color = str(rng.choice(["red", "blue", "green", "beige"]))
            b.box((thick * 0.92, tall, deep), (x + thick / 2, y + tall / 2, 0.02), color)
            x += thick


@shape(
    "cabinet",
    Num("width", 0.6, 1.5, "narrow", "wide"),
    Num("height", 0.7, 1.9, "short", "tall"),
    Num("depth", 0.35, 0.65, "shallow", "deep"),
    Count("doors", 1, 3, "door", "doors"),
    Choice("front", {"flat": "", "framed": "", "louvred": ""}),
    Choice("handle", {"knob": "", "bar": ""}),
    Flag("legs", 0.5, "legs"),
    Flag("drawers", 0.45, "drawers"),
    Flag("cornice", 0.35, "a cornice"),
    synonyms=("cupboard",),
    materials=FURNITURE,
    second="doors",
)
def cabinet(p: Values, b: Builder) -> None:
    """Closed box with doors."""
    w, h, d, low = p.width, p.height, p.depth, 0.17 if p.legs else 0.07
    b.box((w, h - low, d), (0, (h + low) / 2, 0))
    if p.legs:
        legs(b, (w, low + 0.01, d), 0.06, "tapered")
    else:
        b.box((w - 0.06, low, d - 0.06), (0, low / 2, 0))
    if p.cornice:
        b.box((w + 0.12, 0.06, d + 0.12), (0, h, 0))
        b.box((w + 0.06, 0.05, d + 0.06), (0, h - 0.05, 0))
    top, face, pitch = h - (0.09 if p.cornice else 0.03), d / 2 + 0.015, (w - 0.04) / p.doors
    drawer = 0.2 * (top - low) if p.drawers else 0
    door, y = top - low - drawer - 0.03, (top - drawer + low) / 2
    for i in range(p.doors):
        x, size = (i - (p.doors - 1) / 2) * pitch, pitch - 0.03
        b.box((size, door, 0.04), (x, y, face), "second")
        if p.front == "framed":
            b.box((size * 0.66, door * 0.8, 0.03), (x, y, face + 0.025))
        for k in range(9) if p.front == "louvred" else ():
            at = (x, y + (k - 4) * door * 0.095, face + 0.02)
            b.box((size * 0.74, door * 0.07, 0.02), at, "second", rotation(x=30))
        s = 1 if i % 2 == 0 else -1
        grip = np.array([x + s * (size / 2 - 0.045), y + 0.05, face + 0.05])
        b.ball(0.032, grip, "gold", n=8)
        if p.handle == "bar":
            half = np.array([0, 0.09, 0])
            b.cyl(grip - half, grip + half, 0.016, color="gold", n=8)
        if p.drawers:
            up = top - drawer / 2
            b.box((size, drawer - 0.03, 0.04), (x, up, face))
            wide = 0.032 if p.handle == "knob" else 0.09
            b.ball((wide, 0.03, 0.03), (x, up, face + 0.03), "gold")


@shape(
    "floor lamp",
    Num("height", 1.25, 1.9, "short", "tall"),
    Num("radius", 0.16, 0.3, "narrow", "wide"),
    Choice("shade", {"cone": "", "drum": "", "dome": "", "globe": "globe"}),
    Choice("stand", {"straight": "straight", "arc": "arched", "tripod": "tripod"}),
    Choice("foot", {"disc": "", "block": ""}),
    Num("pole", 0.014, 0.03),
    synonyms=("standing lamp",),
    second="a lampshade",
)
def floor_lamp(p: Values, b: Builder) -> None:
    """Small shade high on a thin stand."""
    h, r, pole = p.height, p.radius, p.pole
    end, top = np.array([0, h, 0.0]), h * 0.97
    if p.stand == "tripod":
        for turn in (30, 150, 270):
            foot = h * 0.28 * np.array([np.cos(np.radians(turn)), 0, np.sin(np.radians(turn))])
            b.cyl(foot, (0, h * 0.98, 0), pole * 0.8, n=8)
        b.ball(2.5 * pole, (0, h * 0.95, 0), n=8)
        b.ring(h * 0.14, pole * 0.5, (0, h * 0.48, 0))
    else:
        wide = 0.16 + 0.25 * r
        if p.foot == "disc":
            b.lathe([(0, 0), (wide, 0), (wide, 0.02), (2 * pole, 0.05), (0, 0.05)])
        else:
            b.box((1.7 * wide, 0.05, 1.7 * wide), (0, 0.025, 0))
        if p.stand == "arc":
            reach = 0.3 * h
            bow = arc((reach, 0.26 * h), 180, 20, 12, (reach, top * 0.78))
            b.tube(lift(np.concatenate([[(0, 0.03)], bow])), pole)
            end[:2] = bow[-1]
        else:
            b.cyl((0, 0.03, 0), (0, top, 0), pole)
            b.ball(1.8 * pole, (0, h * 0.5, 0), n=8)
    drop = r * {"cone": 1.15, "drum": 1.3, "dome": 0.8, "globe": 1.8}[p.shade] - 0.01
    with b.group(end - (0, drop if p.stand == "arc" else 0.05, 0)):
        shade(b, p.shade, r)
    if p.stand != "arc":
        b.cyl((0, h - 0.06, 0), (0, h + drop * 0.93, 0), pole * 0.7, n=8)


@shape(
    "table lamp",
    Num("height", 0.5, 0.95, "short", "tall"),
    Num("radius", 0.24, 0.42, "narrow", "wide"),
    Num("thick", 0.13, 0.3),
    Choice("shade", {"cone": "", "drum": "", "dome": ""}),
    Choice("body", {"vase": "", "ball": "", "block": "", "column": "", "jointed": "jointed"}),
    synonyms=("desk lamp",),
    second="a lampshade",
)
def table_lamp(p: Values, b: Builder) -> None:
    """Large shade on a short, thick body, or a head on jointed arms."""
    h, t, r = p.height, p.thick, p.radius
    if p.body == "jointed":
        b.cyl((0, 0, -0.1), (0, 0.06, -0.1), t * 1.2, n=20)
        knee, wrist = np.array([0, h * 0.75, -0.4]), np.array([0, h * 1.25, 0.15])
        for x in (-0.025, 0.025):
            b.tube(np.stack([(0, 0.03, -0.1), knee, wrist]) + (x, 0, 0), 0.02)
        for at in (knee, wrist):
            b.ball(0.06, at, n=8)
        turn = rotation(x=-30)
        with b.group(wrist - turn @ np.array([0, r * 0.72, 0]), turn, 0.68):
            shade(b, p.shade, r)
        return
    if p.body == "vase":
        rows = [(0.5, 0), (0.55, 0.06), (0.8, 0.25), (1, 0.5), (0.8, 0.75), (0.3, 0.95), (0, 1)]
        b.lathe([(0, 0), *(np.array(rows) * (t, h))])
    elif p.body == "ball":
        b.cyl((0, 0, 0), (0, 0.06, 0), t * 0.9, n=20)
        b.ball((t, h * 0.44, t), (0, 0.04 + h * 0.44, 0))
    elif p.body == "block":
        b.box((1.5 * t, h * 0.9, 1.5 * t), (0, h * 0.45, 0))
    else:
        b.cyl((0, 0, 0), (0, 0.07, 0), t * 1.1, t, n=20)
        b.lathe([(0, 0), (t * 0.5, 0), (t * 0.32, h * 0.9), (t * 0.5, h * 0.95), (0, h)])
    b.cyl((0, h * 0.85, 0), (0, h + 0.5 * r, 0), 0.03, n=8)
    with b.group((0, h * 0.98, 0)):
        shade(b, p.shade, r)
