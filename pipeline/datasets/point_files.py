"""Reading point-cloud files: ply, npy, npz, h5, and tables of text (xyz, txt, pts, csv, asc).

What columns and arrays mean is told by their names where there are any, and by their values else:

- **Points**: columns ``x y z``; arrays called ``xyz``, ``points``, ``pc``, ``pos``, ``coords``,
  ``data`` ... of shape (P, 3 or more), or (n, P, 3 or more) for n clouds in one file.
- **Colours** are sRGB. Integers are 0-255 (above that, 16-bit ones 0-65535). Floats are 0-1 where
  none is above 1, and 0-255 else. Anything below 0 or above 255 is refused (``bad_color``).
- **Columns without names** after x, y and z, taken three at a time: of unit length they are
  normals; without negative values and within 0-255, colours; else they are ignored. A seven-
  column ``.pts`` file is ``x y z intensity r g b``.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import NDArray

from pipeline.clouds import drawn, make_cloud
from pipeline.common import content_hash, file_hash
from pipeline.datasets import point_stores
from pipeline.datasets.base import Asset, Record
from pipeline.datasets.point_stores import Header, Store, open_store
from pipeline.meshes import UP_AXES, Limits
from pipeline.meshes.files import read_file
from pipeline.meshes.parts import check_counts, require
from pipeline.meshes.ply import COLOR_NAMES, Lists, read_elements, read_header
from pipeline.scene import U8, MeshError

Array = NDArray[Any]

# .txt, .csv and .asc may be anything: see ``is_point_file``.
TEXT_SUFFIXES = (".xyz", ".pts", ".txt", ".csv", ".asc")
SUFFIXES = (".ply", *point_stores.SUFFIXES, *TEXT_SUFFIXES)

_POINT_NAMES = (
    *("xyz", "points", "point", "pc", "pcd", "pointcloud", "point_cloud", "pos", "position"),
    *("positions", "coords", "coord", "coordinates", "vertices", "data", "arr_0"),
)
_COLOR_NAMES = ("rgb", "color", "colors", "colour", "colours", "rgba")
_FEATURE_NAMES = ("features", "feature", "feat", "feats")  # colours where they can be
_NORMAL_NAMES = ("normals", "normal")
_COLUMN_NAMES = {
    "xyz": (("x", "y", "z"), ("px", "py", "pz")),
    "rgb": COLOR_NAMES,
    "normals": (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z")),
}
_KNOWN_COLUMNS = {name for triples in _COLUMN_NAMES.values() for names in triples for name in names}
_MAX_COLUMNS = 64  # of text; more hold something else
_MAX_WIDTH = 16  # of arrays: with more, (3, points) would pass for (points, columns)
_SNIFFED_BYTES = 2**16


@dataclass(frozen=True)
class RawPoints:
    """One cloud as its file has it."""

    xyz: Array  # (P, 3) of any real type
    rgb: U8 | None
    normals: Array | None  # (P, 3)
    sha256: str  # of the file, or of the points' own bytes where the file holds many clouds
    n_bytes: int  # likewise


def read_points(path: Path, index: int | None = None, limits: Limits | None = None) -> RawPoints:
    """Read one cloud; ``index`` says which where the file holds many (``count_clouds``).

    Raises ``MeshError`` (stage ``load``): ``missing_file``, ``not_a_file``, ``unreadable``,
    ``unsupported_format``, ``empty_file``, ``too_large``, ``bad_header``, ``parse_error``,
    ``no_points``, ``bad_shape``, ``bad_index``, ``bad_color``, ``pickled``, ``has_faces``,
    ``outside_reference``, ``unsupported_feature``.
    """
    limits = limits or Limits()
    suffix = path.suffix.lower()
    require(
        suffix in SUFFIXES, "unsupported_format", f"{path.suffix or path.name!r} is no point format"
    )
    with _only_mesh_errors():
        if suffix in point_stores.SUFFIXES:
            return _from_store(path, index, limits)
        require(index is None, "bad_index", "the file holds one cloud")
        data = read_file(path, limits.file_bytes, "the point file")
        require(bool(data), "empty_file", "the file has zero bytes")
        if suffix == ".ply":
            xyz, rgb, normals = _from_ply(data, limits)
        else:
            xyz, rgb, normals = _from_text(data, suffix, limits)
        return RawPoints(xyz, rgb, normals, content_hash(data), len(data))


@contextmanager
def _only_mesh_errors() -> Iterator[None]:
    try:
        yield
    except MeshError:
        raise
    except MemoryError:
        raise MeshError("too_large", "the file does not fit into memory") from None
    except Exception as error:  # parsers raise anything on hostile bytes; the object fails alone
        raise MeshError("parse_error", f"{type(error).__name__}: {error}"[:300]) from error


def count_clouds(path: Path, limits: Limits | None = None) -> int | None:
    """How many clouds a file holds; None for one that holds a single cloud by its form.

    Only headers are read. Raises ``MeshError`` as ``read_points`` does.
    """
    if path.suffix.lower() not in point_stores.SUFFIXES:
        return None
    with _only_mesh_errors(), open_store(path, limits or Limits()) as store:
        shape = store.headers[_choose(store).points].shape
        return shape[0] if len(shape) == 3 else None


def is_point_file(path: Path) -> bool:
    """Whether a file of ``SUFFIXES`` is to be taken for a cloud.

    Text files that are called ``.txt``, ``.csv`` or ``.asc`` are where one of their first lines is
    three or more numbers; an empty file is, so that it is reported.
    """
    if path.suffix.lower() not in (".txt", ".csv", ".asc"):
        return True
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
    except OSError:
        return True  # so that it is reported
    lines = [_cells(line) for line in head.splitlines()[:20]]
    return not head or any(len(cells) >= 3 and _numbers(cells) for cells in lines)


def load_cloud(root: Path, record: Record, up_axis: str, limits: Limits) -> Asset:
    """Read the cloud that ``record.key`` names: ``<path_key>`` or ``<path_key>#<index>``.

    Raises ``MeshError`` as ``read_points`` and ``pipeline.clouds.make_cloud`` do, and
    ``outside_reference`` for a file that is not under the root.
    """
    quoted, _, index = record.key.partition("#")  # as ``path_key`` writes it, # is %23
    path = root / os.fsdecode(unquote_to_bytes(quoted))
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise MeshError("outside_reference", f"{record.source} is not under the root")
    return cloud_asset(read_points(path, int(index) if index else None, limits), up_axis)


def cloud_asset(raw: RawPoints, up_axis: str) -> Asset:
    """The asset of a cloud whose axis ``up_axis`` (see ``pipeline.meshes.UP_AXES``) points up.

    Raises ``MeshError`` as ``pipeline.clouds.make_cloud`` does.
    """
    turn = np.asarray(UP_AXES[up_axis], np.int64)

    def turned(vectors: Array) -> Array:
        values = np.asarray(vectors, np.float64)
        # Rows of a signed permutation, taken as such: a product would spread NaN and round.
        columns, signs = np.abs(turn).argmax(axis=1), turn.sum(axis=1)
        return np.asarray(values[:, columns] * signs)

    cloud = make_cloud(turned(raw.xyz), raw.rgb)
    normals = None if raw.normals is None else turned(raw.normals)
    return Asset(drawn(cloud, normals), raw.sha256, raw.n_bytes, cloud)


# --- values -----------------------------------------------------------------------------------


def rgb_of(values: Array) -> U8:
    """Colours (P, 3 or more) of a file as uint8 sRGB (P, 3); the rules are those of the module.

    Raises ``MeshError`` (``bad_color``).
    """
    color = values[:, :3]
    if not color.size:
        return np.zeros((len(color), 3), np.uint8)
    low, high = float(color.min()), float(color.max())
    message = f"colours from {low:g} to {high:g}: they are to be 0-1 or 0-255"
    if color.dtype.kind in "iu":
        if color.dtype.itemsize == 2 and high > 255 and low >= 0:
            return np.rint(color / np.float64(257)).astype(np.uint8)
        require(low >= 0 and high <= 255, "bad_color", message)
        return color.astype(np.uint8)
    # Written so that NaN fails too. Interpolation and rounding may leave the range by a little.
    require(low >= -1e-3 and high <= 255.5, "bad_color", message)
    scale = 255.0 if high <= 1.001 else 1.0
    return np.rint(np.clip(color.astype(np.float64) * scale, 0, 255)).astype(np.uint8)


def _split(table: Array, suffix: str = "") -> tuple[Array, U8 | None, Array | None]:
    """(xyz, rgb, normals) of a table (P, 3 or more) whose columns have no names."""
    require(
        table.ndim == 2 and 3 <= table.shape[1] <= _MAX_COLUMNS,
        "bad_shape",
        f"points of shape {table.shape}: (points, 3 to {_MAX_COLUMNS}) is expected",
    )
    rgb: U8 | None = None
    normals: Array | None = None
    first = 4 if suffix == ".pts" and table.shape[1] == 7 else 3
    for start in (first, first + 3):
        triple = table[:, start : start + 3]
        if triple.shape[1] < 3 or not len(triple) or not np.isfinite(triple).all():
            continue
        wide = triple.astype(np.float64)
        unit = (np.abs(np.linalg.norm(wide, axis=1) - 1) < 0.05).mean() > 0.9
        # Of length 1 and positive are the normals of an octant; but pure red is as well.
        if triple.min() < 0 or (unit and not np.isin(wide, (0, 1)).all()):
            if normals is None and unit:
                normals = triple
        elif rgb is None and triple.max() <= 255.5:
            rgb = rgb_of(triple)
    return table[:, :3], rgb, normals


def _named(columns: Mapping[str, Array]) -> tuple[Array, U8 | None, Array | None]:
    """(xyz, rgb, normals) of columns by name."""
    by_name = {name.strip().lower(): column for name, column in columns.items()}

    def stacked(role: str) -> Array | None:
        for names in _COLUMN_NAMES[role]:
            if all(name in by_name for name in names):
                return np.stack([by_name[name] for name in names], axis=1)
        return None

    xyz, color, normals = stacked("xyz"), stacked("rgb"), stacked("normals")
    if xyz is None:
        raise MeshError(
            "no_points", f"no columns x, y and z; found {', '.join(columns)[:200] or 'none'}"
        )
    return xyz, None if color is None else rgb_of(color), normals


# --- npy, npz, h5 -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    """Names of the arrays that are read."""

    points: str
    color: str | None
    normals: str | None
    certain: bool  # the name of the colours says so


def _choose(store: Store) -> _Choice:
    """Which arrays of a file to read. Raises ``MeshError`` where none can be the points."""
    headers = store.headers
    lower = {name.lower(): name for name in reversed(list(headers))}
    usable = [name for name, header in headers.items() if _is_cloud(header)]
    named = [lower[name] for name in _POINT_NAMES if name in lower]
    points = next((name for name in named if name in usable), None)
    if points is None:
        for name in named:
            require(
                not headers[name].dtype.hasobject,
                "pickled",
                f"array {name!r} holds pickled Python objects (dtype object), which are not read",
            )
        others = [name for name in usable if name.lower() not in (*_COLOR_NAMES, *_NORMAL_NAMES)]
        if len(others) != 1:
            found = ", ".join(f"{name} {header}" for name, header in headers.items())
            raise MeshError(
                "no_points",
                "no points: an array xyz, points, pc, pos, coords or data of shape (points, 3) or "
                f"(clouds, points, 3) is expected; found {found[:300] or 'no arrays'}",
            )
        points = others[0]
    shape = headers[points].shape

    def beside(names: Sequence[str], strict: bool) -> str | None:
        for name in (lower[name] for name in names if name in lower and lower[name] != points):
            header = headers[name]
            if header.dtype.kind not in "fiu" or len(header.shape) != len(shape):
                continue
            fits = header.shape[:-1] == shape[:-1] and header.shape[-1] in (3, 4)
            require(
                fits or not strict,
                "bad_shape",
                f"{name} has shape {header.shape}, {points} has {shape}",
            )
            if fits:
                return name
        return None

    color = beside(_COLOR_NAMES, True)
    return _Choice(
        points, color or beside(_FEATURE_NAMES, False), beside(_NORMAL_NAMES, True), bool(color)
    )


def _is_cloud(header: Header) -> bool:
    return (
        header.dtype.kind in "fiu"
        and len(header.shape) in (2, 3)
        and 3 <= header.shape[-1] <= _MAX_WIDTH
    )


def _from_store(path: Path, index: int | None, limits: Limits) -> RawPoints:
    with open_store(path, limits) as store:
        choice = _choose(store)
        shape = store.headers[choice.points].shape
        if len(shape) == 3:
            require(
                index is not None and 0 <= index < shape[0],
                "bad_index",
                f"the file holds {shape[0]} clouds; there is no number {index}",
            )
        else:
            require(index is None, "bad_index", "the file holds one cloud")
        check_counts(limits, vertices=shape[-2])
        table = store.read(choice.points, index)
        color = None if choice.color is None else store.read(choice.color, index)
        normals = None if choice.normals is None else store.read(choice.normals, index)
    parts = [part for part in (table, color, normals) if part is not None]
    if index is None:
        sha256, n_bytes = file_hash(path), path.stat().st_size
    else:
        sha256 = content_hash(*(np.ascontiguousarray(part).tobytes() for part in parts))
        n_bytes = sum(part.nbytes for part in parts)
    xyz, rgb, own_normals = _split(table)
    if color is not None:
        try:
            rgb = rgb_of(color)
        except MeshError:
            if choice.certain:
                raise
    if normals is not None:
        own_normals = normals[:, :3]
    return RawPoints(xyz, rgb, own_normals, sha256, n_bytes)


# --- ply and text -----------------------------------------------------------------------------


def _from_ply(data: bytes, limits: Limits) -> tuple[Array, U8 | None, Array | None]:
    header = read_header(data, limits)
    found = {element.name: element for element in header.elements if element.count}
    require(
        "face" not in found and "tristrips" not in found,
        "has_faces",
        "the file holds faces: it is a mesh, for --dataset folder",
    )
    require("vertex" in found, "no_points", "the PLY file has no vertices")
    names = [column.name for column in found["vertex"].properties]
    known = frozenset(name for name in names if name.lower() in _KNOWN_COLUMNS)
    columns = read_elements(data, header, {"vertex": known}).get("vertex", {})
    return _named({name: c for name, c in columns.items() if not isinstance(c, Lists)})


def _cells(line: bytes) -> list[bytes]:
    """The cells of a line, parted by semicolons, commas or blanks."""
    line = line.strip()
    for sign in (b";", b","):
        if sign in line:
            return [cell.strip() for cell in line.split(sign)]
    return line.split()


def _numbers(cells: Sequence[bytes]) -> bool:
    try:
        for cell in cells:
            float(cell)
    except ValueError:
        return False
    return bool(cells)


def _from_text(data: bytes, suffix: str, limits: Limits) -> tuple[Array, U8 | None, Array | None]:
    """A table of numbers; before it comments, column names, a line with the number of points."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    require(b"\0" not in data, "bad_header", "a text file that holds binary data")
    check_counts(limits, vertices=data.count(b"\n"))
    names: list[str] = []
    claimed, skipped = None, 0
    for line in data[:_SNIFFED_BYTES].splitlines():
        bare = re.sub(rb"^\s*(#|//)+", b"", line)
        cells, comment = _cells(bare), len(bare) < len(line)
        if cells and not comment and (names or (len(cells) > 1 and _numbers(cells))):
            break
        skipped += 1
        if claimed is None and len(cells) == 1 and cells[0].isdigit():
            claimed = int(cells[0])
        elif {b"x", b"y", b"z"} <= {cell.lower().strip(b"\"'") for cell in cells}:
            names = [cell.decode("latin1").strip("\"' ") for cell in cells]
        elif cells and not comment:
            shown = line.decode("latin1").strip()[:80]
            raise MeshError(
                "bad_header",
                f"line {skipped} is neither numbers nor names with x, y and z: {shown!r}",
            )
    else:
        raise MeshError("no_points", "no line of numbers in the file")
    width = len(cells)
    require(
        3 <= width <= _MAX_COLUMNS, "bad_shape", f"{width} numbers a line; 3 or more are expected"
    )
    require(
        not names or len(names) == width,
        "bad_header",
        f"{len(names)} column names, {width} cells in the next line",
    )
    # Columns of other names may hold text.
    wanted = [i for i in range(width) if not names or names[i].lower() in _KNOWN_COLUMNS]
    table = np.loadtxt(
        io.BytesIO(data),
        delimiter=next((sign for sign in (";", ",") if sign.encode() in line), None),
        skiprows=skipped,
        usecols=wanted,
        ndmin=2,
        encoding="latin1",
    )
    require(
        claimed is None or claimed == len(table),
        "bad_header",
        f"the first line claims {claimed} points, {len(table)} follow",
    )
    if names:
        return _named({names[place]: table[:, i] for i, place in enumerate(wanted)})
    return _split(table, suffix)
