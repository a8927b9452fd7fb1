"""Buildings: they stand on y = 0 and face +z."""

from __future__ import annotations

import numpy as np

from pipeline.datasets.shapes.builder import Builder
from pipeline.datasets.shapes.primitives import arc, frustum_box, rotation
from pipeline.datasets.shapes.schema import Choice, Count, Flag, Num, Values, shape

WALLS = {"plain": 0.7, "wooden": 0.1, "checkered": 0.1, "striped": 0.1}


@shape(
    "house",
    Num("width", 2.2, 4.2, "narrow", "wide"),
    Num("depth", 2.0, 3.4),
    Num("pitch", 0.5, 1.5),
    Count("floors", 1, 3, "floor", "floors"),
    Count("columns", 2, 4),
    Choice("roof", {"gable": "", "cross": "", "hip": "hip-roofed", "flat": "flat-roofed"}),
    Flag("chimney", 0.5, "a chimney"),
    Flag("porch", 0.3, "a porch"),
    Flag("garage", 0.25, "a garage"),
    synonyms=("home",),
    second="a roof",
    materials=WALLS,
)
def house(p: Values, b: Builder) -> None:
    """Walls with a door and rows of windows under a gable, hip or flat roof."""
    w, d = p.width, p.depth
    h = 1.15 * p.floors + 0.15
    b.box((w, h, d), (0, h / 2, 0))
    eave = 0.22
    if p.roof == "flat":
        ridge = 0.12 + 0.3 * p.pitch  # its parapet
        b.box((w + 0.2, 0.12, d + 0.2), (0, h + 0.06, 0), "second")
        for side in (-1, 1):
            b.box(
                (0.12, ridge, d + 0.2), (side * (w / 2 + 0.04), h + ridge / 2 + 0.05, 0), "second"
            )
            b.box(
                (w + 0.2, ridge, 0.12), (0, h + ridge / 2 + 0.05, side * (d / 2 + 0.04)), "second"
            )
    elif p.roof == "hip":
        ridge = p.pitch
        top = (max(w - d, 0.0) + 0.1, max(d - w, 0.0) + 0.1)
        b.add(frustum_box((w + 2 * eave, d + 2 * eave), top, ridge).moved((0, h, 0)), "second")
    else:
        ridge, along = p.pitch, p.roof == "gable"  # the ridge runs along x, else along z
        reach, length = (d, w) if along else (w, d)
        axis = "x" if along else "z"
        wall = [(-reach / 2, h), (reach / 2, h), (0, h + ridge)]
        b.extrude(wall, length, axis=axis)
        drop = eave * ridge / (reach / 2)
        slab = [(-reach / 2 - eave, h - drop), (0, h + ridge), (reach / 2 + eave, h - drop)]
        slab += [(reach / 2 + eave, h - drop + 0.16), (0, h + ridge + 0.18)]
        slab += [(-reach / 2 - eave, h - drop + 0.16)]
        b.extrude(slab, length + 2 * eave, axis=axis, color="second")
    if p.chimney:
        top = h + ridge + 0.45
        b.box((0.34, top - h, 0.34), (w * 0.24, (h + top) / 2, -d * 0.08), "brown")
        b.box((0.44, 0.1, 0.44), (w * 0.24, top, -d * 0.08), "brown")
    pitch = w * 0.9 / p.columns
    door = (p.columns // 2 - (p.columns - 1) / 2) * pitch
    pane = min(0.36, 0.7 * pitch)
    b.box((0.5, 0.9, 0.14), (door, 0.45, d / 2), "brown")
    b.box((0.7, 0.1, 0.4), (door, 0.05, d / 2 + 0.15), "gray")
    for floor in range(p.floors):
        y = 0.7 + 1.15 * floor
        for i in range(p.columns):
            x = (i - (p.columns - 1) / 2) * pitch
            for face in (-d / 2, d / 2):
                if floor or face < 0 or abs(x - door) > 0.1:
                    b.box((pane + 0.1, 0.54, 0.08), (x, y, face), "white")
                    b.box((pane, 0.44, 0.12), (x, y, face), "light blue")
        for deep in (-d * 0.22, d * 0.22):
            b.box((w + 0.1, 0.5, 0.4), (0, y, deep), "light blue")
    if p.porch:
        b.box((1.3, 0.1, 0.9), (door, 1.1, d / 2 + 0.4), "second")
        for edge in (-0.55, 0.55):
            b.cyl(
                (door + edge, 0, d / 2 + 0.75),
                (door + edge, 1.1, d / 2 + 0.75),
                0.07,
                color="white",
            )
    if p.garage:
        b.box((1.3, 1.0, d * 0.8), (w / 2 + 0.6, 0.5, 0))
        b.box((1.45, 0.12, d * 0.85), (w / 2 + 0.62, 1.05, 0), "second")
        b.box((0.95, 0.75, 0.08), (w / 2 + 0.62, 0.38, d * 0.4), "white")


@shape(
    "tower",
    Num("height", 2.8, 5.5, "squat", "tall"),
    Num("radius", 0.7, 1.15, "slender", "thick"),
    Num("overhang", 0.08, 0.3),
    Count("merlons", 8, 14, step=2),
    Count("slits", 1, 4),
    Choice("plan", {"round": "round", "square": "square", "octagon": "octagonal"}),
    Flag("roof", 0.3, "a pointed roof"),
    Flag("gate", 0.5, "an arched gate"),
    Flag("base", 0.4, "a sloping base"),
    Flag("flag", 0.35, "a flag"),
    synonyms=("castle tower",),
    colors=("gray", "beige", "brown"),
    typical=0.5,
    second="battlements",
    materials=WALLS,
)
def tower(p: Values, b: Builder) -> None:
    """Castle tower: thick shaft, wider parapet with teeth."""
    h, r = p.height, p.radius
    wide = r + p.overhang
    n = {"round": 24, "square": 4, "octagon": 8}[p.plan]
    turn = rotation(y=180 / n) if n < 24 else rotation()
    flat = float(np.cos(np.pi / n))  # distance of a side over that of a corner
    grow = 1 / flat

    with b.group(rot=turn):
        outline = [(0, 0), (r * grow, 0), (r * grow, h), (wide * grow, h + 0.25), (0, h + 0.25)]
        b.lathe(outline, n=n)
        if p.base:
            foot = [(0, 0), (r * grow + 0.3, 0), (r * grow + 0.02, h * 0.25), (0, h * 0.25)]
            b.lathe(foot, n=n)
        inner = (wide - 0.14) * grow
        y = h + 0.25
        profile = [
            (inner, y),
            (wide * grow, y),
            (wide * grow, y + 0.2),
            (inner, y + 0.2),
            (inner, y),
        ]
        b.lathe(profile, color="second", n=n)
    for angle in np.arange(p.merlons) * 2 * np.pi / p.merlons + np.pi / p.merlons:
        reach = wide - 0.07
        if n < 24:  # distance of the polygon's side in this direction
            reach /= float(np.cos((angle + np.pi / n) % (2 * np.pi / n) - np.pi / n))
        tooth = 2 * np.pi * wide / p.merlons * 0.52
        facing = np.degrees(angle)
        if n < 24:
            facing = round(facing / (360 / n)) * 360 / n
        at = (reach * np.sin(angle), h + 0.6, reach * np.cos(angle))
        b.box((tooth, 0.34, 0.15), at, "second", rotation(y=facing))
    for i in range(p.slits):
        side = (0, 90, 180, 270)[i]
        with b.group(rot=rotation(y=side)):
            b.box((0.13, 0.55, 0.1), (0, h * (0.72 - 0.06 * i), r), "black")
    if p.gate:
        gate = np.concatenate([[(-0.3, 0), (0.3, 0)], arc(0.3, 0, 180, 8, at=(0, 0.6))])
        b.extrude(gate, 0.2 + 0.6 * p.base, (0, 0, r), "brown")
    top = h + 0.25
    if p.roof:
        b.cyl((0, top - 0.05, 0), (0, top + 0.7, 0), r * 0.68, n=20)
        b.cyl((0, top + 0.7, 0), (0, top + 0.7 + 1.5 * r, 0), r * 0.85, 0.01, color="red", n=20)
        top += 0.65 + 1.5 * r
    if p.flag:
        b.cyl((0, top - 0.05, 0), (0, top + 1.0, 0), 0.04, color="brown", n=8)
        b.box((0.6, 0.35, 0.04), (0.3, top + 0.8, 0), "red")


@shape(
    "windmill",
    Num("height", 2.4, 4.0, "low", "tall"),
    Num("base", 0.8, 1.25, "slender", "broad"),
    Num("blade", 1.4, 2.3, "short-bladed", "long-bladed"),
    Num("turn", 0.0, 45.0),
    Count("blades", 3, 6, "blade", "blades"),
    Choice("plan", {"round": "round", "octagon": "octagonal", "square": "square"}),
    Choice("sail", {"lattice": "", "solid": "", "cloth": ""}),
    Flag("gallery", 0.4, "a balcony"),
    Flag("pointed", 0.4, "a pointed cap"),
    second="blades",
    materials=WALLS,
)
def windmill(p: Values, b: Builder) -> None:
    """Tapered tower with a cap and long sails on its front."""
    h, r = p.height, p.base
    n = {"round": 22, "octagon": 8, "square": 4}[p.plan]
    grow = 1 / float(np.cos(np.pi / n))
    top = r * 0.62
    turn = rotation(y=180 / n) if n < 22 else rotation()
    b.lathe([(0, 0), (r * grow, 0), (top * grow, h), (0, h)], rot=turn, n=n)
    if p.pointed:
        b.cyl((0, h - 0.02, 0), (0, h + 1.5 * top, 0), top * 1.2, 0.02, color="brown", n=20)
    else:
        b.dome((top * 1.12, top * 1.0, top * 1.25), (0, h - 0.02, 0), "brown")
    hub = np.array([0, h + top * 0.3, top * 1.55])
    b.cyl((0, hub[1], 0), hub + (0, 0, 0.1), 0.1, color="gray", n=10)
    b.cyl(hub - (0, 0, 0.06), hub + (0, 0, 0.16), 0.2, color="gray", n=12)
    for k in range(p.blades):
        with b.group(hub, rotation(z=p.turn + 360 * k / p.blades)):
            b.box((0.08, p.blade, 0.07), (0, p.blade / 2, 0), "second")
            low, wide = p.blade * 0.22, p.blade * 0.24
            span = p.blade - low
            if p.sail == "solid":
                b.box((wide, span, 0.05), (wide / 2, low + span / 2, 0), "second")
            elif p.sail == "cloth":
                sail = [(0, low), (wide * 1.4, p.blade), (0, p.blade)]
                b.extrude(sail, 0.05, color="second")
            else:
                b.box((0.05, span, 0.05), (wide, low + span / 2, 0), "second")
                for y in np.linspace(low, p.blade - 0.03, 6):
                    b.box((wide, 0.06, 0.05), (wide / 2, y, 0), "second")
    if p.gallery:
        y, reach = h * 0.36, r * 0.9 * grow + 0.35
        b.cyl((0, y - 0.05, 0), (0, y + 0.05, 0), reach, color="brown", n=20)
        b.ring(reach - 0.04, 0.03, (0, y + 0.35, 0), "brown")
        for angle in np.arange(10) * 2 * np.pi / 10:
            x, z = (reach - 0.05) * np.cos(angle), (reach - 0.05) * np.sin(angle)
            b.cyl((x, y, z), (x, y + 0.35, z), 0.03, color="brown", n=6)
    lean = float(np.degrees(np.arctan2(r - top, h)))
    b.box((0.5, 0.85, 0.16), (0, 0.42, r - 0.08), "brown", rotation(x=-lean))
    for y in (0.5, 0.72):
        b.box((0.28, 0.4, 0.12), (0, h * y, r + (top - r) * y), "black", rotation(x=-lean))


@shape(
    "bridge",
    Num("length", 4.5, 8.0, "short", "long"),
    Num("width", 0.8, 1.7, "narrow", "wide"),
    Num("height", 0.8, 1.7, "low", "high"),
    Count("spans", 1, 4),
    Choice("kind", {"arch": "arch", "beam": "beam", "suspension": "suspension", "truss": "truss"}),
    Flag("railings", 0.5, "railings"),
    Flag("lamps", 0.25, "lamp posts"),
    second="a deck",
    materials=WALLS,
)
def bridge(p: Values, b: Builder) -> None:
    """Deck along x on arches, piers, hung from cables or between trusses."""
    half, w, h = p.length / 2, p.width, p.height
    thick = 0.14
    b.box((p.length, thick, w), (0, h, 0), "second")
    under = h - thick / 2
    pitch = p.length / p.spans
    joints = np.linspace(-half, half, p.spans + 1)
    if p.kind == "arch":
        rise = min(under - 0.12, 0.8 * under)
        outline: list[tuple[float, float]] = [(-half, 0)]
        for start in joints[:-1]:
            cut = arc((pitch * 0.42, rise), 180, 0, 12, at=(start + pitch / 2, 0))
            outline += [(float(x), float(y)) for x, y in cut]
        outline += [(half, 0), (half, under + 0.02), (-half, under + 0.02)]
        b.extrude(outline, w * 0.92)
    else:
        for i, x in enumerate(joints):
            end = i in (0, p.spans)
            shift = 0.2 * (i == 0) - 0.2 * (i == p.spans)
            b.box((0.4 if end else 0.26, under, w * 0.85), (x + shift, under / 2, 0))
    if p.kind == "truss":
        tall = 0.75
        bays = p.spans * 2 + 2
        step = p.length / bays
        for z in (-w / 2, w / 2):
            b.box((p.length - 2 * step, 0.1, 0.1), (0, h + tall, z))
            b.box((p.length, 0.1, 0.1), (0, h + 0.08, z))
            for i in range(bays):
                x = -half + i * step
                rising = i % 2 == 0
                first, last = (h, h + tall) if rising else (h + tall, h)
                b.cyl((x, first, z), (x + step, last, z), 0.05, n=6)
                if i > 0:
                    b.box((0.08, tall, 0.08), (x, h + tall / 2, z))
        for i in range(1, bays):
            b.box((0.08, 0.08, w), (-half + i * step, h + tall, 0))
    if p.kind == "suspension":
        towers = (-half * 0.62, half * 0.62)
        top = h + 0.28 * p.length
        for x in towers:
            for z in (-w / 2, w / 2):
                b.box((0.2, top, 0.16), (x, top / 2, z))
            b.box((0.16, 0.16, w), (x, top - 0.15, 0))
        for z in (-w / 2, w / 2):
            xs = np.linspace(-1, 1, 13) * towers[1]
            sag = h + 0.2 + (top - h - 0.25) * (xs / towers[1]) ** 2
            path = np.stack([xs, sag, np.full(13, z)], axis=1)
            path = np.concatenate([[(-half, h, z)], path, [(half, h, z)]])
            b.tube(path, 0.045, "gray", n=6)
            for x, y in zip(xs[1:-1], sag[1:-1], strict=True):
                b.box((0.035, y - h, 0.035), (x, (h + y) / 2, z), "gray")
    if p.railings:
        for z in (-w / 2 + 0.04, w / 2 - 0.04):
            b.box((p.length, 0.05, 0.05), (0, h + 0.3, z), "gray")
            for x in np.linspace(-half + 0.05, half - 0.05, 11):
                b.box((0.05, 0.3, 0.05), (x, h + 0.15, z), "gray")
    if p.lamps:
        for x in (-half * 0.45, half * 0.45):
            b.cyl((x, h, w * 0.42), (x, h + 0.95, w * 0.42), 0.04, color="black", n=8)
            b.ball(0.13, (x, h + 1.0, w * 0.42), "yellow", n=10)
