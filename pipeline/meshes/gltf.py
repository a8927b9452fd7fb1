"""glTF 2.0 (.glb, .gltf) to parts: scene graph, primitives, base colours.

The format is read directly rather than through a library, since the pipeline needs exactly the
base colour and the geometry, and needs them right: sparse and normalised accessors, the texture
coordinates and the transform that the base-colour texture asks for, Draco data that is refused
when it cannot be decoded, and only the base-colour image decoded. Extensions that a file *requires*
and that are not known here are refused (``unsupported_feature``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from pipeline.meshes.files import References
from pipeline.meshes.gltf_data import Array, GltfData, item, parse_json, split_glb, whole
from pipeline.meshes.parts import (
    F64,
    IDENTITY,
    PLAIN,
    WHITE,
    Limits,
    Part,
    Surface,
    check_graph,
    require,
)
from pipeline.meshes.textures import decode_texture
from pipeline.scene import U8, AlphaMode, Material, MeshError

# Extensions that change nothing that is read here, or that are applied.
_KNOWN_EXTENSIONS = {
    "KHR_draco_mesh_compression",
    "KHR_mesh_quantization",
    "KHR_texture_transform",
    "EXT_texture_webp",
    "KHR_lights_punctual",
    "KHR_xmp",
    "KHR_xmp_json_ld",
    "KHR_animation_pointer",
}
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_SPECULAR_GLOSSINESS = "KHR_materials_pbrSpecularGlossiness"


def read_glb(data: bytes, references: References, limits: Limits) -> list[Part]:
    """The parts of a binary glTF file."""
    text, binary = split_glb(data, limits)
    return _Reader(parse_json(text, limits), binary, references, limits).parts()


def read_gltf(data: bytes, references: References, limits: Limits) -> list[Part]:
    """The parts of a JSON glTF file, its buffers and images in ``data:`` URIs or beside it."""
    return _Reader(parse_json(data, limits), b"", references, limits).parts()


class _Reader:
    def __init__(
        self, document: dict[str, Any], binary: bytes, references: References, limits: Limits
    ) -> None:
        self._document = document
        self._data = GltfData(document, binary, references, limits)
        self._limits = limits
        self._images: dict[int, U8] = {}
        self._surfaces: dict[int, tuple[Surface, dict[str, Any]]] = {}
        self._meshes: dict[int, list[Part]] = {}

    def parts(self) -> list[Part]:
        """All triangles of the scene, one part per primitive and instance."""
        for name in self._document.get("extensionsRequired", []):
            require(
                name in _KNOWN_EXTENSIONS or str(name).startswith("KHR_materials_"),
                "unsupported_feature",
                f"requires the glTF extension {name}, which is not supported",
            )
        parts: list[Part] = []
        faces = 0
        for mesh_index, transform in self._placed_meshes():
            for part in self._mesh(mesh_index):
                faces += len(part.faces)
                require(
                    faces <= self._limits.faces,
                    "too_large",
                    f"more than {self._limits.faces:,} faces after instancing",
                )
                parts.append(
                    Part(
                        part.vertices,
                        part.faces,
                        part.surface,
                        part.normals,
                        part.uv,
                        part.color,
                        transform,
                    )
                )
        return parts

    def _placed_meshes(self) -> Iterator[tuple[int, F64]]:
        """(mesh index, world transform) of every node with a mesh, depth first."""
        nodes = [entry for entry in self._document.get("nodes", []) if isinstance(entry, dict)]
        children: list[list[int]] = [entry.get("children", []) for entry in nodes]
        roots = self._roots()
        for index in itertools.chain(roots, *children):
            item(self._document, "nodes", index)
        sizes = check_graph(roots, dict(enumerate(children)), self._limits, "nodes[{}]".format)
        require(
            sum(sizes[root] for root in roots) <= self._limits.nodes,
            "too_large",
            f"the scenes unfold to more than {self._limits.nodes:,} nodes",
        )
        stack = [(root, IDENTITY) for root in reversed(roots)]
        while stack:
            index, parent = stack.pop()
            world = parent @ _local_transform(nodes[index])
            if "mesh" in nodes[index]:
                yield whole(nodes[index], "mesh"), world
            stack.extend((child, world) for child in reversed(children[index]))

    def _roots(self) -> list[int]:
        """Root nodes of the default scene; without scenes, the nodes that are nobody's child."""
        scenes = self._document.get("scenes", [])
        if scenes:
            index = self._document.get("scene", 0)
            return list(item(self._document, "scenes", index).get("nodes", []))
        nodes = self._document.get("nodes", [])
        children = {child for node in nodes for child in node.get("children", [])}
        roots = [index for index in range(len(nodes)) if index not in children]
        require(bool(roots) or not nodes, "cyclic_scene", "every node is the child of another")
        return roots

    def _mesh(self, index: int) -> list[Part]:
        if index not in self._meshes:
            primitives = item(self._document, "meshes", index).get("primitives", [])
            found = (self._primitive(primitive) for primitive in primitives)
            self._meshes[index] = [part for part in found if part is not None]
        return self._meshes[index]

    def _primitive(self, primitive: dict[str, Any]) -> Part | None:
        """One primitive as a part, None for points and lines."""
        mode = primitive.get("mode", _TRIANGLES)
        if mode not in {_TRIANGLES, _STRIP, _FAN}:
            return None
        accessors = primitive["attributes"]
        if "POSITION" not in accessors:
            return None
        draco = primitive.get("extensions", {}).get("KHR_draco_mesh_compression")
        decoded, indices = self._data.draco(draco) if draco else ({}, None)

        def attribute(name: str, columns: tuple[int, ...]) -> Array | None:
            if name not in accessors:
                return None
            if name in decoded:
                values = self._data.normalise_like(decoded[name], accessors[name])
            else:
                values = self._data.accessor(accessors[name])
            require(values.shape[1] in columns, "bad_header", f"{name} has a wrong type")
            return values

        positions = attribute("POSITION", (3,))
        assert positions is not None
        if indices is not None:
            faces = indices
        elif "indices" in primitive:
            flat = self._data.accessor(primitive["indices"])
            require(flat.shape[1] == 1 and flat.dtype.kind == "u", "bad_header", "wrong index type")
            faces = _triangles(flat[:, 0].astype(np.int64), mode)
        else:
            faces = _triangles(np.arange(len(positions)), mode)

        color = attribute("COLOR_0", (3, 4))
        if color is not None:
            color = _rgba(color)
        surface = WHITE if color is not None else PLAIN
        texture_info: dict[str, Any] = {}
        if "material" in primitive:
            surface, texture_info = self._surface(whole(primitive, "material"))
        uv = None
        if surface.material.texture is not None:
            uv = self._uv(attribute, texture_info)
        return Part(positions, faces, surface, attribute("NORMAL", (3,)), uv, color)

    def _uv(self, attribute: Any, info: dict[str, Any]) -> Array | None:
        """Coordinates for the base-colour texture: its set, its transform, origin bottom left."""
        transform = info.get("extensions", {}).get("KHR_texture_transform", {})
        uv_set = transform.get("texCoord", info.get("texCoord", 0))
        uv = attribute(f"TEXCOORD_{uv_set}", (2,))
        if uv is None:
            return None
        uv = uv.astype(np.float64)
        if transform:
            scale = np.asarray(transform.get("scale", [1, 1]), np.float64).reshape(2)
            offset = np.asarray(transform.get("offset", [0, 0]), np.float64).reshape(2)
            cos, sin = (f(float(transform.get("rotation", 0))) for f in (np.cos, np.sin))
            # KHR_texture_transform: translation * rotation * scale. The rotation is counter-
            # clockwise as seen with v pointing down, as the reference viewers have it: the sign of
            # the sine in the extension's own shader listing is the other one.
            uv = (uv * scale) @ np.array([[cos, -sin], [sin, cos]]) + offset
        return np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1)

    def _surface(self, index: int) -> tuple[Surface, dict[str, Any]]:
        """A material and the texture info of its base-colour texture."""
        if index in self._surfaces:
            return self._surfaces[index]
        entry = item(self._document, "materials", index)
        pbr = entry.get("pbrMetallicRoughness", {})
        factor, info = pbr.get("baseColorFactor"), pbr.get("baseColorTexture")
        gloss = entry.get("extensions", {}).get(_SPECULAR_GLOSSINESS)
        if gloss is not None:  # its diffuse colour takes the place of the base colour
            factor, info = gloss.get("diffuseFactor"), gloss.get("diffuseTexture")
        rgba = np.asarray([1, 1, 1, 1] if factor is None else factor, np.float64).reshape(4)
        require(bool(np.isfinite(rgba).all()), "not_finite", f"materials[{index}] holds NaN")
        mode = str(entry.get("alphaMode", "OPAQUE")).lower()
        require(mode in {"opaque", "mask", "blend"}, "bad_header", f"alphaMode is {mode!r}")
        red, green, blue, alpha = (float(value) for value in np.clip(rgba, 0, 1))
        material = Material(
            base_color=(red, green, blue, alpha),
            texture=None if info is None else self._texture(whole(info, "index")),
            alpha_mode=cast(AlphaMode, mode),
            alpha_cutoff=float(entry.get("alphaCutoff", 0.5)),
            double_sided=bool(entry.get("doubleSided", False)),
        )
        self._surfaces[index] = (Surface(material, explicit=factor is not None), info or {})
        return self._surfaces[index]

    def _texture(self, index: int) -> U8:
        entry = item(self._document, "textures", index)
        extensions = entry.get("extensions", {})
        source = extensions.get("EXT_texture_webp", {}).get("source", entry.get("source"))
        if source is None:
            raise MeshError(
                "unsupported_feature",
                f"textures[{index}] has no image that can be read"
                + (f" ({', '.join(sorted(extensions))})" if extensions else ""),
            )
        if source not in self._images:
            image = item(self._document, "images", source)
            if "bufferView" in image:
                data = bytes(self._data.view(image["bufferView"]))
            else:
                data = self._data.resource(image.get("uri"), "missing_texture")
            self._images[source] = decode_texture(data, self._limits, f"images[{source}]")
        return self._images[source]


def _triangles(indices: Array, mode: int) -> Array:
    """Indices of triangles, of a strip or of a fan as faces (F, 3), counter-clockwise."""
    if mode == _TRIANGLES:
        return indices[: len(indices) // 3 * 3].reshape(-1, 3)
    if len(indices) < 3:
        return np.zeros((0, 3), np.int64)
    if mode == _FAN:
        first = np.broadcast_to(indices[:1], (len(indices) - 2,))
        return np.stack([indices[1:-1], indices[2:], first], axis=1)
    faces = np.stack([indices[:-2], indices[1:-1], indices[2:]], axis=1)
    faces[1::2] = faces[1::2][:, [0, 2, 1]]
    distinct = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2])
    return cast(Array, faces[distinct & (faces[:, 0] != faces[:, 2])])


def _rgba(color: Array) -> Array:
    """Vertex colours as linear RGBA floats; integers count as normalised even if not marked."""
    if color.dtype.kind in "iu":
        color = color.astype(np.float32) / np.iinfo(color.dtype).max
    if color.shape[1] == 4:
        return color
    return np.concatenate([color, np.ones((len(color), 1), color.dtype)], axis=1)


def _local_transform(node: dict[str, Any]) -> F64:
    """Parent-from-node matrix of a glTF node: its matrix, or T * R * S."""
    if "matrix" in node:
        return np.asarray(node["matrix"], np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    if "rotation" in node:
        x, y, z, w = np.asarray(node["rotation"], np.float64).reshape(4)
        norm = x * x + y * y + z * z + w * w
        if norm > 0:
            s = 2 / norm
            matrix[:3, :3] = [
                [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
                [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)],
                [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)],
            ]
    if "scale" in node:
        matrix[:3, :3] *= np.asarray(node["scale"], np.float64).reshape(1, 3)
    if "translation" in node:
        matrix[:3, 3] = np.asarray(node["translation"], np.float64).reshape(3)
    return matrix
