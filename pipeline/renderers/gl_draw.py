"""A prepared mesh on the graphics device, and the passes that draw it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cameras import Cameras
from pipeline.renderers.base import RenderConfig
from pipeline.renderers.gl_context import GlContext
from pipeline.renderers.raster import back_to_front, rays
from pipeline.renderers.raster_prepare import Prepared
from pipeline.renderers.raster_tables import SRGB_TO_LINEAR
from pipeline.scene import MeshError

VIEW_STRIDE = 256  # bytes; the largest alignment of uniform blocks that OpenGL allows
VIEW_FLOATS = 36
ROWS = 8192  # pixels: views are drawn below each other and read back together
NEAR = 1e-3
ORDER_BLOCK = 12


class GlMesh:
    """The arrays of a mesh as buffers. A context manager: they are freed when it is left."""

    def __init__(self, context: GlContext, mesh: Prepared) -> None:
        self.context, self.mesh = context, mesh
        self._stack = ExitStack()
        self._emits = len(mesh.emissive_of) > 0
        emissive_of = mesh.emissive_of if self._emits else np.full(len(mesh.factors), -1)
        materials = np.column_stack([mesh.factors, mesh.texture_of, emissive_of])
        self._blocks: Sequence[tuple[str, NDArray[Any]]] = (
            ("vertices", mesh.vertices),
            ("faces", mesh.faces),
            ("normals", mesh.normals),
            ("normals of corners", mesh.corner_normal),
            ("texture coordinates", mesh.uv),
            ("vertex colours", mesh.vertex_color),
            ("materials of faces", mesh.face_material),
            ("materials", materials.astype(np.float32)),
            ("mip levels", np.concatenate([mesh.first_level, mesh.levels.ravel()])),
            ("textures", mesh.base_texels),
            ("mip-maps", mesh.mip_texels),
        )

    def __enter__(self) -> GlMesh:
        """Upload. Raises ``MeshError`` (``gl_limit``) for an array that the device cannot bind."""
        try:
            self.buffers = []
            for binding, (what, array) in enumerate(self._blocks):
                if array.dtype == np.int64:
                    array = array.astype(np.int32)
                if array.nbytes > self.context.max_buffer:
                    raise MeshError(
                        "gl_limit",
                        f"{what} take {array.nbytes / 2**20:.0f} MiB; {self.context.driver} binds "
                        f"{self.context.max_buffer / 2**20:.0f} MiB at most: use --renderer raster",
                        stage="render",
                    )
                buffer = self.hold(
                    self.context.gl.buffer(array)
                    if array.size
                    else self.context.gl.buffer(bytes(16))
                )
                buffer.bind_to_storage_buffer(binding)
                self.buffers.append(buffer)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Free the buffers."""
        self._stack.close()

    def hold(self, thing: Any) -> Any:
        """Free ``thing`` with the mesh."""
        self._stack.callback(thing.release)
        return thing

    def program(self, name: str, scale: int) -> Any:
        """A program with the uniforms that depend on the mesh alone."""
        program = self.context.program(name, scale)
        for uniform, value in (
            ("level_rows", len(self.mesh.first_level)),
            ("has_color", len(self.mesh.vertex_color) > 0),
            ("emits", self._emits),
            ("n_solid", self.mesh.n_solid),
        ):
            if uniform in program:  # those that a program does not use are compiled away
                program[uniform].value = value
        return program


def draw(
    context: GlContext,
    mesh: Prepared,
    cameras: Cameras,
    config: RenderConfig,
    images: NDArray[np.uint8],
) -> None:
    """Draw every view into ``images`` (V, S, S, 4).

    Raises ``MeshError`` (``gl_limit``), ``GlError``, and whatever moderngl raises.
    """
    pixels, scale = config.image_size, config.supersample
    rows = max(1, min(len(cameras), min(ROWS, context.max_side) // pixels))
    gl = context.gl
    with GlMesh(context, mesh) as held:
        passes = _Passes(held, pixels, scale, rows)
        for start in range(0, len(cameras), rows):
            poses = cameras.poses[start : start + rows]
            blocks = view_blocks(mesh, poses, cameras.fov_y_deg, config)
            views = gl.buffer(blocks)
            try:
                passes.clear(config.background)
                for row, pose in enumerate(poses):
                    views.bind_to_uniform_block(0, row * VIEW_STRIDE, VIEW_STRIDE)
                    passes.draw_view(row, pose)
                read = passes.read(len(poses))
            finally:
                views.release()
            context.check()
            images[start : start + len(poses)] = read


class _Passes:
    """The passes over one mesh."""

    def __init__(self, held: GlMesh, pixels: int, scale: int, rows: int) -> None:
        mesh, context = held.mesh, held.context
        self.gl, self.mesh, self.pixels, self.size = context.gl, mesh, pixels, pixels * scale
        self.has_blend = mesh.n_solid < len(mesh.faces)
        make = context.layers_target if self.has_blend else context.targets
        self.targets = make(pixels, scale, rows)
        vertices, faces = held.buffers[0], held.buffers[1]

        def triangles(name: str, index: Any) -> Any:
            program = held.program(name, scale)
            layout = [(vertices, "3f", "position")]
            return held.hold(self.gl.vertex_array(program, layout, index_buffer=index))

        def screen(name: str, texture: str) -> Any:
            program = held.program(name, scale)
            program[texture].value = 0
            return held.hold(self.gl.vertex_array(program, []))

        self.solid = triangles("solid", faces) if mesh.n_opaque else None
        self.cutout = triangles("cutout", faces) if mesh.n_opaque < len(mesh.faces) else None
        if self.has_blend:
            count = len(mesh.faces) - mesh.n_solid
            self.order = held.hold(self.gl.buffer(reserve=4 * count, dynamic=True))
            self.sorted_faces = held.hold(self.gl.buffer(reserve=12 * count, dynamic=True))
            self.order.bind_to_storage_buffer(ORDER_BLOCK)
            self.blend = triangles("blend", self.sorted_faces)
            self.shade, self.resolve = screen("samples", "face_at"), screen("resolve", "samples")
        else:
            self.shade = screen("shade", "face_at")

    def clear(self, background: tuple[int, int, int]) -> None:
        """Fill the output with the background and coverage 0."""
        red, green, blue = background
        self.targets["out"].clear(red / 255, green / 255, blue / 255, 0.0)

    def draw_view(self, row: int, pose: NDArray[np.float64]) -> None:
        """Draw one view into row ``row`` of the output."""
        gl, mesh, targets = self.gl, self.mesh, self.targets
        view = (0, row * self.pixels, self.pixels, self.pixels)
        targets["faces"].use()
        gl.viewport = (0, 0, self.size, self.size)
        gl.enable_only(gl.DEPTH_TEST)
        gl.depth_func = ">="  # of faces equally near, the later one, as in the rasteriser
        targets["faces"].clear(0.0, 0.0, 0.0, 0.0, depth=0.0)
        for vao, first, last in (
            (self.solid, 0, mesh.n_opaque),
            (self.cutout, mesh.n_opaque, len(mesh.faces)),
        ):
            if vao is not None:
                vao.program["first_face"].value = first
                vao.render(gl.TRIANGLES, vertices=3 * (last - first), first=3 * first)
        gl.enable_only(gl.NOTHING)
        targets["ids"].use(0)
        if not self.has_blend:
            targets["out"].use()
            gl.viewport = view
            self.shade.render(gl.TRIANGLES, vertices=3)
            return
        layers = targets["layers"]
        layers.use()
        layers.clear(0.0, 0.0, 0.0, 0.0)
        gl.viewport = (0, 0, self.size, self.size)
        self.shade.render(gl.TRIANGLES, vertices=3)
        order = back_to_front(mesh, pose)
        self.order.write(order.astype(np.int32))
        self.sorted_faces.write(mesh.faces[order])
        gl.enable_only(gl.DEPTH_TEST | gl.BLEND)
        gl.blend_func = gl.ONE, gl.ONE_MINUS_SRC_ALPHA
        self.blend.render(gl.TRIANGLES, vertices=3 * len(order))
        gl.enable_only(gl.NOTHING)
        targets["out"].use()
        gl.viewport = view
        targets["values"].use(0)
        self.resolve.render(gl.TRIANGLES, vertices=3)

    def read(self, views: int) -> NDArray[np.uint8]:
        """The first ``views`` pictures, (views, S, S, 4)."""
        shape = (views, self.pixels, self.pixels, 4)
        data = self.targets["out"].read((0, 0, self.pixels, views * self.pixels), components=4)
        return np.frombuffer(data, np.uint8).reshape(shape)


def view_blocks(
    mesh: Prepared, poses: NDArray[np.float64], fov_y_deg: float, config: RenderConfig
) -> NDArray[np.float32]:
    """The uniform blocks of the shaders (see ``common.glsl``), (V, VIEW_STRIDE / 4)."""
    size = config.image_size * config.supersample
    focal = size / 2 / math.tan(math.radians(fov_y_deg) / 2)
    background = SRGB_TO_LINEAR[np.array(config.background, np.uint8)]
    used = np.zeros(len(mesh.vertices), np.bool_)
    used[mesh.faces] = True
    vertices = mesh.vertices[used]
    blocks = np.zeros((len(poses), VIEW_STRIDE // 4), np.float32)
    for row, (pose, block) in enumerate(zip(poses, blocks, strict=True)):
        far, near = _depths(vertices, pose)
        ray = np.zeros((3, 4), np.float32)
        ray[:, :3] = rays(pose, focal, size)
        values = (
            pose[:3].ravel(),
            ray.ravel(),
            (focal, size / 2, far, 1 / (near - far)),
            (config.ambient, config.diffuse, row * config.image_size, 0),
            (*background, 0),
        )
        block[:VIEW_FLOATS] = np.concatenate([np.asarray(v, np.float64) for v in values])
    return blocks


def _depths(vertices: NDArray[np.float32], pose: NDArray[np.float64]) -> tuple[float, float]:
    """1/w of what is farthest and nearest, with a margin: 24 bits of depth go between the two."""
    with np.errstate(invalid="ignore", over="ignore"):  # vertices may hold anything
        w = -(vertices @ pose[2, :3].astype(np.float32) + np.float32(pose[2, 3]))
    w = w[(w > NEAR) & np.isfinite(w)]
    if not len(w):
        return 0.0, 1 / NEAR
    far, near = 1 / float(w.max()), 1 / float(w.min())
    margin = 1e-3 * near
    return far - margin, near + margin
