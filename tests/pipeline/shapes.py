"""Small meshes with known pictures, a camera straight in front of them, and how to draw them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cameras import Cameras, look_at
from pipeline.renderers.base import RenderConfig
from pipeline.renderers.raster import RasterRenderer
from pipeline.scene import Material, Mesh, linear_to_srgb, srgb_to_linear

WHITE = Material(base_color=(1.0, 1.0, 1.0, 1.0))
RED = Material(base_color=(1.0, 0.0, 0.0, 1.0))
GREEN = Material(base_color=(0.0, 1.0, 0.0, 1.0))
BLUE = Material(base_color=(0.0, 0.0, 1.0, 1.0))
UNLIT = RenderConfig(image_size=64, ambient=1.0, diffuse=0.0)


def front(distance: float = 4.0, fov_y_deg: float = 40.0) -> Cameras:
    """One camera on +z."""
    return Cameras("front", look_at(np.array([0.0, 0.0, distance]))[None], fov_y_deg)


def mesh_of(
    vertices: Any, faces: Any, materials: tuple[Material, ...] = (WHITE,), **more: Any
) -> Mesh:
    """A mesh with the right dtypes; one material for all faces unless told otherwise."""
    vertices, faces = np.asarray(vertices, np.float32), np.asarray(faces, np.int32)
    more.setdefault("face_material", np.zeros(len(faces), np.int32))
    for name in ("normals", "uv", "vertex_color"):
        if name in more:
            more[name] = np.asarray(more[name], np.float32)
    return Mesh(vertices=vertices, faces=faces, materials=materials, **more)


def quad(
    half: float = 1.0, z: float = 0.0, material: Material = WHITE, vertex_color: Any = None
) -> Mesh:
    """A square facing +z, its texture upright on it."""
    more = {} if vertex_color is None else {"vertex_color": vertex_color}
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    return mesh_of(
        np.column_stack([corners, np.full(4, z)]),
        [[0, 1, 2], [0, 2, 3]],
        (material,),
        uv=[[0, 0], [1, 0], [1, 1], [0, 1]],
        **more,
    )


def joined(*meshes: Mesh) -> Mesh:
    """Several meshes with uv as one."""
    vertices, faces, material, uv = [], [], [], []
    materials: list[Material] = []
    offset = 0
    for mesh in meshes:
        assert mesh.uv is not None
        vertices.append(mesh.vertices)
        uv.append(mesh.uv)
        faces.append(mesh.faces + offset)
        material.append(mesh.face_material + len(materials))
        materials.extend(mesh.materials)
        offset += len(mesh.vertices)
    return mesh_of(
        np.concatenate(vertices),
        np.concatenate(faces),
        tuple(materials),
        face_material=np.concatenate(material).astype(np.int32),
        uv=np.concatenate(uv),
    )


def sphere(radius: float = 1.0, rings: int = 64, smooth: bool = True) -> Mesh:
    """Latitudes and longitudes; with analytic normals when ``smooth``, without any otherwise."""
    theta = np.linspace(0, np.pi, rings + 1)
    phi = np.linspace(0, 2 * np.pi, 2 * rings, endpoint=False)
    t, p = np.meshgrid(theta, phi, indexing="ij")
    unit = np.stack([np.sin(t) * np.cos(p), np.cos(t), np.sin(t) * np.sin(p)], -1).reshape(-1, 3)
    unit = unit.round(12)  # the poles' vertices coincide exactly
    n = len(phi)
    i, j = (x.ravel() for x in np.meshgrid(np.arange(rings), np.arange(n), indexing="ij"))
    a, b, c, d = i * n + j, i * n + (j + 1) % n, (i + 1) * n + (j + 1) % n, (i + 1) * n + j
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    return mesh_of(unit * radius, faces, normals=unit) if smooth else mesh_of(unit * radius, faces)


def blocks(size: int = 64) -> NDArray[np.uint8]:
    """A texture of four coloured quarters; row 0 is the top."""
    texture = np.full((size, size, 4), 255, np.uint8)
    h = size // 2
    texture[:h, :h, :3] = (250, 10, 20)  # top left
    texture[:h, h:, :3] = (30, 240, 40)  # top right
    texture[h:, :h, :3] = (50, 60, 230)  # bottom left
    texture[h:, h:, :3] = (200, 190, 70)  # bottom right
    return texture


def draw(mesh: Mesh, config: RenderConfig = UNLIT, cameras: Cameras | None = None) -> Any:
    """The rasteriser's first view as an int array (S, S, 4)."""
    return RasterRenderer().render(mesh, cameras or front(), config)[0].astype(int)


def linear(codes: Any) -> NDArray[np.float32]:
    """Linear light of sRGB codes 0-255."""
    return srgb_to_linear(np.asarray(codes) / 255)


def code(value: float) -> int:
    """sRGB code of a linear value."""
    return round(float(linear_to_srgb(np.array(value))) * 255)


def pixel_rays(size: int, fov_y_deg: float) -> NDArray[np.float64]:
    """Unit directions (S, S, 3) through the pixel centres of a camera that looks along -z."""
    half = np.tan(np.radians(fov_y_deg) / 2)
    t = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(t * half, -t * half)
    rays = np.stack([x, y, -np.ones_like(x)], -1)
    return np.asarray(rays / np.linalg.norm(rays, axis=-1, keepdims=True))
