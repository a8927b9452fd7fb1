"""Camera poses: rigid, outside the object, framing the unit sphere."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.cameras import (
    BLENDER_FOV,
    CAMERA_SETS,
    MARGIN,
    Cameras,
    look_at,
    make_cameras,
    ring,
    thumbnail_pose,
)
from pipeline.common import InputError
from pipeline.renderers.base import RenderConfig
from pipeline.renderers.raster import RasterRenderer
from tests.pipeline.shapes import quad
from tests.pipeline.shapes import sphere as sphere_mesh


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


@pytest.mark.parametrize(
    ("n_views", "first"), [(1, 30), (2, 45), (3, 60), (12, 15), (17, 180 / 17)]
)
def test_ring__stands_at_equal_azimuths_and_alternating_elevations(
    n_views: int, first: float
) -> None:
    cameras = ring(n_views)
    assert len(cameras) == n_views
    assert cameras.poses.shape == (n_views, 4, 4)
    positions = eyes(cameras.poses)
    distance = np.linalg.norm(positions, axis=1)
    assert distance == pytest.approx(np.full(n_views, distance[0]))
    elevation = np.degrees(np.arcsin(positions[:, 1] / distance))
    assert elevation == pytest.approx([10.0 if i % 2 == 0 else 35.0 for i in range(n_views)])
    azimuth = np.degrees(np.arctan2(positions[:, 0], positions[:, 2])) % 360
    assert azimuth == pytest.approx(first + np.arange(n_views) * 360 / n_views)


@pytest.mark.parametrize("n_views", [1, 2])
def test_ring__few_views_show_the_front_of_a_sheet(n_views: int) -> None:
    seen = RasterRenderer().render(quad(0.7), ring(n_views), RenderConfig(image_size=64))
    shares = [float((view[..., :3] != 255).any(-1).mean()) for view in seen]
    assert min(shares) > 0.2
    front = eyes(ring(n_views).poses)[0]
    assert front[2] > abs(front[0]) - 1e-9


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


def angles(cameras: Cameras) -> np.ndarray:
    """Azimuth from +z towards +x in [0, 360) and elevation, in whole degrees: (V, 2)."""
    x, y, z = eyes(cameras.poses).T
    azimuth = np.degrees(np.arctan2(x, z)).round().astype(int) % 360
    elevation = np.degrees(np.arctan2(y, np.hypot(x, z))).round().astype(int)
    return np.stack([azimuth, elevation], axis=1)


@pytest.mark.parametrize("name", CAMERA_SETS)
@pytest.mark.parametrize(("n_views", "fov"), [(None, None), (1, 20.0), (7, 75.0)])
def test_make_cameras__every_set_frames_the_unit_sphere(
    name: str, n_views: int | None, fov: float | None
) -> None:
    cameras = make_cameras(name, n_views, fov)
    assert cameras.name == name
    assert len(cameras) == (n_views or CAMERA_SETS[name].n_views)
    assert cameras.fov_y_deg == (fov or CAMERA_SETS[name].fov_y_deg)
    expected = MARGIN / np.sin(np.radians(cameras.fov_y_deg) / 2)
    distance = np.linalg.norm(eyes(cameras.poses), axis=1)
    assert distance == pytest.approx(np.full(len(cameras), expected))
    on_sphere = np.random.default_rng(0).normal(size=(500, 3))
    on_sphere /= np.linalg.norm(on_sphere, axis=1, keepdims=True)
    slope = np.tan(np.radians(cameras.fov_y_deg) / 2)
    for pose in cameras.poses:
        x, y, z = (on_sphere @ pose[:3, :3].T + pose[:3, 3]).T
        assert (np.abs(np.stack([x, y])) < -z * slope).all()
        assert pose[:3, :3] @ pose[:3, :3].T == pytest.approx(np.eye(3), abs=1e-12)


@pytest.mark.parametrize("n_views", [2, 12, 100])
def test_sphere__views_are_spread_evenly(n_views: int) -> None:
    directions = eyes(make_cameras("sphere", n_views).poses)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    cosines = directions @ directions.T - 2 * np.eye(n_views)
    nearest = np.degrees(np.arccos(cosines.max(axis=1)))
    # Discs of that radius around every view would cover the sphere without gaps or overlap.
    ideal = np.degrees(np.sqrt(4 * np.pi / n_views))
    assert nearest.min() > 0.75 * min(ideal, 150)
    assert np.abs(directions.mean(axis=0)).max() < 1 / n_views + 0.06


def test_openshape__has_the_published_angles() -> None:
    # Polar angle from +z and angle from +x in Blender, as its authors list them.
    thirds = np.pi / 3
    listed = [(thirds, np.pi / 6 * k) for k in (1, 4, 7, 10)]
    listed += [(np.pi / 2, np.pi / 6 * k) for k in (2, 5, 8, 11)]
    listed += [(2 * thirds, np.pi / 2 * k) for k in range(4)]
    blender = np.array(
        [[np.sin(p) * np.cos(t), np.sin(p) * np.sin(t), np.cos(p)] for p, t in listed]
    )
    # Blender's importer takes glTF's (x, y, z) to (x, -z, y).
    expected = np.stack([blender[:, 0], blender[:, 2], -blender[:, 1]], axis=1)
    found = eyes(make_cameras("openshape").poses)
    assert found / np.linalg.norm(found, axis=1, keepdims=True) == pytest.approx(expected)
    assert angles(make_cameras("openshape", 4))[:, 1].tolist() == [30] * 4
    assert pytest.approx(49.134, abs=1e-3) == BLENDER_FOV


def test_ulip__turns_by_twelve_degrees_from_the_front() -> None:
    found = angles(make_cameras("ulip"))
    assert found[:, 0].tolist() == list(range(0, 360, 12))
    assert set(found[:, 1].tolist()) == {31}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("circle",), "--cameras circle: unknown; use one of ring, sphere, openshape, ulip"),
        (("openshape", 13), "--views 13: `--cameras openshape` allows 1 to 12 views"),
        (("ring", 0), "--views 0: "),
        (("sphere", 361), "--views 361: "),
        (("ring", 12, 4.0), "--fov 4: "),
        (("ring", 12, float("nan")), "--fov nan: "),
    ],
)
def test_make_cameras__what_is_impossible_names_the_option(
    arguments: tuple[str, int, float], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        make_cameras(*arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fov", [20.0, 49.13])
@pytest.mark.parametrize("seed", range(4))
def test_thumbnail_pose__the_object_touches_the_margin_and_does_not_pass_it(
    fov: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vertices = rng.normal(size=(300, 3)) * rng.uniform(0.05, 1, 3)
    vertices /= np.linalg.norm(vertices, axis=1).max()
    pose = thumbnail_pose(vertices.astype(np.float32), fov)
    x, y, z = (vertices @ pose[:3, :3].T + pose[:3, 3]).T
    slope = np.tan(np.radians(fov) / 2)
    across, up = x / -z / slope, y / -z / slope
    assert (z < -0.2).all()
    assert max(np.ptp(across), np.ptp(up)) == pytest.approx(2 / MARGIN, abs=1e-5)
    for found in (across, up):  # centred both ways
        assert found.max() <= 1 / MARGIN + 1e-5
        assert abs(found.max() + found.min()) < 0.25
    direction = pose[:3, :3].T @ [0, 0, 1]
    assert np.degrees(np.arctan2(direction[0], direction[2])) == pytest.approx(30)
    assert np.degrees(np.arcsin(direction[1])) == pytest.approx(25)


@pytest.mark.parametrize("vertices", [np.zeros((1, 3)), np.outer([-1, 0.3, 1], [0.45, 0.42, 0.78])])
def test_thumbnail_pose__the_camera_never_stands_in_the_object(vertices: np.ndarray) -> None:
    pose = thumbnail_pose(vertices, 40.0)
    depths = vertices @ pose[2, :3] + pose[2, 3]
    assert np.isfinite(pose).all()
    assert (depths <= -0.25 + 1e-9).all()


def test_with_thumbnail__unused_vertices_do_not_count() -> None:
    mesh = sphere_mesh(0.5)
    loose = replace(mesh, vertices=np.concatenate([mesh.vertices, [[9, 9, 9]]]).astype(np.float32))
    cameras = ring(3)
    placed = cameras.with_thumbnail(loose)
    assert len(placed) == 4
    assert np.array_equal(placed.poses[:3], cameras.poses)
    assert np.array_equal(placed.poses, cameras.with_thumbnail(mesh).poses)
    # Half the radius: half the distance of the view that frames the unit sphere.
    assert np.linalg.norm(eyes(placed.poses)[3]) == pytest.approx(
        np.linalg.norm(eyes(placed.poses)[0]) / 2, rel=0.02
    )


def test_to_json__holds_every_pose_and_survives_json() -> None:
    cameras = ring(5)
    data = json.loads(json.dumps(cameras.to_json()))
    assert data["name"] == "ring"
    assert data["fov_y_deg"] == cameras.fov_y_deg
    assert np.array(data["poses"]) == pytest.approx(cameras.poses, abs=1e-8)
