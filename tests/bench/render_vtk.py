"""Baseline: VTK on Mesa's software rasteriser, offscreen, 4 samples a pixel, the same cameras.

One window and renderer serve all objects, and normals are given, so that what is timed is the
upload of an object and its views. VTK sums light in the frame buffer's space: colours go in and
come out as linear light, and the conversion to sRGB is left to ``encode``, outside the clock.
Without the GL libraries VTK does not raise, it crashes: ``probe`` tries it in a child process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cameras import Cameras
from pipeline.renderers.base import RenderConfig
from pipeline.renderers.raster_tables import LINEAR_TO_SRGB, SRGB_TO_LINEAR
from pipeline.scene import Mesh

os.environ.setdefault("LP_NUM_THREADS", "0")  # llvmpipe: draw in the calling thread
PROBE = (
    "import vtk; w = vtk.vtkRenderWindow(); w.SetOffScreenRendering(1); w.SetMultiSamples(4); "
    "r = vtk.vtkRenderer(); w.AddRenderer(r); w.SetSize(8, 8); w.Render()"
)


def probe() -> str:
    """Empty when VTK can draw here, else what is missing."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return "VTK hangs when it opens a window"
    if done.returncode == 0:
        return ""
    if b"ModuleNotFoundError" in done.stderr:
        return "vtk is not installed (extra bench)"
    return f"VTK cannot draw (exit {done.returncode}): install libegl1 and libgl1-mesa-dri"


class VtkRenderer:
    """Renders a mesh from all cameras; ``render`` returns linear RGB, see ``encode``."""

    def __init__(self, cameras: Cameras, config: RenderConfig) -> None:
        import vtk

        self.vtk: Any = vtk
        vtk.vtkObject.GlobalWarningDisplayOff()
        self.config = config
        self.window = vtk.vtkRenderWindow()
        self.window.SetOffScreenRendering(1)
        self.window.SetMultiSamples(config.supersample**2)
        self.window.SetSize(config.image_size, config.image_size)
        self.renderer = vtk.vtkRenderer()
        self.renderer.SetBackground(*(float(SRGB_TO_LINEAR[c]) for c in config.background))
        self.window.AddRenderer(self.renderer)
        self.cameras = []
        for pose in cameras.poses:
            rotation = pose[:3, :3]
            eye = -rotation.T @ pose[:3, 3]
            camera = vtk.vtkCamera()
            camera.SetPosition(*eye)
            camera.SetFocalPoint(0, 0, 0)
            camera.SetViewUp(*rotation[1])
            camera.SetViewAngle(cameras.fov_y_deg)
            distance = float(np.linalg.norm(eye))
            camera.SetClippingRange(distance - 1.01, distance + 1.01)
            self.cameras.append(camera)
        light = vtk.vtkLight()
        light.SetLightTypeToHeadlight()
        self.renderer.SetAutomaticLightCreation(False)
        self.renderer.AddLight(light)

    def render(self, mesh: Mesh) -> NDArray[np.uint8]:
        """Frames (V, S, S, 3) uint8 of linear light."""
        size = self.config.image_size
        actors = [self._actor(mesh, index) for index in range(len(mesh.materials))]
        for actor in actors:
            self.renderer.AddActor(actor)
        frames = np.empty((len(self.cameras), size, size, 3), np.uint8)
        pixels = self.vtk.vtkUnsignedCharArray()
        for view, camera in enumerate(self.cameras):
            self.renderer.SetActiveCamera(camera)
            self.window.Render()
            self.window.GetPixelData(0, 0, size - 1, size - 1, 0, pixels, 0)
            frames[view] = np.frombuffer(pixels, np.uint8).reshape(size, size, 3)[::-1]
        for actor in actors:
            self.renderer.RemoveActor(actor)
            actor.ReleaseGraphicsResources(self.window)
        return frames

    def _actor(self, mesh: Mesh, index: int) -> Any:
        """The faces of one material."""
        from vtk.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray

        vtk, material = self.vtk, mesh.materials[index]
        faces = mesh.faces[mesh.face_material == index]
        data = vtk.vtkPolyData()
        points = vtk.vtkPoints()
        points.SetData(numpy_to_vtk(mesh.vertices))
        data.SetPoints(points)
        cells = vtk.vtkCellArray()
        rows = np.column_stack([np.full(len(faces), 3), faces]).astype(np.int64)
        cells.ImportLegacyFormat(numpy_to_vtkIdTypeArray(rows.ravel(), deep=True))
        data.SetPolys(cells)
        if mesh.normals is not None:
            data.GetPointData().SetNormals(numpy_to_vtk(mesh.normals))
        mapper = vtk.vtkPolyDataMapper()
        if mesh.vertex_color is not None:
            factor = np.array(material.base_color, np.float32)
            codes = (np.clip(mesh.vertex_color * factor, 0, 1) * 255 + 0.5).astype(np.uint8)
            data.GetPointData().SetScalars(numpy_to_vtk(codes[:, :3].copy(), deep=True))
        mapper.SetInputData(data)
        actor = vtk.vtkActor()
        actor.SetMapper(mapper)
        shade = actor.GetProperty()
        shade.SetColor(*material.base_color[:3])
        shade.SetAmbient(self.config.ambient)
        shade.SetDiffuse(self.config.diffuse)
        shade.SetSpecular(0)
        shade.SetInterpolationToPhong()
        if material.texture is not None and mesh.uv is not None:
            data.GetPointData().SetTCoords(numpy_to_vtk(mesh.uv))
            image = vtk.vtkImageData()
            height, width = material.texture.shape[:2]
            image.SetDimensions(width, height, 1)
            upright = np.ascontiguousarray(material.texture[::-1, :, :3]).reshape(-1, 3)
            image.GetPointData().SetScalars(numpy_to_vtk(upright, deep=True))
            texture = vtk.vtkTexture()
            texture.SetInputData(image)
            texture.InterpolateOn()
            texture.MipmapOn()
            texture.RepeatOn()
            texture.UseSRGBColorSpaceOn()
            actor.SetTexture(texture)
        return actor


def encode(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """sRGB codes of 8-bit linear light."""
    steps = np.rint(np.arange(256) / 255 * (len(LINEAR_TO_SRGB) - 1)).astype(int)
    codes: NDArray[np.uint8] = LINEAR_TO_SRGB[steps][frames]
    return codes
