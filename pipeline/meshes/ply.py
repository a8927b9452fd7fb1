"""The PLY format: its header, the columns of its elements in text and binary, its triangles.

Counts are claims: none is believed before the values that it stands for are there.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from pipeline.meshes.parts import I64, Limits, check_counts, require
from pipeline.meshes.polygons import triangulate
from pipeline.scene import MeshError

Array = NDArray[Any]

# What exporters call a colour. Point clouds go by the same names (``datasets.point_files``).
COLOR_NAMES = (
    ("red", "green", "blue"),
    ("r", "g", "b"),
    ("diffuse_red", "diffuse_green", "diffuse_blue"),
)

_KINDS = {"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2"}
_KINDS |= {"ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4"}
_KINDS |= {"uint32": "u4", "float": "f4", "float32": "f4", "double": "f8", "float64": "f8"}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_PROPERTY = re.compile(r"property\s+(?:list\s+(\S+)\s+)?(\S+)\s+(\S+)")
_HEADER_BYTES = 2**16
_BLANK = np.isin(np.arange(256), list(b" \t\n\v\f\r"))


@dataclass(frozen=True)
class Property:
    """A column; ``count_kind`` is the type of the length of a list."""

    name: str
    kind: str
    count_kind: str | None = None


@dataclass(frozen=True)
class Element:
    """A table; its rows stand one after the other."""

    name: str
    count: int
    properties: list[Property]


@dataclass(frozen=True)
class Header:
    """What a header says. ``order`` is the byte order as numpy writes it, empty for text."""

    order: str
    elements: list[Element]
    textures: list[str]
    body: int  # where the data begins


@dataclass(frozen=True)
class Lists:
    """A column of lists: how long each is, and their values one after the other."""

    lengths: I64
    values: Array  # (N, length) where all are equally long, which saves a copy; else flat


Column = Array | Lists


def read_header(data: bytes, limits: Limits) -> Header:
    """The header, its claims compared with the limits and with the bytes that follow."""
    require(data[:4].strip() == b"ply", "bad_header", "not a PLY file: it does not start with ply")
    end = re.search(rb"\nend_header[ \t\r]*\n", data[:_HEADER_BYTES])
    if end is None:
        raise MeshError("bad_header", "the PLY header has no end_header")
    order: str | None = None
    elements: dict[str, Element] = {}
    element = None
    textures = []
    for line in data[: end.start()].decode("utf-8", "replace").split("\n"):
        words = line.split()
        good = bool(words)
        if words[:1] == ["format"]:
            order = _ORDERS.get(words[1].lower()) if len(words) > 1 else None
            good = order is not None
        elif words[:1] == ["element"]:
            good = len(words) == 3 and re.fullmatch("[0-9]{1,18}", words[2]) is not None
            good = good and words[1] not in elements
            if good:
                element = elements[words[1]] = Element(words[1], int(words[2]), [])
        elif words[:1] == ["property"]:
            good = element is not None and _add_property(element, line.strip())
        elif named := re.search("texturefile(.*)", line, re.IGNORECASE):
            textures.append(named[1].strip())
        shown = f"the PLY header says {line.strip()[:80]!r}: not understood, or said twice"
        require(good, "bad_header", shown)
    if order is None:
        raise MeshError("bad_header", "the PLY header names no format")

    needed = 0
    for element in elements.values():
        if element.name == "vertex":
            check_counts(limits, vertices=element.count)
        elif element.name in ("face", "tristrips"):
            check_counts(limits, faces=element.count)
        lists = element.count * sum(each.count_kind is not None for each in element.properties)
        # A list may be one byte, and takes far longer to read than a byte.
        most = limits.vertices
        require(lists <= most, "too_large", f"{lists:,} lists; the limit is {most:,}")
        # The least that one value takes: a digit and a blank, or the type's bytes; of a list its
        # count alone.
        least = [np.dtype(p.count_kind or p.kind).itemsize for p in element.properties]
        needed += element.count * (sum(least) if order else 2 * len(least))
    body = len(data) - end.end()
    require(
        needed <= body + 1,  # the last value of a text needs no blank
        "bad_header",
        f"the PLY header claims at least {needed:,} bytes of data, {body:,} follow",
    )
    return Header(order, list(elements.values()), textures, end.end())


def _add_property(element: Element, line: str) -> bool:
    """Take a property line; False where it is none. The length of a list is an integer."""
    found = _PROPERTY.fullmatch(line)
    if found is None or found[2] not in _KINDS:
        return False
    count = _KINDS.get(found[1], "f") if found[1] else None
    if (count or "i")[0] == "f" or found[3] in {known.name for known in element.properties}:
        return False
    element.properties.append(Property(found[3], _KINDS[found[2]], count))
    return True


def read_elements(
    data: bytes, header: Header, wanted: Mapping[str, Set[str]]
) -> dict[str, dict[str, Column]]:
    """The ``wanted`` properties, by element, of the elements that have rows.

    Raises ``MeshError``: ``bad_header`` where rows are missing, ``parse_error`` where values do not
    fit what the header says of them.
    """
    found = {}
    elements = [element for element in header.elements if element.count and element.properties]
    text = None if header.order else _Text.of(data[header.body :])
    position = 0 if text else header.body
    for element in elements:
        names = wanted.get(element.name, frozenset())
        if text:
            columns = _text_rows(text, position, element, names)
            position += element.count
        else:
            columns, position = _binary_rows(data, position, element, header.order, names)
        if columns:
            found[element.name] = columns
    # What is left over says that the header is not that of this data.
    left = len(text.ends) - position if text else len(data[position:].strip(b"\0 \t\r\n"))
    what = "lines" if text else "bytes"
    require(left == 0, "parse_error", f"{left:,} {what} follow those of the PLY header's elements")
    return found


# -- text ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Text:
    """The numbers of a text, and where the lines that hold some begin and end in them."""

    values: NDArray[np.float64]
    begins: I64
    ends: I64

    @classmethod
    def of(cls, body: bytes) -> _Text:
        source = np.frombuffer(body, np.uint8)
        blank = _BLANK[source]
        word = ~blank
        word[1:] &= blank[:-1]
        words = np.flatnonzero(word)
        try:
            values = np.fromstring(body, sep=" ")
        except (ValueError, DeprecationWarning):
            values = np.zeros(0)
        # Numbers that are not parted count as several.
        require(len(values) == len(words), "parse_error", "the PLY file holds text for numbers")
        lines = np.searchsorted(words, np.flatnonzero(source == ord("\n")))
        edges = np.concatenate([[0], lines, [len(words)]])
        filled = edges[1:] > edges[:-1]
        return cls(values, edges[:-1][filled], edges[1:][filled])


def _text_rows(text: _Text, first: int, element: Element, names: Set[str]) -> dict[str, Column]:
    """The columns of the lines from ``first`` on; all rows advance together, by property."""
    ends = text.ends[first : first + element.count]
    at = text.begins[first : first + element.count].copy()
    require(
        len(ends) == element.count,
        "bad_header",
        f"the PLY header claims {element.count:,} lines of {element.name[:40]!r}, "
        f"{len(ends):,} follow",
    )

    def check(good: NDArray[np.bool_], what: str) -> None:
        if not good.all():
            row = int(np.argmin(good))
            raise MeshError("parse_error", f"row {row:,} of {element.name[:40]!r} {what}")

    columns: dict[str, Column] = {}
    for each in element.properties:
        check(at < ends, "has too few numbers")
        values = text.values[at]
        at += 1
        if each.count_kind is None:
            if each.name in names:
                columns[each.name] = _declared(values, each)
            continue
        with np.errstate(invalid="ignore"):
            lengths = values.astype(np.int64)
        check((lengths == values) & (lengths >= 0), "has a list without a length")
        check(lengths <= ends - at, "has a list that is longer than the line")
        if each.name in names:
            before = np.cumsum(lengths) - lengths
            places = np.repeat(at - before, lengths) + np.arange(int(lengths.sum()))
            columns[each.name] = Lists(lengths, text.values[places])
        at += lengths
    check(at == ends, "has more numbers than the header says")
    return columns


def _declared(values: Array, column: Property) -> Array:
    """Numbers of a text as the type that the header gives them, cut at its range."""
    kind = np.dtype(column.kind)
    if kind.kind == "f":
        return values
    require(
        bool((values == np.floor(values)).all()),
        "parse_error",
        f"{column.name[:40]!r} holds numbers that are not whole",
    )
    return np.clip(values, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)


# -- binary --------------------------------------------------------------------------------------


def _binary_rows(
    data: bytes, position: int, element: Element, order: str, names: Set[str]
) -> tuple[dict[str, Column], int]:
    """The columns of the rows at ``position``, and where they end."""
    columns: dict[str, Column] = {}
    rows = _equal_rows(data, position, element, order)
    if rows is not None:
        for number, each in enumerate(element.properties):
            if each.name in names:
                values = columns[each.name] = rows[f"v{number}"]
                if each.count_kind is not None:
                    lengths = np.full(element.count, values.shape[1], np.int64)
                    columns[each.name] = Lists(lengths, values)
        return columns, position + rows.nbytes

    lists = [each for each in element.properties if each.count_kind]
    cut = f"the rows of {element.name[:40]!r} are cut off"
    require(bool(lists), "parse_error", cut)
    lengths = _read_lengths(data, position, element, order)
    sizes = lengths * [np.dtype(each.kind).itemsize for each in lists]
    bytes_of = np.full(element.count, _fixed_bytes(element.properties)) + sizes.sum(axis=1)
    at = position + np.cumsum(bytes_of) - bytes_of
    end = position + int(bytes_of.sum())
    require(end <= len(data), "parse_error", cut)
    source = np.frombuffer(data, np.uint8)
    column = 0
    for each in element.properties:
        kind = np.dtype(order + each.kind)
        if each.count_kind is None:
            if each.name in names:
                columns[each.name] = sliding_window_view(source, kind.itemsize)[at].view(kind)[:, 0]
            at = at + kind.itemsize
        else:
            at = at + np.dtype(each.count_kind).itemsize
            if each.name in names:
                values = _taken(source, at, lengths[:, column], kind)
                columns[each.name] = Lists(lengths[:, column], values)
            at = at + sizes[:, column]
            column += 1
    return columns, end


def _fixed_bytes(properties: Sequence[Property]) -> int:
    """The bytes of a row whose lists are all empty."""
    return sum(np.dtype(each.count_kind or each.kind).itemsize for each in properties)


def _read_lengths(data: bytes, position: int, element: Element, order: str) -> I64:
    """The lengths (rows, lists) of lists, each of which tells where the next one stands."""
    steps: list[tuple[int, Callable[..., tuple[int, ...]], int]] = []
    passed = 0  # properties before those of the next step
    for number, each in enumerate(element.properties):
        if each.count_kind is not None:
            read = struct.Struct(order + np.dtype(each.count_kind).char).unpack_from
            before = _fixed_bytes(element.properties[passed:number])
            steps.append((before, read, np.dtype(each.kind).itemsize))
            passed = number
    # What follows the last list of a row comes before the first of the next one.
    rest = _fixed_bytes(element.properties[passed:])
    first, read, size = steps[0]
    steps[0] = (first + rest, read, size)

    def walk(at: int) -> Iterator[int]:
        for _ in range(element.count):
            for before, read, size in steps:
                at += before
                (length,) = read(data, at)
                yield length
                at += length * size

    try:
        lengths = np.fromiter(walk(position - rest), np.int64, element.count * len(steps))
    except struct.error:
        lengths = np.full(1, -1)
    require(
        lengths.min() >= 0,
        "parse_error",
        f"the lists of {element.name[:40]!r} are longer than the file, or shorter than nothing",
    )
    return lengths.reshape(element.count, len(steps))


def _taken(source: Array, at: I64, lengths: I64, kind: np.dtype[Any]) -> Array:
    """So many values from each of the places, one after the other; rows of a length together."""
    taken = np.empty(int(lengths.sum()) * kind.itemsize, np.uint8)
    into = (np.cumsum(lengths) - lengths) * kind.itemsize
    order = np.argsort(lengths, kind="stable")
    found, begins = np.unique(lengths[order], return_index=True)
    for length, rows in zip(found.tolist(), np.split(order, begins[1:]), strict=True):
        if length:
            width = length * kind.itemsize
            windows = sliding_window_view(taken, width, writeable=True)
            windows[into[rows]] = sliding_window_view(source, width)[at[rows]]
    return taken.view(kind)


def _equal_rows(data: bytes, position: int, element: Element, order: str) -> Array | None:
    """The rows where the lists of each property are all as long as that of the first row."""
    fields: list[tuple[Any, ...]] = []
    at = position
    for number, each in enumerate(element.properties):
        kind, length = np.dtype(order + each.kind), 1
        if each.count_kind is None:
            fields.append((f"v{number}", kind))
        else:
            count = np.dtype(order + each.count_kind)
            if at + count.itemsize > len(data):
                return None
            length = int(np.frombuffer(data, count, 1, at)[0])
            if length < 0:
                return None
            fields += [(f"n{number}", count), (f"v{number}", kind, (length,))]
            at += count.itemsize
        at += length * kind.itemsize
    if element.count * (at - position) > len(data) - position:
        return None
    # The first row that differs stands where the equal ones before it say, and is seen.
    rows = np.frombuffer(data, np.dtype(fields), element.count, position)
    for number, each in enumerate(element.properties):
        if each.count_kind and (rows[f"n{number}"] != rows[f"v{number}"].shape[1]).any():
            return None
    return rows


# -- triangles -----------------------------------------------------------------------------------


def whole(values: Array) -> I64:
    """Indices of any type as integers, flat; what is not whole is a ``bad_index``."""
    with np.errstate(invalid="ignore"):
        indices = values.astype(np.int64)
    if values.dtype.kind == "f":
        require(bool((indices == values).all()), "bad_index", "an index is not a whole number")
    return indices.reshape(-1)


def list_triangles(polygons: Lists, vertices: Array, limits: Limits) -> tuple[I64, I64, I64]:
    """Polygons of any sizes as triangles (see ``triangulate``), in the order of the file.

    Returns the triangles (T, 3), each one's polygon (T,), and which corners of it they are (T, 3).
    Polygons of fewer than three corners give none.
    """
    lengths, indices = polygons.lengths, whole(polygons.values)
    if (lengths == 3).all():
        corner = np.broadcast_to(np.arange(3), (len(lengths), 3))
        return indices.reshape(-1, 3), np.arange(len(lengths)), corner
    polygon, corner = triangulate(lengths, indices, vertices, limits)
    begins = np.cumsum(lengths) - lengths
    return indices[begins[polygon, None] + corner], polygon, corner


def strip_triangles(strips: Lists, limits: Limits) -> I64:
    """Triangles (T, 3) of strips, in which -1 begins another one. Those without area are left out.

    Every second triangle of a strip is wound the other way round.
    """
    corners = whole(strips.values)
    places = np.arange(len(corners))
    begins = np.zeros(len(corners) + 1, bool)
    begins[np.cumsum(strips.lengths) - strips.lengths] = True
    begins[1:] |= corners == -1
    since = places - np.maximum.accumulate(np.where(begins[:-1], places, 0))
    last = np.flatnonzero((since >= 2) & (corners != -1))
    check_counts(limits, faces=len(last))
    odd = since[last] % 2
    found = np.stack([corners[last - 2 + odd], corners[last - 1 - odd], corners[last]], axis=1)
    a, b, c = found.T
    return np.asarray(found[(a != b) & (b != c) & (c != a)])
