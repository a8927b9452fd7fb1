"""PLY files written value by value, in all three forms, and what is seen of the meshes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.meshes import Limits
from pipeline.points import sample_texture
from pipeline.scene import Mesh, MeshError, linear_to_srgb
from tests.pipeline.gltf_files import png
from tests.pipeline.test_meshes import load_bytes

FORMS = ("ascii", "binary_little_endian", "binary_big_endian")
CODES = {"char": "b", "uchar": "B", "short": "h", "ushort": "H", "int": "i", "uint": "I"}
CODES |= {"float": "f", "double": "d"}
XYZ = "float x, float y, float z"
RGB = "uchar red, uchar green, uchar blue"
CORNERS = "list uchar int vertex_indices"
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
# A unit square in front of +z, and beside it a triangle of half its area.
HOUSE = ((0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (2, 0, 0))
SQUARE, TRIANGLE = (0, 1, 2, 3), (1, 4, 2)

Table = tuple[str, str, Sequence[Sequence[Any]]]  # name, properties, rows; a list is one value


def ply(form: str, *tables: Table, comments: Sequence[str] = ()) -> bytes:
    """A PLY file, written value by value."""
    header = f"ply\nformat {form} 1.0\n" + "".join(f"comment {line}\n" for line in comments)
    body = b""
    order = ">" if form == "binary_big_endian" else "<"
    for name, properties, rows in tables:
        columns = [column.split() for column in properties.split(", ")]
        header += f"element {name} {len(rows)}\n"
        header += "".join(f"property {' '.join(column)}\n" for column in columns)
        for row in rows:
            values: list[tuple[str, Any]] = []
            for column, value in zip(columns, row, strict=True):
                if column[0] == "list":
                    values += [(column[1], len(value)), *((column[2], each) for each in value)]
                else:
                    values.append((column[0], value))
            if form == "ascii":
                body += " ".join(str(value) for _, value in values).encode() + b"\n"
            else:
                for kind, value in values:
                    body += struct.pack(order + CODES[kind], value)
    return (header + "end_header\n").encode() + body


def areas(mesh: Mesh) -> NDArray[np.float64]:
    """Twice the signed area of each face, seen from +z."""
    a, b, c = (mesh.vertices[mesh.faces[:, i]].astype(np.float64) for i in range(3))
    return np.asarray(np.cross(b - a, c - a)[:, 2])


def face_colors(mesh: Mesh) -> list[tuple[int, ...]]:
    """The sRGB colour in the middle of each face."""
    seen = []
    for face, number in zip(mesh.faces, mesh.face_material, strict=True):
        material = mesh.materials[number]
        color = np.array(material.base_color[:3])
        if mesh.vertex_color is not None:
            color = color * mesh.vertex_color[face, :3].mean(axis=0)
        if material.texture is not None:
            assert mesh.uv is not None
            color = (
                color * sample_texture(material.texture, mesh.uv[face].mean(axis=0)[None])[0, :3]
            )
        seen.append(tuple(int(each) for each in np.rint(linear_to_srgb(color) * 255)))
    return seen


def painted(folder: Path, **colors: Sequence[int]) -> None:
    """Images of one colour each."""
    for name, color in colors.items():
        (folder / f"{name}.png").write_bytes(png(np.full((4, 4, 3), color, np.uint8)))


def kind_of(folder: Path, data: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(MeshError) as error:
        load_bytes(folder, "a.ply", data, limits=limits)
    return error.value.kind
