"""What the ``v``, ``vt``, ``vn`` and ``f`` lines of an OBJ file say, read with numpy at once.

Read here and not by trimesh, which joins all faces of a material and then takes each of them for
one of the first one's form: lines such as ``f 1/1 2/2 3/3``, ``f 1//1 2//1 3//1`` and
``f 1 2 3 4 5 6`` hold six numbers each.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.meshes.parts import F64, I64, Limits, check_counts, require
from pipeline.meshes.polygons import triangulate
from pipeline.scene import MeshError, srgb_to_linear

Number = TypeVar("Number", np.float64, np.int64)

_KINDS = (b"v", b"vt", b"vn")  # in the order in which a corner of a face refers to them
_COMMENT = re.compile(rb"(?<!\.)#[^\n]*")  # not 1.#IND, which is how a NaN was once written
_LAST_SLASHES = re.compile(rb"(?<=\d)//?(?=\s)")


@dataclass(frozen=True)
class Geometry:
    """An OBJ file as triangles whose corners refer to positions, coordinates and normals."""

    positions: F64  # (V, 3)
    colors: F64 | None  # (V, 4) linear RGBA; None where no vertex has one
    uv: F64  # (T, 2)
    normals: F64  # (N, 3)
    corners: I64  # (F, 3, 3): of each corner v, vt and vn, counted from 1; 0 is none
    places: I64  # (F,) where in the text the line of each triangle begins


def read_geometry(text: bytes, limits: Limits) -> Geometry:
    """The triangles of a text whose lines begin with a keyword and a blank, the first with LF.

    Polygons are cut as ``triangulate`` does; faces of fewer than three corners are left out.
    Relative indices are resolved. Raises ``MeshError``: ``too_large``, ``parse_error``,
    ``bad_index`` (a position that is not there).
    """
    values, counts = _values(text, b"v", least=3)
    positions = _columns(values, counts, 0, 3)
    colors = None
    coloured = counts >= 6
    if coloured.any():
        written = _columns(values, counts, 3, 3, coloured)
        written = written / 255 if np.fmax.reduce(written, axis=None) > 1 else written
        # White, by which nothing changes, for vertices without a colour among others with one: as
        # for parts of a mesh without colours. Their material shows, where they have one.
        colors = np.ones((len(counts), 4))
        colors[coloured, :3] = srgb_to_linear(written)
    uv = _columns(*_values(text, b"vt", least=1), 0, 2)
    normals = _columns(*_values(text, b"vn", least=3), 0, 3)
    corners, places = _triangles(text, positions, limits)
    return Geometry(positions, colors, uv, normals, corners, places)


def distinct_corners(corners: I64) -> tuple[I64, I64]:
    """The distinct rows of corners (F, 3, 3) as (V, 3), and faces (F, 3) that refer to them."""
    rows = corners.reshape(-1, 3)
    key = rows[:, 0]
    for column in (1, 2):
        size = int(rows[:, column].max(initial=0)) + 1
        if size == 1:
            continue
        if int(key.max(initial=0)) > (2**62) // size:  # three indices may not fit into 64 bits
            key = np.unique(key, return_inverse=True)[1].reshape(-1)
        key = key * size + rows[:, column]
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return rows[first], inverse.reshape(-1, 3)


def _block(text: bytes, keyword: bytes) -> bytes:
    """What follows a keyword in all of its lines, without comments; each line ends with LF."""
    lines = re.findall(rb"\n" + keyword + rb" ([^\n]*)", text)
    block = b"\n".join([*lines, b""])
    return _COMMENT.sub(b"", block) if b"#" in block else block


def _words(block: bytes) -> tuple[I64, I64]:
    """Where the words of a block begin, and how many each of its lines has."""
    octets = np.frombuffer(block, np.uint8)
    starts = octets > 32
    starts[1:] &= octets[:-1] <= 32
    words = np.flatnonzero(starts)
    ends = np.searchsorted(words, np.flatnonzero(octets == 10))
    return words, np.diff(ends, prepend=0)


def _numbers(block: bytes, dtype: type[Number], count: int, keyword: bytes) -> NDArray[Number]:
    """The ``count`` numbers of a block; ``parse_error`` where it holds anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # older numpy only warns, and stops there
            numbers = np.fromstring(block, dtype, sep=" ") if count else np.zeros(0, dtype)
    except (ValueError, DeprecationWarning):
        numbers = np.zeros(0, dtype)
    # Counted, too: "- 1" is read as one number.
    require(
        len(numbers) == count,
        "parse_error",
        f"a {keyword.decode()!r} line holds what is no number",
    )
    return numbers


def _values(text: bytes, keyword: bytes, least: int) -> tuple[F64, I64]:
    """All numbers of the lines of a keyword, and how many each of these has."""
    block = _block(text, keyword)
    words, counts = _words(block)
    require(
        bool((counts >= least).all()),
        "parse_error",
        f"a {keyword.decode()!r} line holds fewer numbers than {least}",
    )
    return _numbers(block, np.float64, len(words), keyword), counts


def _columns(
    values: F64, counts: I64, start: int, width: int, mask: NDArray[np.bool_] | None = None
) -> F64:
    """Columns of rows that have different lengths, 0 where a row ends before."""
    longest = int(counts.max(initial=0))
    if longest == counts.min(initial=longest) >= start + width:  # as nearly all files
        table = values.reshape(-1, longest)[:, start : start + width]
        return table if mask is None else table[mask]
    begins = np.cumsum(counts) - counts
    if mask is not None:
        begins, counts = begins[mask], counts[mask]
    table = np.zeros((len(counts), width))
    for column in range(start, start + width):
        there = counts > column
        table[there, column - start] = values[begins[there] + column]
    return table


def _triangles(text: bytes, positions: F64, limits: Limits) -> tuple[I64, I64]:
    """Corners (F, 3, 3) and places of all triangles."""
    block = _block(text, b"f").replace(b"\t", b" ")
    if b"/ " in block or b"/\n" in block:  # 1/ and 1// say no more than 1
        block = _LAST_SLASHES.sub(b"", block)
    block = block.replace(b"//", b"/0/")
    # A line of many corners is many triangles: counted before memory is taken for them.
    octets = np.frombuffer(block, np.uint8)
    least = int(np.count_nonzero((octets[1:] > 32) & (octets[:-1] <= 32))) - 2 * block.count(b"\n")
    check_counts(limits, faces=max(least, 0))
    words, counts = _words(block)
    places = np.fromiter((line.start() for line in re.finditer(rb"\nf ", text)), np.int64)
    indices = _corners(block, words)
    if (indices < 0).any():
        _resolve(indices, np.repeat(places, counts), text)
    require(
        bool((indices[:, 0] != 0).all()), "bad_index", "a face refers to vertex 0; 1 is the first"
    )
    highest, there = int(indices[:, 0].max(initial=0)), len(positions)
    require(highest <= there, "bad_index", f"a face refers to vertex {highest}, there are {there}")
    if (counts == 3).all():
        return indices.reshape(-1, 3, 3), places
    polygon, corner = triangulate(counts, indices[:, 0] - 1, positions, limits)
    begins = np.cumsum(counts) - counts
    return indices[begins[polygon, None] + corner], places[polygon]


def _corners(block: bytes, words: I64) -> I64:
    """Every word ``v``, ``v/vt`` or ``v/vt/vn`` as a row of three indices, 0 where none is."""
    slashes = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("/"))
    fields = np.diff(np.searchsorted(slashes, words), append=len(slashes)) + 1
    widest = int(fields.max(initial=1))
    require(widest <= 3, "parse_error", "a corner of a face refers to more than v/vt/vn")
    numbers = _numbers(block.replace(b"/", b" "), np.int64, int(fields.sum()), b"f")
    indices = np.zeros((len(words), 3), np.int64)
    if widest == fields.min(initial=widest):
        indices[:, :widest] = numbers.reshape(-1, widest)
        return indices
    begins = np.cumsum(fields) - fields
    for column in range(widest):
        there = fields > column
        indices[there, column] = numbers[begins[there] + column]
    return indices


def _resolve(indices: I64, places: I64, text: bytes) -> None:
    """Make negative indices, which count back from the line that they stand in, positive."""
    for column, keyword in enumerate(_KINDS):
        back = np.flatnonzero(indices[:, column] < 0)
        if not len(back):
            continue
        pattern = rb"\n" + keyword + rb" "
        starts = np.fromiter((line.start() for line in re.finditer(pattern, text)), np.int64)
        before = np.searchsorted(starts, places[back])
        found = indices[back, column] + before + 1
        if (found <= 0).any():
            index = int(indices[back[np.argmin(found)], column])
            raise MeshError("bad_index", f"a face refers to {index} too early")
        indices[back, column] = found
