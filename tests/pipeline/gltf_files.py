"""Small glTF documents made by hand, for the tests of the readers."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_COMPONENT = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
_SHAPE = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}

CUBE_CORNERS = np.array(
    [[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32
) * [1.0, 2.0, 3.0]
# Counter-clockwise seen from outside.
CUBE_FACES = np.array(
    [
        [0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
        [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3],
    ]
)  # fmt: skip


class Builder:
    """Collects buffer views and accessors; ``document`` may be edited freely before ``glb``."""

    def __init__(self) -> None:
        self.binary = b""
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0"},
            "bufferViews": [],
            "accessors": [],
            "meshes": [],
            "nodes": [],
            "scenes": [{"nodes": []}],
            "scene": 0,
        }

    def view(self, data: bytes, **extra: Any) -> int:
        self.binary += b"\0" * (-len(self.binary) % 4)
        entry = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data), **extra}
        self.binary += data
        self.document["bufferViews"].append(entry)
        return len(self.document["bufferViews"]) - 1

    def accessor(self, values: NDArray[Any] | Sequence[Any], dtype: str, **extra: Any) -> int:
        array = np.asarray(values, "<" + dtype)
        columns = 1 if array.ndim == 1 else array.shape[1]
        entry = {
            "bufferView": self.view(array.tobytes()),
            "componentType": _COMPONENT[dtype],
            "count": len(array),
            "type": _SHAPE[columns],
            **extra,
        }
        self.document["accessors"].append(entry)
        return len(self.document["accessors"]) - 1

    def mesh(
        self,
        positions: Any,
        faces: Any = None,
        attributes: dict[str, int] | None = None,
        **primitive: Any,
    ) -> int:
        """A mesh of one primitive, not yet placed."""
        entry: dict[str, Any] = {
            "attributes": {"POSITION": self.accessor(positions, "f4"), **(attributes or {})},
            **primitive,
        }
        if faces is not None:
            entry["indices"] = self.accessor(np.ravel(faces), "u2")
        self.document["meshes"].append({"primitives": [entry]})
        return len(self.document["meshes"]) - 1

    def node(self, *, root: bool = True, **node: Any) -> int:
        self.document["nodes"].append(node)
        index = len(self.document["nodes"]) - 1
        if root:
            self.document["scenes"][0]["nodes"].append(index)
        return index

    def material(self, **material: Any) -> int:
        materials = self.document.setdefault("materials", [])
        materials.append(material)
        return len(materials) - 1

    def texture(self, encoded: bytes, **texture: Any) -> int:
        images = self.document.setdefault("images", [])
        images.append({"bufferView": self.view(encoded), "mimeType": "image/png"})
        textures = self.document.setdefault("textures", [])
        textures.append({"source": len(images) - 1, **texture})
        return len(textures) - 1

    def glb(self) -> bytes:
        self.document.setdefault("buffers", [{"byteLength": len(self.binary)}])
        return pack_glb(self.document, self.binary)


def pack_glb(document: dict[str, Any], binary: bytes = b"") -> bytes:
    """A GLB file of a document and its binary chunk."""
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
    if binary:
        chunks += struct.pack("<II", len(binary), 0x004E4942) + binary
    return struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks


def cube_glb(**node: Any) -> bytes:
    """A box of half sides 1, 2, 3 with outward winding, placed by one node."""
    builder = Builder()
    builder.node(mesh=builder.mesh(CUBE_CORNERS, CUBE_FACES), **node)
    return builder.glb()


def png(pixels: NDArray[np.uint8]) -> bytes:
    """An encoded PNG of (H, W, 3 or 4) pixels."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def quad_glb(
    texture: bytes, uv: Any = ((0, 1), (1, 1), (1, 0), (0, 0)), **info: Any
) -> tuple[Builder, bytes]:
    """A unit quad in the xy plane; by default the image's bottom left is at (0, 0)."""
    builder = Builder()
    material = builder.material(
        pbrMetallicRoughness={"baseColorTexture": {"index": builder.texture(texture), **info}}
    )
    mesh = builder.mesh(
        [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]],
        [[0, 1, 2], [0, 2, 3]],
        {"TEXCOORD_0": builder.accessor(np.array(uv, np.float32), "f4")},
        material=material,
    )
    builder.node(mesh=mesh)
    return builder, builder.glb()
