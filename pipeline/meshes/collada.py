"""COLLADA (.dae) through pycollada: up axis, instances, diffuse colours and textures.

trimesh ignores ``<up_axis>`` and textures in sibling folders; its reader is not used. Before
pycollada sees the file, its XML is refused if it is a zip archive, declares entities, or holds a
node graph that is cyclic or unfolds without bound.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any
from xml.parsers import expat

import numpy as np

from pipeline.meshes.files import References
from pipeline.meshes.parts import (
    F64,
    PLAIN,
    WHITE,
    Limits,
    Part,
    Surface,
    check_graph,
    quiet_parsing,
    require,
)
from pipeline.meshes.polygons import triangulate
from pipeline.meshes.textures import decode_texture
from pipeline.scene import U8, AlphaMode, Material, MeshError, srgb_to_linear

_UP_AXES = {"X_UP": "+x", "Y_UP": "+y", "Z_UP": "+z"}


def read_dae(data: bytes, references: References, limits: Limits) -> tuple[list[Part], str]:
    """The parts of a COLLADA file and its up axis (+y where it does not say)."""
    import collada

    _check_xml(data, limits)
    with quiet_parsing():
        # What is broken is left out, as every COLLADA importer does; a missing base texture and
        # a scene without triangles are found below.
        document = collada.Collada(io.BytesIO(data), ignore=[collada.DaeError])
        if document.scene is None:
            raise MeshError("no_faces", "the file has no scene")
        placed = list(_placed_primitives(document.scene))
        effects = {id(effect): effect for _, effect, _ in placed if effect is not None}
        names = [name for name in map(_image_name, effects.values()) if name is not None]
        references.require(names, missing="missing_texture")
        images: dict[str, U8] = {}
        surfaces = {
            key: _surface(effect, images, references, limits) for key, effect in effects.items()
        }
        parts: list[Part] = []
        for primitive, effect, transform in placed:
            part = _part(primitive, surfaces.get(id(effect)), transform, limits)
            if part is not None:
                parts.append(part)
    return parts, _UP_AXES.get(str(document.assetInfo.upaxis), "+y")


def _check_xml(data: bytes, limits: Limits) -> None:
    from lxml import etree  # type: ignore[import-untyped, unused-ignore]

    require(not zipfile.is_zipfile(io.BytesIO(data)), "bad_header", "a zip archive named .dae")
    _check_prologue(data)
    # huge_tree lifts a cap of 10 MB on one array of numbers; entities are never expanded.
    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True)
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise MeshError("bad_header", f"not a COLLADA file: {error}"[:300]) from None
    require(etree.QName(root).localname == "COLLADA", "bad_header", "XML, but not COLLADA")
    children: dict[Any, list[Any]] = {}
    by_id: dict[str, Any] = {}
    for node in root.iter("{*}node"):
        if node.get("id"):
            by_id["#" + node.get("id")] = node
    for node in root.iter("{*}node", "{*}visual_scene"):
        targets = [by_id.get(entry.get("url", "")) for entry in node.findall("{*}instance_node")]
        children[node] = list(node.findall("{*}node")) + [t for t in targets if t is not None]
    check_graph(children, children, limits, lambda node: str(node.get("id"))[:80])


class _RootReached(Exception):  # noqa: N818 (ends a parse, and is no error)
    """The first element begins."""


def _check_prologue(data: bytes) -> None:
    """Refuse a document type before anything of it is read.

    Attributes with entities are unfolded whatever one asks of libxml2, and with ``huge_tree``
    older versions of it do so without bound.
    """
    parser = expat.ParserCreate()

    def doctype(*_: object) -> None:
        raise MeshError("bad_header", "the XML has a document type")

    def element(*_: object) -> None:
        raise _RootReached

    parser.StartDoctypeDeclHandler = doctype
    parser.StartElementHandler = element
    try:
        parser.Parse(data, True)
    except _RootReached:
        return
    except (expat.ExpatError, LookupError, ValueError) as error:  # an encoding that is not known
        raise MeshError("bad_header", f"not a COLLADA file: {error}"[:300]) from None


def _bound_geometries(scene: Any) -> Iterator[Any]:
    """Geometries with their matrix and materials; skinned meshes in their bind pose."""
    yield from scene.objects("geometry")
    for bound in scene.objects("controller"):
        geometry = getattr(bound, "geometry", None)
        require(geometry is not None, "unsupported_feature", "the scene has a morph, not supported")
        yield geometry


def _placed_primitives(scene: Any) -> Iterator[tuple[Any, Any, F64]]:
    """(primitive, its effect or None, (4, 4) matrix) of every primitive that the scene places."""
    for bound in _bound_geometries(scene):
        transform = np.asarray(bound.matrix, np.float64)
        for primitive in bound.original.primitives:
            node = bound.materialnodebysymbol.get(primitive.material)
            yield primitive, getattr(getattr(node, "target", None), "effect", None), transform


def _image_name(effect: Any) -> str | None:
    """What the diffuse texture of an effect names, None without one."""
    if not hasattr(effect.diffuse, "sampler"):
        return None
    return str(effect.diffuse.sampler.surface.image.path or "")


def _part(primitive: Any, surface: Surface | None, transform: F64, limits: Limits) -> Part | None:
    """One primitive, its corners unshared; None for points and lines."""
    if hasattr(primitive, "vcounts"):
        primitive = _triangle_set(primitive, limits)
    if not hasattr(primitive, "vertex_index") or primitive.vertex is None:
        return None
    corners = np.asarray(primitive.vertex_index)
    if corners.ndim != 2 or corners.shape[1] != 3:
        return None
    require(len(corners) <= limits.faces, "too_large", f"{len(corners):,} faces")
    vertices = _gather(primitive.vertex, corners)
    normals = None
    if primitive.normal is not None:
        normals = _gather(primitive.normal, primitive.normal_index)
    uv = None
    if len(primitive.texcoordset):
        uv = _gather(primitive.texcoordset[0], primitive.texcoord_indexset[0])[:, :2]
    color = _vertex_colors(primitive)
    # A diffuse colour beside vertex colours is a default of the exporter, not a factor.
    if surface is None or (color is not None and surface.material.texture is None):
        surface = PLAIN if color is None else WHITE
    faces = np.arange(len(vertices)).reshape(-1, 3)
    return Part(vertices, faces, surface, normals, uv, color, transform)


def _triangle_set(polygons: Any, limits: Limits) -> Any:
    """A polylist, or polygons, as triangles. pycollada's own way fans concave polygons, too."""
    from collada.triangleset import TriangleSet

    lengths, there = np.asarray(polygons.vcounts, np.int64), len(polygons.index)
    require(
        bool((lengths >= 0).all()) and lengths.sum() <= there,
        "bad_header",
        f"polygons claim {lengths.sum():,} corners, {there:,} are there",
    )
    if polygons.vertex is None:  # no corners at all
        return polygons
    polygon, corner = triangulate(lengths, polygons.vertex_index, polygons.vertex, limits)
    begins = np.cumsum(lengths) - lengths
    index = polygons.index[begins[polygon, None] + corner]
    return TriangleSet(polygons.sources, polygons.material, index, polygons.xmlnode)


def _gather(values: Any, index: Any) -> F64:
    """Values of all corners, (3 F, columns); an index that is out of range is an error."""
    table = np.asarray(values, np.float64)
    flat = np.asarray(index, np.int64).reshape(-1)
    if len(flat):
        require(
            int(flat.min()) >= 0 and int(flat.max()) < len(table),
            "bad_index",
            f"a face refers to element {int(flat.max())}, there are {len(table)}",
        )
    return np.asarray(table[flat], np.float64)


def _vertex_colors(primitive: Any) -> F64 | None:
    sources: Iterable[Any] = getattr(primitive, "sources", {}).get("COLOR", [])
    for source in sources:
        values = np.asarray(source[4].data, np.float64)
        rows = _gather(values, np.asarray(primitive.index)[:, :, source[0]])
        rgba = np.ones((len(rows), 4))
        rgba[:, :3] = srgb_to_linear(np.clip(rows[:, :3], 0, 1))
        return rgba
    return None


def _surface(effect: Any, images: dict[str, U8], references: References, limits: Limits) -> Surface:
    """A COLLADA effect: its diffuse colour (sRGB) or texture, and its opacity."""
    alpha = _opacity(effect)
    mode: AlphaMode = "blend" if alpha < 1 else "opaque"
    diffuse = effect.diffuse
    name = _image_name(effect)
    if name is not None:
        if name not in images:
            encoded = references.read(name, missing="missing_texture", search=True)
            images[name] = decode_texture(encoded, limits, f"texture {name[:80]!r}")
        if hasattr(effect.transparent, "sampler"):
            mode = "blend"
        return Surface(Material((1.0, 1.0, 1.0, alpha), images[name], mode))
    if diffuse is None:
        return PLAIN
    rgb = np.asarray(diffuse, np.float64)[:3]
    require(bool(np.isfinite(rgb).all()), "not_finite", "a diffuse colour holds NaN")
    red, green, blue = (float(value) for value in srgb_to_linear(np.clip(rgb, 0, 1)))
    return Surface(Material((red, green, blue, alpha), None, mode), explicit=True)


def _opacity(effect: Any) -> float:
    """Opacity in (0, 1] (COLLADA 1.4.1, section "Determining Transparency").

    A material that would be wholly invisible counts as opaque: exporters often write the
    opposite of what they mean.
    """
    transparent, amount = effect.transparent, effect.transparency
    if transparent is None or hasattr(transparent, "sampler") or hasattr(amount, "sampler"):
        return 1.0
    rgba = np.asarray(transparent, np.float64)
    factor = 1.0 if amount is None else float(amount)
    if str(effect.opaque_mode) == "RGB_ZERO":
        opacity = 1 - float(rgba[:3] @ (0.212671, 0.715160, 0.072169)) * factor
    else:
        opacity = float(rgba[3] if len(rgba) > 3 else 1.0) * factor
    return opacity if 0 < opacity < 1 else 1.0
