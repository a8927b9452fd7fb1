"""Collects coloured parts and turns them into one normalised mesh."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pipeline.datasets.shapes import materials, primitives
from pipeline.datasets.shapes.primitives import F64, Part
from pipeline.scene import Material, Mesh


class Builder:
    """Receives parts from a class's builder.

    A colour is ``main``, ``second`` (both drawn per object) or a name of the palette. Positions
    and sizes are in the object's own units: +y up, front +z.
    """

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.colors: list[str] = []

    def add(self, part: Part, color: str = "main") -> None:
        """Take one part as it stands."""
        self.parts.append(part)
        self.colors.append(color)

    @contextmanager
    def group(
        self,
        at: ArrayLike = (0, 0, 0),
        rot: F64 | None = None,
        scale: ArrayLike | None = None,
    ) -> Iterator[None]:
        """Everything added inside is scaled, rotated and shifted together."""
        first = len(self.parts)
        yield
        self.parts[first:] = [part.moved(at, rot, scale) for part in self.parts[first:]]

    def box(
        self,
        size: ArrayLike,
        at: ArrayLike = (0, 0, 0),
        color: str = "main",
        rot: F64 | None = None,
    ) -> None:
        """Box of ``size`` with its centre ``at``."""
        self.add(primitives.box(size).moved(at, rot), color)

    def soft(
        self,
        size: ArrayLike,
        at: ArrayLike = (0, 0, 0),
        color: str = "main",
        rot: F64 | None = None,
        roundness: float = 0.4,
    ) -> None:
        """Box with round edges: a superellipsoid of ``size`` with its centre ``at``."""
        self.add(primitives.soft_box(size, roundness).moved(at, rot), color)

    def cyl(
        self,
        start: ArrayLike,
        stop: ArrayLike,
        radius: float,
        top: float | None = None,
        color: str = "main",
        n: int = 14,
    ) -> None:
        """Cylinder or truncated cone between two points."""
        self.add(primitives.cylinder(start, stop, radius, top, n), color)

    def ball(
        self,
        radii: ArrayLike,
        at: ArrayLike = (0, 0, 0),
        color: str = "main",
        rot: F64 | None = None,
        n: int = 16,
    ) -> None:
        """Ellipsoid with its centre ``at``."""
        self.add(primitives.ellipsoid(radii, n).moved(at, rot), color)

    def dome(
        self,
        radii: ArrayLike,
        at: ArrayLike = (0, 0, 0),
        color: str = "main",
        rot: F64 | None = None,
    ) -> None:
        """Upper half of an ellipsoid that stands ``at``."""
        self.add(primitives.dome(radii).moved(at, rot), color)

    def lathe(
        self,
        profile: ArrayLike,
        at: ArrayLike = (0, 0, 0),
        color: str = "main",
        rot: F64 | None = None,
        n: int = 20,
    ) -> None:
        """Solid of revolution about y."""
        self.add(primitives.lathe(profile, n).moved(at, rot), color)

    def tube(
        self,
        path: ArrayLike,
        radius: float | ArrayLike,
        color: str = "main",
        n: int = 8,
        closed: bool = False,
        flatten: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        """Circle swept along a path (k, 3)."""
        points = np.asarray(path, np.float64)
        self.add(primitives.tube(points, radius, n, closed, flatten), color)

    def ring(
        self,
        radius: float,
        thickness: float,
        at: ArrayLike = (0, 0, 0),
        color: str = "main",
        axis: str = "y",
        n: int = 20,
    ) -> None:
        """Torus: ``thickness`` is the radius of its tube."""
        plane = {"x": "yz", "y": "zx", "z": "xy"}[axis]
        points = primitives.lift(primitives.arc(radius, 0, 360, n)[:-1], plane)
        self.add(primitives.tube(points, thickness, 8, closed=True).moved(at), color)

    def extrude(
        self,
        polygon: ArrayLike,
        depth: float,
        at: ArrayLike = (0, 0, 0),
        color: str = "main",
        axis: str = "z",
        rot: F64 | None = None,
        smooth: bool = False,
    ) -> None:
        """Prism over a counter-clockwise polygon; see ``primitives.extrude`` for the axes."""
        self.add(primitives.extrude(polygon, depth, axis, smooth).moved(at, rot), color)

    def loft(
        self,
        sections: ArrayLike,
        at: ArrayLike = (0, 0, 0),
        color: str = "main",
        rot: F64 | None = None,
        roundness: float = 1.0,
        n: int = 16,
    ) -> None:
        """Skin over ellipses across z, rows (z, x, y, rx, ry)."""
        self.add(primitives.loft(sections, n, roundness).moved(at, rot), color)

    def blob(
        self,
        radii: ArrayLike,
        at: ArrayLike = (0, 0, 0),
        color: str = "main",
        amount: float = 0.15,
        seed: int = 0,
    ) -> None:
        """Lumpy ellipsoid."""
        self.add(primitives.blob(radii, amount, seed).moved(at), color)

    def wheel(
        self, radius: float, width: float, at: ArrayLike, color: str = "black", hub: str = "silver"
    ) -> None:
        """Tyre and hub about the x axis."""
        x, y, z = np.asarray(at, np.float64)
        self.cyl((x - width / 2, y, z), (x + width / 2, y, z), radius, color=color, n=18)
        wide = width * 0.56
        self.cyl((x - wide, y, z), (x + wide, y, z), radius * 0.5, color=hub, n=12)

    def finish(self, params: Mapping[str, Any]) -> Mesh:
        """The normalised mesh.

        ``params`` gives the colours, the material, the yaw in degrees and the stretch (3,).
        """
        slots = list(dict.fromkeys(self.colors))
        whole = primitives.concatenate(self.parts)
        turned = whole.moved(rot=primitives.rotation(y=params["yaw"])).moved(
            scale=params["stretch"]
        )
        per_part = [slots.index(color) for color in self.colors]
        face_material = np.repeat(per_part, [len(part.faces) for part in self.parts])
        vertices, normals, faces = turned.vertices, turned.normals, turned.faces
        uv = None
        surfaces = [_material(slot, params) for slot in slots]
        if any(surface.texture is not None for surface in surfaces):
            index, faces, uv = _box_projection(whole.vertices, faces, params["pattern_scale"])
            vertices, normals = vertices[index], normals[index]
        return Mesh(
            vertices.astype(np.float32),
            faces.astype(np.int32),
            face_material.astype(np.int32),
            tuple(surfaces),
            normals=normals.astype(np.float32),
            uv=uv,
            has_color=True,
        ).normalised()


def _material(slot: str, params: Mapping[str, Any]) -> Material:
    if slot == "second":
        return materials.plain(params["second_hsv"])
    if slot != "main":
        return materials.named(slot)
    if params["material"] == "plain":
        return materials.plain(params["color_hsv"])
    return materials.textured(
        params["material"], params["color_hsv"], params["pattern_hsv"], params["detail"]
    )


def _box_projection(
    vertices: F64, faces: primitives.I32, scale: float
) -> tuple[primitives.I32, primitives.I32, primitives.F32]:
    """Texture coordinates by projection along the axis that each face looks along most.

    Returns the old index of every new vertex (one per old vertex and axis in use), the faces in
    new indices and uv (V', 2). One texture covers ``scale`` of the object's largest extent.
    """
    corners = vertices[faces]
    facing = np.abs(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    axis = facing.argmax(1)
    used, new_faces = np.unique(faces * 3 + axis[:, None], return_inverse=True)
    index, plane = used // 3, used % 3
    columns = np.array([[2, 1], [0, 2], [0, 1]])[plane]
    low, high = vertices.min(0), vertices.max(0)
    uv = np.take_along_axis(vertices[index] - low, columns, axis=1) / (scale * (high - low).max())
    return index, new_faces.reshape(-1, 3).astype(np.int32), uv.astype(np.float32)
