"""View poses: where the cameras stand, in the frame of the normalised object (+y up)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


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


def ring(n_views: int = 12, fov_y_deg: float = 40.0) -> Cameras:
    """``n_views`` cameras at equal azimuths, at alternating elevations of 10 and 35 degrees.

    The distance is such that the unit sphere just fits into the image with a margin of 4 %.
    The first camera stands half a step from the front (+z), so that no view of a symmetric object
    is exactly edge-on.
    """
    if n_views < 1:
        raise ValueError("n_views must be at least 1")
    distance = 1.04 / np.sin(np.radians(fov_y_deg) / 2)
    azimuths = (np.arange(n_views) + 0.5) * 2 * np.pi / n_views
    elevations = np.radians(np.where(np.arange(n_views) % 2 == 0, 10.0, 35.0))
    eyes = distance * np.stack(
        [
            np.cos(elevations) * np.sin(azimuths),
            np.sin(elevations),
            np.cos(elevations) * np.cos(azimuths),
        ],
        axis=1,
    )
    return Cameras("ring", np.stack([look_at(eye) for eye in eyes]), fov_y_deg)
