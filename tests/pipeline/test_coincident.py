"""Surfaces in one place: which is seen does not depend on rounding, in either renderer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.cameras import Cameras, look_at, ring
from pipeline.renderers.base import RenderConfig, Renderer
from pipeline.renderers.raster import RasterRenderer
from pipeline.scene import Material, Mesh
from tests.pipeline.gl_tools import need_gl
from tests.pipeline.shapes import BLUE, RED, joined, mesh_of

FLAT = RenderConfig(image_size=96, ambient=1.0, diffuse=0.0)
CORNERS = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * 0.8


@pytest.fixture(params=["raster", "gl"])
def renderer(request: pytest.FixtureRequest) -> Renderer:
    return RasterRenderer() if request.param == "raster" else need_gl()


def tilted(
    faces: Any, material: Material, vertices: NDArray[np.float64] = CORNERS, angle: float = 0.7
) -> Mesh:
    """A sheet turned about an axis at a slant, so that its depths are no round numbers."""
    axis = np.array([0.6, 0.7, 0.3]) / np.linalg.norm([0.6, 0.7, 0.3])
    cross = np.cross(np.eye(3), axis)
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return mesh_of(vertices @ turn, faces, (material,), uv=vertices[:, :2])


def share(picture: NDArray[np.uint8], material: Material) -> float:
    """Part of the wholly covered pixels that have a material's colour."""
    covered = picture[..., 3] == 255
    colour = [round(255 * x) for x in material.base_color[:3]]
    return float((picture[covered][:, :3] == colour).all(-1).mean())


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_surface_there_twice__shows_the_side_that_faces_the_camera(
    renderer: Renderer, swap: bool, shift: int
) -> None:
    """The same triangles with one winding in red and the other in blue, in either order."""
    faces = np.roll(np.array([[0, 1, 2], [0, 2, 3]]), shift, 1)
    front, back = tilted(faces, RED), tilted(np.roll(faces[:, ::-1], shift, 1), BLUE)
    mesh = joined(back, front) if swap else joined(front, back)
    eyes = np.array([[0.4, 0.3, 4.0], [-0.4, 0.2, -4.0]])
    cameras = Cameras("two sides", np.stack([look_at(eye) for eye in eyes]), 40.0)
    first, second = renderer.render(mesh, cameras, FLAT)
    assert share(first, RED) == 1.0
    assert share(second, BLUE) == 1.0


def test_surfaces_in_one_plane__show_the_later_one(renderer: Renderer) -> None:
    """A sheet and a smaller one in it, of triangles whose vertices are not the sheet's."""
    label = tilted([[0, 1, 2]], BLUE, np.array([[-0.5, -0.6, 0], [0.7, -0.3, 0], [0.1, 0.7, 0]]))
    both = joined(tilted([[0, 1, 2], [0, 2, 3]], RED), label)
    alone = renderer.render(label, ring(12), FLAT)[..., 3] == 255
    blue = (renderer.render(both, ring(12), FLAT)[..., :3] == [0, 0, 255]).all(-1)
    assert alone.sum() > 5000
    assert blue[alone].mean() > 0.99


def test_surfaces_apart__by_a_thousandth_are_ordered_by_distance(renderer: Renderer) -> None:
    """Steps of depth and the offset of back faces are far below what can be told apart."""
    shape: Any = [[0, 1, 2], [0, 2, 3]]
    for winding in (shape, np.array(shape)[:, ::-1]):
        near, far = tilted(winding, RED, CORNERS + [0, 0, 0.001]), tilted(shape, BLUE)
        for mesh in (joined(near, far), joined(far, near)):
            front = Cameras("front", look_at(np.array([0.0, 0.0, 3.0]))[None], 40.0)
            assert share(renderer.render(mesh, front, FLAT)[0], RED) > 0.99
