"""Aircraft, boats and rockets: their front looks along +z, rockets stand upright."""

from __future__ import annotations

import numpy as np

from pipeline.datasets.shapes.builder import Builder
from pipeline.datasets.shapes.primitives import Part, arc, curve, dome, lift, rotation
from pipeline.datasets.shapes.schema import Choice, Count, Flag, Num, Values, shape

STEEL = {"plain": 0.65, "metal": 0.15, "striped": 0.12, "checkered": 0.08}


@shape(
    "airplane",
    Num("girth", 0.34, 0.62, "slim", "thick"),
    Num("span", 2.2, 4.0, "short-winged", "long-winged"),
    Num("chord", 0.7, 1.25),
    Num("sweep", 0.0, 1.6, "straight-winged", "swept-winged"),
    Count("engines", 1, 4, "engine", "engines"),
    Choice("drive", {"jet": "jet", "propeller": "propeller"}),
    Choice("wing", {"low": "low-wing", "high": "high-wing"}),
    Flag("biplane", 0.18, "a second pair of wings"),
    Flag("t_tail", 0.3, "a T-shaped tail"),
    Flag("gear", 0.45, "landing gear"),
    synonyms=("plane", "aircraft"),
    second="wings",
    materials=STEEL,
)
def airplane(p: Values, b: Builder) -> None:
    """Fuselage along z with wings, tail and jets or propellers."""
    g, length = p.girth, 6.0
    rows = [
        (-3, 0, 0.55 * g, 0.12, 0.12),
        (-1.6, 0, 0.15 * g, 0.75 * g, 0.8 * g),
        (-0.8, 0, 0, g, g),
    ]
    rows += [
        (1.7, 0, 0, g, g),
        (2.4, 0, -0.05, 0.8 * g, 0.78 * g),
        (2.85, 0, -0.1, 0.45 * g, 0.42 * g),
    ]
    b.loft([*rows, (3.0, 0, -0.12, 0.1, 0.1)])
    b.ball((0.55 * g, 0.42 * g, 0.5), (0, 0.62 * g, 1.95), "black")

    def wing(y: float, root: float, reach: float, chord: float, sweep: float, color: str) -> None:
        tip = chord * 0.5
        right = [
            (0, -root),
            (reach, -root + sweep),
            (reach, -root + sweep + tip),
            (0, -root + chord),
        ]
        outline = [*right, (-reach, -root + sweep + tip), (-reach, -root + sweep)]
        b.extrude(outline, 0.1, (0, y, 0), color, axis="y")

    y = -0.5 * g if p.wing == "low" else 0.88 * g
    root = 0.5 + 0.25 * p.sweep  # leading edge at the body
    levels = [y]
    wing(y, root, p.span, p.chord, p.sweep, "second")
    if p.biplane:
        levels.append(y + 1.5 * g + 0.45)
        wing(levels[1], root, p.span, p.chord, p.sweep, "second")
        for x, along in ((0.75, 0.75), (-0.75, 0.75), (0.12, 0.12), (-0.12, 0.12)):
            z = root - p.sweep * along - p.chord * (0.5 - 0.2 * along)
            b.cyl((x * p.span, y, z), (x * p.span, levels[1], z), 0.05, color="gray", n=8)
    fin = 0.8 + g
    b.extrude([(-3.1, 0.3 * g), (-2.0, 0.5 * g), (-2.7, fin), (-3.2, fin)], 0.1, axis="x")
    wing(fin - 0.04 if p.t_tail else 0.45 * g, -2.3, 1.2, 0.7, 0.3, "main")

    def engine(x: float, y: float, z: float) -> None:
        if p.drive == "jet":
            profile = [
                (0, -0.5),
                (0.16, -0.5),
                (0.25, 0),
                (0.24, 0.5),
                (0.18, 0.5),
                (0.16, 0.2),
                (0, 0.2),
            ]
            b.lathe(profile, (x, y, z), "gray", rotation(x=90), n=14)
            return
        b.cyl((x, y, z - 0.45), (x, y, z + 0.35), 0.17, 0.12, color="gray", n=12)
        b.ball((0.1, 0.1, 0.18), (x, y, z + 0.4), "silver", n=12)
        b.box((1.1, 0.13, 0.04), (x, y, z + 0.42), "black", rotation(z=25))
        b.box((0.13, 1.1, 0.04), (x, y, z + 0.42), "black", rotation(z=25))

    if p.engines % 2:
        if p.drive == "jet":
            engine(0, 0.75 * g + 0.24, -1.6)
        else:
            engine(0, -0.12, length / 2 - 0.05)
    for place in (0.36, 0.66)[: p.engines // 2]:
        for side in (-1, 1):
            drop = 0.22 if p.drive == "jet" else 0.0
            engine(side * place * p.span, y - drop, root - p.sweep * place - 0.05)
    if p.gear:
        for x, z in ((0, 2.0), (0.55, -0.1), (-0.55, -0.1)):
            b.cyl((x * 0.5, -0.6 * g, z), (x, -g - 0.4, z), 0.05, color="gray", n=8)
            b.wheel(0.2, 0.14, (x, -g - 0.4, z))


@shape(
    "helicopter",
    Num("cabin", 0.62, 1.0, "slim", "wide"),
    Num("boom", 1.4, 2.8, "short-tailed", "long-tailed"),
    Num("rotor", 1.6, 2.7, "small-rotor", "large-rotor"),
    Count("blades", 2, 6, "rotor blade", "rotor blades"),
    Flag("skids", 0.6, "skids"),
    Flag("stubs", 0.25, "stub wings"),
    Flag("duct", 0.3, "a ring around its tail rotor"),
    Flag("round", 0.5),
    second="a tail",
    materials=STEEL,
)
def helicopter(p: Values, b: Builder) -> None:
    """Egg-shaped cabin, thin tail boom, main rotor above, skids or wheels below."""
    c = p.cabin
    if p.round:
        b.ball((c, 0.85, 1.35), (0, 0, 0), n=18)
    else:
        b.soft((2 * c, 1.6, 2.7), (0, 0, 0), roundness=0.55)
    b.ball((c * 0.86, 0.58, 0.75), (0, 0.14, 0.72), "black")
    tail = -1.1 - p.boom
    b.cyl((0, 0.3, -0.6), (0, 0.45, tail), 0.34, 0.12, color="second")
    fin = [(tail - 0.35, 1.15), (tail - 0.2, 0.3), (tail + 0.35, 0.35), (tail - 0.05, 1.15)]
    b.extrude(fin, 0.08, axis="x", color="second")
    b.box((1.1, 0.06, 0.3), (0, 0.42, tail + 0.55), "second")
    hub, spin = np.array([0.16, 0.62, tail - 0.12]), 0.5
    b.cyl((0, *hub[1:]), hub, 0.06, color="gray", n=8)
    for tilt in (20, 110):
        b.box((0.03, 2 * spin, 0.1), hub, "gray", rotation(x=tilt))
    if p.duct:
        b.ring(0.56, 0.08, hub, "second", axis="x")
    b.soft((0.7, 0.5, 1.3), (0, 0.78, -0.2), roundness=0.5)
    top = 1.25
    b.cyl((0, 0.8, -0.1), (0, top, -0.1), 0.08, color="gray", n=8)
    b.cyl((0, top - 0.08, -0.1), (0, top + 0.08, -0.1), 0.17, color="gray", n=10)
    for angle in np.arange(p.blades) * 360 / p.blades + 15:
        with b.group((0, top, -0.1), rotation(y=angle)):
            b.box((p.rotor, 0.04, 0.2), (p.rotor / 2, 0, 0), "gray")
    if p.stubs:
        for side in (-1, 1):
            b.box((0.8, 0.1, 0.5), (side * (c + 0.2), -0.1, -0.1))
            x = side * (c + 0.45)
            b.cyl((x, -0.25, -0.5), (x, -0.25, 0.5), 0.14, color="gray", n=10)
    for side in (-1, 1):
        x = side * (c * 0.75)
        for z in (-0.55, 0.55) if p.skids else ():
            b.cyl((x * 0.6, -0.55, z), (x, -1.15, z), 0.05, color="black", n=8)
        if p.skids:
            path = curve([(x, -1.15, -1.1), (x, -1.15, 0.9), (x, -1.1, 1.2), (x, -0.95, 1.35)], 3)
            b.tube(path, 0.06, "black")
        else:
            b.cyl((x * 0.7, -0.5, -0.45), (x, -0.9, -0.45), 0.07, color="gray", n=8)
            b.wheel(0.24, 0.18, (x, -0.9, -0.45))
    if not p.skids:
        b.cyl((0, -0.6, 0.75), (0, -0.95, 0.75), 0.06, color="gray", n=8)
        b.wheel(0.2, 0.16, (0, -0.95, 0.75))


def _hull(half_width: float, depth: float, half_length: float, stern: float) -> Part:
    """Boat hull below y = 0, pointed at +z and cut off flat at ``-stern``."""
    part = dome((half_width, depth, half_length)).moved(rot=rotation(x=180))
    vertices, normals = part.vertices.copy(), part.normals.copy()
    bow = np.clip(vertices[:, 2] / half_length, 0, 1)
    vertices[:, 0] *= 1 - 0.45 * bow**2
    vertices[:, 1] += np.where(vertices[:, 1] > -1e-9, 1.0, 0.6) * 0.3 * depth * bow**2
    behind = vertices[:, 2] < -stern
    vertices[behind, 2] = -stern
    normals[behind & (normals[:, 1] < 0.99)] = (0, 0, -1)
    return Part(vertices, normals, part.faces)


@shape(
    "sailboat",
    Num("length", 1.6, 2.6, "short", "long"),
    Num("width", 0.45, 0.85, "narrow", "wide"),
    Num("height", 2.3, 4.2, "low", "tall"),
    Count("masts", 1, 3, "mast", "masts"),
    Choice("rig", {"triangle": "", "square": "square-rigged"}),
    Flag("jib", 0.5, "a jib"),
    Flag("cabin", 0.4, "a cabin"),
    Flag("keel", 0.4, "a keel"),
    Flag("flag", 0.3, "a flag"),
    synonyms=("sailing boat",),
    second="sails",
    materials={"plain": 0.5, "wooden": 0.3, "striped": 0.15, "checkered": 0.05},
)
def sailboat(p: Values, b: Builder) -> None:
    """Open-ended hull with masts and triangular or square sails."""
    half, depth = p.length, 0.75
    b.add(_hull(p.width, depth, half, half * 0.72))
    if p.keel:
        b.extrude(
            [(-0.35, -1.3), (0.2, -1.3), (0.5, -0.6), (-0.5, -0.6)], 0.08, axis="x", color="gray"
        )
        stern = -half * 0.72
        rudder = [(stern - 0.25, -0.85), (stern, -0.85), (stern + 0.02, 0), (stern - 0.15, 0)]
        b.extrude(rudder, 0.06, axis="x", color="gray")
    if p.cabin:
        b.box((p.width * 0.95, 0.4, half * 0.42), (0, 0.15, -half * 0.35), "beige")
        b.box((p.width * 0.98, 0.14, half * 0.3), (0, 0.2, -half * 0.35), "black")
    pitch = half * 1.25 / p.masts
    for i in range(p.masts):
        z = half * 0.62 - (i + 0.45) * pitch
        height = p.height * (1.0 if i == p.masts // 2 else 0.82)
        b.cyl((0, -0.15, z), (0, height, z), 0.05, 0.035, color="brown", n=8)
        if p.rig == "square":
            for low, top, wide in ((0.14, 0.56, 1.0), (0.6, 0.92, 0.75)):
                reach = wide * (0.4 * p.height + 0.1)
                rows = lift(arc((0.3, height * (top - low) / 2), -90, 90, 6), "zy", 0.0)
                rows += (0, height * (low + top) / 2, z + 0.06)
                b.tube(rows, reach / 2, "second", n=6, flatten=(0.06, 1.0))
                for y in (low, top):
                    yard = height * y
                    b.cyl(
                        (-reach * 0.53, yard, z), (reach * 0.53, yard, z), 0.035, color="brown", n=6
                    )
        else:
            boom = min(pitch * 0.95, half * 0.95)
            sail = [(z - boom, 0.36), (z - 0.02, 0.36), (z - 0.02, height * 0.97)]
            sail += [(z - boom * 0.45, height * 0.55)]
            b.extrude(sail, 0.04, axis="x", color="second")
            b.cyl((0, 0.32, z), (0, 0.32, z - boom), 0.035, color="brown", n=6)
    first = half * 0.62 - 0.45 * pitch
    top = p.height * (1.0 if p.masts == 1 else 0.82)
    if p.jib:
        jib = [(first + 0.15, 0.45), (half * 0.96, 0.25), (first + 0.03, top * 0.85)]
        b.extrude(jib, 0.04, axis="x", color="second")
        b.cyl((0, 0.1, half * 0.97), (0, top * 0.88, first), 0.02, color="gray", n=6)
    if p.flag:
        mast = half * 0.62 - (p.masts // 2 + 0.45) * pitch
        b.extrude(
            [(-0.5, 0.17), (0, 0), (0, 0.34)], 0.03, (0, p.height - 0.05, mast), "red", axis="x"
        )
        b.cyl((0, p.height - 0.1, mast), (0, p.height + 0.32, mast), 0.02, color="brown", n=6)


@shape(
    "rocket",
    Num("height", 3.2, 6.0, "short", "tall"),
    Num("radius", 0.42, 0.75, "slender", "thick"),
    Num("fin", 0.5, 1.1, "small-finned", "large-finned"),
    Count("fins", 3, 6, "fin", "fins"),
    Count("portholes", 1, 3, "porthole", "portholes"),
    Choice("nose", {"cone": "sharp-nosed", "round": "round-nosed"}),
    Choice("body", {"straight": "", "bulging": "bulging", "stepped": "stepped"}),
    Flag("boosters", 0.3, "side boosters"),
    Flag("spike", 0.3, "an antenna"),
    synonyms=("spaceship",),
    second="fins",
    materials=STEEL,
)
def rocket(p: Values, b: Builder) -> None:
    """Upright body of revolution with a nose, fins and a nozzle."""
    h, r = p.height, p.radius
    top = r
    if p.body == "bulging":
        side = [
            (r * (0.62 + 0.5 * np.sin(np.pi * (0.15 + 0.7 * t))), h * t)
            for t in np.linspace(0, 1, 9)
        ]
        top = side[-1][0]
    elif p.body == "stepped":
        top = r * 0.66
        side = [(r, 0), (r, h * 0.52), (top, h * 0.6), (top, h)]
    else:
        side = [(r, 0), (r, h)]
    tip = (2.2 if p.nose == "cone" else 1.3) * top
    if p.nose == "cone":
        nose = [(top * (1 - t), h + tip * t) for t in (0.5, 1.0)]
    else:
        nose = [(x * top, h + y * tip) for x, y in arc(1, 0, 90, 6)[1:-1]] + [(0.0, h + tip)]
    b.lathe([(0, 0), *side, *nose], n=24)
    b.ring(top * 1.01, 0.06, (0, h, 0), "gray")
    b.cyl((0, -0.45, 0), (0, 0.05, 0), r * 0.72, r * 0.4, color="gray")
    for angle in np.arange(p.fins) * 360 / p.fins + 90:
        with b.group(rot=rotation(y=angle)):
            blade = [(r * 0.6, 0.1), (r + p.fin, -0.45), (r + p.fin, 0.15), (r * 0.6, 0.45 + p.fin)]
            b.extrude(blade, 0.1, color="second")
    for i in range(p.portholes):
        y = h * (0.9 - 0.14 * i)
        skin = float(np.interp(y, [s[1] for s in side], [s[0] for s in side]))
        b.cyl((0, y, skin * 0.7), (0, y, skin + 0.05), 0.2, color="light blue")
        b.ring(0.21, 0.05, (0, y, skin + 0.02), "gray", axis="z", n=14)
    if p.boosters:
        for x in (-1, 1):
            tall, thin = h * 0.5, r * 0.42
            profile = [
                (0, -0.3),
                (thin, -0.3),
                (thin, tall),
                (thin * 0.6, tall + thin),
                (0, tall + 1.6 * thin),
            ]
            with b.group(rot=rotation(y=90.0 / p.fins)):
                b.lathe(profile, (x * (r + thin * 0.9), 0.1, 0), "white", n=14)
    if p.spike:
        b.cyl((0, h + tip - 0.1, 0), (0, h + tip + 0.7, 0), 0.04, 0.02, color="gray", n=8)
