"""Camera poses: rigid, outside the object, framing the unit sphere."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.cameras import look_at, ring


def eyes(poses: np.ndarray) -> np.ndarray:
    """Camera positions (V, 3) of world-to-camera matrices."""
    return np.stack([-pose[:3, :3].T @ pose[:3, 3] for pose in poses])


@pytest.mark.parametrize(
    "eye", [[0, 0, 3], [3, 0, 0], [-1, 2, -2], [0, 5, 0], [0, -5, 0], [1e-9, 4, 0]]
)
def test_look_at__is_a_rigid_motion_that_faces_the_origin(eye: list[float]) -> None:
    pose = look_at(np.array(eye, float))
    rotation = pose[:3, :3]
    assert rotation @ rotation.T == pytest.approx(np.eye(3), abs=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert pose[3].tolist() == [0, 0, 0, 1]
    # The eye goes to the camera's origin, the world's origin straight ahead, which is -z.
    assert pose @ [*eye, 1] == pytest.approx([0, 0, 0, 1], abs=1e-9)
    assert pose[:3, 3] == pytest.approx([0, 0, -np.linalg.norm(eye)], abs=1e-9)


def test_look_at__up_is_up() -> None:
    pose = look_at(np.array([1.0, 0.5, 2.0]))
    assert (pose[:3, :3] @ [0, 1, 0])[1] > 0.9
    assert (pose[:3, :3] @ [0, 1, 0])[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("n_views", [1, 2, 12, 17])
def test_ring__stands_at_equal_azimuths_and_alternating_elevations(n_views: int) -> None:
    cameras = ring(n_views)
    assert len(cameras) == n_views
    assert cameras.poses.shape == (n_views, 4, 4)
    positions = eyes(cameras.poses)
    distance = np.linalg.norm(positions, axis=1)
    assert distance == pytest.approx(np.full(n_views, distance[0]))
    elevation = np.degrees(np.arcsin(positions[:, 1] / distance))
    assert elevation == pytest.approx([10.0 if i % 2 == 0 else 35.0 for i in range(n_views)])
    azimuth = np.degrees(np.arctan2(positions[:, 0], positions[:, 2])) % 360
    assert azimuth == pytest.approx((np.arange(n_views) + 0.5) * 360 / n_views)


@pytest.mark.parametrize("fov", [20.0, 40.0, 75.0])
def test_ring__the_unit_sphere_fits_with_a_margin_of_four_percent(fov: float) -> None:
    distance = np.linalg.norm(eyes(ring(3, fov).poses)[0])
    # The silhouette of a sphere is where rays graze it.
    silhouette = np.tan(np.arcsin(1 / distance)) / np.tan(np.radians(fov) / 2)
    assert 0.90 < silhouette < 0.97
    assert distance == pytest.approx(1.04 / np.sin(np.radians(fov) / 2))


def test_ring__without_views_is_refused() -> None:
    with pytest.raises(ValueError, match="n_views"):
        ring(0)


def test_to_json__holds_every_pose_and_survives_json() -> None:
    cameras = ring(5)
    data = json.loads(json.dumps(cameras.to_json()))
    assert data["name"] == "ring"
    assert data["fov_y_deg"] == cameras.fov_y_deg
    assert np.array(data["poses"]) == pytest.approx(cameras.poses, abs=1e-8)
