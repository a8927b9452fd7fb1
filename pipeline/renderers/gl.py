"""The accelerated renderer: OpenGL 4.3 through EGL. No display; a GPU, or Mesa on the CPU.

It draws the rasteriser's picture (``raster``) and shares all that precedes drawing with it: faces
ordered by transparency, crease normals, mip-maps. The passes are the same too. OpenGL finds the
face at each of s x s samples a pixel; then a shader colours once per visible face and pixel, at the
middle of the samples covered, by the same formulas, from the same texels and with the same weights.
Drawing at s times the size and shrinking the picture would blur textures more and shade at other
places. What is left is in the silhouettes (graphics hardware rounds vertices to 1/256 sample), in
which of two surfaces in one place is seen, and in the last bits of arithmetic: see ``TOLERANCE``.

The pictures of two drivers may differ in this measure, so that the driver is told in the manifest
(``versions``) but does not keep a set from being continued on another machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.cameras import Cameras, ring
from pipeline.common import InputError, versions
from pipeline.renderers.base import RenderConfig
from pipeline.renderers.gl_context import (
    Driver,
    GlError,
    discard_context,
    import_moderngl,
    probe,
    with_context,
)
from pipeline.renderers.gl_device import REMEDY
from pipeline.renderers.gl_draw import draw
from pipeline.renderers.raster import RasterRenderer, check_size, compile_cached
from pipeline.renderers.raster_prepare import Prepared, prepare
from pipeline.scene import Material, Mesh, MeshError, linear_to_srgb


@dataclass(frozen=True)
class Tolerance:
    """How far an object's pictures may be from the rasteriser's.

    Differences are sRGB codes of the worst channel, over the pixels that either object touches;
    silhouettes are the pixels that are covered by half or more, in all views together.
    """

    mean: float
    median: float
    percentile_99: float
    silhouette_iou: float  # at least


# Measured over 1,363 assets, 12 views each: 0.055, 0, 0 and 0.9994 at worst.
TOLERANCE = Tolerance(mean=0.1, median=0.0, percentile_99=1.0, silhouette_iou=0.999)


class GlRenderer:
    """OpenGL renderer; see the module.

    Raises ``InputError`` where moderngl is not installed. The context is made at the first picture.
    """

    def __init__(self) -> None:
        import_moderngl()

    @property
    def name(self) -> str:
        """Registry name."""
        return "gl"

    @property
    def version(self) -> str:
        """Changes when the same input gives other pictures: with the shaders or the rasteriser."""
        return f"1 (raster {RasterRenderer().version})"

    def versions(self) -> dict[str, str]:
        """The graphics driver, for the manifest. Raises ``InputError`` where none works."""
        return {"gl": str(probe()), **versions("moderngl")}

    def compile_cached(self) -> None:
        """Try the driver in a process of its own, and compile what runs on the CPU.

        Raises ``InputError`` where no driver works.
        """
        probe()
        compile_cached()

    def render(self, mesh: Mesh, cameras: Cameras, config: RenderConfig) -> NDArray[np.uint8]:
        """Pictures (V, S, S, 4) uint8: composited sRGB, and coverage 0-255 as alpha.

        A context that fails is replaced and the mesh tried once more.

        Raises ``MeshError`` (stage ``render``): as the rasteriser does for arrays that do not fit
        together, ``gl_limit`` for a mesh that the device cannot take, ``gl_failed`` when drawing
        fails twice; ``ValueError`` for settings that cannot be drawn; ``InputError`` where no
        context can be made.
        """
        check_size(config)
        images = np.empty((len(cameras), config.image_size, config.image_size, 4), np.uint8)
        prepared = prepare(mesh, config.crease_angle_deg)
        if not len(cameras):
            return images
        try:
            _draw(mesh, prepared, cameras, config, images)
        except _context_errors() as first:
            discard_context()
            try:
                _draw(mesh, prepared, cameras, config, images)
            except _context_errors() as second:
                discard_context()
                raise MeshError("gl_failed", f"{first}; again: {second}", stage="render") from None
        return images


def _context_errors() -> tuple[type[Exception], ...]:
    return GlError, import_moderngl().Error


def _draw(
    mesh: Mesh,
    prepared: Prepared,
    cameras: Cameras,
    config: RenderConfig,
    images: NDArray[np.uint8],
) -> None:
    most = with_context(lambda context: context.max_buffer)
    while texture_bytes(prepared) > most and prepared.levels[:, 1:].max() > 1:
        mesh = with_smaller_textures(mesh, prepared)
        prepared = prepare(mesh, config.crease_angle_deg)
    with_context(lambda context: draw(context, prepared, cameras, config, images))


def texture_bytes(prepared: Prepared) -> int:
    """Size of the larger of the two buffers that hold all textures."""
    return max(prepared.base_texels.nbytes, prepared.mip_texels.nbytes)


def with_smaller_textures(mesh: Mesh, prepared: Prepared) -> Mesh:
    """The mesh with its largest textures at half their sides: level 1 of their mip-maps.

    ``prepared`` is the same mesh's.
    """
    first = prepared.levels[prepared.first_level[:-1]]
    area = first[:, 1] * first[:, 2]
    to_srgb = np.round(255 * linear_to_srgb(np.arange(65536) / 65535)).astype(np.uint8)

    @cache
    def smaller(index: int) -> NDArray[np.uint8]:
        offset, width, height = prepared.levels[prepared.first_level[index] + 1]
        texels = prepared.mip_texels[offset : offset + width * height].view(np.uint16)
        half = to_srgb[texels].reshape(height, width, 4)
        half[..., 3] = (texels[3::4] // 257).reshape(height, width)
        return half

    def replaced(image: NDArray[np.uint8] | None, index: int) -> NDArray[np.uint8] | None:
        return smaller(int(index)) if index >= 0 and area[index] == area.max() else image

    emissive_of = prepared.emissive_of if len(prepared.emissive_of) else [-1] * len(mesh.materials)
    materials = [
        replace(
            material,
            texture=replaced(material.texture, index),
            emissive_texture=replaced(material.emissive_texture, emissive),
        )
        for material, index, emissive in zip(
            mesh.materials, prepared.texture_of, emissive_of, strict=True
        )
    ]
    return replace(mesh, materials=tuple(materials))


def self_test() -> Driver:
    """Draw a small scene here and with the rasteriser, and tell what drew it.

    Raises ``InputError`` where no context can be made, or the pictures are not the same.
    """
    texture = np.full((8, 8, 4), 255, np.uint8)
    texture[:4, :4] = 200, 30, 60, 128
    texture[4:, 2:, 1] = 90
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
    vertices = np.concatenate([0.6 * corners + shift for shift in ((0, 0, 0.3), (0, 0.2, -0.3))])
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]], np.int32)
    mesh = Mesh(
        vertices=vertices.astype(np.float32),
        faces=faces,
        face_material=np.array([0, 0, 1, 2], np.int32),
        materials=(
            Material((1, 1, 1, 0.7), texture, "blend"),
            Material((1, 1, 1, 1), texture, "mask"),
            Material((0.2, 0.5, 1, 1), texture),
        ),
        uv=np.tile(corners[:, :2] / 2 + 0.5, (2, 1)),
    )
    config, cameras = RenderConfig(image_size=64), ring(2)
    try:
        ours = GlRenderer().render(mesh, cameras, config)
    except MeshError as error:
        raise InputError(f"--renderer gl: {error.message}; {REMEDY}") from error
    difference = np.abs(RasterRenderer().render(mesh, cameras, config).astype(int) - ours)
    driver = with_context(lambda context: context.driver)
    if difference.mean() > 0.5 or (difference > 8).mean() > 0.01:
        raise InputError(
            f"--renderer gl: {driver} draws different pictures from the rasteriser (mean "
            f"difference {difference.mean():.2f} of 255); update the driver, or use "
            "--renderer raster"
        )
    return driver
