"""Loading meshes: every format, scene graphs, axes, materials; real assets against trimesh."""

from __future__ import annotations

import base64
import csv
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray

from pipeline.meshes import UP_AXES, Limits, load_mesh
from pipeline.scene import Mesh, MeshError, linear_to_srgb, srgb_to_linear
from tests.pipeline.gltf_files import (
    CUBE_CORNERS,
    CUBE_FACES,
    Builder,
    cube_glb,
    png,
    quad_glb,
)


def load_bytes(folder: Path, name: str, data: bytes | str, **options: Any) -> Mesh:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return load_mesh(path, **options)


def export(mesh: trimesh.Trimesh, kind: str) -> bytes:
    """A mesh as a file of trimesh."""
    data = mesh.export(file_type=kind)
    assert isinstance(data, bytes | str)
    return data.encode() if isinstance(data, str) else data


def signed_volume(mesh: Mesh) -> float:
    a, b, c = (mesh.vertices[mesh.faces[:, i]].astype(np.float64) for i in range(3))
    return float(np.einsum("nk,nk->n", a, np.cross(b, c)).sum() / 6)


def extents(mesh: Mesh) -> NDArray[np.float32]:
    size: NDArray[np.float32] = mesh.vertices.max(0) - mesh.vertices.min(0)
    return size


def outward(mesh: Mesh) -> bool:
    """Whether the normals of a convex mesh around the origin point away from it."""
    assert mesh.normals is not None
    return bool((np.einsum("nk,nk->n", mesh.normals, mesh.vertices) > 0).all())


# -- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply", "stl", "off", "dae"])
def test_load__every_format_keeps_shape_and_winding(tmp_path: Path, suffix: str) -> None:
    box = trimesh.Trimesh(CUBE_CORNERS, CUBE_FACES, process=False)
    box.export(tmp_path / f"box.{suffix}")
    mesh = load_mesh(tmp_path / f"box.{suffix}")
    assert mesh.vertices.dtype == np.float32
    assert mesh.faces.dtype == np.int32
    assert len(mesh.faces) == 12
    np.testing.assert_allclose(extents(mesh), [2, 4, 6], atol=1e-5)
    assert signed_volume(mesh) == pytest.approx(48, rel=1e-5)
    assert np.linalg.norm(mesh.normalised().vertices, axis=1).max() == pytest.approx(1, abs=1e-6)


def test_load__gltf_with_files_beside_it_and_with_data_uris(tmp_path: Path) -> None:
    builder = Builder()
    builder.node(mesh=builder.mesh(CUBE_CORNERS, CUBE_FACES))
    document = {**builder.document, "buffers": [{"byteLength": len(builder.binary)}]}
    document["buffers"][0]["uri"] = "the%20data.bin"
    (tmp_path / "the data.bin").write_bytes(builder.binary)
    beside = load_bytes(tmp_path, "a.gltf", json.dumps(document))
    encoded = base64.b64encode(builder.binary).decode()
    document["buffers"][0]["uri"] = "data:application/octet-stream;base64," + encoded
    inline = load_bytes(tmp_path, "b.gltf", json.dumps(document))
    np.testing.assert_array_equal(beside.vertices, inline.vertices)
    assert signed_volume(beside) == pytest.approx(48)


def test_load__ascii_stl_is_welded(tmp_path: Path) -> None:
    box = trimesh.Trimesh(CUBE_CORNERS, CUBE_FACES, process=False)
    mesh = load_bytes(tmp_path, "box.stl", export(box, "stl_ascii"))
    assert mesh.vertices.shape == (8, 3)
    assert signed_volume(mesh) == pytest.approx(48, rel=1e-5)


def test_load__binary_stl_with_padding_at_the_end(tmp_path: Path) -> None:
    box = trimesh.Trimesh(CUBE_CORNERS, CUBE_FACES, process=False)
    mesh = load_bytes(tmp_path, "box.stl", export(box, "stl") + b"\0" * 7)
    assert len(mesh.faces) == 12


@pytest.mark.parametrize("header", ["OFF\n4 2 0\n", "OFF4 2 0\n", "# made\nOFF 4 2 0\n"])
def test_load__off_headers_and_polygons(tmp_path: Path, header: str) -> None:
    body = "0 0 0\n1 0 0\n1 1 0 # corner\n0 1 0\n\n4 0 1 2 3\n3 0 1 2\n"
    mesh = load_bytes(tmp_path, "a.off", header + body)
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 2]]
    assert not mesh.has_color


def test_load__off_vertex_and_face_colours_are_srgb(tmp_path: Path) -> None:
    body = "3 1 0\n0 0 0 255 0 0\n1 0 0 0 255 0\n0 1 0 0 0 188\n3 0 1 2\n"
    mesh = load_bytes(tmp_path, "v.off", "COFF\n" + body)
    assert mesh.vertex_color is not None
    assert mesh.vertex_color[2, 2] == pytest.approx(0.5, abs=0.005)
    faces = "3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2 0.0 0.5 1.0\n"
    by_face = load_bytes(tmp_path, "f.off", "OFF\n" + faces)
    assert by_face.vertex_color is not None
    np.testing.assert_allclose(
        linear_to_srgb(by_face.vertex_color[:, :3]), [[0, 0.5, 1]] * 3, atol=1e-3
    )


def test_load__ply_colours_become_linear(tmp_path: Path) -> None:
    box = trimesh.Trimesh(CUBE_CORNERS, CUBE_FACES, process=False)
    box.visual = trimesh.visual.ColorVisuals(
        vertex_colors=np.array([[188, 0, 255, 255]] * 8, np.uint8)
    )
    mesh = load_bytes(tmp_path, "box.ply", export(box, "ply"))
    assert mesh.has_color
    assert mesh.vertex_color is not None
    np.testing.assert_allclose(mesh.vertex_color[0], [0.503, 0, 1, 1], atol=1e-3)
    assert mesh.materials[0].base_color == (1, 1, 1, 1)


def test_load__ply_face_colours_are_kept_per_face(tmp_path: Path) -> None:
    box = trimesh.Trimesh(CUBE_CORNERS, CUBE_FACES, process=False)
    colors = np.full((12, 4), 255, np.uint8)
    colors[:, 0] = np.arange(12) * 20
    box.visual = trimesh.visual.ColorVisuals(box, face_colors=colors)
    mesh = load_bytes(tmp_path, "box.ply", export(box, "ply"))
    assert mesh.vertex_color is not None
    seen = linear_to_srgb(mesh.vertex_color[mesh.faces][:, :, 0]) * 255
    np.testing.assert_allclose(seen, np.repeat(np.arange(12) * 20.0, 3).reshape(12, 3), atol=0.5)


# -- scene graph ---------------------------------------------------------------------------------


def test_gltf__instances_are_placed_and_mirrored_ones_turned(tmp_path: Path) -> None:
    builder = Builder()
    normals = builder.accessor(CUBE_CORNERS / np.linalg.norm(CUBE_CORNERS, axis=1)[:, None], "f4")
    mesh = builder.mesh(CUBE_CORNERS, CUBE_FACES, {"NORMAL": normals})
    builder.node(mesh=mesh, scale=[-0.5, 1, 2])
    one = load_bytes(tmp_path, "one.glb", builder.glb())
    assert signed_volume(one) == pytest.approx(48)  # a wrong winding would make it negative
    assert outward(one)
    # The inverse transpose, not the matrix itself: for a corner normal of the box.
    direction = np.array([1 / 0.5, 2, 3 / 2])
    expected = direction / np.linalg.norm(direction)
    assert one.normals is not None
    np.testing.assert_allclose(np.abs(one.normals[0]), expected, atol=1e-5)

    builder.node(mesh=mesh, translation=[10, 0, 0])
    two = load_bytes(tmp_path, "two.glb", builder.glb())
    assert len(two.faces) == 24
    assert len(two.materials) == 1
    assert extents(two)[0] == pytest.approx(10 + 1 + 0.5)


def test_gltf__nested_transforms_equal_their_product(tmp_path: Path) -> None:
    quarter = [0, 0, np.sqrt(0.5), np.sqrt(0.5)]  # 90 degrees about z
    builder = Builder()
    mesh = builder.mesh(CUBE_CORNERS, CUBE_FACES)
    child = builder.node(root=False, mesh=mesh, translation=[1, 0, 0], scale=[1, 3, 1])
    anchor = builder.node(root=False, mesh=mesh)
    builder.node(rotation=quarter, scale=[2, 2, 2], children=[child])
    builder.document["scenes"][0]["nodes"].append(anchor)
    nested = load_bytes(tmp_path, "a.glb", builder.glb())

    flat = Builder()
    mesh = flat.mesh(CUBE_CORNERS, CUBE_FACES)
    rotation = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float)
    product = rotation @ np.diag([2, 2, 2, 1.0])
    product = product @ np.array([[1, 0, 0, 1], [0, 3, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float)
    flat.node(mesh=mesh, matrix=product.T.ravel().tolist())
    flat.node(mesh=mesh)
    expected = load_bytes(tmp_path, "b.glb", flat.glb())
    np.testing.assert_allclose(nested.vertices, expected.vertices, atol=1e-5)


def test_gltf__strips_fans_and_lists_give_the_same_surface(tmp_path: Path) -> None:
    square = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]
    areas = []
    for mode, order in ((4, [0, 1, 2, 2, 1, 3]), (5, [0, 1, 2, 3]), (6, [0, 1, 3, 2])):
        builder = Builder()
        builder.node(mesh=builder.mesh(square, order, mode=mode))
        mesh = load_bytes(tmp_path, f"{mode}.glb", builder.glb())
        a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
        areas.append(np.cross(b - a, c - a).sum(0))
    for area in areas:  # signed: all wind towards +z
        np.testing.assert_allclose(area, [0, 0, 2], atol=1e-6)


def test_gltf__lines_and_points_are_dropped(tmp_path: Path) -> None:
    builder = Builder()
    mesh = builder.mesh(CUBE_CORNERS, CUBE_FACES)
    primitives = builder.document["meshes"][mesh]["primitives"]
    primitives += [{**primitives[0], "mode": 0}, {**primitives[0], "mode": 1}]
    builder.node(mesh=mesh)
    assert len(load_bytes(tmp_path, "a.glb", builder.glb()).faces) == 12


def test_gltf__sparse_and_normalised_accessors(tmp_path: Path) -> None:
    builder = Builder()
    mesh = builder.mesh(CUBE_CORNERS, CUBE_FACES)
    sparse = {
        "count": 1,
        "indices": {"bufferView": builder.view(b"\x07\0\0\0"), "componentType": 5125},
        "values": {"bufferView": builder.view(np.array([9, 2, 3], "<f4").tobytes())},
    }
    builder.document["accessors"][0]["sparse"] = sparse
    builder.node(mesh=mesh)
    assert extents(load_bytes(tmp_path, "a.glb", builder.glb()))[0] == pytest.approx(10)

    quantised = Builder()
    values = np.zeros((8, 4), np.int16)  # rows padded to 8 bytes: a stride
    values[:, :3] = np.round(CUBE_CORNERS / 3 * 32767)
    mesh = quantised.mesh(CUBE_CORNERS, CUBE_FACES)
    quantised.document["accessors"][0] = {
        "bufferView": quantised.view(values.tobytes(), byteStride=8),
        "componentType": 5122,
        "normalized": True,
        "count": 8,
        "type": "VEC3",
    }
    quantised.document["extensionsRequired"] = ["KHR_mesh_quantization"]
    quantised.node(mesh=mesh)
    loaded = load_bytes(tmp_path, "b.glb", quantised.glb())
    np.testing.assert_allclose(extents(loaded), np.array([2, 4, 6]) / 3, atol=1e-4)


def test_load__far_coordinates_keep_their_precision(tmp_path: Path) -> None:
    lines = [f"v {6e6 + x:.4f} {y:.4f} {4e6 + z:.4f}" for x, y, z in CUBE_CORNERS / 100]
    lines += [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in CUBE_FACES]
    mesh = load_bytes(tmp_path, "far.obj", "\n".join(lines))
    np.testing.assert_allclose(extents(mesh), [0.02, 0.04, 0.06], atol=2e-8)


def test_load__unused_vertices_do_not_count(tmp_path: Path) -> None:
    text = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv nan 0 0\nv 900 0 0\nf 1 2 3\n"
    mesh = load_bytes(tmp_path, "a.obj", text)
    assert len(mesh.vertices) == 3
    assert extents(mesh).max() == 1


# -- axes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", sorted(UP_AXES))
def test_up_axis__named_axis_becomes_plus_y_by_a_proper_rotation(tmp_path: Path, axis: str) -> None:
    rotation = np.array(UP_AXES[axis], float)
    assert np.linalg.det(rotation) == pytest.approx(1)
    up = np.zeros(3)
    up["xyz".index(axis[1])] = 1 if axis[0] == "+" else -1
    np.testing.assert_array_equal(rotation @ up, [0, 1, 0])

    mesh = load_bytes(tmp_path, "a.glb", cube_glb(), up_axis=axis)
    assert extents(mesh)[1] == pytest.approx([2, 4, 6]["xyz".index(axis[1])])
    assert signed_volume(mesh) == pytest.approx(48)


def test_up_axis__auto_takes_y_but_for_collada_what_it_says(tmp_path: Path) -> None:
    box = trimesh.Trimesh(CUBE_CORNERS, CUBE_FACES, process=False)
    text = export(box, "dae").decode()
    for said, height in (("X_UP", 2), ("Y_UP", 4), ("Z_UP", 6)):
        changed = text.replace("Y_UP", said)
        assert said in changed
        assert extents(load_bytes(tmp_path, "a.dae", changed))[1] == pytest.approx(height)
    for suffix in ("obj", "ply", "stl", "off"):
        box.export(tmp_path / f"b.{suffix}")
        assert extents(load_mesh(tmp_path / f"b.{suffix}"))[1] == pytest.approx(4)


def test_up_axis__unknown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="up_axis"):
        load_mesh(tmp_path / "a.glb", up_axis="z")


# -- compression ---------------------------------------------------------------------------------


def draco_glb(vertices: NDArray[Any], faces: NDArray[Any], colors: NDArray[Any]) -> Builder:
    import DracoPy

    blob = DracoPy.encode(
        vertices.astype(np.float32), faces.astype(np.uint32), colors=colors, preserve_order=True
    )
    ids = {entry["attribute_type"]: entry["unique_id"] for entry in DracoPy.decode(blob).attributes}
    builder = Builder()
    view = builder.view(blob)
    builder.document["accessors"] = [
        {"componentType": 5126, "count": len(vertices), "type": "VEC3"},
        {"componentType": 5123, "count": faces.size, "type": "SCALAR"},
        {"componentType": 5121, "count": len(vertices), "type": "VEC4", "normalized": True},
    ]
    extension = {
        "bufferView": view,
        "attributes": {
            "POSITION": ids[DracoPy.AttributeType.POSITION],
            "COLOR_0": ids[DracoPy.AttributeType.COLOR],
        },
    }
    primitive = {
        "attributes": {"POSITION": 0, "COLOR_0": 2},
        "indices": 1,
        "extensions": {"KHR_draco_mesh_compression": extension},
    }
    builder.document["meshes"] = [{"primitives": [primitive]}]
    builder.document["extensionsRequired"] = ["KHR_draco_mesh_compression"]
    builder.node(mesh=0)
    return builder


DRACO_COLORS = np.tile(np.array([[255, 51, 0, 255]], np.uint8), (8, 1))


def test_draco__geometry_and_colours_are_decoded(tmp_path: Path) -> None:
    builder = draco_glb(CUBE_CORNERS, CUBE_FACES, DRACO_COLORS)
    mesh = load_bytes(tmp_path, "a.glb", builder.glb())
    np.testing.assert_allclose(extents(mesh), [2, 4, 6], atol=2e-3)
    assert signed_volume(mesh) == pytest.approx(48, rel=1e-3)
    assert mesh.vertex_color is not None
    np.testing.assert_allclose(mesh.vertex_color[0], [1, 0.2, 0, 1], atol=1e-6)


def test_draco__damaged_data_or_no_decoder_is_a_failure_never_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = draco_glb(CUBE_CORNERS, CUBE_FACES, DRACO_COLORS)
    whole = builder.glb()
    builder.binary = builder.binary[:20] + b"\xff" * (len(builder.binary) - 20)
    with pytest.raises(MeshError) as damaged:
        load_bytes(tmp_path, "a.glb", builder.glb())
    assert damaged.value.kind == "undecoded"
    monkeypatch.setitem(__import__("sys").modules, "DracoPy", None)
    with pytest.raises(MeshError, match="DracoPy") as missing:
        load_bytes(tmp_path, "b.glb", whole)
    assert missing.value.kind == "needs_library"


def test_draco__ignored_extension_with_empty_accessors_is_undecoded(tmp_path: Path) -> None:
    builder = draco_glb(CUBE_CORNERS, CUBE_FACES, DRACO_COLORS)
    del builder.document["meshes"][0]["primitives"][0]["extensions"]
    with pytest.raises(MeshError) as error:
        load_bytes(tmp_path, "a.glb", builder.glb())
    assert error.value.kind == "undecoded"


# -- real assets ---------------------------------------------------------------------------------


def triangles(mesh: Mesh) -> NDArray[np.float64]:
    """Corner positions of all faces, sorted, about their own centre: a set to compare."""
    corners = mesh.vertices[mesh.faces].reshape(-1, 9).astype(np.float64)
    corners -= np.tile((mesh.vertices.max(0) + mesh.vertices.min(0)) / 2, 3)
    return np.asarray(corners[np.lexsort(np.round(corners, 4).T)])


def via_trimesh(path: Path) -> NDArray[np.float64]:
    scene = trimesh.load_scene(path, process=False)
    corners = []
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        geometry = scene.geometry[name].copy()
        geometry.apply_transform(transform)
        corners.append(np.asarray(geometry.vertices)[np.asarray(geometry.faces)])
    every = np.concatenate(corners).reshape(-1, 9)
    flat = every.reshape(-1, 3)
    every = every - np.tile((flat.max(0) + flat.min(0)) / 2, 3)
    return np.asarray(every[np.lexsort(np.round(every, 4).T)])


def manifest(assets_dir: Path) -> list[dict[str, str]]:
    with (assets_dir / "cc0-meshes" / "manifest.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_real_assets__same_triangles_as_trimesh(assets_dir: Path) -> None:
    paths = [assets_dir / "cc0-meshes" / row["mesh"] for row in manifest(assets_dir)[::40]]
    for path in [*paths, assets_dir / "textured" / "Lantern.glb"]:
        ours, theirs = triangles(load_mesh(path)), via_trimesh(path)
        assert ours.shape == theirs.shape, path.name
        scale = np.abs(theirs).max()
        # Sorted by rounded rows, a few may trade places: the sums of all columns do not.
        np.testing.assert_allclose(ours.sum(0), theirs.sum(0), atol=1e-4 * scale * len(ours))
        close = np.isclose(ours, theirs, atol=1e-4 * scale).all(axis=1)
        assert close.mean() > 0.95, path.name


@pytest.mark.slow
def test_real_assets__all_load_and_agree_with_the_manifest(assets_dir: Path) -> None:
    counts: Counter[tuple[bool, bool]] = Counter()
    for row in manifest(assets_dir):
        mesh = load_mesh(assets_dir / "cc0-meshes" / row["mesh"]).normalised()
        assert len(mesh.faces) == int(row["faces"]), row["mesh"]
        counts[row["coloured"] == "1", mesh.has_color] += 1
    # The manifest calls an asset coloured that has several colours: all those are coloured here.
    assert counts[True, False] == 0
    assert counts[True, True] == 403
    assert counts[False, True] < 0.1 * sum(counts.values())


def test_real_assets__textured_samples_have_only_their_base_texture(assets_dir: Path) -> None:
    mesh = load_mesh(assets_dir / "textured" / "Avocado.glb")
    assert mesh.has_color
    assert mesh.uv is not None
    assert mesh.normals is not None
    texture = mesh.materials[0].texture
    assert texture is not None
    assert texture.shape == (2048, 2048, 4)
    # An avocado is green and brown, not blue.
    red, green, blue = texture[..., :3].reshape(-1, 3).mean(0)
    assert green > blue
    assert red > blue


def test_load__leaves_trimesh_logging_as_it_was(tmp_path: Path) -> None:
    before = logging.getLogger("trimesh").disabled
    trimesh.Trimesh(CUBE_CORNERS, CUBE_FACES, process=False).export(tmp_path / "a.obj")
    load_mesh(tmp_path / "a.obj")
    assert logging.getLogger("trimesh").disabled == before


def test_limits__are_applied_after_instancing(tmp_path: Path) -> None:
    builder = Builder()
    mesh = builder.mesh(CUBE_CORNERS, CUBE_FACES)
    for _ in range(5):
        builder.node(mesh=mesh)
    data = builder.glb()
    assert len(load_bytes(tmp_path, "a.glb", data, limits=Limits(faces=60)).faces) == 60
    with pytest.raises(MeshError) as error:
        load_bytes(tmp_path, "a.glb", data, limits=Limits(faces=59))
    assert error.value.kind == "too_large"


def test_srgb__round_trip_is_exact_on_bytes() -> None:
    values = np.arange(256) / 255
    np.testing.assert_array_equal(
        np.rint(linear_to_srgb(srgb_to_linear(values)) * 255), values * 255
    )


def test_quad__texture_is_read(tmp_path: Path) -> None:
    _, data = quad_glb(png(np.full((4, 4, 3), 200, np.uint8)))
    mesh = load_bytes(tmp_path, "a.glb", data)
    assert mesh.materials[0].texture is not None
    assert mesh.materials[0].texture[0, 0].tolist() == [200, 200, 200, 255]
