"""Fragments of the rasteriser: light, vertex colour and texture of one face at many samples.

A *fragment* is one face in one pixel (or, with transparency, at one sample). Its colour is built
in stages in the columns of ``frag`` (FRAGMENT_ROWS, n) float32 and ``frag_int`` (FRAGMENT_INTS, n)
int64, in plain loops that LLVM makes vector code of, without changing a bit.
"""
# Kernels take their types from numba, at the call.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from pipeline.jit import jit, jit_inline
from pipeline.renderers.raster_tables import ENCODE_STEPS

ZERO = np.float32(0)
HALF = np.float32(0.5)
ONE = np.float32(1)
TINY = np.float32(1e-30)
TO_CODE = np.float32(ENCODE_STEPS - 1)
FROM_32 = np.float32(1 / (65535 * 65536))
STEPS = np.float32(256)  # between two texels
U8, U16, U24, U32, U65536 = (np.uint64(x) for x in (8, 16, 24, 32, 65536))
BYTE, LANE, LANES = (np.uint64(x) for x in (0xFF, 0xFFFFFFFF, 0x0000FFFF0000FFFF))
MANTISSA = np.float32(1 / (1 << 23))

# A set-up face, float32: screen position of corner 0; growth of the screen barycentrics of corners
# 1 and 2 per sample in x and y; 1/w; normals; uv; d(U, V)/dx, d(U, V)/dy, dW/dx, dW/dy where
# U = u/w and W = 1/w; vertex colours; the material's row of ``Prepared.factors``.
X0, Y0, A1, B1, A2, B2, IW, NORMAL, UV, UV_GRADIENT, COLOR, FACTOR, SETUP_SIZE = (
    0, 1, 2, 3, 4, 5, 6, 9, 18, 24, 30, 42, 52,
)  # fmt: skip
# Columns of ``Prepared.factors`` after linear RGBA.
CUTOFF, NO_LIGHT, EMISSION, USES_UV, N_FACTORS = 4, 5, 6, 9, 10
# Rows of the fragment buffers: linear RGBA, texture coordinates, mip level; for fragments of mixed
# pixels their place in samples and how many samples they cover; and emission, RGB and unused.
R, G, B, A, U, V, LOD, FX, FY, WEIGHT, GLOW, FRAGMENT_ROWS = (*range(11), 14)
TEXTURE, FACE, SLOT, SAMPLES, FRAGMENT_INTS = range(5)


@jit
def set_up(f, screen, faces, normals, corner_normal, uv, vertex_color, material, factors, st):  # fmt: skip  # noqa: E501
    """Everything of one face that shading needs, into ``st`` (SETUP_SIZE,)."""
    ia, ib, ic = faces[f, 0], faces[f, 1], faces[f, 2]
    xa, ya, wa = screen[ia, 0], screen[ia, 1], screen[ia, 2]
    wb, wc = screen[ib, 2], screen[ic, 2]
    ux, uy = screen[ib, 0] - xa, screen[ib, 1] - ya
    vx, vy = screen[ic, 0] - xa, screen[ic, 1] - ya
    det = ux * vy - vx * uy
    r = ONE / det if abs(det) > TINY else ZERO
    a1, b1, a2, b2 = vy * r, -vx * r, -uy * r, ux * r
    st[X0], st[Y0], st[A1], st[B1], st[A2], st[B2] = xa, ya, a1, b1, a2, b2
    st[IW], st[IW + 1], st[IW + 2] = wa, wb, wc
    na, nb, nc = corner_normal[f, 0], corner_normal[f, 1], corner_normal[f, 2]
    for k in range(3):
        st[NORMAL + k] = normals[na, k]
        st[NORMAL + 3 + k] = normals[nb, k]
        st[NORMAL + 6 + k] = normals[nc, k]
    if factors[material, USES_UV] > ZERO:
        for k in range(2):
            ta, tb, tc = uv[ia, k], uv[ib, k], uv[ic, k]
            st[UV + k], st[UV + 2 + k], st[UV + 4 + k] = ta, tb, tc
            ta *= wa
            tb = tb * wb - ta
            tc = tc * wc - ta
            st[UV_GRADIENT + k] = tb * a1 + tc * a2
            st[UV_GRADIENT + 2 + k] = tb * b1 + tc * b2
        st[UV_GRADIENT + 4] = (wb - wa) * a1 + (wc - wa) * a2
        st[UV_GRADIENT + 5] = (wb - wa) * b1 + (wc - wa) * b2
    if len(vertex_color):
        for k in range(4):
            st[COLOR + k] = vertex_color[ia, k]
            st[COLOR + 4 + k] = vertex_color[ib, k]
            st[COLOR + 8 + k] = vertex_color[ic, k]
    for k in range(N_FACTORS):
        st[FACTOR + k] = factors[material, k]


@jit_inline
def _log2(x):
    """Base-2 logarithm of a positive float32, linear between powers of two (error below 0.09)."""
    bits = np.float32(x).view(np.int32)
    exponent = (bits >> np.int32(23)) - np.int32(127)
    return np.float32(exponent) + np.float32(bits & np.int32(0x7FFFFF)) * MANTISSA


@jit_inline
def _wrap(t):
    """A texture coordinate brought to [0, 1]; NaN and infinity to 0."""
    t = t - np.floor(t)
    return t if (t >= ZERO) & (t <= ONE) else ZERO


@jit_inline
def _corner_weights(c1, a1, c2, a2, t, w0, w1, w2):
    """Barycentrics times 1/w after t steps, clamped to the triangle."""
    l1 = max(c1 + t * a1, ZERO)
    l2 = max(c2 + t * a2, ZERO)
    l0 = max(ONE - l1 - l2, ZERO)
    return l0 * w0, l1 * w1, l2 * w2


@jit_inline
def light_fragments(st, x, y, step, n, at, ray, light, ramp, frag):
    """R, G and B of fragments [at, at + n) of one face, at samples (x + i step, y): factor x light.

    The two-sided Lambert head light, ambient + diffuse |cos|, with the angle between the
    interpolated normal and the ray from the camera; or 1 of an unlit material. ``ray`` (3, 3): the
    direction through sample (x, y) in object space is row 0 + x row 1 + y row 2, so that normals
    need no transform.

    A plain loop over locals: LLVM makes vector code of it, without changing a bit.
    """
    at, n = np.uint64(at), np.uint64(n)
    dx, dy = x - st[X0], y - st[Y0]
    c1, c2 = st[A1] * dx + st[B1] * dy, st[A2] * dx + st[B2] * dy
    a1, a2 = st[A1] * step, st[A2] * step
    w0, w1, w2 = st[IW], st[IW + 1], st[IW + 2]
    n00, n01, n02 = st[NORMAL], st[NORMAL + 1], st[NORMAL + 2]
    n10, n11, n12 = st[NORMAL + 3], st[NORMAL + 4], st[NORMAL + 5]
    n20, n21, n22 = st[NORMAL + 6], st[NORMAL + 7], st[NORMAL + 8]
    rx, ry, rz = step * ray[1, 0], step * ray[1, 1], step * ray[1, 2]
    ox = ray[0, 0] + x * ray[1, 0] + y * ray[2, 0]
    oy = ray[0, 1] + x * ray[1, 1] + y * ray[2, 1]
    oz = ray[0, 2] + x * ray[1, 2] + y * ray[2, 2]
    fr, fg, fb = st[FACTOR], st[FACTOR + 1], st[FACTOR + 2]
    lit = st[FACTOR + NO_LIGHT] <= ZERO
    ambient, diffuse = light[0] if lit else ONE, light[1] if lit else ZERO
    for i in range(n):
        t = ramp[i]
        q0, q1, q2 = _corner_weights(c1, a1, c2, a2, t, w0, w1, w2)
        nx = q0 * n00 + q1 * n10 + q2 * n20
        ny = q0 * n01 + q1 * n11 + q2 * n21
        nz = q0 * n02 + q1 * n12 + q2 * n22
        ex, ey, ez = ox + t * rx, oy + t * ry, oz + t * rz
        dot = nx * ex + ny * ey + nz * ez
        n2 = (nx * nx + ny * ny + nz * nz) * (ex * ex + ey * ey + ez * ez)
        shine = ambient + diffuse * (abs(dot) / np.sqrt(n2 + TINY))
        frag[R, at + i] = fr * shine
        frag[G, at + i] = fg * shine
        frag[B, at + i] = fb * shine


@jit_inline
def surface_fragments(st, texture, has_color, x, y, step, pixel, n, at, ramp, first_level, levels, frag, frag_int):  # fmt: skip  # noqa: E501
    """The rest of what fragments [at, at + n) need: alpha, vertex colour, where their texture is.

    ``pixel`` is the side of a pixel in samples, by which the mip level is chosen.
    """
    at, n = np.uint64(at), np.uint64(n)
    dx, dy = x - st[X0], y - st[Y0]
    c1, c2 = st[A1] * dx + st[B1] * dy, st[A2] * dx + st[B2] * dy
    a1, a2 = st[A1] * step, st[A2] * step
    w0, w1, w2 = st[IW], st[IW + 1], st[IW + 2]
    for i in range(n):
        frag[A, at + i] = st[FACTOR + 3]
        frag_int[TEXTURE, at + i] = texture
    if has_color:
        for k in range(4):
            v0, v1, v2 = st[COLOR + k], st[COLOR + 4 + k], st[COLOR + 8 + k]
            for i in range(n):
                q0, q1, q2 = _corner_weights(c1, a1, c2, a2, ramp[i], w0, w1, w2)
                frag[R + k, at + i] *= (q0 * v0 + q1 * v1 + q2 * v2) / (q0 + q1 + q2)
    if texture >= 0:
        place_texture(st, texture, x, y, step, pixel, n, at, ramp, first_level, levels, frag)


@jit_inline
def place_texture(st, texture, x, y, step, pixel, n, at, ramp, first_level, levels, frag):
    """Where fragments [at, at + n) lie in a texture: U, V and LOD; see ``surface_fragments``."""
    at, n = np.uint64(at), np.uint64(n)
    dx, dy = x - st[X0], y - st[Y0]
    c1, c2 = st[A1] * dx + st[B1] * dy, st[A2] * dx + st[B2] * dy
    a1, a2 = st[A1] * step, st[A2] * step
    w0, w1, w2 = st[IW], st[IW + 1], st[IW + 2]
    u0, v0, u1, v1 = st[UV], st[UV + 1], st[UV + 2], st[UV + 3]
    u2, v2 = st[UV + 4], st[UV + 5]
    first = first_level[texture]
    highest = np.float32(first_level[texture + 1] - first - 1)
    width, height = np.float32(levels[first, 1]), np.float32(levels[first, 2])
    gu_x, gv_x = st[UV_GRADIENT] * pixel, st[UV_GRADIENT + 1] * pixel
    gu_y, gv_y = st[UV_GRADIENT + 2] * pixel, st[UV_GRADIENT + 3] * pixel
    gw_x, gw_y = st[UV_GRADIENT + 4] * pixel, st[UV_GRADIENT + 5] * pixel
    for i in range(n):
        q0, q1, q2 = _corner_weights(c1, a1, c2, a2, ramp[i], w0, w1, w2)
        r = ONE / (q0 + q1 + q2)
        u, v = (q0 * u0 + q1 * u1 + q2 * u2) * r, (q0 * v0 + q1 * v1 + q2 * v2) * r
        # Derivatives of u = U/W over a pixel, in texels of level 0: (dU - u dW) / W.
        ux, vx = (gu_x - u * gw_x) * r * width, (gv_x - v * gw_x) * r * height
        uy, vy = (gu_y - u * gw_y) * r * width, (gv_y - v * gw_y) * r * height
        footprint2 = max(ux * ux + vx * vx, uy * uy + vy * vy)
        lod = HALF * _log2(footprint2 if footprint2 > ONE else ONE)
        frag[U, at + i] = _wrap(u)
        frag[V, at + i] = _wrap(ONE - v)
        frag[LOD, at + i] = min(lod, highest)


@jit_inline
def emission_fragments(st, texture, x, y, step, pixel, n, at, ramp, first_level, levels, frag, frag_int):  # fmt: skip  # noqa: E501
    """Emission of fragments [at, at + n) before its texture, and where they lie in that.

    Call it when the base colour is done: U, V, LOD and TEXTURE are used again.
    """
    for i in range(np.uint64(at), np.uint64(at + n)):
        frag[GLOW, i] = st[FACTOR + EMISSION]
        frag[GLOW + 1, i] = st[FACTOR + EMISSION + 1]
        frag[GLOW + 2, i] = st[FACTOR + EMISSION + 2]
        frag_int[TEXTURE, i] = texture
    if texture >= 0:
        place_texture(st, texture, x, y, step, pixel, n, at, ramp, first_level, levels, frag)


@jit_inline
def add_emission(start, stop, frag):
    """Add the emission of fragments [start, stop) to their colour; light beyond 1 is cut off."""
    for k in range(3):
        for i in range(np.uint64(start), np.uint64(stop)):
            frag[R + k, i] = min(frag[R + k, i] + frag[GLOW + k, i], ONE)


@jit_inline
def _texel(is_base, p, base_texels, mip_texels, decode16):
    """Linear RGBA of texel ``p``, 16 bits each, as two pairs of 32-bit lanes: (R, B), (G, A)."""
    if is_base:
        t = np.uint64(base_texels[p])
        rb = np.uint64(decode16[t & BYTE]) | np.uint64(decode16[t >> U16 & BYTE]) << U32
        ga = np.uint64(decode16[t >> U8 & BYTE]) | ((t >> U24) * np.uint64(257)) << U32
        return rb, ga
    t = mip_texels[p]
    return t & LANES, t >> U16 & LANES


@jit
def apply_texture(to, start, stop, first_level, levels, base_texels, mip_texels, decode16, frag, frag_int):  # fmt: skip  # noqa: E501
    """Multiply rows ``to``.. (RGBA) of fragments [start, stop) by their texture.

    Trilinear, in linear light, repeating.

    Integer arithmetic on two channels at a time. The place between two texels has 8 bits, as in
    graphics hardware, so that the four weights of a level sum to 2**16 exactly.
    """
    for i in range(np.uint64(start), np.uint64(stop)):
        texture = frag_int[TEXTURE, i]
        if texture < 0:
            continue
        lod = frag[LOD, i]
        step = np.int64(np.int32(lod))
        part = lod - np.float32(step)
        level = first_level[texture] + step
        weight = ONE - part
        red = green = blue = alpha = ZERO
        for _ in range(2):
            offset, w, h = levels[level, 0], levels[level, 1], levels[level, 2]
            tx = frag[U, i] * np.float32(w) - HALF
            ty = frag[V, i] * np.float32(h) - HALF
            bx, by = np.floor(tx), np.floor(ty)
            fx = np.uint64(np.int32((tx - bx) * STEPS + HALF))
            fy = np.uint64(np.int32((ty - by) * STEPS + HALF))
            x0, y0 = np.int64(np.int32(bx)), np.int64(np.int32(by))
            x0 = x0 + w if x0 < 0 else x0
            y0 = y0 + h if y0 < 0 else y0
            x1 = x0 + 1 if x0 + 1 < w else 0
            row0 = offset + y0 * w
            row1 = offset + (y0 + 1 if y0 + 1 < h else 0) * w
            w11 = fx * fy
            w10, w01 = (fx << U8) - w11, (fy << U8) - w11
            w00 = U65536 - (fx << U8) - w01
            base = step == 0
            rb0, ga0 = _texel(base, np.uint64(row0 + x0), base_texels, mip_texels, decode16)
            rb1, ga1 = _texel(base, np.uint64(row0 + x1), base_texels, mip_texels, decode16)
            rb2, ga2 = _texel(base, np.uint64(row1 + x0), base_texels, mip_texels, decode16)
            rb3, ga3 = _texel(base, np.uint64(row1 + x1), base_texels, mip_texels, decode16)
            rb = w00 * rb0 + w10 * rb1 + w01 * rb2 + w11 * rb3
            ga = w00 * ga0 + w10 * ga1 + w01 * ga2 + w11 * ga3
            scale = weight * FROM_32
            red += scale * np.float32(np.int64(rb & LANE))
            green += scale * np.float32(np.int64(ga & LANE))
            blue += scale * np.float32(np.int64(rb >> U32))
            alpha += scale * np.float32(np.int64(ga >> U32))
            if part <= ZERO:
                break
            weight = part
            level += 1
            step += 1
        frag[to, i] *= red
        frag[to + 1, i] *= green
        frag[to + 2, i] *= blue
        frag[to + 3, i] *= alpha


@jit_inline
def encode_srgb(value, table):
    """Linear light to an sRGB code."""
    return table[np.uint64(min(max(value, ZERO), ONE) * TO_CODE + HALF)]
