"""Geometry compressed with KHR_draco_mesh_compression, through DracoPy.

The sizes that a bitstream claims are read from its header first (Draco bitstream specification
2.2, sections "Draco header", "Metadata" and "Connectivity"), since the decoder takes the memory for
them whatever they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.meshes.parts import Limits, check_counts, require
from pipeline.scene import MeshError

Array = NDArray[Any]

_MAGIC, _MESH, _SEQUENTIAL, _EDGEBREAKER = b"DRACO", 1, 0, 1
_HAS_METADATA = 0x8000
_MAX_DEPTH = 16  # of nested metadata


class _Header:
    """Reads the numbers at the start of a bitstream."""

    def __init__(self, data: bytes) -> None:
        self._data, self._pos = data, 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._pos:
            raise MeshError("undecoded", "the Draco data is cut off")
        self._pos += count
        return self._data[self._pos - count : self._pos]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise MeshError("undecoded", "the Draco data holds a number without an end")

    def skip_metadata(self, depth: int = 0) -> None:
        require(depth < _MAX_DEPTH, "undecoded", "the Draco metadata is nested too deeply")
        for _ in range(self.varint()):
            self.take(self.byte())
            self.take(self.varint())
        for _ in range(self.varint()):
            self.take(self.byte())
            self.skip_metadata(depth + 1)


def claimed_sizes(data: bytes) -> tuple[int, int]:
    """Vertices and faces that a Draco mesh says it has.

    Raises ``MeshError`` with kind ``undecoded`` where it is no Draco mesh of version 2.2.
    """
    header = _Header(data)
    require(header.take(5) == _MAGIC, "undecoded", "no Draco data: the magic is missing")
    major, minor, kind, method = header.take(4)
    require(
        (major, minor) == (2, 2) and kind == _MESH and method in (_SEQUENTIAL, _EDGEBREAKER),
        "undecoded",
        f"Draco bitstream {major}.{minor}, type {kind}, method {method}: not a mesh of version 2.2",
    )
    if int.from_bytes(header.take(2), "little") & _HAS_METADATA:
        for _ in range(header.varint()):
            header.varint()
            header.skip_metadata()
        header.skip_metadata()
    if method == _SEQUENTIAL:
        faces, vertices = header.varint(), header.varint()
    else:
        header.byte()  # how it was traversed
        vertices, faces = header.varint(), header.varint()
    return vertices, faces


def decode_draco(
    data: bytes, names: dict[int, str], limits: Limits
) -> tuple[dict[str, Array], NDArray[np.int64]]:
    """Attributes by name, each (vertices, columns), and face indices (F, 3).

    ``names`` are the names of attributes by Draco's unique ids. Raises ``MeshError``:
    ``needs_library`` without DracoPy, ``too_large`` past the limits, ``undecoded`` where the data
    cannot be decoded; never zeros in its place.
    """
    try:
        import DracoPy
    except ImportError:
        raise MeshError(
            "needs_library", "Draco-compressed geometry: install the package DracoPy"
        ) from None
    vertices, faces = claimed_sizes(data)
    check_counts(limits, faces=faces, vertices=vertices)
    try:
        decoded = DracoPy.decode(data)
        attributes = {
            names[attribute["unique_id"]]: np.asarray(attribute["data"])
            for attribute in decoded.attributes
            if attribute["unique_id"] in names
        }
        triangles = np.asarray(decoded.faces, np.int64).reshape(-1, 3)
    except Exception as error:  # the decoder raises anything on damaged bytes
        raise MeshError(
            "undecoded", f"Draco-compressed geometry cannot be decoded: {error}"
        ) from None
    require("POSITION" in attributes, "undecoded", "the Draco data holds no positions")
    return attributes, triangles
