"""Objects that came as points: checks and frame, the points of a row, and what is drawn of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.points import Points, farthest_point_order
from pipeline.scene import F32, U8, Cloud, Material, Mesh, MeshError, srgb_to_linear
from pipeline.shards import NEUTRAL_RGB

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

MIN_POINTS = 16  # distinct ones; fewer say nothing of a shape
DRAWN_POINTS = 12_288  # of a larger cloud a random choice is drawn
_PLANE_NEIGHBOURS = 10  # that the tangent plane at a point is fitted to, itself included
_SPACING_NEIGHBOURS = 8  # whose mean distance is the radius: discs of it leave few gaps
_SPREAD = 3.0  # a radius is within this factor of the median one
_FLATNESS = 0.25  # height of a solid over its plane, in radii: seen edge-on it does not vanish
_WHITE = Material(base_color=(1.0, 1.0, 1.0, 1.0))
_SRGB_TO_LINEAR = srgb_to_linear(np.arange(256) / 255.0)
# A flat hexagonal double pyramid: six corners in the plane, counter-clockwise about the normal,
# then the upper and the lower tip.
_CORNERS = np.array(
    [(np.cos(a), np.sin(a), 0.0) for a in np.arange(6) * np.pi / 3]
    + [(0.0, 0.0, _FLATNESS), (0.0, 0.0, -_FLATNESS)]
)
_FACES = np.array(
    [(i, (i + 1) % 6, 6) for i in range(6)] + [((i + 1) % 6, i, 7) for i in range(6)], np.int32
)


def make_cloud(xyz: NDArray[np.number], rgb: U8 | None = None) -> Cloud:
    """A cloud in the frame of a normalised mesh, from points (P, 3) in any units, +y up.

    Centred at the middle of the bounding box, the farthest point at distance 1. Points may
    coincide. A colour that is one and the same grey for all points is none (``rgb`` None).

    Raises:
        MeshError: stage ``load``; ``not_finite``, ``too_few_points`` (fewer than 16 distinct ones),
            ``zero_extent``.
    """
    with np.errstate(over="ignore"):
        points = np.asarray(xyz, np.float64)
    broken = len(points) - int(np.isfinite(points).all(axis=1).sum())
    if broken:
        raise MeshError("not_finite", f"{broken:,} of {len(points):,} points hold NaN or infinity")
    found = _distinct(points)
    if found < MIN_POINTS:
        raise MeshError(
            "too_few_points", f"{found} distinct points; at least {MIN_POINTS} are needed"
        )
    low, high = points.min(axis=0), points.max(axis=0)
    centre = low / 2 + high / 2
    half = float((high / 2 - low / 2).max())
    if half <= 1e-12 * max(1.0, float(np.abs(centre).max())):
        raise MeshError("zero_extent", "all points coincide but for rounding")
    # By the extent first: squares of very large or very small coordinates leave the range.
    unit = (points - centre) / half
    unit /= float(np.sqrt(np.einsum("pk,pk->p", unit, unit).max()))
    if rgb is not None and (rgb == rgb[0, 0]).all():
        rgb = None
    return Cloud(unit.astype(np.float32), rgb)


def _distinct(points: F64) -> int:
    """How many distinct points there are; above the least number, a lower bound."""
    first = len(np.unique(points[: 64 * MIN_POINTS], axis=0))
    if first >= MIN_POINTS:
        return first
    # Not by sorting all: millions of points that coincide would take minutes.
    found, left = 0, points
    while len(left) and found < MIN_POINTS:
        found, left = found + 1, left[(left != left[0]).any(axis=1)]
    return found


def cloud_points(cloud: Cloud, count: int = 10_000, seed: int = 0, n_fps: int = 2048) -> Points:
    """The ``count`` points of a row from a cloud of P points, in farthest-point order.

    More points than wanted: a random choice of them. Fewer: every point, and behind all of them as
    many repeats as are lacking, no point more than once oftener than another. Repeats add nothing
    to a farthest-point sample that has every point already, so that any prefix up to ``n_fps`` is
    one still. Equal arguments give equal points. Without colour rgb is ``NEUTRAL_RGB``.

    Raises:
        ValueError: ``count`` is not positive or ``n_fps`` negative.
    """
    if count < 1 or n_fps < 0:
        raise ValueError("count must be at least 1 and n_fps at least 0")
    rng = np.random.Generator(np.random.PCG64(seed))
    total = len(cloud.xyz)
    n_fps = min(n_fps, count)
    # In random order, since behind the farthest-point sample the order is to be random.
    chosen = rng.choice(total, min(count, total), replace=False)
    chosen = chosen[farthest_point_order(cloud.xyz[chosen], min(n_fps, len(chosen)))]
    lacking = count - len(chosen)
    if lacking > 0:
        rounds = [rng.permutation(total) for _ in range(-(-lacking // total))]
        chosen = np.concatenate([chosen, *rounds])[:count]
    neutral = np.full((count, 3), NEUTRAL_RGB, np.uint8)
    rgb = neutral if cloud.rgb is None else cloud.rgb[chosen]
    return Points(cloud.xyz[chosen], rgb, cloud.rgb is not None, n_fps)


def drawn(cloud: Cloud, normals: NDArray[np.floating] | None = None) -> Mesh:
    """What a renderer draws of a cloud: a small flat solid at each point, as one mesh.

    The solids lie in the tangent plane and are as wide as the points are apart there, so that they
    close to a surface where the points sample one, and stay single where they do not. They are
    shaded by the normal of the plane; light is two-sided, so that its sign does not matter. Of a
    cloud of more than ``DRAWN_POINTS`` distinct points a fixed random choice is drawn. Without
    colour they have the grey of a mesh without colour.

    Args:
        cloud: P points, normalised.
        normals: (P, 3) where the source has them, of any length; where a row is zero or not
            finite, and without the argument, the plane is fitted to the nearest points (Hoppe et
            al. 1992, "Surface reconstruction from unorganized points", section 3.2).
    """
    from scipy.spatial import KDTree

    xyz, first = _choice(cloud.xyz)
    tree = KDTree(xyz)
    wanted = min(_PLANE_NEIGHBOURS, len(xyz))
    distances, nearest = tree.query(xyz, k=wanted)
    spacing = distances[:, 1 : _SPACING_NEIGHBOURS + 1].mean(axis=1)
    radius = np.median(spacing[nearest], axis=1)  # a stray point is drawn no larger than others
    usual = float(np.median(radius))
    radius = np.clip(radius, usual / _SPREAD, usual * _SPREAD)

    axes = _axes(xyz[nearest], None if normals is None else normals[first])
    corners = np.einsum("ck,pkj->pcj", _CORNERS, axes) * radius[:, None, None]
    vertices = (xyz[:, None] + corners).reshape(-1, 3)
    count, per_point = len(xyz), len(_CORNERS)
    faces = _FACES + per_point * np.arange(count, dtype=np.int32)[:, None, None]
    color = None
    if cloud.rgb is not None:
        rgba = np.ones((count, 4), np.float32)
        rgba[:, :3] = _SRGB_TO_LINEAR[cloud.rgb[first]]
        color = np.repeat(rgba, per_point, axis=0)
    return Mesh(
        vertices=vertices.astype(np.float32),
        faces=faces.reshape(-1, 3),
        face_material=np.zeros(count * len(_FACES), np.int32),
        materials=(Material() if color is None else _WHITE,),
        normals=np.repeat(axes[:, 2].astype(np.float32), per_point, axis=0),
        vertex_color=color,
        has_color=color is not None,
    )


def _choice(xyz: F32) -> tuple[F64, I64]:
    """At most ``DRAWN_POINTS`` distinct points (K, 3) and their indices: the same ones always."""
    index = np.arange(len(xyz))
    if len(xyz) > 2 * DRAWN_POINTS:  # before the search for equal ones, which sorts
        rng = np.random.Generator(np.random.PCG64(0))
        index = rng.choice(len(xyz), 2 * DRAWN_POINTS, replace=False)
    _, first = np.unique(xyz[index], axis=0, return_index=True)
    index = index[np.sort(first)]
    if len(index) > DRAWN_POINTS:
        rng = np.random.Generator(np.random.PCG64(1))
        index = rng.choice(index, DRAWN_POINTS, replace=False)
    return xyz[index].astype(np.float64), index


def _axes(neighbours: F64, normals: NDArray[np.floating] | None) -> F64:
    """Right-handed frames (P, 3 axes, 3) of the points, the third axis the normal.

    ``neighbours`` (P, K, 3) are the nearest points of each.
    """
    offsets = neighbours - neighbours.mean(axis=1, keepdims=True)
    # Eigenvectors in ascending order of spread: the one of the least is across the surface.
    _, vectors = np.linalg.eigh(np.einsum("pki,pkj->pij", offsets, offsets))
    normal, along = vectors[:, :, 0], vectors[:, :, 2]
    if normals is not None:
        given = np.asarray(normals, np.float64)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            given = given / np.abs(given).max(axis=1, keepdims=True)
            given = given / np.linalg.norm(given, axis=1, keepdims=True)
        good = np.isfinite(given).all(axis=1)
        normal = np.where(good[:, None], given, normal)
        # Any direction in the plane will do: the coordinate axis farthest from the normal, made
        # perpendicular to it.
        other = np.eye(3)[np.argmin(np.abs(normal), axis=1)]
        other -= np.einsum("pk,pk->p", other, normal)[:, None] * normal
        along = other / np.linalg.norm(other, axis=1, keepdims=True)
    return np.stack([along, np.cross(normal, along), normal], axis=1)
