"""What a loaded object is: one flattened triangle mesh with its materials.

Conventions, for every producer (loaders, the procedural set) and consumer (renderers, samplers):

- right-handed, **+y up**, front towards +z; after ``normalised`` centred at the middle of the
  bounding box with the farthest vertex at distance 1 from the origin;
- faces wind counter-clockwise seen from outside;
- ``base_color`` factors and vertex colours are **linear** RGBA in [0, 1]; textures are **sRGB**
  uint8, row 0 at the top; ``uv`` has (0, 0) at the **bottom left** (OpenGL and trimesh), wraps;
- the colour at a surface point is texture x vertex colour x base-colour factor, in linear light
  (glTF 2.0, section 3.9.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]

AlphaMode = Literal["opaque", "mask", "blend"]


class MeshError(Exception):
    """An asset cannot become a row. ``stage`` and ``kind`` go to the failures table.

    ``kind`` is a short, stable identifier such as ``no_faces`` or ``bad_header`` by which failures
    are counted; the message says what was found in this file.
    """

    def __init__(self, kind: str, message: str, stage: str = "load") -> None:
        super().__init__(message)
        self.kind, self.message, self.stage = kind, message, stage

    def __reduce__(self) -> tuple[type[MeshError], tuple[str, str, str]]:
        return type(self), (self.kind, self.message, self.stage)


@dataclass(frozen=True)
class Material:
    """Colour of a set of faces. ``double_sided`` is recorded; shading is always two-sided.

    Drawn colour in linear light, clipped at 1: base colour x light + emission, where light is 1 of
    an ``unlit`` material; emission is ``emissive`` x ``emissive_texture``, at ``Mesh.uv`` as the
    base-colour texture is. Vertex colours and alpha do not apply to emission itself; a transparent
    surface covers with both.

    Raises ``MeshError`` (``not_finite``) where a factor is no finite number: renderers look colours
    up by their value.
    """

    base_color: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 1.0)  # linear RGBA
    texture: U8 | None = None  # (H, W, 4) sRGB + alpha
    alpha_mode: AlphaMode = "opaque"
    alpha_cutoff: float = 0.5
    double_sided: bool = True
    unlit: bool = False
    emissive: tuple[float, float, float] = (0.0, 0.0, 0.0)  # linear RGB, strength included
    emissive_texture: U8 | None = None  # (H, W, 4) sRGB; alpha means nothing

    def __post_init__(self) -> None:
        factors = (*self.base_color, *self.emissive, self.alpha_cutoff)
        if not all(map(math.isfinite, factors)):
            raise MeshError("not_finite", "a colour of a material holds NaN or infinity")


@dataclass(frozen=True)
class Mesh:
    """One flattened triangle mesh."""

    vertices: F32  # (V, 3)
    faces: I32  # (F, 3) indices into vertices
    face_material: I32  # (F,) indices into materials
    materials: tuple[Material, ...]
    normals: F32 | None = None  # (V, 3) unit; None: derived from the faces with a crease angle
    uv: F32 | None = None  # (V, 2)
    vertex_color: F32 | None = None  # (V, 4) linear RGBA in [0, 1]
    has_color: bool = False  # the asset itself says a colour (texture, vertex or material)

    def normalised(self) -> Mesh:
        """Centre at the middle of the bounding box, farthest vertex at distance 1.

        Raises ``MeshError`` (``zero_extent``, ``not_finite``) where that is not possible.
        """
        if not np.isfinite(self.vertices).all():
            raise MeshError("not_finite", "vertex positions hold NaN or infinity")
        used = self.vertices[np.unique(self.faces)].astype(np.float64)
        if not len(used):
            raise MeshError("no_faces", "the mesh has no faces")
        centre = (used.min(0) + used.max(0)) / 2
        radius = float(np.linalg.norm(used - centre, axis=1).max())
        # Decoders that fail silently hand back all-zero vertices (trimesh without DracoPy).
        if not np.isfinite(radius) or radius <= 1e-12 * max(1.0, float(np.abs(centre).max())):
            raise MeshError("zero_extent", "all vertices coincide (undecoded or empty geometry)")
        vertices = ((self.vertices.astype(np.float64) - centre) / radius).astype(np.float32)
        return replace(self, vertices=vertices)


@dataclass(frozen=True)
class Cloud:
    """The points of an object that came without a surface, normalised as a mesh is."""

    xyz: F32  # (P, 3)
    rgb: U8 | None = None  # (P, 3) sRGB; None: the source says no colour


def srgb_to_linear(value: NDArray[np.floating]) -> F32:
    """sRGB in [0, 1] to linear light in [0, 1] (IEC 61966-2-1)."""
    value = np.asarray(value, np.float32)
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(
        np.float32
    )


def linear_to_srgb(value: NDArray[np.floating]) -> F32:
    """Linear light in [0, 1] to sRGB in [0, 1] (IEC 61966-2-1)."""
    value = np.clip(np.asarray(value, np.float32), 0, 1)
    return np.where(
        value <= 0.0031308, value * 12.92, 1.055 * np.power(value, 1 / 2.4) - 0.055
    ).astype(np.float32)
