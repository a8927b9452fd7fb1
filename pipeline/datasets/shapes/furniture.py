"""Seats. Lengths are about metres; floor at y = 0, front at +z."""

from __future__ import annotations

import numpy as np

from pipeline.datasets.shapes.builder import Builder
from pipeline.datasets.shapes.joinery import LEG_STYLES, SIDES, leg, legs, star
from pipeline.datasets.shapes.primitives import arc, curve, lift, rotation
from pipeline.datasets.shapes.schema import (
    FABRIC,
    FURNITURE,
    Choice,
    Count,
    Flag,
    Num,
    Values,
    shape,
)


@shape(
    "chair",
    Num("seat_height", 0.36, 0.62, "low", "tall"),
    Num("width", 0.36, 0.6, "narrow", "wide"),
    Num("depth", 0.36, 0.5),
    Num("back_height", 0.32, 0.78, "low-backed", "high-backed"),
    Num("lean", 0, 18),
    Choice(
        "back",
        {"solid": "", "slatted": "slatted", "ladder": "ladder-back", "hoop": "round-backed"},
    ),
    Choice("base", {"straight": "", "splayed": "", "sled": "", "star": "swivel"}),
    Choice("leg", LEG_STYLES),
    Choice("seat", {"flat": "", "padded": "padded"}),
    Flag("arms", 0.3, "armrests"),
    materials=FURNITURE,
    second="a seat",
)
def chair(p: Values, b: Builder) -> None:
    """Seat for one on a slim frame with a thin back."""
    w, d, h = p.width, p.depth, p.seat_height
    if p.seat == "padded":
        b.soft((w * 1.04, 0.13, d * 1.04), (0, h, 0), "second", roundness=0.3)
    else:
        b.box((w, 0.045, d), (0, h, 0), "second")
    if p.base == "star":
        star(b, h, 0.62 * max(w, d), 5)
    elif p.base == "sled":
        for x in (-w / 2 + 0.03, w / 2 - 0.03):
            loop = [(x, h, d / 2 - 0.03), (x, 0.02, d / 2), (x, 0.02, -d / 2), (x, h, 0.03 - d / 2)]
            b.tube(loop, 0.02)
        b.box((w - 0.06, 0.03, 0.03), (0, 0.02, -d / 2))
    else:
        legs(b, (w, h, d), 0.05, p.leg, 0.07 if p.base == "splayed" else 0)
    number, tall, x = int(p.rng().integers(3, 6)), p.back_height, w / 2 - 0.02
    with b.group((0, h, 0.02 - d / 2), rotation(x=-p.lean)):
        if p.back == "solid":
            b.box((w, tall, 0.035), (0, tall / 2, 0))
        elif p.back == "hoop":
            b.tube(lift(arc((x, tall), 0, 180, 14)), 0.022)
            for s in np.linspace(-x, x, number + 2)[1:-1]:
                b.cyl((s, 0, 0), (s, tall * (1 - (s / x) ** 2) ** 0.5, 0), 0.011, n=6)
        else:
            for s in SIDES:
                b.box((0.04, tall, 0.04), (s * x, tall / 2, 0))
            b.box((2 * x, 0.07, 0.03), (0, tall - 0.035, 0))
            if p.back == "ladder":
                for y in np.linspace(0, tall, number + 1)[1:-1]:
                    b.box((2 * x, 0.05, 0.02), (0, y, 0))
            else:
                for s in np.linspace(-x, x, number + 2)[1:-1]:
                    b.box((0.03, tall - 0.06, 0.02), (s, tall / 2 - 0.02, 0))
    if p.arms:
        reach = d * 0.8 + 0.2 * np.sin(np.radians(p.lean))
        for s in SIDES:
            b.box((0.05, 0.03, reach), (s * (w / 2), h + 0.22, 0.4 * d - reach / 2))
            b.box((0.035, 0.24, 0.035), (s * (w / 2 - 0.01), h + 0.1, 0.3 * d))


@shape(
    "stool",
    Num("height", 0.32, 0.85, "low", "tall"),
    Num("width", 0.3, 0.46, "narrow", "wide"),
    Num("thick", 0.03, 0.1, "thin-seated", "thick-seated"),
    Num("splay", 0.0, 0.12),
    Count("legs", 3, 5, "leg", "legs"),
    Choice("leg", LEG_STYLES),
    Choice("seat", {"round": "round", "square": "square", "saddle": "saddle-seated"}),
    Flag("ring", 0.5, "a footrest"),
    materials=FURNITURE,
    second="a seat",
)
def stool(p: Values, b: Builder) -> None:
    """Backless seat for one."""
    r, h, t = p.width / 2, p.height, p.thick
    if p.seat == "round":
        rows = [(0, -t), (r * 0.92, -t), (r, -0.7 * t), (r, -0.3 * t), (r * 0.92, 0), (0, 0)]
        b.lathe(rows, (0, h, 0), "second", n=24)
    elif p.seat == "square":
        b.box((2 * r, t, 2 * r), (0, h - t / 2, 0), "second")
    else:
        x = np.linspace(-1.15 * r, 1.15 * r, 11)
        y = h - t + 0.35 * x**2 / r
        edge = np.concatenate([np.stack([x, y], 1), np.stack([x, y + t], 1)[::-1]])
        b.extrude(edge, 1.5 * r, color="second", smooth=False)
    for i in range(p.legs):
        turn = 2 * np.pi * (i + 0.5) / p.legs
        out = np.array([np.sin(turn), 0, np.cos(turn)])
        foot = out * (0.8 * r + p.splay)
        leg(b, foot, out * 0.68 * r + (0, h - 0.6 * t, 0), 0.045, p.leg)
        if p.ring:
            b.cyl((0, 0.35 * h, 0), 0.35 * (out * 0.68 * r - foot) + foot + (0, 0.35 * h, 0), 0.012)
    if p.ring:
        b.ring(0.35 * 0.68 * r + 0.65 * (0.8 * r + p.splay), 0.016, (0, 0.35 * h, 0))


def _upholstery(
    b: Builder, p: Values, seats: int, pitch: float, styles: tuple[float, float]
) -> tuple[float, float, float]:
    """Body, arms, back and seat cushions; ``styles`` are the roundness of arms and cushions.

    Returns the width between the arms, the seat's height and the depth.
    """
    inner, d, low, arm = seats * pitch, p.depth, p.feet + 0.17, p.arm
    soft, cushion = styles
    legs(b, (inner, p.feet + 0.06, d * 0.9), 0.06, "tapered", color="black")
    b.box((inner + arm * 0.5, 0.18, d), (0, p.feet + 0.09, 0))
    b.soft((inner + arm, p.back, 0.22), (0, low + p.back / 2 - 0.06, 0.11 - d / 2), roundness=soft)
    for i in range(seats):
        x = (i - (seats - 1) / 2) * pitch
        size = (pitch * 0.98, 0.19, d - 0.14)
        b.soft(size, (x, low + 0.07, 0.1), "second", roundness=cushion)
    return inner, low + 0.15, d


def _arms(b: Builder, p: Values, inner: float, seat: float, style: str) -> None:
    """Two arms that reach the floor of the body."""
    tall, d = seat + p.arm_height - p.feet, p.depth
    for s in SIDES:
        x = s * (inner + p.arm) / 2
        if style == "rolled":
            b.box((p.arm * 0.8, tall - p.arm * 0.4, d), (x, p.feet + tall / 2 - p.arm * 0.2, 0))
            y = p.feet + tall - p.arm * 0.4
            b.cyl((x, y, -d / 2), (x, y, d / 2 + 0.02), p.arm * 0.62, n=16)
        else:
            roundness = 0.15 if style == "boxy" else 0.5
            b.soft((p.arm, tall, d), (x, p.feet + tall / 2, 0), roundness=roundness)


@shape(
    "armchair",
    Num("seat", 0.48, 0.68, "narrow", "wide"),
    Num("depth", 0.68, 0.92, "shallow", "deep"),
    Num("back", 0.42, 0.85, "low-backed", "high-backed"),
    Num("arm", 0.1, 0.24, "thin-armed", "thick-armed"),
    Num("arm_height", 0.06, 0.26),
    Num("feet", 0.03, 0.2),
    Choice("arms", {"boxy": "boxy", "round": "rounded", "rolled": "roll-armed"}),
    Flag("wings", 0.3, "wings"),
    Flag("pillow", 0.3, "a pillow"),
    materials=FABRIC,
    second="a seat cushion",
)
def armchair(p: Values, b: Builder) -> None:
    """Upholstered seat for one between two thick arms."""
    edges = {"boxy": (0.2, 0.25), "round": (0.55, 0.5), "rolled": (0.35, 0.35)}[p.arms]
    inner, seat, d = _upholstery(b, p, 1, p.seat, edges)
    _arms(b, p, inner, seat, p.arms)
    if p.wings:
        tall = p.back - 0.1
        for s in SIDES:
            at = (s * inner / 2, seat + tall / 2, 0.22 - d / 2)
            b.soft((0.09, tall, 0.34), at, rot=rotation(y=s * -12), roundness=0.5)
    if p.pillow:
        size, at = (0.36, 0.34, 0.16), (0.04, seat + 0.17, 0.3 - d / 2)
        b.soft(size, at, "white", rotation(x=-18, z=12), 0.6)


@shape(
    "sofa",
    Count("seats", 2, 4, "seat cushion", "seat cushions"),
    Num("pitch", 0.52, 0.7),
    Num("depth", 0.75, 1.0, "shallow", "deep"),
    Num("back", 0.36, 0.62, "low-backed", "high-backed"),
    Num("arm", 0.1, 0.26),
    Num("arm_height", 0.04, 0.24),
    Num("feet", 0.03, 0.18),
    Choice("arms", {"boxy": "boxy", "round": "rounded", "rolled": "roll-armed", "none": "armless"}),
    Flag("chaise", 0.25, "a chaise"),
    Flag("pillows", 0.4, "pillows"),
    synonyms=("couch",),
    materials=FABRIC,
    second="seat cushions",
)
def sofa(p: Values, b: Builder) -> None:
    """Upholstered seat for several."""
    inner, seat, d = _upholstery(b, p, p.seats, p.pitch, (0.25, 0.3))
    if p.arms != "none":
        _arms(b, p, inner, seat, p.arms)
    if p.chaise:
        x, long = (p.seats - 1) / 2 * p.pitch, 0.62
        b.box((p.pitch, 0.18, long), (x, p.feet + 0.09, d / 2 + long / 2))
        b.soft((p.pitch * 0.98, 0.19, long + 0.1), (x, seat - 0.08, d / 2 + long / 2), "second")
        for s in SIDES:
            foot = np.array([x + s * (p.pitch / 2 - 0.05), 0, d / 2 + long - 0.05])
            leg(b, foot, foot + np.array([0, p.feet + 0.05, 0]), 0.06, "tapered", "black")
    for s in SIDES if p.pillows else ():
        at = (s * (inner / 2 - 0.2), seat + 0.16, 0.31 - d / 2)
        b.soft((0.38, 0.36, 0.16), at, "white", rotation(x=-20, z=s * 14), 0.6)


@shape(
    "bench",
    Num("length", 0.95, 2.1, "short", "long"),
    Num("depth", 0.32, 0.5),
    Num("height", 0.36, 0.52, "low", "tall"),
    Count("boards", 2, 5),
    Choice("ends", {"legs": "", "panels": "", "crossed": "cross-legged", "iron": "curved-legged"}),
    Flag("back", 0.65, "a backrest"),
    Flag("arms", 0.4, "armrests"),
    materials=FURNITURE,
    second="a seat",
)
def bench(p: Values, b: Builder) -> None:
    """Long seat of boards between two ends."""
    long, d, h = p.length, p.depth, p.height
    pitch, end = d / p.boards, long / 2 - 0.09
    for i in range(p.boards):
        z = (i - (p.boards - 1) / 2) * pitch
        b.box((long, 0.035, pitch * 0.8), (0, h, z), "second")
    b.box((2 * end, 0.05, 0.05), (0, h * 0.45, 0))
    for s in SIDES:
        x = s * end
        b.box((0.06, 0.045, d), (x, h - 0.04, 0))
        if p.ends == "panels":
            b.box((0.06, h - 0.03, d * 0.9), (x, h / 2 - 0.02, 0))
        elif p.ends == "crossed":
            for z in (-d / 2, d / 2):
                leg(b, (x, 0, z), (x, h - 0.03, -z), 0.05, "square")
        elif p.ends == "iron":
            for z in SIDES:
                path = [(d * 0.5, 0.02), (d * 0.34, h * 0.2), (d * 0.22, h * 0.55), (d * 0.42, h)]
                points = lift(curve(path), "zy", x) * (1, 1, z) - (0, 0.02, 0)
                b.tube(points, 0.025)
            b.box((0.05, 0.05, d * 0.46), (x, h * 0.45, 0))
        else:
            for z in SIDES:
                b.box((0.07, h - 0.03, 0.07), (x, h / 2 - 0.02, z * (d / 2 - 0.04)))
            b.box((0.05, 0.05, d - 0.1), (x, h * 0.45, 0))
    if p.back:
        with b.group((0, h - 0.02, 0.03 - d / 2), rotation(x=-12)):
            for s in SIDES:
                b.box((0.06, 0.48, 0.04), (s * end, 0.24, 0))
            for i in range(3):
                b.box((long, 0.1, 0.03), (0, 0.14 + 0.15 * i, 0.03))
    if p.arms:
        for s in SIDES:
            top = [(d / 2 - 0.04, h), (d / 2 - 0.04, h + 0.2), (0.04 - d / 2, h + 0.22)]
            low = [(0.04 - d / 2, h)] if not p.back else [(-0.02 - d / 2, h + 0.22)]
            b.tube(lift(np.array([*top, *low]), "zy", s * end), 0.025)
