"""The protocol that every renderer follows, and the settings that they share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.cameras import Cameras
from pipeline.scene import Mesh


@dataclass(frozen=True)
class RenderConfig:
    """What a picture depends on besides mesh and cameras; recorded in the manifest.

    Light: a two-sided Lambert head light plus ambient, ``ambient + diffuse * |cos(normal, view)|``
    in linear light, so that a surface seen face-on has exactly its own colour when the two sum
    to 1.
    """

    image_size: int = 224  # pixels, square
    background: tuple[int, int, int] = (255, 255, 255)  # sRGB
    supersample: int = 2  # samples per pixel and axis
    ambient: float = 0.35
    diffuse: float = 0.65
    crease_angle_deg: float = 40.0  # sharper edges get face normals where the asset has none

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {**asdict(self), "background": list(self.background)}


class Renderer(Protocol):
    """Draws a normalised mesh from every camera."""

    @property
    def name(self) -> str:
        """Registry name."""

    @property
    def version(self) -> str:
        """Changes when the same input gives other bytes."""

    def render(self, mesh: Mesh, cameras: Cameras, config: RenderConfig) -> NDArray[np.uint8]:
        """(V, S, S, 4) uint8: sRGB already composited on the background, and coverage as alpha.

        The fourth channel is the object's coverage 0-255, for silhouettes and blank checks.
        """
