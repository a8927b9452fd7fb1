"""Wavefront OBJ and MTL: materials and parts; ``wavefront_geometry`` reads vertices and faces."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

import numpy as np

from pipeline.meshes.files import References
from pipeline.meshes.parts import (
    F64,
    I64,
    PLAIN,
    WHITE,
    Limits,
    Part,
    Surface,
    check_counts,
    require,
)
from pipeline.meshes.textures import decode_texture
from pipeline.meshes.wavefront_geometry import Geometry, distinct_corners, read_geometry
from pipeline.scene import U8, AlphaMode, Material, MeshError, srgb_to_linear

Color = tuple[float, float, float]  # sRGB, [0, 1]

_COMMENT_LINE = re.compile(rb"(?m)^[ \t]*#[^\n]*\n")
_ODD_LINE = re.compile(rb"(?m)^[ \t]*(v|vt|vn|f|o|g|usemtl|mtllib)\t[ \t]*|^[ \t]+(?=\S)")
_LIBRARY = re.compile(rb"\nmtllib +([^\n]+)")
_USED = re.compile(rb"\nusemtl +([^\n]+)")
# Options of a texture statement in an MTL file, with the number of values that each may take.
_MAP_OPTIONS = {"-s": 3, "-o": 3, "-t": 3, "-mm": 2, "-bm": 1, "-imfchan": 1, "-type": 1}
_MAP_OPTIONS |= {"-blendu": 1, "-blendv": 1, "-cc": 1, "-clamp": 1, "-texres": 1, "-boost": 1}


def read_obj(data: bytes, references: References, limits: Limits) -> list[Part]:
    """The parts of an OBJ file: one per material, two where only some faces have coordinates."""
    require(b"\0" not in data, "bad_header", "not an OBJ file: it holds binary data")
    text = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"\\\n" in text:  # a comment that ends with a backslash does not take the next line with it
        text = _COMMENT_LINE.sub(b"", text).replace(b"\\\n", b" ")
    text = b"\n" + text + b"\n"
    if b"\t" in text or b"\n " in text:
        text = _ODD_LINE.sub(lambda match: (match[1] + b" ") if match[1] else b"", text)
    require(b"\nv " in text, "bad_header", "not an OBJ file: it holds no vertices")
    require(b"\nf " in text, "no_faces", "the file holds no faces")
    check_counts(limits, faces=text.count(b"\nf "), vertices=text.count(b"\nv "))
    used = [(found.start(), _name(found[1])) for found in _USED.finditer(text)]
    looks = _materials(text, {name for _, name in used}, references, limits)
    geometry = read_geometry(text, limits)

    # The looks by number; 0 is that of faces without a material or with one that is not defined.
    numbers = {name: number for number, name in enumerate(looks, start=1)}
    table = [None, *looks.values()]
    starts = np.array([start for start, _ in used], np.int64)
    said = np.array([0, *(numbers.get(name, 0) for _, name in used)], np.int64)
    chosen = said[np.searchsorted(starts, geometry.places)]
    # An image says nothing about faces without coordinates, even of the same material.
    textured = np.array([look is not None and look.textured for look in table])
    placed = textured[chosen] & (geometry.corners[:, :, 1] > 0).all(axis=1) & bool(len(geometry.uv))
    groups = 2 * chosen + placed
    order = np.argsort(groups, kind="stable")
    bounds = np.flatnonzero(np.diff(groups[order])) + 1
    return [
        _part(geometry, geometry.corners[rows], table[groups[rows[0]] // 2], bool(placed[rows[0]]))
        for rows in np.split(order, bounds)
        if len(rows)
    ]


def _part(geometry: Geometry, corners: I64, look: _Look | None, with_uv: bool) -> Part:
    """The faces of one look, all with texture coordinates or all without."""
    corners[:, :, 1] *= with_uv
    highest, there = int(corners[:, :, 1].max()), len(geometry.uv)
    require(highest <= there, "bad_index", f"a face refers to vt {highest}, there are {there}")
    corners[:, :, 2] *= corners[:, :, 2] <= len(geometry.normals)
    indices, faces = distinct_corners(corners)
    vertex, at, normal = indices.T
    uv = normals = None
    if with_uv:
        assert look is not None
        uv = look.placing.apply(geometry.uv[at - 1])
    if normal.any():
        # NaN where a corner has none: ``load_mesh`` puts what its faces say there.
        normals = np.where(normal[:, None] > 0, geometry.normals[normal - 1], np.nan)
    color = None if geometry.colors is None else geometry.colors[vertex - 1]
    surface = look.surface if look else PLAIN if color is None else WHITE
    return Part(geometry.positions[vertex - 1], faces, surface, normals, uv, color)


@dataclass(frozen=True)
class _Placing:
    """How a texture lies on the coordinates of a face: the options ``-s`` and ``-o``."""

    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)

    def apply(self, uv: F64) -> F64:
        with np.errstate(over="ignore", invalid="ignore"):
            return uv * self.scale + self.offset


@dataclass(frozen=True)
class _Look:
    """A surface, and where its texture lies."""

    surface: Surface
    placing: _Placing

    @property
    def textured(self) -> bool:
        return self.surface.material.texture is not None


@dataclass
class _Entry:
    """One ``newmtl`` block."""

    diffuse: Color | None = None
    emission: Color = (0.0, 0.0, 0.0)
    maps_emission: bool = False  # by an image, which is not read
    alpha: float = 1.0
    map_diffuse: str | None = None
    map_alpha: str | None = None
    diffuse_placing: _Placing = _Placing()
    alpha_placing: _Placing = _Placing()


def _materials(
    text: bytes, used: set[str], references: References, limits: Limits
) -> dict[str, _Look]:
    """The looks of the materials named in ``used``, by name, of those that a library defines.

    A library that is not there is passed over: such files are common, and their shape is sound.
    What it would have coloured has no colour, as with a name that no library defines.
    """
    if not used:
        return {}
    entries: dict[str, _Entry] = {}
    read: set[str] = set()  # a file may name one library as often as it likes
    for statement in dict.fromkeys(_LIBRARY.findall(text)):
        whole_line = _unquoted(statement.decode(errors="replace").strip())
        for name in dict.fromkeys(_library_names(whole_line)):
            if name in read:
                continue
            read.add(name)
            try:
                library = references.read(name, missing="missing_material")
            except MeshError as error:
                if error.kind == "missing_material":
                    continue  # where the line is several names, those follow
                if error.kind != "outside_reference":
                    raise
                library = references.read(name, missing="missing_material", search=True)
            entries.update(_parse_mtl(library))
            if name == whole_line:
                break
    chosen = {}
    for name in sorted(used):
        # A name may hold " #" (3ds Max says "Material #25"); otherwise a comment begins there.
        for spelling in (name, name.rsplit(" #", 1)[0], name.split(" #", 1)[0]):
            if spelling in entries:
                chosen[name] = entries[spelling]
                break
    mapped = list(chosen.values())
    if references.texture and not any(entry.map_diffuse for entry in mapped):
        for entry in mapped:
            entry.map_diffuse = references.texture
    references.require(
        [path for entry in mapped for path in (entry.map_diffuse, entry.map_alpha) if path],
        missing="missing_texture",
    )
    images: dict[tuple[str | None, str | None], U8] = {}
    return {name: _look(entry, references, limits, images) for name, entry in chosen.items()}


def _library_names(statement: str) -> list[str]:
    """A file name may hold blanks, and one statement may name several files before a comment."""
    words = itertools.takewhile(lambda word: not word.startswith("#"), statement.split())
    return [statement] if " " not in statement else [statement, *words]


def _name(written: bytes) -> str:
    return " ".join(written.decode(errors="replace").split())


def _unquoted(name: str) -> str:
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] == '"' else name


def _parse_mtl(data: bytes) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    current = _Entry()
    for line in data.decode(errors="replace").splitlines():
        words = line.split()
        if len(words) < 2 or words[0].startswith("#"):
            continue
        keyword = words[0].lower()
        if keyword == "newmtl":
            current = entries.setdefault(" ".join(words[1:]), _Entry())
        elif keyword == "kd":
            current.diffuse = _color(words[1:]) or current.diffuse
        elif keyword == "ke":
            current.emission = _color(words[1:]) or current.emission
        elif keyword == "map_ke":
            current.maps_emission = True
        elif keyword == "d":
            current.alpha = float(line.split("#")[0].split()[-1])
        elif keyword == "tr":
            current.alpha = 1 - float(line.split("#")[0].split()[-1])
        elif keyword == "map_kd":
            statement = line.split(None, 1)[1]
            current.map_diffuse = _map_name(statement)
            current.diffuse_placing = _map_placing(statement)
        elif keyword == "map_d":
            statement = line.split(None, 1)[1]
            current.map_alpha = _map_name(statement)
            current.alpha_placing = _map_placing(statement)
    return entries


def _color(words: list[str]) -> Color | None:
    """The colour that a statement begins with; None where it says it by ``spectral`` or ``xyz``.

    Green and blue may be left out, and are as much as red then (MTL specification).
    """
    numbers = [float(word) for word in itertools.takewhile(_is_number, words[:3])]
    if not numbers:
        return None
    red, green, blue = (
        min(max(number, 0.0), 1.0) for number in (*numbers, *numbers[:1] * (3 - len(numbers)))
    )
    return red, green, blue


def _map_name(statement: str) -> str:
    """The file name of a texture statement, which may be preceded by options."""
    words = statement.split()
    at, _ = _map_options(words)
    # Blanks inside the name are kept as they are where no option stood before it.
    return _unquoted(" ".join(words[at:]) if at else statement.strip())


def _map_placing(statement: str) -> _Placing:
    _, options = _map_options(statement.split())
    # The second number may be left out; the third is for textures in space.
    width, height = [*map(float, options.get("-s", [])), 1.0, 1.0][:2]
    right, up = [*map(float, options.get("-o", [])), 0.0, 0.0][:2]
    return _Placing((width, height), (right, up))


def _map_options(words: list[str]) -> tuple[int, dict[str, list[str]]]:
    """Where the options of a texture statement end, and the values of each, the last ones given."""
    options: dict[str, list[str]] = {}
    at = 0
    while at < len(words) and words[at] in _MAP_OPTIONS:
        option, start = words[at], at + 1
        values = _MAP_OPTIONS[option]
        at = start
        if values == 1:  # a number or a word
            at += 1
        else:
            # The second and the third number may be left out.
            end = min(start + values, len(words))
            while at < end and _is_number(words[at]):
                at += 1
        options[option] = words[start:at]
    return at, options


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _look(
    entry: _Entry,
    references: References,
    limits: Limits,
    images: dict[tuple[str | None, str | None], U8],
) -> _Look:
    """An MTL material. ``map_Kd`` stands in for ``Kd``, which exporters often leave black then."""
    # Exporters disagree on whether d or Tr is the opacity: a material that is wholly invisible
    # is one that was written the other way round.
    alpha = entry.alpha if 0 < entry.alpha < 1 else 1.0
    mode: AlphaMode = "blend" if alpha < 1 or entry.map_alpha else "opaque"
    key = (entry.map_diffuse, entry.map_alpha)
    texture = None
    if any(key):
        if key not in images:
            images[key] = _texture(entry, references, limits)
        texture = images[key]
    if entry.map_diffuse:
        red = green = blue = 1.0
    else:
        red, green, blue = _linear(entry.diffuse or (0.8, 0.8, 0.8))
    # An image says where a surface glows: without it the whole of it would.
    emission = _linear((0.0, 0.0, 0.0) if entry.maps_emission else entry.emission)
    explicit = (entry.diffuse is not None or any(emission)) and not entry.map_diffuse
    material = Material((red, green, blue, alpha), texture, mode, emissive=emission)
    surface = Surface(material, explicit)
    # A mesh has one set of coordinates: beside map_Kd, map_d lies as that does.
    placing = entry.diffuse_placing if entry.map_diffuse else entry.alpha_placing
    require(
        texture is None or all(map(math.isfinite, placing.scale + placing.offset)),
        "not_finite",
        "the options of a texture hold NaN or infinity",
    )
    return _Look(surface, placing)


def _linear(color: Color) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in srgb_to_linear(np.array(color)))
    return red, green, blue


def _texture(entry: _Entry, references: References, limits: Limits) -> U8:
    """``map_Kd`` with the opacity of ``map_d`` in its alpha channel."""

    def read(name: str) -> U8:
        encoded = references.read(name, missing="missing_texture", search=True)
        return decode_texture(encoded, limits, f"texture {name[:80]!r}")

    color = read(entry.map_diffuse) if entry.map_diffuse else None
    if entry.map_alpha is None:
        assert color is not None
        return color
    mask = read(entry.map_alpha)
    # An image with an alpha channel in use means that channel, any other its brightness.
    opacity = mask[..., 3] if mask[..., 3].min() < 255 else mask[..., :3].mean(-1).astype(np.uint8)
    if color is None:
        color = np.full((*opacity.shape, 4), 255, np.uint8)
    rows = np.arange(color.shape[0]) * opacity.shape[0] // color.shape[0]
    columns = np.arange(color.shape[1]) * opacity.shape[1] // color.shape[1]
    merged = color.copy()
    merged[..., 3] = opacity[rows][:, columns]
    return merged
