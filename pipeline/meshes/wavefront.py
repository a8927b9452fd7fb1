"""Wavefront OBJ and MTL: geometry through trimesh, materials read here.

trimesh reads only the first material library, loses vertex colours beside a material, takes
relative indices from the end of the whole file and drops lines that begin with a blank. What it
gets is therefore normalised first, and a stand-in for the material libraries that holds only names.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.meshes.files import References
from pipeline.meshes.parts import PLAIN, WHITE, Limits, Part, Surface, check_counts, fan, require
from pipeline.meshes.textures import decode_texture
from pipeline.scene import U8, AlphaMode, Material, MeshError, srgb_to_linear

_ODD_LINE = re.compile(rb"(?m)^[ \t]+(?=\S)|^(v|vt|vn|f|o|g|usemtl|mtllib)\t[ \t]*")
_FACE_ZERO = re.compile(rb"(?m)^f [^\n]*?(?<![\d/-])0+(?=[/\s])")
_RELATIVE = re.compile(rb"(?m)^f [^\n]*-\d")
_LIBRARY = re.compile(rb"(?m)^mtllib +([^\n]+)$")
_USED = re.compile(rb"(?m)^usemtl +([^\n]+)$")
# Options of a texture statement in an MTL file, with the number of values that each may take.
_MAP_OPTIONS = {"-s": 3, "-o": 3, "-t": 3, "-mm": 2, "-bm": 1, "-imfchan": 1, "-type": 1}
_MAP_OPTIONS |= {"-blendu": 1, "-blendv": 1, "-cc": 1, "-clamp": 1, "-texres": 1, "-boost": 1}


@contextmanager
def quiet_parsing() -> Iterator[None]:
    """Silence trimesh's log and warnings, but make an unreadable number an error.

    numpy only warns when text stops being numbers half way, and returns what came before.
    """
    logger = logging.getLogger("trimesh")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message=".*could not be read to its end.*")
            yield
    finally:
        logger.disabled = before


def read_obj(data: bytes, references: References, limits: Limits) -> list[Part]:
    """The parts of an OBJ file, one per material."""
    from trimesh.exchange.obj import load_obj

    require(b"\0" not in data, "bad_header", "not an OBJ file: it holds binary data")
    text = b"\n" + data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\\\n", b" ") + b"\n"
    if _ODD_LINE.search(text):
        text = _ODD_LINE.sub(lambda match: (match[1] + b" ") if match[1] else b"", text)
    require(b"\nv " in text, "bad_header", "not an OBJ file: it holds no vertices")
    require(b"\nf " in text, "no_faces", "the file holds no faces")
    check_counts(limits, faces=text.count(b"\nf "), vertices=text.count(b"\nv "))
    require(_FACE_ZERO.search(text) is None, "bad_index", "a face refers to vertex 0; 1 is first")
    if _RELATIVE.search(text):
        text = _absolute_indices(text)
    surfaces = _materials(text, references, limits)

    with quiet_parsing():
        # Library statements go; one for the stand-in comes first.
        plain = b"mtllib names.mtl\n" + _LIBRARY.sub(b"", text)
        try:
            resolver: Any = _Names(surfaces)
            loaded: dict[str, Any] = load_obj(io.BytesIO(plain), resolver=resolver)
        except IndexError as error:
            raise MeshError("bad_index", f"a face refers to what is not there: {error}") from None
    return [_part(geometry, surfaces) for geometry in loaded.get("geometry", {}).values()]


def _part(geometry: dict[str, Any], surfaces: dict[str, Surface]) -> Part:
    visual, color = geometry.get("visual"), geometry.get("vertex_colors")
    surface = PLAIN if color is None else WHITE
    uv = None
    if visual is not None:
        uv = visual.uv
        surface = surfaces.get(getattr(visual.material, "name", None) or "", surface)
    if color is not None:
        color = np.asarray(color, np.float64)
        color = color / 255 if color.max(initial=0) > 1 else color
        color = np.concatenate([srgb_to_linear(color), np.ones((len(color), 1))], axis=1)
    return Part(
        geometry["vertices"],
        fan(geometry["faces"]),
        surface,
        geometry.get("vertex_normals"),
        uv,
        color,
    )


def _absolute_indices(text: bytes) -> bytes:
    """Faces with negative indices, which count back from the line they stand in, made positive."""
    counts = {b"v": 0, b"vt": 0, b"vn": 0}
    lines = text.split(b"\n")
    for number, line in enumerate(lines):
        word = line.split(b" ", 1)[0]
        if word in counts:
            counts[word] += 1
        elif word == b"f" and b"-" in line:
            corners = []
            for corner in line.split()[1:]:
                fields = corner.split(b"/")
                for place, (field, total) in enumerate(zip(fields, counts.values(), strict=False)):
                    if field.startswith(b"-"):
                        index = total + 1 + int(field)
                        require(index > 0, "bad_index", f"a face refers to {int(field)} too early")
                        fields[place] = b"%d" % index
                corners.append(b"/".join(fields))
            lines[number] = b"f " + b" ".join(corners)
    return b"\n".join(lines)


class _Names:
    """A stand-in for the resolver of trimesh: one library in which every material is a name."""

    def __init__(self, names: dict[str, Surface]) -> None:
        self._library = "".join(f"newmtl {name}\n" for name in names).encode()

    def __getitem__(self, key: str) -> bytes:
        return self.get(key)

    def get(self, key: str) -> bytes:
        if key == "names.mtl":
            return self._library
        raise FileNotFoundError(key)


@dataclass
class _Entry:
    """One ``newmtl`` block."""

    diffuse: tuple[float, float, float] | None = None  # sRGB
    alpha: float = 1.0
    map_diffuse: str | None = None
    map_alpha: str | None = None


def _materials(text: bytes, references: References, limits: Limits) -> dict[str, Surface]:
    """Surfaces by name, only of the materials that faces use."""
    used = {" ".join(name.decode(errors="replace").split()) for name in _USED.findall(text)}
    if not used:
        return {}
    entries: dict[str, _Entry] = {}
    read: set[str] = set()  # a file may name one library as often as it likes
    for statement in dict.fromkeys(_LIBRARY.findall(text)):
        whole_line = statement.decode(errors="replace").strip()
        for name in dict.fromkeys(_library_names(whole_line)):
            if name in read:
                continue
            read.add(name)
            try:
                library = references.read(name, missing="missing_material")
            except MeshError as error:
                if error.kind == "missing_material" and name == whole_line and " " in name:
                    continue  # several names in one statement follow
                if error.kind != "outside_reference":
                    raise
                library = references.read(name, missing="missing_material", search=True)
            entries.update(_parse_mtl(library))
            if name == whole_line:
                break
    mapped = [entries[name] for name in sorted(used) if name in entries]
    if references.texture and not any(entry.map_diffuse for entry in mapped):
        for entry in mapped:
            entry.map_diffuse = references.texture
    references.require(
        [path for entry in mapped for path in (entry.map_diffuse, entry.map_alpha) if path],
        missing="missing_texture",
    )
    images: dict[tuple[str | None, str | None], U8] = {}
    return {
        name: _surface(entries[name], references, limits, images)
        for name in sorted(used)
        if name in entries
    }


def _library_names(statement: str) -> list[str]:
    """A file name may hold blanks, and one statement may name several files."""
    return [statement] if " " not in statement else [statement, *statement.split()]


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
        elif keyword == "kd" and len(words) >= 4 and words[1] not in {"spectral", "xyz"}:
            red, green, blue = (min(max(float(word), 0.0), 1.0) for word in words[1:4])
            current.diffuse = (red, green, blue)
        elif keyword == "d":
            current.alpha = float(words[-1])
        elif keyword == "tr":
            current.alpha = 1 - float(words[-1])
        elif keyword == "map_kd":
            current.map_diffuse = _map_name(line.split(None, 1)[1])
        elif keyword == "map_d":
            current.map_alpha = _map_name(line.split(None, 1)[1])
    return entries


def _map_name(statement: str) -> str:
    """The file name of a texture statement, which may be preceded by options."""
    words = statement.split()
    at = 0
    while at < len(words) and words[at] in _MAP_OPTIONS:
        values = _MAP_OPTIONS[words[at]]
        at += 1
        if values == 1:  # a number or a word
            at += 1
            continue
        # The second and the third number may be left out.
        end = min(at + values, len(words))
        while at < end and _is_number(words[at]):
            at += 1
    # Blanks inside the name are kept as they are where no option stood before it.
    return " ".join(words[at:]) if at else statement.strip()


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _surface(
    entry: _Entry,
    references: References,
    limits: Limits,
    images: dict[tuple[str | None, str | None], U8],
) -> Surface:
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
        linear = srgb_to_linear(np.array(entry.diffuse or (0.8, 0.8, 0.8)))
        red, green, blue = (float(value) for value in linear)
    explicit = entry.diffuse is not None and not entry.map_diffuse
    return Surface(Material((red, green, blue, alpha), texture, mode), explicit)


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
