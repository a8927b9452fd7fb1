"""Depth, orientation, transparency and normals of the rasteriser."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.cameras import Cameras, look_at
from pipeline.renderers.base import RenderConfig
from pipeline.scene import Material, Mesh
from tests.pipeline.shapes import (
    BLUE,
    GREEN,
    RED,
    blocks,
    code,
    draw,
    joined,
    mesh_of,
    quad,
    sphere,
)

# --- depth, orientation, alpha -----------------------------------------------------------------


@pytest.mark.parametrize("swap", [False, True])
def test_depth__the_nearer_quad_wins_in_either_order(swap: bool) -> None:
    near, far = quad(0.4, 0.3, RED), quad(0.8, -0.3, GREEN)
    picture = draw(joined(far, near) if swap else joined(near, far))
    assert picture[32, 32, :3].tolist() == [255, 0, 0]
    assert picture[32, 17, :3].tolist() == [0, 255, 0]


def test_interpenetration__changes_hands_where_the_planes_cross() -> None:
    flat = quad(0.9, 0.0, RED)
    tilted = quad(0.9, 0.0, GREEN)
    turned = tilted.vertices.copy()
    turned[:, 2] = 0.7 * turned[:, 0]  # in front on the right
    picture = draw(joined(flat, replace(tilted, vertices=turned)))
    assert (picture[20:44, 22:31, 0] == 255).all()
    assert (picture[20:44, 22:31, 1] == 0).all()
    assert (picture[20:44, 33:42, 1] == 255).all()


def test_winding__reversed_faces_look_the_same() -> None:
    mesh = sphere(0.9, rings=20)
    turned = replace(mesh, faces=mesh.faces[:, ::-1].copy())
    config = RenderConfig(image_size=64)
    assert np.abs(draw(mesh, config) - draw(turned, config)).max() <= 1
    flat = replace(mesh, normals=None)
    flipped = replace(turned, normals=None)
    assert np.abs(draw(flat, config) - draw(flipped, config)).max() <= 1


def test_mirrored_mesh__gives_the_mirrored_picture() -> None:
    rng = np.random.default_rng(11)
    vertices = rng.normal(0, 0.4, (30, 3))
    colour = np.column_stack([rng.uniform(0, 1, (30, 3)), np.ones(30)])
    faces = rng.permutation(30).reshape(10, 3)
    config = RenderConfig(image_size=65, supersample=4)
    mesh = mesh_of(vertices, faces, vertex_color=colour)
    mirrored = mesh_of(vertices * [-1, 1, 1], faces, vertex_color=colour)
    difference = np.abs(draw(mesh, config) - draw(mirrored, config)[:, ::-1])
    assert np.quantile(difference, 0.99) <= 1
    assert difference.mean() < 0.1


def test_mask__cuts_out_what_is_below_the_cutoff() -> None:
    texture = np.full((64, 64, 4), 255, np.uint8)
    texture[:32, :, 3] = 100  # the upper half
    for cutoff, upper in ((0.5, False), (0.3, True)):
        leaf = Material((1, 0, 0, 1), texture, alpha_mode="mask", alpha_cutoff=cutoff)
        picture = draw(joined(quad(0.6, 0.2, leaf), quad(0.9, -0.2, BLUE)))
        assert picture[40, 32, :3].tolist() == [255, 0, 0]
        assert picture[24, 32, :3].tolist() == ([255, 0, 0] if upper else [0, 0, 255])


def test_mask__alone_leaves_background_in_the_hole() -> None:
    texture = np.full((64, 64, 4), 255, np.uint8)
    texture[16:48, 16:48, 3] = 0
    picture = draw(quad(0.9, 0.0, Material((1, 0, 0, 1), texture, alpha_mode="mask")))
    assert picture[32, 32].tolist() == [255, 255, 255, 0]
    assert picture[32, 14].tolist() == [255, 0, 0, 255]


def test_blend__composites_over_opaque_in_linear_light() -> None:
    glass = Material((1.0, 0.0, 0.0, 0.25), alpha_mode="blend")
    picture = draw(joined(quad(0.6, 0.3, glass), quad(0.9, -0.3, BLUE)))
    assert np.abs(picture[32, 32] - [code(0.25), 0, code(0.75), 255]).max() <= 1


def test_blend__over_the_background_gives_partial_coverage() -> None:
    glass = Material((1.0, 0.0, 0.0, 0.25), alpha_mode="blend")
    picture = draw(quad(0.6, 0.0, glass))
    assert np.abs(picture[32, 32] - [255, code(0.75), code(0.75), 64]).max() <= 1


@pytest.mark.parametrize("swap", [False, True])
def test_blend__is_sorted_back_to_front(swap: bool) -> None:
    red = Material((1.0, 0.0, 0.0, 0.5), alpha_mode="blend")
    green = Material((0.0, 1.0, 0.0, 0.5), alpha_mode="blend")
    near, far = quad(0.6, 0.4, red), quad(0.9, -0.4, green)
    picture = draw(joined(far, near) if swap else joined(near, far))
    expected = [code(0.5 + 0.25), code(0.25 + 0.25), code(0.25), 191]
    assert np.abs(picture[32, 32] - expected).max() <= 1


def test_blend__hidden_behind_opaque_is_not_seen() -> None:
    glass = Material((1.0, 0.0, 0.0, 0.5), alpha_mode="blend")
    picture = draw(joined(quad(0.6, -0.3, glass), quad(0.9, 0.3, BLUE)))
    assert picture[32, 32].tolist() == [0, 0, 255, 255]


def test_blend__opaque_parts_hide_what_is_behind_whatever_the_order() -> None:
    """Two crossing planes marked as blended, with opaque textures but one clear corner."""
    texture = np.full((64, 64, 4), 255, np.uint8)
    texture[0, 0, 3] = 0
    a = quad(0.9, 0.0, Material((1, 0, 0, 1), texture, alpha_mode="blend"))
    b = quad(0.9, 0.0, Material((0, 1, 0, 1), texture, alpha_mode="blend"))
    turned = b.vertices.copy()
    turned[:, 2] = 0.7 * turned[:, 0]
    picture = draw(joined(a, replace(b, vertices=turned)))
    assert picture[36, 25, :3].tolist() == [255, 0, 0]
    assert picture[36, 39, :3].tolist() == [0, 255, 0]


def test_blend__that_is_opaque_throughout_gives_the_opaque_bytes() -> None:
    solid = Material((0.3, 0.6, 0.1, 1.0), blocks())
    as_blend = replace(solid, alpha_mode="blend")
    assert (draw(quad(0.8, 0, solid)) == draw(quad(0.8, 0, as_blend))).all()


# --- normals -----------------------------------------------------------------------------------


def test_missing_normals__a_fine_sphere_comes_out_smooth() -> None:
    config = RenderConfig(image_size=96)
    given, derived = draw(sphere(), config), draw(sphere(smooth=False), config)
    assert np.abs(given - derived).max() <= 3


def test_missing_normals__vertices_that_coincide_are_welded() -> None:
    whole = sphere(rings=16, smooth=False)
    soup = mesh_of(
        whole.vertices[whole.faces].reshape(-1, 3), np.arange(whole.faces.size).reshape(-1, 3)
    )
    config = RenderConfig(image_size=96)
    assert np.abs(draw(whole, config) - draw(soup, config)).max() <= 1


def cube() -> Mesh:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * 0.5
    sides = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    return mesh_of(corners, [t for a, b, c, d in sides for t in ([a, b, c], [a, c, d])])


def test_missing_normals__a_cube_keeps_its_edges_until_the_crease_angle_passes_90() -> None:
    camera = Cameras("corner", look_at(np.array([2.0, 1.5, 3.0]))[None], 30.0)
    hard = draw(cube(), RenderConfig(image_size=96), camera)
    soft = draw(cube(), RenderConfig(image_size=96, crease_angle_deg=95.0), camera)
    corners = cube().vertices[cube().faces]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    faceted = mesh_of(
        corners.reshape(-1, 3), np.arange(36).reshape(12, 3), normals=np.repeat(flat, 3, axis=0)
    )
    assert np.abs(hard - draw(faceted, RenderConfig(image_size=96), camera)).max() <= 1
    assert np.abs(hard - soft).max() > 15


def test_normals__unusable_ones_fall_back_to_the_face() -> None:
    mesh = cube()
    flat = draw(mesh, RenderConfig(image_size=64))
    for bad in (0.0, np.nan, np.inf):
        broken = replace(mesh, normals=np.full((8, 3), bad, np.float32))
        assert np.abs(draw(broken, RenderConfig(image_size=64)) - flat).max() <= 1


def test_normals__a_fan_of_a_thousand_faces_is_shaded_in_linear_time() -> None:
    angle = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    rim = np.stack([np.cos(angle), np.full_like(angle, -0.2), np.sin(angle)], 1)
    index = np.arange(len(rim))
    faces = np.stack([np.zeros_like(index), 1 + (index + 1) % len(rim), 1 + index], 1)
    mesh = mesh_of(np.vstack([[0, 0, 0], rim]), faces)
    above = Cameras("above", look_at(np.array([0.0, 3.0, 0.0]))[None], 40.0)
    picture = draw(mesh, RenderConfig(image_size=64), above)
    expected = code(0.35 + 0.65 * np.cos(np.arctan(0.2)))
    assert abs(picture[32, 40, 0] - expected) < 8
