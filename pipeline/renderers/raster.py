"""The default renderer: a software rasteriser on the CPU. No display, no system library.

For every view: project the vertices; find the nearest face at each of s x s samples a pixel
(``visibility``); shade once per visible face and pixel and weight by the samples covered
(``shade``). Faces whose material is masked are cut out sample by sample; blended ones are sorted by
the distance of their middle and composited afterwards, sample by sample (``draw_by_sample``).

Light and compositing are in linear light: an edge pixel is the mean of its samples' linear
colours, the background included, encoded to sRGB at the end. A pixel that one opaque colour covers
wholly has exactly that colour, and one that nothing covers exactly the background's.

One thread, float32, no ``fastmath``: equal input gives equal bytes on every CPU. Faces with a
vertex behind the camera's near plane (0.001) are left out rather than clipped; cameras outside the
unit sphere never see any.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.cameras import Cameras, ring
from pipeline.renderers.base import RenderConfig
from pipeline.renderers.raster_alpha import draw_by_sample, resolve
from pipeline.renderers.raster_fragments import FRAGMENT_INTS, FRAGMENT_ROWS, SETUP_SIZE
from pipeline.renderers.raster_prepare import Prepared, prepare
from pipeline.renderers.raster_shading import ROW_INTS, shade
from pipeline.renderers.raster_tables import LINEAR_TO_SRGB, SRGB_TO_LINEAR, SRGB_TO_LINEAR16
from pipeline.renderers.raster_visibility import project, row_stride, visibility
from pipeline.scene import Material, Mesh

SETUP_SLOTS = 1024  # set-up faces kept at a time, a power of two
MAX_SUPERSAMPLE = 7  # the samples of a pixel are the bits of an int64
MAX_SIZE = 8192  # samples along an edge: 512 MiB of visibility buffer


class RasterRenderer:
    """Numba software rasteriser; see the module."""

    @property
    def name(self) -> str:
        """Registry name."""
        return "raster"

    @property
    def version(self) -> str:
        """Changes when the same input gives other bytes."""
        return "2"

    def compile_cached(self) -> None:
        """Compile every kernel: see ``compile_cached`` of the module."""
        compile_cached()

    def render(self, mesh: Mesh, cameras: Cameras, config: RenderConfig) -> NDArray[np.uint8]:
        """Pictures (V, S, S, 4) uint8: composited sRGB, and coverage 0-255 as alpha.

        Raises ``MeshError`` (stage ``render``) for arrays that do not fit together, and
        ``ValueError`` for settings that cannot be drawn.
        """
        check_size(config)
        pixels = config.image_size
        prepared = prepare(mesh, config.crease_angle_deg)
        background = np.array(config.background, np.uint8)
        images = np.empty((len(cameras), pixels, pixels, 4), np.uint8)
        images.view(np.uint32)[...] = np.array([*background, 0], np.uint8).view(np.uint32)
        _draw(prepared, cameras, config, SRGB_TO_LINEAR[background], images)
        return images


def check_size(config: RenderConfig) -> None:
    """Raise ``ValueError`` for a size or supersampling that cannot be drawn."""
    scale, pixels = config.supersample, config.image_size
    if not 1 <= scale <= MAX_SUPERSAMPLE or not 1 <= pixels <= MAX_SIZE // scale:
        raise ValueError(
            f"image_size {pixels} with supersample {scale}: supersample is 1 to "
            f"{MAX_SUPERSAMPLE}, and image_size times supersample at most {MAX_SIZE}"
        )


def _draw(
    mesh: Prepared,
    cameras: Cameras,
    config: RenderConfig,
    background: NDArray[np.float32],
    images: NDArray[np.uint8],
) -> None:
    """All views of a prepared mesh, over ``images`` that hold the background already."""
    scale, pixels = config.supersample, config.image_size
    size = pixels * scale
    stride = row_stride(size)
    focal = size / 2 / math.tan(math.radians(cameras.fov_y_deg) / 2)
    light = np.array([config.ambient, config.diffuse], np.float32)
    screen = np.empty((len(mesh.vertices), 4), np.float32)
    keys = np.zeros(size * stride, np.int64)
    starts, ends = np.empty((2, size), np.int64)
    ramp = np.arange(stride, dtype=np.float32)
    setups = np.zeros((SETUP_SLOTS, SETUP_SIZE), np.float32)
    tags = np.empty(SETUP_SLOTS, np.int64)
    capacity = max(pixels + pixels * scale * scale + 4, size)
    fragments = (
        np.empty((FRAGMENT_ROWS, capacity), np.float32),
        np.empty((FRAGMENT_INTS, capacity), np.int64),
    )
    row = np.empty((ROW_INTS, pixels), np.int64), np.empty((3, pixels), np.float32)
    n_faces = len(mesh.faces)
    has_blend = mesh.n_solid < n_faces
    # What blended faces are tested against while ``shade`` empties the keys.
    depth = np.zeros(size * stride if mesh.n_opaque < n_faces else 0, np.int64)
    layers = np.zeros((size, size, 4) if has_blend else (0, 0, 0), np.float32)
    surface = (
        light, mesh.normals, mesh.corner_normal, mesh.uv, mesh.vertex_color, mesh.face_material,
        mesh.factors, mesh.texture_of, mesh.emissive_of, mesh.first_level, mesh.levels,
        mesh.base_texels, mesh.mip_texels, SRGB_TO_LINEAR16,
    )  # fmt: skip
    for view, pose in enumerate(cameras.poses):
        row_lo, row_hi = np.full(size, size, np.int64), np.zeros(size, np.int64)
        ray = rays(pose, focal, size)
        project(
            mesh.vertices, pose.astype(np.float32), np.float32(focal), np.float32(size / 2), screen
        )
        visibility(
            screen, mesh.faces, mesh.n_opaque, size, keys, row_lo, row_hi, starts, ends, ramp
        )
        by_sample = (
            mesh.n_solid, size, scale, depth, row_lo, row_hi, starts, ends, ray, *surface,
            setups[0], ramp, *fragments, layers,
        )  # fmt: skip
        if mesh.n_opaque < n_faces:
            depth[:] = keys
            order = np.arange(mesh.n_opaque, n_faces, dtype=np.int64)
            draw_by_sample(screen, mesh.faces, order, False, *by_sample)
            keys[:] = depth
        shade(
            screen, mesh.faces, size, scale, keys, row_lo, row_hi, ray, *surface, LINEAR_TO_SRGB,
            background, setups, tags, ramp, *fragments, *row, layers, images[view],
        )  # fmt: skip
        if has_blend:
            draw_by_sample(screen, mesh.faces, back_to_front(mesh, pose), True, *by_sample)
            resolve(layers, scale, background, LINEAR_TO_SRGB, images[view])
            layers[...] = 0


def rays(pose: NDArray[np.float64], focal: float, size: int) -> NDArray[np.float32]:
    """Direction through sample (x, y) in object space as row 0 + x row 1 + y row 2: (3, 3)."""
    half = size / 2
    in_camera = np.array(
        [[-half / focal, half / focal, -1.0], [1 / focal, 0.0, 0.0], [0.0, -1 / focal, 0.0]]
    )
    rotation = pose[:3, :3]
    # Not a matrix product: BLAS may round differently from one CPU to the next.
    ray: NDArray[np.float32] = (in_camera[:, :, None] * rotation).sum(1).astype(np.float32)
    return ray


def back_to_front(mesh: Prepared, pose: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of the blended faces, farthest middle first; ties in the order of the file."""
    corners = mesh.vertices[mesh.faces[mesh.n_solid :]].astype(np.float64)
    x, y, z = corners.sum(1).T
    distance = -(pose[2, 0] * x + pose[2, 1] * y + pose[2, 2] * z)
    return mesh.n_solid + np.argsort(-distance, kind="stable").astype(np.int64)


def compile_cached() -> None:
    """Compile every kernel, or load it from numba's cache. Call once before workers fan out.

    Numba keeps the compiled code beside the package, or, where that folder is read-only, in the
    user's cache folder (``NUMBA_CACHE_DIR`` overrides both).
    """
    texture = np.full((4, 4, 4), 128, np.uint8)
    materials = (
        Material(texture=texture, emissive=(0.5, 0.5, 0.5)),
        Material(texture=texture, alpha_mode="blend"),
    )
    vertices = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    normals = np.tile(np.array([0, 0, 1], np.float32), (4, 1))
    uv = vertices[:, :2].copy()
    for given in (None, normals):
        mesh = Mesh(vertices, faces, np.array([0, 1], np.int32), materials, normals=given, uv=uv)
        RasterRenderer().render(mesh, ring(1), RenderConfig(image_size=8))
