"""Passes of the rasteriser for faces with transparency: cut out, or blended over the rest."""
# Kernels take their types from numba, at the call.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from pipeline.jit import jit
from pipeline.renderers.raster_fragments import (
    CUTOFF,
    FACTOR,
    GLOW,
    HALF,
    ONE,
    ZERO,
    A,
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
from pipeline.renderers.raster_visibility import depth_bits, depth_plane, row_stride, spans

NOT_QUITE_OPAQUE = np.float32(254.5 / 255)


@jit
def draw_by_sample(screen, faces, order, composite, n_solid, size, scale, keys, row_lo, row_hi, starts, ends, ray, light, normals, corner_normal, uv, vertex_color, face_material, factors, texture_of, emissive_of, first_level, levels, base_texels, mip_texels, decode16, st, ramp, frag, frag_int, layers):  # fmt: skip  # noqa: E501
    """Draw the faces ``order`` with colour and alpha at every sample.

    Not ``composite``, the second half of pass 1: ``keys`` take the samples whose alpha reaches
    the material's cutoff. Blended faces (index ``n_solid`` and up) come here too, for the parts of
    them that are opaque: these hide what is behind them, however well the faces are sorted later.

    ``composite``: blend over ``layers`` (size, size, 4), premultiplied linear RGBA, wherever the
    sample is not behind ``keys``. Opaque parts come here twice, and cover themselves.
    """
    has_color = len(vertex_color) > 0
    for index in range(len(order)):
        f = order[index]
        ia, ib, ic = faces[f, 0], faces[f, 1], faces[f, 2]
        za, zb, zc = screen[ia, 2], screen[ib, 2], screen[ic, 2]
        if min(za, min(zb, zc)) <= ZERO:
            continue
        dzdx, dzdy, offset = depth_plane(screen, ia, ib, ic)
        if offset < 0:
            continue
        xa, ya = screen[ia, 0], screen[ia, 1]
        y0, y1 = spans(
            xa, ya, screen[ib, 0], screen[ib, 1], screen[ic, 0], screen[ic, 1], size, starts, ends
        )
        if y0 >= y1:
            continue
        z_lo, z_hi = min(za, min(zb, zc)), max(za, max(zb, zc))
        material = face_material[f]
        texture = texture_of[material]
        set_up(f, screen, faces, normals, corner_normal, uv, vertex_color, material, factors, st)
        cutoff = st[FACTOR + CUTOFF] if f < n_solid else NOT_QUITE_OPAQUE
        for row in range(y0, y1):
            start, n = starts[row], ends[row] - starts[row]
            if n <= 0:
                continue
            x, y = np.float32(start) + HALF, np.float32(row) + HALF
            light_fragments(st, x, y, ONE, n, 0, ray, light, ramp, frag)
            surface_fragments(
                st, texture, has_color, x, y, ONE, np.float32(scale), n, 0, ramp, first_level,
                levels, frag, frag_int,
            )  # fmt: skip
            apply_texture(
                R, 0, n, first_level, levels, base_texels, mip_texels, decode16, frag, frag_int
            )
            if composite and len(emissive_of):
                emission_fragments(
                    st, emissive_of[material], x, y, ONE, np.float32(scale), n, 0, ramp,
                    first_level, levels, frag, frag_int,
                )  # fmt: skip
                apply_texture(
                    GLOW, 0, n, first_level, levels, base_texels, mip_texels, decode16, frag,
                    frag_int,
                )  # fmt: skip
                add_emission(0, n, frag)
            row_lo[row] = min(row_lo[row], start)
            row_hi[row] = max(row_hi[row], start + n)
            z_row = za + (x - xa) * dzdx + (y - ya) * dzdy
            p = row * row_stride(size) + start
            for i in range(n):
                z = min(max(z_row + ramp[i] * dzdx, z_lo), z_hi)
                bits = depth_bits(z, offset)
                alpha = min(max(frag[A, i], ZERO), ONE)
                if composite:
                    if bits >= keys[p + i] >> np.int64(32):
                        keep = ONE - alpha
                        layer = layers[row, start + i]
                        layer[0] = layer[0] * keep + alpha * frag[R, i]
                        layer[1] = layer[1] * keep + alpha * frag[G, i]
                        layer[2] = layer[2] * keep + alpha * frag[B, i]
                        layer[3] = layer[3] * keep + alpha
                elif alpha >= cutoff:
                    keys[p + i] = max(keys[p + i], bits << np.int64(32) | np.int64(f + 1))


@jit
def resolve(layers, scale, background, encode, image):
    """Mean of the samples ``layers`` (S s, S s, 4) over the background, into ``image``."""
    pixels = len(layers) // scale
    share = np.float32(1.0 / (scale * scale))
    for py in range(pixels):
        for px in range(pixels):
            red = green = blue = cover = ZERO
            for y in range(py * scale, (py + 1) * scale):
                for x in range(px * scale, (px + 1) * scale):
                    red += layers[y, x, 0]
                    green += layers[y, x, 1]
                    blue += layers[y, x, 2]
                    cover += layers[y, x, 3]
            cover *= share
            bare = ONE - cover
            image[py, px, 0] = encode_srgb(red * share + bare * background[0], encode)
            image[py, px, 1] = encode_srgb(green * share + bare * background[1], encode)
            image[py, px, 2] = encode_srgb(blue * share + bare * background[2], encode)
            image[py, px, 3] = np.uint8(min(cover, ONE) * np.float32(255) + HALF)
