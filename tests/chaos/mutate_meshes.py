"""Hostile OBJ, MTL, PLY, STL, OFF and COLLADA files."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from tests.chaos.mutate import (
    Case,
    Content,
    Files,
    World,
    byte_mutations,
    fixed,
    placed,
    rng_of,
    word_mutations,
)
from tests.chaos.mutate_gltf import HUGE, hostile_uris, links
from tests.pipeline.gltf_files import CUBE_CORNERS, CUBE_FACES, png
from tests.pipeline.test_mesh_hostile import dae_cycle, dae_doubling, dae_entities
from tests.pipeline.test_mesh_materials import ply_with_texture, quad_dae

PICTURE = png(np.full((4, 4, 3), 90, np.uint8))
_CORNERS = b"".join(b"v %g %g %g\n" % tuple(row) for row in CUBE_CORNERS.tolist())
OBJ = (
    b"mtllib a.mtl\no box\n" + _CORNERS + b"vt 0 0\nvt 1 0\nvt 1 1\nvn 0 0 1\ng one\nusemtl red\n"
    b"f 1/1/1 2/2/1 4/3/1\nf 1/1/1 4/3/1 3/1/1\nf 5 7 8\nf 5 8 6\ns off\nusemtl blue\n"
    b"f -8//1 -4//1 -3//1\nf 1 6 2 5\nl 1 2\n"
)
MTL = (
    b"newmtl red\nKd 1 0 0\nd 0.5\nmap_Kd -s 1 1 1 a.png\n"
    b"newmtl blue\nKd 0 0 1\nTr 0\nmap_d a.png\n"
)


def with_library(name: str, obj: bytes = OBJ, mtl: bytes = MTL) -> Case:
    """An OBJ file with its material library and its picture."""
    return fixed(name, "mesh", "a.obj", obj, a_mtl=mtl, a_png=PICTURE)


def _obj_cases() -> Iterator[Case]:
    for told, text in word_mutations(OBJ, "obj", 110):
        yield with_library(f"obj/{told}", text)
    for told, text in word_mutations(MTL, "mtl", 40):
        yield with_library(f"obj/mtl {told}", mtl=text)
    for told, text in byte_mutations(OBJ, "obj", 28):
        yield fixed(f"obj/{told}", "mesh", "a.obj", text or b"\n")
    triangle = b"v 0 0 0\nv 1 0 0\nv 0 1 0\n"
    texts = {
        "index 2^31": triangle + b"f 1 2 2147483648\n",
        "index 2^63": triangle + b"f 1 2 9223372036854775808\n",
        "index of 5,000 digits": triangle + b"f 1 2 " + b"9" * 5000 + b"\n",
        "index -2^63": triangle + b"f 1 2 -9223372036854775808\n",
        "index 1.5": triangle + b"f 1 2 1.5\n",
        "texture index far": triangle + b"vt 0 0\nf 1/1 2/1 3/999999\n",
        "normal index far": triangle + b"vn 0 0 1\nf 1//1 2//1 3//999999\n",
        "one line of 10 MB": b"# " + b"x" * 10**7 + b"\n" + triangle + b"f 1 2 3\n",
        "one face of 300,000 corners": triangle + b"f " + b"1 2 3 " * 100_000 + b"\n",
        "one face of 100,000 blanks": triangle + b"f 1" + b" " * 100_000 + b"2 3\n",
        "20,000 objects": triangle + b"".join(b"o %d\nf 1 2 3\n" % i for i in range(20_000)),
        "2,000 materials used": b"mtllib a.mtl\n"
        + triangle
        + b"".join(b"usemtl m%d\nf 1 2 3\n" % i for i in range(2000)),
        "200,000 blank lines": triangle + b"\n" * 200_000 + b"f 1 2 3\n",
        "continued without end": triangle + b"f 1 \\\n" * 50_000 + b"2 3\n",
        "million zeros": triangle + b"f " + b"0" * 10**6 + b" 1 2\n",
        "many zeros": triangle + b"f " + b"0x " * 300_000 + b"1 2\n",
        "many minus signs": triangle + b"f " + b"-" * 10**6 + b" 1 2\n",
        "long keyword": b"v" * 10**6 + b" 1\n" + triangle + b"f 1 2 3\n",
        "vertex of 10,000 numbers": b"v " + b"1 " * 10_000 + b"\n" + triangle + b"f 1 2 3\n",
        "faces before vertices": b"f 1 2 3\n" + triangle,
        "faces of mixed columns": triangle + b"vt 0 0\nf 1/1 2 3//\nf 1 2 3 1 2\n",
        "utf-16": OBJ.decode().encode("utf-16"),
        "old macintosh lines": OBJ.replace(b"\n", b"\r"),
        "form feeds": triangle.replace(b"\n", b"\x0c") + b"f 1 2 3\n",
        "call": triangle + b"call /etc/passwd\ncsh rm -rf x\nf 1 2 3\n",
        "subobjects without faces": b"o a\no b\n" + triangle + b"usemtl q\nusemtl r\nf 1 2 3\n",
        "quads, then a polygon": triangle + b"v 1 1 0\nf 1 2 4 3\n" + b"f 1 2 4 3 1 2 4 3 1\n",
        "nan everywhere": b"v nan nan nan\n" * 3 + b"f 1 2 3\n",
        "colours of nan": b"v 0 0 0 nan 1 1\nv 1 0 0 1 nan 1\nv 0 1 0 1 1 1e9\nf 1 2 3\n",
        "colours of some": b"v 0 0 0 1 0 0\nv 1 0 0\nv 0 1 0 1 1\nf 1 2 3\n",
        "nul": triangle + b"f 1 2 3\0\n",
        "no faces": triangle,
        "no vertices": b"f 1 2 3\n",
    }  # fmt: skip
    for told, text in texts.items():
        yield with_library(f"obj/{told}", text)
    libraries = {
        "of 1,000,000 materials": b"".join(b"newmtl m%d\nKd 1 0 0\n" % i for i in range(200_000)),
        "with a name of 1 MB": b"newmtl " + b"x" * 10**6 + b"\nKd 1 0 0\n",
        "binary": bytes(range(256)) * 400,
        "empty": b"",
        "of nan": b"newmtl red\nKd nan inf -1\nd nan\nnewmtl blue\nTr 1e400\n",
        "options without a name": b"newmtl red\nmap_Kd -s 1 1 1\nmap_d -mm\n",
        "options without end": b"newmtl red\nmap_Kd " + b"-s 1 " * 100_000 + b"a.png\n",
        "that names itself": b"newmtl red\nmap_Kd a.mtl\n",
        "that names the mesh": b"newmtl red\nmap_Kd a.obj\n",
    }
    for told, mtl in libraries.items():
        yield with_library(f"obj/library {told}", mtl=mtl)
    yield fixed("obj/library missing", "mesh", "a.obj", OBJ)
    yield fixed("obj/picture missing", "mesh", "a.obj", OBJ, a_mtl=MTL)
    yield fixed(
        "obj/50,000 libraries", "mesh", "a.obj",
        b"mtllib " + b"a.mtl " * 50_000 + b"\nusemtl red\n" + triangle + b"f 1 2 3\n",
        a_mtl=MTL, a_png=PICTURE,
    )  # fmt: skip


def _reference_cases() -> Iterator[Case]:
    def files(world: World, at: int, what: str) -> Files:
        name = "secret.mtl" if what == "library" else "secret.png"
        uri = hostile_uris(world, name)[at].encode("utf-8", "surrogatepass")
        shown = uri.replace(b"\n", b"")
        made: Files
        if what == "library":
            made = {"a.obj": OBJ.replace(b"a.mtl", shown)}
        elif what == "map":
            made = {"a.obj": OBJ, "a.mtl": MTL.replace(b"a.png", shown)}
        elif what == "ply":
            made = {"a.ply": ply_with_texture("@").encode().replace(b"@", shown)}
        else:
            text = quad_dae("@@").encode()
            escaped = shown.replace(b"&", b"&amp;").replace(b"<", b"&lt;").replace(b"\0", b"")
            made = {"a.dae": text.replace(b"@@", escaped)}
        return {**made, **links(world, name)}

    for at in range(len(hostile_uris(World("/o", 1), "x"))):
        for what in ("library", "map", "ply", "dae"):
            yield placed(f"refers/{what} {at}", "mesh", files, at, what)


# --- PLY --------------------------------------------------------------------------------------


def ply_of(form: str) -> bytes:
    """A box with colours in one of the three forms."""
    header = (
        f"ply\nformat {form} 1.0\ncomment a box\nelement vertex 8\nproperty float x\n"
        "property float y\nproperty float z\nproperty uchar red\nproperty uchar green\n"
        "property uchar blue\nelement face 12\nproperty list uchar int vertex_indices\nend_header\n"
    ).encode()
    order = ">" if form == "binary_big_endian" else "<"
    body = b""
    for row in CUBE_CORNERS.tolist():
        if form == "ascii":
            body += b"%g %g %g 9 200 7\n" % tuple(row)
        else:
            body += struct.pack(order + "3f3B", *row, 9, 200, 7)
    for face in CUBE_FACES.tolist():
        if form == "ascii":
            body += b"3 %d %d %d\n" % tuple(face)
        else:
            body += struct.pack(order + "B3i", 3, *face)
    return header + body


def _ply_cases() -> Iterator[Case]:
    swaps = (
        (b"vertex 8", b"vertex 7"), (b"vertex 8", b"vertex 9"), (b"vertex 8", b"vertex 0"),
        (b"vertex 8", b"vertex -1"), (b"vertex 8", b"vertex 4294967295"),
        (b"vertex 8", b"vertex 15000000"), (b"vertex 8", b"vertex " + b"9" * 40),
        (b"vertex 8", b"vertex 8.0"), (b"vertex 8", b"vertex"), (b"vertex 8", b"vertex 8 8"),
        (b"face 12", b"face 13"), (b"face 12", b"face 0"), (b"face 12", b"face 5000001"),
        (b"face 12", b"face 5000000"), (b"face 12", b"face " + b"9" * 5000),
        (b"list uchar int", b"list char int"), (b"list uchar int", b"list uint int"),
        (b"list uchar int", b"list int uint"), (b"list uchar int", b"list double float"),
        (b"list uchar int", b"list uchar uchar"), (b"list uchar int", b"list float int"),
        (b"list uchar int", b"list uchar double"), (b"list uchar int ", b"uchar "),
        (b"list uchar int", b"list uchar"), (b"list uchar int", b"list list list"),
        (b"property float x", b"property double x"), (b"property float x", b"property x"),
        (b"property float x", b"property"), (b"property float x", b"property float y"),
        (b"property float x", b"property list uchar float x"),
        (b"property float x", b"property float128 x"), (b"float z", b"float w"),
        (b"property uchar red", b"property float red"), (b"vertex_indices", b"x"),
        (b"vertex_indices", b"vertex_index"), (b"element face", b"element tristrips"),
        (b"element vertex", b"element vertices"), (b"comment a box\n", b"\n"),
        (b"comment a box\n", b"element nothing 10000000000\n"),
        (b"comment a box\n", b"element nothing 100000000\n"),
        (b"comment a box\n", b"element one 10\nproperty uchar a\n"),
        (b"comment a box\n", b"element vertex 8\n"),
        (b"comment a box\n", b"comment " + b"x" * 70_000 + b"\n"),
        (b"comment a box\n", b"comment\n" * 5000), (b"end_header\n", b"end_header"),
        (b"end_header\n", b"end_header\r\n"), (b"end_header\n", b"end_header\nend_header\n"),
        (b"1.0", b"2.0"), (b"ply\n", b"PLY\n"), (b"ply\n", b"ply\r\n"), (b"ply\n", b"ply\n\n"),
        (b"comment a box", b"comment TextureFile a.png"), (b"comment a box", b"obj_info \xff\xfe"),
        (b"end_header\n", b"element tail 4294967295\nproperty list uchar int q\nend_header\n"),
        (b"end_header\n", b"property list uchar uchar extra\nend_header\n"),
    )  # fmt: skip
    forms = ("ascii", "binary_little_endian", "binary_big_endian")
    for form in forms:
        whole = ply_of(form)
        for number, (old, new) in enumerate(swaps):
            yield fixed(f"ply/{form} header {number}", "mesh", "a.ply", whole.replace(old, new, 1))
        for told, broken in byte_mutations(whole, f"ply {form}", 21):
            yield fixed(f"ply/{form} {told}", "mesh", "a.ply", broken or b"p")
        body = whole.index(b"end_header\n") + 11
        for told, broken in byte_mutations(whole[body:], f"ply body {form}", 14):
            yield fixed(f"ply/{form} body {told}", "mesh", "a.ply", whole[:body] + broken)
    for told, text in word_mutations(ply_of("ascii"), "ply", 48):
        yield fixed(f"ply/{told}", "mesh", "a.ply", text)
    for other in forms[1:]:
        mixed = ply_of("ascii").replace(b"format ascii", b"format " + other.encode())
        yield fixed(f"ply/text called {other}", "mesh", "a.ply", mixed)
    named = ply_of("binary_little_endian").replace(b"binary_little_endian", b"ascii")
    yield fixed("ply/binary called ascii", "mesh", "a.ply", named)
    yield fixed("ply/a face of 255 corners", "mesh", "a.ply", ply_of("ascii") + b"")
    corners = b"3000 " + b"0 1 2 " * 1000
    large = ply_of("ascii").replace(b"list uchar", b"list int").replace(b"face 12", b"face 13")
    yield fixed("ply/a face of 3,000 corners", "mesh", "a.ply", large + corners + b"\n")


# --- STL and OFF ------------------------------------------------------------------------------


def stl_binary(count: int | None = None) -> bytes:
    """A box as binary STL; ``count`` is what the header claims."""
    rows = b"".join(
        struct.pack("<12fH", *([0.0] * 3), *CUBE_CORNERS[face].ravel(), 0) for face in CUBE_FACES
    )
    return b"x" * 80 + struct.pack("<I", len(CUBE_FACES) if count is None else count) + rows


def stl_text() -> bytes:
    """A box as ASCII STL."""
    lines = ["solid box"]
    for face in CUBE_FACES:
        lines += ["facet normal 0 0 0", "outer loop"]
        lines += ["vertex {} {} {}".format(*CUBE_CORNERS[corner]) for corner in face]
        lines += ["endloop", "endfacet"]
    return "\n".join([*lines, "endsolid box", ""]).encode()


def off_text(color: bool = False) -> bytes:
    """A box as OFF, or COFF with colours."""
    lines = ["COFF" if color else "OFF", "8 12 0"]
    tail = " 10 20 30 255" if color else ""
    lines += ["{} {} {}".format(*row) + tail for row in CUBE_CORNERS.tolist()]
    lines += ["3 {} {} {}".format(*face) for face in CUBE_FACES.tolist()]
    return "\n".join([*lines, ""]).encode()


def _stl_cases() -> Iterator[Case]:
    for count in (0, 1, 11, 13, 5_000_000, 5_000_001, 2**31, 2**32 - 1):
        yield fixed(f"stl/count {count}", "mesh", "a.stl", stl_binary(count))
    for told, data in byte_mutations(stl_binary(), "stl", 42):
        yield fixed(f"stl/binary {told}", "mesh", "a.stl", data or b"s")
    for told, text in word_mutations(stl_text(), "stl", 56):
        yield fixed(f"stl/{told}", "mesh", "a.stl", text)
    facet = stl_text().split(b"\n", 1)[1]
    texts = {
        "solid alone": b"solid",
        "binary that begins with solid": b"solid" + stl_binary()[5:],
        "no end": stl_text()[:-40],
        "nested solids": b"solid a\n" * 1000 + facet,
        "10,000 empty solids": b"solid a\nendsolid a\n" * 10_000,
        "facets without vertices": b"solid a\n" + b"facet normal 0 0 0\nendfacet\n" * 10_000,
        "vertices without facets": b"solid a\n" + b"vertex 0 0 1\n" * 10_000 + b"endsolid\n",
        "nan": stl_text().replace(b"1.0", b"nan"),
        "one line": stl_text().replace(b"\n", b" "),
        "one line of 5 MB": b"solid " + b"x" * 5 * 10**6 + b"\n" + facet,
        "upper case": stl_text().upper(),
        "zero faces, then garbage": stl_binary(0) + b"\xff" * 100,
    }
    for told, text in texts.items():
        yield fixed(f"stl/{told}", "mesh", "a.stl", text)


def _off_cases() -> Iterator[Case]:
    for color in (False, True):
        base = off_text(color)
        for told, text in word_mutations(base, f"off {color}", 80):
            yield fixed(f"off/{'c' if color else ''}{told}", "mesh", "a.off", text)
    three = b"0 0 0\n1 0 0\n0 1 0\n"
    texts = {
        "a face that claims 10^12 corners": b"OFF\n3 1 0\n" + three + b"1000000000000 0 1 2\n",
        "a face that claims 10^9 corners": b"OFF\n3 1 0\n" + three + b"1000000000 0 1 2\n",
        "a face that claims 5 corners": b"OFF\n3 1 0\n" + three + b"5 0 1 2\n",
        "a face of -3 corners": b"OFF\n3 1 0\n" + three + b"-3 0 1 2\n",
        "a face of 200,000 corners": b"OFF\n3 1 0\n" + three + b"200001 " + b"0 1 2 " * 66_667,
        "two faces of 30,000 corners": b"OFF\n3 2 0\n"
        + three
        + (b"30000 " + b"0 1 2 " * 10_000 + b"\n") * 2,
        "a face without corners": b"OFF\n3 1 0\n" + three + b"3\n",
        "faces of alternating sizes": b"OFF\n3 40000 0\n"
        + three
        + b"3 0 1 2\n4 0 1 2 0\n" * 20_000,
        "index 2^63": b"OFF\n3 1 0\n" + three + b"3 0 1 9223372036854775808\n",
        "nan": b"OFF\n3 1 0\nnan 0 0\n1 0 0\n0 1 0\n3 0 1 2\n",
        "inf": b"OFF\n3 1 0\n1e400 0 0\n1 0 0\n0 1 0\n3 0 1 2\n",
        "too few coordinates": b"OFF\n3 1 0\n0 0\n1 0 0\n0 1 0\n3 0 1 2\n",
        "counts of 5,000 digits": b"OFF\n" + b"9" * 5000 + b" 1 0\n" + three,
        "counts that are arabic": "OFF\n\u0663 \u0661 0\n".encode() + three + b"3 0 1 2\n",
        "negative counts": b"OFF\n-3 1 0\n" + three + b"3 0 1 2\n",
        "counts glued": b"OFF3 1 0\n" + three + b"3 0 1 2\n",
        "comments without end": b"OFF\n" + b"#" * 10**6 + b"\n3 1 0\n" + three + b"3 0 1 2\n",
        "keyword far off": b" " * 10**6 + b"OFF\n3 1 0\n" + three + b"3 0 1 2\n",
        "ST": b"STOFF\n3 1 0\n" + three + b"3 0 1 2\n",
        "CN without colours": b"CNOFF\n3 1 0\n" + three + b"3 0 1 2\n",
        "4": b"4OFF\n3 1 0\n" + three + b"3 0 1 2\n",
        "binary": b"OFF BINARY\n" + b"\0" * 100,
        "face colours of text": b"OFF\n3 1 0\n" + three + b"3 0 1 2 a b c\n",
        "face colours huge": b"OFF\n3 1 0\n" + three + b"3 0 1 2 99999999999999999999 0 0\n",
        "face colours and a far index": b"OFF\n3 1 0\n" + three + b"3 0 1 9 255 0 0\n",
        "face colours and a negative index": b"OFF\n3 1 0\n" + three + b"3 0 1 -9 255 0 0\n",
    }  # fmt: skip
    for told, text in texts.items():
        yield fixed(f"off/{told}", "mesh", "a.off", text)
    for told, text in byte_mutations(off_text(), "off", 14):
        yield fixed(f"off/{told}", "mesh", "a.off", text or b"O")


# --- COLLADA ----------------------------------------------------------------------------------

_XML_VALUE = re.compile(rb'(?<==")[^"]*(?=")|(?<=>)[^<>\n]+(?=<)')
_XML_WORDS = (
    b"", b"-1", b"0", b"nan", b"1e400", b"99999999999", b"4294967296", b"x", b"#", b"#g", b"#n",
    b"#scene", b"#none", b"0 0 0", b"-5 -5 -5 -5 -5 -5 -5 -5", b"2000000000", b"0 1 2 3 4 5 6 7 8",
    b"100 100 100 100 100 100 100 100", b"1" * 5000, b"XYZ", b"NORMAL", b"COLOR", b"&#1114111;",
    b"../secret.png", b"9223372036854775808",
)  # fmt: skip


def dae_mutations(count: int) -> Iterator[tuple[str, bytes]]:
    """Attributes and texts of a good file, one or two of them exchanged; elements doubled."""
    rng = rng_of("dae")
    bases = (quad_dae("a.png").encode(), quad_dae(None).encode())
    for turn in range(count):
        data = bases[turn % 2]
        for _ in range(1 + turn % 2):
            places = [match.span() for match in _XML_VALUE.finditer(data)]
            start, end = places[int(rng.integers(len(places)))]
            if turn % 9 == 8:  # an element or a piece of one twice
                data = data[:end] + data[start:end] + data[end:]
            else:
                word = _XML_WORDS[int(rng.integers(len(_XML_WORDS)))]
                data = data[:start] + word + data[end:]
        yield f"values {turn}", data


def _doctype(body: str, use: str, where: str = "text") -> bytes:
    text = quad_dae(None)
    if where == "attribute":
        text = text.replace('version="1.4.1"', f'version="{use}"')
    else:
        text = text.replace("Y_UP", use)
    return text.replace("<COLLADA", f"<!DOCTYPE COLLADA [{body}]>\n<COLLADA", 1).encode()


def _entities(world: World) -> dict[str, bytes]:
    laughs = '<!ENTITY a0 "ha">' + "".join(
        f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12)
    )
    quadratic = f'<!ENTITY q "{"x" * 100_000}">'
    secret = f"{world.outside}/secret.png"
    plain = {
        "billion laughs": _doctype(laughs, "&a11;"),
        "billion laughs in an attribute": _doctype(laughs, "&a11;", "attribute"),
        "million laughs in an attribute": _doctype(laughs, "&a6;", "attribute"),
        "quadratic": _doctype(quadratic, "&q;" * 5000),
        "quadratic in an attribute": _doctype(quadratic, "&q;" * 5000, "attribute"),
        "an external entity": _doctype(f'<!ENTITY x SYSTEM "file://{secret}">', "&x;"),
        "an external entity over http": _doctype(
            f'<!ENTITY x SYSTEM "http://127.0.0.1:{world.port}/x">', "&x;"
        ),
        "an external parameter entity": _doctype(
            f'<!ENTITY % x SYSTEM "file://{secret}"> %x;', "Y_UP"
        ),
        "an entity of itself": _doctype('<!ENTITY x "&y;"><!ENTITY y "&x;">', "&x;"),
        "an entity that is not there": quad_dae(None).replace("Y_UP", "&nope;").encode(),
        "an attribute list": _doctype('<!ATTLIST node id CDATA "same">', "Y_UP"),
    }
    outside = quad_dae(None).replace(
        "<COLLADA", f'<!DOCTYPE COLLADA SYSTEM "file://{secret}">\n<COLLADA', 1
    )
    include = quad_dae(None).replace(
        "<asset>",
        f'<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="{secret}"/><asset>',
    )
    return {
        **plain,
        "an external subset": outside.encode(),
        "an include": include.encode(),
        "a stylesheet": b'<?xml-stylesheet href="http://127.0.0.1/x"?>' + quad_dae(None).encode(),
        "utf-16 laughs": _doctype(laughs, "&a11;", "attribute").decode().encode("utf-16"),
        "utf-32 laughs": _doctype(laughs, "&a9;", "attribute").decode().encode("utf-32"),
    }  # fmt: skip


def _with_entities(world: World, told: str) -> Files:
    return {"a.dae": _entities(world)[told]}


def _dae_cases() -> Iterator[Case]:
    for told, data in dae_mutations(190):
        yield fixed(f"dae/{told}", "mesh", "a.dae", data, a_png=PICTURE)
    for told, data in byte_mutations(quad_dae("a.png").encode(), "dae", 21):
        yield fixed(f"dae/{told}", "mesh", "a.dae", data or b"<", a_png=PICTURE)
    for told in _entities(World("/o", 1)):
        yield placed(f"dae/{told}", "mesh", _with_entities, told)
    node = "<node>" * 100
    texts: dict[str, Content] = {
        "a node of itself": dae_cycle(),
        "2^40 nodes": dae_doubling(),
        "entities": dae_entities(),
        "250 levels": quad_dae(None, node="<node>" * 250 + "</node>" * 250),
        "1,500 levels": quad_dae(None, node="<node>" * 1500 + "</node>" * 1500),
        "100,000 levels": quad_dae(None, node="<node>" * 100_000 + "</node>" * 100_000),
        "levels that never end": quad_dae(None, node=node),
        "100,000 attributes": quad_dae(None).replace(
            "<asset>", "<asset " + " ".join(f'a{i}="0"' for i in range(100_000)) + ">"
        ),
        "a scene that is not there": quad_dae(None).replace('url="#scene"', 'url="#x"'),
        "no scene": quad_dae(None).split("<scene>")[0] + "</COLLADA>",
        "a vcount of 2^31": quad_dae(None).replace("<vcount>4", "<vcount>2147483647"),
        "a vcount of 10^8": quad_dae(None).replace("<vcount>4", "<vcount>100000000"),
        "a negative vcount": quad_dae(None).replace("<vcount>4", "<vcount>-4"),
        "100,000 vcounts": quad_dae(None).replace("<vcount>4", "<vcount>" + "4 " * 100_000),
        "an offset of 10^6": quad_dae(None).replace('offset="1"', 'offset="1000000"'),
        "an offset of 10^9": quad_dae(None).replace('offset="1"', 'offset="1000000000"'),
        "an offset of 10^20": quad_dae(None).replace('offset="1"', f'offset="{10**20}"'),
        "a negative offset": quad_dae(None).replace('offset="1"', 'offset="-1"'),
        "an accessor of stride 0": quad_dae(None).replace('stride="3"', 'stride="0"'),
        "an accessor of 10^9": quad_dae(None).replace(
            'count="4" stride', 'count="1000000000" stride'
        ),
        "an array of 10^9": quad_dae(None).replace('count="12"', 'count="1000000000"'),
        "a unit of nan": quad_dae(None).replace("<asset>", '<asset><unit meter="nan"/>'),
        "a matrix of 3 numbers": quad_dae(None, node="<matrix>1 2 3</matrix>"),
        "a matrix of nan": quad_dae(None, node=f"<matrix>{'nan ' * 16}</matrix>"),
        "a scale of zero": quad_dae(None, node="<scale>0 0 0</scale>"),
        "a lookat of one point": quad_dae(None, node="<lookat>0 0 0 0 0 0 0 0 0</lookat>"),
        "50,000 transforms": quad_dae(None, node="<translate>1 0 0</translate>" * 50_000),
        "20,000 instances": quad_dae(None, node='<instance_geometry url="#g"/>' * 20_000),
        "2005 namespace wrong": quad_dae(None).replace("2005/11", "1999/01"),
        "processing instructions": quad_dae(None, node="<?php echo 1 ?>" * 10_000),
        "cdata": quad_dae(None).replace("Y_UP", "<![CDATA[" + "x" * 10**6 + "]]>"),
        "a comment of 10 MB": lambda: quad_dae(None, node=f"<!--{'x' * 10**7}-->"),
        "a controller of nothing": quad_dae(None, node='<instance_controller url="#c"/>'),
        "an image of nothing": quad_dae(""),
    }  # fmt: skip
    for told, text in texts.items():
        yield fixed(f"dae/{told}", "mesh", "a.dae", text)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        text = b"<COLLADA>" + b" " * 10**8
        archive.writestr(zipfile.ZipInfo("a.dae"), text, zipfile.ZIP_DEFLATED)
    yield fixed("dae/zip bomb", "mesh", "a.dae", stream.getvalue())
    yield fixed(
        "dae/xml before a zip", "mesh", "a.dae", quad_dae(None).encode() + stream.getvalue()
    )
    for suffix in ("glb", "gltf", "obj", "ply", "stl", "off", "dae"):
        bomb = zlib.compress(b"\0" * 10**7, 9, wbits=31)
        yield fixed(f"{suffix}/gzip bomb", "mesh", f"a.{suffix}", bomb)
        yield fixed(f"{suffix}/zip bomb by name", "mesh", f"a.{suffix}", stream.getvalue()[:2000])
        yield fixed(f"{suffix}/one byte", "mesh", f"a.{suffix}", b"\xff")
        yield fixed(f"{suffix}/claims nothing", "mesh", f"a.{suffix}", struct.pack("<I", HUGE))


def mesh_cases() -> Iterator[Case]:
    """All of them; about 1,300."""
    yield from _obj_cases()
    yield from _reference_cases()
    yield from _ply_cases()
    yield from _stl_cases()
    yield from _off_cases()
    yield from _dae_cases()
