"""Pass 1 of the rasteriser: project the vertices, find the nearest face at every sample.

Coordinates: *samples*. A picture of S x S pixels with s x s samples a pixel is a grid of
(S s) x (S s) samples; sample (i, j) lies at (i + 0.5, j + 0.5), row 0 at the top.

Keys: the visibility buffer holds one int64 a sample, ``bits(1/w) << 32 | face + 1``. 1/w is
positive, so that its bits order as the number does and the largest key is the nearest face,
whatever the order in which faces are drawn; 0 is empty. Rows are ``row_stride(size)`` long.

The bits are rounded down to steps of 2**-16 of the depth. Below that only rounding decides, and
surfaces that coincide, of which there are many, would show through each other at random: so the
later face wins, as it does where depths are exactly equal. A face seen from behind is set two
steps back: of a surface that is there twice, once for each side, the side that faces the camera is
seen.
"""
# Kernels take their types from numba, at the call.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from pipeline.jit import jit, jit_inline

ZERO = np.float32(0)
HALF = np.float32(0.5)
ONE = np.float32(1)
NEAR = np.float32(1e-3)
FAR_AWAY = np.float32(1e5)
MIN_AREA = np.float32(1e-12)  # square samples, doubled; below it gradients could overflow
BLOCK_MASK = np.uint64(7)
DEPTH_STEP = np.int64(256)  # of the bits of a float32
BACK_OFFSET = 2 * DEPTH_STEP


@jit
def project(vertices, pose, focal, centre, screen):
    """Fill ``screen`` (V, 4): x, y in samples, 1/w, unused.

    1/w is -1 where a vertex is behind the near plane, not finite or absurdly far off the picture:
    its faces are left out.
    """
    m00, m01, m02, m03 = pose[0, 0], pose[0, 1], pose[0, 2], pose[0, 3]
    m10, m11, m12, m13 = pose[1, 0], pose[1, 1], pose[1, 2], pose[1, 3]
    m20, m21, m22, m23 = pose[2, 0], pose[2, 1], pose[2, 2], pose[2, 3]
    for i in range(len(vertices)):
        x, y, z = vertices[i, 0], vertices[i, 1], vertices[i, 2]
        w = -(m20 * x + m21 * y + m22 * z + m23)
        iw = ONE / w
        px = centre + focal * (m00 * x + m01 * y + m02 * z + m03) * iw
        py = centre - focal * (m10 * x + m11 * y + m12 * z + m13) * iw
        good = (w > NEAR) & (abs(px) < FAR_AWAY) & (abs(py) < FAR_AWAY) & (iw > ZERO)
        screen[i, 0] = px if good else ZERO
        screen[i, 1] = py if good else ZERO
        screen[i, 2] = iw if good else -ONE


@jit_inline
def _ceil(x):
    """Smallest integer not below a float32 of less than 2**31; numba's own is a library call."""
    i = np.int64(np.int32(x))
    return i + 1 if np.float32(i) < x else i


@jit_inline
def row_stride(size):
    """Length of a row of the visibility buffer: ``size`` rounded up to whole blocks."""
    return (size + 7) // 8 * 8


@jit_inline
def spans(xa, ya, xb, yb, xc, yc, size, starts, ends):
    """Sample rows [y0, y1) of a triangle; columns [starts[y], ends[y]) of each, within the picture.

    Every edge is evaluated from its upper end by one formula, so that two triangles which share
    an edge agree on it and no sample is lost or drawn twice.
    """
    if yb < ya:
        xa, ya, xb, yb = xb, yb, xa, ya
    if yc < yb:
        xb, yb, xc, yc = xc, yc, xb, yb
        if yb < ya:
            xa, ya, xb, yb = xb, yb, xa, ya
    y0 = max(0, _ceil(ya - HALF))
    y1 = min(size, _ceil(yc - HALF))
    if y0 >= y1:
        return 0, 0
    ym = min(max(_ceil(yb - HALF), y0), y1)
    long_slope = (xc - xa) / (yc - ya)
    # Which side the middle vertex lies on tells which bound is the long edge.
    middle_right = (xb - xa) * (yc - ya) > (xc - xa) * (yb - ya)
    slope = (xb - xa) / (yb - ya) if yb > ya else ZERO
    px, py = xa, ya
    for y in range(y0, y1):
        if y == ym:
            slope = (xc - xb) / (yc - yb)
            px, py = xb, yb
        t = np.float32(y) + HALF
        long_x = xa + (t - ya) * long_slope
        short_x = px + (t - py) * slope
        left = long_x if middle_right else short_x
        right = short_x if middle_right else long_x
        starts[y] = min(max(_ceil(left - HALF), 0), size)
        ends[y] = min(max(_ceil(right - HALF), 0), size)
    return y0, y1


@jit_inline
def depth_bits(z, offset):
    """The depth part of a key, for 1/w ``z`` of a face set back by ``offset``."""
    return (np.int64(np.float32(z).view(np.int32)) & -DEPTH_STEP) - offset


@jit_inline
def depth_plane(screen, ia, ib, ic):
    """Gradient of 1/w in x and y, and what the face is set back by; -1 for one without area."""
    xa, ya, za = screen[ia, 0], screen[ia, 1], screen[ia, 2]
    ux, uy, uz = screen[ib, 0] - xa, screen[ib, 1] - ya, screen[ib, 2] - za
    vx, vy, vz = screen[ic, 0] - xa, screen[ic, 1] - ya, screen[ic, 2] - za
    det = ux * vy - vx * uy
    if not abs(det) > MIN_AREA:
        return ZERO, ZERO, np.int64(-1)
    r = ONE / det
    # Rows go down: a face that winds counter-clockwise, seen from the front, has a negative area.
    offset = BACK_OFFSET if det > ZERO else np.int64(0)
    return (uz * vy - vz * uy) * r, (ux * vz - vx * uz) * r, offset


@jit
def visibility(screen, faces, n_opaque, size, keys, row_lo, row_hi, starts, ends, ramp):
    """Pass 1 for opaque faces: leave the nearest face in ``keys`` (size * row_stride(size),)."""
    stride = np.uint64(row_stride(size))
    for f in range(n_opaque):
        ia, ib, ic = faces[f, 0], faces[f, 1], faces[f, 2]
        xa, ya, za = screen[ia, 0], screen[ia, 1], screen[ia, 2]
        xb, yb, zb = screen[ib, 0], screen[ib, 1], screen[ib, 2]
        xc, yc, zc = screen[ic, 0], screen[ic, 1], screen[ic, 2]
        if min(za, min(zb, zc)) <= ZERO:
            continue
        # Most faces of a dense mesh fall between the samples.
        if _ceil(min(xa, min(xb, xc)) - HALF) >= _ceil(max(xa, max(xb, xc)) - HALF):
            continue
        dzdx, dzdy, offset = depth_plane(screen, ia, ib, ic)
        if offset < 0:
            continue
        y0, y1 = spans(xa, ya, xb, yb, xc, yc, size, starts, ends)
        z_lo, z_hi = min(za, min(zb, zc)), max(za, max(zb, zc))
        face = np.int64(f) + 1
        for y in range(y0, y1):
            x0, x1 = starts[y], ends[y]
            if x0 >= x1:
                continue
            row_lo[y] = min(row_lo[y], x0)
            row_hi[y] = max(row_hi[y], x1)
            left, right = np.float32(x0), np.float32(x1)
            z_row = za + (left + HALF - xa) * dzdx + (np.float32(y) + HALF - ya) * dzdy
            # Whole blocks with the outside masked: short spans are vector code too.
            base = np.uint64(x0) & ~BLOCK_MASK
            n = ((np.uint64(x1) + BLOCK_MASK) & ~BLOCK_MASK) - base
            p = np.uint64(y) * stride + base
            for i in range(n):
                x = ramp[base + i]
                # Clamped: the plane of a sliver may run away between its samples.
                z = min(max(z_row + (x - left) * dzdx, z_lo), z_hi)
                key = depth_bits(z, offset) << np.int64(32) | face
                key = key if (x >= left) & (x < right) else np.int64(0)
                keys[p + i] = max(keys[p + i], key)
