"""The rasteriser against analytic pictures and a plain ray caster."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.renderers.base import RenderConfig
from pipeline.scene import Material, Mesh, linear_to_srgb
from tests.pipeline.shapes import (
    UNLIT,
    blocks,
    code,
    draw,
    front,
    linear,
    mesh_of,
    pixel_rays,
    quad,
    sphere,
)

# --- silhouettes and coverage ------------------------------------------------------------------


@pytest.mark.parametrize(("supersample", "tolerance"), [(1, 0.004), (2, 0.002), (4, 0.001)])
def test_sphere__silhouette_has_the_area_that_perspective_gives(
    supersample: int, tolerance: float
) -> None:
    config = RenderConfig(image_size=200, supersample=supersample)
    distance, radius, fov = 3.5, 0.9, 40.0
    covered = draw(sphere(radius, rings=128), config, front(distance, fov))[..., 3].sum() / 255
    tangent = np.tan(np.arcsin(radius / distance))  # the silhouette is where rays graze the sphere
    pixels = 100 / np.tan(np.radians(fov) / 2) * tangent
    assert covered == pytest.approx(np.pi * pixels**2, rel=tolerance)


@pytest.mark.parametrize("supersample", [1, 2, 3, 4])
def test_edge__coverage_follows_the_half_plane(supersample: int) -> None:
    """A big quad whose upper edge crosses the picture at a slant, against the exact area."""
    size, slope = 48, 0.37
    distance = 2.0
    half = distance * np.tan(np.radians(20))  # half the width of the picture in the plane z = 0
    left, right = -3 * half, 3 * half
    mesh = mesh_of(
        [[left, left * slope, 0], [right, right * slope, 0], [right, -9, 0], [left, -9, 0]],
        [[0, 2, 1], [0, 3, 2]],
    )
    config = replace(UNLIT, image_size=size, supersample=supersample)
    coverage = draw(mesh, config, front(distance))[..., 3] / 255
    fine = (np.arange(size * 64) + 0.5) / (size * 64) * 2 - 1
    exact = (-fine[:, None] < slope * fine[None, :]).reshape(size, 64, size, 64).mean((1, 3))
    assert np.abs(coverage - exact).max() <= 1.01 / supersample - 0.25 / supersample**2
    assert coverage.mean() == pytest.approx(exact.mean(), abs=0.002)


@pytest.mark.parametrize("supersample", [1, 2, 3, 4])
def test_shared_edges__leave_no_hole_and_draw_nothing_twice(supersample: int) -> None:
    """A jittered grid over the whole picture: covered everywhere, also when half transparent."""
    rng = np.random.default_rng(5)
    n = 40
    t = np.linspace(-2, 2, n)
    x, y = np.meshgrid(t, t)
    jitter = rng.uniform(-0.03, 0.03, (2, n, n))
    vertices = np.stack([x + jitter[0], y + jitter[1], np.zeros_like(x)], -1).reshape(-1, 3)
    i, j = (k.ravel() for k in np.meshgrid(np.arange(n - 1), np.arange(n - 1), indexing="ij"))
    a, b, c, d = i * n + j, i * n + j + 1, (i + 1) * n + j + 1, (i + 1) * n + j
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    config = replace(UNLIT, supersample=supersample)
    assert (draw(mesh_of(vertices, faces), config)[..., 3] == 255).all()
    glass = Material(base_color=(1, 0, 0, 0.5), alpha_mode="blend")
    picture = draw(mesh_of(vertices, faces, (glass,)), config)
    assert set(np.unique(picture[..., 3])) == {128}
    assert len(np.unique(picture.reshape(-1, 4), axis=0)) == 1


def test_supersample__factors_agree_on_the_mean_picture() -> None:
    mesh = sphere(0.8, rings=24)
    pictures = [
        linear(draw(mesh, RenderConfig(image_size=96, supersample=s))[..., :3])
        for s in (1, 2, 3, 4, 7)
    ]
    for other in pictures[1:]:
        assert np.abs(other.mean() - pictures[0].mean()) < 2e-3


def test_empty_view__is_the_background_exactly() -> None:
    config = replace(UNLIT, background=(12, 200, 77))
    behind = replace(quad(), vertices=quad().vertices + np.array([0, 0, 9], np.float32))
    picture = draw(behind, config)
    assert (picture == [12, 200, 77, 0]).all()


# --- colour ------------------------------------------------------------------------------------


def test_covered_pixel__has_the_exact_colour_for_all_codes() -> None:
    for value in range(256):
        channel = float(linear(value))
        material = Material(base_color=(channel, channel, channel, 1.0))
        config = replace(UNLIT, image_size=4)
        assert (draw(quad(2, material=material), config)[..., :3] == value).all(), value


def test_face_seen_head_on__has_its_own_colour_under_the_default_light() -> None:
    r, g, b = (float(x) for x in linear([200, 90, 15]))
    material = Material(base_color=(r, g, b, 1.0))
    picture = draw(quad(1, material=material), RenderConfig(image_size=65))
    assert picture[32, 32].tolist() == [200, 90, 15, 255]


def test_sphere__shading_is_ambient_plus_diffuse_cosine() -> None:
    size, distance, fov = 120, 4.0, 40.0
    config = RenderConfig(image_size=size, supersample=2)
    picture = draw(sphere(1.0, rings=128), config, front(distance, fov))
    rays = pixel_rays(size, fov)
    eye = np.array([0, 0, distance])
    b = (rays @ eye)[..., None]
    inside = b[..., 0] ** 2 - (distance**2 - 1)
    t = -b[..., 0] - np.sqrt(np.maximum(inside, 0))
    normal = eye + t[..., None] * rays
    cosine = -(normal * rays).sum(-1)
    expected = linear_to_srgb(config.ambient + config.diffuse * cosine) * 255
    safe = inside > 0.15  # well within the silhouette
    assert safe.sum() > 4000
    assert np.abs(picture[..., 0] - expected)[safe].max() <= 1.2


@pytest.mark.parametrize("size", [64, 90, 1024])
def test_texture__quarters_land_upright_with_exact_colours(size: int) -> None:
    picture = draw(quad(1, material=Material((1, 1, 1, 1), blocks(size))))
    for row, column, colour in (
        (18, 18, (250, 10, 20)),
        (18, 45, (30, 240, 40)),
        (45, 18, (50, 60, 230)),
        (45, 45, (200, 190, 70)),
    ):
        assert picture[row, column].tolist() == [*colour, 255]


def test_texture__a_single_texel_is_one_colour() -> None:
    texture = np.array([[[37, 150, 201, 255]]], np.uint8)
    picture = draw(quad(3, material=Material((1, 1, 1, 1), texture)))
    assert (picture == [37, 150, 201, 255]).all()


def test_texture__every_code_survives_magnified_and_minified() -> None:
    for value in range(0, 256, 5):
        texture = np.full((256, 256, 4), value, np.uint8)
        for half in (2.0, 0.2):
            picture = draw(quad(half, material=Material((1, 1, 1, 1), texture)))
            assert (picture[28:36, 28:36, :3] == value).all()


def test_texture__repeats_outside_the_unit_square() -> None:
    mesh = quad(1, material=Material((1, 1, 1, 1), blocks()))
    assert mesh.uv is not None
    moved = replace(mesh, uv=mesh.uv + np.array([3, -2], np.float32))
    assert np.abs(draw(mesh) - draw(moved)).max() <= 1


def test_texture__minified_noise_keeps_its_mean_in_linear_light() -> None:
    rng = np.random.default_rng(3)
    for shape in ((512, 512), (301, 77), (1, 640), (255, 256)):
        texture = np.full((*shape, 4), 255, np.uint8)
        texture[..., :3] = rng.integers(0, 256, (*shape, 3))
        picture = draw(quad(0.12, material=Material((1, 1, 1, 1), texture)))
        inner = picture[picture[..., 3] == 255][:, :3]
        assert len(inner) >= 9
        expected = linear(texture[..., :3]).reshape(-1, 3).mean(0)
        assert np.abs(linear(inner).mean(0) - expected).max() < 0.02, shape


def test_texture__colour_under_transparent_texels_does_not_bleed() -> None:
    texture = np.zeros((256, 256, 4), np.uint8)
    texture[..., :3] = (0, 255, 0)  # green, unseen
    texture[::2, :, :] = (255, 0, 0, 255)
    leaf = Material((1, 1, 1, 1), texture, alpha_mode="blend")
    picture = draw(quad(0.5, material=leaf))
    middle = picture[32, 32]
    assert middle[0] == 255
    assert middle[1] == pytest.approx(code(0.5), abs=2)  # white behind, no green of the texture
    assert middle[1] == middle[2]


def test_colour__is_texture_times_vertex_colour_times_factor() -> None:
    texture = np.full((8, 8, 4), 255, np.uint8)
    texture[..., :3] = (188, 255, 100)
    mesh = quad(
        1,
        material=Material((0.5, 0.25, 1.0, 1.0), texture),
        vertex_color=np.tile([0.8, 0.9, 0.3, 1.0], (4, 1)),
    )
    expected = [code(x) for x in linear([188, 255, 100]) * [0.5, 0.25, 1.0] * [0.8, 0.9, 0.3]]
    assert np.abs(draw(mesh)[32, 32, :3] - expected).max() <= 1


def test_vertex_colour__is_interpolated_in_linear_light() -> None:
    mesh = quad(1, vertex_color=[[0, 0, 0, 1], [1, 0, 0, 1], [1, 1, 0, 1], [0, 1, 0, 1]])
    picture = draw(mesh, replace(UNLIT, image_size=65))
    assert np.abs(picture[32, 32, :2] - code(0.5)).max() <= 1
    assert picture[20, 32, 1] > picture[44, 32, 1]  # green grows upwards


def test_edge_pixel__is_mixed_in_linear_light() -> None:
    """A black quad whose edge halves a column of pixels on white."""
    distance, size = 2.0, 64
    pixel = 2 * distance * np.tan(np.radians(20)) / size
    mesh = mesh_of(
        [[-9, -9, 0], [0.5 * pixel, -9, 0], [0.5 * pixel, 9, 0], [-9, 9, 0]],
        [[0, 1, 2], [0, 2, 3]],
        (Material(base_color=(0.0, 0.0, 0.0, 1.0)),),
    )
    picture = draw(mesh, UNLIT, front(distance))
    assert picture[10, 31].tolist() == [0, 0, 0, 255]
    assert picture[10, 32].tolist() == [code(0.5)] * 3 + [128]
    assert picture[10, 33].tolist() == [255, 255, 255, 0]


# --- against a ray caster ----------------------------------------------------------------------


def cast(
    mesh: Mesh, size: int, fov: float, distance: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Nearest face (-1: none), its barycentrics and whether the hit is clear of every edge.

    Moeller-Trumbore for every pixel centre and face, in float64.
    """
    origin = np.array([0.0, 0.0, distance])
    rays = pixel_rays(size, fov).reshape(-1, 3)
    a, b, c = (mesh.vertices[mesh.faces[:, k]].astype(np.float64) for k in range(3))
    best = np.full(len(rays), np.inf)
    face = np.full(len(rays), -1)
    weights = np.zeros((len(rays), 3))
    clear = np.ones(len(rays), bool)
    for f in range(len(a)):
        u, v = b[f] - a[f], c[f] - a[f]
        p = np.cross(rays, v)
        det = p @ u
        s = origin - a[f]
        w1 = p @ s / det
        q = np.cross(s, u)
        w2 = rays @ q / det
        t = v @ q / det
        inside = np.minimum(np.minimum(w1, w2), 1 - w1 - w2)
        clear &= np.abs(inside) > 0.03
        hit = (inside > 0) & (t < best)
        clear &= ~((inside > 0) & (np.abs(t - best) < 1e-3))
        best[hit], face[hit] = t[hit], f
        weights[hit] = np.stack([1 - w1 - w2, w1, w2], 1)[hit]
    return face, weights, clear


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_oracle__faces_and_perspective_agree_with_a_ray_caster(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, size, fov, distance = 20, 96, 50.0, 2.4
    vertices = rng.uniform(-1, 1, (3 * n, 3)).astype(np.float32)
    faces = np.arange(3 * n).reshape(n, 3)
    colour = np.column_stack([rng.uniform(0, 1, (3 * n, 3)), np.ones(3 * n)])
    mesh = mesh_of(vertices, faces, vertex_color=colour)
    config = replace(UNLIT, image_size=size, supersample=1)
    picture = draw(mesh, config, front(distance, fov)).reshape(-1, 4)
    face, weights, clear = cast(mesh, size, fov, distance)
    expected = (weights[..., None] * colour[mesh.faces[face], :3]).sum(1)
    codes = linear_to_srgb(expected) * 255
    hit = (face >= 0) & clear
    assert hit.sum() > 1500
    assert (picture[hit, 3] == 255).all()
    assert (picture[(face < 0) & clear, 3] == 0).all()
    assert np.abs(picture[hit, :3] - codes[hit]).max() < 1.0


def test_oracle__texture_coordinates_are_perspective_correct() -> None:
    """A quad tilted steeply, with a texture whose red grows with u: read u back."""
    size, fov, distance = 128, 40.0, 3.0
    mesh = quad(1.0)
    turned = mesh.vertices.copy()
    turned[:, 2] = 1.2 * turned[:, 0]
    ramp = np.full((4, 256, 4), 255, np.uint8)
    ramp[..., 0] = linear_to_srgb((np.arange(256) + 0.5) / 256) * 255 + 0.5
    mesh = replace(mesh, vertices=turned, materials=(Material((1, 1, 1, 1), ramp),))
    config = replace(UNLIT, image_size=size, supersample=1)
    picture = draw(mesh, config, front(distance, fov)).reshape(-1, 4)
    face, weights, clear = cast(mesh, size, fov, distance)
    assert mesh.uv is not None
    u = (weights * mesh.uv[mesh.faces[face], 0]).sum(1)
    hit = (face >= 0) & clear & (u > 0.05) & (u < 0.95)
    assert hit.sum() > 1000
    assert np.abs(linear(picture[hit, 0]) - u[hit]).max() < 0.008
