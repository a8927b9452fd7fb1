"""Baseline: Embree finds the nearest face with one ray a sample; everything else is the product's.

Vertices, normals, mip-maps, shading and resolve are those of the rasteriser (opaque faces only),
and the rays are made before the clock starts, so that what differs is visibility alone.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.cameras import Cameras
from pipeline.renderers import raster
from pipeline.renderers.base import RenderConfig
from pipeline.renderers.raster_fragments import FRAGMENT_INTS, FRAGMENT_ROWS, SETUP_SIZE
from pipeline.renderers.raster_prepare import prepare
from pipeline.renderers.raster_shading import ROW_INTS, shade
from pipeline.renderers.raster_tables import LINEAR_TO_SRGB, SRGB_TO_LINEAR, SRGB_TO_LINEAR16
from pipeline.renderers.raster_visibility import project, row_stride
from pipeline.scene import Mesh

F32 = NDArray[np.float32]


class EmbreeRenderer:
    """Renders as ``RasterRenderer`` does, for one set of cameras and one configuration."""

    def __init__(self, cameras: Cameras, config: RenderConfig) -> None:
        self.cameras, self.config = cameras, config
        size = config.image_size * config.supersample
        self.rays = [sample_rays(pose, cameras.fov_y_deg, size) for pose in cameras.poses]

    def render(self, mesh: Mesh) -> NDArray[np.uint8]:
        """Pictures (V, S, S, 4) uint8 of a mesh without transparency."""
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        config, scale = self.config, self.config.supersample
        pixels, size = config.image_size, config.image_size * scale
        prepared = prepare(mesh, config.crease_angle_deg)
        if prepared.n_opaque != len(prepared.faces):
            raise ValueError("the Embree baseline draws opaque faces only")
        scene = EmbreeScene()
        TriangleMesh(scene, prepared.vertices.copy(), prepared.faces.copy())
        background = np.array(config.background, np.uint8)
        images = np.empty((len(self.cameras), pixels, pixels, 4), np.uint8)
        images.view(np.uint32)[...] = np.array([*background, 0], np.uint8).view(np.uint32)
        stride = row_stride(size)
        focal = size / 2 / math.tan(math.radians(self.cameras.fov_y_deg) / 2)
        screen = np.empty((len(prepared.vertices), 4), np.float32)
        keys = np.zeros((size, stride), np.int64)
        capacity = max(pixels + pixels * scale * scale + 4, size)
        buffers = (
            np.zeros((raster.SETUP_SLOTS, SETUP_SIZE), np.float32),
            np.empty(raster.SETUP_SLOTS, np.int64),
            np.arange(stride, dtype=np.float32),
            np.empty((FRAGMENT_ROWS, capacity), np.float32),
            np.empty((FRAGMENT_INTS, capacity), np.int64),
            np.empty((ROW_INTS, pixels), np.int64),
            np.empty((3, pixels), np.float32),
            np.zeros((0, 0, 0), np.float32),
        )
        row_lo, row_hi = np.zeros(size, np.int64), np.full(size, size, np.int64)
        light = np.array([config.ambient, config.diffuse], np.float32)
        for view, pose in enumerate(self.cameras.poses):
            face = scene.run(*self.rays[view]).reshape(size, size)  # -1: none
            keys[:, :size] = face + 1
            project(
                prepared.vertices,
                pose.astype(np.float32),
                np.float32(focal),
                np.float32(size / 2),
                screen,
            )
            shade(
                screen, prepared.faces, size, scale, keys.reshape(-1), row_lo, row_hi,
                raster.rays(pose, focal, size), light, prepared.normals, prepared.corner_normal,
                prepared.uv, prepared.vertex_color, prepared.face_material, prepared.factors,
                prepared.texture_of, prepared.emissive_of, prepared.first_level, prepared.levels,
                prepared.base_texels, prepared.mip_texels, SRGB_TO_LINEAR16, LINEAR_TO_SRGB,
                SRGB_TO_LINEAR[background],
                *buffers, images[view],
            )  # fmt: skip
        return images


def sample_rays(pose: NDArray[np.float64], fov_y_deg: float, size: int) -> tuple[F32, F32]:
    """Origins and directions (size * size, 3) of a view's samples, in object space."""
    half = math.tan(math.radians(fov_y_deg) / 2)
    t = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(t * half, -t * half)
    directions = np.stack([x, y, -np.ones_like(x)], -1).reshape(-1, 3) @ pose[:3, :3]
    origin = -pose[:3, :3].T @ pose[:3, 3]
    origins = np.broadcast_to(origin.astype(np.float32), directions.shape).copy()
    return origins, directions.astype(np.float32)
