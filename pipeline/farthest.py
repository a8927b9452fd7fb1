"""Farthest-point sampling in buckets of neighbours.

Most points lie far from a new one of the sample and stay as near to it as they were. Points are
kept in buckets of a k-d tree; a bucket whose box is farther from the new point than any point of
it is from the sample is passed over, and the others look at new points only once they may hold the
farthest point of all (Han et al. 2023, "QuickFPS", on which the published CPU samplers rest too).
"""
# Kernels take their types from numba, at the call.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.jit import jit

_BUCKET = 128  # points, at least: the fastest at 10,000 points; the result is the same
_WAITING = 16  # new points that a bucket has not looked at yet, at most


def farthest_points(xyz: NDArray[np.float32], count: int, start: int) -> NDArray[np.int64]:
    """Indices (count,) of distinct points of ``xyz`` (N, 3), the first one ``start``.

    Each is farthest from those before it (Gonzalez 1985), in float32; of equally far ones it is
    any one, always the same of the same points.

    Raises ``ValueError``: ``count`` is not in 1..N.
    """
    if not 1 <= count <= len(xyz):
        raise ValueError(f"a sample of {count} of {len(xyz)} points")
    xyz = np.ascontiguousarray(xyz, np.float32)
    point = _buckets(xyz)  # (B buckets, S points)
    inside = xyz[point]
    distance = np.full(point.shape, np.inf, np.float32)
    distance.ravel()[np.flatnonzero(point == 0)[1:]] = -1
    chosen = np.empty(count, np.int64)
    chosen[0] = np.flatnonzero(point == start)[0]
    _sample(
        np.ascontiguousarray(inside.transpose(0, 2, 1)),
        np.ascontiguousarray(inside.min(axis=1).T),
        np.ascontiguousarray(inside.max(axis=1).T),
        distance,
        chosen,
    )
    return point.ravel()[chosen]


def _buckets(xyz: NDArray[np.float32]) -> NDArray[np.int64]:
    """Points (B, S) in buckets of equal size, halved at the median of the longest side.

    Places that are left over hold point 0 again.
    """
    depth = max(1, len(xyz) // _BUCKET).bit_length() - 1
    size = -(-len(xyz) // 2**depth)
    point = np.zeros(size * 2**depth, np.int64)
    point[: len(xyz)] = np.arange(len(xyz))
    _halve(xyz, point, size, np.empty(len(point), np.float32))
    return point.reshape(-1, size)


@jit
def _halve(xyz, point, size, key):
    """Sorts ``point`` into buckets of ``size``; ``key``: scratch, as long."""
    length = len(point)
    while length > size:
        for start in range(0, len(point), length):
            low, high = xyz[point[start]].copy(), xyz[point[start]].copy()
            for i in range(start + 1, start + length):
                for axis in range(3):
                    low[axis] = min(low[axis], xyz[point[i], axis])
                    high[axis] = max(high[axis], xyz[point[i], axis])
            longest = np.argmax(high - low)
            for i in range(start, start + length):
                key[i] = xyz[point[i], longest]
            # Hoare's selection: the smaller half goes to the front.
            lo, hi, middle = start, start + length - 1, start + length // 2
            while lo < hi:
                pivot, i, j = key[(lo + hi) // 2], lo, hi
                while i <= j:
                    while key[i] < pivot:
                        i += 1
                    while key[j] > pivot:
                        j -= 1
                    if i <= j:
                        key[i], key[j] = key[j], key[i]
                        point[i], point[j] = point[j], point[i]
                        i += 1
                        j -= 1
                if middle <= j:
                    hi = j
                elif middle >= i:
                    lo = i
                else:
                    break
        length //= 2


@jit
def _sample(xyz, low, high, distance, chosen):
    """Fills ``chosen`` with places (bucket and point in one number) after the first one.

    ``xyz``: (B, 3, S); ``low`` and ``high``: (3, B) of each bucket's box; ``distance``: (B, S)
    squared to the sample, -1 where no point is to be chosen.
    """
    n_buckets, size = distance.shape
    far = np.full(n_buckets, np.float32(np.inf))  # of a bucket's points from the sample, at most
    best = np.zeros(n_buckets, np.int64)
    waiting = np.empty((n_buckets, _WAITING, 3), np.float32)
    n_waiting = np.zeros(n_buckets, np.int64)
    gap = np.empty(n_buckets, np.float32)
    for index in range(1, len(chosen)):
        mine, s = divmod(chosen[index - 1], size)
        x, y, z = xyz[mine, 0, s], xyz[mine, 1, s], xyz[mine, 2, s]
        distance[mine, s] = np.float32(-1)
        for b in range(n_buckets):
            dx = max(max(low[0, b] - x, x - high[0, b]), np.float32(0))
            dy = max(max(low[1, b] - y, y - high[1, b]), np.float32(0))
            dz = max(max(low[2, b] - z, z - high[2, b]), np.float32(0))
            gap[b] = dx * dx + dy * dy + dz * dz
        for b in range(n_buckets):
            if gap[b] < far[b] or b == mine:
                n = n_waiting[b]
                waiting[b, n, 0], waiting[b, n, 1], waiting[b, n, 2] = x, y, z
                n_waiting[b] = n + 1
                if n + 1 == _WAITING:
                    far[b], best[b] = _look(xyz[b], distance[b], waiting[b], n + 1)
                    n_waiting[b] = 0
        while True:
            b = 0
            for other in range(1, n_buckets):
                if far[other] > far[b]:
                    b = other
            if n_waiting[b] == 0:
                break
            far[b], best[b] = _look(xyz[b], distance[b], waiting[b], n_waiting[b])
            n_waiting[b] = 0
        chosen[index] = b * size + best[b]


@jit
def _look(xyz, distance, waiting, n_waiting):
    """Distances of a bucket's points to what waits; the largest one and whose it is."""
    for i in range(n_waiting):
        x, y, z = waiting[i, 0], waiting[i, 1], waiting[i, 2]
        for s in range(len(distance)):
            dx, dy, dz = xyz[0, s] - x, xyz[1, s] - y, xyz[2, s] - z
            distance[s] = min(distance[s], dx * dx + dy * dy + dz * dz)
    best = 0
    for s in range(1, len(distance)):
        if distance[s] > distance[best]:
            best = s
    return distance[best], best


def compile_cached() -> None:
    """Compile the kernels, or load them from numba's cache, before workers fan out."""
    farthest_points(np.zeros((2, 3), np.float32), 2, 0)
