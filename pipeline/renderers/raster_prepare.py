"""What the rasteriser works out once per mesh: corner normals, mip-maps, flat tables."""
# Kernels take their types from numba, at the call.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.jit import jit, jit_inline
from pipeline.renderers.raster_fragments import (
    CUTOFF,
    EMISSION,
    N_FACTORS,
    NO_LIGHT,
    USES_UV,
)
from pipeline.renderers.raster_tables import SRGB_TO_LINEAR16
from pipeline.scene import Material, Mesh, MeshError

T = TypeVar("T", bound=np.generic)

ZERO = np.float32(0)
ONE = np.float32(1)
HALF = np.float32(0.5)
TINY = np.float32(1e-30)
PI = np.float32(np.pi)
# acos(x) for 0 <= x <= 1, Abramowitz and Stegun 4.4.45 (error below 7e-5): libm's acosf differs
# between systems in the last bit, this does not.
ACOS = tuple(np.float32(c) for c in (1.5707288, -0.2121144, 0.0742610, -0.0187293))
ACOS_0, ACOS_1, ACOS_2, ACOS_3 = ACOS
MAX_VALENCE = 64
"""Above so many corners at one point the pairwise crease test gives way to a linear one."""

OPAQUE, MASK, BLEND = 0, 1, 2
NOTHING = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Prepared:
    """A mesh as flat arrays, opaque faces first, then masked ones, then blended ones."""

    vertices: NDArray[np.float32]  # (V, 3)
    faces: NDArray[np.int32]  # (F, 3)
    n_opaque: int
    n_solid: int  # opaque and masked; the rest is blended
    normals: NDArray[np.float32]  # (N, 3)
    corner_normal: NDArray[np.int32]  # (F, 3) indices into normals
    uv: NDArray[np.float32]  # (V, 2), or (1, 2) when no texture is used
    vertex_color: NDArray[np.float32]  # (V, 4), or (0, 4)
    face_material: NDArray[np.int32]  # (F,)
    factors: NDArray[np.float32]  # (M, 10): linear RGBA; see CUTOFF and what follows it
    texture_of: NDArray[np.int32]  # (M,) texture index or -1
    emissive_of: NDArray[np.int32]  # (M,) the same of emissive textures; (0,) if nothing emits
    first_level: NDArray[np.int32]  # (T + 1,) first row of each texture in levels
    levels: NDArray[np.int64]  # (L, 3): offset in texels, width, height
    base_texels: NDArray[np.uint32]  # all levels 0: a texel's 4 bytes, sRGB and alpha
    mip_texels: NDArray[np.uint64]  # all levels above 0: 4 x 16 bits, linear, and alpha


def prepare(mesh: Mesh, crease_angle_deg: float) -> Prepared:
    """Check indices, order the faces by alpha mode, derive normals, build mip-maps.

    Raises ``MeshError`` (stage ``render``, kinds ``no_faces``, ``bad_shape``, ``bad_index`` and
    ``not_finite``).
    """
    vertices = _frozen(mesh.vertices, np.float32)
    faces = _frozen(mesh.faces, np.int32)
    face_material = _frozen(mesh.face_material, np.int32)
    _check(mesh, faces, face_material)
    modes = np.array([_mode(material, mesh) for material in mesh.materials], np.int32)
    face_modes = modes[face_material]
    n_opaque, n_mask = int((face_modes == OPAQUE).sum()), int((face_modes == MASK).sum())
    if n_opaque != len(faces):
        order = np.argsort(face_modes, kind="stable")
        faces = _frozen(faces[order], np.int32)
        face_material = _frozen(face_material[order], np.int32)
    normals, corner_normal = _normals(mesh, vertices, faces, crease_angle_deg)
    texture_of, emissive_of, textures = _distinct_textures(mesh, modes)
    first_level, levels, base, mip = _mip_maps(textures)
    uv = mesh.uv if mesh.uv is not None and textures else np.zeros((1, 2), np.float32)
    color = mesh.vertex_color
    return Prepared(
        vertices=vertices,
        faces=faces,
        n_opaque=n_opaque,
        n_solid=n_opaque + n_mask,
        normals=_frozen(normals, np.float32),
        corner_normal=_frozen(corner_normal, np.int32),
        uv=_frozen(uv, np.float32),
        vertex_color=_frozen(np.zeros((0, 4)) if color is None else color, np.float32),
        face_material=face_material,
        factors=_factors(mesh, (texture_of >= 0) | (emissive_of >= 0)),
        texture_of=texture_of,
        emissive_of=emissive_of if any(any(m.emissive) for m in mesh.materials) else NOTHING,
        first_level=first_level,
        levels=levels,
        base_texels=base,
        mip_texels=mip,
    )


def _factors(mesh: Mesh, uses_uv: NDArray[np.bool_]) -> NDArray[np.float32]:
    """What shading needs of every material, (M, N_FACTORS); columns as in ``raster_fragments``."""
    factors = np.zeros((len(mesh.materials), N_FACTORS), np.float32)
    for row, material in zip(factors, mesh.materials, strict=True):
        row[:CUTOFF] = material.base_color
        row[CUTOFF] = material.alpha_cutoff
        row[NO_LIGHT] = material.unlit
        row[EMISSION : EMISSION + 3] = material.emissive
    factors[:, USES_UV] = uses_uv
    return factors


def _frozen(array: NDArray[Any], dtype: type[T]) -> NDArray[T]:
    """A contiguous, read-only view, copied where need be.

    Numba compiles anew for every combination of read-only arguments, and decoded images and
    memory maps are read-only: all are made so, and there is one combination.
    """
    view = np.require(array, dtype, ["C", "A"]).view()
    view.flags.writeable = False
    return view


def _check(mesh: Mesh, faces: NDArray[np.int32], face_material: NDArray[np.int32]) -> None:
    """The kernels do not check bounds, so that everything they index by is checked here."""
    n_vertices = len(mesh.vertices)
    if not len(faces) or not n_vertices:
        raise MeshError("no_faces", "the mesh has no faces", stage="render")
    if mesh.vertices.shape != (n_vertices, 3) or faces.shape != (len(faces), 3):
        raise MeshError("bad_shape", "vertices and faces must be (n, 3)", stage="render")
    if faces.min() < 0 or faces.max() >= n_vertices:
        raise MeshError("bad_index", "a face names a vertex that does not exist", stage="render")
    if len(face_material) != len(faces):
        raise MeshError("bad_index", "face_material is not one per face", stage="render")
    if face_material.min() < 0 or face_material.max() >= len(mesh.materials):
        raise MeshError("bad_index", "a face names a material that does not exist", stage="render")
    for name, array, width in (
        ("normals", mesh.normals, 3),
        ("uv", mesh.uv, 2),
        ("vertex_color", mesh.vertex_color, 4),
    ):
        if array is not None and array.shape != (n_vertices, width):
            raise MeshError("bad_shape", f"{name} is not ({n_vertices}, {width})", stage="render")
    if mesh.vertex_color is not None and not np.isfinite(mesh.vertex_color).all():
        raise MeshError("not_finite", "vertex_color holds NaN or infinity", stage="render")
    for material in mesh.materials:
        for image in (material.texture, material.emissive_texture):
            if image is not None and (image.ndim != 3 or image.shape[2] != 4 or not image.size):
                raise MeshError("bad_shape", "a texture is not (height, width, 4)", stage="render")


def _mode(material: Material, mesh: Mesh) -> int:
    """Alpha mode as drawn. Exporters call many opaque materials BLEND: look at the alphas."""
    if material.alpha_mode == "opaque":
        return OPAQUE
    texture = material.texture if mesh.uv is not None else None
    solid = texture is None or texture[..., 3].min() == 255
    if mesh.vertex_color is not None:
        solid = solid and bool(mesh.vertex_color[:, 3].min() >= 1)
    if solid and material.base_color[3] >= 1:
        return OPAQUE
    return MASK if material.alpha_mode == "mask" else BLEND


# --- normals ---------------------------------------------------------------------------------


def _normals(
    mesh: Mesh, vertices: NDArray[np.float32], faces: NDArray[np.int32], crease_angle_deg: float
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Normals (N, 3) and per-corner indices (F, 3): the asset's own, else by crease angle."""
    if mesh.normals is not None:
        given = np.ascontiguousarray(mesh.normals, np.float32)
        length2 = (given * given).sum(1)
        bad = ~((length2 > 1e-6) & (length2 < 1e6))  # NaN counts as bad
        if not bad.any():
            return given, faces
        return _patch_normals(vertices, faces, given, bad)
    point_of, n_points = _weld(vertices)
    cos_crease = np.float32(np.cos(np.radians(np.clip(crease_angle_deg, 0, 180))))
    corner = _crease_normals(vertices, faces, point_of, n_points, cos_crease)
    return corner, np.arange(3 * len(faces), dtype=np.int32).reshape(-1, 3)


def _patch_normals(
    vertices: NDArray[np.float32],
    faces: NDArray[np.int32],
    given: NDArray[np.float32],
    bad: NDArray[np.bool_],
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Face normals for the corners whose vertex has no usable normal."""
    rows = np.nonzero(bad[faces].any(1))[0]
    a, b, c = (vertices[faces[rows, k]] for k in range(3))
    flat = np.cross(b - a, c - a)
    length = np.sqrt((flat * flat).sum(1, keepdims=True))
    flat = np.where(length > 0, flat / np.maximum(length, 1e-30), [[0, 0, 1]])
    corner = faces.copy()
    replacement = (len(given) + np.arange(len(rows)))[:, None]
    corner[rows] = np.where(bad[faces[rows]], replacement, corner[rows])
    return np.concatenate([given, flat]).astype(np.float32), corner


@jit
def _weld(vertices):
    """Number the distinct positions: (V,) int32 and their count. Open addressing on the bits."""
    n = len(vertices)
    size = 16
    while size < 2 * n:
        size *= 2
    mask = np.uint64(size - 1)
    table = np.full(size, -1, np.int32)
    point_of = np.empty(n, np.int32)
    owner = np.empty(n, np.int32)
    count = 0
    for i in range(n):
        x, y, z = vertices[i, 0] + ZERO, vertices[i, 1] + ZERO, vertices[i, 2] + ZERO  # -0 is 0
        h = np.uint64(np.float32(x).view(np.uint32)) * np.uint64(0x9E3779B97F4A7C15)
        h = (h ^ (h >> np.uint64(29)) ^ np.uint64(np.float32(y).view(np.uint32))) * np.uint64(
            0xBF58476D1CE4E5B9
        )
        h = (h ^ (h >> np.uint64(31)) ^ np.uint64(np.float32(z).view(np.uint32))) * np.uint64(
            0x94D049BB133111EB
        )
        slot = (h ^ (h >> np.uint64(32))) & mask
        while True:
            point = table[slot]
            if point < 0:
                table[slot] = count
                owner[count] = i
                point_of[i] = count
                count += 1
                break
            j = owner[point]
            if vertices[j, 0] == x and vertices[j, 1] == y and vertices[j, 2] == z:
                point_of[i] = point
                break
            slot = (slot + np.uint64(1)) & mask
    return point_of, count


@jit_inline
def _acos(x):
    """Angle in radians of a cosine, float32."""
    a = min(abs(x), ONE)
    r = np.sqrt(ONE - a) * (ACOS_0 + a * (ACOS_1 + a * (ACOS_2 + a * ACOS_3)))
    return PI - r if x < ZERO else r


@jit
def _crease_normals(vertices, faces, point_of, n_points, cos_crease):
    """Corner normals (3F, 3): angle-weighted means of the faces that meet softly at a point.

    A corner takes the faces whose normals are within the crease angle of its own face's (weights:
    Thuermer and Wuethrich, Computing Vertex Normals from Polygonal Facets, 1998).
    """
    n_faces = len(faces)
    face_normal = np.empty((n_faces, 3), np.float32)
    angle = np.empty(3 * n_faces, np.float32)
    first = np.zeros(n_points + 1, np.int32)
    for f in range(n_faces):
        ia, ib, ic = faces[f, 0], faces[f, 1], faces[f, 2]
        ux, uy, uz = (
            vertices[ib, 0] - vertices[ia, 0],
            vertices[ib, 1] - vertices[ia, 1],
            vertices[ib, 2] - vertices[ia, 2],
        )
        vx, vy, vz = (
            vertices[ic, 0] - vertices[ia, 0],
            vertices[ic, 1] - vertices[ia, 1],
            vertices[ic, 2] - vertices[ia, 2],
        )
        wx, wy, wz = vx - ux, vy - uy, vz - uz
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        n2 = nx * nx + ny * ny + nz * nz
        if n2 > TINY:
            r = ONE / np.sqrt(n2)
            face_normal[f, 0], face_normal[f, 1], face_normal[f, 2] = nx * r, ny * r, nz * r
            u2 = ux * ux + uy * uy + uz * uz
            v2 = vx * vx + vy * vy + vz * vz
            w2 = wx * wx + wy * wy + wz * wz
            angle[3 * f] = _acos((ux * vx + uy * vy + uz * vz) / np.sqrt(u2 * v2 + TINY))
            angle[3 * f + 1] = _acos(-(ux * wx + uy * wy + uz * wz) / np.sqrt(u2 * w2 + TINY))
            angle[3 * f + 2] = _acos((vx * wx + vy * wy + vz * wz) / np.sqrt(v2 * w2 + TINY))
        else:  # no area: neither seen nor counted
            face_normal[f, 0], face_normal[f, 1], face_normal[f, 2] = ZERO, ZERO, ONE
            angle[3 * f] = angle[3 * f + 1] = angle[3 * f + 2] = ZERO
        for k in range(3):
            first[point_of[faces[f, k]] + 1] += 1
    for p in range(n_points):
        first[p + 1] += first[p]
    corner_of = np.empty(3 * n_faces, np.int32)
    fill = first[:-1].copy()
    for c in range(3 * n_faces):
        p = point_of[faces[c // 3, c % 3]]
        corner_of[fill[p]] = c
        fill[p] += 1
    normals = np.empty((3 * n_faces, 3), np.float32)
    for p in range(n_points):
        lo, hi = first[p], first[p + 1]
        wide = hi - lo > MAX_VALENCE
        sx = sy = sz = ZERO
        if wide:
            for j in range(lo, hi):
                g, w = corner_of[j] // 3, angle[corner_of[j]]
                sx += w * face_normal[g, 0]
                sy += w * face_normal[g, 1]
                sz += w * face_normal[g, 2]
            s2 = sx * sx + sy * sy + sz * sz
            r = ONE / np.sqrt(s2) if s2 > TINY else ZERO
            sx, sy, sz = sx * r, sy * r, sz * r
        for i in range(lo, hi):
            c = corner_of[i]
            f = c // 3
            fx, fy, fz = face_normal[f, 0], face_normal[f, 1], face_normal[f, 2]
            nx = ny = nz = ZERO
            if wide:
                if fx * sx + fy * sy + fz * sz >= cos_crease:
                    nx, ny, nz = sx, sy, sz
            else:
                for j in range(lo, hi):
                    g = corner_of[j] // 3
                    gx, gy, gz = face_normal[g, 0], face_normal[g, 1], face_normal[g, 2]
                    if fx * gx + fy * gy + fz * gz >= cos_crease:
                        w = angle[corner_of[j]]
                        nx += w * gx
                        ny += w * gy
                        nz += w * gz
            n2 = nx * nx + ny * ny + nz * nz
            if n2 > TINY:
                r = ONE / np.sqrt(n2)
                normals[c, 0], normals[c, 1], normals[c, 2] = nx * r, ny * r, nz * r
            else:
                normals[c, 0], normals[c, 1], normals[c, 2] = fx, fy, fz
    return normals


# --- textures --------------------------------------------------------------------------------


def _distinct_textures(
    mesh: Mesh, modes: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32], list[tuple[NDArray[np.uint8], bool]]]:
    """Texture and emissive texture per material (-1: none); each with whether its alpha counts."""
    index: dict[tuple[int, bool], int] = {}
    textures: list[tuple[NDArray[np.uint8], bool]] = []

    def place(image: NDArray[np.uint8] | None, uses_alpha: bool) -> int:
        if image is None or mesh.uv is None:
            return -1
        key = (id(image), uses_alpha)
        if key not in index:
            index[key] = len(textures)
            textures.append((np.ascontiguousarray(image, np.uint8), uses_alpha))
        return index[key]

    materials = list(zip(mesh.materials, modes != OPAQUE, strict=True))
    texture_of = [place(material.texture, bool(alpha)) for material, alpha in materials]
    emissive_of = [
        place(material.emissive_texture, False) if any(material.emissive) else -1
        for material, _ in materials
    ]
    return np.array(texture_of, np.int32), np.array(emissive_of, np.int32), textures


def _mip_maps(
    textures: list[tuple[NDArray[np.uint8], bool]],
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.uint32], NDArray[np.uint64]]:
    """All textures' levels in two flat arrays. Halved by area, in linear light, down to 1 x 1."""
    first, levels, base_size, mip_size = [0], [], 0, 0
    for texture, _ in textures:
        height, width = texture.shape[:2]
        levels.append((base_size, width, height))
        base_size += width * height
        while max(width, height) > 1:
            width, height = max(1, width // 2), max(1, height // 2)
            levels.append((mip_size, width, height))
            mip_size += width * height
        first.append(len(levels))
    mip = np.empty(4 * mip_size, np.uint16)
    table = np.array(levels, np.int64).reshape(-1, 3)
    if len(textures) == 1:  # the usual case: no copy
        base = textures[0][0].reshape(-1)
    else:
        base = np.concatenate([np.zeros(0, np.uint8), *(t.reshape(-1) for t, _ in textures)])
    base = _frozen(base, np.uint8)
    for t, (_, uses_alpha) in enumerate(textures):
        _fill_mips(base, mip, table[first[t] : first[t + 1]], SRGB_TO_LINEAR16, uses_alpha)
    return np.array(first, np.int32), table, base.view(np.uint32), mip.view(np.uint64)


@jit_inline
def _halve_base(base, source, mip, target, width, height, decode):
    """Level 1 of an opaque texture with even sides: means of 2 x 2 sRGB texels."""
    stride = np.uint64(8 * width)
    two, rgb, four, eight = np.uint32(2), np.uint64(3), np.uint64(4), np.uint64(8)
    for y in range(height):
        p = np.uint64(source) + np.uint64(2 * y) * stride
        q = np.uint64(target + 4 * y * width)
        for _ in range(width):
            for k in range(rgb):
                total = np.uint32(decode[base[p + k]]) + np.uint32(decode[base[p + four + k]])
                total += np.uint32(decode[base[p + stride + k]])
                total += np.uint32(decode[base[p + stride + four + k]])
                mip[q + k] = (total + two) >> two
            mip[q + rgb] = 65535
            p += eight
            q += four


@jit_inline
def _halve(mip, source, target, width, height):
    """A level above 1 of a texture with even sides: means of 2 x 2 linear texels."""
    stride = np.uint64(8 * width)
    two, four, eight = np.uint32(2), np.uint64(4), np.uint64(8)
    for y in range(height):
        p = np.uint64(source) + np.uint64(2 * y) * stride
        q = np.uint64(target + 4 * y * width)
        for _ in range(width):
            for k in range(four):
                total = np.uint32(mip[p + k]) + np.uint32(mip[p + four + k])
                total += np.uint32(mip[p + stride + k]) + np.uint32(mip[p + stride + four + k])
                mip[q + k] = (total + two) >> two
            p += eight
            q += four


@jit
def _fill_mips(base, mip, levels, decode, uses_alpha):
    """Write every level above 0 of one texture: each from the one before it.

    Even sides are halved by a 2-texel box; odd ones by three texels weighted by the overlap of
    areas, so that the mean colour is kept. Where alpha counts, colour is weighted by alpha: the
    colour under transparent texels must not bleed out.
    """
    for level in range(1, len(levels)):
        source, sw, sh = 4 * levels[level - 1, 0], levels[level - 1, 1], levels[level - 1, 2]
        target, tw, th = 4 * levels[level, 0], levels[level, 1], levels[level, 2]
        if sw % 2 == 0 and sh % 2 == 0 and not uses_alpha:
            if level == 1:
                _halve_base(base, source, mip, target, tw, th, decode)
            else:
                _halve(mip, source, target, tw, th)
            continue
        taps_x = sw if sw == 1 else (2 if sw % 2 == 0 else 3)
        taps_y = sh if sh == 1 else (2 if sh % 2 == 0 else 3)
        for y in range(th):
            for x in range(tw):
                r = g = b = a = total = np.uint64(0)
                for j in range(taps_y):
                    wy = 1
                    if taps_y == 3:
                        wy = th - y if j == 0 else (th if j == 1 else y + 1)
                    for i in range(taps_x):
                        wx = 1
                        if taps_x == 3:
                            wx = tw - x if i == 0 else (tw if i == 1 else x + 1)
                        w = np.uint64(wx * wy)
                        p = source + 4 * ((2 * y + j) * sw + 2 * x + i)
                        if level == 1:
                            cr = np.uint64(decode[base[p]])
                            cg = np.uint64(decode[base[p + 1]])
                            cb = np.uint64(decode[base[p + 2]])
                            ca = np.uint64(base[p + 3]) * np.uint64(257)
                        else:
                            cr, cg = np.uint64(mip[p]), np.uint64(mip[p + 1])
                            cb, ca = np.uint64(mip[p + 2]), np.uint64(mip[p + 3])
                        total += w
                        a += w * ca
                        wc = w * ca if uses_alpha else w
                        r += wc * cr
                        g += wc * cg
                        b += wc * cb
                weight = a if uses_alpha else total
                q = target + 4 * (y * tw + x)
                if weight > np.uint64(0):
                    half = weight // np.uint64(2)
                    mip[q] = (r + half) // weight
                    mip[q + 1] = (g + half) // weight
                    mip[q + 2] = (b + half) // weight
                else:
                    mip[q] = mip[q + 1] = mip[q + 2] = 0
                mip[q + 3] = (a + total // np.uint64(2)) // total
