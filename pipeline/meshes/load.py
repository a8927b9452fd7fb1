"""``load_mesh``: a file to one flattened, +y-up triangle mesh, or a ``MeshError``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.meshes.files import References, read_file
from pipeline.meshes.gltf import read_glb, read_gltf
from pipeline.meshes.parts import F64, Limits, Part, Surface, check_counts, require
from pipeline.meshes.wrapping import repeating
from pipeline.scene import F32, I32, Material, Mesh, MeshError

# Rows are the +x, +y, +z axes of the result in the file's axes. All are proper rotations; the one
# for +z keeps x and turns the Blender front (-y) to +z.
UP_AXES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "+y": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "-y": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "+z": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "-z": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "+x": ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
    "-x": ((0, 1, 0), (-1, 0, 0), (0, 0, 1)),
}

# A reader yields the parts and, where the format knows it, the up axis.
Reader = Callable[[bytes, References, Limits], tuple[Sequence[Part], str]]


def _glb(data: bytes, references: References, limits: Limits) -> tuple[Sequence[Part], str]:
    return read_glb(data, references, limits), "+y"


def _gltf(data: bytes, references: References, limits: Limits) -> tuple[Sequence[Part], str]:
    if data[:4] == b"glTF":  # a binary file under the name of a text one
        return _glb(data, references, limits)
    return read_gltf(data, references, limits), "+y"


def _obj(data: bytes, references: References, limits: Limits) -> tuple[Sequence[Part], str]:
    from pipeline.meshes.wavefront import read_obj

    return read_obj(data, references, limits), "+y"


def _ply(data: bytes, references: References, limits: Limits) -> tuple[Sequence[Part], str]:
    from pipeline.meshes.simple import read_ply

    return read_ply(data, references, limits), "+y"


def _stl(data: bytes, _: References, limits: Limits) -> tuple[Sequence[Part], str]:
    from pipeline.meshes.simple import read_stl

    return read_stl(data, limits), "+y"


def _off(data: bytes, _: References, limits: Limits) -> tuple[Sequence[Part], str]:
    from pipeline.meshes.simple import read_off

    return read_off(data, limits), "+y"


def _dae(data: bytes, references: References, limits: Limits) -> tuple[Sequence[Part], str]:
    from pipeline.meshes.collada import read_dae

    return read_dae(data, references, limits)


# trimesh (STL) and pycollada are imported when the first such file comes.
_READERS: dict[str, Reader] = {
    ".glb": _glb,
    ".gltf": _gltf,
    ".obj": _obj,
    ".ply": _ply,
    ".stl": _stl,
    ".off": _off,
    ".dae": _dae,
}
SUFFIXES = tuple(_READERS)


def load_mesh(
    path: Path,
    up_axis: str = "auto",
    limits: Limits | None = None,
    *,
    root: Path | None = None,
    data: bytes | None = None,
    texture: str | None = None,
    references: Callable[..., References] = References,
) -> Mesh:
    """Load one mesh file: glb, gltf, obj, ply, stl, off or dae, by its suffix.

    The result is in the asset's own units, centred at the middle of its bounding box (in double
    precision, so that far-away coordinates lose nothing), not scaled: call ``normalised()``.
    The scene graph is flattened, instances included; a mirroring transform turns the winding, and
    normals go by the inverse transpose. Vertices that no face uses are dropped; points and lines
    are ignored. Materials that are equal are merged.

    Args:
        path: the file. References in it are resolved in its folder and, of textures and with
            ``root``, under that; nowhere else.
        up_axis: ``auto`` takes what the format says: +y for glTF, ``<up_axis>`` for COLLADA, and
            +y for obj, ply, stl and off, which do not say. ``+x -x +y -y +z -z`` name the axis
            that points up in the file and override that. The mesh is turned by a proper rotation.
        limits: caps on sizes and counts; the default is ``Limits()``.
        root: a folder above ``path`` within which obj, ply and dae textures may lie, where their
            references say or, by their name, in sibling folders (``../textures``). Default: the
            file's own folder.
        data: the file's bytes where the caller has read them already.
        texture: an image in the file's folder for the materials of an obj file whose library names
            no texture at all.
        references: makes the reader of files that the asset refers to.

    Colours: base-colour factor and texture, vertex colours, emission. glTF is linear as specified;
    colours of the other formats are taken as sRGB, as common viewers do. ``has_color`` is true with
    a texture, with vertex colours that are not all white, or with base-colour factors (emission
    added) given by the asset that say more than one neutral grey: a hue, several greys, or one
    darker than a fifth of white.

    Raises:
        MeshError: stage ``load``; kinds ``missing_file``, ``not_a_file``, ``unreadable``,
            ``unsupported_format``, ``empty_file``, ``bad_header``, ``parse_error``, ``too_large``,
            ``outside_reference``, ``missing_buffer``, ``missing_texture``,
            ``bad_texture``, ``unsupported_texture``, ``unsupported_feature``, ``needs_library``,
            ``undecoded``, ``cyclic_scene``, ``bad_index``, ``not_finite``, ``no_faces``,
            ``zero_extent``.
        ValueError: ``up_axis`` is none of the above.

    """
    if up_axis != "auto" and up_axis not in UP_AXES:
        raise ValueError(f"up_axis {up_axis!r}: use auto or one of {', '.join(UP_AXES)}")
    limits = limits or Limits()
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise MeshError("unsupported_format", f"{path.suffix or path.name!r} is no mesh format")
    if data is None:
        data = read_file(path, limits.file_bytes, "the mesh file")
    require(len(data) <= limits.file_bytes, "too_large", f"the file has {len(data):,} bytes")
    require(bool(data), "empty_file", "the file has zero bytes")
    found = references(path.parent, root, limits, used_bytes=len(data), texture=texture)
    try:
        parts, file_axis = reader(data, found, limits)
        axis = file_axis if up_axis == "auto" else up_axis
        return _assemble(parts, np.asarray(UP_AXES[axis], np.float64), limits)
    except MeshError:
        raise
    except MemoryError:
        raise MeshError("too_large", "the file does not fit into memory") from None
    except RecursionError:
        raise MeshError("parse_error", "the file is nested too deeply") from None
    except Exception as error:  # parsers raise anything on hostile bytes; the asset fails alone
        raise MeshError("parse_error", f"{type(error).__name__}: {error}"[:300]) from error


def _assemble(parts: Sequence[Part], rotation: F64, limits: Limits) -> Mesh:
    """Place, validate and concatenate the parts."""
    parts = [part for part in parts if len(part.faces)]
    require(bool(parts), "no_faces", "the file holds no triangles")
    check_counts(limits, faces=sum(len(part.faces) for part in parts))
    placed = repeating([_place(part, rotation) for part in parts], limits)
    check_counts(limits, vertices=sum(len(part.vertices) for part in placed))

    counts = np.array([len(part.vertices) for part in placed])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    faces = np.concatenate(
        [part.faces + start for part, start in zip(placed, starts, strict=True)]
    ).astype(np.int32)
    vertices = np.concatenate([part.vertices for part in placed])
    low, high = vertices.min(0), vertices.max(0)
    with np.errstate(over="ignore"):
        centred = (vertices - (low / 2 + high / 2)).astype(np.float32)
    require(bool(np.isfinite(centred).all()), "not_finite", "vertex positions overflow")
    # Decoders that fail without saying so hand back vertices that are all alike.
    require(bool((high > low).any()), "zero_extent", "all vertices coincide (undecoded geometry?)")

    materials, face_material = _merge_materials(placed)
    textured = any(
        image is not None
        for material in materials
        for image in (material.texture, material.emissive_texture)
    )
    return Mesh(
        vertices=centred,
        faces=faces,
        face_material=face_material,
        materials=materials,
        normals=_join([part.normals for part in placed], counts, None),
        uv=_join([part.uv for part in placed], counts, (0.0, 0.0)) if textured else None,
        vertex_color=_join([part.color for part in placed], counts, (1.0, 1.0, 1.0, 1.0)),
        has_color=textured or _says_color(placed),
    )


def _place(part: Part, rotation: F64) -> Part:
    """Drop unused vertices, check indices and positions, apply transform and rotation."""
    faces = np.asarray(part.faces, np.int64)
    count = len(part.vertices)
    lowest, highest = int(faces.min()), int(faces.max())
    require(
        lowest >= 0 and highest < count,
        "bad_index",
        f"a face refers to vertex {lowest if lowest < 0 else highest}, there are {count}",
    )
    used = np.zeros(count, bool)
    used[faces.ravel()] = True

    def rows(values: NDArray[Any] | None, columns: int) -> F64 | None:
        if values is None:
            return None
        require(
            np.shape(values) == (count, columns),
            "bad_header",
            f"an attribute has shape {np.shape(values)} for {count} vertices",
        )
        return np.asarray(values if used.all() else values[used], np.float64)

    vertices, normals = rows(part.vertices, 3), rows(part.normals, 3)
    uv, color = rows(part.uv, 2), rows(part.color, 4)
    assert vertices is not None
    if not used.all():
        faces = (np.cumsum(used) - 1)[faces]
    require(
        bool(np.isfinite(vertices).all()), "not_finite", "vertex positions hold NaN or infinity"
    )
    require(
        part.transform.shape == (4, 4) and bool(np.isfinite(part.transform).all()),
        "not_finite",
        "a transform holds NaN or infinity",
    )
    linear = rotation @ part.transform[:3, :3]
    with np.errstate(over="ignore", invalid="ignore"):
        vertices = vertices @ linear.T + rotation @ part.transform[:3, 3]
        mirrored = float(np.linalg.det(linear)) < 0
    require(bool(np.isfinite(vertices).all()), "not_finite", "placed positions overflow")
    if mirrored:
        faces = faces[:, [0, 2, 1]]
    if normals is not None:
        normals = _turn_normals(normals, linear, mirrored, vertices, faces)
    surface = part.surface
    if uv is not None:
        uv = np.where(np.isfinite(uv), uv, 0.0)
    else:  # an image without coordinates says nothing about any point
        surface = Surface(_without_texture(surface.material), surface.explicit)
    if color is not None:
        color = np.clip(np.nan_to_num(color, nan=1.0), 0, 1)
        color = None if (color >= 0.999).all() else color
    return Part(vertices, faces, surface, normals, uv, color)


def _without_texture(material: Material) -> Material:
    if material.emissive_texture is not None:
        material = replace(material, emissive=(0.0, 0.0, 0.0), emissive_texture=None)
    return material if material.texture is None else replace(material, texture=None)


def _turn_normals(
    normals: F64,
    linear: F64,
    mirrored: bool,
    vertices: F64,
    faces: NDArray[Any],
) -> F64 | None:
    """Unit normals by the inverse transpose; broken ones from the faces; None where all are."""
    # The cofactor matrix is det * inverse transpose and exists for singular transforms too.
    a, b, c = linear
    cofactor = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)])
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        turned = normals @ (-cofactor if mirrored else cofactor).T
        # Scaled first: the cofactor of a tiny scale would underflow when squared.
        turned = turned / np.abs(turned).max(axis=1, keepdims=True)
        turned = turned / np.linalg.norm(turned, axis=1, keepdims=True)
    broken = ~np.isfinite(turned).all(axis=1)
    if broken.all():
        return None
    if broken.any():
        corners = vertices[faces]
        weighted = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        total = np.stack(
            [
                np.bincount(faces.ravel(), np.repeat(weighted[:, axis], 3), len(vertices))
                for axis in range(3)
            ],
            axis=1,
        )
        lengths = np.linalg.norm(total, axis=1, keepdims=True)
        fallback = np.where(lengths > 0, total / np.where(lengths > 0, lengths, 1), (0.0, 1.0, 0.0))
        turned[broken] = fallback[broken]
    return np.asarray(turned, np.float64)


def _join(
    columns: Sequence[NDArray[Any] | None],
    counts: NDArray[Any],
    default: tuple[float, ...] | None,
) -> F32 | None:
    """Concatenate a per-vertex attribute; parts that lack it get the default.

    Without a default (normals) the result is None unless all parts have the attribute.
    """
    if all(column is None for column in columns):
        return None
    if default is None and any(column is None for column in columns):
        return None
    rows = [
        np.broadcast_to(np.asarray(default), (count, len(default or ())))
        if column is None
        else column
        for column, count in zip(columns, counts, strict=True)
    ]
    return np.concatenate(rows).astype(np.float32)


def _merge_materials(parts: Sequence[Part]) -> tuple[tuple[Material, ...], I32]:
    """Distinct materials in order of appearance, and each face's index into them."""
    merged: dict[object, int] = {}
    materials: list[Material] = []
    indices = []
    for part in parts:
        material = part.surface.material
        key = (
            material.base_color,
            id(material.texture),
            material.alpha_mode,
            material.alpha_cutoff,
            material.double_sided,
            material.unlit,
            material.emissive,
            id(material.emissive_texture),
        )
        if key not in merged:
            merged[key] = len(materials)
            materials.append(material)
        indices.append(merged[key])
    sizes = [len(part.faces) for part in parts]
    return tuple(materials), np.repeat(np.array(indices, np.int32), sizes)


def _says_color(parts: Sequence[Part]) -> bool:
    """Whether vertex colours or explicit base-colour factors say a colour; see ``load_mesh``."""
    if any(part.color is not None for part in parts):
        return True
    said = [part.surface.material for part in parts if part.surface.explicit]
    if not said:
        return False
    factors = np.array([material.base_color[:3] for material in said])
    factors = np.minimum(factors + np.array([material.emissive for material in said]), 1)
    hue = factors.max(axis=1) - factors.min(axis=1)
    different = np.abs(factors - factors[0]).max()
    return bool(hue.max() > 0.02 or different > 0.05 or factors.min() < 0.2)
