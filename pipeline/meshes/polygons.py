"""Polygons as triangles: fans, and what takes their place where a polygon is concave."""
# Kernels take their types from numba, at the call.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.jit import jit
from pipeline.meshes.parts import I64, Limits, fan

_MOST_CORNERS = 10_000  # of a concave polygon that is cut; the time grows with their square
_MOST_STEPS = 2**31  # over the concave polygons of a file: about ten seconds
_ROUNDING = 1e-6  # of a polygon's area: what lies the wrong way round below it is no concavity
_NOISE = 1e-14  # of the farthest corner's squared distance: the error of the area of a triangle


def triangulate(
    lengths: I64, indices: I64, vertices: NDArray[Any], limits: Limits
) -> tuple[I64, I64]:
    """Polygons of so many corners (P,), each at least 0, as triangles in the polygons' order.

    ``indices`` (C,) are the corners of all polygons one after the other, as rows of ``vertices``
    (V, 3). Returns each triangle's polygon (T,), and which corners of it they are (T, 3): around
    the first corner, as ``fan`` has them, unless the polygon is concave and some of those triangles
    face away from it. Then they come from clipping ears in the plane of the polygon's Newell
    normal; there are as many, wound the same way.

    What has no triangulation stays a fan: polygons that cross themselves or have no area. So do
    concave ones of more than 10,000 corners, and those that come after some ten seconds of work.
    Raises ``too_large`` as ``fan`` does; indices that are out of range are left to the caller.
    """
    polygon, corner = fan(lengths, limits)
    named = indices[: int(lengths.sum())]
    if len(polygon) > np.count_nonzero(lengths >= 3) and _in_range(named, len(vertices)):
        # In one layout and type, for which alone the kernel is compiled.
        points = np.ascontiguousarray(vertices, np.float64)
        counts, named = (np.ascontiguousarray(each, np.int64) for each in (lengths, named))
        _unfold(points, named, counts, corner)
    return polygon, corner


def compile_cached() -> None:
    """Compile the triangulation, or load it from numba's cache, before workers fan out."""
    triangulate(np.full(1, 4), np.arange(4), np.zeros((4, 3)), Limits())


def _in_range(indices: I64, count: int) -> bool:
    return int(indices.min()) >= 0 and int(indices.max()) < count


@jit
def _unfold(vertices, indices, lengths, corner):
    """Replace the fans in ``corner`` (T, 3) that fold over."""
    longest = 0
    for n in lengths:
        longest = max(longest, n)
    longest = min(longest, _MOST_CORNERS)
    flat = np.empty((longest, 2))
    turns = np.empty(longest)
    before, after = np.empty(longest, np.int64), np.empty(longest, np.int64)
    found = np.empty((longest, 3), np.int64)
    left = _MOST_STEPS
    begin = row = 0
    for n in lengths:
        corners = indices[begin : begin + n]
        if 3 < n <= longest and _is_folded(vertices, corners):
            area = _project(vertices, corners, flat)
            steps = min(left, 4 * n * n)
            unused = _clip_ears(flat, n, area, steps, before, after, turns, found)
            left -= steps - max(unused, 0)
            if unused >= 0:
                for i in range(n - 2):  # a slice takes numba ten seconds to compile
                    for j in range(3):
                        corner[row + i, j] = found[i, j]
        begin += n
        row += max(n - 2, 0)


@jit
def _is_folded(vertices, corners):
    """Whether a triangle of the fan faces away from the polygon's Newell normal."""
    x, y, z = _newell(vertices, corners)
    square = x * x + y * y + z * z
    if not 0 < square < np.inf:
        return False
    lowest = 0.0
    for i in range(1, len(corners) - 1):
        u, v, w = _cross(vertices, corners[0], corners[i], corners[i + 1])
        lowest = min(lowest, x * u + y * v + z * w)
    return lowest < -_ROUNDING * square


@jit
def _newell(vertices, corners):
    """The normal of a polygon: the sum of those of its fan, as long as twice its area."""
    x = y = z = 0.0
    for i in range(1, len(corners) - 1):
        u, v, w = _cross(vertices, corners[0], corners[i], corners[i + 1])
        x, y, z = x + u, y + v, z + w
    return x, y, z


@jit
def _cross(vertices, a, b, c):
    """The normal of a triangle, as long as twice its area."""
    px, py, pz = vertices[a, 0], vertices[a, 1], vertices[a, 2]
    ux, uy, uz = vertices[b, 0] - px, vertices[b, 1] - py, vertices[b, 2] - pz
    vx, vy, vz = vertices[c, 0] - px, vertices[c, 1] - py, vertices[c, 2] - pz
    return uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx


@jit
def _project(vertices, corners, flat):
    """Write a polygon's corners (N, 2) in the plane of its Newell normal, about the first one.

    Returns twice its area, by which it is counter-clockwise.
    """
    x, y, z = _newell(vertices, corners)
    area = np.sqrt(x * x + y * y + z * z)
    x, y, z = x / area, y / area, z / area
    # A direction of the plane, at right angles to the axis that is farthest from its normal.
    if abs(x) <= min(abs(y), abs(z)):
        u, v, w = 0.0, z, -y
    elif abs(y) <= abs(z):
        u, v, w = -z, 0.0, x
    else:
        u, v, w = y, -x, 0.0
    length = np.sqrt(u * u + v * v + w * w)
    u, v, w = u / length, v / length, w / length
    a = corners[0]
    for i in range(len(corners)):
        b = corners[i]
        p, q, r = (
            vertices[b, 0] - vertices[a, 0],
            vertices[b, 1] - vertices[a, 1],
            vertices[b, 2] - vertices[a, 2],
        )
        flat[i, 0] = p * u + q * v + r * w
        flat[i, 1] = p * (y * w - z * v) + q * (z * u - x * w) + r * (x * v - y * u)
    return area


@jit
def _turn(flat, a, b, c):
    """Twice the area of a triangle; negative where it is clockwise."""
    return (flat[b, 0] - flat[a, 0]) * (flat[c, 1] - flat[a, 1]) - (flat[b, 1] - flat[a, 1]) * (
        flat[c, 0] - flat[a, 0]
    )


@jit
def _clip_ears(flat, n, area, steps, before, after, turns, found):
    """Cut triangles off a counter-clockwise polygon (N, 2) until none is left.

    A triangle of three corners in a row can be cut off, an ear, if it is counter-clockwise and no
    reflex corner lies in it. After a cut the corner before it is the next to try, and so a simple
    polygon takes a number of tries that is linear in its corners (Kong, Everett and Toussaint,
    "The Graham scan triangulates simple polygons", 1990).

    Returns how many of the steps are left, with the triangles in ``found`` (N - 2, 3); -1 where
    there is no ear or no step left.
    """
    for i in range(n):
        before[i], after[i] = i - 1, i + 1
    before[0], after[n - 1] = n - 1, 0
    farthest = 0.0
    for i in range(n):
        turns[i] = _turn(flat, before[i], i, after[i])
        farthest = max(farthest, flat[i, 0] ** 2 + flat[i, 1] ** 2)
    noise = _NOISE * farthest
    at, cut, waited = 0, 0, 0
    straight = False  # without an ear, corners that lie on a line with their neighbours go
    while cut < n - 2:
        a, c = before[at], after[at]
        if straight:
            good = abs(turns[at]) <= _ROUNDING * area
        else:
            good = turns[at] > noise
            i = after[c]
            while good and i != a:
                good = turns[i] > noise or not _covers(flat, a, at, c, i, -noise)
                i = after[i]
                steps -= 1
        steps -= 1
        if steps < 0:
            return -1
        if good:
            found[cut, 0], found[cut, 1], found[cut, 2] = a, at, c
            cut += 1
            after[a], before[c] = c, a
            turns[a] = _turn(flat, before[a], a, c)
            turns[c] = _turn(flat, a, c, after[c])
            at, waited, straight = a, 0, False
            continue
        at, waited = c, waited + 1
        if waited >= n - cut:
            if straight:
                return -1
            straight, waited = True, 0
    return steps


@jit
def _covers(flat, a, b, c, i, least):
    """Whether a corner lies in a counter-clockwise triangle or on its edges, and not at a corner.

    Corners meet where an edge leads to a hole and back.
    """
    if _turn(flat, a, b, i) < least or _turn(flat, b, c, i) < least or _turn(flat, c, a, i) < least:
        return False
    for corner in (a, b, c):
        if flat[corner, 0] == flat[i, 0] and flat[corner, 1] == flat[i, 1]:
            return False
    return True
