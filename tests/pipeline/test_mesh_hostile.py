"""Hostile and broken files: each ends as a ``MeshError`` with its kind, quickly and cheaply."""

from __future__ import annotations

import io
import json
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from pipeline.meshes import Limits, load_mesh
from pipeline.scene import MeshError
from tests.pipeline.gltf_files import (
    CUBE_CORNERS,
    CUBE_FACES,
    Builder,
    cube_glb,
    pack_glb,
    png,
    quad_glb,
)
from tests.pipeline.test_mesh_materials import ply_with_texture, quad_dae

TRIANGLE_OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"
HUGE = 4 * 2**30 - 16


def edited(edit: Callable[[dict[str, Any], Builder], None]) -> bytes:
    """The cube's GLB with its document changed."""
    builder = Builder()
    builder.node(mesh=builder.mesh(CUBE_CORNERS, CUBE_FACES))
    builder.document["buffers"] = [{"byteLength": len(builder.binary)}]
    edit(builder.document, builder)
    return builder.glb()


def changed(**keys: Any) -> bytes:
    return edited(lambda document, _: document.update(keys))


def accessor(index: int, **keys: Any) -> bytes:
    return edited(lambda document, _: document["accessors"][index].update(keys))


def position_nan() -> bytes:
    corners = CUBE_CORNERS.copy()
    corners[3, 1] = np.nan
    builder = Builder()
    builder.node(mesh=builder.mesh(corners, CUBE_FACES))
    return builder.glb()


def points_only() -> bytes:
    builder = Builder()
    builder.node(mesh=builder.mesh(CUBE_CORNERS, mode=0))
    return builder.glb()


def bad_index() -> bytes:
    builder = Builder()
    builder.node(mesh=builder.mesh(CUBE_CORNERS, [[0, 1, 8]]))
    return builder.glb()


def doubling(document: dict[str, Any], _: Builder) -> None:
    """Forty levels, each of which has the next one twice: 2^40 instances."""
    document["nodes"] = [{"children": [i + 1, i + 1]} for i in range(40)] + [{"mesh": 0}]


def deep_json() -> bytes:
    text = b'{"asset":{"version":"2.0"},"extras":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    return struct.pack("<IIIII", 0x46546C67, 2, 20 + len(text), len(text), 0x4E4F534A) + text


def meshopt() -> bytes:
    def edit(document: dict[str, Any], _: Builder) -> None:
        settings = {"buffer": 0, "byteLength": 96, "byteStride": 12, "count": 8}
        compressed = {**settings, "mode": "ATTRIBUTES"}
        document["bufferViews"][0]["extensions"] = {"EXT_meshopt_compression": compressed}

    return edited(edit)


def image_bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims a size; no pixels follow."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    small = bytearray(png(np.zeros((1, 1, 3), np.uint8)))
    import zlib

    small[16:29] = header
    small[29:33] = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return bytes(small)


def with_image(uri: str) -> bytes:
    builder, _ = quad_glb(png(np.zeros((2, 2, 3), np.uint8)))
    builder.document["images"] = [{"uri": uri}]
    return builder.glb()


def unknown_texture() -> bytes:
    builder, _ = quad_glb(png(np.zeros((2, 2, 3), np.uint8)))
    builder.document["textures"] = [{"extensions": {"ACME_texture": {"source": 0}}}]
    return builder.glb()


def gltf_json(**keys: Any) -> bytes:
    document = {"asset": {"version": "2.0"}, **keys}
    return json.dumps(document).encode()


def ply(vertices: int, faces: int, body: str = "", kind: str = "ascii") -> bytes:
    header = (
        f"ply\nformat {kind} 1.0\nelement vertex {vertices}\n"
        "property float x\nproperty float y\nproperty float z\n"
        f"element face {faces}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    return (header + body).encode()


def stl(count: int, triangles: int) -> bytes:
    return b"\0" * 80 + struct.pack("<I", count) + b"\0" * (50 * triangles)


def dae_cycle() -> str:
    return quad_dae(None, node='<instance_node url="#n"/>')


def dae_doubling() -> str:
    nodes = "".join(
        f'<node id="k{i}"><instance_node url="#k{i + 1}"/><instance_node url="#k{i + 1}"/></node>'
        for i in range(40)
    )
    library = f'<library_nodes>{nodes}<node id="k40"/></library_nodes>'
    text = quad_dae(None, node='<instance_node url="#k0"/>')
    return text.replace("<library_visual_scenes>", library + "<library_visual_scenes>")


def dae_entities() -> str:
    bomb = (
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
        '<!ENTITY c SYSTEM "file:///etc/hostname">]>'
    )
    return quad_dae(None).replace("<COLLADA", bomb + "<COLLADA", 1)


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.dae", quad_dae(None))
    return stream.getvalue()


def obj_with_map(name: str) -> dict[str, Any]:
    return {
        "a.obj": "mtllib a.mtl\nusemtl m\n" + TRIANGLE_OBJ + "vt 0 0\nf 1/1 2/1 3/1\n",
        "a.mtl": f"newmtl m\nmap_Kd {name}\n",
    }


# name -> (files, the first of which is loaded; the kind of error)
CASES: dict[str, tuple[dict[str, bytes | str], str]] = {
    "zero bytes": ({"a.glb": b""}, "empty_file"),
    "zero bytes obj": ({"a.obj": b""}, "empty_file"),
    "text named glb": ({"a.glb": "This is a note about a chair, not a mesh.\n"}, "bad_header"),
    "text named gltf": ({"a.gltf": "not json"}, "bad_header"),
    "text named obj": ({"a.obj": "dear diary\nfirst line\n"}, "bad_header"),
    "text named ply": ({"a.ply": "dear diary\n"}, "bad_header"),
    "text named stl": (
        {"a.stl": "dear diary, a text of more than eighty-four bytes " * 4},
        "bad_header",
    ),
    "text named off": ({"a.off": "dear diary\n"}, "bad_header"),
    "text named dae": ({"a.dae": "dear diary\n"}, "bad_header"),
    "other suffix": ({"a.fbx": b"Kaydara"}, "unsupported_format"),
    "glb cut off": ({"a.glb": cube_glb()[:-40]}, "bad_header"),
    "glb of version 1": ({"a.glb": b"glTF\1\0\0\0" + b"\0" * 20}, "unsupported_feature"),
    "glb claims 4 GB": (
        {"a.glb": cube_glb()[:8] + struct.pack("<I", HUGE) + cube_glb()[12:]},
        "bad_header",
    ),
    "glb chunk claims 4 GB": (
        {"a.glb": cube_glb()[:12] + struct.pack("<I", HUGE) + cube_glb()[16:]},
        "bad_header",
    ),
    "json nested deeply": ({"a.glb": deep_json()}, "bad_header"),
    "json is a list": ({"a.gltf": "[1, 2]"}, "bad_header"),
    "buffer claims 4 GB": ({"a.glb": changed(buffers=[{"byteLength": HUGE}])}, "bad_header"),
    "accessor claims more than its view": ({"a.glb": accessor(0, count=9)}, "bad_header"),
    "accessor claims 4 G elements": ({"a.glb": accessor(0, count=HUGE)}, "too_large"),
    "accessor of negative count": ({"a.glb": accessor(0, count=-1)}, "bad_header"),
    "accessor offset past the end": ({"a.glb": accessor(0, byteOffset=10**12)}, "bad_header"),
    "accessor of unknown type": ({"a.glb": accessor(0, type="VEC9")}, "bad_header"),
    "accessor without data": (
        {"a.glb": edited(lambda d, _: d["accessors"][0].pop("bufferView"))},
        "undecoded",
    ),
    "view past its buffer": (
        {"a.glb": edited(lambda d, _: d["bufferViews"][0].update(byteLength=10**9))},
        "bad_header",
    ),
    "mesh index that is not there": ({"a.glb": changed(nodes=[{"mesh": 7}])}, "bad_header"),
    "child that is not there": ({"a.glb": changed(nodes=[{"children": [99]}])}, "bad_header"),
    "wrong types in json": ({"a.glb": changed(nodes="abc")}, "bad_header"),
    "matrix of text": (
        {"a.glb": changed(nodes=[{"mesh": 0, "matrix": ["x"] * 16}])},
        "parse_error",
    ),
    "matrix of nan": (
        {"a.glb": changed(nodes=[{"mesh": 0, "matrix": [float("nan")] * 16}])},
        "not_finite",
    ),
    "node is its own child": (
        {"a.glb": changed(nodes=[{"mesh": 0, "children": [0]}])},
        "cyclic_scene",
    ),
    "nodes in a ring": (
        {"a.glb": changed(nodes=[{"children": [1]}, {"children": [2]}, {"children": [0]}])},
        "cyclic_scene",
    ),
    "nodes in a ring without scenes": (
        {"a.glb": changed(nodes=[{"children": [1]}, {"children": [0]}], scenes=[])},
        "cyclic_scene",
    ),
    "2^40 instances": ({"a.glb": edited(doubling)}, "too_large"),
    "no scene content": ({"a.glb": changed(scenes=[{}])}, "no_faces"),
    "points only": ({"a.glb": points_only()}, "no_faces"),
    "points only ply": ({"a.ply": ply(1, 0, "0 0 0\n")}, "no_faces"),
    "points only obj": ({"a.obj": TRIANGLE_OBJ}, "no_faces"),
    "faces of two corners off": ({"a.off": "OFF\n2 1 0\n0 0 0\n1 1 1\n2 0 1\n"}, "no_faces"),
    "empty stl": ({"a.stl": stl(0, 0)}, "no_faces"),
    "nan vertex": ({"a.glb": position_nan()}, "not_finite"),
    "nan vertex obj": ({"a.obj": "v 0 nan 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"}, "not_finite"),
    "infinite vertex ply": (
        {"a.ply": ply(3, 1, "0 0 0\n1 inf 0\n0 1 0\n3 0 1 2\n")},
        "not_finite",
    ),
    "coordinates that overflow": (
        {"a.obj": "v 1e300 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\n"},
        "not_finite",
    ),
    "all vertices alike": ({"a.obj": "v 1 2 3\nv 1 2 3\nv 1 2 3\nf 1 2 3\n"}, "zero_extent"),
    "zeros stl": ({"a.stl": stl(4, 4)}, "zero_extent"),
    "index out of range": ({"a.glb": bad_index()}, "bad_index"),
    "index out of range obj": ({"a.obj": TRIANGLE_OBJ + "f 1 2 4\n"}, "bad_index"),
    "index zero obj": ({"a.obj": TRIANGLE_OBJ + "f 0 1 2\n"}, "bad_index"),
    "index too far back obj": ({"a.obj": TRIANGLE_OBJ + "f -4 -2 -1\n"}, "bad_index"),
    "index out of range ply": ({"a.ply": ply(3, 1, "0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n")}, "bad_index"),
    "index out of range off": ({"a.off": "OFF 3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n"}, "bad_index"),
    "negative index off": ({"a.off": "OFF 3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 -1\n"}, "bad_index"),
    "word among numbers obj": ({"a.obj": "v 0 0 0\nv 1 x 0\nv 0 1 0\nf 1 2 3\n"}, "parse_error"),
    "ply claims 4 G vertices": ({"a.ply": ply(HUGE, 1, "0 0 0\n")}, "too_large"),
    "ply claims more than it has": ({"a.ply": ply(10**6, 1, "0 0 0\n")}, "bad_header"),
    "binary ply claims more than it has": (
        {"a.ply": ply(10**6, 1, "\0" * 99, "binary_little_endian")},
        "bad_header",
    ),
    "ply without end of header": (
        {"a.ply": "ply\nformat ascii 1.0\nelement vertex 3\n"},
        "bad_header",
    ),
    "ply of unknown type": ({"a.ply": ply(1, 1).replace(b"float x", b"real x")}, "bad_header"),
    "binary ply list claims 4 G corners": (
        {
            "a.ply": ply(3, 1, "", "binary_little_endian").replace(b"list uchar", b"list uint")
            + np.eye(3, dtype="<f4").tobytes()
            + struct.pack("<I3i", HUGE, 0, 1, 2)
        },
        "parse_error",
    ),
    "stl claims 4 G faces": ({"a.stl": stl(HUGE, 2)}, "bad_header"),
    "stl cut off": ({"a.stl": stl(3, 2)}, "bad_header"),
    "off claims more than it has": ({"a.off": "OFF\n1000000 5 0\n0 0 0\n"}, "bad_header"),
    "off claims 4 G vertices": ({"a.off": f"OFF\n{HUGE} 5 0\n0 0 0\n"}, "too_large"),
    "required extension": (
        {"a.glb": changed(extensionsRequired=["ACME_cloth"])},
        "unsupported_feature",
    ),
    "meshopt": ({"a.glb": meshopt()}, "undecoded"),
    "texture of an unknown extension": ({"a.glb": unknown_texture()}, "unsupported_texture"),
    "ktx2 texture": (
        {"a.glb": quad_glb(b"\xabKTX 20\xbb\r\n\x1a\n" + b"\0" * 60)[1]},
        "bad_texture",
    ),
    "missing texture": ({"a.glb": with_image("wood.png")}, "missing_texture"),
    "missing texture obj": (obj_with_map("wood.png"), "missing_texture"),
    "missing texture ply": ({"a.ply": ply_with_texture("wood.png")}, "missing_texture"),
    "missing texture dae": ({"a.dae": quad_dae("wood.png")}, "missing_texture"),
    "missing buffer": (
        {
            "a.gltf": changed(buffers=[{"byteLength": 4, "uri": "no.bin"}])[20:]
            .split(b"\0")[0]
            .strip()
        },
        "bad_header",
    ),
    "image is text": ({"a.glb": quad_glb(b"this is no image")[1]}, "bad_texture"),
    "image cut off": (
        {"a.glb": quad_glb(png(np.zeros((64, 64, 3), np.uint8))[:-30])[1]},
        "bad_texture",
    ),
    "image of 10 gigapixels": ({"a.glb": quad_glb(image_bomb(100_000, 100_000))[1]}, "too_large"),
    "image of 100 megapixels": ({"a.glb": quad_glb(image_bomb(10_000, 10_000))[1]}, "too_large"),
    "cyclic dae": ({"a.dae": dae_cycle()}, "cyclic_scene"),
    "2^40 instances dae": ({"a.dae": dae_doubling()}, "too_large"),
    "entities dae": ({"a.dae": dae_entities()}, "bad_header"),
    "zip named dae": ({"a.dae": zipped()}, "bad_header"),
    "other xml named dae": ({"a.dae": "<svg/>"}, "bad_header"),
}
for _uri in (
    "/etc/passwd",
    "../secret.png",
    "a/../../secret.png",
    "%2e%2e/secret.png",
    "..\\secret.png",
    "C:\\secret.png",
    "http://localhost:9/a.png",
    "https://example.org/a.png",
    "file:///etc/passwd",
    "ftp://localhost/a.png",
    "link.png",
):
    CASES[f"glb refers to {_uri}"] = ({"a.glb": with_image(_uri)}, "outside_reference")
    CASES[f"obj refers to {_uri}"] = (obj_with_map(_uri), "outside_reference")
CASES["library outside"] = (
    {"a.obj": "mtllib /etc/no.mtl\nusemtl m\n" + TRIANGLE_OBJ + "f 1 2 3\n"},
    "outside_reference",
)
CASES["dae refers outside"] = ({"a.dae": quad_dae("../secret.png")}, "outside_reference")
CASES["ply refers outside"] = ({"a.ply": ply_with_texture("../secret.png")}, "outside_reference")


@pytest.mark.timeout(120)  # none of them is worked on for long
@pytest.mark.parametrize("name", sorted(CASES))
def test_load__broken_file_is_a_mesh_error_of_its_kind(tmp_path: Path, name: str) -> None:
    files, kind = CASES[name]
    folder = tmp_path / "asset"
    folder.mkdir()
    # What a reference outside would reach, were it followed: a good image.
    (tmp_path / "secret.png").write_bytes(png(np.zeros((2, 2, 3), np.uint8)))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    for file, content in files.items():
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    path = folder / next(iter(files))
    with pytest.raises(MeshError) as error:
        load_mesh(path)
    assert error.value.kind == kind, error.value.message
    assert error.value.stage == "load"
    assert error.value.message
    assert "\n" not in error.value.message


@pytest.mark.parametrize(
    "name", [case for case in sorted(CASES) if "4 G" in case or "2^40" in case or "pixels" in case]
)
def test_load__claims_are_checked_before_memory_is_taken(tmp_path: Path, name: str) -> None:
    files, _ = CASES[name]
    file, content = next(iter(files.items()))
    (tmp_path / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(MeshError):  # readers and decoders are imported outside the measurement
        load_mesh(tmp_path / file)
    tracemalloc.start()
    try:
        with pytest.raises(MeshError):
            load_mesh(tmp_path / file)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_load__missing_external_buffer(tmp_path: Path) -> None:
    builder = Builder()
    builder.node(mesh=builder.mesh(CUBE_CORNERS, CUBE_FACES))
    document = {**builder.document, "buffers": [{"byteLength": 4, "uri": "no.bin"}]}
    (tmp_path / "a.gltf").write_text(json.dumps(document))
    with pytest.raises(MeshError) as error:
        load_mesh(tmp_path / "a.gltf")
    assert error.value.kind == "missing_buffer"


def test_load__missing_file_folder_and_pipe(tmp_path: Path) -> None:
    (tmp_path / "folder.glb").mkdir()
    os.mkfifo(tmp_path / "pipe.glb")
    kinds = []
    for name in ("no.glb", "folder.glb", "pipe.glb"):
        with pytest.raises(MeshError) as error:
            load_mesh(tmp_path / name)
        kinds.append(error.value.kind)
    assert kinds == ["missing_file", "not_a_file", "not_a_file"]


def test_load__reference_to_a_pipe_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "wood.png")
    (tmp_path / "a.glb").write_bytes(with_image("wood.png"))
    with pytest.raises(MeshError) as error:
        load_mesh(tmp_path / "a.glb")
    assert error.value.kind == "missing_texture"


@pytest.mark.parametrize(
    "limits",
    [
        Limits(file_bytes=100),
        Limits(faces=11),
        Limits(vertices=7),
        Limits(json_bytes=50),
        Limits(nodes=0),
    ],
)
def test_limits__each_is_applied(tmp_path: Path, limits: Limits) -> None:
    (tmp_path / "a.glb").write_bytes(cube_glb())
    load_mesh(tmp_path / "a.glb")
    with pytest.raises(MeshError) as error:
        load_mesh(tmp_path / "a.glb", limits=limits)
    assert error.value.kind == "too_large"


@pytest.mark.parametrize("suffix", ["obj", "ply", "stl", "off"])
def test_limits__faces_of_other_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    trimesh.Trimesh(CUBE_CORNERS, CUBE_FACES, process=False).export(path)
    with pytest.raises(MeshError) as error:
        load_mesh(path, limits=Limits(faces=11))
    assert error.value.kind == "too_large"


def test_limits__texture_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.glb").write_bytes(quad_glb(png(np.zeros((8, 8, 3), np.uint8)))[1])
    load_mesh(tmp_path / "a.glb", limits=Limits(texture_pixels=64))
    with pytest.raises(MeshError) as error:
        load_mesh(tmp_path / "a.glb", limits=Limits(texture_pixels=63))
    assert error.value.kind == "too_large"


def test_limits__files_referred_to_count_together(tmp_path: Path) -> None:
    (tmp_path / "wood.png").write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
    data = with_image("wood.png")
    (tmp_path / "a.glb").write_bytes(data)
    total = len(data) + (tmp_path / "wood.png").stat().st_size
    load_mesh(tmp_path / "a.glb", limits=Limits(file_bytes=total))
    with pytest.raises(MeshError) as error:
        load_mesh(tmp_path / "a.glb", limits=Limits(file_bytes=total - 1))
    assert error.value.kind == "too_large"


def test_glb__any_cut_and_any_changed_byte_is_a_mesh_or_a_mesh_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    image = png(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
    path = tmp_path / "a.glb"
    for whole in (cube_glb(scale=[1, 2, 3]), quad_glb(image)[1]):
        variants = [whole[:cut] for cut in rng.integers(0, len(whole), 40)]
        for _ in range(160):
            broken = bytearray(whole)
            for place in rng.integers(0, len(whole), 1 + int(rng.integers(3))):
                broken[place] = int(rng.integers(256))
            variants.append(bytes(broken))
        outcomes = set()
        for data in variants:
            path.write_bytes(data)
            try:
                load_mesh(path).normalised()
                outcomes.add("mesh")
            except MeshError as error:
                outcomes.add(error.kind)
        assert len(outcomes) > 3


def test_pack__is_what_the_other_tests_take_it_for() -> None:
    data = pack_glb({"asset": {"version": "2.0"}}, b"1234")
    assert struct.unpack_from("<I", data, 8)[0] == len(data)
    stream = io.BytesIO(png(np.zeros((3, 5, 3), np.uint8)))
    assert Image.open(stream).size == (5, 3)
