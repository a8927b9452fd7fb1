"""Broken and hostile glTF features: each ends as a ``MeshError`` with its kind, quickly."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.meshes import Limits, load_mesh
from pipeline.meshes.draco import claimed_sizes, decode_draco
from pipeline.meshes.ktx2 import decode_ktx2
from pipeline.scene import MeshError
from tests.pipeline.gltf_encoders import ktx2_uastc
from tests.pipeline.gltf_files import Builder, png
from tests.pipeline.gltf_scenes import QUARTERS, SQUARE, SQUARE_FACES, square, square_of, textured
from tests.pipeline.test_gltf_geometry import compress
from tests.pipeline.test_meshes import draco_glb

HUGE = 4 * 2**30 - 16
Edit = Callable[[dict[str, Any]], None]


def compressed_square(edit: Edit | None = None) -> Builder:
    """The square with positions in meshopt; ``edit`` changes what the extension says."""
    builder = Builder()
    builder.node(mesh=builder.mesh(SQUARE, SQUARE_FACES))
    compress(builder, 0, "EXT_meshopt_compression", 0)
    builder.document["buffers"] = [{"byteLength": len(builder.binary)}, {"byteLength": 4096}]
    if edit is not None:
        edit(builder.document["bufferViews"][0]["extensions"]["EXT_meshopt_compression"])
    return builder


def skinned(edit: Edit | None = None) -> Builder:
    """The square on a skin of one joint; ``edit`` changes the document."""
    builder = Builder()
    joints = builder.accessor(np.zeros((4, 4)), "u1")
    weights = builder.accessor(np.tile([1.0, 0, 0, 0], (4, 1)), "f4")
    mesh = square(builder, {"JOINTS_0": joints, "WEIGHTS_0": weights})
    inverse = builder.accessor(np.eye(4).reshape(1, 16), "f4")
    joint = builder.node()
    builder.document["skins"] = [{"joints": [joint], "inverseBindMatrices": inverse}]
    builder.node(mesh=mesh, skin=0)
    if edit is not None:
        edit(builder.document)
    return builder


def joint_of_its_own_child(document: dict[str, Any]) -> None:
    document["nodes"] += [{"children": [3]}, {"children": [2]}]  # in no scene
    document["skins"][0]["joints"] = [2]


def wrong_joint(document: dict[str, Any]) -> None:
    document["skins"][0]["joints"] = [77]


def far_joint() -> Builder:
    builder = skinned()
    other = builder.accessor(np.full((4, 4), 9), "u1")
    builder.document["meshes"][0]["primitives"][0]["attributes"]["JOINTS_0"] = other
    return builder


def morphed(delta: Any, **mesh: Any) -> Builder:
    builder = Builder()
    target = {"POSITION": builder.accessor(delta, "f4")}
    index = square(builder, targets=[target])
    builder.document["meshes"][index].update(mesh)
    builder.node(mesh=index)
    return builder


def instanced(count: int, other: int | None = None) -> Builder:
    builder = Builder()
    attributes = {"TRANSLATION": builder.accessor(np.zeros((count, 3)), "f4")}
    if other is not None:
        attributes["SCALE"] = builder.accessor(np.ones((other, 3)), "f4")
    extension = {"EXT_mesh_gpu_instancing": {"attributes": attributes}}
    builder.node(mesh=square(builder), extensions=extension)
    return builder


def claimed_instances() -> Builder:
    builder = instanced(2)
    builder.document["accessors"][0]["count"] = HUGE
    return builder


def draco_claiming(vertices: int, faces: int) -> Builder:
    """A Draco stream whose header claims a size."""

    def varint(value: int) -> bytes:
        out = []
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes([*out, value])

    builder = draco_glb(SQUARE, SQUARE_FACES, np.zeros((4, 3), np.uint8))
    data = b"DRACO\x02\x02\x01\x00\x00\x00" + varint(faces) + varint(vertices) + b"\0" * 40
    where = builder.view(data)
    primitive = builder.document["meshes"][0]["primitives"][0]
    primitive["extensions"]["KHR_draco_mesh_compression"]["bufferView"] = where
    builder.document.pop("buffers", None)
    return builder


def glowing(**material: Any) -> Builder:
    return square_of({"emissiveFactor": [1, 1, 1], **material}, png(QUARTERS))


def moved(**transform: Any) -> Builder:
    return textured(png(QUARTERS), {"extensions": {"KHR_texture_transform": transform}})


def strength(value: Any) -> Builder:
    extension = {"KHR_materials_emissive_strength": {"emissiveStrength": value}}
    return glowing(extensions=extension)


def ktx2(**header: int) -> Builder:
    return textured(ktx2_uastc(np.zeros((2, 2, 4), np.uint8), **header))


CASES: dict[str, tuple[Callable[[], Builder], str]] = {
    "meshopt of 4 G elements": (
        lambda: compressed_square(lambda view: view.update(count=HUGE // 12)),
        "too_large",
    ),
    "meshopt of a stride that is no number": (
        lambda: compressed_square(lambda view: view.update(byteStride=12.5)),
        "bad_header",
    ),
    "meshopt of an unknown mode": (
        lambda: compressed_square(lambda view: view.update(mode="STRIPS")),
        "bad_header",
    ),
    "meshopt beyond the buffer": (
        lambda: compressed_square(lambda view: view.update(byteLength=HUGE)),
        "bad_header",
    ),
    "meshopt of fewer elements than the view holds": (
        lambda: compressed_square(lambda view: view.update(count=3)),
        "bad_header",
    ),
    "meshopt in a buffer without data": (
        lambda: compressed_square(lambda view: view.update(buffer=1)),
        "undecoded",
    ),
    "draco of 4 G faces": (lambda: draco_claiming(4, HUGE), "too_large"),
    "draco of 4 G vertices": (lambda: draco_claiming(HUGE, 2), "too_large"),
    "draco that ends after its header": (lambda: draco_claiming(4, 2), "undecoded"),
    "skin that does not exist": (
        lambda: skinned(lambda document: document["nodes"][1].update(skin=4)),
        "bad_header",
    ),
    "skin without joints": (
        lambda: skinned(lambda document: document["skins"][0].update(joints=[])),
        "bad_header",
    ),
    "skin with a joint that does not exist": (lambda: skinned(wrong_joint), "bad_header"),
    "skin with a joint that is its own ancestor": (
        lambda: skinned(joint_of_its_own_child),
        "cyclic_scene",
    ),
    "skin with too few inverse bind matrices": (
        lambda: skinned(lambda document: document["skins"][0].update(joints=[0, 0])),
        "bad_header",
    ),
    "vertex of a joint that does not exist": (far_joint, "bad_index"),
    "skin with a joint at infinity": (
        lambda: skinned(lambda document: document["nodes"][0].update(scale=[1e300, 1, 1e300])),
        "not_finite",
    ),
    "morph target of fewer vertices": (
        lambda: morphed(np.zeros((3, 3)), weights=[1]),
        "bad_header",
    ),
    "morph target of NaN": (lambda: morphed(np.full((4, 3), np.nan), weights=[1]), "not_finite"),
    "morph weight that is no number": (
        lambda: morphed(np.zeros((4, 3)), weights=[float("nan")]),
        "not_finite",
    ),
    "more than 100,000 instances": (lambda: instanced(100_001), "too_large"),
    "4 G instances": (claimed_instances, "too_large"),
    "instances of differing number": (lambda: instanced(3, 2), "bad_header"),
    "no instances at all": (lambda: instanced(0), "no_faces"),
    "emission of NaN": (lambda: glowing(emissiveFactor=[1, float("nan"), 1]), "not_finite"),
    "emission of two numbers": (lambda: glowing(emissiveFactor=[1, 1]), "bad_header"),
    "emission of text": (lambda: strength("bright"), "bad_header"),
    "emission without an image": (lambda: glowing(emissiveTexture={"index": 5}), "bad_header"),
    "transform of NaN": (lambda: moved(rotation=float("nan")), "not_finite"),
    "transform of three numbers": (lambda: moved(scale=[1, 1, 1]), "bad_header"),
    "transform to set -1": (lambda: moved(texCoord=-1), "bad_header"),
    "ktx2 of 4 G pixels": (lambda: ktx2(width=65536, height=65535), "too_large"),
    "ktx2 level that claims 4 G bytes": (lambda: ktx2(unpacked=HUGE), "bad_texture"),
    "ktx2 level beyond the file": (lambda: ktx2(offset=HUGE), "bad_texture"),
    "ktx2 of 4 G levels": (lambda: ktx2(levels=HUGE), "bad_texture"),
    "ktx2 without pixels": (lambda: ktx2(width=0), "bad_texture"),
}


@pytest.mark.timeout(120)  # none of them is worked on for long
@pytest.mark.parametrize("name", sorted(CASES))
def test_feature_file__broken_is_a_mesh_error_of_its_kind(tmp_path: Path, name: str) -> None:
    build, kind = CASES[name]
    (tmp_path / "a.glb").write_bytes(build().glb())
    with pytest.raises(MeshError) as error:
        load_mesh(tmp_path / "a.glb")
    assert error.value.kind == kind, error.value.message
    assert error.value.message
    assert "\n" not in error.value.message


@pytest.mark.parametrize("name", [name for name in sorted(CASES) if "4 G" in name])
def test_claims__are_checked_before_memory_is_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.glb").write_bytes(CASES[name][0]().glb())
    with pytest.raises(MeshError):  # decoders are imported outside the measurement
        load_mesh(tmp_path / "a.glb")
    tracemalloc.start()
    try:
        with pytest.raises(MeshError):
            load_mesh(tmp_path / "a.glb")
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_meshopt__views_count_together_against_the_limit(tmp_path: Path) -> None:
    builder = compressed_square()
    data = builder.glb()
    (tmp_path / "a.glb").write_bytes(data)
    load_mesh(tmp_path / "a.glb")
    # Version 1, 128 blocks of 32 elements of 256 bytes, all zero: 1 MiB from 8 kB.
    large = b"\xa1" + b"\xaa" * (64 * 128) + b"\0" * 320
    extension = builder.document["bufferViews"][0]["extensions"]["EXT_meshopt_compression"]
    where = builder.document["bufferViews"][builder.view(large)]
    extension.update(where, byteStride=256, count=4096)
    builder.document["buffers"][0]["byteLength"] = len(builder.binary)
    (tmp_path / "b.glb").write_bytes(builder.glb())
    kinds = []
    for room in (2**20, 2**20 - 1):
        with pytest.raises(MeshError) as error:
            load_mesh(tmp_path / "b.glb", limits=Limits(file_bytes=room))
        kinds.append(error.value.kind)
    assert kinds == ["zero_extent", "too_large"]


def test_primitives__count_against_the_limit_of_nodes(tmp_path: Path) -> None:
    builder = Builder()
    mesh = builder.mesh(SQUARE, SQUARE_FACES)
    builder.document["meshes"][mesh]["primitives"] *= 20
    for _ in range(4):
        builder.node(mesh=mesh)
    (tmp_path / "a.glb").write_bytes(builder.glb())
    load_mesh(tmp_path / "a.glb", limits=Limits(nodes=80))
    with pytest.raises(MeshError) as error:
        load_mesh(tmp_path / "a.glb", limits=Limits(nodes=79))
    assert error.value.kind == "too_large"


def test_pose__moved_vertices_count_against_the_limit(tmp_path: Path) -> None:
    builder = skinned()
    for turn in range(4):  # other weights: the mesh is posed anew
        builder.node(mesh=0, skin=0, weights=[float(turn)])
    (tmp_path / "a.glb").write_bytes(builder.glb())
    load_mesh(tmp_path / "a.glb", limits=Limits(vertices=20))
    with pytest.raises(MeshError) as error:
        load_mesh(tmp_path / "a.glb", limits=Limits(vertices=15))
    assert error.value.kind == "too_large"


def mutants(data: bytes, rng: np.random.Generator, count: int, head: int) -> list[bytes]:
    """Cut and changed copies; a third of them changed among the first ``head`` bytes."""
    out = [data[: int(cut)] for cut in rng.integers(0, len(data), count // 4)]
    for turn in range(count):
        broken = bytearray(data)
        top = head if turn % 3 == 0 else len(data)
        for place in rng.integers(0, top, 1 + int(rng.integers(3))):
            broken[place] = int(rng.integers(256))
        out.append(bytes(broken))
    return out


def test_draco__any_cut_and_any_changed_byte_is_decoded_or_a_mesh_error() -> None:
    import DracoPy

    rng = np.random.default_rng(3)
    y, x = np.mgrid[:8, :8]
    points = np.stack([x, y, np.sin(x)], -1).reshape(-1, 3).astype(np.float32)
    i = np.arange(64).reshape(8, 8)
    faces = np.stack([i[:-1, :-1], i[:-1, 1:], i[1:, 1:]], -1).reshape(-1, 3)
    outcomes = set()
    for level in (0, 7, 10):
        data = DracoPy.encode(points, faces, compression_level=level)
        assert claimed_sizes(data)[1] == len(faces)
        for broken in mutants(data, rng, 200, 40):
            try:
                attributes, indices = decode_draco(broken, {0: "POSITION"}, Limits())
                assert attributes["POSITION"].ndim == 2
                assert indices.shape[1] == 3
                outcomes.add("decoded")
            except MeshError as error:
                outcomes.add(error.kind)
    assert outcomes <= {"decoded", "undecoded", "too_large"}
    assert len(outcomes) > 1


def test_draco__metadata_before_the_sizes_is_passed_over() -> None:
    entry = bytes([1, 1]) + b"a" + bytes([2]) + b"bc" + bytes([0])  # one entry, nothing below
    nested = bytes([0, 1, 1]) + b"k" + entry
    head = b"DRACO\x02\x02\x01\x01\x00\x80"
    data = head + bytes([1, 5]) + entry + nested + bytes([2, 0x90, 0x01, 7])
    assert claimed_sizes(data) == (144, 7)
    endless = head + bytes([0]) + bytes([0, 1, 0]) * 5000
    with pytest.raises(MeshError, match="nested"):
        claimed_sizes(endless)


def test_ktx2__any_cut_and_any_changed_byte_is_decoded_or_a_mesh_error() -> None:
    pytest.importorskip("opengl_basisu", reason="optional: pip install mrd3d[gltf]")
    rng = np.random.default_rng(4)
    data = ktx2_uastc(rng.integers(0, 256, (4, 4, 4)).astype(np.uint8))
    outcomes = set()
    for broken in mutants(data, rng, 400, 104):
        try:
            assert decode_ktx2(broken, Limits(), "it").shape[2] == 4
            outcomes.add("decoded")
        except MeshError as error:
            outcomes.add(error.kind)
    assert {"decoded", "bad_texture"} <= outcomes
    assert outcomes <= {"decoded", "bad_texture", "unsupported_texture", "too_large"}


def test_glb__any_changed_byte_of_posed_and_compressed_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    path = tmp_path / "a.glb"
    whole = (skinned(), morphed(np.ones((4, 3)), weights=[0.5]), instanced(3), compressed_square())
    for builder in whole:
        outcomes = set()
        for broken in mutants(builder.glb(), rng, 80, 400):
            path.write_bytes(broken)
            try:
                load_mesh(path).normalised()
                outcomes.add("mesh")
            except MeshError as error:
                outcomes.add(error.kind)
        assert len(outcomes) > 2
