"""PLY and STL through trimesh, their headers checked first; OFF read here."""

from __future__ import annotations

import io
import itertools
import re
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.meshes.files import References
from pipeline.meshes.parts import (
    F64,
    PLAIN,
    WHITE,
    Limits,
    Part,
    Surface,
    check_counts,
    fan,
    require,
)
from pipeline.meshes.textures import decode_texture
from pipeline.meshes.wavefront import quiet_parsing
from pipeline.scene import Material, MeshError, srgb_to_linear

_PLY_SIZES = {"char": 1, "uchar": 1, "int8": 1, "uint8": 1, "short": 2, "ushort": 2}
_PLY_SIZES |= {"int16": 2, "uint16": 2, "int": 4, "uint": 4, "int32": 4, "uint32": 4, "float": 4}
_PLY_SIZES |= {"float32": 4, "double": 8, "float64": 8}
_PLY_HEADER_BYTES = 2**16


def read_ply(data: bytes, references: References, limits: Limits) -> list[Part]:
    """The part of a PLY file, with vertex or face colours (sRGB) or a texture."""
    from trimesh.exchange.ply import load_ply

    image_name = check_ply_header(data, limits)
    with quiet_parsing():
        # The texture is read here, under the limits, and not by the library.
        loaded: dict[str, Any] = load_ply(io.BytesIO(data), skip_materials=True)
    if loaded.get("faces") is None:
        raise MeshError("no_faces", "the file holds points without faces")
    vertices, faces = np.asarray(loaded["vertices"]), fan(loaded["faces"])
    visual, normals = loaded.get("visual"), loaded.get("vertex_normals")
    uv = None if visual is None else visual.uv
    if image_name is not None and uv is not None:
        encoded = references.read(image_name, missing="missing_texture", search=True)
        texture = decode_texture(encoded, limits, f"texture {image_name[:80]!r}")
        surface = Surface(Material((1.0, 1.0, 1.0, 1.0), texture))
        return [Part(vertices, faces, surface, normals, uv)]
    color = loaded.get("vertex_colors")
    if color is not None and len(color) == len(vertices):
        return [Part(vertices, faces, WHITE, normals, None, _linear_rgba(np.asarray(color)))]
    color = loaded.get("face_colors")
    if color is not None and len(color) == len(faces):
        split = np.arange(3 * len(faces)).reshape(-1, 3)
        rgba = np.repeat(_linear_rgba(np.asarray(color)), 3, axis=0)
        require(
            bool(len(faces)) and faces.min() >= 0 and faces.max() < len(vertices),
            "bad_index",
            f"a face refers to vertex {faces.max(initial=0)}, there are {len(vertices)}",
        )
        return [Part(vertices[faces.ravel()], split, WHITE, None, None, rgba)]
    return [Part(vertices, faces, PLAIN, normals)]


def check_ply_header(data: bytes, limits: Limits) -> str | None:
    """Compare what the header claims with the bytes that follow; the texture's name if any."""
    require(data[:4].strip() == b"ply", "bad_header", "not a PLY file: it does not start with ply")
    end = re.search(rb"\nend_header[ \t\r]*\n", data[:_PLY_HEADER_BYTES])
    if end is None:
        raise MeshError("bad_header", "the PLY header has no end_header")
    body = len(data) - end.end()
    lines = data[: end.start()].decode("ascii", "replace").split("\n")
    ascii_body = any(line.split()[:2] == ["format", "ascii"] for line in lines)
    image_name = None
    needed, count = 0, 0
    for line in lines:
        words = line.split()
        if "texturefile" in line.lower():
            image_name = line[line.lower().index("texturefile") + 11 :].strip()
        if not words:
            raise MeshError("bad_header", "the PLY header has an empty line")
        if words[0] == "element":
            if len(words) != 3 or not words[2].isdigit():
                raise MeshError("bad_header", f"the PLY header says {line.strip()[:80]!r}")
            count = int(words[2])
            if words[1] == "vertex":
                check_counts(limits, vertices=count)
            elif words[1] == "face":
                check_counts(limits, faces=count)
        elif words[0] == "property":
            # The least that one value takes: a digit and a blank, or the type's bytes; of a list
            # its count alone.
            kind = words[2] if words[1:2] == ["list"] and len(words) == 5 else words[1]
            require(kind in _PLY_SIZES, "bad_header", f"the PLY header has a type {kind[:40]!r}")
            needed += count * (2 if ascii_body else _PLY_SIZES[kind])
    require(
        needed <= body + 1,  # the last ASCII value needs no blank
        "bad_header",
        f"the PLY header claims at least {needed:,} bytes of data, {body:,} follow",
    )
    return image_name


def _linear_rgba(color: NDArray[Any]) -> F64:
    """sRGB colours as uint8 or floats, with or without alpha, to linear RGBA."""
    values = np.asarray(color, np.float64)
    if color.dtype.kind in "iu" or values.max(initial=0) > 1:
        values = values / 255
    rgba = np.ones((len(values), 4))
    rgba[:, :3] = srgb_to_linear(np.clip(values[:, :3], 0, 1))
    if values.shape[1] > 3:
        rgba[:, 3] = values[:, 3]
    return rgba


def read_stl(data: bytes, limits: Limits) -> list[Part]:
    """The parts of a binary or ASCII STL file; vertices at equal positions are welded."""
    from trimesh.exchange.stl import load_stl

    # Binary files may begin with "solid" too: their size tells.
    count = struct.unpack_from("<I", data, 80)[0] if len(data) >= 84 else 0
    size = 84 + 50 * count
    if len(data) >= 84 and size == len(data):
        check_counts(limits, faces=count)
    elif data.lstrip()[:5].lower() == b"solid":
        require(b"\0" not in data, "bad_header", "an ASCII STL file that holds binary data")
        check_counts(limits, faces=data.count(b"endfacet") or data.count(b"ENDFACET"))
    elif len(data) > size > 84:
        check_counts(limits, faces=count)
        data = data[:size]  # some exporters leave padding at the end
    else:
        raise MeshError(
            "bad_header",
            f"not an STL file: its count asks for {size:,} bytes, it has {len(data):,}",
        )
    with quiet_parsing():
        loaded: dict[str, Any] = load_stl(io.BytesIO(data))
    solids = loaded["geometry"].values() if "geometry" in loaded else [loaded]
    return [_welded(solid["vertices"], solid["faces"]) for solid in solids if "faces" in solid]


def _welded(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> Part:
    positions, inverse = np.unique(np.asarray(vertices, np.float64), axis=0, return_inverse=True)
    return Part(positions, inverse.reshape(-1)[np.asarray(faces)])


_OFF_HEADER = re.compile(rb"^\s*(ST)?(C)?(N)?(4)?(n)?OFF\b|^\s*OFF(?=\d)", re.ASCII)


def read_off(data: bytes, limits: Limits) -> list[Part]:
    """The part of an ASCII OFF file (Geomview), with vertex or face colours (sRGB) if it has any.

    The counts may stand on the line of the keyword, even without a blank, as in ModelNet.
    """
    text = re.sub(rb"#[^\n]*", b"", data)
    header = _OFF_HEADER.match(text)
    if header is None:
        raise MeshError("bad_header", "not an OFF file: it does not start with OFF")
    require(header[4] is None and header[5] is None, "unsupported_feature", "an OFF file in 4-D")
    require(b"\0" not in data, "unsupported_feature", "a binary OFF file")
    lines = [line for line in text[header.end() :].splitlines() if line.strip()]
    counts = lines[0].split() if lines else []
    require(
        len(counts) >= 2 and all(word.isdigit() for word in counts[:2]),
        "bad_header",
        "the OFF file has no counts after its keyword",
    )
    n_vertices, n_faces = int(counts[0]), int(counts[1])
    check_counts(limits, vertices=n_vertices, faces=n_faces)
    require(
        n_vertices + n_faces <= len(lines) - 1,
        "bad_header",
        f"the OFF header claims {n_vertices:,} vertices and {n_faces:,} faces, "
        f"{len(lines) - 1:,} lines follow",
    )
    require(n_vertices > 0 and n_faces > 0, "no_faces", "the OFF file holds no faces")
    table = [line.split() for line in lines[1 : 1 + n_vertices]]
    vertices = np.array([row[:3] for row in table], np.float64)
    color = None
    if header[2]:  # COFF: rgb or rgba after position and normal
        start = 6 if header[3] else 3
        color = _off_colors([row[start : start + 4] for row in table])
    rows = [line.split() for line in lines[1 + n_vertices : 1 + n_vertices + n_faces]]
    return _off_parts(vertices, rows, color)


def _off_parts(vertices: F64, rows: list[list[bytes]], color: F64 | None) -> list[Part]:
    sizes = [int(row[0]) for row in rows]
    pieces, trailing = [], []
    # Runs of faces of one size keep the order of the file.
    position = 0
    for size, run in itertools.groupby(sizes):
        length = len(list(run))
        block = rows[position : position + length]
        position += length
        if size < 3:
            continue
        # A size is a claim: what is made of it must be there.
        short = min(len(row) for row in block) - 1
        require(
            short >= size, "bad_header", f"a face claims {size:,} corners, {short:,} numbers follow"
        )
        pieces.append(fan(np.array([row[1 : size + 1] for row in block], np.int64)))
        trailing += [row[size + 1 :] for row in block for _ in range(size - 2)]
    faces = np.concatenate(pieces) if pieces else np.zeros((0, 3), np.int64)
    if color is not None:
        return [Part(vertices, faces, WHITE, color=color)]
    if trailing and all(len(row) in (3, 4) for row in trailing):
        require(
            int(faces.min()) >= 0 and int(faces.max()) < len(vertices),
            "bad_index",
            f"a face refers to vertex {int(faces.max())}, there are {len(vertices)}",
        )
        rgba = np.repeat(_off_colors(trailing), 3, axis=0)
        split = np.arange(3 * len(faces)).reshape(-1, 3)
        return [Part(vertices[faces.ravel()], split, WHITE, color=rgba)]
    return [Part(vertices, faces)]


def _off_colors(rows: list[list[bytes]]) -> F64:
    """Colours of an OFF file: integers 0-255, or floats 0-1 where a decimal point says so."""
    width = min(len(row) for row in rows)
    require(width in (3, 4), "parse_error", "the OFF file has colours of an unknown form")
    values = np.array([row[:width] for row in rows], np.float64)
    require(bool(np.isfinite(values).all()), "not_finite", "colours hold NaN or infinity")
    floats = any(b"." in word for row in rows[:1000] for word in row)
    return _linear_rgba(values if floats else np.clip(values, 0, 255).astype(np.int64))
