"""Hostile glTF: changed JSON, accessors and views that lie, graphs without end, references."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from tests.chaos.mutate import (
    LINK,
    Case,
    Content,
    Files,
    World,
    byte_mutations,
    fixed,
    json_mutations,
    placed,
)
from tests.pipeline.gltf_files import CUBE_CORNERS, CUBE_FACES, Builder, pack_glb, png, quad_glb
from tests.pipeline.gltf_scenes import QUARTERS, SQUARE, SQUARE_FACES, square, textured
from tests.pipeline.test_gltf_hostile import compressed_square, instanced, morphed, skinned
from tests.pipeline.test_meshes import draco_glb

_MAGIC, _JSON, _BIN = 0x46546C67, 0x4E4F534A, 0x004E4942
HUGE = 4 * 2**30 - 16


def cube() -> Builder:
    """A box placed by two nodes, one within the other."""
    builder = Builder()
    mesh = builder.mesh(CUBE_CORNERS, CUBE_FACES)
    inner = builder.node(root=False, mesh=mesh, rotation=[0, 0, 0, 1], scale=[1, 2, 3])
    builder.node(children=[inner], translation=[1, 0, 0])
    return builder


def sparse() -> Builder:
    """A square whose positions are partly sparse."""
    builder = Builder()
    builder.node(mesh=builder.mesh(SQUARE, SQUARE_FACES))
    builder.document["accessors"][0]["sparse"] = {
        "count": 2,
        "indices": {"bufferView": builder.view(b"\0\0\1\0"), "componentType": 5123},
        "values": {"bufferView": builder.view(SQUARE[:2].astype("<f4").tobytes())},
    }
    return builder


def dressed() -> Builder:
    """A square with every kind of material statement that is read."""
    builder = Builder()
    image = builder.texture(png(QUARTERS))
    info = {
        "index": image,
        "texCoord": 0,
        "extensions": {"KHR_texture_transform": {"offset": [0, 0], "rotation": 1, "scale": [2, 2]}},
    }
    material = builder.material(
        pbrMetallicRoughness={"baseColorFactor": [1, 0.5, 0, 1], "baseColorTexture": info},
        emissiveFactor=[1, 1, 1],
        emissiveTexture={"index": image},
        alphaMode="MASK",
        alphaCutoff=0.5,
        extensions={
            "KHR_materials_emissive_strength": {"emissiveStrength": 2},
            "KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [1, 1, 1, 1]},
        },
    )
    colors = builder.accessor(np.full((4, 4), 200), "u1", normalized=True)
    builder.node(mesh=square(builder, {"COLOR_0": colors}, material=material))
    return builder


def draco() -> Builder:
    """A square compressed with Draco."""
    return draco_glb(SQUARE, SQUARE_FACES, np.full((4, 3), 99, np.uint8))


def strip() -> Builder:
    """A square as a triangle strip, with normals."""
    builder = Builder()
    normals = builder.accessor(np.tile([0.0, 0, 1], (4, 1)), "f4")
    mesh = builder.mesh(SQUARE[[0, 1, 3, 2]], [0, 1, 2, 3], {"NORMAL": normals}, mode=5)
    builder.node(mesh=mesh)
    return builder


BASES: dict[str, Callable[[], Builder]] = {
    "cube": cube,
    "textured": lambda: textured(png(QUARTERS)),
    "dressed": dressed,
    "skinned": skinned,
    "morphed": lambda: morphed(np.ones((4, 3)), weights=[0.5]),
    "instanced": lambda: instanced(3, 3),
    "meshopt": compressed_square,
    "draco": draco,
    "sparse": sparse,
    "strip": strip,
}


def finished(builder: Builder) -> tuple[dict[str, Any], bytes]:
    """Document and binary chunk."""
    builder.document.setdefault("buffers", [{"byteLength": len(builder.binary)}])
    return builder.document, builder.binary


def _graphs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Node graphs and nestings that a naive reader never leaves."""
    document, _ = finished(cube())

    def nodes(*entries: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {**document, "nodes": list(entries), "scenes": [{"nodes": [0]}], **more}

    yield "its own child", nodes({"mesh": 0, "children": [0]})
    yield "a ring", nodes({"children": [1]}, {"children": [2]}, {"children": [0], "mesh": 0})
    yield "a ring below", nodes({"mesh": 0, "children": [1]}, {"children": [2]}, {"children": [1]})
    yield "a ring in no scene", nodes({"mesh": 0}, {"children": [2]}, {"children": [1]})
    yield "a ring and no scenes", {**nodes({"children": [1]}, {"children": [0]}), "scenes": []}
    chain: list[dict[str, Any]]
    for levels, width in ((40, 2), (8, 200), (3, 5000)):
        chain = [{"children": [i + 1] * width} for i in range(levels)]
        yield f"{width}^{levels} instances", nodes(*chain, {"mesh": 0})
    for depth in (500, 5000, 90_000, 150_000):
        chain = [{"children": [i + 1]} for i in range(depth)]
        yield f"{depth} levels", nodes(*chain, {"mesh": 0})
    turned: dict[str, Any] = {"matrix": [1e200, *[0] * 4, 1e200, *[0] * 4, 1e200, *[0] * 4, 1]}
    chain = [{**turned, "children": [i + 1]} for i in range(5)]
    yield "scales that multiply to infinity", nodes(*chain, {"mesh": 0})
    chain = [{"scale": [1e-200] * 3, "children": [i + 1]} for i in range(5)]
    yield "scales that multiply to zero", nodes(*chain, {"mesh": 0})
    yield "20,000 roots", {
        **document, "nodes": [{"mesh": 0}] * 20_000, "scenes": [{"nodes": [*range(20_000)]}]
    }  # fmt: skip
    yield "a root 200,000 times", {**document, "scenes": [{"nodes": [1] * 200_000}]}
    yield "joints 100,000 times", {
        **finished(skinned())[0], "skins": [{"joints": [0] * 100_000}]
    }  # fmt: skip
    many = {**document["meshes"][0]["primitives"][0]}
    yield "20,000 primitives", {**document, "meshes": [{"primitives": [many] * 20_000}]}
    yield "100,000 weights", {
        **document, "meshes": [{**document["meshes"][0], "weights": [1] * 100_000}]
    }  # fmt: skip
    targets = [{"POSITION": 0}] * 20_000
    yield (
        "20,000 morph targets",
        {
            **document,
            "meshes": [{"primitives": [{**many, "targets": targets}], "weights": [1e-9] * 20_000}],
        },
    )
    yield "required extensions without number", {
        **document, "extensionsRequired": ["KHR_materials_" + "x" * 10**6] * 3
    }  # fmt: skip
    for depth in (900, 5000, 200_000):
        yield f"extras {depth} deep", {**document, "extras": ("[", depth)}
        yield f"extras {depth} objects deep", {**document, "extras": ('{"a":', depth)}


def _deep(document: dict[str, Any]) -> bytes:
    """JSON text; a tuple as extras is an opening that is repeated."""
    extras = document.get("extras")
    if not isinstance(extras, tuple):
        return json.dumps(document).encode()
    opening, depth = extras
    closing = "]" if opening == "[" else "}"
    nested = opening * depth + ("" if closing == "]" else "0") + closing * depth
    text = json.dumps({**document, "extras": 0})
    return text.replace('"extras": 0', f'"extras": {nested}').encode()


def glb_of(text: bytes, binary: bytes) -> bytes:
    """A GLB file of JSON text as it is."""
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    chunks = struct.pack("<II", len(text), _JSON) + text
    chunks += struct.pack("<II", len(binary), _BIN) + binary
    return struct.pack("<III", _MAGIC, 2, 12 + len(chunks)) + chunks


def _texts() -> Iterator[tuple[str, bytes]]:
    """JSON text that no document gives."""
    document, _ = finished(cube())
    text = json.dumps(document)
    yield "utf-16", text.encode("utf-16")
    yield "bom", b"\xef\xbb\xbf" + text.encode()
    yield "latin-1", text.replace('"2.0"', '"2.0", "generator": "\xe9"').encode("latin1")
    yield "key twice", text.replace('"scene": 0', '"scene": 0, "scene": 9').encode()
    yield "meshes twice", (text[:-1] + ', "meshes": []}').encode()
    yield (
        "one million keys",
        text[:-1].encode() + b"".join(b',"k%d":0' % i for i in range(200_000)) + b"}",
    )
    yield (
        "number of 100,000 digits",
        text.replace('"scene": 0', f'"scene": {"9" * 100_000}').encode(),
    )
    yield (
        "number of 5,000 digits",
        text.replace('"byteLength": ', f'"byteLength": {"9" * 4290}', 1).encode(),
    )
    yield "nul bytes", text.encode() + b"\0" * 100
    yield "two documents", (text + text).encode()
    yield "comments", ("// a comment\n" + text).encode()
    yield "nothing", b""
    yield "blank", b" " * 10**6
    yield "escapes", text.replace('"meshes"', '"\\u006desh\\u0065s"').encode()
    yield "asset is a list", text.replace('{"version": "2.0"}', '["2.0"]').encode()


def _containers() -> Iterator[tuple[str, bytes]]:
    """GLB headers and chunks that lie."""
    document, binary = finished(cube())
    whole = pack_glb(document, binary)
    head = struct.unpack_from("<I", whole, 12)[0]
    for value in (0, 1, 11, 12, 19, len(whole) - 1, len(whole) + 1, 2**31, 2**32 - 1):
        yield f"length {value}", whole[:8] + struct.pack("<I", value) + whole[12:]
        yield f"json length {value}", whole[:12] + struct.pack("<I", value) + whole[16:]
        at = 20 + head
        yield f"bin length {value}", whole[:at] + struct.pack("<I", value) + whole[at + 4 :]
    for version in (0, 1, 3, 2**32 - 1):
        yield f"version {version}", whole[:4] + struct.pack("<I", version) + whole[8:]
    for kind in (0, _BIN, 2**32 - 1):
        yield f"chunk type {kind:x}", whole[:16] + struct.pack("<I", kind) + whole[20:]
    yield "no bin chunk", whole[: 20 + head]
    yield "two json chunks", whole + struct.pack("<II", 2, _JSON) + b"{}"
    yield "a million empty chunks", _resized(whole + struct.pack("<II", 0, 7) * 1_000_000)
    yield "bin chunk first", _resized(whole[:12] + whole[20 + head :] + whole[12 : 20 + head])
    yield "magic alone", b"glTF"
    yield "trailing garbage", whole + b"\xff" * 1000


def _resized(data: bytes) -> bytes:
    return data[:8] + struct.pack("<I", len(data)) + data[12:]


def hostile_uris(world: World, name: str) -> list[str]:
    """References that lead out, to a network, or to what is no file; ``name`` is the canary's."""
    outside, port = world.outside, world.port
    deep = "../" * 40
    return [
        f"../{name}", f"..\\{name}", f"%2e%2e/{name}", f"%2e%2e%2f{name}", f"..%2F{name}",
        f"a/../../{name}", f"./../{name}", f"....//{name}", f"..%5c{name}", f"..%00/{name}",
        f"{outside}/{name}", f"{deep}{outside}/{name}", f"file://{outside}/{name}",
        f"file:{outside}/{name}", f"FILE://{outside}/{name}", f"//{outside}/{name}",
        f"///{outside}/{name}", f"http://127.0.0.1:{port}/{name}", f"https://127.0.0.1:{port}/{name}",
        f"//127.0.0.1:{port}/{name}", f"ftp://127.0.0.1:{port}/{name}", f"\\\\127.0.0.1\\a\\{name}",
        f"C:\\{name}", f"c:/{name}", f"link/{name}", "link.file", "loop", "loop/x", "..", ".", "/",
        "", " ", "~/x", "/etc/passwd", "/dev/zero", "/dev/stdin", "/proc/self/mem",
        "/proc/self/environ", "a.glb", "\0", "x" * 300, "x" * 100_000, "a/" * 50_000, "\ud800",
        "javascript:0", "data:,", "data:;base64", "data:application/octet-stream;base64,!!!!",
        "data:text/plain,hello", "data:;base64," + "A" * 4_000_000, f"|cat {outside}/{name}",
        f"zip://{outside}/{name}", f"{name}#../{name}", f"?../{name}", "$(touch /tmp/x)",
    ]  # fmt: skip


def links(world: World, name: str) -> Files:
    """Symbolic links in the asset's folder: out of it, to the canary, and to themselves."""
    return {
        "link": LINK + world.outside.encode(),
        "link.file": LINK + f"{world.outside}/{name}".encode(),
        "loop": LINK + b"loop",
    }


def _reference_cases() -> Iterator[Case]:
    count = len(hostile_uris(World("/o", 1), "x"))

    def image(world: World, at: int) -> Files:
        builder, _ = quad_glb(png(np.zeros((2, 2, 3), np.uint8)))
        builder.document["images"] = [{"uri": hostile_uris(world, "secret.png")[at]}]
        return {"a.glb": builder.glb(), **links(world, "secret.png")}

    def buffer(world: World, at: int) -> Files:
        document, binary = finished(cube())
        uri = hostile_uris(world, "secret.bin")[at]
        document = {**document, "buffers": [{"byteLength": len(binary), "uri": uri}]}
        return {"a.gltf": json.dumps(document).encode(), **links(world, "secret.bin")}

    for at in range(count):
        yield placed(f"gltf/image refers {at}", "mesh", image, at)
        yield placed(f"gltf/buffer refers {at}", "mesh", buffer, at)


def _data_uris() -> Iterator[Case]:
    document, binary = finished(cube())
    encoded = base64.b64encode(binary).decode()

    def of(uri: str, length: int = len(binary), copies: int = 1) -> bytes:
        entry = {"byteLength": length, "uri": uri}
        return json.dumps({**document, "buffers": [entry] * copies}).encode()

    head = "data:application/octet-stream;base64,"
    variants: dict[str, Content] = {
        "plain": of(head + encoded),
        "shorter than it says": of(head + encoded[:40]),
        "longer than it says": of(head + encoded * 100),
        "claims 4 GB": of(head + encoded, HUGE),
        "line breaks": of(head + "\r\n".join(encoded)),
        "url alphabet": of(head + encoded.replace("A", "-")),
        "no padding": of(head + encoded.rstrip("=")),
        "of 30 MB": lambda: of(head + "A" * 40_000_000),
        "10,000 times": lambda: of(head + encoded, copies=10_000),
        "unknown type": of("data:image/svg+xml;base64," + encoded),
        "without a comma": of("data:" + encoded),
    }
    for name, text in variants.items():
        yield fixed(f"gltf/data uri {name}", "mesh", "a.gltf", text)


def gltf_cases() -> Iterator[Case]:
    """All of them; about 1,000."""
    for base, make in BASES.items():
        document, binary = finished(make())
        for told, changed in json_mutations(document, f"gltf {base}", 62):
            content = partial(pack_glb, changed, binary)
            yield fixed(f"gltf/{base}/{told}", "mesh", "a.glb", content)
        whole = pack_glb(document, binary)
        for told, broken in byte_mutations(whole, f"glb {base}", 14):
            yield fixed(f"gltf/{base}/{told}", "mesh", "a.glb", broken)
        for told, broken in byte_mutations(binary, f"bin {base}", 14):
            yield fixed(f"gltf/{base}/bin {told}", "mesh", "a.glb", _rebuilt(document, broken))
    for told, changed in _graphs():
        yield fixed(f"gltf/graph, {told}", "mesh", "a.glb", partial(_graph, changed))
    for told, text in _texts():
        yield fixed(f"gltf/json {told}", "mesh", "a.gltf", text or b" ")
    for told, data in _containers():
        yield fixed(f"gltf/glb {told}", "mesh", "a.glb", data)
    yield from _reference_cases()
    yield from _data_uris()


def _graph(document: dict[str, Any]) -> bytes:
    return glb_of(_deep(document), finished(cube())[1])


def _rebuilt(document: dict[str, Any], binary: bytes) -> bytes:
    """A GLB file that says the true length of a changed binary chunk."""
    return pack_glb({**document, "buffers": [{"byteLength": len(binary)}]}, binary)
