"""Pass 2 of the rasteriser: which fragments a row of pixels has, their colours, the picture.

The fragments of a row are first collected, then coloured, then written out: three plain loops that
the CPU can overlap, where one loop over everything stalls at every edge of every face.
"""
# Kernels take their types from numba, at the call.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from pipeline.jit import jit, jit_inline
from pipeline.renderers.raster_fragments import (
    FACE,
    FX,
    FY,
    GLOW,
    HALF,
    ONE,
    SAMPLES,
    SLOT,
    WEIGHT,
    ZERO,
    B,
    G,
    R,
    add_emission,
    apply_texture,
    emission_fragments,
    encode_srgb,
    light_fragments,
    set_up,
    surface_fragments,
)
from pipeline.renderers.raster_visibility import row_stride

FACE_BITS = np.int64(0xFFFFFFFF)
EMPTY, MIXED = np.int64(-1), np.int64(-2)
RUN_PIXEL, RUN_LENGTH, RUN_FACE, MIXED_PIXEL, MIXED_COVERED, ROW_INTS = range(6)

# By the 4 bits of the samples that a face covers in a pixel of 2 x 2: their number and middle.
_BITS = (np.arange(16)[:, None] >> np.arange(4)) & 1
COUNT_4 = _BITS.sum(1).astype(np.float32)
MIDDLE_X_4 = ((_BITS * [0.5, 1.5, 0.5, 1.5]).sum(1) / np.maximum(COUNT_4, 1)).astype(np.float32)
MIDDLE_Y_4 = ((_BITS * [0.5, 0.5, 1.5, 1.5]).sum(1) / np.maximum(COUNT_4, 1)).astype(np.float32)


@jit_inline
def _sole_face(keys, py, px, size, scale):
    """The face that covers all samples of a pixel, EMPTY for none, MIXED otherwise."""
    stride = row_stride(size)
    p = np.uint64(py * scale * stride + px * scale)
    key = keys[p]
    if scale == 2:
        q = p + np.uint64(stride)
        b, c, d = keys[p + np.uint64(1)], keys[q], keys[q + np.uint64(1)]
        differ = ((key ^ b) | (key ^ c) | (key ^ d)) & FACE_BITS
    else:
        differ = np.int64(0)
        for j in range(scale):
            for i in range(scale):
                differ |= key ^ keys[p + np.uint64(j * stride + i)]
        differ &= FACE_BITS
    return MIXED if differ != 0 else (key & FACE_BITS) - 1


@jit_inline
def _split_4(keys, py, px, size, frag, frag_int, at):
    """Write the faces of a mixed pixel of 2 x 2 samples as fragments from ``at``.

    Returns their number and how many samples they cover. Without branches, which no CPU could
    predict here.
    """
    stride = row_stride(size)
    p = np.uint64(2 * py * stride + 2 * px)
    q = p + np.uint64(stride)
    a, b = keys[p] & FACE_BITS, keys[p + np.uint64(1)] & FACE_BITS
    c, d = keys[q] & FACE_BITS, keys[q + np.uint64(1)] & FACE_BITS
    ab, ac, ad = np.int64(a == b), np.int64(a == c), np.int64(a == d)
    bc, bd, cd = np.int64(b == c), np.int64(b == d), np.int64(c == d)
    x, y = np.float32(2 * px), np.float32(2 * py)
    end = np.uint64(at)
    # Each face is written at its first sample; what is written at the others is overwritten.
    for face, samples, first in (
        (a, 1 | ab << 1 | ac << 2 | ad << 3, a != 0),
        (b, 2 | bc << 2 | bd << 3, (b != 0) & (ab == 0)),
        (c, 4 | cd << 3, (c != 0) & (ac == 0) & (bc == 0)),
        (d, np.int64(8), (d != 0) & (ad == 0) & (bd == 0) & (cd == 0)),
    ):
        frag_int[FACE, end] = face - 1
        frag_int[SAMPLES, end] = samples
        frag[FX, end] = x + MIDDLE_X_4[samples]
        frag[FY, end] = y + MIDDLE_Y_4[samples]
        frag[WEIGHT, end] = COUNT_4[samples]
        end += np.uint64(first)
    covered = np.int64(a != 0) + np.int64(b != 0) + np.int64(c != 0) + np.int64(d != 0)
    return np.int64(end) - at, covered


@jit_inline
def _split(keys, py, px, size, scale, frag, frag_int, at):
    """As ``_split_4``, for any number of samples a pixel."""
    stride = row_stride(size)
    base = py * scale * stride + px * scale
    covered = n = 0
    for k in range(scale * scale):
        face = (keys[base + k // scale * stride + k % scale] & FACE_BITS) - 1
        if face < 0:
            continue
        covered += 1
        j = at
        while j < at + n and frag_int[FACE, j] != face:
            j += 1
        if j == at + n:
            n += 1
            frag_int[FACE, j], frag_int[SAMPLES, j] = face, 0
            frag[FX, j] = frag[FY, j] = frag[WEIGHT, j] = ZERO
        frag_int[SAMPLES, j] |= np.int64(1) << k
        frag[FX, j] += np.float32(k % scale) + HALF
        frag[FY, j] += np.float32(k // scale) + HALF
        frag[WEIGHT, j] += ONE
    for j in range(at, at + n):
        r = ONE / frag[WEIGHT, j]
        frag[FX, j] = frag[FX, j] * r + np.float32(px * scale)
        frag[FY, j] = frag[FY, j] * r + np.float32(py * scale)
    return n, covered


@jit
def _surface_row(n_runs, end, middle, step, row_int, setups, tags, screen, faces, normals, corner_normal, uv, vertex_color, face_material, factors, texture_of, emissive_of, ramp, first_level, levels, base_texels, mip_texels, decode16, frag, frag_int):  # fmt: skip  # noqa: E501
    """Vertex colour, texture and emission of all fragments of a row: see ``shade``."""
    has_color = len(vertex_color) > 0
    slots = len(tags) - 1
    pixels = row_int.shape[1]
    whole = 0
    for item in range(n_runs + end - pixels):
        if item < n_runs:
            f, n, at = row_int[RUN_FACE, item], row_int[RUN_LENGTH, item], whole
            x, y = (np.float32(row_int[RUN_PIXEL, item]) + HALF) * step, middle
            whole += n
        else:
            n, at = np.int64(1), pixels + item - n_runs
            f, x, y = frag_int[FACE, at], frag[FX, at], frag[FY, at]
        st = setups[f & slots]
        material = face_material[f]
        texture = texture_of[material]
        if tags[f & slots] != f:  # another face of this row has taken the slot
            tags[f & slots] = f
            set_up(
                f, screen, faces, normals, corner_normal, uv, vertex_color, material, factors, st
            )
        surface_fragments(
            st, texture, has_color, x, y, step, step, n, at, ramp, first_level, levels, frag,
            frag_int,
        )  # fmt: skip
    if len(levels):
        for start, stop in ((0, whole), (pixels, end)):
            apply_texture(
                R, start, stop, first_level, levels, base_texels, mip_texels, decode16, frag,
                frag_int,
            )  # fmt: skip
    if not len(emissive_of):
        return
    whole = 0
    for item in range(n_runs + end - pixels):
        if item < n_runs:
            f, n, at = row_int[RUN_FACE, item], row_int[RUN_LENGTH, item], whole
            x, y = (np.float32(row_int[RUN_PIXEL, item]) + HALF) * step, middle
            whole += n
        else:
            n, at = np.int64(1), pixels + item - n_runs
            f, x, y = frag_int[FACE, at], frag[FX, at], frag[FY, at]
        st = setups[f & slots]
        material = face_material[f]
        if tags[f & slots] != f:
            tags[f & slots] = f
            set_up(
                f, screen, faces, normals, corner_normal, uv, vertex_color, material, factors, st
            )
        emission_fragments(
            st, emissive_of[material], x, y, step, step, n, at, ramp, first_level, levels, frag,
            frag_int,
        )  # fmt: skip
    for start, stop in ((0, whole), (pixels, end)):
        if len(levels):
            apply_texture(
                GLOW, start, stop, first_level, levels, base_texels, mip_texels, decode16, frag,
                frag_int,
            )  # fmt: skip
        add_emission(start, stop, frag)


@jit
def shade(screen, faces, size, scale, keys, row_lo, row_hi, ray, light, normals, corner_normal, uv, vertex_color, face_material, factors, texture_of, emissive_of, first_level, levels, base_texels, mip_texels, decode16, encode, background, setups, tags, ramp, frag, frag_int, row_int, sums, layers, image):  # fmt: skip  # noqa: E501
    """Pass 2: colour once per visible face and pixel, weighted by the samples that it covers.

    Writes ``image`` (S, S, 4) uint8, or, when ``layers`` (size, size, 4) is not empty, each
    sample's linear RGB and coverage there for blending. Empties ``keys`` as it goes.

    ``setups`` (slots, SETUP_SIZE) and ``tags`` (slots,) are a direct-mapped cache of set-up faces.
    ``frag`` (FRAGMENT_ROWS, S + S s s + 4) and ``frag_int`` hold the fragments of a row of pixels:
    first S for whole pixels, then those of mixed pixels. ``row_int`` (ROW_INTS, S) and ``sums``
    (3, S) hold the runs and the mixed pixels of the row.
    """
    pixels = size // scale
    step = np.float32(scale)
    per_pixel = scale * scale
    share = np.float32(1.0 / per_pixel)
    has_color = len(vertex_color) > 0
    keep_samples = len(layers) > 0
    slots = len(tags) - 1  # a power of two less 1
    tags[:] = -1
    for py in range(pixels):
        lo, hi = size, 0
        for j in range(scale):
            lo = min(lo, row_lo[py * scale + j])
            hi = max(hi, row_hi[py * scale + j])
        first, last = lo // scale, (hi + scale - 1) // scale
        if first >= last:
            continue
        # 1. Runs of pixels that one face covers wholly, and the fragments of mixed pixels.
        n_runs = n_mixed = 0
        end = pixels
        px = first
        while px < last:
            f = MIXED if keep_samples else _sole_face(keys, py, px, size, scale)
            if f >= 0:
                n = 1
                while px + n < last and _sole_face(keys, py, px + n, size, scale) == f:
                    n += 1
                row_int[RUN_PIXEL, n_runs], row_int[RUN_LENGTH, n_runs] = px, n
                row_int[RUN_FACE, n_runs] = f
                n_runs += 1
                px += n
                continue
            if f == MIXED:
                if scale == 2:
                    n, covered = _split_4(keys, py, px, size, frag, frag_int, end)
                else:
                    n, covered = _split(keys, py, px, size, scale, frag, frag_int, end)
                for i in range(end, end + n):
                    frag_int[SLOT, i] = n_mixed
                end += n
                row_int[MIXED_PIXEL, n_mixed], row_int[MIXED_COVERED, n_mixed] = px, covered
                sums[0, n_mixed] = sums[1, n_mixed] = sums[2, n_mixed] = ZERO
                n_mixed += 1
            px += 1
        for j in range(scale):
            p = (py * scale + j) * row_stride(size)
            keys[p + first * scale : p + last * scale] = 0
        # 2. Their lit colours.
        whole = 0
        middle = (np.float32(py) + HALF) * step
        for run in range(n_runs):
            f, n = row_int[RUN_FACE, run], row_int[RUN_LENGTH, run]
            st = setups[f & slots]
            if tags[f & slots] != f:
                tags[f & slots] = f
                set_up(
                    f, screen, faces, normals, corner_normal, uv, vertex_color, face_material[f],
                    factors, st,
                )  # fmt: skip
            x = (np.float32(row_int[RUN_PIXEL, run]) + HALF) * step
            light_fragments(st, x, middle, step, n, whole, ray, light, ramp, frag)
            whole += n
        for i in range(pixels, end):
            f = np.int64(frag_int[FACE, i])
            st = setups[f & slots]
            if tags[f & slots] != f:
                tags[f & slots] = f
                set_up(
                    f, screen, faces, normals, corner_normal, uv, vertex_color, face_material[f],
                    factors, st,
                )  # fmt: skip
            light_fragments(st, frag[FX, i], frag[FY, i], step, 1, i, ray, light, ramp, frag)
        if has_color or len(levels) > 0 or len(emissive_of) > 0:
            _surface_row(
                n_runs, end, middle, step, row_int, setups, tags, screen, faces, normals,
                corner_normal, uv, vertex_color, face_material, factors, texture_of, emissive_of,
                ramp, first_level, levels, base_texels, mip_texels, decode16, frag, frag_int,
            )  # fmt: skip
        # 3. Out.
        at = 0
        for run in range(n_runs):
            px = row_int[RUN_PIXEL, run]
            for i in range(row_int[RUN_LENGTH, run]):
                image[py, px + i, 0] = encode_srgb(frag[R, at + i], encode)
                image[py, px + i, 1] = encode_srgb(frag[G, at + i], encode)
                image[py, px + i, 2] = encode_srgb(frag[B, at + i], encode)
                image[py, px + i, 3] = 255
            at += row_int[RUN_LENGTH, run]
        if keep_samples:
            for i in range(pixels, end):
                px = row_int[MIXED_PIXEL, frag_int[SLOT, i]]
                for k in range(per_pixel):
                    if frag_int[SAMPLES, i] >> k & 1:
                        layer = layers[py * scale + k // scale, px * scale + k % scale]
                        layer[0], layer[1], layer[2] = frag[R, i], frag[G, i], frag[B, i]
                        layer[3] = ONE
            continue
        for i in range(pixels, end):
            slot, part = frag_int[SLOT, i], frag[WEIGHT, i]
            sums[0, slot] += part * frag[R, i]
            sums[1, slot] += part * frag[G, i]
            sums[2, slot] += part * frag[B, i]
        for i in range(n_mixed):
            px, covered = row_int[MIXED_PIXEL, i], row_int[MIXED_COVERED, i]
            bare = np.float32(per_pixel - covered)
            image[py, px, 0] = encode_srgb((sums[0, i] + bare * background[0]) * share, encode)
            image[py, px, 1] = encode_srgb((sums[1, i] + bare * background[1]) * share, encode)
            image[py, px, 2] = encode_srgb((sums[2, i] + bare * background[2]) * share, encode)
            image[py, px, 3] = (covered * 255 + per_pixel // 2) // per_pixel
