"""Wavefront OBJ and MTL: faces of several forms, comments, texture options, partial colours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.meshes import Limits, load_mesh
from pipeline.meshes.wavefront_geometry import distinct_corners
from pipeline.points import sample_points, sample_texture
from pipeline.scene import Mesh, MeshError, srgb_to_linear
from tests.pipeline.gltf_files import png
from tests.pipeline.layout_files import RED, write
from tests.pipeline.shapes import draw
from tests.pipeline.test_mesh_materials import CHECK, UPRIGHT, corner_colors
from tests.pipeline.test_meshes import load_bytes

# A row of unit squares: 1 2 4 3 is the first, 3 4 6 5 the second, up to 9 10 12 11.
STRIP = "".join(f"v {x} {y} 0\n" for x in range(6) for y in range(2))
CENTRE = "vt 0.25 0.25\nvt 0.75 0.25\nvt 0.25 0.75\nvt 0.75 0.75\n"  # of the texels of CHECK
BLUE_RED = "vt 0.25 0.25\nvt 0.25 0.75\n"
NORMALS = "vn 0 0 1\nvn 0 0.6 0.8\n"
TEXTURED = "newmtl skin\nKd 0.5 0.5 0.5\nmap_Kd skin.png\n"


def load(tmp_path: Path, text: str, library: str = TEXTURED) -> Mesh:
    """Load a text with the material ``skin``, which shows CHECK, and the materials given."""
    write(tmp_path, {"skin.png": png(CHECK), "a.mtl": library})
    return load_bytes(tmp_path, "a.obj", "mtllib a.mtl\n" + text)


def areas(mesh: Mesh) -> NDArray[np.float64]:
    a, b, c = (mesh.vertices[mesh.faces[:, corner]].astype(float) for corner in range(3))
    return np.asarray(np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2)


def area_by_color(mesh: Mesh) -> dict[tuple[int, ...] | None, float]:
    """Area of the faces by texture colour at their centres (0 or 1 each); None is untextured."""
    found: dict[tuple[int, ...] | None, float] = {}
    for face, number, area in zip(mesh.faces, mesh.face_material, areas(mesh), strict=True):
        texture, key = mesh.materials[number].texture, None
        if texture is not None:
            assert mesh.uv is not None
            texel = sample_texture(texture, mesh.uv[face].mean(0, keepdims=True))[0, :3]
            key = tuple(int(channel) for channel in np.rint(texel))
        found[key] = round(found.get(key, 0) + float(area), 5)
    return found


def failed(tmp_path: Path, text: str, library: str = TEXTURED) -> MeshError:
    with pytest.raises(MeshError) as error:
        load(tmp_path, text, library)
    return error.value


# -- faces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "area"),
    [
        ("f 3 4 6 5", 1),
        ("f 3//1 4//2 6//1 5//2", 1),
        ("f 3/ 4/ 6/ 5/", 1),
        ("f 3/2 4 6/2", 0.5),  # one corner without coordinates
        ("f 3/0 4/0 6/0 5/0", 1),
        ("f 3 4 6", 0.5),
        ("f 3 4 6 8 7 5", 2),
    ],
)
@pytest.mark.parametrize("others_first", [False, True])
def test_obj__faces_without_coordinates_leave_the_texture_to_the_others(
    tmp_path: Path, other: str, area: float, others_first: bool
) -> None:
    faces = ["f 1/1/1 2/1/1 4/1/1 3/1/1", other]
    faces = faces[::-1] if others_first else faces
    text = STRIP + CENTRE + NORMALS
    mesh = load(tmp_path, text + "\no next\n".join(f"usemtl skin\n{face}\n" for face in faces))
    assert mesh.has_color
    assert area_by_color(mesh) == {(0, 0, 1): 1, None: area}


def test_obj__normals_are_not_taken_for_coordinates(tmp_path: Path) -> None:
    faces = "usemtl skin\nf 1/3 2/3 4/3\nf 3//2 4//2 6//2\n"
    mesh = load(tmp_path, STRIP + CENTRE + NORMALS + faces)
    assert area_by_color(mesh) == {(1, 0, 0): 0.5, None: 0.5}


@pytest.mark.parametrize("order", [1, -1])
def test_obj__polygon_of_as_many_numbers_as_a_triangle_keeps_its_corners(
    tmp_path: Path, order: int
) -> None:
    faces = ["f 1/1 2/1 4/1", "f 3 4 6 8 7 5"][::order]
    mesh = load(tmp_path, STRIP + CENTRE + "usemtl skin\n" + "\n".join(faces))
    assert len(mesh.faces) == 5
    assert area_by_color(mesh) == {(0, 0, 1): 0.5, None: 2}


def test_obj__every_form_of_a_corner_beside_every_other(tmp_path: Path) -> None:
    forms = ["{}", "{}/", "{}//", "{}//1", "{}/1", "{}/1/", "{}/1/1", "{}/1/0", "-{}/-4/-2"]
    lines = []
    for form in forms:
        corners = (12, 11, 9, 10) if form.startswith("-") else (1, 2, 4, 3)
        lines.append("f " + " ".join(form.format(corner) for corner in corners))
    mesh = load(tmp_path, STRIP + CENTRE + NORMALS + "usemtl skin\n" + "\n".join(lines))
    # Four forms name no coordinates, five do, the relative one on the square that it counts to.
    assert area_by_color(mesh) == {None: 4, (0, 0, 1): 5}
    assert len(mesh.faces) == 18
    np.testing.assert_allclose(areas(mesh), 0.5, atol=1e-6)


def test_obj__relative_indices_of_all_kinds_count_from_their_line(tmp_path: Path) -> None:
    text = "v 0 0 0\nv 0 1 0\nv 1 0 0\nvt 0.25 0.25\nvn 0 0.6 0.8\nusemtl skin\n"
    text += "f -3/-1/-1 -2/-1/-1 -1/-1/-1\n"
    text += "v 5 0 0\nv 5 2 0\nv 7 0 0\nvt 0.75 0.25\nvn 0 0 1\nf -3/-1/-1 -2/-1/-1 -1/-1/-1\n"
    mesh = load(tmp_path, text)
    assert area_by_color(mesh) == {(0, 0, 1): 0.5, (1, 1, 1): 2}
    assert mesh.normals is not None
    np.testing.assert_allclose(mesh.normals[mesh.faces[0]], [[0, 0.6, 0.8]] * 3, atol=1e-6)
    np.testing.assert_allclose(mesh.normals[mesh.faces[1]], [[0, 0, 1]] * 3, atol=1e-6)


def test_obj__corner_without_a_normal_has_that_of_its_faces(tmp_path: Path) -> None:
    text = STRIP + NORMALS + "f 1//2 3//2 4//2\nf 5 7 8\nf 9//99 11//99 12//99\n"
    mesh = load(tmp_path, text)
    assert mesh.normals is not None
    of_faces = mesh.normals[mesh.faces][np.argsort(mesh.vertices[mesh.faces, 0].min(1))]
    np.testing.assert_allclose(of_faces[0], [[0, 0.6, 0.8]] * 3, atol=1e-6)
    np.testing.assert_allclose(of_faces[1:], np.broadcast_to([0, 0, 1], (2, 3, 3)), atol=1e-6)


def test_obj__coordinates_that_the_file_does_not_hold_are_none(tmp_path: Path) -> None:
    mesh = load(tmp_path, STRIP + "usemtl skin\nf 1/1/1 2/2/1 4/4/1\n")
    assert area_by_color(mesh) == {None: 0.5}
    assert mesh.normals is None


def test_obj__coordinates_of_an_untextured_material_are_not_looked_at(tmp_path: Path) -> None:
    text = STRIP + CENTRE + "usemtl plain\nf 1/1 2/2 4/99\nf 1/3 4/4 3/1\n"
    mesh = load(tmp_path, text, "newmtl plain\nKd 1 0 0\n")
    assert len(mesh.vertices) == 4  # no seam


def test_obj__materials_that_take_turns_keep_their_faces(tmp_path: Path) -> None:
    library = TEXTURED + "newmtl red\nKd 1 0 0\n"
    squares = ["1/1 2/1 4/1 3/1", "3 4 6 5", "5/4 6/4 8/4", "7/1 8/1 10/1 9/1", "9 10 12 11"]
    names = ["skin", "red", "skin", "red", "unknown"]
    lines = [f"usemtl {name}\nf {face}" for name, face in zip(names, squares, strict=True)]
    mesh = load(tmp_path, STRIP + CENTRE + "\n".join(lines), library)
    assert area_by_color(mesh) == {(0, 0, 1): 1, (0, 1, 0): 0.5, None: 3}
    factors = [mesh.materials[number].base_color for number in mesh.face_material]
    reds = areas(mesh)[[factor == (1, 0, 0, 1) for factor in factors]]
    assert reds.sum() == pytest.approx(2)


def test_distinct_corners__indices_whose_product_does_not_fit() -> None:
    most = 2**31
    rows = np.array([[1, 1, 1], [most, most, most], [most, most, 1]], np.int64)
    corners = rows[[[0, 1, 2], [1, 2, 1]]]
    found, faces = distinct_corners(corners)
    assert len(found) == 3
    np.testing.assert_array_equal(found[faces], corners)


# -- comments and other odd lines ----------------------------------------------------------------


def test_obj__comment_does_not_change_the_material(tmp_path: Path) -> None:
    text = STRIP + CENTRE + "usemtl skin\n# usemtl red\n#f 3 4 6\nf 1/1 2/1 4/1\n"
    mesh = load(tmp_path, text, TEXTURED + "newmtl red\nKd 1 0 0\n")
    assert area_by_color(mesh) == {(0, 0, 1): 0.5}


def test_obj__comments_after_numbers(tmp_path: Path) -> None:
    text = "v 0 0 0 # the origin\nv 1 0 0 1#\nv 0 1 0 # 1 1 1\nvt 0.25 0.25 # 7\nvn 0 0 1 # up\n"
    mesh = load(tmp_path, text + "usemtl skin\nf 1/1/1 2/1/1 3/1/1 # 4/4/4 f 1 2 3\n")
    assert area_by_color(mesh) == {(0, 0, 1): 0.5}
    assert mesh.vertex_color is None


@pytest.mark.parametrize(
    ("defined", "used"),
    [
        ("Material #25", "Material #25"),
        ("Material  #25", "Material #25 # the roof"),
        ("roof#2", "roof#2"),
        ("roof", "roof  # the roof"),
    ],
)
def test_obj__hash_in_the_name_of_a_material(tmp_path: Path, defined: str, used: str) -> None:
    text = STRIP + f"usemtl {used}\nf 1 2 4\n"
    mesh = load(tmp_path, text, f"newmtl {defined}\nKd 1 0 0 # red\nd 0.5 # half\n")
    assert mesh.materials[0].base_color == (1, 0, 0, 0.5)


@pytest.mark.parametrize(
    "statement", ["mtllib b.mtl # of b", 'mtllib "my b.mtl"', "mtllib my b.mtl", " mtllib\tb.mtl"]
)
def test_obj__names_of_libraries(tmp_path: Path, statement: str) -> None:
    library = "newmtl red\nKd 1 0 0\n"
    write(tmp_path, {"b.mtl" if "my" not in statement else "my b.mtl": library})
    mesh = load_bytes(tmp_path, "a.obj", f"{statement}\n{STRIP}usemtl red\nf 1 2 4\n")
    assert mesh.materials[0].base_color == (1, 0, 0, 1)


@pytest.mark.parametrize("name", ["none.mtl", "no such.mtl"])
def test_obj__without_its_library_the_shape_is_read_without_colour(
    tmp_path: Path, name: str
) -> None:
    face = STRIP + "usemtl skin\nf 1 2 4 3\n"
    mesh = load_bytes(tmp_path, "a.obj", f"mtllib {name}\n" + face)
    assert len(mesh.faces) == 2
    assert not mesh.has_color
    # What another library defines is there all the same.
    write(tmp_path, {"a.mtl": "newmtl skin\nKd 1 0 0\n"})
    assert load_bytes(tmp_path, "b.obj", f"mtllib {name}\nmtllib a.mtl\n" + face).has_color


@pytest.mark.parametrize(
    "start", ["# from C:\\models\\\n", "\ufeff", " \tmtllib a.mtl\n  v\t9 9 9\n \tv 9 9 9\n"]
)
def test_obj__odd_lines_take_nothing_from_the_next(tmp_path: Path, start: str) -> None:
    write(tmp_path, {"a.mtl": "newmtl red\nKd 1 0 0\n"})
    text = f"{start}mtllib a.mtl\n{STRIP} usemtl\tred\n  f\t-12 -11 -9\n"
    mesh = load_bytes(tmp_path, "a.obj", text)
    assert areas(mesh).tolist() == [0.5]
    assert mesh.materials[0].base_color == (1, 0, 0, 1)


# -- materials -----------------------------------------------------------------------------------


def placed(tmp_path: Path, options: str, size: float = 1) -> dict[str, list[int]]:
    """Colours at the corners of a square whose coordinates go from 0 to ``size``."""
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))
    text = "".join(f"v {x} {y} 0\nvt {x * size} {y * size}\n" for x, y in corners)
    library = f"newmtl skin\nmap_Kd {options} skin.png\n"
    return corner_colors(load(tmp_path, text + "usemtl skin\nf 1/1 2/2 3/3 4/4\n", library))


def test_mtl__scale_and_offset_of_a_texture(tmp_path: Path) -> None:
    assert placed(tmp_path, "") == placed(tmp_path, "-o 0 0 0 -s 1 1 1") == UPRIGHT
    # Half of the image on the square, scaled to all of it.
    assert placed(tmp_path, "-s 2 2 1", size=0.5) == UPRIGHT
    assert placed(tmp_path, "-clamp off -s 4 4 4 -o 1 -2 0", size=0.25) == UPRIGHT
    # Half an image to the right, wrapping.
    shifted = placed(tmp_path, "-o 0.5")
    assert shifted["top left"] == UPRIGHT["top right"]
    assert shifted["bottom right"] == UPRIGHT["bottom left"]
    # First scaled, then moved: v = 1 - v.
    flipped = placed(tmp_path, "-s 1 -1 -o 0 1")
    assert flipped["top left"] == UPRIGHT["bottom left"]
    # The second number may be left out: u alone is scaled.
    wide = placed(tmp_path, "-s 0.5", size=1)
    assert wide["bottom right"] == wide["bottom left"] == UPRIGHT["bottom left"]
    assert wide["top right"] == UPRIGHT["top left"]


def test_mtl__each_material_places_the_same_texture_in_its_own_way(tmp_path: Path) -> None:
    library = "newmtl one\nmap_Kd skin.png\nnewmtl two\nmap_Kd -o 0 0.5 0 skin.png\n"
    text = STRIP + CENTRE + "usemtl one\nf 1/1 2/1 4/1\nusemtl two\nf 3/1 4/1 6/1 5/1\n"
    assert area_by_color(load(tmp_path, text, library)) == {(0, 0, 1): 0.5, (1, 0, 0): 1}


def test_mtl__opacity_map_alone_is_placed_by_its_own_options(tmp_path: Path) -> None:
    mask = np.array([[255, 255], [0, 255]], np.uint8)
    write(tmp_path, {"mask.png": png(mask)})
    library = "newmtl skin\nmap_d -o 0.5 0 0 mask.png\n"
    mesh = load(tmp_path, STRIP + "vt 0.25 0.25\nusemtl skin\nf 1/1 2/1 4/1\n", library)
    texture = mesh.materials[0].texture
    assert texture is not None
    assert mesh.uv is not None
    assert sample_texture(texture, mesh.uv[:1])[0, 3] == pytest.approx(1)


def test_mtl__options_that_are_not_finite(tmp_path: Path) -> None:
    text = STRIP + CENTRE + "usemtl skin\nf 1/1 2/1 4/1\n"
    assert failed(tmp_path, text, "newmtl skin\nmap_Kd -s nan 1 skin.png\n").kind == "not_finite"
    mesh = load(tmp_path, text, "newmtl skin\nKd 1 0 0\nmap_Kd -s inf 1 1\n")  # no name follows
    assert mesh.materials[0].base_color == (1, 0, 0, 1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0.5", (0.5, 0.5, 0.5)),
        ("0.5 # grey", (0.5, 0.5, 0.5)),
        ("0.5 0.25", (0.5, 0.25, 0.5)),
        ("0.5 0.25 0", (0.5, 0.25, 0)),
        ("7 -1 0", (1, 0, 0)),
        ("spectral file.rfl 1", (0.8, 0.8, 0.8)),
        ("xyz 1 0 0", (0.8, 0.8, 0.8)),
        ("# none", (0.8, 0.8, 0.8)),
    ],
)
def test_mtl__green_and_blue_are_as_red_where_they_are_left_out(
    tmp_path: Path, value: str, expected: tuple[float, ...]
) -> None:
    text = STRIP + "usemtl skin\nf 1 2 4\n"
    (material,) = load(tmp_path, text, f"newmtl skin\nKd {value}\n").materials
    linear = srgb_to_linear(np.array(expected))
    np.testing.assert_allclose(material.base_color, [*linear, 1], atol=1e-6)


def test_mtl__emission_shows_in_picture_and_points(tmp_path: Path) -> None:
    text = STRIP + "usemtl glow\nf 1 2 4 3\n"
    mesh = load(tmp_path, text, "newmtl glow\nKd 0 0 0\nKe 1 0.5 0\n").normalised()
    assert mesh.has_color
    code = (255, 128, 0)
    assert np.abs(sample_points(mesh, 50).rgb.astype(int) - code).max() <= 1
    assert np.abs(draw(mesh)[32, 32, :3] - code).max() <= 1


@pytest.mark.parametrize(
    "emission", ["Ke 0 0 0", "Ke 0.0", "Ke spectral a.rfl", "Ke 1 1 1\nmap_Ke skin.png"]
)
@pytest.mark.parametrize("color", ["Kd 0.5 0.25 0\nd 0.5", "map_Kd skin.png", ""])
def test_mtl__without_emission_or_by_an_image_nothing_glows(
    tmp_path: Path, emission: str, color: str
) -> None:
    text = STRIP + CENTRE + "usemtl skin\nf 1/1 2/1 4/1\n"
    plain, mesh = (
        load(tmp_path, text, f"newmtl skin\n{color}\n{more}\n") for more in ("", emission)
    )
    assert mesh.has_color == plain.has_color
    for ours, theirs in zip(mesh.materials, plain.materials, strict=True):
        np.testing.assert_array_equal(ours.texture, theirs.texture)
        assert replace(ours, texture=None) == replace(theirs, texture=None)


@pytest.mark.parametrize("value", ["nan 0 1", "1 0 nan"])
def test_mtl__colour_that_is_no_number(tmp_path: Path, value: str) -> None:
    error = failed(tmp_path, STRIP + "usemtl skin\nf 1 2 4\n", f"newmtl skin\nKd {value}\n")
    assert error.kind == "not_finite"


@pytest.mark.parametrize(
    "name", ['"my skin.png"', '-s 1 1 1 "my skin.png"', 'C:\\work\\"my skin.png', "my skin.png"]
)
def test_mtl__name_of_a_texture_in_quotes(tmp_path: Path, name: str) -> None:
    write(tmp_path, {"my skin.png" if name[0] != "C" else '"my skin.png': RED})
    text = STRIP + CENTRE + "usemtl skin\nf 1/1 2/1 4/1\n"
    mesh = load(tmp_path, text, f"newmtl skin\nmap_Kd {name}\n")
    assert area_by_color(mesh) == {(1, 0, 0): 0.5}


# -- vertex colours ------------------------------------------------------------------------------


def colors_by_x(mesh: Mesh) -> NDArray[np.float64]:
    assert mesh.vertex_color is not None
    return mesh.vertex_color[np.argsort(mesh.vertices[:, 0])].astype(float)


@pytest.mark.parametrize("top", [1, 255])
def test_obj__vertices_without_a_colour_are_white_among_others(tmp_path: Path, top: int) -> None:
    half = 0.5 * top
    text = f"v 0 0 0 {top} {half} 0\nv 1 1 0\nv 2 0 0 0 {top} 0\nv 3 3 0 0.5\nf 1 2 3\nf 1 2 4\n"
    mesh = load(tmp_path, text)
    grey = float(srgb_to_linear(np.array(0.5)))
    expected = np.array([[1, grey, 0, 1], [1, 1, 1, 1], [0, 1, 0, 1], [1, 1, 1, 1]])
    np.testing.assert_allclose(colors_by_x(mesh), expected, atol=1e-6)
    assert mesh.materials[0].base_color == (1, 1, 1, 1)


def test_obj__material_shows_at_vertices_without_a_colour(tmp_path: Path) -> None:
    text = "v 0 0 0\nv 1 1 0\nv 2 0 0\nusemtl red\nf 1 2 3\n"
    text += "v 5 0 0 0 0 1\nv 6 1 0 0 0 1\nv 7 0 0 0 0 1\nusemtl white\nf 4 5 6\n"
    mesh = load(tmp_path, text, "newmtl red\nKd 1 0 0\nnewmtl white\nKd 1 1 1\n")
    assert colors_by_x(mesh)[:, :3].tolist() == [[1, 1, 1]] * 3 + [[0, 0, 1]] * 3
    assert {material.base_color[:3] for material in mesh.materials} == {(1, 0, 0), (1, 1, 1)}


def test_obj__white_colours_of_some_vertices_are_no_colour(tmp_path: Path) -> None:
    assert not load(tmp_path, "v 0 0 0 1 1 1\nv 1 1 0\nv 2 0 0\nf 1 2 3\n").has_color


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        ("f 1/1/1/1 2/1/1/1 4/1/1/1", "parse_error"),
        ("f 1///1 2 4", "parse_error"),
        ("f /1 2 4", "parse_error"),
        ("f / 1 2 4", "parse_error"),
        ("f 1 // 2 4", "parse_error"),
        ("f 1/x 2/1 4/1", "parse_error"),
        ("f 1.5 2 4", "parse_error"),
        ("f 1 - 2 4", "parse_error"),
        ("f 1 2-3 4", "parse_error"),
        ("v 0 0\nf 1 2 4", "parse_error"),
        ("v 0 0-1 0 x\nf 1 2 4", "parse_error"),
        ("v # 0 0 0\nf 1 2 4", "parse_error"),
        ("vt\t\nf 1 2 4", "parse_error"),
        ("vn 0 1\nf 1 2 4", "parse_error"),
        ("f 1 2 13", "bad_index"),
        ("f 1 2 00/1/1", "bad_index"),
        ("f 1 2 99999999999999999999", "bad_index"),
        ("f 1/1 2/1 4/5", "bad_index"),
        ("f 1/1 2/1 4/99999999999999999999", "bad_index"),
        ("f 1/1 2/1 4/-5", "bad_index"),
        ("f 1//1 2//1 4//-3", "bad_index"),
        ("f 1 2", "no_faces"),
        ("f 1 2\nf # 1 2 4", "no_faces"),
    ],
)
def test_obj__lines_that_say_no_face(tmp_path: Path, lines: str, kind: str) -> None:
    error = failed(tmp_path, STRIP + CENTRE + NORMALS + f"usemtl skin\n{lines}\n")
    assert error.kind == kind, error.message


def test_obj__corners_of_polygons_count_as_faces(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text(STRIP + "f" + " 1 2 4" * 4 + "\nf 1 2\n")
    assert len(load_mesh(tmp_path / "a.obj", limits=Limits(faces=10)).faces) == 10
    with pytest.raises(MeshError) as error:
        load_mesh(tmp_path / "a.obj", limits=Limits(faces=9))
    assert error.value.kind == "too_large"


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "line",
    [
        "f 1" + "/" * 2_000_000 + "1 2 3",
        "f 1 2 " + "#" * 2_000_000,
        "f 1 2 4" + " " * 2_000_000 + "x",
        "\\\n" * 1_000_000 + "f 1 2 x",
        "usemtl" + " " * 2_000_000 + "\nf 1 2 x",
        " " * 2_000_000 + "\t" * 2_000_000 + "f",
    ],
    ids=["slashes", "hashes", "blanks", "continued", "no name", "indented"],
)
def test_obj__long_lines_are_read_in_linear_time(tmp_path: Path, line: str) -> None:
    failed(tmp_path, STRIP + line + "\n")
