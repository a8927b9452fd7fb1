"""PLY, STL and OFF: what their columns mean. STL is read by trimesh, its counts checked first."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.meshes.files import References
from pipeline.meshes.parts import (
    F64,
    I64,
    WHITE,
    Limits,
    Part,
    Surface,
    check_counts,
    quiet_parsing,
    require,
)
from pipeline.meshes.ply import (
    COLOR_NAMES,
    Column,
    Element,
    Lists,
    list_triangles,
    read_elements,
    read_header,
    strip_triangles,
    whole,
)
from pipeline.meshes.polygons import triangulate
from pipeline.meshes.textures import decode_texture
from pipeline.scene import Material, MeshError, srgb_to_linear

_NORMALS = ("nx", "ny", "nz")
_UV_NAMES = (("texture_u", "texture_v"), ("u", "v"), ("s", "t"))
_INDICES = ("vertex_index", "vertex_indices")
_ALPHAS = ("alpha", "alpha", "diffuse_alpha")  # beside each of COLOR_NAMES
_COLORS = frozenset(name for names in (*COLOR_NAMES, _ALPHAS) for name in names)
_VERTEX = _COLORS.union(("x", "y", "z"), _NORMALS, *_UV_NAMES)


def read_ply(data: bytes, references: References, limits: Limits) -> list[Part]:
    """The parts of a PLY file: with textures, else vertex or face colours (sRGB), or plain.

    Polygons and strips become triangles. Several textures are told apart by ``texnumber``, as
    MeshLab does; ``unsupported_feature`` without it.
    """
    header = read_header(data, limits)
    corners = {element.name: _corners(element) for element in header.elements}
    polygons, strips = corners.get("face", ""), corners.get("tristrips", "")
    wanted = {"vertex": _VERTEX, "tristrips": frozenset((strips,))}
    wanted["face"] = _COLORS.union((polygons, "texcoord", "texnumber"))
    found = read_elements(data, header, wanted)
    tables = []
    if "face" in found:
        tables.append((_lists(found["face"], polygons), found["face"]))
    if "tristrips" in found:
        triangles = strip_triangles(_lists(found["tristrips"], strips), limits)
        tables.append((Lists(np.full(len(triangles), 3), triangles.reshape(-1)), {}))
    require(bool(tables), "no_faces", "the file holds points without faces")

    columns = found.get("vertex", {})
    vertices = _stacked(columns, ("x", "y", "z"))
    if vertices is None:
        raise MeshError("bad_header", "the PLY file has no vertices with x, y and z")
    uvs = [uv for names in _UV_NAMES if (uv := _stacked(columns, names)) is not None]
    points = Part(
        vertices,
        np.zeros((0, 3), np.int64),
        normals=_stacked(columns, _NORMALS),
        uv=uvs[0] if uvs else None,
        color=_ply_color(columns),
    )
    images = _Images(header.textures, references, limits)
    return [part for each in tables for part in _ply_parts(points, *each, images, limits)]


def _corners(element: Element) -> str:
    """The list with the corners of faces: its name matters only where there are several lists."""
    lists = [each.name for each in element.properties if each.count_kind]
    return next((name for name in _INDICES if name in lists), lists[0] if len(lists) == 1 else "")


def _lists(columns: dict[str, Column], name: str) -> Lists:
    lists = columns.get(name)
    if not isinstance(lists, Lists):
        raise MeshError("bad_header", "the faces of the PLY file have no list vertex_indices")
    return lists


def _stacked(columns: dict[str, Column], names: Sequence[str]) -> NDArray[Any] | None:
    """Columns side by side (N, names); None where one is missing."""
    found = [each for name in names if isinstance(each := columns.get(name), np.ndarray)]
    return np.stack(found, axis=1) if len(found) == len(names) else None


def _ply_color(columns: dict[str, Column]) -> F64 | None:
    """Linear RGBA (N, 4) of vertices or faces; None where they have no colour."""
    for names, opacity in zip(COLOR_NAMES, _ALPHAS, strict=True):
        color, alpha = _stacked(columns, names), columns.get(opacity)
        if color is not None:
            return _linear_rgba(color, alpha if isinstance(alpha, np.ndarray) else None)
    return None


def _ply_parts(
    points: Part, polygons: Lists, table: dict[str, Column], images: _Images, limits: Limits
) -> list[Part]:
    """The parts of polygons; ``points`` has the vertices with what they know."""
    faces, polygon, corner = list_triangles(polygons, points.vertices, limits)
    color = _ply_color(table) if points.color is None else None
    bare = replace(points, uv=None)
    texcoord = table.get("texcoord")
    texcoord = texcoord if isinstance(texcoord, Lists) else None
    if not images.names or (points.uv is None and texcoord is None):
        return [_colored(bare, faces, None if color is None else color[polygon])]

    number = images.numbers(table, polygons.lengths, texcoord)[polygon]
    parts = []
    if (number < 0).any():
        rest = number < 0
        parts.append(_colored(bare, faces[rest], None if color is None else color[polygon[rest]]))
    at = np.flatnonzero(number >= 0)
    faces, number = faces[at], number[at]
    if texcoord is not None:
        begins = np.cumsum(texcoord.lengths) - texcoord.lengths
        places = begins[polygon[at], None] + 2 * corner[at]
        values = texcoord.values.reshape(-1)
        uv = np.stack([values[places], values[places + 1]], axis=2)
        points, faces = _parted(points, faces, uv)
    used = np.unique(number).tolist()
    for each, surface in zip(used, images.surfaces(used), strict=True):
        chosen = faces[number == each]
        parts.append(replace(points, faces=chosen, surface=surface, color=None))
    return parts


def _colored(points: Part, faces: I64, color: F64 | None) -> Part:
    """Faces with the colours of the vertices, else with their own (F, 4), else plain."""
    if points.color is not None:
        return replace(points, faces=faces, surface=WHITE)
    if color is None:
        return replace(points, faces=faces)
    _check_indices(faces, len(points.vertices))
    return replace(
        points,
        vertices=points.vertices[faces.ravel()],
        normals=None if points.normals is None else points.normals[faces.ravel()],
        faces=np.arange(faces.size).reshape(-1, 3),
        surface=WHITE,
        color=np.repeat(color, 3, axis=0),
    )


def _parted(points: Part, faces: I64, uv: NDArray[Any]) -> tuple[Part, I64]:
    """Vertices with coordinates of corners (F, 3, 2), doubled where their corners have several."""
    _check_indices(faces, len(points.vertices))
    corners, uv = faces.reshape(-1), uv.reshape(-1, 2)
    own = np.zeros((len(points.vertices), 2))
    own[corners] = uv
    # One of its corners has a vertex itself, so that only those along seams are sorted.
    seam = np.flatnonzero((own[corners] != uv).any(axis=1))
    seam = seam[np.lexsort((uv[seam, 1], uv[seam, 0], corners[seam]))]
    keys = np.concatenate([corners[seam, None], uv[seam]], axis=1)
    fresh = np.ones(len(seam), bool)
    fresh[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    origin = np.concatenate([np.arange(len(own)), corners[seam[fresh]]])
    corners = corners.copy()
    corners[seam] = len(own) - 1 + np.cumsum(fresh)
    normals = None if points.normals is None else points.normals[origin]
    both = np.concatenate([own, uv[seam[fresh]]])
    return replace(points, vertices=points.vertices[origin], normals=normals, uv=both), (
        corners.reshape(-1, 3)
    )


@dataclass
class _Images:
    """The textures that a header names, in its order; they are read when faces have them."""

    names: list[str]
    references: References
    limits: Limits

    def numbers(self, table: dict[str, Column], corners: I64, texcoord: Lists | None) -> I64:
        """Which texture each polygon of so many corners has (F,); -1 for none."""
        number = np.zeros(len(corners), np.int64)
        if len(set(self.names)) > 1:
            said = table.get("texnumber")
            if not isinstance(said, np.ndarray):
                raise MeshError(
                    "unsupported_feature",
                    f"{len(self.names)} textures without a texnumber of each face",
                )
            number = whole(said)
            last = int(number.max(initial=0))
            require(
                last < len(self.names),
                "bad_index",
                f"a face refers to texture {last}, there are {len(self.names)}",
            )
        if texcoord is not None:
            number = np.where(texcoord.lengths == 0, -1, number)
            fits = (number < 0) | (texcoord.lengths == 2 * corners)
            require(bool(fits.all()), "parse_error", "a texcoord is not two numbers for a corner")
        return number

    def surfaces(self, numbers: Sequence[int]) -> list[Surface]:
        """The surfaces of textures by number."""
        names = [self.names[number] for number in numbers]
        self.references.require(names, missing="missing_texture")
        read: dict[str, Surface] = {}
        for name in dict.fromkeys(names):
            encoded = self.references.read(name, missing="missing_texture", search=True)
            texture = decode_texture(encoded, self.limits, f"texture {name[:80]!r}")
            read[name] = Surface(Material((1.0, 1.0, 1.0, 1.0), texture))
        return [read[name] for name in names]


def _check_indices(faces: I64, count: int) -> None:
    if len(faces):
        lowest, highest = int(faces.min()), int(faces.max())
        require(
            lowest >= 0 and highest < count,
            "bad_index",
            f"a face refers to vertex {lowest if lowest < 0 else highest}, there are {count}",
        )


def _linear_rgba(color: NDArray[Any], alpha: NDArray[Any] | None = None) -> F64:
    """sRGB colours (N, 3), and opacity if any, of integers or floats to linear RGBA."""
    rgba = np.ones((len(color), 4))
    rgba[:, :3] = srgb_to_linear(np.clip(_unit(color), 0, 1))
    if alpha is not None:
        rgba[:, 3] = _unit(alpha)
    return rgba


def _unit(values: NDArray[Any]) -> F64:
    """Colours as floats 0-1: integers are 0-255, or of 16 bits; floats are 0-1, or 0-255."""
    highest = np.fmax.reduce(values, axis=None, initial=0)
    if values.dtype.kind in "iu":
        full = 65535 if values.dtype.itemsize == 2 and highest > 255 else 255
    else:
        full = 255 if highest > 1.001 else 1  # interpolation may leave the range by a little
    return np.asarray(values, np.float64) / full


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
    return _off_parts(vertices, rows, color, limits)


def _off_parts(
    vertices: F64, rows: list[list[bytes]], color: F64 | None, limits: Limits
) -> list[Part]:
    rows = [row for row in rows if int(row[0]) >= 3]
    sizes = [int(row[0]) for row in rows]
    for row, size in zip(rows, sizes, strict=True):
        # A size is a claim: what is made of it must be there.
        short = len(row) - 1
        require(
            short >= size, "bad_header", f"a face claims {size:,} corners, {short:,} numbers follow"
        )
    words = [word for row, size in zip(rows, sizes, strict=True) for word in row[1 : size + 1]]
    indices, lengths = np.array(words, np.int64), np.array(sizes, np.int64)
    polygon, corner = triangulate(lengths, indices, vertices, limits)
    faces = indices[(np.cumsum(lengths) - lengths)[polygon, None] + corner]
    trailing = [rows[at][sizes[at] + 1 :] for at in polygon.tolist()]
    if color is not None:
        return [Part(vertices, faces, WHITE, color=color)]
    # Other faces have no colour, or the index of one in a map that is not here.
    colored = np.array([len(row) in (3, 4) for row in trailing], bool)
    if not colored.any():
        return [Part(vertices, faces)]
    rgba = _off_colors([row for row in trailing if len(row) in (3, 4)])
    points = Part(vertices, np.zeros((0, 3), np.int64))
    parts = [_colored(points, faces[colored], rgba)]
    return parts if colored.all() else [*parts, _colored(points, faces[~colored], None)]


def _off_colors(rows: list[list[bytes]]) -> F64:
    """Colours of an OFF file: integers 0-255, or floats 0-1 where a decimal point says so."""
    width = min(len(row) for row in rows)
    require(width in (3, 4), "parse_error", "the OFF file has colours of an unknown form")
    values: NDArray[Any] = np.array([row[:width] for row in rows], np.float64)
    require(bool(np.isfinite(values).all()), "not_finite", "colours hold NaN or infinity")
    floats = any(b"." in word for row in rows[:1000] for word in row)
    values = values if floats else np.clip(values, 0, 255).astype(np.int64)
    return _linear_rgba(values[:, :3], values[:, 3] if width == 4 else None)
