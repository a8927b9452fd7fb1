"""Surface samples: uniform by area, coloured as the surface is, in farthest-point order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.meshes import load_mesh
from pipeline.points import farthest_point_order, sample_points, sample_texture
from pipeline.scene import Material, Mesh, MeshError, linear_to_srgb, srgb_to_linear
from pipeline.shards import NEUTRAL_RGB
from tests.pipeline.gltf_files import CUBE_CORNERS, CUBE_FACES

F32 = NDArray[np.float32]
Factor = tuple[float, float, float, float]


def quad(
    material: Material | None = None,
    *,
    vertex_color: F32 | None = None,
    has_color: bool = True,
    repeat: float = 1,
) -> Mesh:
    """A square in the xy plane, [-0.5, 0.5], uv (0, 0) at its bottom left."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    return Mesh(
        vertices=np.concatenate([corners - 0.5, np.zeros((4, 1), np.float32)], axis=1),
        faces=np.array([[0, 1, 2], [0, 2, 3]], np.int32),
        face_material=np.zeros(2, np.int32),
        materials=(material or Material((1, 1, 1, 1)),),
        uv=corners * np.float32(repeat),
        vertex_color=vertex_color,
        has_color=has_color,
    )


def texture(rows: Sequence[Sequence[Sequence[int]]], size: int = 8) -> NDArray[np.uint8]:
    """Texels (rgb or rgba) from the top row down, each blown up to ``size`` pixels."""
    texels = np.array(rows, np.uint8)
    if texels.shape[2] == 3:
        texels = np.concatenate([texels, np.full((*texels.shape[:2], 1), 255, np.uint8)], axis=2)
    return texels.repeat(size, 0).repeat(size, 1)


# -- positions -----------------------------------------------------------------------------------


def test_sample__density_follows_area_not_faces() -> None:
    # A square of one half split into many faces: as many points there as on the other half.
    grid = np.linspace(0, 0.5, 11)
    vertices = [[-0.5, -0.5, 0], [0, -0.5, 0], [0, 0.5, 0], [-0.5, 0.5, 0]]
    faces = [[0, 1, 2], [0, 2, 3]]
    for left, right in itertools.pairwise(grid):
        start = len(vertices)
        vertices += [[left, -0.5, 0], [right, -0.5, 0], [right, 0.5, 0], [left, 0.5, 0]]
        faces += [[start, start + 1, start + 2], [start, start + 2, start + 3]]
    mesh = Mesh(
        np.array(vertices, np.float32),
        np.array(faces, np.int32),
        np.zeros(len(faces), np.int32),
        (Material(),),
    )
    xyz = sample_points(mesh, 20_000, seed=3, n_fps=0).xyz
    counts, _, _ = np.histogram2d(xyz[:, 0], xyz[:, 1], bins=10, range=[[-0.5, 0.5]] * 2)
    expected = 20_000 / 100
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 160  # 99 degrees of freedom: beyond 1 in 10,000


def test_sample__points_lie_on_the_surface_inside_the_ball() -> None:
    mesh = Mesh(
        CUBE_CORNERS.astype(np.float32),
        CUBE_FACES.astype(np.int32),
        np.zeros(12, np.int32),
        (Material(),),
    ).normalised()
    points = sample_points(mesh, 5000, seed=1)
    half = np.array([1, 2, 3]) / np.sqrt(14)
    np.testing.assert_allclose((np.abs(points.xyz) / half).max(axis=1), 1, atol=1e-5)
    assert np.linalg.norm(points.xyz, axis=1).max() <= 1
    assert points.xyz.dtype.str[1:] == "f4"
    assert points.rgb.dtype.str[1:] == "u1"


def test_sample__same_seed_same_points_other_seed_others() -> None:
    first, again, other = (sample_points(quad(), 500, seed, 100) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.xyz, again.xyz)
    np.testing.assert_array_equal(first.rgb, again.rgb)
    assert not np.array_equal(first.xyz, other.xyz)


@pytest.mark.parametrize("faces", [[[0, 0, 1]], [[0, 1, 1], [2, 2, 2]]])
def test_sample__no_area_is_a_mesh_error(faces: list[list[int]]) -> None:
    mesh = quad()
    flat = Mesh(
        mesh.vertices,
        np.array(faces, np.int32),
        np.zeros(len(faces), np.int32),
        mesh.materials,
    )
    with pytest.raises(MeshError) as error:
        sample_points(flat, 100, seed=0)
    assert (error.value.kind, error.value.stage) == ("zero_area", "sample")


def test_sample__mesh_that_was_not_normalised_is_refused() -> None:
    big = Mesh(quad().vertices * 10, quad().faces, quad().face_material, quad().materials)
    with pytest.raises(MeshError, match="normalised"):
        sample_points(big, 100, seed=0)


@pytest.mark.parametrize(("count", "n_fps"), [(0, 10), (10, -1)])
def test_sample__impossible_counts(count: int, n_fps: int) -> None:
    with pytest.raises(ValueError, match="count"):
        sample_points(quad(), count, 0, n_fps)


# -- colours -------------------------------------------------------------------------------------


def test_colour__texture_at_known_places() -> None:
    rows = [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [250, 250, 250]]]
    points = sample_points(quad(Material((1, 1, 1, 1), texture(rows))), 4000, seed=2)
    # Away from the seams between texels, where colours blend.
    inner = (np.abs(points.xyz[:, :2]) > 0.04).all(axis=1) & (np.abs(points.xyz[:, :2]) < 0.46).all(
        axis=1
    )
    x, y, rgb = points.xyz[inner, 0], points.xyz[inner, 1], points.rgb[inner]
    expected = np.array(rows)[(y < 0).astype(int), (x > 0).astype(int)]
    np.testing.assert_array_equal(rgb, expected)


def test_colour__bilinear_in_linear_light_and_wrapping() -> None:
    ramp = np.zeros((1, 2, 4), np.uint8)
    ramp[0, 1] = 255
    # Texel centres at u = 0.25 and 0.75; half way between, also across the border.
    values = sample_texture(ramp, np.array([[0.25, 0.5], [0.75, 0.5], [0.5, 0.5], [1.0, -3.5]]))
    np.testing.assert_allclose(values[:, 0], [0, 1, 0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(values[:, 3], [0, 1, 0.5, 0.5], atol=1e-6)
    assert int(np.rint(255 * linear_to_srgb(values[2:3, 0]))[0]) == 188  # not 128


def test_colour__repeats_beyond_the_unit_square() -> None:
    rows = [[[255, 0, 0], [0, 0, 255]]]
    points = sample_points(quad(Material((1, 1, 1, 1), texture(rows)), repeat=2), 2000, seed=2)
    u = (points.xyz[:, 0] + 0.5) * 2 % 1
    sure = np.minimum(np.abs(u - 0.5), np.minimum(u, 1 - u)) > 0.07
    assert ((points.rgb[:, 0] == 255) == (u < 0.5))[sure].all()


def test_colour__product_of_texture_vertex_colour_and_factor_in_linear_light() -> None:
    grey = texture([[[188, 188, 188]]])
    color = np.tile(np.array([0.5, 1, 1, 1], np.float32), (4, 1))
    mesh = quad(Material((0.8, 0.4, 1, 1), grey), vertex_color=color)
    points = sample_points(mesh, 50, seed=0)
    linear = srgb_to_linear(np.array([188 / 255] * 3)) * [0.5 * 0.8, 0.4, 1]
    np.testing.assert_array_equal(points.rgb[0], np.rint(255 * linear_to_srgb(linear)))


def test_colour__vertex_colours_are_interpolated() -> None:
    color = np.ones((4, 4), np.float32)
    color[:, 0] = [0, 1, 1, 0]  # red grows with x
    points = sample_points(quad(vertex_color=color), 1000, seed=0)
    expected = 255 * linear_to_srgb(points.xyz[:, 0] + 0.5)
    assert np.abs(points.rgb[:, 0] - expected).max() <= 1


def test_colour__each_face_has_its_own_material() -> None:
    mesh = quad()
    two = Mesh(
        mesh.vertices,
        mesh.faces,
        np.array([0, 1], np.int32),
        (Material((1, 0, 0, 1)), Material((0, 1, 0, 1))),
        has_color=True,
    )
    points = sample_points(two, 1000, seed=0)
    below = points.xyz[:, 0] > points.xyz[:, 1]
    np.testing.assert_array_equal(points.rgb[below], [[255, 0, 0]] * int(below.sum()))
    np.testing.assert_array_equal(points.rgb[~below], [[0, 255, 0]] * int((~below).sum()))


def test_colour__uncoloured_asset_is_neutral() -> None:
    points = sample_points(quad(Material((0.8, 0.8, 0.8, 1)), has_color=False), 100, seed=0)
    assert not points.has_color
    assert (points.rgb == NEUTRAL_RGB).all()


# -- transparency --------------------------------------------------------------------------------

HALF = [[[255, 0, 0, 255], [0, 0, 255, 0]]]  # the right half is cut away


@pytest.mark.parametrize("mode", ["mask", "blend"])
def test_alpha__cut_away_surface_gets_no_points(mode: str) -> None:
    material = Material((1, 1, 1, 1), texture(HALF, 64), mode)  # type: ignore[arg-type]
    points = sample_points(quad(material), 4000, seed=4)
    assert len(points.xyz) == 4000
    x = points.xyz[:, 0]
    assert not ((x > 0.01) & (x < 0.49)).any()  # at the seam and the border texels blend
    assert (x < 0).mean() > 0.97
    assert len(np.unique(points.xyz, axis=0)) == 4000


def test_alpha__is_ignored_on_opaque_materials() -> None:
    points = sample_points(quad(Material((1, 1, 1, 1), texture(HALF))), 2000, seed=4)
    assert (points.xyz[:, 0] > 0).mean() == pytest.approx(0.5, abs=0.05)


def test_alpha__cutoff_of_the_material_counts() -> None:
    def cut(cutoff: float) -> Mesh:
        return quad(Material((1, 1, 1, 0.4), None, "mask", cutoff))

    assert len(sample_points(cut(0.39), 100, seed=0).xyz) == 100
    with pytest.raises(MeshError) as error:
        sample_points(cut(0.41), 100, seed=0)
    assert (error.value.kind, error.value.stage) == ("invisible", "sample")


def test_alpha__a_sliver_that_remains_is_enough() -> None:
    pixels = np.zeros((4, 1000, 4), np.uint8)
    pixels[:, :2] = 255
    material = Material((1, 1, 1, 1), pixels, "mask")
    points = sample_points(quad(material), 1000, seed=0, n_fps=512)
    assert points.xyz.shape == (1000, 3)
    assert (points.xyz[:, 0] < -0.49).mean() > 0.9  # the border blends a little


# -- farthest-point order ------------------------------------------------------------------------


def is_farthest_prefix(xyz: F32, n_fps: int) -> bool:
    """Whether each of the first points is as far from those before it as any point is."""
    cloud = xyz.astype(np.float64)
    nearest = np.full(len(cloud), np.inf)
    for index in range(n_fps - 1):
        nearest = np.minimum(nearest, ((cloud - cloud[index]) ** 2).sum(axis=1))
        if nearest[index + 1] < nearest.max() * (1 - 1e-5):
            return False
    return True


def test_order__prefix_is_farthest_point_sampling(assets_dir: Path) -> None:
    paths = sorted((assets_dir / "cc0-meshes" / "meshes").glob("*.glb"))[::170]
    for path in paths:
        points = sample_points(load_mesh(path).normalised(), 4000, seed=1, n_fps=600)
        assert points.n_fps == 600
        assert is_farthest_prefix(points.xyz, 600), path.name
        assert not is_farthest_prefix(points.xyz[::-1], 600), path.name


def test_order__is_a_permutation_and_keeps_colours_with_their_points() -> None:
    color = np.ones((4, 4), np.float32)
    color[:, 0] = [0, 1, 1, 0]
    mesh = quad(vertex_color=color)
    ordered, plain = sample_points(mesh, 3000, 9, 2048), sample_points(mesh, 3000, 9, 0)
    rows = [np.concatenate([p.xyz, p.rgb], axis=1) for p in (ordered, plain)]
    first, second = (row[np.lexsort(row.T)] for row in rows)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(ordered.xyz, plain.xyz)


@pytest.mark.parametrize(("count", "n_fps"), [(1, 1), (2, 2), (63, 63), (64, 10), (300, 300)])
def test_order__small_clouds(count: int, n_fps: int) -> None:
    xyz = np.random.default_rng(0).random((count, 3)).astype(np.float32)
    order = farthest_point_order(xyz, n_fps)
    assert sorted(order.tolist()) == list(range(count))
    assert is_farthest_prefix(xyz[order], n_fps)


@pytest.mark.parametrize("distinct", [1, 5, 70])
def test_order__repeated_points_stay_a_permutation(distinct: int) -> None:
    rng = np.random.default_rng(1)
    xyz = rng.random((distinct, 3)).astype(np.float32)[rng.integers(0, distinct, 200)]
    order = farthest_point_order(xyz, 100)
    assert sorted(order.tolist()) == list(range(200))
    assert is_farthest_prefix(xyz[order], 100)


def test_texture__is_blended_across_its_top_and_bottom_edge() -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[0] = 255  # the top row
    for v in (0.0, 1.0):
        assert sample_texture(pixels, np.array([[0.3, v]]))[0, 0] == pytest.approx(0.5)
    pixels = pixels.transpose(1, 0, 2).copy()
    assert sample_texture(pixels, np.array([[0.0, 0.3]]))[0, 0] == pytest.approx(0.5)


def test_sample__repeats_of_visible_points_are_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.points._MAX_ROUNDS", 0)  # the hidden ones are never drawn anew
    half = np.full((2, 2, 4), 255, np.uint8)
    half[:, 0, 3] = 0
    points = sample_points(quad(Material((1, 1, 1, 1), half, "mask")), 400, n_fps=0)
    _, counts = np.unique(points.xyz, axis=0, return_counts=True)
    assert counts.sum() == 400
    assert counts.max() < 20
