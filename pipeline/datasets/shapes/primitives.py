"""Parametric solids: small closed triangle meshes with analytic or derived normals.

Every function returns a ``Part`` in the shared frame (+y up, counter-clockwise faces seen from
outside). Sharp edges have one vertex per adjoining face, so that the normals are right as given
and no consumer needs to look for creases. Lengths have no unit: objects are normalised at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Part:
    """One closed piece of a mesh, one colour."""

    vertices: F64  # (V, 3)
    normals: F64  # (V, 3) unit
    faces: I32  # (F, 3)

    def moved(
        self, at: ArrayLike = (0, 0, 0), rot: F64 | None = None, scale: ArrayLike | None = None
    ) -> Part:
        """Scale along the axes, then rotate by ``rot`` (3, 3), then shift by ``at``.

        ``scale`` is one positive factor or three.
        """
        vertices, normals = self.vertices, self.normals
        if scale is not None:
            factors = np.broadcast_to(np.asarray(scale, np.float64), (3,))
            vertices = vertices * factors
            normals = unit(normals / factors)  # inverse transpose of a diagonal
        if rot is not None:
            vertices, normals = vertices @ rot.T, normals @ rot.T
        return Part(vertices + np.asarray(at, np.float64), normals, self.faces)


def unit(vectors: NDArray[Any]) -> F64:
    """Rows scaled to length 1; zero rows stay zero."""
    lengths = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None]
    scaled: F64 = vectors / np.maximum(lengths, 1e-12)
    return scaled


def rotation(x: float = 0, y: float = 0, z: float = 0) -> F64:
    """Rotation matrix (3, 3): first about x, then y, then z, in degrees, right-handed."""
    (sx, sy, sz), (cx, cy, cz) = np.sin(np.radians([x, y, z])), np.cos(np.radians([x, y, z]))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    matrix: F64 = about_z @ about_y @ about_x
    return matrix


def from_y_to(direction: ArrayLike) -> F64:
    """A rotation (3, 3) that takes +y to ``direction``."""
    d = np.asarray(direction, np.float64)
    y = d / max(float(np.linalg.norm(d)), 1e-12)
    helper = np.array([1.0, 0, 0]) if abs(y[0]) < 0.9 else np.array([0, 0, 1.0])
    z = np.cross(helper, y)
    z /= np.linalg.norm(z)
    return np.stack([np.cross(y, z), y, z], axis=1)


def concatenate(parts: Sequence[Part]) -> Part:
    """All parts as one."""
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts])
    return Part(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.normals for part in parts]),
        np.concatenate(
            [part.faces + start for part, start in zip(parts, offsets, strict=False)]
        ).astype(np.int32),
    )


# ---------------------------------------------------------------- curves


def arc(
    radius: float | tuple[float, float],
    start: float,
    stop: float,
    steps: int = 12,
    at: tuple[float, float] = (0, 0),
) -> F64:
    """Points (steps + 1, 2) of an ellipse arc, angles in degrees from +x towards +y."""
    rx, ry = radius if isinstance(radius, tuple) else (radius, radius)
    angles = np.radians(np.linspace(start, stop, steps + 1))
    return np.stack([at[0] + rx * np.cos(angles), at[1] + ry * np.sin(angles)], axis=1)


def curve(points: ArrayLike, steps: int = 4) -> F64:
    """Catmull-Rom spline through ``points`` (k, d), ``steps`` pieces between neighbours."""
    p = np.asarray(points, np.float64)
    padded = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = (np.arange(steps) / steps)[None, :, None]
    a, b, c, d = (padded[i : len(p) - 1 + i, None] for i in range(4))
    pieces = 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - 3 * c + d - a) * t**3
    )
    return np.concatenate([pieces.reshape(-1, p.shape[1]), p[-1:]])


def lift(points: F64, plane: str = "xy", depth: float = 0.0) -> F64:
    """Plane points (k, 2) as (k, 3): the two letters name the axes they run along."""
    lifted = np.full((len(points), 3), depth)
    lifted[:, "xyz".index(plane[0])] = points[:, 0]
    lifted[:, "xyz".index(plane[1])] = points[:, 1]
    return lifted


# ---------------------------------------------------------------- solids


@lru_cache(maxsize=256)
def _grid_faces(rows: int, columns: int, wrap_rows: bool) -> I32:
    """Faces of a (rows, columns) grid of vertices that closes around its columns."""
    row = np.arange(rows if wrap_rows else rows - 1)[:, None]
    column = np.arange(columns)[None, :]
    after, right = (row + 1) % rows, (column + 1) % columns
    a, b = row * columns + column, row * columns + right
    c, d = after * columns + right, after * columns + column
    return np.stack([a, b, c, a, c, d], axis=-1).reshape(-1, 3).astype(np.int32)


@lru_cache(maxsize=64)
def _circle(n: int) -> tuple[F64, F64]:
    """Cosines and sines of n equal angles."""
    angles = np.arange(n) * (2 * np.pi / n)
    return np.cos(angles), np.sin(angles)


@lru_cache(maxsize=1)
def _unit_box() -> Part:
    vertices, normals = [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            normal = np.zeros(3)
            normal[axis] = sign
            u = np.zeros(3)
            u[(axis + 1) % 3] = 0.5
            v = np.cross(normal, u)
            centre = normal / 2
            vertices += [centre - u - v, centre + u - v, centre + u + v, centre - u + v]
            normals += [normal] * 4
    corners = np.arange(6)[:, None, None] * 4 + np.array([[0, 1, 2], [0, 2, 3]])
    return Part(np.array(vertices), np.array(normals), corners.reshape(-1, 3).astype(np.int32))


def box(size: ArrayLike = 1.0) -> Part:
    """Axis-aligned box of ``size`` (x, y, z), centred at the origin."""
    return Part(
        _unit_box().vertices * np.asarray(size, np.float64), _unit_box().normals, _unit_box().faces
    )


def frustum_box(bottom: tuple[float, float], top: tuple[float, float], height: float) -> Part:
    """Box whose floor and top have different (x, z) sizes; stands on y = 0."""
    vertices = _unit_box().vertices.copy()
    upper = vertices[:, 1] > 0
    vertices[:, 0] *= np.where(upper, top[0], bottom[0])
    vertices[:, 2] *= np.where(upper, top[1], bottom[1])
    vertices[:, 1] = np.where(upper, height, 0.0)
    return _flat(vertices, _unit_box().faces)


def _flat(vertices: F64, faces: I32) -> Part:
    """One normal per face."""
    corners = vertices[faces]
    normals = unit(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    return Part(
        corners.reshape(-1, 3),
        np.repeat(normals, 3, axis=0),
        np.arange(3 * len(faces), dtype=np.int32).reshape(-1, 3),
    )


def lathe(profile: ArrayLike, n: int = 20, crease: float = 40.0) -> Part:
    """Solid of revolution about y of a profile (k, 2) of (radius, height).

    The outside lies to the right of the direction of travel: start at the bottom on the axis, go
    out and up, and for a vessel back down the inside. Corners sharper than ``crease`` degrees
    stay sharp.
    """
    p = np.asarray(profile, np.float64)
    step = np.diff(p, axis=0)
    keep = np.einsum("ij,ij->i", step, step) > 1e-16
    if not keep.all():
        p = np.concatenate([p[:1], p[1:][keep]])
        step = step[keep]
    across = unit(np.stack([step[:, 1], -step[:, 0]], axis=1))  # (S, 2) normal of each segment
    smooth = np.einsum("ij,ij->i", across[:-1], across[1:]) > np.cos(np.radians(crease))
    joint = unit(across[:-1] + across[1:])
    start, stop = across.copy(), across.copy()
    start[1:][smooth] = joint[smooth]
    stop[:-1][smooth] = joint[smooth]
    rows = np.stack([p[:-1], p[1:]], axis=1).reshape(-1, 2)  # (2S, 2)
    slopes = np.stack([start, stop], axis=1).reshape(-1, 2)
    cos, sin = _circle(n)

    def spin(pairs: F64) -> F64:
        out = np.empty((len(pairs), n, 3))
        out[..., 0] = pairs[:, :1] * cos
        out[..., 1] = pairs[:, 1:]
        out[..., 2] = pairs[:, :1] * -sin
        return out.reshape(-1, 3)

    strips = _strip_faces(len(step), n)  # (S, n, 2, 3)
    on_axis = rows[:, 0].reshape(-1, 2) < 1e-9
    mask = np.broadcast_to(~on_axis[:, None, :], strips.shape[:3])
    return Part(spin(rows), spin(slopes), strips[mask])


@lru_cache(maxsize=256)
def _strip_faces(segments: int, n: int) -> I32:
    """Faces (S, n, 2, 3) of S separate rings of quads, each with two rows of n vertices."""
    base = np.arange(segments)[:, None] * 2 * n
    left = np.arange(n)[None, :]
    right = (left + 1) % n
    a, b, c, d = base + left, base + right, base + n + right, base + n + left
    lower = np.stack([a, b, c], axis=-1)  # gone where the lower row lies on the axis
    upper = np.stack([a, c, d], axis=-1)
    return np.stack([lower, upper], axis=2).astype(np.int32)


@lru_cache(maxsize=16)
def _unit_cylinder(n: int) -> Part:
    return lathe([(0, 0), (1, 0), (1, 1), (0, 1)], n)


def cylinder(
    start: ArrayLike, stop: ArrayLike, radius: float, top: float | None = None, n: int = 14
) -> Part:
    """Cylinder, or cone where ``top`` differs from ``radius``, from ``start`` to ``stop``."""
    a, b = np.asarray(start, np.float64), np.asarray(stop, np.float64)
    axis = b - a
    length = float(np.linalg.norm(axis))
    rot = None if axis[0] == 0 and axis[2] == 0 and axis[1] > 0 else from_y_to(axis)
    if top is None or top == radius:
        return _unit_cylinder(n).moved(a, rot, (radius, length, radius))
    profile = [(0, 0), (radius, 0), (top, length), (0, length)]
    return lathe(profile, n).moved(a, rot)


@lru_cache(maxsize=16)
def _unit_sphere(n: int, half: bool) -> Part:
    angles = np.radians(np.linspace(0 if half else -90, 90, n // 4 + 1 if half else n // 2 + 1))
    profile = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    profile[np.abs(profile[:, 0]) < 1e-9, 0] = 0
    if half:
        profile = np.concatenate([[[0, 0]], profile])
    return lathe(profile, n)


def ellipsoid(radii: ArrayLike, n: int = 16) -> Part:
    """Ellipsoid with half axes ``radii`` (one number or three)."""
    return _unit_sphere(n, False).moved(scale=radii)


def dome(radii: ArrayLike, n: int = 16) -> Part:
    """Upper half of an ellipsoid, closed by its floor at y = 0."""
    return _unit_sphere(n, True).moved(scale=radii)


@lru_cache(maxsize=32)
def _unit_soft(roundness: float, n: int) -> Part:
    latitude = np.radians(np.linspace(-90, 90, n // 2 + 1))[:, None]
    longitude = (np.arange(n) * 2 * np.pi / n + np.pi / n)[None, :]

    def power(x: F64, e: float) -> F64:
        signed: F64 = np.sign(x) * np.maximum(np.abs(x), 1e-9) ** e
        return signed

    def shell(e: float) -> F64:
        flat = power(np.cos(latitude), e)
        return np.stack(
            [
                flat * power(np.cos(longitude), e),
                np.broadcast_to(power(np.sin(latitude), e), (n // 2 + 1, n)),
                flat * -power(np.sin(longitude), e),
            ],
            axis=-1,
        ).reshape(-1, 3)

    # Superquadric normals have the exponent 2 - e (Barr 1981, eq. for the dual superellipsoid).
    return Part(
        0.5 * shell(roundness), unit(shell(2 - roundness)), _grid_faces(n // 2 + 1, n, False)
    )


def soft_box(size: ArrayLike, roundness: float = 0.4, n: int = 16) -> Part:
    """Superellipsoid that fills a box of ``size``: 1 is an ellipsoid, towards 0 a box."""
    return _unit_soft(roundness, n).moved(scale=size)


def tube(
    path: F64,
    radius: float | ArrayLike,
    n: int = 8,
    closed: bool = False,
    flatten: tuple[float, float] = (1.0, 1.0),
) -> Part:
    """Sweep a circle, or ellipse by ``flatten``, along ``path`` (k, 3).

    ``radius`` is one number or one per point. The second factor of ``flatten`` applies along the
    normal of the plane in which the path lies best.
    """
    count = len(path)
    radii = np.broadcast_to(np.asarray(radius, np.float64), (count,))
    if closed:
        along = unit(np.roll(path, -1, 0) - np.roll(path, 1, 0))
    else:
        along = unit(np.gradient(path, axis=0))
    # The plane's normal never runs along a plane curve, so it frames all of it without twist.
    axes = np.linalg.svd(path - path.mean(0), full_matrices=True)[2]
    side = unit(np.cross(along, axes[2]))
    other = np.cross(along, side)
    cos, sin = _circle(n)
    radial = (
        cos[None, :, None] * side[:, None] * flatten[0]
        + sin[None, :, None] * other[:, None] * flatten[1]
    )
    points = path[:, None] + radial * radii[:, None, None]
    outward = (
        cos[None, :, None] * side[:, None] / flatten[0]
        + sin[None, :, None] * other[:, None] / flatten[1]
    )
    if radii.max() > radii.min():
        lengths = np.linalg.norm(np.gradient(path, axis=0), axis=1)
        slope = np.gradient(radii) / np.maximum(lengths, 1e-9)
        outward = outward - slope[:, None, None] * along[:, None]
    body = Part(points.reshape(-1, 3), unit(outward).reshape(-1, 3), _grid_faces(count, n, closed))
    if closed:
        return body
    caps = [_fan(points[0, ::-1], -along[0]), _fan(points[-1], along[-1])]
    return concatenate([body, *caps])


def _fan(ring: F64, normal: F64) -> Part:
    """Flat lid over a convex ring (n, 3) that runs counter-clockwise seen along ``-normal``."""
    n = len(ring)
    faces = np.stack([np.zeros(n - 2, int), np.arange(1, n - 1), np.arange(2, n)], axis=1)
    return Part(ring.copy(), np.tile(normal, (n, 1)), faces.astype(np.int32))


def loft(sections: ArrayLike, n: int = 16, roundness: float = 1.0) -> Part:
    """Skin over ellipses that stand across z; sections (k, 5) of (z, x, y, rx, ry), z rising.

    ``roundness`` below 1 makes the ellipses squarer (superellipses). Ends are closed flat.
    """
    s = np.asarray(sections, np.float64)
    cos, sin = _circle(n)
    if roundness != 1.0:
        cos, sin = (np.sign(v) * np.abs(v) ** roundness for v in (cos, sin))
    points = np.empty((len(s), n, 3))
    points[..., 0] = s[:, 1:2] + s[:, 3:4] * cos
    points[..., 1] = s[:, 2:3] + s[:, 4:5] * sin
    points[..., 2] = s[:, :1]
    around = np.roll(points, -1, 1) - np.roll(points, 1, 1)
    normals = unit(np.cross(around, np.gradient(points, axis=0)))
    forward = np.array([0.0, 0, 1])
    for row, direction in ((0, -forward), (-1, forward)):
        if min(s[row, 3], s[row, 4]) < 1e-6:  # a tip: no area to take a normal from
            normals[row] = direction
    body = Part(points.reshape(-1, 3), normals.reshape(-1, 3), _grid_faces(len(s), n, False))
    return concatenate([body, _fan(points[0, ::-1], -forward), _fan(points[-1], forward)])


def extrude(polygon: ArrayLike, depth: float, axis: str = "z", smooth: bool = False) -> Part:
    """Prism over a simple polygon (k, 2) given counter-clockwise.

    ``axis`` z: the polygon lies in (x, y); x: in (z, y), for side views; y: in (x, -z), a plan
    seen from above. The prism is centred along the axis. ``smooth`` shades the sides as curved.
    """
    p = np.asarray(polygon, np.float64)
    k = len(p)
    triangles = triangulate(p)
    half = depth / 2
    front, back = np.column_stack([p, np.full(k, half)]), np.column_stack([p, np.full(k, -half)])
    edge = np.roll(p, -1, 0) - p
    side = unit(np.column_stack([edge[:, 1], -edge[:, 0], np.zeros(k)]))
    starts = side if not smooth else unit(side + np.roll(side, 1, 0))
    stops = side if not smooth else unit(side + np.roll(side, -1, 0))
    quads = np.stack([back, np.roll(back, -1, 0), np.roll(front, -1, 0), front], axis=1)
    quad_normals = np.stack([starts, stops, stops, starts], axis=1)
    base = 2 * k + 4 * np.arange(k)[:, None, None]
    walls = (base + np.array([[0, 1, 2], [0, 2, 3]])).reshape(-1, 3)
    toward = np.array([0.0, 0, 1])
    part = Part(
        np.concatenate([front, back, quads.reshape(-1, 3)]),
        np.concatenate(
            [np.tile(toward, (k, 1)), np.tile(-toward, (k, 1)), quad_normals.reshape(-1, 3)]
        ),
        np.concatenate([triangles, triangles[:, ::-1] + k, walls]).astype(np.int32),
    )
    if axis == "x":
        return part.moved(rot=rotation(y=-90))
    if axis == "y":
        return part.moved(rot=rotation(x=-90))
    return part


def triangulate(polygon: F64) -> NDArray[np.int64]:
    """Ear clipping of a simple counter-clockwise polygon (k, 2): triangles (k - 2, 3)."""
    points = [(float(x), float(y)) for x, y in polygon]
    left = list(range(len(points)))
    triangles = []

    def turn(a: int, b: int, c: int) -> float:
        (ax, ay), (bx, by), (cx, cy) = points[a], points[b], points[c]
        return (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)

    reflex = {
        i for i in left if turn(left[i - 1], i, left[(i + 1) % len(left)]) <= 0
    }  # only these can lie inside an ear
    position = 0
    stuck = 0
    while len(left) > 3 and stuck <= len(left):
        position %= len(left)
        a, b, c = left[position - 1], left[position], left[(position + 1) % len(left)]
        ear = turn(a, b, c) > 0 and not any(
            turn(a, b, q) >= 0 and turn(b, c, q) >= 0 and turn(c, a, q) >= 0
            for q in reflex
            if q not in (a, b, c)
        )
        if not ear:
            position, stuck = position + 1, stuck + 1
            continue
        triangles.append((a, b, c))
        left.pop(position)
        reflex.discard(b)
        for q in (a, c):
            i = left.index(q)
            if q in reflex and turn(left[i - 1], q, left[(i + 1) % len(left)]) > 0:
                reflex.discard(q)
        stuck = 0
        position = max(position - 1, 0)
    triangles += [(left[0], left[i], left[i + 1]) for i in range(1, len(left) - 1)]
    return np.array(triangles, np.int64)


@lru_cache(maxsize=4)
def _icosphere(level: int) -> tuple[F64, I32]:
    g = (1 + 5**0.5) / 2
    vertices = unit(
        np.array(
            [(-1, g, 0), (1, g, 0), (-1, -g, 0), (1, -g, 0), (0, -1, g), (0, 1, g)]
            + [(0, -1, -g), (0, 1, -g), (g, 0, -1), (g, 0, 1), (-g, 0, -1), (-g, 0, 1)],
            np.float64,
        )
    )
    faces = np.array(
        [(0, 11, 5), (0, 5, 1), (0, 1, 7), (0, 7, 10), (0, 10, 11), (1, 5, 9), (5, 11, 4)]
        + [(11, 10, 2), (10, 7, 6), (7, 1, 8), (3, 9, 4), (3, 4, 2), (3, 2, 6), (3, 6, 8)]
        + [(3, 8, 9), (4, 9, 5), (2, 4, 11), (6, 2, 10), (8, 6, 7), (9, 8, 1)],
        np.int32,
    )
    for _ in range(level):
        edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
        unique, index = np.unique(edges, axis=0, return_inverse=True)
        middle = index.reshape(-1, 3) + len(vertices)
        vertices = np.concatenate([vertices, unit(vertices[unique].sum(1))])
        a, b, c = faces.T
        ab, bc, ca = middle.T
        faces = np.concatenate(
            [np.stack(t, axis=1) for t in ((a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca))]
        ).astype(np.int32)
    return vertices, faces


def blob(radii: ArrayLike, amount: float, seed: int, level: int = 2) -> Part:
    """Icosphere with its radius varied by up to about ``amount`` (a fraction), then scaled."""
    sphere, faces = _icosphere(level)
    rng = np.random.default_rng(seed)
    waves = rng.normal(0, 3.0, (5, 3))
    bumps = np.sin(sphere @ waves.T + rng.uniform(0, 2 * np.pi, 5)).mean(1)
    vertices = sphere * (1 + amount * 2 * bumps)[:, None] * np.asarray(radii, np.float64)
    corners = vertices[faces]
    face_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.stack(
        [
            np.bincount(faces.reshape(-1), np.repeat(face_normals[:, i], 3), len(vertices))
            for i in range(3)
        ],
        axis=1,
    )
    return Part(vertices, unit(normals), faces)
