"""glTF 2.0 (.glb, .gltf) to parts: scene graph, primitives, base colours.

The format is read directly rather than through a library, since the pipeline needs exactly the
base colour and the geometry, and needs them right: sparse and normalised accessors, the texture
coordinates and the transform that a texture asks for, the rest pose of skins and morph targets,
compressed data that is refused when it cannot be decoded, and only those images decoded that show.
Extensions that a file *requires* and that are not known here are refused
(``unsupported_feature``). ``docs/gltf.md`` lists every feature.

- ``gltf_data``: buffers, views and accessors; ``draco``, ``meshopt``: their compressed forms;
- ``gltf_pose``: transforms, instances, morph targets, skins;
- ``gltf_materials``: materials, textures.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np

from pipeline.meshes.files import References
from pipeline.meshes.gltf_data import Array, GltfData, item, parse_json, split_glb, whole
from pipeline.meshes.gltf_materials import Materials
from pipeline.meshes.gltf_pose import (
    Morph,
    Skins,
    instance_transforms,
    local_transform,
    morph_weights,
    skin_vertices,
)
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

# Extensions that are applied, or that change nothing that is read here.
_KNOWN_EXTENSIONS = {
    "EXT_mesh_gpu_instancing",
    "EXT_meshopt_compression",
    "EXT_texture_avif",
    "EXT_texture_webp",
    "KHR_animation_pointer",
    "KHR_draco_mesh_compression",
    "KHR_lights_punctual",
    "KHR_mesh_quantization",
    "KHR_meshopt_compression",
    "KHR_node_visibility",
    "KHR_texture_basisu",
    "KHR_texture_transform",
    "KHR_xmp",
    "KHR_xmp_json_ld",
    "MSFT_texture_dds",
}
_TRIANGLES, _STRIP, _FAN = 4, 5, 6

# A part, and whether a skin has placed it: then the transform of its node means nothing.
_Placed = tuple[Part, bool]


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
        self._nodes = [entry for entry in document.get("nodes", []) if isinstance(entry, dict)]
        self._materials = Materials(self._data, limits)
        self._skins = Skins(self._data, self._nodes)
        self._meshes: dict[tuple[int, tuple[float, ...], int | None], list[_Placed]] = {}
        self._deformed = 0  # vertices that a skin or a morph target has moved
        self._without_surface = 0  # primitives of points or lines

    def parts(self) -> list[Part]:
        """All triangles of the scene, one part per primitive and instance."""
        for name in self._document.get("extensionsRequired", []):
            require(
                name in _KNOWN_EXTENSIONS or str(name).startswith("KHR_materials_"),
                "unsupported_feature",
                f"requires the glTF extension {str(name)[:80]}, which is not supported",
            )
        parts: list[Part] = []
        faces = 0
        for node, world in self._placed_meshes():
            transforms = [world]
            instancing = node.get("extensions", {}).get("EXT_mesh_gpu_instancing")
            if instancing is not None:
                transforms = list(world @ instance_transforms(self._data, instancing, self._limits))
            for part, skinned in self._mesh(node):
                for transform in [IDENTITY] if skinned else transforms:
                    faces += len(part.faces)
                    require(
                        faces <= self._limits.faces,
                        "too_large",
                        f"more than {self._limits.faces:,} faces after instancing",
                    )
                    require(
                        len(parts) < self._limits.nodes,
                        "too_large",
                        f"more than {self._limits.nodes:,} primitives after instancing",
                    )
                    parts.append(replace(part, transform=transform))
        require(
            bool(parts) or not self._without_surface,
            "no_faces",
            f"only points or lines ({self._without_surface} primitives), no triangles",
        )
        return parts

    def _placed_meshes(self) -> Iterator[tuple[dict[str, Any], F64]]:
        """(node, world transform) of every visible node with a mesh, depth first."""
        nodes = self._nodes
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
            node = nodes[index]
            if not node.get("extensions", {}).get("KHR_node_visibility", {}).get("visible", True):
                continue  # nor is anything below it
            world = parent @ local_transform(node)
            if "mesh" in node:
                yield node, world
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

    def _mesh(self, node: dict[str, Any]) -> list[_Placed]:
        """Primitives with faces of a node's mesh, in the pose that the node asks for."""
        index = whole(node, "mesh")
        mesh = item(self._document, "meshes", index)
        weights = morph_weights(node, mesh)
        skin = whole(node, "skin") if "skin" in node else None
        key = (index, weights, skin)
        if key not in self._meshes:
            primitives = mesh.get("primitives", [])
            found = (self._primitive(primitive, weights, skin) for primitive in primitives)
            self._meshes[key] = [
                placed for placed in found if placed is not None and len(placed[0].faces)
            ]
        return self._meshes[key]

    def _primitive(
        self, primitive: dict[str, Any], weights: tuple[float, ...], skin: int | None
    ) -> _Placed | None:
        """One primitive as a part, None for points and lines."""
        mode = primitive.get("mode", _TRIANGLES)
        accessors = primitive["attributes"]
        if mode not in {_TRIANGLES, _STRIP, _FAN}:
            self._without_surface += 1
            return None
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
        surface, placing = WHITE if color is not None else PLAIN, None
        if "material" in primitive:
            surface, placing = self._materials.surface(whole(primitive, "material"))
        uv, uv_name = None, ""
        if placing is not None and _has_texture(surface):
            uv_name = f"TEXCOORD_{placing.uv_set}"
            uv = attribute(uv_name, (2,))
        normals = attribute("NORMAL", (3,))

        morph = Morph(self._data, primitive, weights, self._limits)
        joints = _sets(attribute, "JOINTS") if skin is not None else None
        shares = _sets(attribute, "WEIGHTS") if skin is not None else None
        skinned = joints is not None and shares is not None
        if (morph or skinned) and len(faces):
            # Of the vertices in use alone: primitives may share the arrays of a whole scene.
            rows, faces = self._used(faces, len(positions))
            self._deformed += len(rows)
            require(
                self._deformed <= self._limits.vertices, "too_large", "too many vertices to pose"
            )

            def posed(name: str, values: Array | None) -> Array | None:
                if values is None:
                    return None
                require(len(values) == count, "bad_header", f"{name} is not one per vertex")
                return morph.apply(name, values[rows], rows) if name else values[rows]

            count = len(positions)
            positions = cast(Array, posed("POSITION", positions))
            normals, uv = posed("NORMAL", normals), posed(uv_name, uv)
            color = posed("COLOR_0", color)
            if skinned:
                assert skin is not None
                positions, normals, mirrored = skin_vertices(
                    positions.astype(np.float64),
                    None if normals is None else normals.astype(np.float64),
                    cast(Array, posed("", joints)).astype(np.int64),
                    cast(Array, posed("", shares)).astype(np.float64),
                    self._skins.matrices(skin),
                )
                if mirrored:
                    faces = faces[:, [0, 2, 1]]
        if uv is not None and placing is not None:
            uv = placing.apply(uv)
        return Part(positions, faces, surface, normals, uv, color), skinned

    def _used(self, faces: Array, count: int) -> tuple[Array, Array]:
        """The vertices that faces name, ascending, and the faces in terms of these."""
        lowest, highest = int(faces.min()), int(faces.max())
        require(
            lowest >= 0 and highest < count,
            "bad_index",
            f"a face refers to vertex {highest}, there are {count}",
        )
        rows = np.unique(faces)
        return rows, np.searchsorted(rows, faces)


def _has_texture(surface: Surface) -> bool:
    material = surface.material
    return material.texture is not None or material.emissive_texture is not None


def _sets(attribute: Callable[[str, tuple[int, ...]], Array | None], name: str) -> Array | None:
    """``name``_0, and ``name``_1 beside it where there is one: (V, 4) or (V, 8)."""
    first, second = attribute(f"{name}_0", (4,)), attribute(f"{name}_1", (4,))
    if first is None or second is None:
        return first
    require(len(first) == len(second), "bad_header", f"{name}_0 and {name}_1 differ in length")
    return np.concatenate([first, second], axis=1)


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
