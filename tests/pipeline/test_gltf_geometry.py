"""Where glTF geometry ends up: generated files, their pictures, their points.

Each test backs one row of the table in ``docs/gltf.md``, for every renderer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.scene import MeshError
from tests.pipeline.gltf_encoders import meshopt_attributes, meshopt_indices, meshopt_triangles
from tests.pipeline.gltf_files import Builder, png
from tests.pipeline.gltf_scenes import (
    BLUE,
    GREEN,
    LIT,
    PLACES,
    QUARTERS,
    RED,
    SQUARE,
    SQUARE_FACES,
    SQUARE_UV,
    UPRIGHT,
    Eye,
    code,
    colored,
    open_eye,
    shows,
    square,
    textured,
)
from tests.pipeline.test_meshes import draco_glb


@pytest.fixture(params=["raster", "gl"])
def eye(request: pytest.FixtureRequest, tmp_path: Path) -> Eye:
    return open_eye(request.param, tmp_path)


def test_feature__triangle_strips_and_fans(eye: Eye) -> None:
    for mode, order in ((5, [0, 1, 3, 2]), (6, [0, 1, 2, 3])):
        builder = Builder()
        builder.node(mesh=builder.mesh(SQUARE, order, mode=mode))
        seen = eye.look(builder)
        assert len(seen.mesh.faces) == 2
        corners = seen.mesh.vertices[seen.mesh.faces]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert (normals[:, 2] > 0).all()  # all wind counter-clockwise seen from the front
        assert all(seen.covered(place) for place in PLACES.values())


def test_feature__points_and_lines_beside_triangles_are_left_out(eye: Eye) -> None:
    builder = Builder()
    builder.node(mesh=square(builder))
    for mode in (0, 1, 2, 3):
        builder.node(mesh=builder.mesh(SQUARE * 9, mode=mode))
    assert eye.look(builder).extent == [2, 2, 0]


def test_feature__points_and_lines_alone_are_a_failure(eye: Eye) -> None:
    builder = Builder()
    builder.node(mesh=builder.mesh(SQUARE, mode=0))
    with pytest.raises(MeshError, match="points or lines") as error:
        eye.look(builder)
    assert error.value.kind == "no_faces"


def test_feature__node_transforms(eye: Eye) -> None:
    builder = Builder()
    half = builder.node(
        root=False, mesh=square(builder, material=builder.material(**colored(1, 0, 0))),
        scale=[1, 2, 1], translation=[-1, 0, 0],
    )  # fmt: skip
    matrix = np.eye(4)
    matrix[:2, 3] = 1, 0  # column vectors; the file has it by columns
    other = builder.node(
        root=False, mesh=square(builder, material=builder.material(**colored(0, 1, 0))),
        matrix=matrix.T.ravel().tolist(),
    )  # fmt: skip
    # Both 90 degrees counter-clockwise about z: left goes to the bottom.
    builder.node(children=[half, other], rotation=[0, 0, np.sin(np.pi / 4), np.cos(np.pi / 4)])
    seen = eye.look(builder)
    assert seen.extent == [4, 4, 0]
    seen.same((0.5, 0.25), RED)
    seen.same((0.1, 0.25), RED)
    seen.same((0.5, 0.75), GREEN)
    assert not seen.covered((0.1, 0.75))


def test_feature__negative_scale(eye: Eye) -> None:
    builder = textured(png(QUARTERS))
    builder.document["nodes"][0]["scale"] = [-1, 1, 1]
    seen = eye.look(builder, LIT)
    shows(seen, {"top left": GREEN, "top right": RED}, 8)
    corners = seen.mesh.vertices[seen.mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (normals[:, 2] > 0).all()


def test_feature__cameras_lights_and_animations_are_left_out(eye: Eye) -> None:
    builder = Builder()
    target = builder.node(mesh=square(builder, material=builder.material(**colored(0, 0, 1))))
    builder.document["cameras"] = [
        {"type": "perspective", "perspective": {"yfov": 1, "znear": 0.1}}
    ]
    builder.node(camera=0, translation=[50, 0, 0])
    lights = [{"type": "point", "color": [1, 0, 0], "intensity": 900}]
    builder.document["extensions"] = {"KHR_lights_punctual": {"lights": lights}}
    builder.document["extensionsRequired"] = ["KHR_lights_punctual"]
    builder.node(extensions={"KHR_lights_punctual": {"light": 0}}, translation=[0, 0, 1])
    times = builder.accessor(np.array([0, 1], np.float32), "f4")
    moves = builder.accessor(np.array([[5, 0, 0], [9, 0, 0]], np.float32), "f4")
    builder.document["animations"] = [
        {
            "channels": [{"sampler": 0, "target": {"node": target, "path": "translation"}}],
            "samplers": [{"input": times, "output": moves}],
        }
    ]
    seen = eye.look(builder)
    assert seen.extent == [2, 2, 0]
    shows(seen, dict.fromkeys(PLACES, BLUE))


def test_feature__node_visibility(eye: Eye) -> None:
    builder = Builder()
    builder.node(mesh=square(builder))
    below = builder.node(root=False, mesh=square(builder), translation=[0, 9, 0])
    hidden = {"KHR_node_visibility": {"visible": False}}
    builder.node(children=[below], extensions=hidden)
    assert eye.look(builder).extent == [2, 2, 0]


def test_feature__sparse_accessors(eye: Eye) -> None:
    builder = Builder()
    mesh = builder.mesh(SQUARE * [1, 0.5, 1], SQUARE_FACES)
    rows = builder.view(np.array([2, 3], "<u2").tobytes())
    values = builder.view((SQUARE[2:] * [1, 3, 1]).astype("<f4").tobytes())
    position = builder.document["meshes"][mesh]["primitives"][0]["attributes"]["POSITION"]
    builder.document["accessors"][position]["sparse"] = {
        "count": 2,
        "indices": {"bufferView": rows, "componentType": 5123},
        "values": {"bufferView": values},
    }
    builder.node(mesh=mesh)
    assert eye.look(builder).extent == [2, 3.5, 0]


def test_feature__mesh_quantization(eye: Eye) -> None:
    builder = Builder()
    image = builder.texture(png(QUARTERS))
    base = {"baseColorTexture": {"index": image}}
    attributes = {
        "POSITION": builder.accessor(SQUARE * 100, "i1"),  # not normalised: -100 to 100
        "NORMAL": builder.accessor(np.tile([0, 0, 127], (4, 1)), "i1", normalized=True),
        "TEXCOORD_0": builder.accessor(SQUARE_UV * 65535, "u2", normalized=True),
    }
    mesh = builder.mesh(SQUARE, SQUARE_FACES, attributes, material=0)
    builder.document["meshes"][mesh]["primitives"][0]["attributes"] |= attributes
    builder.material(pbrMetallicRoughness=base)
    builder.node(mesh=mesh, scale=[0.01, 0.01, 0.01])
    builder.document["extensionsRequired"] = ["KHR_mesh_quantization"]
    seen = eye.look(builder)
    assert seen.extent == [2, 2, 0]
    assert seen.mesh.normals is not None
    assert np.allclose(seen.mesh.normals, [0, 0, 1])
    shows(seen, UPRIGHT)


def morphing(builder: Builder, **mesh: Any) -> int:
    """A square with two targets: the top raised by 2, and the right side moved by 1."""
    raise_top = builder.accessor(np.array([[0, 0, 0], [0, 0, 0], [0, 2, 0], [0, 2, 0]]), "f4")
    move_right = builder.accessor(np.array([[0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]), "f4")
    redden = builder.accessor(np.tile([0.0, -1, -1], (4, 1)), "f4")
    empty = builder.accessor(np.zeros((4, 3)), "f4")
    del builder.document["accessors"][empty]["bufferView"]  # zeros, as the specification has it
    targets = [
        {"POSITION": raise_top, "COLOR_0": redden},
        {"POSITION": move_right, "COLOR_0": empty},
    ]
    white = {"COLOR_0": builder.accessor(np.ones((4, 3)), "f4")}
    index = square(builder, white, targets=targets)
    builder.document["meshes"][index].update(mesh)
    return index


def test_feature__morph_targets(eye: Eye) -> None:
    builder = Builder()
    builder.node(mesh=morphing(builder))
    assert eye.look(builder).extent == [2, 2, 0]  # no weights: no target
    builder = Builder()
    builder.node(mesh=morphing(builder, weights=[0.5, 0]))
    seen = eye.look(builder)
    assert seen.extent == [2, 3, 0]
    shows(seen, dict.fromkeys(PLACES, code(1, 0.5, 0.5)))
    builder = Builder()
    builder.node(mesh=morphing(builder, weights=[0.5, 0]), weights=[0, 2])  # the node's count
    seen = eye.look(builder)
    assert seen.extent == [4, 2, 0]
    assert all(seen.covered(place) for place in PLACES.values())


def test_feature__skins(eye: Eye) -> None:
    """A ribbon of two squares, bent: its upper half follows a joint that is turned and moved."""
    builder = Builder()
    ribbon = np.array([[x, y, 0] for y in (0, 1, 1, 2) for x in (0, 1)], np.float32)
    faces = [[0, 1, 3], [0, 3, 2], [4, 5, 7], [4, 7, 6]]
    joints = np.array([[0, 0, 0, 0]] * 4 + [[1, 0, 0, 0]] * 4)
    weights = np.tile([255, 0, 0, 0], (8, 1))
    colors = np.array([[1, 0, 0]] * 4 + [[0, 1, 0]] * 4)
    attributes = {
        "JOINTS_0": builder.accessor(joints, "u1"),
        "WEIGHTS_0": builder.accessor(weights, "u1", normalized=True),
        "COLOR_0": builder.accessor(colors, "f4"),
        "NORMAL": builder.accessor(np.tile([0, 0, 1], (8, 1)), "f4"),
    }
    mesh = builder.mesh(ribbon, faces, attributes)
    # The bind pose: the second joint sits at (0, 1, 0).
    binds = np.tile(np.eye(4), (2, 1, 1))
    binds[1, 1, 3] = -1
    inverse = builder.accessor(binds.transpose(0, 2, 1).reshape(2, 16), "f4")
    # Now it is at (2, 1, 0) and turned by a quarter clockwise: up becomes right.
    upper = builder.node(
        root=False, translation=[2, 1, 0], rotation=[0, 0, -np.sin(np.pi / 4), np.cos(np.pi / 4)]
    )
    lower = builder.node(children=[upper])
    builder.document["skins"] = [{"joints": [lower, upper], "inverseBindMatrices": inverse}]
    builder.node(mesh=mesh, skin=0, translation=[0, 99, 0], scale=[7, 7, 7])  # means nothing
    seen = eye.look(builder)
    assert seen.extent == [3, 1, 0]  # red 0..1, gap, green 2..3
    seen.same((1 / 6, 0.5), RED)
    assert not seen.covered((0.5, 0.5))
    seen.same((5 / 6, 0.5), GREEN)
    assert seen.mesh.normals is not None
    assert np.allclose(seen.mesh.normals, [0, 0, 1], atol=1e-6)


def test_feature__gpu_instancing(eye: Eye) -> None:
    builder = Builder()
    turn = [0, 0, np.sin(np.pi / 4), np.cos(np.pi / 4)]
    attributes = {
        "TRANSLATION": builder.accessor(np.array([[-3, 0, 0], [0, 0, 0], [3, 0, 0]]), "f4"),
        "ROTATION": builder.accessor(np.array([[0, 0, 0, 1], turn, [0, 0, 0, 1]]), "f4"),
        "SCALE": builder.accessor(np.array([[1, 1, 1], [1, 0.25, 1], [1, 1, 1]]), "f4"),
        "_ID": builder.accessor(np.arange(3), "u1"),
    }
    builder.node(
        mesh=square(builder), scale=[1, 2, 1],
        extensions={"EXT_mesh_gpu_instancing": {"attributes": attributes}},
    )  # fmt: skip
    builder.document["extensionsRequired"] = ["EXT_mesh_gpu_instancing"]
    seen = eye.look(builder)
    assert len(seen.mesh.faces) == 6
    assert seen.extent == [8, 4, 0]
    # The middle one is 2 x 0.5 turned upright, and so 0.5 wide.
    covered = [seen.covered((x / 8, 0.8)) for x in (1, 3.4, 4, 4.6, 7)]
    assert covered == [True, False, True, False, True]


def test_feature__draco(eye: Eye) -> None:
    builder = draco_glb(SQUARE, SQUARE_FACES, np.tile(np.array([255, 0, 0], np.uint8), (4, 1)))
    builder.document["extensionsRequired"] = ["KHR_draco_mesh_compression"]
    seen = eye.look(builder)
    assert np.allclose(seen.extent, [2, 2, 0], atol=1e-2)
    shows(seen, dict.fromkeys(PLACES, RED))


def compress(builder: Builder, index: int, name: str, version: int) -> None:
    """Turn the view of an accessor into one compressed with meshopt, its plain bytes gone."""
    rng = np.random.default_rng(index)
    accessor = builder.document["accessors"][index]
    view = builder.document["bufferViews"][accessor["bufferView"]]
    plain = builder.binary[view["byteOffset"] :][: view["byteLength"]]
    count, stride = accessor["count"], view["byteLength"] // accessor["count"]
    mode = "ATTRIBUTES"
    if accessor["componentType"] == 5123 and accessor["type"] == "SCALAR":
        faces = np.frombuffer(plain, "<u2").reshape(-1, 3)
        mode = "TRIANGLES" if version else "INDICES"
        data = meshopt_triangles(faces)[0] if version else meshopt_indices(faces, rng)
    else:
        rows = np.frombuffer(plain, np.uint8).reshape(count, stride)
        data = meshopt_attributes(rows, version, rng)
    where = builder.document["bufferViews"][builder.view(data)]
    view["extensions"] = {name: {**where, "byteStride": stride, "count": count, "mode": mode}}
    view["buffer"], view["byteOffset"] = 1, 0


@pytest.mark.parametrize(
    ("name", "version"), [("EXT_meshopt_compression", 0), ("KHR_meshopt_compression", 1)]
)
def test_feature__meshopt(eye: Eye, name: str, version: int) -> None:
    builder = textured(png(QUARTERS))
    for index in range(len(builder.document["accessors"])):
        compress(builder, index, name, version)
    fallback = {"byteLength": 4096, "extensions": {name: {"fallback": True}}}
    builder.document["buffers"] = [{"byteLength": len(builder.binary)}, fallback]
    builder.document["extensionsRequired"] = [name]
    seen = eye.look(builder)
    assert seen.extent == [2, 2, 0]
    shows(seen, UPRIGHT)


def test_feature__meshopt_filters(eye: Eye) -> None:
    """Positions by the exponential filter, normals octahedral, colours as luma and chroma."""
    builder = Builder()
    rng = np.random.default_rng(0)
    codes = {
        # 24 bits of mantissa, 8 of exponent: halves.
        "POSITION": ((SQUARE * 2).astype(np.int64) & 0xFFFFFF | 0xFF << 24).astype("<u4"),
        "NORMAL": np.tile(np.array([0, 0, 127, 0], "<i1"), (4, 1)),
        "COLOR_0": np.tile(np.array([64, 63, 0, 0xFF], "<u1"), (4, 1)),  # Y, Co, Cg, alpha
    }
    filters = {"POSITION": "EXPONENTIAL", "NORMAL": "OCTAHEDRAL", "COLOR_0": "COLOR"}
    types = {"POSITION": (5126, "VEC3"), "NORMAL": (5120, "VEC3"), "COLOR_0": (5121, "VEC4")}
    attributes = {}
    for name, rows in codes.items():
        stride = rows.shape[1] * rows.itemsize
        extra = {"byteStride": stride, "count": 4, "mode": "ATTRIBUTES", "filter": filters[name]}
        data = meshopt_attributes(rows.astype(rows.dtype.newbyteorder("<")), 1, rng)
        source = builder.document["bufferViews"][builder.view(data)]
        entry = {
            "buffer": 1,
            "byteLength": 4 * stride,
            "byteStride": stride,
            "extensions": {"KHR_meshopt_compression": {**source, **extra}},
        }
        builder.document["bufferViews"].append(entry)
        component, shape = types[name]
        accessor = {
            "bufferView": len(builder.document["bufferViews"]) - 1,
            "componentType": component,
            "type": shape,
            "count": 4,
            "normalized": name != "POSITION",
        }
        builder.document["accessors"].append(accessor)
        attributes[name] = len(builder.document["accessors"]) - 1
    builder.document["buffers"] = [{"byteLength": 1 << 16}, {"byteLength": 1 << 16}]
    mesh = builder.mesh(SQUARE, SQUARE_FACES, attributes)
    builder.document["meshes"][mesh]["primitives"][0]["attributes"] = attributes
    builder.binary += b"\0" * ((1 << 16) - len(builder.binary))
    builder.node(mesh=mesh)
    seen = eye.look(builder)
    assert seen.extent == [2, 2, 0]
    assert seen.mesh.normals is not None
    assert np.allclose(seen.mesh.normals, [0, 0, 1])
    shows(seen, dict.fromkeys(PLACES, code(127 / 255, 64 / 255, 1 / 255)))
