"""Where the vertices of a glTF mesh stand: node transforms, instances, morph targets and skins.

All in the rest pose: the transforms and weights that the nodes state, no animation played.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.meshes.gltf_data import Array, GltfData, item, whole
from pipeline.meshes.parts import F64, I64, Limits, require
from pipeline.scene import MeshError

_CHUNK = 65536  # vertices that are skinned at a time


def local_transform(node: dict[str, Any]) -> F64:
    """Parent-from-node matrix of a glTF node: its matrix, or T * R * S."""
    if "matrix" in node:
        return np.asarray(node["matrix"], np.float64).reshape(4, 4).T

    def row(key: str, columns: int) -> F64 | None:
        return np.asarray(node[key], np.float64).reshape(1, columns) if key in node else None

    matrix: F64 = compose(row("translation", 3), row("rotation", 4), row("scale", 3), 1)[0]
    return matrix


def compose(translation: F64 | None, rotation: F64 | None, scale: F64 | None, count: int) -> F64:
    """Matrices T * R * S (count, 4, 4) of (count, 3), quaternions (count, 4) xyzw, (count, 3)."""
    matrices = np.tile(np.eye(4), (count, 1, 1))
    if rotation is not None:
        x, y, z, w = rotation.T
        norm = x * x + y * y + z * z + w * w
        s = np.where(norm > 0, 2 / np.where(norm > 0, norm, 1), 0)  # no rotation from a null one
        matrices[:, :3, :3] = np.moveaxis(
            np.array(
                [
                    [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
                    [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)],
                    [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)],
                ]
            ),
            2,
            0,
        )
    if scale is not None:
        matrices[:, :3, :3] *= scale[:, None, :]
    if translation is not None:
        matrices[:, :3, 3] = translation
    return matrices


def instance_transforms(data: GltfData, extension: dict[str, Any], limits: Limits) -> F64:
    """Node-from-instance matrices (N, 4, 4) of EXT_mesh_gpu_instancing."""
    attributes = extension.get("attributes", {})
    found: dict[str, F64] = {}
    for name, columns in (("TRANSLATION", 3), ("ROTATION", 4), ("SCALE", 3)):
        if name in attributes:
            count = whole(item(data.document, "accessors", attributes[name]), "count")
            require(count <= limits.nodes, "too_large", f"{count:,} instances of one node")
            values = data.accessor(attributes[name])
            require(values.shape[1] == columns, "bad_header", f"{name} has a wrong type")
            found[name] = values.astype(np.float64)
    counts = {len(values) for values in found.values()}
    require(len(counts) == 1, "bad_header", "attributes of instances differ in number, or lack")
    return compose(
        found.get("TRANSLATION"), found.get("ROTATION"), found.get("SCALE"), counts.pop()
    )


class Skins:
    """Joint matrices of a document's skins: world transform of the joint x inverse bind matrix."""

    def __init__(self, data: GltfData, nodes: Sequence[dict[str, Any]]) -> None:
        self._data, self._nodes = data, nodes
        self._parents: dict[int, int] | None = None
        self._worlds: dict[int, F64] = {}
        self._matrices: dict[int, F64] = {}

    def matrices(self, index: int) -> F64:
        """(J, 4, 4) of skin ``index``. Raises ``bad_header``, ``cyclic_scene``."""
        if index not in self._matrices:
            skin = item(self._data.document, "skins", index)
            joints = skin.get("joints", [])
            for joint in joints:
                item(self._data.document, "nodes", joint)
            require(bool(joints), "bad_header", f"skins[{index}] has no joints")
            worlds = np.stack([self._world(joint) for joint in joints])
            if "inverseBindMatrices" in skin:
                values = self._data.accessor(skin["inverseBindMatrices"])
                require(
                    values.shape[1] == 16 and len(values) >= len(joints),
                    "bad_header",
                    f"skins[{index}] has {len(joints)} joints, {len(values)} inverse bind matrices",
                )
                columns = values[: len(joints)].astype(np.float64).reshape(-1, 4, 4)
                worlds = worlds @ columns.transpose(0, 2, 1)
            self._matrices[index] = worlds
        return self._matrices[index]

    def _world(self, index: int) -> F64:
        """World transform of a node, in a scene or not."""
        if self._parents is None:
            self._parents = {}
            for parent, node in enumerate(self._nodes):
                for child in node.get("children", []):
                    self._parents.setdefault(child, parent)
        path: list[int] = []
        at: int | None = index
        while at is not None and at not in self._worlds:
            require(len(path) <= len(self._nodes), "cyclic_scene", f"nodes[{at}] is its ancestor")
            path.append(at)
            at = self._parents.get(at)
        world = np.eye(4) if at is None else self._worlds[at]
        for step in reversed(path):
            world = world @ local_transform(self._nodes[step])
            self._worlds[step] = world
        return self._worlds[index]


def skin_vertices(
    positions: F64, normals: F64 | None, joints: I64, weights: F64, matrices: F64
) -> tuple[F64, F64 | None, bool]:
    """Vertices (V, 3) and normals of a skin: each moved by the weighted mean of joint matrices.

    Args:
        positions: (V, 3).
        normals: (V, 3) or None.
        joints: (V, K) indices into ``matrices``.
        weights: (V, K); made to sum to 1. Where all are zero the first joint has all.
        matrices: (J, 4, 4), see ``Skins``.

    Returns:
        positions, normals (by the inverse transpose, not normalised), and whether most vertices
        are mirrored. Raises ``bad_index`` for a joint that does not exist.
    """
    used = weights != 0
    used[:, 0] = True
    low, high = joints.min(initial=0, where=used), joints.max(initial=0, where=used)
    require(
        low >= 0 and high < len(matrices),
        "bad_index",
        f"a vertex names joint {high}, the skin has {len(matrices)}",
    )
    total = weights.sum(1, keepdims=True)
    shares = np.where(total > 0, weights / np.where(total > 0, total, 1), 0)
    shares[:, 0] += total[:, 0] <= 0
    joints = np.where(used, joints, 0)
    moved = np.empty_like(positions)
    turned = None if normals is None else np.empty_like(normals)
    mirrored = 0
    affine = matrices[:, :3]
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(positions), _CHUNK):
            rows = slice(start, start + _CHUNK)
            blend = np.zeros((len(positions[rows]), 3, 4))
            for k in range(joints.shape[1]):
                blend += shares[rows, k, None, None] * affine[joints[rows, k]]
            linear = blend[:, :, :3]
            moved[rows] = np.einsum("nij,nj->ni", linear, positions[rows]) + blend[:, :, 3]
            a, b, c = linear[:, 0], linear[:, 1], linear[:, 2]
            negative = np.einsum("ni,ni->n", a, np.cross(b, c)) < 0
            mirrored += int(negative.sum())
            if turned is not None and normals is not None:
                cofactor = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=1)
                sign = np.where(negative, -1.0, 1.0)[:, None]
                turned[rows] = sign * np.einsum("nij,nj->ni", cofactor, normals[rows])
    return moved, turned, 2 * mirrored > len(positions)


def morph_weights(node: dict[str, Any], mesh: dict[str, Any]) -> tuple[float, ...]:
    """Weights of the morph targets: the node's, else the mesh's, else none."""
    values = node.get("weights", mesh.get("weights", []))
    weights = tuple(float(value) for value in values)
    require(bool(np.isfinite(weights).all()), "not_finite", "a morph weight is no number")
    return weights if any(weights) else ()


class Morph:
    """Adds the weighted targets of one primitive to its attributes."""

    def __init__(
        self, data: GltfData, primitive: dict[str, Any], weights: tuple[float, ...], limits: Limits
    ) -> None:
        targets = primitive.get("targets", []) if weights else []
        self._targets = [
            (target, weight) for target, weight in zip(targets, weights, strict=False) if weight
        ]
        self._data, self._budget = data, 16 * limits.vertices

    def __bool__(self) -> bool:
        return bool(self._targets)

    def apply(self, name: str, values: Array, rows: NDArray[np.intp]) -> Array:
        """``values`` (of the vertices ``rows``) of the attribute with all targets added."""
        found = [(target[name], weight) for target, weight in self._targets if name in target]
        if not found:
            return values
        total = values.astype(np.float64)
        for accessor, weight in found:
            delta = self._data.accessor(accessor, zeros=True)
            self._budget -= len(delta)
            require(self._budget >= 0, "too_large", "morph targets of too many vertices")
            if delta.shape[1] > total.shape[1] or (len(rows) and rows[-1] >= len(delta)):
                raise MeshError("bad_header", f"a morph target of {name} does not fit")
            total[:, : delta.shape[1]] += weight * delta[rows]
        return total
