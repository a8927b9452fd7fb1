"""The container of glTF 2.0: GLB chunks, buffers, buffer views and accessors as numpy arrays.

Every length and offset in the file is checked against the bytes that are there before anything is
allocated (glTF 2.0 specification, sections 3.6 and 4.4).
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.meshes.draco import decode_draco
from pipeline.meshes.files import References
from pipeline.meshes.parts import Limits, require
from pipeline.scene import MeshError

Array = NDArray[Any]

_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_COLUMNS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_MAGIC, _JSON, _BIN = 0x46546C67, 0x4E4F534A, 0x004E4942
_MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")


def split_glb(data: bytes, limits: Limits) -> tuple[bytes, bytes]:
    """The JSON chunk and the binary chunk (empty where there is none) of a GLB file.

    Raises ``MeshError`` with kind ``bad_header`` where a header contradicts the file.
    """
    require(
        len(data) >= 20 and struct.unpack_from("<I", data)[0] == _MAGIC,
        "bad_header",
        "not a GLB file: it does not start with the glTF magic",
    )
    version, length = struct.unpack_from("<II", data, 4)
    require(version == 2, "unsupported_feature", f"glTF version {version}; only 2 is supported")
    require(
        length <= len(data),
        "bad_header",
        f"the GLB header claims {length:,} bytes, the file has {len(data):,}",
    )
    chunks: dict[int, bytes] = {}
    offset = 12
    while offset + 8 <= length:
        size, kind = struct.unpack_from("<II", data, offset)
        offset += 8
        require(
            offset + size <= len(data),
            "bad_header",
            f"a GLB chunk claims {size:,} bytes, {len(data) - offset:,} are left in the file",
        )
        if kind == _JSON:
            require(size <= limits.json_bytes, "too_large", f"{size:,} bytes of JSON")
        chunks.setdefault(kind, data[offset : offset + size])
        offset += size
    require(_JSON in chunks, "bad_header", "the GLB file has no JSON chunk")
    return chunks[_JSON], chunks.get(_BIN, b"")


def parse_json(text: bytes, limits: Limits) -> dict[str, Any]:
    """The JSON object of a glTF file. Raises ``MeshError`` with kind ``bad_header``."""
    require(len(text) <= limits.json_bytes, "too_large", f"{len(text):,} bytes of JSON")
    try:
        value = json.loads(text.decode("utf-8-sig"))
    except RecursionError:
        raise MeshError("bad_header", "the glTF JSON is nested too deeply") from None
    except ValueError as error:
        raise MeshError("bad_header", f"the glTF JSON cannot be read: {error}") from None
    require(isinstance(value, dict), "bad_header", "the glTF JSON is no object")
    version = str(value.get("asset", {}).get("version", ""))
    require(version.startswith("2."), "unsupported_feature", f"glTF version {version or '?'}")
    result: dict[str, Any] = value
    return result


def item(document: dict[str, Any], key: str, index: Any) -> dict[str, Any]:
    """``document[key][index]``, or ``bad_header`` where the file refers to nothing."""
    found = document.get(key, [])
    if type(index) is not int or not isinstance(found, list) or not 0 <= index < len(found):
        raise MeshError("bad_header", f"refers to {key}[{index!r}], which does not exist")
    entry = found[index]
    if not isinstance(entry, dict):
        raise MeshError("bad_header", f"{key}[{index}] is no object")
    return entry


def whole(entry: dict[str, Any], key: str, default: int | None = None) -> int:
    """A non-negative integer property of a glTF object, or ``bad_header``."""
    value = entry.get(key, default)
    if type(value) is not int or value < 0:
        raise MeshError("bad_header", f"{key} is {value!r}, not a non-negative integer")
    return value


class GltfData:
    """Buffers, views and accessors of one document, read when asked for."""

    def __init__(
        self, document: dict[str, Any], binary: bytes, references: References, limits: Limits
    ) -> None:
        self.document = document
        self._binary = binary
        self._references = references
        self._limits = limits
        self._buffers: dict[int, bytes] = {}
        self._expanded: dict[int, bytes] = {}  # decompressed buffer views
        self._room = limits.file_bytes  # for all of them together

    def resource(self, uri: Any, missing: str) -> bytes:
        """Bytes of a ``data:`` URI or of a file in the asset's folder."""
        require(isinstance(uri, str), "bad_header", f"uri is {uri!r}, not a text")
        if uri.startswith("data:"):
            head, _, body = uri.partition(",")
            require(head.endswith(";base64"), "unsupported_feature", "a data URI is not base64")
            try:
                return base64.b64decode(body, validate=True)
            except (binascii.Error, ValueError):
                raise MeshError("bad_header", "a data URI holds damaged base64") from None
        return self._references.read(uri, missing=missing)

    def _buffer(self, index: int) -> bytes:
        if index not in self._buffers:
            entry = item(self.document, "buffers", index)
            if "uri" in entry:
                data = self.resource(entry["uri"], "missing_buffer")
            else:
                require(
                    index == 0 and bool(self._binary),
                    "undecoded",
                    f"buffers[{index}] has no data (a fallback of a compressed buffer?)",
                )
                data = self._binary
            claimed = whole(entry, "byteLength")
            require(
                claimed <= len(data),
                "bad_header",
                f"buffers[{index}] claims {claimed:,} bytes, {len(data):,} are there",
            )
            self._buffers[index] = data
        return self._buffers[index]

    def view(self, index: Any) -> memoryview:
        """The bytes of a buffer view."""
        entry = item(self.document, "bufferViews", index)
        length = whole(entry, "byteLength")
        for name in _MESHOPT:
            compressed = entry.get("extensions", {}).get(name)
            if compressed is not None:
                data = self._expand(index, compressed, name)
                require(
                    length <= len(data),
                    "bad_header",
                    f"bufferViews[{index}] claims {length:,} bytes, {name} holds {len(data):,}",
                )
                return memoryview(data)[:length]
        return self._range(entry, f"bufferViews[{index}]")

    def _range(self, entry: dict[str, Any], what: str) -> memoryview:
        """The bytes of a buffer that an object with buffer, byteOffset and byteLength names."""
        data = self._buffer(whole(entry, "buffer"))
        offset, length = whole(entry, "byteOffset", 0), whole(entry, "byteLength")
        require(
            offset + length <= len(data),
            "bad_header",
            f"{what} claims bytes {offset:,} to {offset + length:,} of {len(data):,}",
        )
        return memoryview(data)[offset : offset + length]

    def _expand(self, index: int, compressed: dict[str, Any], name: str) -> bytes:
        """The decompressed bytes of a buffer view; see ``pipeline.meshes.meshopt``."""
        if index not in self._expanded:
            # Here, since it takes numba, which most files have no use for.
            from pipeline.meshes.meshopt import decode_view

            what = f"{name} of bufferViews[{index}]"
            count, stride = whole(compressed, "count"), whole(compressed, "byteStride")
            self._room -= count * stride
            require(self._room >= 0, "too_large", f"{what} unfolds to {count * stride:,} bytes")
            self._expanded[index] = decode_view(
                bytes(self._range(compressed, what)),
                compressed.get("mode"),
                compressed.get("filter", "NONE"),
                count,
                stride,
            )
        return self._expanded[index]

    def _strided(
        self, view_index: Any, offset: int, count: int, dtype: np.dtype[Any], columns: int
    ) -> Array:
        view = self.view(view_index)
        row = dtype.itemsize * columns
        stride = whole(item(self.document, "bufferViews", view_index), "byteStride", row) or row
        needed = offset + (count - 1) * stride + row if count else 0
        require(
            stride >= row and needed <= len(view),
            "bad_header",
            f"an accessor claims {needed:,} bytes, its buffer view has {len(view):,}",
        )
        if not count:
            return np.zeros((0, columns), dtype)
        return np.ndarray(
            (count, columns), dtype, buffer=view, offset=offset, strides=(stride, dtype.itemsize)
        )

    def accessor(self, index: Any, *, zeros: bool = False) -> Array:
        """An accessor as (count, columns). Integers marked ``normalized`` become floats.

        ``zeros``: one without data is all zeros, as the specification has it; otherwise it is
        taken for geometry that nobody decoded. Raises ``MeshError``: ``bad_header`` where it claims
        more than is there, ``undecoded`` where it has no data of its own, ``too_large`` past the
        limits.
        """
        entry = item(self.document, "accessors", index)
        count = whole(entry, "count")
        require(
            count <= 3 * max(self._limits.faces, self._limits.vertices),
            "too_large",
            f"accessors[{index}] claims {count:,} elements",
        )
        dtype, columns = _layout(entry, index)
        sparse = entry.get("sparse")
        if "bufferView" in entry:
            offset = whole(entry, "byteOffset", 0)
            values = self._strided(entry["bufferView"], offset, count, dtype, columns)
        else:
            require(
                sparse is not None or zeros,
                "undecoded",
                f"accessors[{index}] has no data: the geometry was not decoded",
            )
            require(
                count <= self._limits.vertices, "too_large", f"accessors[{index}]: {count:,} zeros"
            )
            values = np.zeros((count, columns), dtype)
        if sparse is not None:
            values = self._apply_sparse(values.copy(), sparse, dtype, columns)
        return _normalise(values) if entry.get("normalized") else values

    def _apply_sparse(
        self, values: Array, sparse: dict[str, Any], dtype: np.dtype[Any], columns: int
    ) -> Array:
        count = whole(sparse, "count")
        require(count <= len(values), "bad_header", "a sparse accessor replaces more than it has")
        where, what = sparse["indices"], sparse["values"]
        index_type, _ = _layout({**where, "type": "SCALAR"}, "sparse")
        rows = self._strided(
            where["bufferView"], whole(where, "byteOffset", 0), count, index_type, 1
        )[:, 0].astype(np.int64)
        require(
            bool(((rows >= 0) & (rows < len(values))).all()), "bad_index", "a sparse index is off"
        )
        values[rows] = self._strided(
            what["bufferView"], whole(what, "byteOffset", 0), count, dtype, columns
        )
        return values

    def draco(self, extension: dict[str, Any]) -> tuple[dict[str, Array], Array]:
        """Attributes by name and face indices (F, 3) of a Draco-compressed primitive.

        Raises as ``pipeline.meshes.draco.decode_draco`` does.
        """
        names = {ident: name for name, ident in extension["attributes"].items()}
        return decode_draco(bytes(self.view(extension.get("bufferView"))), names, self._limits)

    def normalise_like(self, values: Array, accessor_index: Any) -> Array:
        """Decoded values as floats where the accessor says that they are normalised integers."""
        entry = item(self.document, "accessors", accessor_index)
        return _normalise(values) if entry.get("normalized") else values


def _layout(entry: dict[str, Any], index: Any) -> tuple[np.dtype[Any], int]:
    component, shape = entry.get("componentType"), entry.get("type")
    if component not in _COMPONENTS or shape not in _COLUMNS:
        raise MeshError("bad_header", f"accessors[{index}] has type {shape!r} of {component!r}")
    return np.dtype(_COMPONENTS[component]), _COLUMNS[shape]


def _normalise(values: Array) -> Array:
    """Integers to floats in [0, 1] or [-1, 1] (glTF 2.0, section 3.6.2.2)."""
    if values.dtype.kind not in "iu":
        return values
    scaled = values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    return np.asarray(np.maximum(scaled, -1.0))
