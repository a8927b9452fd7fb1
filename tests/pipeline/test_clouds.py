"""Clouds: frame and checks, the points of a row, what is drawn of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.cameras import ring
from pipeline.clouds import DRAWN_POINTS, MIN_POINTS, cloud_points, drawn, make_cloud
from pipeline.renderers.base import RenderConfig
from pipeline.renderers.raster import RasterRenderer
from pipeline.scene import Cloud, MeshError
from pipeline.shards import NEUTRAL_RGB
from tests.pipeline.shapes import draw, front

SMALL = RenderConfig(image_size=96)


def blob(count: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(count, 3))


def ball_surface(count: int, seed: int = 0) -> NDArray[np.float64]:
    points = blob(count, seed)
    return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True))


def some_rgb(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3), dtype=np.uint8)


def obvious_farthest(xyz: NDArray[Any], start: int, count: int) -> list[float]:
    """Distances at which a plain farthest-point sampler takes its points."""
    points = xyz.astype(np.float64)
    nearest = np.linalg.norm(points - points[start], axis=1)
    taken = []
    for _ in range(count - 1):
        taken.append(float(nearest.max()))
        chosen = int(nearest.argmax())
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen], axis=1))
    return taken


def order_distances(xyz: NDArray[Any], count: int) -> list[float]:
    """How far each of the first points is from those before it."""
    points = xyz.astype(np.float64)
    return [float(np.linalg.norm(points[:i] - points[i], axis=1).min()) for i in range(1, count)]


# -- frame and checks ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "shift"), [(1.0, 0.0), (1e-6, 0.0), (1e250, 0.0), (50.0, 4e5), (3.0, -7.0)]
)
def test_make_cloud__frame_is_that_of_a_normalised_mesh(scale: float, shift: float) -> None:
    points = blob(300)
    cloud = make_cloud(points * scale + shift)
    assert cloud.xyz.dtype == np.float32
    assert np.abs(cloud.xyz.min(0) + cloud.xyz.max(0)).max() < 1e-5
    assert np.linalg.norm(cloud.xyz.astype(np.float64), axis=1).max() == pytest.approx(1, abs=1e-6)
    centred = points - (points.min(0) + points.max(0)) / 2
    expected = centred / np.linalg.norm(centred, axis=1).max()
    np.testing.assert_allclose(cloud.xyz, expected, atol=2e-6)


def test_make_cloud__integers_of_the_whole_range_do_not_overflow() -> None:
    ends = np.array([np.iinfo(np.int64).min, np.iinfo(np.int64).max])
    points = np.stack(np.meshgrid(ends, ends, ends), -1).reshape(-1, 3)
    cloud = make_cloud(np.concatenate([points, points // 2, points // 3]))
    assert np.isfinite(cloud.xyz).all()
    assert cloud.xyz.max() == pytest.approx(3**-0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_make_cloud__a_point_that_is_not_finite_is_refused(bad: float) -> None:
    points = blob(50)
    points[7, 1] = bad
    with pytest.raises(MeshError, match="1 of 50 points") as error:
        make_cloud(points)
    assert error.value.kind == "not_finite"


@pytest.mark.parametrize("count", [0, 1, MIN_POINTS - 1])
def test_make_cloud__too_few_distinct_points_are_refused(count: int) -> None:
    points = np.repeat(blob(count), 400, axis=0)
    with pytest.raises(MeshError) as error:
        make_cloud(points)
    assert error.value.kind == "too_few_points"


def test_make_cloud__distinct_points_behind_many_equal_ones_count() -> None:
    points = np.concatenate([np.zeros((5000, 3)), blob(MIN_POINTS)])
    assert len(make_cloud(points).xyz) == len(points)


def test_make_cloud__points_that_differ_by_rounding_only_are_refused() -> None:
    points = np.full((40, 3), 1e9) + np.arange(40)[:, None] * 1e-5
    with pytest.raises(MeshError) as error:
        make_cloud(points)
    assert error.value.kind == "zero_extent"


def test_make_cloud__one_grey_for_all_is_no_colour_and_one_hue_is() -> None:
    points = blob(20)
    assert make_cloud(points, np.full((20, 3), 0, np.uint8)).rgb is None
    assert make_cloud(points, np.full((20, 3), 102, np.uint8)).rgb is None
    red = np.tile(np.array([255, 0, 0], np.uint8), (20, 1))
    assert make_cloud(points, red).rgb is not None


# -- points of a row -----------------------------------------------------------------------------


def test_cloud_points__more_than_wanted_is_a_choice_without_repeats() -> None:
    cloud = make_cloud(blob(3000), some_rgb(3000))
    assert cloud.rgb is not None
    points = cloud_points(cloud, 1000, seed=5, n_fps=200)
    assert points.xyz.shape == points.rgb.shape == (1000, 3)
    assert points.has_color
    where = {tuple(p): i for i, p in enumerate(cloud.xyz.tolist())}
    index = [where[tuple(p)] for p in points.xyz.tolist()]
    assert len(set(index)) == 1000
    assert np.array_equal(points.rgb, cloud.rgb[index])
    # The choice is even over the file's order, not its beginning.
    assert 350 < sum(i < 1500 for i in index) < 650


def test_cloud_points__order_is_that_of_the_obvious_sampler() -> None:
    cloud = make_cloud(blob(900))
    points = cloud_points(cloud, 900, seed=1, n_fps=64)
    expected = obvious_farthest(points.xyz, 0, 64)
    np.testing.assert_allclose(order_distances(points.xyz, 64), expected, rtol=1e-5)


@pytest.mark.parametrize("n_fps", [40, 100, 256])
def test_cloud_points__fewer_than_wanted_come_all_before_any_repeat(n_fps: int) -> None:
    cloud = make_cloud(blob(100), some_rgb(100))
    points = cloud_points(cloud, 256, seed=2, n_fps=n_fps)
    as_rows = [tuple(p) for p in points.xyz.tolist()]
    assert len(set(as_rows[:100])) == 100
    assert sorted(as_rows.count(p) for p in set(as_rows)) == [2] * 44 + [3] * 56
    # Every prefix is a farthest-point sample of the whole row: beyond the originals at distance 0.
    expected = obvious_farthest(points.xyz, 0, n_fps)
    np.testing.assert_allclose(order_distances(points.xyz, n_fps), expected, rtol=1e-5, atol=1e-7)
    assert points.n_fps == n_fps


def test_cloud_points__coinciding_points_are_fine() -> None:
    cloud = make_cloud(np.repeat(blob(20), 10, axis=0))
    points = cloud_points(cloud, 128, seed=0, n_fps=64)
    assert len({tuple(p) for p in points.xyz[:20].tolist()}) == 20


def test_cloud_points__seed_decides_and_nothing_else() -> None:
    cloud = make_cloud(blob(500), some_rgb(500))
    first, again = cloud_points(cloud, 200, 7, 50), cloud_points(cloud, 200, 7, 50)
    assert first.xyz.tobytes() == again.xyz.tobytes()
    assert first.rgb.tobytes() == again.rgb.tobytes()
    assert first.xyz.tobytes() != cloud_points(cloud, 200, 8, 50).xyz.tobytes()


def test_cloud_points__without_colour_is_the_neutral_grey() -> None:
    points = cloud_points(make_cloud(blob(50)), 64, 0, 16)
    assert not points.has_color
    assert (points.rgb == NEUTRAL_RGB).all()


def test_cloud_points__bad_counts_are_value_errors() -> None:
    cloud = make_cloud(blob(50))
    with pytest.raises(ValueError, match="count"):
        cloud_points(cloud, 0)
    with pytest.raises(ValueError, match="count"):
        cloud_points(cloud, 10, n_fps=-1)


# -- what is drawn -------------------------------------------------------------------------------


def test_drawn__a_sampled_ball_looks_like_the_ball() -> None:
    from tests.pipeline.shapes import sphere

    image = draw(drawn(make_cloud(ball_surface(8000))), SMALL)
    expected = draw(sphere(), SMALL)
    covered, wanted = image[..., 3] / 255, expected[..., 3] / 255
    assert np.minimum(covered, wanted).sum() / np.maximum(covered, wanted).sum() > 0.96
    both = (covered == 1) & (wanted == 1)
    # Shaded as the surface is: bright in the middle, darker towards the rim; and of the same grey.
    middle, rim = image[48, 48, 0], image[48, 15, 0]
    assert middle > rim + 20
    ratio = image[both][:, 0].mean() / draw_of_default_grey()[both][:, 0].mean()
    assert ratio == pytest.approx(1, abs=0.03)


def draw_of_default_grey() -> NDArray[Any]:
    from dataclasses import replace

    from pipeline.scene import Material
    from tests.pipeline.shapes import sphere

    return np.asarray(draw(replace(sphere(), materials=(Material(),)), SMALL))


def test_drawn__faces_wind_outwards_and_normals_agree_with_the_surface() -> None:
    points = ball_surface(4000)
    mesh = drawn(make_cloud(points))
    assert mesh.normals is not None
    radial = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
    assert np.median(np.abs((radial * mesh.normals).sum(1))) > 0.99
    solid = mesh.vertices.reshape(4000, -1, 3)
    centres = solid.mean(axis=1)[np.arange(4000).repeat(12)]
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    outward = (np.cross(b - a, c - a) * ((a + b + c) / 3 - centres)).sum(1)
    assert (outward > 0).all()


def test_drawn__normals_of_the_file_are_used_and_broken_ones_are_not() -> None:
    points = ball_surface(600)
    cloud = make_cloud(points)
    given = np.tile([0.0, 0.0, 5.0], (600, 1))
    given[0], given[1] = 0.0, np.nan
    mesh = drawn(cloud, given)
    assert mesh.normals is not None
    normals = mesh.normals.reshape(600, -1, 3)[:, 0]
    np.testing.assert_allclose(normals[2:], np.tile([0, 0, 1], (598, 1)), atol=1e-6)
    assert np.isfinite(mesh.vertices).all()
    fitted = np.abs((normals[:2] * points[:2]).sum(1))
    assert (fitted > 0.9).all()


def test_drawn__size_follows_the_spacing_and_a_stray_point_stays_small() -> None:
    def width(cloud: Cloud) -> NDArray[Any]:
        solids = drawn(cloud).vertices.reshape(len(cloud.xyz), -1, 3)
        return np.asarray(np.ptp(solids, axis=1).max(axis=1))

    sparse = float(np.median(width(make_cloud(ball_surface(1000)))))
    dense = float(np.median(width(make_cloud(ball_surface(4000)))))
    assert sparse / dense == pytest.approx(2, rel=0.15)
    stray = make_cloud(np.concatenate([ball_surface(2000), [[4.0, 0.0, 0.0]]]))
    widths = width(stray)
    assert widths[-1] < 4 * np.median(widths)


def test_drawn__colours_of_the_points_reach_the_picture() -> None:
    points = ball_surface(6000)
    rgb = np.where(points[:, :1] > 0, [[220, 30, 40]], [[20, 60, 200]]).astype(np.uint8)
    flat = RenderConfig(image_size=64, ambient=1.0, diffuse=0.0)
    image = draw(drawn(make_cloud(points, rgb)), flat, front())
    assert image[32, 44, :3].tolist() == [220, 30, 40]
    assert image[32, 20, :3].tolist() == [20, 60, 200]


def test_drawn__a_large_cloud_is_thinned_and_equal_points_are_drawn_once() -> None:
    mesh = drawn(make_cloud(blob(40_000)))
    assert len(mesh.faces) == 12 * DRAWN_POINTS
    again = drawn(make_cloud(blob(40_000)))
    assert mesh.vertices.tobytes() == again.vertices.tobytes()
    repeated = drawn(make_cloud(np.repeat(blob(30), 50, axis=0)))
    assert len(repeated.faces) == 12 * 30


@pytest.mark.parametrize("form", ["line", "plane", "few"])
def test_drawn__flat_and_thin_clouds_are_seen_from_every_side(form: str) -> None:
    points = blob(400)
    points[:, 1:] *= 0 if form == "line" else 1
    points[:, 2] *= 0 if form == "plane" else 1
    cloud = make_cloud(points[: MIN_POINTS if form == "few" else None])
    images = RasterRenderer().render(drawn(cloud), ring(4), SMALL)
    assert (images[..., 3].max(axis=(1, 2)) > 0).all()
