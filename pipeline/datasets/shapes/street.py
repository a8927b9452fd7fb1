"""Street furniture, tents and lighthouses: they stand on y = 0 and face +z."""

from __future__ import annotations

import numpy as np

from pipeline.datasets.shapes.builder import Builder
from pipeline.datasets.shapes.primitives import arc, curve, lift, rotation
from pipeline.datasets.shapes.schema import PAINTED, PLAIN, Choice, Count, Flag, Num, Values, shape

CLOTH = {"plain": 0.55, "striped": 0.25, "checkered": 0.12, "spotted": 0.08}


@shape(
    "traffic light",
    Num("pole", 1.2, 3.2, "short", "tall"),
    Num("lamp", 0.2, 0.32),
    Num("depth", 0.3, 0.55, "shallow", "deep"),
    Count("lights", 2, 4, "light", "lights"),
    Choice("way", {"upright": "", "level": "horizontal"}),
    Choice("mount", {"post": "", "arm": "overhanging"}),
    Flag("board", 0.3, "a backboard"),
    Flag("button", 0.3, "a button box"),
    Flag("visors", 0.6, "visors"),
    synonyms=("traffic signal",),
    colors=("black", "yellow", "green", "gray"),
    typical=0.6,
    second="a pole",
    materials=PAINTED,
)
def traffic_light(p: Values, b: Builder) -> None:
    """Box with a row of round lights, on a pole or hung from an arm."""
    pitch = 2.45 * p.lamp
    size = np.array([pitch * 1.05, pitch * p.lights + 0.12])
    if p.way == "level":
        size = size[::-1]
    wide, tall = size
    height = p.pole + tall / 2
    x = 0.0
    if p.mount == "arm":
        x = 0.9 + wide / 2
        top = p.pole + tall + 0.3
        b.cyl((0, 0, 0), (0, top, 0), 0.09, color="second")
        b.cyl((0, top - 0.1, 0), (x, top - 0.1, 0), 0.06, color="second", n=10)
        b.cyl((x, top - 0.1, 0), (x, height, 0), 0.05, color="second", n=8)
    else:
        b.cyl((0, 0, 0), (0, p.pole + 0.1, 0), 0.09, color="second")
    b.lathe([(0, 0), (0.3, 0), (0.3, 0.1), (0.14, 0.25), (0, 0.25)], color="second")
    b.box((wide, tall, p.depth), (x, height, 0))
    if p.board:
        b.box((wide + 0.35, tall + 0.35, 0.05), (x, height, p.depth * 0.3), "black")
    face = p.depth / 2
    colors = {2: ("red", "green"), 3: ("red", "yellow", "green")}
    for i, color in enumerate(colors.get(p.lights, ("red", "yellow", "green", "white"))):
        shift = ((p.lights - 1) / 2 - i) * pitch
        at = np.array([x - shift, height, face] if p.way == "level" else [x, height + shift, face])
        b.cyl(at - (0, 0, 0.05), at + (0, 0, 0.05), p.lamp, color=color, n=18)
        b.ball((p.lamp * 0.9, p.lamp * 0.9, 0.08), at + (0, 0, 0.05), color, n=12)
        if p.visors:
            outer, inner = arc(p.lamp * 1.12, 0, 180, 10), arc(p.lamp * 1.02, 180, 0, 10)
            b.extrude(np.concatenate([outer, inner]), 0.26, at + (0, 0, 0.13), smooth=True)
    if p.button:
        b.box((0.26, 0.36, 0.2), (0, p.pole * 0.5, 0.14), "yellow")


@shape(
    "street lamp",
    Num("height", 3.6, 5.6, "short", "tall"),
    Num("reach", 0.45, 1.1),
    Num("head", 0.2, 0.32, "small-headed", "large-headed"),
    Count("lamps", 1, 4, "lamp", "lamps"),
    Choice("style", {"lantern": "old-fashioned", "globe": "globe", "arm": "modern"}),
    Flag("sleeve", 0.6, "a thick foot"),
    Flag("banner", 0.2, "a banner"),
    synonyms=("lamp post", "streetlight"),
    colors=("black", "gray", "green"),
    typical=0.5,
    second="lamp heads",
    materials=PAINTED,
)
def street_lamp(p: Values, b: Builder) -> None:
    """High thin post with one or more lanterns, globes or flat heads."""
    h, s = p.height, p.head
    b.cyl((0, 0, 0), (0, h, 0), 0.075, 0.05, n=12)
    if p.sleeve:
        foot = [(0, 0), (0.3, 0), (0.3, 0.15), (0.19, 0.25), (0.16, 0.9), (0.2, 0.95), (0.1, 1.05)]
        b.lathe([*foot, (0, 1.05)], n=12)
    else:
        b.box((0.34, 0.06, 0.34), (0, 0.03, 0))
    if p.banner:
        b.box((0.6, 0.04, 0.04), (0.3, h * 0.72, 0))
        b.box((0.5, 1.1, 0.03), (0.35, h * 0.72 - 0.55, 0), "red")
    alone = p.lamps == 1 and p.style != "arm"
    if alone:  # the bar that carries a ladder
        b.cyl((-p.reach / 2, h * 0.86, 0), (p.reach / 2, h * 0.86, 0), 0.035, n=8)
    for angle in np.arange(p.lamps) * 360 / p.lamps - 90 * (p.lamps == 1):
        with b.group(rot=rotation(y=angle)):
            out = 0.0 if alone else p.reach
            end = np.array([out, h, 0.0])
            if p.style == "arm":
                path = [
                    (0, h - 0.7, 0),
                    (0.05, h - 0.1, 0),
                    (p.reach * 0.5, h + 0.2, 0),
                    (out, h + 0.22, 0),
                ]
                b.tube(curve(path, 3), 0.045)
                b.soft((0.35 + 2.2 * s, 0.16, 0.6 * s + 0.1), end + (0.2 + s, 0.23, 0), "second")
                b.box((1.6 * s, 0.06, 0.4 * s + 0.06), end + (0.2 + s, 0.15, 0), "yellow")
                continue
            if not alone:
                hook = [
                    (0, h - 0.6, 0),
                    (p.reach * 0.55, h - 0.45, 0),
                    (out, h - 0.2, 0),
                    (out, h, 0),
                ]
                b.tube(curve(hook, 3), 0.04)
            if p.style == "globe":
                b.lathe([(0, -0.02), (s * 0.6, 0), (s * 0.6, 0.1), (0, 0.1)], end, "second", n=12)
                b.ball(s * 1.15, end + (0, 0.05 + s, 0), "white", n=14)
                b.cyl(end + (0, 2.1 * s, 0), end + (0, 2.1 * s + 0.2, 0), 0.06, 0.01, "second", n=8)
            else:
                glass = [(0, 0), (s * 0.55, 0), (s, 2 * s), (0, 2 * s)]
                b.lathe(glass, end, "yellow", n=6)
                roof = [
                    (0, 2 * s),
                    (s * 1.25, 2 * s),
                    (s * 0.3, 2.8 * s),
                    (0.03, 3.3 * s),
                    (0, 3.3 * s),
                ]
                b.lathe(roof, end, "second", n=6)
                b.lathe(
                    [(0, -0.06), (s * 0.65, -0.06), (s * 0.65, 0.02), (0, 0.02)], end, "second", n=6
                )
                for k in np.arange(6) * np.pi / 3:
                    way = np.array([np.cos(k), 0, np.sin(k)])
                    foot_at, top_at = end + 0.55 * s * way, end + s * way + (0, 2 * s, 0)
                    b.cyl(foot_at, top_at, 0.02, color="second", n=5)


@shape(
    "fire hydrant",
    Num("height", 0.9, 1.6, "short", "tall"),
    Num("radius", 0.27, 0.4, "slim", "fat"),
    Num("nozzle", 0.13, 0.2),
    Count("outlets", 2, 4, "outlet", "outlets"),
    Choice("cap", {"dome": "round-topped", "cone": "cone-topped", "flat": "flat-topped"}),
    Flag("ribs", 0.4, "ribs"),
    Flag("chain", 0.4, "a chain"),
    Flag("collar", 0.5),
    synonyms=("hydrant",),
    colors=("red", "yellow"),
    typical=0.6,
    second="caps",
    materials={"plain": 0.8, "metal": 0.15, "striped": 0.05},
)
def fire_hydrant(p: Values, b: Builder) -> None:
    """Stout standpipe with flanges, a bonnet and capped side outlets."""
    h, r = p.height, p.radius
    side = [(0, 0), (r * 1.45, 0), (r * 1.45, 0.1), (r, 0.1), (r, h * 0.9), (r * 1.3, h * 0.9)]
    b.lathe([*side, (r * 1.3, h * 0.9 + 0.1), (0, h * 0.9 + 0.1)], n=22)
    if p.collar:
        b.ring(r, 0.05, (0, h * 0.3, 0))
    for angle in np.arange(8) * np.pi / 4 + 0.4:
        x, z = r * 1.25 * np.cos(angle), r * 1.25 * np.sin(angle)
        b.cyl((x, 0.08, z), (x, 0.16, z), 0.05, color="gray", n=6)
        if p.ribs:
            facing = float(np.degrees(-angle))
            at = (r * np.cos(angle), h * 0.45, r * np.sin(angle))
            b.box((0.09, h * 0.7, 0.07), at, rot=rotation(y=facing))
    top = h * 0.9 + 0.1
    wide = r * 1.12
    if p.cap == "dome":
        b.dome((wide, r * 0.95, wide), (0, top, 0), "second")
        tip = top + r * 0.92
    elif p.cap == "cone":
        b.cyl((0, top, 0), (0, top + r * 1.3, 0), wide, r * 0.3, color="second", n=20)
        tip = top + r * 1.28
    else:
        b.cyl((0, top, 0), (0, top + 0.14, 0), wide, color="second", n=20)
        tip = top + 0.13
    b.cyl((0, tip, 0), (0, tip + 0.14, 0), 0.1, color="second", n=5)
    y = h * 0.62
    for k, way in enumerate([(1, 0, 0), (-1, 0, 0), (0, 0, 1), (0, 0, -1)][: p.outlets]):
        d = np.array(way, np.float64)
        big = p.nozzle * (1.3 if k == 2 else 1.0)
        stem = np.array([0, y, 0])
        b.cyl(stem, stem + d * (r + 0.16), big)
        b.cyl(stem + d * (r + 0.12), stem + d * (r + 0.24), big * 1.3, color="second", n=12)
        b.cyl(stem + d * (r + 0.22), stem + d * (r + 0.34), 0.07, color="second", n=5)
    if p.chain:
        path = [
            (r + 0.2, y - p.nozzle, 0),
            (r * 1.15, y - 0.4, r * 0.55),
            (r * 0.6, y - 0.3, r * 0.78),
        ]
        b.tube(curve(path, 4), 0.035, "gray", n=6)


@shape(
    "tent",
    Num("width", 1.8, 3.0, "narrow", "wide"),
    Num("depth", 1.8, 3.6),
    Num("height", 1.2, 2.2, "low", "tall"),
    Count("sides", 6, 10, step=2),
    Choice(
        "form", {"ridge": "", "tunnel": "tunnel-shaped", "dome": "dome-shaped", "cone": "conical"}
    ),
    Flag("awning", 0.35, "an awning"),
    Flag("ropes", 0.5, "guy ropes"),
    Flag("flag", 0.2, "a flag"),
    second="a door",
    materials=CLOTH,
)
def tent(p: Values, b: Builder) -> None:
    """Cloth shelter down to the ground: prism, half tube, dome or cone with a door."""
    half, h = p.width / 2, p.height
    front = p.depth / 2
    if p.form in ("dome", "cone"):
        front = half * (0.7 + 0.5 * (p.depth - 1.8) / 1.8)
    start = 0.62 * h  # where the awning leaves the cloth
    if p.form == "ridge":
        b.extrude([(-half, 0), (half, 0), (0, h)], p.depth)
        b.cyl((0, h, -front - 0.2), (0, h, front + 0.2), 0.05, color="brown", n=8)
        for z in (-front - 0.1, front + 0.1):
            for side in (-1, 1):
                foot, over = (side * half * 1.02, 0, z), (-side * half * 0.12, h * 1.12, z)
                b.cyl(foot, over, 0.045, color="brown", n=6)
        flap = np.array([(-half * 0.55, 0), (half * 0.55, 0), (0, h * 0.8)])
        b.extrude(flap, 0.12, (0, 0, front), "second")
    elif p.form == "tunnel":
        b.extrude(arc((half, h), 0, 180, 14), p.depth, smooth=True)
        for z in np.linspace(-front + 0.05, front - 0.05, p.sides // 2):
            hoop = lift(arc((half * 1.01, h * 1.01), 0, 180, 12), "xy", float(z))
            b.tube(hoop, 0.06, "gray", n=6)
        b.extrude(arc((half * 0.55, h * 0.75), 0, 180, 10), 0.12, (0, 0, front), "second")
    elif p.form == "dome":
        rim = np.stack(
            [np.cos(np.radians([0, 20, 40, 60, 75])), np.sin(np.radians([0, 20, 40, 60, 75]))], 1
        )
        with b.group(scale=(half, h, front)):
            b.lathe([(0, 0), *rim, (0, 1)], n=p.sides)
            for k in range(p.sides // 2):
                hoop = lift(arc(1.0, 0, 180, 12), "xy")
                b.tube(hoop @ rotation(y=360 * k / p.sides).T, 0.03, "gray", n=5)
        b.extrude(arc((half * 0.42, h * 0.55), 0, 180, 10), front, (0, 0, front * 0.6), "second")
    else:
        with b.group(scale=(half, h, front)):
            b.lathe([(0, 0), (1, 0), (0.06, 0.94), (0, 0.94)], n=2 * p.sides)
            for k in range(p.sides):
                angle = 2 * np.pi * k / p.sides
                low = np.array([np.cos(angle), 0, np.sin(angle)])
                b.cyl(low * 1.01, low * -0.14 + (0, 1.13, 0), 0.025, color="brown", n=5)
        lean = float(np.degrees(np.arctan2(front * 0.94, h * 0.94)))
        flap = np.array([(-half * 0.28, 0), (half * 0.28, 0), (0, h * 0.75)])
        b.extrude(flap, 0.14, (0, 0, front), "second", rot=rotation(x=-lean))
    if p.awning:
        out, reach = front + 0.9, half * 0.62
        inside = front * 0.25 if p.form in ("dome", "cone") else front - 0.05
        slope = float(np.degrees(np.arctan2(0.15 * h, out - inside)))
        at = (0, start + 0.075 * h, (out + inside) / 2)
        b.box((2 * reach, 0.06, float(np.hypot(out - inside, 0.15 * h))), at, rot=rotation(x=slope))
        for side in (-1, 1):
            b.cyl(
                (side * reach * 0.95, 0, out - 0.05),
                (side * reach * 0.95, start, out - 0.05),
                0.04,
                color="gray",
                n=6,
            )
    if p.ropes:
        for z in np.linspace(-0.8, 0.8, p.sides // 2):
            for side in (-1, 1):
                if p.form in ("dome", "cone"):
                    around = float(np.sqrt(1 - z * z))
                    # A point of the cloth at 0.6 of the height; the peg stands outside its foot.
                    rest = 0.4 if p.form == "cone" else 0.8
                    up = (side * half * rest * around, h * 0.58, z * front * rest)
                    peg = (side * half * 1.35 * around, 0, z * front * 1.35)
                else:
                    rest = 0.42 if p.form == "ridge" else 0.8
                    up = (side * half * rest, h * 0.58, z * front)
                    peg = (side * half * 1.4, 0, z * front)
                b.cyl(peg, up, 0.025, color="beige", n=5)
                b.cyl((peg[0], 0, peg[2]), (peg[0], 0.12, peg[2]), 0.04, color="gray", n=5)
    if p.flag:
        b.cyl((0, h * 0.9, 0), (0, h * 1.1 + 0.6, 0), 0.03, color="brown", n=6)
        b.extrude([(0, -0.17), (0.5, 0), (0, 0.17)], 0.03, (0, h * 1.1 + 0.42, 0), "red")


@shape(
    "lighthouse",
    Num("height", 3.4, 5.6, "short", "tall"),
    Num("base", 0.7, 1.05, "slender", "broad"),
    Num("taper", 0.5, 0.75),
    Num("lamp", 0.7, 1.1),
    Count("bands", 1, 4, "band", "bands"),
    Count("windows", 1, 4),
    Choice("plan", {"round": "", "octagon": "octagonal"}),
    Choice("cap", {"dome": "", "cone": ""}),
    Flag("cottage", 0.3, "a small house"),
    Flag("rock", 0.35, "a rocky base"),
    colors=("white", "red", "beige"),
    typical=0.6,
    second="bands",
    materials=PLAIN,
)
def lighthouse(p: Values, b: Builder) -> None:
    """Tapered shaft with bands, a gallery, a glazed lantern and a cap."""
    h, r = p.height, p.base
    top = r * p.taper
    n = 22 if p.plan == "round" else 8
    b.lathe([(0, 0), (r * 1.15, 0), (r * 1.15, 0.18), (r, 0.18), (top, h), (0, h)], n=n)

    def skin(y: float) -> float:
        return float(r + (top - r) * (y - 0.18) / (h - 0.18))

    wide = (h - 0.4) / (2 * p.bands + 1)
    for i in range(p.bands):
        low = 0.3 + wide * (2 * i + 1)
        high = low + wide
        a, c = skin(low) + 0.05, skin(high) + 0.05
        b.lathe([(a - 0.12, low), (a, low), (c, high), (c - 0.12, high)], color="second", n=n)
    deck = top + 0.32
    b.lathe(
        [(0, h - 0.2), (top * 0.95, h - 0.2), (deck, h), (deck, h + 0.1), (0, h + 0.1)],
        color="gray",
        n=n,
    )
    b.ring(deck - 0.05, 0.03, (0, h + 0.42, 0), "gray")
    for angle in np.arange(12) * np.pi / 6:
        x, z = (deck - 0.05) * np.cos(angle), (deck - 0.05) * np.sin(angle)
        b.cyl((x, h + 0.08, z), (x, h + 0.42, z), 0.025, color="gray", n=5)
    glass, lamp = top * 0.68, h + 0.1 + p.lamp
    b.cyl((0, h + 0.05, 0), (0, lamp, 0), glass, color="yellow", n=12)
    for angle in np.arange(8) * np.pi / 4:
        x, z = glass * np.cos(angle), glass * np.sin(angle)
        b.cyl((x, h + 0.08, z), (x, lamp, z), 0.035, color="black", n=5)
    b.cyl((0, lamp - 0.02, 0), (0, lamp + 0.08, 0), glass * 1.3, color="black", n=18)
    if p.cap == "dome":
        b.dome((glass * 1.15, glass * 0.9, glass * 1.15), (0, lamp + 0.06, 0), "red")
        tip = lamp + glass * 0.9
    else:
        b.cyl(
            (0, lamp + 0.06, 0), (0, lamp + 1.25 * glass, 0), glass * 1.2, 0.03, color="red", n=18
        )
        tip = lamp + 1.2 * glass
    b.cyl((0, tip, 0), (0, tip + 0.4, 0), 0.03, color="black", n=6)
    lean = float(np.degrees(np.arctan2(r - top, h)))
    for i in range(p.windows):
        y = h * (0.3 + 0.6 * (i + 0.5) / p.windows)
        b.box((0.24, 0.32, 0.22), (0, y, skin(y)), "black", rotation(x=-lean))
    b.box((0.44, 0.75, 0.3), (0, 0.37, r * 1.06), "brown")
    if p.cottage:
        x = r + 0.75
        b.box((1.7, 0.85, 1.1), (x, 0.42, 0))
        b.extrude([(-0.68, 0.8), (0.68, 0.8), (0, 1.35)], 1.8, (x, 0, 0), "red", axis="x")
        b.box((0.3, 0.3, 1.14), (x + 0.25, 0.5, 0), "light blue")
    if p.rock:
        b.blob(
            (r * 1.9 + 0.9 * p.cottage, 0.42, r * 1.7),
            (0.45 * p.cottage, -0.22, 0),
            "gray",
            0.12,
            int(p.detail),
        )
