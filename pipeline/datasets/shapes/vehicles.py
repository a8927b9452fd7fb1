"""Vehicles: their front looks along +z, wheels turn about x."""

from __future__ import annotations

import numpy as np

from pipeline.datasets.shapes.builder import Builder
from pipeline.datasets.shapes.primitives import F64, arc, lift, rotation
from pipeline.datasets.shapes.schema import Choice, Count, Flag, Num, Values, shape

STEEL = {"plain": 0.65, "metal": 0.15, "striped": 0.12, "checkered": 0.08}


def _axle(b: Builder, z: float, radius: float, width: float, track: float) -> None:
    """Two wheels and the shaft between them."""
    for side in (-1, 1):
        b.wheel(radius, width, (side * track / 2, radius, z))
    b.cyl((-track / 2, radius, z), (track / 2, radius, z), radius * 0.22, color="gray", n=8)


def _arched(top: list[tuple[float, float]], wheels: list[float], low: float, r: float) -> F64:
    """Side view (z, y): ``top`` from the front's bottom over the roof to the rear's bottom.

    The underside at height ``low`` is cut out round the ``wheels`` of radius ``r`` (their z rise).
    """
    angle = float(np.degrees(np.arcsin(min((low - r) / (1.1 * r), 0.9))))
    cuts = [arc(1.1 * r, 180 - angle, angle, 7, at=(z, r)) for z in wheels]
    return np.concatenate([*cuts, np.array(top, np.float64)])


@shape(
    "car",
    Num("length", 3.3, 5.0, "short", "long"),
    Num("width", 1.5, 1.95),
    Num("cabin", 0.42, 0.78, "low", "tall"),
    Num("wheel", 0.27, 0.42, "small-wheeled", "large-wheeled"),
    Choice("body", {"sedan": "", "hatchback": "hatchback", "wagon": "estate", "coupe": "sporty"}),
    Flag("rack", 0.2, "a roof rack"),
    Flag("spoiler", 0.25, "a spoiler"),
    Flag("spare", 0.15, "a spare wheel"),
    synonyms=("automobile",),
    second="a roof",
    materials=STEEL,
)
def car(p: Values, b: Builder) -> None:
    """Low body with arches, glass house and roof on four wheels."""
    half, w, r = p.length / 2, p.width, p.wheel
    low, belt = r * 0.75, 1.4 * r + 0.42  # the belt clears the arches
    hood = {"sedan": 0.30, "hatchback": 0.24, "wagon": 0.27, "coupe": 0.36}[p.body] * p.length
    trunk = {"sedan": 0.20, "hatchback": 0.02, "wagon": 0.01, "coupe": 0.10}[p.body] * p.length
    front, rear = half - 0.19 * p.length, -half + 0.19 * p.length
    nose = belt - (0.18 if p.body == "coupe" else 0.14)
    side = [(half - 0.06, low), (half, low + 0.2), (half - 0.06, nose), (half - hood, belt)]
    side += [(-half + trunk, belt), (-half + 0.04, belt - 0.06), (-half, low + 0.2)]
    b.extrude(_arched([*side, (-half + 0.05, low)], [rear, front], low, r), w, axis="x")
    roof = belt + p.cabin
    slope = {"sedan": 0.45, "hatchback": 0.35, "wagon": 0.12, "coupe": 0.55}[p.body]
    start, stop = half - hood, -half + trunk + 0.03
    glass = [
        (start, belt),
        (start - 0.55 * p.cabin - 0.2, roof),
        (stop + slope, roof),
        (stop, belt),
    ]
    b.extrude(glass, w * 0.86, axis="x", color="black")
    reach = glass[1][0] - glass[2][0] + 0.12
    middle = (glass[1][0] + glass[2][0]) / 2
    b.soft((w * 0.9, 0.14, reach), (0, roof, middle), "second", roundness=0.25)
    for x in (-w * 0.432, w * 0.432):
        b.box((0.03, p.cabin, 0.12), (x, belt + p.cabin / 2, middle - 0.05))
        b.box((0.1, 0.14, 0.08), (x * 1.22, belt + 0.1, start - 0.25))
        b.cyl((x * 0.8, nose - 0.12, half - 0.1), (x * 0.8, nose - 0.12, half), 0.1, color="white")
        b.box((0.26, 0.12, 0.06), (x * 0.85, belt - 0.16, -half + 0.02), "red")
        if p.rack:
            b.box((0.05, 0.12, reach * 0.8), (x * 0.85, roof + 0.1, middle), "gray")
    for z in (half - 0.02, -half + 0.02):
        b.box((w * 0.96, 0.14, 0.14), (0, low + 0.15, z), "gray")
    for z in np.linspace(-0.3, 0.3, 3) * reach if p.rack else ():
        b.box((w * 0.8, 0.05, 0.06), (0, roof + 0.17, middle + z), "gray")
    if p.spoiler:
        for x in (-w * 0.35, w * 0.35):
            b.box((0.06, 0.3, 0.1), (x, belt + 0.12, -half + 0.12))
        b.box((w * 0.95, 0.05, 0.3), (0, belt + 0.28, -half + 0.05))
    if p.spare:
        b.cyl((0, belt - 0.2, -half - 0.14), (0, belt - 0.2, -half + 0.05), r * 0.85, color="black")
    for z in (front, rear):
        _axle(b, z, r, 0.2, w - 0.16)


@shape(
    "truck",
    Num("bed", 2.6, 5.5, "short", "long"),
    Num("load", 1.0, 2.0),
    Num("cab", 1.5, 2.1, "low", "tall"),
    Count("wheels", 4, 8, "wheel", "wheels", step=2),
    Choice("cargo", {"box": "box", "flat": "flatbed", "tank": "tank", "dump": "dump"}),
    Choice("nose", {"flat": "flat-nosed", "long": "long-nosed"}),
    Flag("pipes", 0.35, "exhaust pipes"),
    Flag("ladder", 0.2, "a ladder"),
    synonyms=("lorry",),
    second="a cab",
    materials=STEEL,
)
def truck(p: Values, b: Builder) -> None:
    """Cab before a gap and a cargo bed, on a frame with two to four axles."""
    w, r, deck = 1.9, 0.42, 0.95
    front = p.bed / 2 + 0.25  # back of the cab
    depth = 1.5
    cab_low = 0.55
    b.box((w * 0.5, 0.34, p.bed + depth + 0.2), (0, deck - 0.1, 0.8), "gray")
    side = [(front, cab_low), (front + depth, cab_low), (front + depth, cab_low + p.cab * 0.5)]
    side += [(front + depth * 0.82, cab_low + p.cab), (front, cab_low + p.cab)]
    b.extrude(side, w * 0.95, axis="x", color="second")
    tip = front + depth
    slant = float(np.degrees(np.arctan2(depth * 0.18, p.cab * 0.5)))
    at = (0, cab_low + p.cab * 0.74, front + depth * 0.91)
    b.box((w * 0.8, p.cab * 0.4, 0.06), at, "black", rotation(x=-slant))
    for x in (-w * 0.48, w * 0.48):
        b.box((0.05, p.cab * 0.3, depth * 0.45), (x, at[1], front + depth * 0.5), "black")
        b.box((0.16, 0.4, 0.12), (x * 1.05, at[1], tip - 0.2), "black")
    if p.nose == "long":
        b.soft((w * 0.75, p.cab * 0.5, 1.1), (0, cab_low + p.cab * 0.26, tip + 0.4), "second")
        tip += 0.9
    b.box((w, 0.2, 0.16), (0, cab_low, tip), "silver")
    for x in (-0.55, 0.55):
        b.cyl((x, cab_low + 0.3, tip - 0.3), (x, cab_low + 0.3, tip + 0.05), 0.13, color="yellow")
        if p.pipes:
            top = cab_low + p.cab + 0.45
            b.cyl(
                (x * 1.5, deck - 0.1, front - 0.1),
                (x * 1.5, top, front - 0.1),
                0.08,
                color="silver",
            )
    bed, low = p.bed, deck + 0.05
    if p.cargo == "box":
        b.box((w, p.load * 1.2, bed), (0, low + p.load * 0.6, 0))
        b.box((w * 0.04, p.load * 1.1, 0.06), (0, low + p.load * 0.6, -bed / 2), "gray")
    elif p.cargo == "tank":
        radius = min(0.5 * p.load + 0.1, w * 0.5)
        caps = [(-1, 0.5), (-0.95, 0.85), (-0.85, 1), (0.85, 1), (0.95, 0.85), (1, 0.5)]
        rows = [(z * bed / 2, 0, low + radius, k * w / 2, k * radius) for z, k in caps]
        b.loft(rows)
        for z in (-bed * 0.22, bed * 0.22):
            b.cyl((0, low + radius * 1.9, z), (0, low + radius * 2 + 0.12, z), 0.22)
    elif p.cargo == "dump":
        tub = [
            (-bed / 2, low),
            (bed / 2, low),
            (bed / 2, low + p.load),
            (-bed / 2 - 0.25, low + p.load * 0.8),
        ]
        for x in (-w / 2, w / 2):
            b.extrude(tub, 0.1, (x, 0, 0), axis="x")
        b.box((w, 0.12, bed), (0, low + 0.05, 0))
        b.box((w, p.load, 0.1), (0, low + p.load / 2, bed / 2))
        b.box((w, p.load * 0.8, 0.1), (0, low + p.load * 0.4, -bed / 2 - 0.1), rot=rotation(x=-14))
    else:
        b.box((w, 0.16, bed), (0, low, 0))
        b.box((w, p.load * 0.45, 0.08), (0, low + p.load * 0.22, bed / 2))
        for x in (-w / 2, w / 2):
            for z in np.linspace(-bed / 2 + 0.1, bed / 2 - 0.1, 5):
                b.box((0.08, p.load * 0.4, 0.08), (x, low + p.load * 0.2, z))
            b.box((0.05, 0.1, bed), (x, low + p.load * 0.38, 0))
    if p.ladder:
        for x in (-0.2, 0.2):
            b.box((0.05, 1.2, 0.05), (x + 0.5, low + 0.1, -bed / 2 - 0.2), "gray")
        for y in np.linspace(-0.4, 0.5, 4):
            b.box((0.4, 0.05, 0.05), (0.5, low + 0.1 + y, -bed / 2 - 0.2), "gray")
        b.box((0.5, 0.06, 0.3), (0.5, low, -bed / 2 - 0.08), "gray")
    spots = [-bed / 2 + 0.55 + 0.92 * i for i in range(p.wheels // 2 - 1)]
    for z in [*spots, front + depth * 0.55]:
        _axle(b, z, r, 0.28, w - 0.2)
        b.box((0.3, 0.4, 0.3), (0, 0.58, z), "gray")


@shape(
    "bus",
    Num("length", 5.5, 11, "short", "long"),
    Num("height", 1.9, 2.5, "low", "tall"),
    Count("windows", 4, 9),
    Count("doors", 1, 3, "door", "doors"),
    Count("wheels", 4, 6, "wheel", "wheels", step=2),
    Choice("decks", {"one": "", "two": "double-decker"}),
    Flag("hood", 0.3, "an engine hood"),
    Flag("unit", 0.3, "an air conditioner on its roof"),
    synonyms=("coach",),
    second="a roof",
    materials=STEEL,
)
def bus(p: Values, b: Builder) -> None:
    """One long body with rows of windows, doors on its right-hand side."""
    w, half, low, r = 2.3, p.length / 2, 0.4, 0.46
    rise = p.height * (1.75 if p.decks == "two" else 1.0)
    ends = [(-1, 0.95), (-0.985, 1), (0.985, 1), (1, 0.95)]
    rows = [(z * half, 0, low + rise / 2, k * w / 2, k * rise / 2) for z, k in ends]
    b.loft(rows, roundness=0.2, n=24)
    b.soft((w * 0.98, 0.3, p.length * 0.98), (0, low + rise, 0), "second", roundness=0.2)
    if p.unit:
        b.box((w * 0.6, 0.3, p.length * 0.25), (0, low + rise + 0.2, -p.length * 0.15), "gray")
    pitch = p.length * 0.92 / p.windows
    levels = [low + p.height * 0.66] + [low + rise - p.height * 0.32] * (p.decks == "two")
    for y in levels:
        for i in range(p.windows):
            z = -p.length * 0.46 + (i + 0.5) * pitch
            b.box((w + 0.1, p.height * 0.32, pitch * 0.78), (0, y, z), "black")
        b.box((w * 0.86, p.height * 0.4, 0.1), (0, y - 0.02, half), "black")
        b.box((w * 0.7, p.height * 0.28, 0.1), (0, y, -half), "black")
    for i in range(p.doors):
        z = half - 0.6 - i * (p.length - 1.2) / max(p.doors - 1, 1) * 0.85
        b.box((0.14, p.height * 0.82, 0.75), (-w / 2 - 0.01, low + p.height * 0.46, z), "gray")
    if p.hood:
        b.soft(
            (w * 0.8, p.height * 0.42, 2.4), (0, low + p.height * 0.24, half + 0.2), roundness=0.3
        )
    nose = half + (1.35 if p.hood else 0.0)
    b.box((w * 0.95, 0.2, 0.16), (0, low + 0.12, nose), "gray")
    for x in (-0.75, 0.75):
        b.cyl((x, low + 0.45, nose - 0.4), (x, low + 0.45, nose + 0.06), 0.14, color="white")
        b.box((0.3, 0.15, 0.08), (x, low + 0.45, -half), "red")
        b.box((0.1, 0.4, 0.2), (x * 1.65, levels[0], half + 0.05), "black")
    spots = [half * 0.66 + (0.7 if p.hood else 0.0), -half * 0.6]
    for z in spots + [-half * 0.6 + 1.0] * (p.wheels == 6):
        _axle(b, z, r, 0.3, w - 0.1)


@shape(
    "bicycle",
    Num("wheel", 0.42, 0.68, "small-wheeled", "large-wheeled"),
    Num("base", 1.35, 1.75, "short", "long"),
    Num("tyre", 0.025, 0.055, "thin-tyred", "thick-tyred"),
    Num("stem", 0.1, 0.4),
    Count("spokes", 6, 14, step=2),
    Choice("frame", {"diamond": "", "step": "step-through"}),
    Choice("bar", {"flat": "", "drop": "", "tall": ""}),
    Flag("basket", 0.3, "a basket"),
    Flag("rack", 0.3, "a luggage rack"),
    Flag("guards", 0.35, "mudguards"),
    synonyms=("bike",),
    second="a saddle",
    materials={"plain": 0.8, "metal": 0.2},
)
def bicycle(p: Values, b: Builder) -> None:
    """Two spoked wheels in line, tube frame, saddle, handlebar and pedals."""
    r, tube = p.wheel, 0.035
    rear, front = np.array([0, r, -p.base / 2]), np.array([0, r, p.base / 2])
    for hub in (rear, front):
        b.ring(r - p.tyre, p.tyre, hub, "black", axis="x", n=26)
        b.cyl(hub - (0.08, 0, 0), hub + (0.08, 0, 0), 0.05, color="gray", n=8)
        for turn in np.arange(p.spokes // 2) * 2 * np.pi / p.spokes:
            spoke = (r - p.tyre) * np.array([0, np.cos(turn), np.sin(turn)])
            b.cyl(hub - spoke, hub + spoke, 0.009, color="silver", n=4)
        if p.guards:
            span = (20, 170) if hub is rear else (40, 160)
            b.tube(lift(arc(r + 0.05, *span), "zy") + hub, 0.07, n=6, flatten=(0.2, 1.0))
    crank = np.array([0, r * 0.9, -0.12 * p.base])
    seat = np.array([0, r + 0.62, -0.24 * p.base])
    head = np.array([0, r + 0.6, 0.3 * p.base])
    low_head = head + 0.2 * (front - head)
    bars = [(crank, seat), (crank, low_head), (seat * 0.9 + crank * 0.1, rear), (crank, rear)]
    step = p.frame == "step"
    bars.append(
        (seat * 0.45 + crank * 0.55, head * 0.75 + low_head * 0.25) if step else (seat, head)
    )
    for one, two in bars:
        b.cyl(one, two, tube, n=8)
    b.cyl(front, head, tube * 0.9, n=8)
    up = head + np.array([0, p.stem, -0.04])
    b.cyl(head - (0, 0.05, 0), up, tube * 0.8, color="silver", n=8)
    ends = {
        "flat": [(0.3, 0.03, 0)],
        "drop": [(0.24, 0, 0.02), (0.25, 0, 0.2), (0.25, -0.2, 0.18), (0.25, -0.22, 0)],
    }
    ends["tall"] = [(0.12, 0.2, 0), (0.28, 0.22, -0.12), (0.28, 0.2, -0.28)]
    half = np.array(ends[p.bar], np.float64)
    b.tube(np.concatenate([half[::-1] * (-1, 1, 1), [(0, 0, 0)], half]) + up, 0.025, "black")
    b.cyl(seat, seat + (0, 0.14, -0.03), 0.025, color="silver", n=8)
    saddle = [
        (-0.2, 0, 0, 0.06, 0.03),
        (-0.12, 0, 0, 0.13, 0.06),
        (0.02, 0, 0, 0.06, 0.05),
        (0.2, 0, 0, 0.03, 0.03),
    ]
    b.loft(saddle, seat + (0, 0.17, -0.03), "second")
    b.cyl(crank + (0.03, 0, 0), crank + (0.06, 0, 0), 0.12, color="gray")
    for side in (-1, 1):
        foot = crank + np.array([side * 0.1, -side * 0.16, side * 0.1])
        b.cyl(crank + (side * 0.1, 0, 0), foot, 0.02, color="gray", n=6)
        b.box((0.12, 0.03, 0.08), foot + (side * 0.06, 0, 0), "black")
    b.cyl(crank - (0.1, 0, 0), crank + (0.1, 0, 0), 0.03, color="gray", n=8)
    if p.basket:
        low = up + np.array([0, -0.12, 0.2])
        b.box((0.4, 0.02, 0.3), low - (0, 0.1, 0), "brown")
        for x, z, wide, deep in (
            (0.2, 0, 0.02, 0.3),
            (-0.2, 0, 0.02, 0.3),
            (0, 0.15, 0.4, 0.02),
            (0, -0.15, 0.4, 0.02),
        ):
            b.box((wide, 0.26, deep), low + (x, 0.02, z), "brown")
    if p.rack:
        high = r * 2 + 0.1
        b.box((0.2, 0.03, 0.5), (0, high, rear[2]), "gray")
        for x in (-0.09, 0.09):
            b.cyl(rear + (x, 0, 0), (x, high, rear[2]), 0.015, color="gray", n=6)


@shape(
    "train",
    Num("car", 1.3, 2.1, "short", "long"),
    Num("height", 0.95, 1.3, "low", "tall"),
    Count("wagons", 1, 4, "wagon", "wagons"),
    Count("windows", 2, 4),
    Choice("engine", {"steam": "steam", "diesel": "diesel", "fast": "high-speed"}),
    Choice("kind", {"coach": "passenger", "freight": "freight"}),
    Flag("track", 0.3, "a track"),
    synonyms=("railway train",),
    second="wagons",
    materials=STEEL,
)
def train(p: Values, b: Builder) -> None:
    """A locomotive that pulls wagons, on many small wheels."""
    w, h, r, floor = 0.9, p.height, 0.17, 0.34
    pitch = p.car + 0.22
    end = -p.wagons * pitch - p.car / 2
    start = p.car / 2
    rail = -0.06
    b.box((0.16, 0.1, start - end), (0, floor - 0.1, (start + end) / 2), "gray")
    for i in range(p.wagons + 1):
        for z in (-0.33 * p.car, 0.33 * p.car):
            _axle(b, -i * pitch + z, r, 0.12, w * 0.8)
        b.box((w, 0.1, p.car), (0, floor, -i * pitch), "gray")
    for i in range(1, p.wagons + 1):
        z = -i * pitch
        if p.kind == "freight" and i % 2 == 0:
            radius = h * 0.42
            b.cyl(
                (0, floor + radius, z - p.car * 0.47),
                (0, floor + radius, z + p.car * 0.47),
                radius,
                color="second",
            )
            b.cyl((0, floor + radius, z), (0, floor + 2.2 * radius, z), 0.14, color="second")
        elif p.kind == "freight":
            for x in (-w / 2, w / 2):
                b.box((0.06, h * 0.6, p.car), (x, floor + h * 0.3, z), "second")
                for k in np.linspace(-0.4, 0.4, p.windows + 2) * p.car:
                    b.box((0.06, h * 0.6, 0.06), (x * 1.08, floor + h * 0.3, z + k), "second")
            for k in (-0.48, 0.48):
                b.box((w, h * 0.6, 0.06), (0, floor + h * 0.3, z + k * p.car), "second")
            b.blob((w * 0.42, h * 0.25, p.car * 0.42), (0, floor + h * 0.5, z), "black", 0.1, i)
        else:
            b.box((w, h * 0.85, p.car), (0, floor + h * 0.43, z), "second")
            b.soft((w * 1.08, h * 0.3, p.car * 1.02), (0, floor + h * 0.87, z), "gray")
            step = p.car * 0.9 / p.windows
            for k in (np.arange(p.windows) - (p.windows - 1) / 2) * step:
                b.box((w + 0.06, h * 0.32, step * 0.65), (0, floor + h * 0.52, z + k), "light blue")
    if p.engine == "steam":
        radius, y = h * 0.34, floor + h * 0.42
        b.cyl((0, y, -p.car * 0.3), (0, y, start), radius)
        b.cyl((0, y, start - 0.02), (0, y, start + 0.06), radius * 0.8, color="black")
        b.box((w, h * 0.95, p.car * 0.3), (0, floor + h * 0.48, -p.car * 0.34))
        b.box((w * 1.15, 0.08, p.car * 0.4), (0, floor + h, -p.car * 0.34), "black")
        b.box((w + 0.04, h * 0.3, p.car * 0.18), (0, floor + h * 0.7, -p.car * 0.34), "light blue")
        b.lathe(
            [(0, 0), (0.1, 0), (0.1, 0.3), (0.2, 0.5), (0, 0.5)],
            (0, y + radius * 0.9, start - 0.25),
            "black",
        )
        b.dome((0.16, 0.24, 0.16), (0, y + radius * 0.93, p.car * 0.02), "gold")
        b.extrude(
            [(start, 0.08), (start + 0.3, 0.08), (start, floor + 0.1)],
            w * 0.8,
            axis="x",
            color="gray",
        )
    elif p.engine == "diesel":
        b.box((w * 0.8, h * 0.65, p.car * 0.98), (0, floor + h * 0.33, 0))
        b.box((w, h, p.car * 0.34), (0, floor + h * 0.5, p.car * 0.12))
        b.box((w * 0.9, h * 0.28, p.car * 0.36), (0, floor + h * 0.78, p.car * 0.12), "black")
        b.box((w * 1.06, 0.08, p.car * 0.4), (0, floor + h, p.car * 0.12))
        b.cyl(
            (0, floor + h * 0.6, -p.car * 0.3),
            (0, floor + h * 0.82, -p.car * 0.3),
            0.12,
            color="gray",
        )
    else:
        nose = [
            (-0.5, 1, 1),
            (0.2, 1, 1),
            (0.45, 0.92, 0.85),
            (0.68, 0.7, 0.55),
            (0.85, 0.35, 0.25),
        ]
        rows = [(z * p.car, 0, floor + h * 0.48 * t, w / 2 * k, h * 0.48 * t) for z, k, t in nose]
        b.loft(rows, roundness=0.6)
        b.soft(
            (w * 0.6, h * 0.22, p.car * 0.3),
            (0, floor + h * 0.75, p.car * 0.43),
            "black",
            rotation(x=28),
        )
    if p.track:
        for x in (-w * 0.4, w * 0.4):
            b.box((0.08, 0.12, start - end + 0.6), (x, rail, (start + end) / 2), "silver")
        for z in np.arange(end - 0.2, start + 0.3, 0.45):
            b.box((w * 1.3, 0.08, 0.2), (0, rail - 0.08, z), "brown")
