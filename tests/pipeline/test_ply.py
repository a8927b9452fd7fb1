"""PLY files as exporters write them, in all three forms; OFF files with colours of some faces."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.meshes import Limits
from pipeline.meshes.ply import COLOR_NAMES, Lists, read_elements, read_header
from pipeline.points import sample_texture
from pipeline.scene import Mesh, MeshError, linear_to_srgb
from tests.pipeline.gltf_files import png
from tests.pipeline.test_meshes import load_bytes

FORMS = ("ascii", "binary_little_endian", "binary_big_endian")
CODES = {"char": "b", "uchar": "B", "short": "h", "ushort": "H", "int": "i", "uint": "I"}
CODES |= {"float": "f", "double": "d"}
XYZ = "float x, float y, float z"
RGB = "uchar red, uchar green, uchar blue"
CORNERS = "list uchar int vertex_indices"
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
# A unit square in front of +z, and beside it a triangle of half its area.
HOUSE = ((0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (2, 0, 0))
SQUARE, TRIANGLE = (0, 1, 2, 3), (1, 4, 2)

Table = tuple[str, str, Sequence[Sequence[Any]]]  # name, properties, rows; a list is one value


def ply(form: str, *tables: Table, comments: Sequence[str] = ()) -> bytes:
    """A PLY file, written value by value."""
    header = f"ply\nformat {form} 1.0\n" + "".join(f"comment {line}\n" for line in comments)
    body = b""
    order = ">" if form == "binary_big_endian" else "<"
    for name, properties, rows in tables:
        columns = [column.split() for column in properties.split(", ")]
        header += f"element {name} {len(rows)}\n"
        header += "".join(f"property {' '.join(column)}\n" for column in columns)
        for row in rows:
            values: list[tuple[str, Any]] = []
            for column, value in zip(columns, row, strict=True):
                if column[0] == "list":
                    values += [(column[1], len(value)), *((column[2], each) for each in value)]
                else:
                    values.append((column[0], value))
            if form == "ascii":
                body += " ".join(str(value) for _, value in values).encode() + b"\n"
            else:
                for kind, value in values:
                    body += struct.pack(order + CODES[kind], value)
    return (header + "end_header\n").encode() + body


def areas(mesh: Mesh) -> NDArray[np.float64]:
    """Twice the signed area of each face, seen from +z."""
    a, b, c = (mesh.vertices[mesh.faces[:, i]].astype(np.float64) for i in range(3))
    return np.asarray(np.cross(b - a, c - a)[:, 2])


def face_colors(mesh: Mesh) -> list[tuple[int, ...]]:
    """The sRGB colour in the middle of each face."""
    seen = []
    for face, number in zip(mesh.faces, mesh.face_material, strict=True):
        material = mesh.materials[number]
        color = np.array(material.base_color[:3])
        if mesh.vertex_color is not None:
            color = color * mesh.vertex_color[face, :3].mean(axis=0)
        if material.texture is not None:
            assert mesh.uv is not None
            color = (
                color * sample_texture(material.texture, mesh.uv[face].mean(axis=0)[None])[0, :3]
            )
        seen.append(tuple(int(each) for each in np.rint(linear_to_srgb(color) * 255)))
    return seen


def painted(folder: Path, **colors: Sequence[int]) -> None:
    """Images of one colour each."""
    for name, color in colors.items():
        (folder / f"{name}.png").write_bytes(png(np.full((4, 4, 3), color, np.uint8)))


def kind_of(folder: Path, data: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(MeshError) as error:
        load_bytes(folder, "a.ply", data, limits=limits)
    return error.value.kind


# -- polygons ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_ply__triangles_and_quads_together(tmp_path: Path, form: str) -> None:
    data = ply(form, ("vertex", XYZ, HOUSE), ("face", CORNERS, [[SQUARE], [TRIANGLE]]))
    mesh = load_bytes(tmp_path, "a.ply", data)
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [1, 4, 2]]
    np.testing.assert_allclose(areas(mesh), 1)
    assert not mesh.has_color


@pytest.mark.parametrize("form", FORMS)
def test_ply__as_blender_writes_it(tmp_path: Path, form: str) -> None:
    """Normals, texture coordinates without a texture, colours of vertices, unsigned indices."""
    colors = (RED, GREEN, BLUE, RED, GREEN)
    rows = [(*at, 0, 0, 1, *at[:2], *color, 255) for at, color in zip(HOUSE, colors, strict=True)]
    data = ply(
        form,
        (
            "vertex",
            f"{XYZ}, float nx, float ny, float nz, float s, float t, {RGB}, uchar alpha",
            rows,
        ),
        ("face", "list uchar uint vertex_indices", [[TRIANGLE], [SQUARE]]),
    )
    mesh = load_bytes(tmp_path, "a.ply", data)
    assert mesh.vertex_color is not None
    np.testing.assert_array_equal(mesh.vertex_color[:, :3] * 255, colors)
    np.testing.assert_array_equal(mesh.vertices[:, :2], np.array(HOUSE)[:, :2] - [1, 0.5])
    np.testing.assert_array_equal(mesh.normals, [[0, 0, 1]] * 5)
    assert areas(mesh).sum() == pytest.approx(3)


@pytest.mark.parametrize("form", FORMS)
def test_ply__polygons_of_many_corners_and_of_too_few(tmp_path: Path, form: str) -> None:
    turns = np.arange(200) * (2 * np.pi / 200)
    rim = [(float(x), float(y), 0) for x, y in zip(np.cos(turns), np.sin(turns), strict=True)]
    rows: list[list[Any]] = [[range(200)], [(0, 1)], [()], [(0, 50, 100, 150)]]
    mesh = load_bytes(tmp_path, "a.ply", ply(form, ("vertex", XYZ, rim), ("face", CORNERS, rows)))
    assert len(mesh.faces) == 198 + 2
    doubled = areas(mesh)
    assert doubled[:198].sum() == pytest.approx(200 * np.sin(2 * np.pi / 200), rel=1e-5)
    assert doubled[198:].sum() == pytest.approx(4, rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("faces", [(SQUARE, TRIANGLE), (TRIANGLE, SQUARE), (SQUARE,), (TRIANGLE,)])
def test_ply__face_colours_follow_the_fan(
    tmp_path: Path, form: str, faces: tuple[tuple[int, ...], ...]
) -> None:
    rows = [(face, *(RED if len(face) == 4 else BLUE)) for face in faces]
    data = ply(form, ("vertex", XYZ, HOUSE), ("face", f"{CORNERS}, {RGB}", rows))
    mesh = load_bytes(tmp_path, "a.ply", data)
    expected = [color for face, *color in rows for _ in face[2:]]
    assert face_colors(mesh) == [tuple(color) for color in expected]
    assert mesh.has_color


@pytest.mark.parametrize("form", FORMS)
def test_ply__one_face_with_two_lists(tmp_path: Path, form: str) -> None:
    lists = "list uchar float texcoord, list uchar int vertex_index"
    rows = [((0, 0, 1, 0, 1, 1), (0, 1, 2))]
    data = ply(form, ("vertex", XYZ, HOUSE[:3]), ("face", lists, rows))
    mesh = load_bytes(tmp_path, "a.ply", data)
    assert mesh.faces.tolist() == [[0, 1, 2]]
    assert mesh.uv is None


@pytest.mark.parametrize("form", FORMS)
def test_ply__elements_that_are_not_read_are_stepped_over(tmp_path: Path, form: str) -> None:
    rows = [(9, *at, (1,) * number) for number, at in enumerate(HOUSE)]
    data = ply(
        form,
        ("camera", "list ushort double pose, char kind", [((1, 2), 3), ((), -4), ((5,), 6)]),
        ("vertex", f"double quality, {XYZ}, list uchar short rings", rows),
        ("edge", "int vertex1, int vertex2", [(0, 1), (1, 2)]),
        ("face", "uchar flags, " + CORNERS, [(7, TRIANGLE), (8, SQUARE)]),
        ("tail", "list uint float more", [((1.5, 2.5),), ((),)]),
    )
    mesh = load_bytes(tmp_path, "a.ply", data)
    np.testing.assert_array_equal(mesh.vertices[:, :2], np.array(HOUSE)[:, :2] - [1, 0.5])
    np.testing.assert_allclose(areas(mesh), 1)


# -- strips --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_ply__strips_with_restarts(tmp_path: Path, form: str) -> None:
    """Two rows of a grid and one triangle; the second triangle of each pair is turned."""
    grid = [(x, y, 0, *(RED if y else BLUE)) for y in range(3) for x in range(4)]
    strip = [4, 0, 5, 1, 6, 2, 7, 3, -1, 8, 4, 9, 5, 10, 6, 11, 7]
    rows: list[list[Any]] = [[strip], [(0, 1, 5)], [(-1,)], [()]]
    data = ply(
        form, ("vertex", f"{XYZ}, {RGB}", grid), ("tristrips", "list int int vertex_indices", rows)
    )
    mesh = load_bytes(tmp_path, "a.ply", data)
    assert len(mesh.faces) == 6 + 6 + 1
    np.testing.assert_allclose(areas(mesh), 1)
    assert mesh.vertex_color is not None
    np.testing.assert_array_equal(mesh.vertex_color[[0, 4], :3] * 255, [BLUE, RED])


def test_ply__strips_joined_by_triangles_without_area(tmp_path: Path) -> None:
    grid = [(x, y, 0) for y in range(2) for x in range(5)]
    strip = [5, 0, 6, 1, 1, 8, 8, 3, 9, 4]
    data = ply("ascii", ("vertex", XYZ, grid), ("tristrips", "list int int corners", [[strip]]))
    mesh = load_bytes(tmp_path, "a.ply", data)
    np.testing.assert_allclose(areas(mesh), 1)
    assert len(mesh.faces) == 4


def test_ply__strips_beside_faces(tmp_path: Path) -> None:
    data = ply(
        "binary_little_endian",
        ("vertex", XYZ, HOUSE),
        ("tristrips", "list int int vertex_indices", [[(3, 0, 2, 1)]]),
        ("face", f"{CORNERS}, {RGB}", [(TRIANGLE, *GREEN)]),
    )
    mesh = load_bytes(tmp_path, "a.ply", data)
    np.testing.assert_allclose(areas(mesh), 1)
    assert face_colors(mesh)[0] == GREEN
    assert len(set(face_colors(mesh)[1:])) == 1


# -- colours -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("names", COLOR_NAMES)
def test_ply__colours_by_other_names(tmp_path: Path, form: str, names: tuple[str, ...]) -> None:
    columns = ", ".join(f"uchar {name}" for name in names)
    rows = [(*at, 255, 188, 0) for at in HOUSE]
    vertex = ply(form, ("vertex", f"{XYZ}, {columns}", rows), ("face", CORNERS, [[SQUARE]]))
    assert set(face_colors(load_bytes(tmp_path, "v.ply", vertex))) == {(255, 188, 0)}
    faces = [(SQUARE, 255, 188, 0)]
    face = ply(form, ("vertex", XYZ, HOUSE), ("face", f"{CORNERS}, {columns}", faces))
    assert set(face_colors(load_bytes(tmp_path, "f.ply", face))) == {(255, 188, 0)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "scale"),
    [("float", 1 / 255), ("double", 1), ("ushort", 257), ("ushort", 1), ("int", 1)],
)
def test_ply__range_of_colours(tmp_path: Path, form: str, kind: str, scale: float) -> None:
    columns = ", ".join(f"{kind} {name}" for name in ("red", "green", "blue"))
    color = np.array([255, 102, 51]) * scale
    values = color.tolist() if kind in ("float", "double") else color.astype(int).tolist()
    data = ply(
        form,
        ("vertex", f"{XYZ}, {columns}, uchar alpha", [(*at, *values, 51) for at in HOUSE]),
        ("face", CORNERS, [[SQUARE]]),
    )
    mesh = load_bytes(tmp_path, "a.ply", data)
    assert set(face_colors(mesh)) == {(255, 102, 51)}
    assert mesh.vertex_color is not None
    np.testing.assert_allclose(mesh.vertex_color[:, 3], 0.2)  # opacity has a range of its own


# -- textures ------------------------------------------------------------------------------------

UV = "list uchar float texcoord"
MIDDLE = (0.5, 0.5)


@pytest.mark.parametrize("form", FORMS)
def test_ply__textures_by_texnumber(tmp_path: Path, form: str) -> None:
    painted(tmp_path, one=RED, two=GREEN)
    faces = [
        (SQUARE, MIDDLE * 4, 1),
        (TRIANGLE, MIDDLE * 3, 0),
        ((3, 4, 2), (), 0),  # as MeshLab writes a face without a texture
        (TRIANGLE, MIDDLE * 3, -1),
    ]
    data = ply(
        form,
        ("vertex", XYZ, HOUSE),
        ("face", f"{CORNERS}, {UV}, int texnumber", faces),
        comments=["VCGLIB generated", "TextureFile one.png", "TextureFile two.png"],
    )
    mesh = load_bytes(tmp_path, "a.ply", data)
    by_color: dict[tuple[int, ...], float] = {}
    for color, area in zip(face_colors(mesh), areas(mesh), strict=True):
        by_color[color] = by_color.get(color, 0) + float(area)
    neutral = next(color for color in by_color if color not in (RED, GREEN))
    assert len(set(neutral)) == 1  # as of a file without colours
    assert by_color == {GREEN: 2, RED: 1, neutral: 2}


def test_ply__textures_by_texnumber_with_coordinates_of_vertices(tmp_path: Path) -> None:
    painted(tmp_path, one=RED, two=GREEN)
    data = ply(
        "ascii",
        ("vertex", f"{XYZ}, float s, float t", [(*at, *MIDDLE) for at in HOUSE]),
        ("face", f"{CORNERS}, int texnumber", [(SQUARE, 1), (TRIANGLE, 0)]),
        comments=["TextureFile one.png", "TextureFile two.png"],
    )
    assert face_colors(load_bytes(tmp_path, "a.ply", data)) == [RED, GREEN, GREEN]


def test_ply__textures_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    painted(tmp_path, one=RED, two=GREEN)
    tables: tuple[Table, ...] = (
        ("vertex", XYZ, HOUSE),
        ("face", f"{CORNERS}, {UV}", [(SQUARE, MIDDLE * 4)]),
    )
    both = ply("ascii", *tables, comments=["TextureFile one.png", "TextureFile two.png"])
    assert kind_of(tmp_path, both) == "unsupported_feature"
    same = ply("ascii", *tables, comments=["TextureFile one.png"] * 2)
    assert set(face_colors(load_bytes(tmp_path, "b.ply", same))) == {RED}


@pytest.mark.parametrize(
    ("number", "coordinates", "kind"),
    [(2, 8, "bad_index"), (0, 6, "parse_error"), (1, 8, "missing_texture")],
)
def test_ply__texture_that_a_face_cannot_have(
    tmp_path: Path, number: int, coordinates: int, kind: str
) -> None:
    painted(tmp_path, one=RED)
    faces = [(SQUARE, (0.5,) * coordinates, number)]
    data = ply(
        "ascii",
        ("vertex", XYZ, HOUSE),
        ("face", f"{CORNERS}, {UV}, int texnumber", faces),
        comments=["TextureFile one.png", "TextureFile two.png"],
    )
    assert kind_of(tmp_path, data) == kind


@pytest.mark.parametrize("form", FORMS)
def test_ply__texture_coordinates_of_corners_part_vertices_along_seams_alone(
    tmp_path: Path, form: str
) -> None:
    """A square and a triangle that share an edge: one reads red texels there, one blue ones."""
    (tmp_path / "it.png").write_bytes(png(np.array([[RED, BLUE]] * 2, np.uint8)))
    left, right = (0.25, 0.5), (0.75, 0.5)
    rows = [(SQUARE, left * 4), (TRIANGLE, right * 3), ((4, 2, 1), right * 3)]
    tilted = [(*at, 0, i, 1) for i, at in enumerate(HOUSE)]
    data = ply(
        form,
        ("vertex", f"{XYZ}, float nx, float ny, float nz", tilted),
        ("face", f"{CORNERS}, {UV}", rows),
        comments=["TextureFile it.png"],
    )
    mesh = load_bytes(tmp_path, "a.ply", data)
    assert face_colors(mesh) == [RED, RED, BLUE, BLUE]
    assert len(mesh.vertices) == 5 + 2
    # Normals go with their vertices.
    assert mesh.normals is not None
    at = mesh.vertices[:, :2] + [1, 0.5]
    places = [next(i for i, v in enumerate(HOUSE) if v[:2] == tuple(each)) for each in at.tolist()]
    np.testing.assert_allclose(mesh.normals[:, 1] / mesh.normals[:, 2], places, atol=1e-6)


# -- what a file may claim -----------------------------------------------------------------------


def edited(form: str, *swaps: tuple[str, str]) -> bytes:
    data = ply(form, ("vertex", XYZ, HOUSE), ("face", CORNERS, [[SQUARE], [TRIANGLE]]))
    for old, new in swaps:
        assert old.encode() in data
        data = data.replace(old.encode(), new.encode(), 1)
    return data


NOTE = f"element note {10**12}\nproperty int a\nelement face"
HEADERS = {
    "vertices": (("vertex 5", "vertex 1000000000000"), "too_large"),
    "strips": (("element face 2", "element tristrips 1000000000000"), "too_large"),
    "other rows": (("element face", NOTE), "bad_header"),
    "a count past all numbers": (("vertex 5", "vertex " + "9" * 5000), "bad_header"),
    "a property of nothing": (("element vertex 5\n", ""), "bad_header"),
    "two elements of a name": (("element face", "element vertex"), "bad_header"),
    "two properties of a name": (("float y", "float x"), "bad_header"),
    "no x": (("float x", "float w"), "bad_header"),
    "no format": (("format", "comment"), "bad_header"),
    "an unknown format": (("format ", "format x"), "bad_header"),
    "lists of a length that is not whole": (("list uchar", "list double"), "bad_header"),
    "faces without a list": (("list uchar int", "int"), "bad_header"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", HEADERS)
def test_ply_header__a_false_claim_is_refused(tmp_path: Path, form: str, case: str) -> None:
    swap, kind = HEADERS[case]
    seen = kind_of(tmp_path, edited(form, swap))
    # A binary file without one of its columns has values left over.
    assert seen in {kind, "parse_error"} if case == "faces without a list" else seen == kind


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("0 1 0\n2", "0 1 0 9\n2", "parse_error"),  # too many numbers
        ("0 1 0\n2", "0 1\n2", "parse_error"),
        ("4 0 1 2 3", "5 0 1 2 3", "parse_error"),
        ("4 0 1 2 3", "3 0 1 2 3", "parse_error"),
        ("4 0 1 2 3", "-4 0 1 2 3", "parse_error"),
        ("4 0 1 2 3", "nan 0 1 2 3", "parse_error"),
        ("4 0 1 2 3", "4 0 1 2 three", "parse_error"),
        ("4 0 1 2 3", "4 0-1 2 3", "parse_error"),
        ("4 0 1 2 3", "4 0 1 2 2.5", "bad_index"),
        ("4 0 1 2 3", "4 0 1 2 1e300", "bad_index"),
        ("4 0 1 2 3", "4 0 1 2 -1", "bad_index"),
        ("3 1 4 2\n", "3 1 4 2\n3 1 4 2\n", "parse_error"),
        ("3 1 4 2\n", "", "bad_header"),
        ("vertex 5", "vertex 4", "parse_error"),
    ],
)
def test_ply_text__lines_that_do_not_fit_are_refused(
    tmp_path: Path, old: str, new: str, kind: str
) -> None:
    assert kind_of(tmp_path, edited("ascii", (old, new))) == kind


def test_ply_text__blank_lines_and_carriage_returns(tmp_path: Path) -> None:
    data = edited("ascii").replace(b"\n4 0", b"\n\n \n4 0").replace(b"\n", b"\r\n")
    data = data.replace(b"1.0\r\n", b"1.0\r\ncomment x\r\n")
    assert len(load_bytes(tmp_path, "a.ply", data.rstrip()).faces) == 3


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("rows", [[SQUARE, TRIANGLE], [TRIANGLE, TRIANGLE]])
def test_ply_binary__more_or_less_than_the_header_says(
    tmp_path: Path, form: str, rows: list[tuple[int, ...]]
) -> None:
    data = ply(form, ("vertex", XYZ, HOUSE), ("face", CORNERS, [[row] for row in rows]))
    assert kind_of(tmp_path, data[:-1]) == "parse_error"
    assert kind_of(tmp_path, data + b"\1") == "parse_error"
    load_bytes(tmp_path, "a.ply", data + b"\r\n\0")


@pytest.mark.parametrize("form", FORMS[1:])
def test_ply_binary__rows_that_lists_before_them_leave_no_room_for(
    tmp_path: Path, form: str
) -> None:
    faces: list[list[Any]] = [[SQUARE], [(0,) * 19]]
    data = ply(form, ("face", CORNERS, faces), ("vertex", XYZ, HOUSE))
    assert len(load_bytes(tmp_path, "a.ply", data).faces) == 2 + 17
    assert kind_of(tmp_path, data[:-13]) == "parse_error"


def test_ply_binary__more_lists_than_a_mesh_has_are_not_walked(tmp_path: Path) -> None:
    note = ("note", "list uchar int a, list uchar int b", [((), (1,))] * 30)
    data = ply(FORMS[1], note, ("vertex", XYZ, HOUSE), ("face", CORNERS, [[TRIANGLE]]))
    assert kind_of(tmp_path, data, Limits(vertices=59)) == "too_large"
    load_bytes(tmp_path, "a.ply", data, limits=Limits(vertices=60))


def test_ply_binary__a_length_below_zero(tmp_path: Path) -> None:
    for number in (0, 1):
        data = ply(
            FORMS[1],
            ("vertex", XYZ, HOUSE),
            ("face", CORNERS.replace("uchar", "char"), [[TRIANGLE]] * 2),
        )
        body = bytearray(data)
        body[-13 * (2 - number)] = 255
        assert kind_of(tmp_path, bytes(body)) == "parse_error"


@pytest.mark.parametrize("form", FORMS)
def test_ply__polygons_count_as_their_triangles(tmp_path: Path, form: str) -> None:
    polygon = tuple(range(5)) * 40
    data = ply(form, ("vertex", XYZ, HOUSE), ("face", CORNERS, [[polygon], [TRIANGLE]]))
    assert kind_of(tmp_path, data, Limits(faces=198)) == "too_large"
    load_bytes(tmp_path, "a.ply", data, limits=Limits(faces=199))
    strip = ply(form, ("vertex", XYZ, HOUSE), ("tristrips", CORNERS, [[polygon]]))
    assert kind_of(tmp_path, strip, Limits(faces=100)) == "too_large"


@pytest.mark.parametrize("form", FORMS)
def test_ply__any_cut_and_any_changed_byte_is_a_mesh_or_a_mesh_error(
    tmp_path: Path, form: str
) -> None:
    rng = np.random.default_rng(5)
    painted(tmp_path, one=RED, two=GREEN)
    faces = [(SQUARE, MIDDLE * 4, 1), (TRIANGLE, MIDDLE * 3, 0)]
    whole = ply(
        form,
        ("vertex", XYZ, HOUSE),
        ("face", f"{CORNERS}, {UV}, int texnumber", faces),
        ("tristrips", "list int int vertex_indices", [[(0, 1, 2, 3)], [(0, 1, 2, -1, 2, 1, 0)]]),
        comments=["TextureFile one.png"],
    )
    variants = [whole[:cut] for cut in rng.integers(1, len(whole), 40)]
    for _ in range(160):
        broken = bytearray(whole)
        for place in rng.integers(len(whole) // 3, len(whole), 1 + int(rng.integers(3))):
            broken[place] = int(rng.integers(256))
        variants.append(bytes(broken))
    outcomes = set()
    for data in variants:
        try:
            mesh = load_bytes(tmp_path, "a.ply", data)
        except MeshError as error:
            outcomes.add(error.kind)
        else:
            assert np.isfinite(mesh.vertices).all()
            outcomes.add("mesh")
    assert {"mesh", "bad_header", "parse_error"} <= outcomes


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(6))
def test_ply_elements__any_columns_are_read_as_they_were_written(form: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tables: list[Table] = []
    for number in range(3):
        kinds = [str(kind) for kind in rng.choice(list(CODES), rng.integers(1, 6))]
        lists = rng.random(len(kinds)) < 0.5
        equal = rng.random() < 0.4
        lengths = rng.integers(0, 5, len(kinds))
        properties = ", ".join(
            f"list {rng.choice(list(CODES)[:6])} {kind} p{i}" if lists[i] else f"{kind} p{i}"
            for i, kind in enumerate(kinds)
        )
        rows: list[list[Any]] = [
            [
                rng.integers(0, 100, lengths[i] if equal else rng.integers(0, 5)).tolist()
                if lists[i]
                else int(rng.integers(0, 100))
                for i in range(len(kinds))
            ]
            for _ in range(int(rng.integers(1, 30)))
        ]
        tables.append((f"e{number}", properties, rows))
    data = ply(form, *tables)
    names = frozenset(f"p{i}" for i in range(5))
    found = read_elements(data, read_header(data, Limits()), {"e0": names, "e2": names})
    assert set(found) == {"e0", "e2"}
    for name, properties, written in tables:
        for i, _ in enumerate(properties.split(", ") if name in found else []):
            column, expected = found[name][f"p{i}"], [row[i] for row in written]
            if isinstance(column, Lists):
                assert column.lengths.tolist() == [len(each) for each in expected]
                expected = [value for each in expected for value in each]
                assert column.values.reshape(-1).tolist() == expected
            else:
                assert column.tolist() == expected


# -- OFF -----------------------------------------------------------------------------------------


def test_off__faces_without_a_colour_beside_faces_with_one(tmp_path: Path) -> None:
    points = "".join(f"{x} {y} {z}\n" for x, y, z in HOUSE)
    text = f"OFF\n5 4 0\n{points}4 0 1 2 3 255 0 0\n3 1 4 2\n3 1 4 2 0 0 255\n3 1 4 2 7\n"
    mesh = load_bytes(tmp_path, "a.off", text)
    assert sorted(face_colors(mesh))[:3] == [BLUE, (neutral := plain(tmp_path)), neutral]
    assert sorted(face_colors(mesh))[3:] == [RED, RED]
    assert areas(mesh).sum() == pytest.approx(2 + 3)
    assert mesh.has_color


def plain(folder: Path) -> tuple[int, ...]:
    """The colour of a file that says none."""
    mesh = load_bytes(folder, "plain.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    assert not mesh.has_color
    return face_colors(mesh)[0]
