"""Coloured points on a surface: area-weighted, in farthest-point order.

The frame is that of the normalised mesh (unit ball, +y up, centred at the middle of the bounding
box of the mesh); it is not centred again at the mean of the points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.farthest import farthest_points
from pipeline.scene import F32, U8, Material, Mesh, MeshError, linear_to_srgb, srgb_to_linear
from pipeline.shards import NEUTRAL_RGB

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_MIN_BLEND_ALPHA = 0.02  # less is taken as not there
_MAX_ROUNDS = 8  # of replacing points that fell on transparent surface
_SRGB_TO_LINEAR = srgb_to_linear(np.arange(256) / 255.0)


@dataclass(frozen=True)
class Points:
    """A coloured cloud. Any first n <= ``n_fps`` points are its farthest-point sample of size n."""

    xyz: F32  # (N, 3) in the unit ball
    rgb: U8  # (N, 3) sRGB
    has_color: bool  # False: rgb is NEUTRAL_RGB throughout
    n_fps: int  # how many leading points are in farthest-point order; the rest are in random order


def sample_points(mesh: Mesh, count: int = 10_000, seed: int = 0, n_fps: int = 2048) -> Points:
    """Draw ``count`` points from the surface of a normalised mesh.

    Equal arguments give equal points. Points on surface that is cut away (alpha below the cutoff
    of a ``mask`` material) or invisible (alpha below 0.02 of a ``blend`` one) are drawn again, a
    bounded number of times; what is lacking then repeats visible points. Colours are those of the
    surface seen face-on: texture (bilinear, wrapping) x vertex colour x base-colour factor, plus
    what it emits, in linear light, clipped at 1, as sRGB.

    Raises:
        MeshError: stage ``sample``; ``zero_area`` where no face has an area, ``invisible`` where
            no visible point was found, ``not_normalised`` for a mesh outside the unit ball.
        ValueError: ``count`` is not positive or ``n_fps`` negative.
    """
    if count < 1 or n_fps < 0:
        raise ValueError("count must be at least 1 and n_fps at least 0")
    corners = mesh.vertices[mesh.faces].astype(np.float64)  # (F, 3 corners, 3)
    areas = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    )
    cumulative = np.cumsum(areas)
    # Of a mesh in the unit ball: less than this is rounding of coordinates that are collinear.
    if not len(areas) or not np.isfinite(cumulative[-1]) or cumulative[-1] <= 1e-12:
        raise MeshError("zero_area", "the faces of the mesh have no area", stage="sample")
    rng = np.random.Generator(np.random.PCG64(seed))

    faces, weights = _draw(rng, cumulative, count)
    rgba = _colors(mesh, faces, weights)
    hidden = _hidden(mesh, faces, rgba)
    for _ in range(_MAX_ROUNDS):
        lacking = int(hidden.sum())
        if not lacking:
            break
        # More than needed in proportion to what was lost, so that a few rounds do.
        ask = int(min(4 * count, lacking / max(0.05, 1 - lacking / count)) + 1)
        new_faces, new_weights = _draw(rng, cumulative, ask)
        new_rgba = _colors(mesh, new_faces, new_weights)
        good = np.flatnonzero(~_hidden(mesh, new_faces, new_rgba))[:lacking]
        places = np.flatnonzero(hidden)[: len(good)]
        faces[places], weights[places], rgba[places] = (
            new_faces[good],
            new_weights[good],
            new_rgba[good],
        )
        hidden[places] = False
    if hidden.all():
        raise MeshError("invisible", "no visible point on the surface", stage="sample")
    if hidden.any():
        again = rng.choice(np.flatnonzero(~hidden), int(hidden.sum()))
        faces[hidden], weights[hidden], rgba[hidden] = faces[again], weights[again], rgba[again]

    xyz = np.einsum("nc,nck->nk", weights, corners[faces])
    radius = float(np.linalg.norm(xyz, axis=1).max())
    if radius > 1.001:
        raise MeshError(
            "not_normalised", f"points reach a radius of {radius:.4g}: call normalised() first",
            stage="sample",
        )  # fmt: skip
    cloud = (xyz / max(1.0, radius)).astype(np.float32)
    if mesh.has_color:
        rgb = np.rint(255 * linear_to_srgb(rgba[:, :3])).astype(np.uint8)
    else:
        rgb = np.full((count, 3), NEUTRAL_RGB, np.uint8)
    n_fps = min(n_fps, count)
    order = farthest_point_order(cloud, n_fps)
    return Points(cloud[order], rgb[order], mesh.has_color, n_fps)


def farthest_point_order(xyz: F32, n_fps: int) -> I64:
    """A permutation of the N points whose first ``n_fps`` are a farthest-point sample.

    The first is farthest from the mean, and each one after it from those before it; ties go either
    way, though always the same way for the same points. The other points keep their order, which
    is random where they were drawn independently.
    """
    if n_fps < 1:
        return np.arange(len(xyz))
    offsets = xyz - xyz.mean(axis=0)
    start = int(np.argmax(np.einsum("nk,nk->n", offsets, offsets)))
    first = farthest_points(xyz, n_fps, start)
    others = np.ones(len(xyz), bool)
    others[first] = False
    return np.concatenate([first, np.flatnonzero(others)])


def _draw(rng: np.random.Generator, cumulative: F64, count: int) -> tuple[I64, F64]:
    """Face indices (N,) in proportion to area, and uniform barycentric weights (N, 3)."""
    uniform = rng.random((3, count))
    faces = np.searchsorted(cumulative, uniform[0] * cumulative[-1], side="right")
    faces = np.minimum(faces, len(cumulative) - 1)
    # Osada et al. 2002, "Shape distributions", equation 1.
    root = np.sqrt(uniform[1])
    weights = np.stack([1 - root, root * (1 - uniform[2]), root * uniform[2]], axis=1)
    return faces, weights


def _colors(mesh: Mesh, faces: I64, weights: F64) -> F32:
    """Linear RGBA (N, 4) of points on faces, textures and alpha included."""
    factors = np.array([material.base_color for material in mesh.materials], np.float32)
    material_of = mesh.face_material[faces]
    rgba: F32 = factors[material_of]
    if mesh.vertex_color is not None:
        rgba *= np.einsum("nc,nck->nk", weights, mesh.vertex_color[mesh.faces[faces]])
    for index, material in enumerate(mesh.materials):
        textures = () if mesh.uv is None else (material.texture, material.emissive_texture)
        if not any(material.emissive) and all(texture is None for texture in textures):
            continue
        here = np.flatnonzero(material_of == index)
        if not len(here):
            continue
        emission = np.tile(np.array(material.emissive, np.float32), (len(here), 1))
        if mesh.uv is not None:
            uv = np.einsum("nc,nck->nk", weights[here], mesh.uv[mesh.faces[faces[here]]])
            if material.texture is not None:
                rgba[here] *= sample_texture(material.texture, uv)
            if material.emissive_texture is not None and emission.any():
                emission *= sample_texture(material.emissive_texture, uv)[:, :3]
        if emission.any():
            rgba[here, :3] = np.minimum(rgba[here, :3] + emission, 1)
    return rgba


def sample_texture(texture: U8, uv: NDArray[np.floating]) -> F32:
    """Linear RGBA (N, 4) of an sRGB texture (H, W, 4) at ``uv`` (N, 2), origin bottom left.

    Bilinear between the centres of texels, in linear light, repeating beyond [0, 1].
    """
    height, width = texture.shape[:2]
    wrapped = uv - np.floor(uv)  # first, so that large coordinates keep their fraction
    x = wrapped[:, 0] * width - 0.5
    y = (1 - wrapped[:, 1]) * height - 0.5
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    across, down = (x - left)[:, None], (y - top)[:, None]
    total = np.zeros((len(uv), 4))
    for dy, row_weight in ((0, 1 - down), (1, down)):
        rows = (top + dy) % height
        for dx, column_weight in ((0, 1 - across), (1, across)):
            texel = texture[rows, (left + dx) % width]
            weight = row_weight * column_weight
            total[:, :3] += weight * _SRGB_TO_LINEAR[texel[:, :3]]
            total[:, 3:] += weight * (texel[:, 3:] / 255)
    return total.astype(np.float32)


def _hidden(mesh: Mesh, faces: I64, rgba: F32) -> NDArray[np.bool_]:
    """Which points lie on surface that is not there to be seen."""
    limits = np.array([_least_alpha(material) for material in mesh.materials], np.float32)
    return np.asarray(rgba[:, 3] < limits[mesh.face_material[faces]])


def _least_alpha(material: Material) -> float:
    if material.alpha_mode == "mask":
        return material.alpha_cutoff
    return _MIN_BLEND_ALPHA if material.alpha_mode == "blend" else -1.0
