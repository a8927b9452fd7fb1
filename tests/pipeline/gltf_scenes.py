"""Loading, drawing and sampling of the generated glTF files that the feature tests look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.common import InputError
from pipeline.meshes import Limits, load_mesh
from pipeline.points import Points, sample_points
from pipeline.renderers import get_renderer
from pipeline.renderers.base import RenderConfig, Renderer
from pipeline.scene import Mesh, linear_to_srgb
from tests.pipeline.gltf_files import Builder
from tests.pipeline.shapes import front, mesh_of

SIZE = 128
FLAT = RenderConfig(image_size=SIZE, ambient=1.0, diffuse=0.0)
LIT = RenderConfig(image_size=SIZE)
SQUARE = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
SQUARE_FACES = np.array([[0, 1, 2], [0, 2, 3]])
SQUARE_UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)  # glTF: v points down
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
# Quarters of 8 x 8 texels: red and green at the top, blue and white at the bottom.
QUARTERS = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8).repeat(8, 0).repeat(8, 1)
PLACES = {
    "top left": (0.25, 0.75),
    "top right": (0.75, 0.75),
    "bottom left": (0.25, 0.25),
    "bottom right": (0.75, 0.25),
}
Color = tuple[int, int, int]
UPRIGHT = {"top left": RED, "top right": GREEN, "bottom left": BLUE, "bottom right": WHITE}


@dataclass(frozen=True)
class Seen:
    """A loaded file, its picture from the front and its points.

    Places are fractions (x, y) of the bounding box, from its left bottom.
    """

    mesh: Mesh  # as loaded: centred, in its own units
    normalised: Mesh
    picture: NDArray[np.int_]  # (SIZE, SIZE, 4)
    points: Points

    @property
    def extent(self) -> list[float]:
        """Sides of the bounding box, in the file's units."""
        sides: NDArray[np.float32] = np.ptp(self.mesh.vertices, axis=0)
        return [round(float(side), 4) for side in sides]

    def _at(self, place: tuple[float, float]) -> NDArray[np.float64]:
        low, high = self.normalised.vertices.min(0), self.normalised.vertices.max(0)
        return np.asarray(low[:2] + (high - low)[:2] * place, np.float64)

    def _pixel(self, place: tuple[float, float]) -> NDArray[np.int_]:
        x, y = self._at(place)
        focal = SIZE / 2 / np.tan(np.radians(20))
        depth = 4.0 - float(self.normalised.vertices[:, 2].max())
        column, row = SIZE / 2 + focal * x / depth, SIZE / 2 - focal * y / depth
        return np.asarray(self.picture[int(row), int(column)])

    def color(self, place: tuple[float, float]) -> Color:
        """sRGB of the picture."""
        red, green, blue = (int(value) for value in self._pixel(place)[:3])
        return red, green, blue

    def covered(self, place: tuple[float, float]) -> bool:
        """Whether the picture shows the object there, and the points lie there too: they agree."""
        drawn = bool(self._pixel(place)[3] > 127)
        assert drawn == bool(len(self._near(place))), f"picture and points differ at {place}"
        return drawn

    def point_color(self, place: tuple[float, float]) -> Color:
        """Median sRGB of the points around."""
        near = self.points.rgb[self._near(place)]
        assert len(near), f"no points at {place}"
        red, green, blue = (int(value) for value in np.median(near, axis=0))
        return red, green, blue

    def _near(self, place: tuple[float, float]) -> NDArray[np.intp]:
        offsets = self.points.xyz[:, :2] - self._at(place)
        return np.flatnonzero(np.linalg.norm(offsets, axis=1) < 0.06)

    def same(self, place: tuple[float, float], color: Any, tolerance: int = 4) -> None:
        """Assert the colour of picture and points."""
        for what, seen in (("picture", self.color(place)), ("points", self.point_color(place))):
            worst = int(np.abs(np.array(seen) - np.array(color)).max())
            assert worst <= tolerance, f"{what} at {place}: {seen}, not {tuple(color)}"


@dataclass(frozen=True)
class Eye:
    """One renderer, to look at files with."""

    renderer: Renderer
    folder: Path

    def load(self, data: bytes, name: str = "a.glb", limits: Limits | None = None) -> Mesh:
        """The mesh of a file with this content."""
        (self.folder / name).write_bytes(data)
        return load_mesh(self.folder / name, limits=limits)

    def look(self, data: bytes | Builder, config: RenderConfig = FLAT) -> Seen:
        """Load, draw from the front, and sample."""
        mesh = self.load(data if isinstance(data, bytes) else data.glb())
        normalised = mesh.normalised()
        picture = self.renderer.render(normalised, front(), config)[0].astype(int)
        points = sample_points(normalised, 6000, seed=1, n_fps=1)
        return Seen(mesh, normalised, picture, points)


def open_eye(name: str, folder: Path) -> Eye:
    """The renderer of that name; skips the test where this machine cannot run it."""
    try:
        renderer = get_renderer(name)
        renderer.render(mesh_of(SQUARE / 2, SQUARE_FACES), front(), FLAT)
    except InputError as error:
        pytest.skip(f"no {name} renderer here: {error}")
    return Eye(renderer, folder)


def square(builder: Builder, attributes: dict[str, int] | None = None, **primitive: Any) -> int:
    """A mesh: the square from -1 to 1, facing +z, with texture coordinates."""
    uv = {"TEXCOORD_0": builder.accessor(SQUARE_UV, "f4")}
    return builder.mesh(SQUARE, SQUARE_FACES, {**uv, **(attributes or {})}, **primitive)


def square_of(material: dict[str, Any], encoded: bytes | None = None, **texture: Any) -> Builder:
    """A file with the square in one material, and an image as texture 0 where given."""
    builder = Builder()
    if encoded is not None:
        builder.texture(encoded, **texture)
    builder.node(mesh=square(builder, material=builder.material(**material)))
    return builder


def textured(encoded: bytes, info: dict[str, Any] | None = None, **texture: Any) -> Builder:
    """The square with an image as its base colour."""
    base = {"baseColorTexture": {"index": 0, **(info or {})}}
    return square_of({"pbrMetallicRoughness": base}, encoded, **texture)


def colored(red: float, green: float, blue: float, alpha: float = 1.0) -> dict[str, Any]:
    """A material of one linear base colour."""
    return {"pbrMetallicRoughness": {"baseColorFactor": [red, green, blue, alpha]}}


def code(*linear: float) -> Color:
    """sRGB codes of linear light."""
    red, green, blue = (round(255 * float(x)) for x in linear_to_srgb(np.array(linear)))
    return red, green, blue


def shows(seen: Seen, quarters: dict[str, Color], tolerance: int = 4) -> None:
    for name, color in quarters.items():
        seen.same(PLACES[name], color, tolerance)
