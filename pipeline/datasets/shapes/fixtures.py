"""Fixtures of a room and a piano. Lengths are about metres; floor at y = 0, front at +z."""

from __future__ import annotations

import numpy as np

from pipeline.datasets.shapes.builder import Builder
from pipeline.datasets.shapes.joinery import LEG_STYLES, SIDES, leg, legs, outline, rim
from pipeline.datasets.shapes.primitives import F64, arc, curve, rotation
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
    "ladder",
    Num("height", 1.6, 2.8, "short", "tall"),
    Num("width", 0.34, 0.62, "narrow", "wide"),
    Num("taper", 0, 0.3),
    Num("lean", 4, 22),
    Count("rungs", 4, 10, "rung", "rungs"),
    Choice("kind", {"straight": "straight", "step": "folding"}),
    Choice("rung", {"round": "", "flat": ""}),
    Flag("foot", 0.3, "a wide foot"),
    materials={"plain": 0.45, "wooden": 0.3, "metal": 0.25},
    second="rungs",
)
def ladder(p: Values, b: Builder) -> None:
    """Two rails with rungs, leaning or with a hinged support behind."""
    h, low, high = p.height, p.width / 2, p.width / 2 * (1 - p.taper)
    step = p.kind == "step"
    tall = h * (0.75 if step else 1)
    with b.group(rot=rotation(x=-p.lean)):
        for s in SIDES:
            leg(b, (s * low, 0, 0), (s * high, tall, 0), 0.06, "square")
        for i in range(p.rungs):
            y = tall * (i + 0.7) / (p.rungs + 0.4)
            x = low + (high - low) * y / tall
            if p.rung == "round":
                b.cyl((-x, y, 0), (x, y, 0), 0.025, color="second", n=8)
            else:
                b.box((2 * x, 0.03, 0.13), (0, y, 0), "second", rotation(x=p.lean))
        if p.foot:
            b.box((p.width * 1.9, 0.08, 0.08), (0, 0.03, 0))
    if step:
        top = tall * np.array([0, np.cos(np.radians(p.lean)), -np.sin(np.radians(p.lean))])
        b.box((2 * high + 0.1, 0.05, 0.26), top + np.array([0, 0.02, -0.05]))
        ends = []
        for s in SIDES:
            ends.append(np.array([s * low, 0, top[2] * 2.2 - 0.15]))
            leg(b, ends[-1], top + np.array([s * high, 0, -0.08]), 0.045, "square")
        b.box((2 * low, 0.05, 0.03), ends[0] * (0, 0.8, 0.8) + top * 0.2)


@shape(
    "door",
    Num("width", 0.65, 1.15, "narrow", "wide"),
    Num("jamb", 0.06, 0.16, "thin-framed", "thick-framed"),
    Count("panels", 1, 6, "panel", "panels"),
    Choice("top", {"flat": "", "arched": "arched", "pointed": "pointed"}),
    Choice("state", {"closed": "closed", "open": "open"}),
    Choice("handle", {"knob": "", "lever": "", "ring": ""}),
    Flag("step", 0.35, "a doorstep"),
    Flag("slot", 0.2, "a letter slot"),
    colors=("brown", "white", "red", "green"),
    typical=0.5,
    materials=FURNITURE,
    second="panels",
)
def door(p: Values, b: Builder) -> None:
    """Leaf with raised panels and a handle in its frame, hinged on the left."""
    w, h, j = p.width, 2.0, p.jamb
    outer, inner = outline(w + 2 * j, h + j, p.top), outline(w, h, p.top)
    b.extrude(np.concatenate([outer, inner[::-1]]), 0.16)
    if p.step:
        b.box((w + 2 * j + 0.2, 0.1, 0.5), (0, -0.05, 0.12), "gray")
    turn = -float(p.rng().uniform(35, 75)) if p.state == "open" else 0
    with b.group((-w / 2, 0.01, 0.02), rotation(y=turn)):
        edge = outline(w * 0.985, h * 0.985, p.top) + (w / 2, 0)
        b.extrude(edge, 0.06)
        room = h - {"flat": 0, "arched": w * 0.42, "pointed": w * 0.75}[p.top] - 0.2
        columns = 2 if p.panels in (4, 6) else 1
        rows = p.panels // columns
        for i in range(p.panels):
            x = w / 2 + (i % columns - (columns - 1) / 2) * w * 0.42
            y = 0.1 + room * (i // columns + 0.5) / rows
            size = (w * (0.34 if columns == 2 else 0.7), room / rows * 0.84, 0.12)
            b.box(size, (x, y, 0), "second")
        if p.slot:
            b.box((w * 0.26, 0.06, 0.16), (w / 2, 0.1 + room / rows * 0.5, 0), "gold")
        for s in SIDES:
            at = np.array([w * 0.92, 0.95, s * 0.09])
            b.cyl((at[0], at[1], 0), at, 0.02, color="gold", n=8)
            if p.handle == "knob":
                b.ball(0.05, at, "gold", n=10)
            elif p.handle == "lever":
                b.box((0.2, 0.03, 0.03), at - np.array([0.08, 0, 0]), "gold")
            else:
                b.ring(0.065, 0.014, at - np.array([0, 0.06, 0]), "gold", axis="z", n=14)


@shape(
    "window",
    Num("width", 0.7, 1.5, "narrow", "wide"),
    Num("height", 1.0, 1.7, "short", "tall"),
    Num("frame", 0.05, 0.13, "thin-framed", "thick-framed"),
    Count("columns", 1, 4),
    Count("rows", 2, 4),
    Choice("top", {"flat": "", "arched": "arched", "pointed": "pointed"}),
    Flag("shutters", 0.4, "shutters"),
    Flag("flowers", 0.25, "a flower box"),
    colors=("white", "brown"),
    typical=0.5,
    materials=FURNITURE,
    second="a sill",
)
def window(p: Values, b: Builder) -> None:
    """Panes between bars in a frame that stands on a sill."""
    w, f = p.width, p.frame
    h = max(p.height, {"flat": 0, "arched": 0.8, "pointed": 1.2}[p.top] * w)
    inner = outline(w, h, p.top)
    b.extrude(np.concatenate([outline(w + 2 * f, h + f, p.top), inner[::-1]]), 0.16)
    b.extrude(outline(w + 0.02, h + 0.01, p.top), 0.015, color="light blue")
    b.box((w + 2 * f, f, 0.16), (0, f * 0.4, 0))
    b.box((w + 2 * f + 0.2, 0.07, 0.36), (0, -0.03, 0.08), "second")
    over, top = inner[1:-1][::-1], {"flat": h, "arched": h - w / 2, "pointed": h - w * 0.866}[p.top]
    for x in np.linspace(-w / 2, w / 2, p.columns + 1)[1:-1]:
        up = float(np.interp(x, over[:, 0], over[:, 1]))
        b.box((0.045, up, 0.07), (x, up / 2, 0))
    for y in np.linspace(0, top, p.rows + (p.top == "flat"))[1 : None if top < h else -1]:
        b.box((w, 0.045, 0.08), (0, y, 0))
    if p.shutters:
        leaf = w / 2 * 0.95
        for s in SIDES:
            x = s * (w / 2 + f + leaf / 2)
            b.box((leaf, top, 0.05), (x, top / 2, 0.06), "second")
            for y in (np.arange(8) + 0.5) * top / 8:
                b.box((leaf * 0.8, top / 14, 0.025), (x, y, 0.09), "second", rotation(x=35))
    if p.flowers:
        b.box((w, 0.2, 0.24), (0, 0.05, 0.26), "brown")
        rng = p.rng()
        for x in np.linspace(-w * 0.42, w * 0.42, 5):
            at = (x, 0.2, 0.26)
            b.blob((0.1, 0.13, 0.1), at, str(rng.choice(["red", "pink", "green"])), 0.25, 3)


@shape(
    "picture frame",
    Num("aspect", 0.55, 1.8, "portrait", "landscape"),
    Num("border", 0.07, 0.24, "thin-bordered", "thick-bordered"),
    Num("depth", 0.05, 0.14),
    Choice("outline", {"square": "", "oval": "oval", "octagonal": "octagonal"}),
    Choice("support", {"stand": "standing", "cord": "hanging", "none": ""}),
    Choice("profile", {"flat": "", "outer": "", "inner": ""}),
    Flag("mat", 0.4, "a white mat"),
    materials=FURNITURE,
    second="a picture",
)
def picture_frame(p: Values, b: Builder) -> None:
    """Flat picture within a broad raised border."""
    x, y, d = p.aspect**0.5 / 2, p.aspect**-0.5 / 2, p.depth
    if p.outline == "square":
        unit_shape = np.array([(1, -1), (1, 1), (-1, 1), (-1, -1)], np.float64)
    elif p.outline == "oval":
        unit_shape = arc(1, 0, 360, 28)[:-1]
    else:
        unit_shape = arc(1.08, 22.5, 382.5, 8)[:-1]

    def edge(inset: float) -> F64:
        outline: F64 = unit_shape * (x - inset, y - inset)
        return outline

    with b.group((0, y, 0), rotation(x=-14 if p.support == "stand" else 0)):
        rim(b, edge(0), edge(p.border), d, (0, 0, 0))
        if p.profile != "flat":
            from_edge = 0.0 if p.profile == "outer" else 0.6 * p.border
            rim(b, edge(from_edge), edge(from_edge + 0.4 * p.border), d * 0.8, (0, 0, d * 0.6))
        b.extrude(edge(p.border * 0.9), 0.02, (0, 0, -d * 0.2), "second")
        if p.mat:
            rim(b, edge(p.border * 0.9), edge(p.border + 0.07), 0.03, (0, 0, -d * 0.1), "white")
        if p.support == "cord":
            hook = np.array([0, y + 0.3, -d / 2])
            slack = np.array([x * 0.6, y * 0.7 - hook[1], 0])
            b.tube(hook + np.stack([slack * (-1, 1, 1), slack * 0, slack]), 0.012, "black")
            b.ball(0.035, hook, "silver", n=8)
        elif p.support == "stand":
            b.box((0.2, 1.5 * y, 0.025), (0, -0.2 * y, -0.33 * y - 0.2 * d), rot=rotation(x=26))


@shape(
    "wall clock",
    Num("rim", 0.05, 0.17, "thin-rimmed", "thick-rimmed"),
    Num("depth", 0.1, 0.3, "flat", "deep"),
    Num("hour", 0, 12),
    Choice(
        "outline",
        {"round": "round", "square": "square", "octagonal": "octagonal", "sun": "sunburst"},
    ),
    Choice("marks", {"twelve": "", "four": ""}),
    Flag("pendulum", 0.35, "a pendulum"),
    Flag("seconds", 0.5, "a second hand"),
    synonyms=("clock",),
    second="a clock face",
    second_colors=("white", "beige", "yellow", "light blue", "black"),
)
def wall_clock(p: Values, b: Builder) -> None:
    """Dial with marks and hands in relief."""
    d, n = p.depth, {"square": 4, "octagonal": 8}.get(p.outline, 28)
    unit_shape = arc(1.2 if n == 4 else 1, 180 / n, 360 + 180 / n, n)[:-1]
    b.extrude(unit_shape * (1 - p.rim / 2), d * 0.7, (0, 0, -d * 0.15), "second", smooth=n > 8)
    rim(b, unit_shape, unit_shape * (1 - p.rim), d, (0, 0, 0))
    face, ink = d * 0.2 + 0.015, "black"
    reach = (0.85 if n == 4 else 0.97 * np.cos(np.pi / n)) * (1 - p.rim)
    for k in range(0, 12, 1 if p.marks == "twelve" else 3):
        turn = rotation(z=30 * k)
        size = (0.06, 0.2, 0.05) if k % 3 == 0 else (0.035, 0.1, 0.05)
        b.box(size, turn @ np.array([0, reach - 0.06 - size[1] / 2, face]), ink, turn)
    hands = [(0.09, 0.5 * reach, p.hour * 30, ink), (0.06, 0.78 * reach, p.hour * 360, ink)]
    if p.seconds:
        hands.append((0.03, 0.85 * reach, p.hour * 21600 / 7, "red"))
    for i, (wide, long, angle, color) in enumerate(hands):
        turn = rotation(z=-angle)
        at = turn @ np.array([0, long * 0.42, face + 0.02 + 0.03 * i])
        b.box((wide, long * 1.1, 0.04), at, color, turn)
    b.cyl((0, 0, face - 0.02), (0, 0, face + 0.12), 0.07, color=ink, n=10)
    if p.outline == "sun":
        for k in range(16):
            turn, long = rotation(z=22.5 * k), 0.45 if k % 2 else 0.65
            spike = [(-0.09, -0.05), (0.09, -0.05), (0, long)]
            b.extrude(spike, d * 0.4, turn @ np.array([0, 1, 0]), rot=turn)
    if p.pendulum:
        low = -1 + p.rim / 2 if n > 4 else -0.85
        if p.outline != "sun":
            for x in (-0.42, 0.42):
                b.box((0.09, 1.2, d), (x, low - 0.5, 0))
            b.box((0.93, 0.1, d), (0, low - 1.1, 0))
            b.box((0.8, 1.15, 0.04), (0, low - 0.5, -d / 2 + 0.02))
        end = np.array([0.2, low - 0.8, 0])
        b.cyl((0, low + 0.05, 0), end, 0.025, color="gold", n=8)
        ahead = np.array([0, 0, d * 0.25])
        b.cyl(end - ahead, end + ahead, 0.17, color="gold")


@shape(
    "piano",
    Choice("kind", {"upright": "upright", "grand": "grand"}),
    Num("width", 1.15, 1.6, "narrow", "wide"),
    Num("long", 0.8, 1.6),
    Num("height", 0.95, 1.35),
    Num("open", 18, 38),
    Choice("leg", LEG_STYLES),
    Flag("desk", 0.5, "a music stand"),
    Flag("stool", 0.4, "a piano stool"),
    colors=("black", "brown", "white"),
    typical=0.65,
    materials={"plain": 0.6, "wooden": 0.4},
    second="a lid",
)
def piano(p: Values, b: Builder) -> None:
    """Keyboard towards +z; behind it a case, upright or lying on three legs."""
    w, bed = p.width, 0.66
    half = w / 2
    if p.kind == "upright":
        b.box((w, p.height, 0.36), (0, p.height / 2, 0))
        b.box((w + 0.06, 0.05, 0.42), (0, p.height + 0.02, 0), "second")
        back, shelf = 0.18, p.height - 0.3
    else:
        long, t = p.long + 0.35, 0.3
        bend = [(half, 0.3 * long), (0.25 * w, 0.6 * long), (0, 0.92 * long), (-0.3 * w, long)]
        plan = np.array([(-half, 0), (half, 0), *curve(bend, 4), (-half, 0.88 * long)])
        b.extrude(plan, t, (0, bed + t / 2 - 0.05, 0), axis="y")
        with b.group((-half, bed + t - 0.05, 0), rotation(z=p.open)):
            b.extrude(plan + (half, 0), 0.035, axis="y", color="second")
        rise = np.sin(np.radians(p.open))
        z, top = -0.28 * long, bed + t + 0.8 * w * rise - 0.05
        b.cyl((0.42 * w, bed, z), (0.3 * w, top, z), 0.015)
        leg(b, (-0.25 * w, 0, -0.85 * long), (-0.25 * w, bed, -0.85 * long), 0.11, p.leg)
        b.box((0.06, bed, 0.05), (0, bed / 2, 0))
        b.box((0.22, 0.06, 0.06), (0, 0.06, 0))
        back, shelf = 0.0, bed + t - 0.08
    b.box((w, 0.09, 0.34), (0, bed - 0.045, back + 0.15))
    for s in SIDES:
        b.box((0.07, 0.17, 0.32), (s * (half - 0.035), bed + 0.08, back + 0.15))
        x = s * (half - 0.08)
        leg(b, (x, 0, back + 0.24), (x, bed - 0.08, back + 0.24), 0.09, p.leg)
    b.box((w - 0.14, 0.06, 0.17), (0, bed + 0.02, back + 0.23), "white")
    octaves = round((w - 0.14) / 0.26)
    pitch = (w - 0.14) / (7 * octaves)
    for k in range(7 * octaves):
        if k % 7 not in (2, 6):
            x = (k + 1) * pitch - half + 0.07
            b.box((pitch * 0.55, 0.05, 0.1), (x, bed + 0.05, back + 0.19), "black")
    for x in (-0.08, 0, 0.08):
        b.box((0.035, 0.03, 0.16), (x, 0.05, back + 0.06), "gold")
    if p.desk:
        b.box((0.55, 0.34, 0.025), (0, shelf + 0.16, back + 0.01), rot=rotation(x=-14))
        b.box((0.55, 0.03, 0.08), (0, shelf, back + 0.04))
    if p.stool:
        b.soft((0.62, 0.1, 0.34), (0, 0.46, back + 0.72), "black", roundness=0.3)
        with b.group((0, 0, back + 0.72)):
            legs(b, (0.58, 0.44, 0.3), 0.06, p.leg)
