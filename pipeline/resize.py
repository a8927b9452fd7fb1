"""Smaller views, to the byte as Pillow makes them, several times as fast.

The teachers' own preprocessing resizes with Pillow: a separable filter in fixed point, first along
the rows, rounded to 8 bits, then along the columns (Pillow's ``Resample.c``). The same integers are
computed here by a kernel that reads the renderer's four channels as they lie and leaves alone what
shows the background only.
"""
# Kernels take their types from numba, at the call.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.jit import jit

PRECISION_BITS = 32 - 8 - 2  # of a weight; 8 for the pixel, 2 for overshoot
_HALF = np.int32(1 << (PRECISION_BITS - 1))
METHODS = ("bilinear", "bicubic")

Weights = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]


def _bilinear(x: float) -> float:
    x = abs(x)
    return 1.0 - x if x < 1.0 else 0.0


def _bicubic(x: float) -> float:
    # Keys' kernel with a = -0.5, in Pillow's order of operations.
    a = -0.5
    x = abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0


@lru_cache(maxsize=16)
def weights(size: int, side: int, method: str) -> Weights:
    """Filter weights from ``size`` pixels to ``side``.

    First pixels (side,), numbers of pixels (side,), and weights (side, K) in fixed point with
    ``PRECISION_BITS`` bits behind the point, all int32.

    Raises ``ValueError`` for another method than bilinear and bicubic.
    """
    if method not in METHODS:
        raise ValueError(f"resize method {method!r}: use one of {', '.join(METHODS)}")
    kernel, reach = (_bilinear, 1.0) if method == "bilinear" else (_bicubic, 2.0)
    scale = size / side
    filter_scale = max(scale, 1.0)
    support = reach * filter_scale
    inverse = 1.0 / filter_scale
    width = int(np.ceil(support)) * 2 + 1
    firsts, counts = np.zeros(side, np.int32), np.zeros(side, np.int32)
    values = np.zeros((side, width), np.int32)
    for at in range(side):
        center = (at + 0.5) * scale
        first = max(0, int(center - support + 0.5))
        last = min(size, int(center + support + 0.5))
        taps = [kernel((x + first - center + 0.5) * inverse) for x in range(last - first)]
        total = 0.0
        for tap in taps:
            total += tap
        firsts[at], counts[at] = first, last - first
        for x, tap in enumerate(taps):
            share = (tap / total if total else tap) * (1 << PRECISION_BITS)
            values[at, x] = int(share - 0.5) if share < 0 else int(share + 0.5)
    return firsts, counts, values


@jit
def _narrow(pixels, colors, firsts, counts, values, rows):
    """One picture as narrow as it is to be, still as high: ``rows`` (S, 4 side) uint8.

    ``pixels`` (S, S) uint32 and ``colors`` (S, 4 S) uint8 are the same memory. Pixels to the left
    and right that are as the picture's first one, the background, give what it is: the weights add
    up to one but for their rounding, which 8 bits do not see.
    """
    size, side = len(pixels), len(firsts)
    plain = pixels[0, 0]
    for y in range(size):
        row, source, line = rows[y], colors[y], pixels[y]
        lo, hi = 0, size  # the pixels that differ from the background lie in between
        while lo < size and line[lo] == plain:
            lo += 1
        while hi > lo and line[hi - 1] == plain:
            hi -= 1
        for x in range(side):
            first = firsts[x]
            at = np.uint64(4 * x)
            if first >= hi or first + counts[x] <= lo:
                for c in range(np.uint64(4)):
                    row[at + c] = colors[0, c]
                continue
            # Four sums side by side, unsigned indices: LLVM makes one vector of them.
            begin = np.uint64(4 * first)
            taps = values[x]
            red = green = blue = cover = _HALF
            for k in range(np.uint64(counts[x])):
                tap, p = taps[k], begin + np.uint64(4) * k
                red = np.int32(red + tap * np.int32(source[p]))
                green = np.int32(green + tap * np.int32(source[p + np.uint64(1)]))
                blue = np.int32(blue + tap * np.int32(source[p + np.uint64(2)]))
                cover = np.int32(cover + tap * np.int32(source[p + np.uint64(3)]))
            row[at] = min(max(red >> PRECISION_BITS, 0), 255)
            row[at + np.uint64(1)] = min(max(green >> PRECISION_BITS, 0), 255)
            row[at + np.uint64(2)] = min(max(blue >> PRECISION_BITS, 0), 255)
            row[at + np.uint64(3)] = min(max(cover >> PRECISION_BITS, 0), 255)


@jit
def _resize(pixels, colors, firsts, counts, values, rows, line, out):
    """All pictures: ``pixels`` (V, S, S) uint32, ``out`` (V, side, side, 3); scratch in between."""
    side = len(firsts)
    for view in range(len(pixels)):
        _narrow(pixels[view], colors[view], firsts, counts, values, rows)
        for y in range(side):
            for i in range(4 * side):
                line[i] = _HALF
            for k in range(counts[y]):
                tap, source = values[y, k], rows[firsts[y] + k]
                for i in range(4 * side):
                    line[i] = np.int32(line[i] + tap * np.int32(source[i]))
            for x in range(side):
                for c in range(3):
                    out[view, y, x, c] = min(max(line[4 * x + c] >> PRECISION_BITS, 0), 255)


def shrink(images: NDArray[np.uint8], side: int, method: str) -> NDArray[np.uint8]:
    """Pictures (V, S, S, 4) uint8 as a renderer gives them, as (V, side, side, 3) uint8.

    The colours are those of ``PIL.Image.resize`` of each picture without its fourth channel.
    ``method`` is ``bilinear`` or ``bicubic``. Raises ``ValueError`` for another one.
    """
    size = images.shape[1]
    firsts, counts, values = weights(size, side, method)
    images = np.ascontiguousarray(images)
    out = np.empty((len(images), side, side, 3), np.uint8)
    _resize(
        images.view(np.uint32)[..., 0],
        images.reshape(len(images), size, 4 * size),
        firsts,
        counts,
        values,
        np.empty((size, 4 * side), np.uint8),
        np.empty(4 * side, np.int32),
        out,
    )
    return out


def compile_cached() -> None:
    """Compile the kernel, or load it from numba's cache. Call once before workers fan out."""
    shrink(np.zeros((1, 3, 3, 4), np.uint8), 2, "bicubic")
