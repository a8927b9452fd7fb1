"""PLY files as exporters write them; OFF files with colours of some faces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.meshes.ply import COLOR_NAMES
from tests.pipeline.gltf_files import png
from tests.pipeline.ply_files import (
    BLUE,
    CORNERS,
    FORMS,
    GREEN,
    HOUSE,
    RED,
    RGB,
    SQUARE,
    TRIANGLE,
    XYZ,
    Table,
    areas,
    face_colors,
    kind_of,
    painted,
    ply,
)
from tests.pipeline.test_meshes import load_bytes

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
