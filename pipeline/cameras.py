"""View poses: where the cameras stand, in the frame of the normalised object (+y up, front +z).

Every set looks at the origin from one distance, at which the unit sphere fits into the image with
a margin of 4 %. Azimuths run from the front (+z) towards +x, elevations from the horizon up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.common import InputError
from pipeline.scene import Mesh

MARGIN = 1.04
MIN_FOV, MAX_FOV = 5.0, 120.0  # degrees; wider ones have the camera scrape along the sphere
MAX_VIEWS = 360
# A lens of 35 mm before Blender's sensor of 32 mm, its default: 49.13 degrees.
BLENDER_FOV = math.degrees(2 * math.atan(16 / 35))

THUMBNAIL_AZIMUTH, THUMBNAIL_ELEVATION = 30.0, 25.0  # degrees: three quarters, a little from above
_MIN_GAP = 0.25  # between the thumbnail's camera and the nearest vertex, in radii of the object


@dataclass(frozen=True)
class Cameras:
    """Perspective cameras around the unit sphere.

    ``poses`` are world-to-camera matrices, (V, 4, 4) float64, OpenGL convention: the camera looks
    along its -z axis, +x right, +y up. Square images; ``fov_y_deg`` is the full vertical angle.
    """

    name: str
    poses: NDArray[np.float64]  # (V, 4, 4)
    fov_y_deg: float

    def __len__(self) -> int:
        return len(self.poses)

    def to_json(self) -> dict[str, Any]:
        """For the manifest: name, field of view and every pose."""
        return {
            "name": self.name,
            "fov_y_deg": self.fov_y_deg,
            "poses": [[[round(x, 9) for x in row] for row in pose] for pose in self.poses.tolist()],
        }

    def with_thumbnail(self, mesh: Mesh) -> Cameras:
        """The same cameras and, as the last one, ``thumbnail_pose`` of a mesh that has faces."""
        drawn = np.zeros(len(mesh.vertices), np.bool_)
        drawn[mesh.faces.reshape(-1)] = True
        pose = thumbnail_pose(mesh.vertices[drawn], self.fov_y_deg)
        return replace(self, poses=np.concatenate([self.poses, pose[None]]))


def look_at(eye: NDArray[np.float64]) -> NDArray[np.float64]:
    """World-to-camera matrix (4, 4) of a camera at ``eye`` that looks at the origin, +y up."""
    backward = eye / np.linalg.norm(eye)
    up = np.array([0.0, 1.0, 0.0])
    if abs(backward @ up) > 0.999:  # straight from above or below: any horizontal up will do
        up = np.array([0.0, 0.0, -1.0 if backward[1] > 0 else 1.0])
    right = np.cross(up, backward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(backward, right), backward])
    pose = np.eye(4)
    pose[:3, :3] = rotation
    pose[:3, 3] = -rotation @ eye
    return pose


def direction(azimuth: ArrayLike, elevation: ArrayLike) -> NDArray[np.float64]:
    """Unit vectors (..., 3) towards an azimuth from +z to +x and an elevation, in radians."""
    azimuth, elevation = np.broadcast_arrays(azimuth, elevation)
    flat = np.cos(elevation)
    return np.stack([flat * np.sin(azimuth), np.sin(elevation), flat * np.cos(azimuth)], -1)


def fit_distance(fov_y_deg: float) -> float:
    """Distance from which the unit sphere takes the image but for the margin."""
    return float(MARGIN / np.sin(np.radians(fov_y_deg) / 2))


def _around(name: str, directions: NDArray[np.float64], fov_y_deg: float) -> Cameras:
    eyes = fit_distance(fov_y_deg) * directions
    return Cameras(name, np.stack([look_at(eye) for eye in eyes]), fov_y_deg)


def ring(n_views: int = 12, fov_y_deg: float = 40.0) -> Cameras:
    """``n_views`` cameras at equal azimuths, at alternating elevations of 10 and 35 degrees.

    The first camera stands half a step from the front (+z); a single one 30 degrees from it, and of
    two the first 45: half a step would be the back, and both profiles. Of 6, 10, 14 ... views two
    are exact profiles, which show nothing of a sheet.
    """
    if n_views < 1:
        raise ValueError("n_views must be at least 1")
    step = 2 * np.pi / n_views
    azimuths = np.arange(n_views) * step + {1: np.pi / 6, 2: np.pi / 4}.get(n_views, step / 2)
    elevations = np.radians(np.where(np.arange(n_views) % 2 == 0, 10.0, 35.0))
    return _around("ring", direction(azimuths, elevations), fov_y_deg)


def sphere(n_views: int = 12, fov_y_deg: float = 40.0) -> Cameras:
    """``n_views`` cameras spread evenly over the whole sphere, from the top down.

    A Fibonacci lattice: equal steps in height, each turned on by the golden angle (Gonzalez 2010,
    "Measurement of areas on a sphere using Fibonacci and latitude-longitude lattices").
    """
    if n_views < 1:
        raise ValueError("n_views must be at least 1")
    index = np.arange(n_views)
    heights = 1 - (2 * index + 1) / n_views
    golden = math.pi * (3 - math.sqrt(5))
    return _around("sphere", direction(index * golden, np.arcsin(heights)), fov_y_deg)


def openshape(n_views: int = 12, fov_y_deg: float = BLENDER_FOV) -> Cameras:
    """The first ``n_views`` of OpenShape's 12 views, in its order.

    Four views each at elevations of 30, 0 and -30 degrees, a quarter turn apart, each four turned
    against the others by 30 degrees. Angles and lens are those that its authors published (issue
    15 of Colin97/OpenShape_code and ``render_single_glb.py`` there), taken from Blender's axes to
    these. The distance is not theirs: they scale the longest side of the bounding box to 0.8 and
    stand at 1.2, so that their objects appear a little larger or smaller than here. Their lights
    and ray tracing are not imitated.
    """
    if not 1 <= n_views <= 12:
        raise ValueError("n_views must be 1 to 12")
    # Azimuths in Blender run from +x, and the front of a glTF file lies at -y there, at 270.
    azimuths = np.array([30, 120, 210, 300, 60, 150, 240, 330, 0, 90, 180, 270.0]) + 90
    elevations = np.repeat([30.0, 0.0, -30.0], 4)
    directions = direction(np.radians(azimuths), np.radians(elevations))
    return _around("openshape", directions[:n_views], fov_y_deg)


def ulip(n_views: int = 30, fov_y_deg: float = BLENDER_FOV) -> Cameras:
    """ULIP's views: a turntable, 30 views every 12 degrees, seen from 31 degrees above.

    Its authors used the defaults of panmari/stanford-shapenet-renderer (issue 13 of
    salesforce/ULIP): Blender's lens, the camera at height 0.6 for 1 of horizontal distance.
    Another number of views divides the turn alike. The first view is the front one; where theirs
    begins depends on how ShapeNet's versions are turned. The distance is such that the unit sphere
    fits, theirs is 1.17 for models in a box of diagonal 1, which cuts the corners of some.
    """
    if n_views < 1:
        raise ValueError("n_views must be at least 1")
    azimuths = np.arange(n_views) * 2 * np.pi / n_views
    return _around("ulip", direction(azimuths, math.atan2(0.6, 1.0)), fov_y_deg)


class CameraSet(NamedTuple):
    """A way to place cameras: how many by default and at most, the lens, and what it is."""

    make: Callable[[int, float], Cameras]
    n_views: int
    max_views: int
    fov_y_deg: float
    summary: str


CAMERA_SETS = {
    "ring": CameraSet(
        ring, 12, MAX_VIEWS, 40.0, "around the object, 10 and 35 degrees above in turn"
    ),
    "sphere": CameraSet(sphere, 12, MAX_VIEWS, 40.0, "evenly from all sides, Fibonacci lattice"),
    "openshape": CameraSet(openshape, 12, 12, BLENDER_FOV, "OpenShape's: 30, 0 and -30 degrees"),
    "ulip": CameraSet(ulip, 30, MAX_VIEWS, BLENDER_FOV, "ULIP's turntable, 31 degrees above"),
}


def make_cameras(
    name: str = "ring", n_views: int | None = None, fov_y_deg: float | None = None
) -> Cameras:
    """The camera set ``name``; number of views and field of view as the set has them if None.

    Raises ``InputError`` for an unknown name, a number of views that the set does not have, or an
    angle outside 5 to 120 degrees.
    """
    if name not in CAMERA_SETS:
        raise InputError(f"--cameras {name}: unknown; use one of {', '.join(CAMERA_SETS)}")
    found = CAMERA_SETS[name]
    count = found.n_views if n_views is None else n_views
    if not 1 <= count <= found.max_views:
        raise InputError(
            f"--views {count}: `--cameras {name}` allows 1 to {found.max_views} views; "
            "give a number in that range"
        )
    fov = found.fov_y_deg if fov_y_deg is None else fov_y_deg
    if not MIN_FOV <= fov <= MAX_FOV:
        raise InputError(
            f"--fov {fov:g}: not a valid angle; give {MIN_FOV:g} to {MAX_FOV:g} degrees"
        )
    return found.make(count, fov)


def thumbnail_pose(vertices: NDArray[np.floating], fov_y_deg: float) -> NDArray[np.float64]:
    """World-to-camera matrix (4, 4) of a three-quarter front view that an object fills.

    ``vertices`` (P, 3) are those that are drawn, of a normalised object. The camera looks along a
    fixed direction (azimuth 30, elevation 25 degrees) and is moved as close as all of them stay in
    the image but for the margin of 4 %: the object's own extent is framed, not the unit sphere.
    """
    angles = math.radians(THUMBNAIL_AZIMUTH), math.radians(THUMBNAIL_ELEVATION)
    pose = look_at(direction(*angles))
    x, y, z = (vertices.astype(np.float64) @ pose[:3, :3].T).T
    slope = math.tan(math.radians(fov_y_deg) / 2) / MARGIN
    # In the image means |x - cx| <= slope (cz - z), the same for y: four planes per vertex.
    left, right = (slope * z - x).max(), (slope * z + x).max()
    low, high = (slope * z - y).max(), (slope * z + y).max()
    depth = max((left + right) / 2 / slope, (low + high) / 2 / slope, z.max() + _MIN_GAP)
    pose[:3, 3] = (left - right) / 2, (low - high) / 2, -depth
    return pose


def thumbnail_json() -> dict[str, Any]:
    """For the manifest: how thumbnails are framed."""
    return {
        "azimuth_deg": THUMBNAIL_AZIMUTH,
        "elevation_deg": THUMBNAIL_ELEVATION,
        "framed": "object",
        "margin": MARGIN,
    }
