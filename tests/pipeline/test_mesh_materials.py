"""Colours of loaded meshes: factors, textures, vertex colours, material libraries."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from PIL import Image

from pipeline.meshes import Limits, load_mesh
from pipeline.meshes.textures import decode_texture
from pipeline.points import sample_texture
from pipeline.scene import Mesh, MeshError, srgb_to_linear
from tests.pipeline.gltf_files import CUBE_CORNERS, CUBE_FACES, Builder, png, quad_glb
from tests.pipeline.test_meshes import load_bytes

# Four texels: red and green in the top row, blue and white in the bottom row.
CHECK = np.array(
    [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8
)  # fmt: skip
CORNERS = {"bottom left": (0, 0), "bottom right": (1, 0), "top right": (1, 1), "top left": (0, 1)}


def corner_colors(mesh: Mesh) -> dict[str, list[int]]:
    """Texture colours just inside the corners of a unit quad, by name."""
    assert mesh.uv is not None
    texture = mesh.materials[0].texture
    assert texture is not None
    low = mesh.vertices.min(0)
    seen = {}
    for name, (x, y) in CORNERS.items():
        # uv is affine on the quad: solve for it from three corners.
        target = np.array([0.25 + 0.5 * x, 0.25 + 0.5 * y, 1.0])
        places = np.concatenate(
            [mesh.vertices[:, :2] - low[:2], np.ones((len(mesh.vertices), 1))], axis=1
        )
        affine = np.linalg.lstsq(places, mesh.uv, rcond=None)[0]
        color = sample_texture(texture, (target @ affine)[None])
        seen[name] = [int(channel) for channel in np.rint(color[0, :3])]
    return seen


UPRIGHT = {
    "bottom left": [0, 0, 1],
    "bottom right": [1, 1, 1],
    "top right": [0, 1, 0],
    "top left": [1, 0, 0],
}


# -- glTF ----------------------------------------------------------------------------------------


def test_gltf__image_stands_upright(tmp_path: Path) -> None:
    mesh = load_bytes(tmp_path, "a.glb", quad_glb(png(CHECK))[1])
    assert corner_colors(mesh) == UPRIGHT
    assert mesh.has_color


def test_gltf__second_uv_set_is_used_when_the_texture_asks_for_it(tmp_path: Path) -> None:
    builder, _ = quad_glb(png(CHECK), uv=[(0.25, 0.25)] * 4, texCoord=1)
    primitive = builder.document["meshes"][0]["primitives"][0]
    right = np.array([(0, 1), (1, 1), (1, 0), (0, 0)], np.float32)
    primitive["attributes"]["TEXCOORD_1"] = builder.accessor(right, "f4")
    del builder.document["buffers"]
    assert corner_colors(load_bytes(tmp_path, "a.glb", builder.glb())) == UPRIGHT


def test_gltf__texture_transform_is_applied(tmp_path: Path) -> None:
    def seen(**transform: Any) -> dict[str, list[int]]:
        extensions = {"KHR_texture_transform": transform}
        return corner_colors(
            load_bytes(tmp_path, "a.glb", quad_glb(png(CHECK), extensions=extensions)[1])
        )

    assert seen() == UPRIGHT
    shifted = seen(offset=[0.5, 0])  # half an image to the right, wrapping
    assert shifted["top left"] == UPRIGHT["top right"]
    assert shifted["top right"] == UPRIGHT["top left"]
    flipped = seen(scale=[1, -1], offset=[0, 1])
    assert flipped["top left"] == UPRIGHT["bottom left"]
    # uv turn counter-clockwise by a quarter: the image on the quad turns clockwise.
    turned = seen(rotation=np.pi / 2, offset=[0, 1])
    assert turned["top right"] == UPRIGHT["top left"]
    assert turned["bottom right"] == UPRIGHT["top right"]


def test_gltf__alpha_settings_and_factors(tmp_path: Path) -> None:
    builder = Builder()
    for material in (
        {"pbrMetallicRoughness": {"baseColorFactor": [0.25, 0.5, 0.75, 0.5]}, "alphaMode": "BLEND"},
        {"alphaMode": "MASK", "alphaCutoff": 0.3, "doubleSided": True},
        {"alphaMode": "MASK", "alphaCutoff": 0.3, "doubleSided": True},
    ):
        index = builder.material(**material)
        builder.node(mesh=builder.mesh(CUBE_CORNERS, CUBE_FACES, material=index))
    mesh = load_bytes(tmp_path, "a.glb", builder.glb())
    first, second = mesh.materials  # the third equals the second
    assert (first.base_color, first.alpha_mode) == ((0.25, 0.5, 0.75, 0.5), "blend")
    assert (second.alpha_mode, second.alpha_cutoff) == ("mask", 0.3)
    assert second.base_color == (1.0, 1.0, 1.0, 1.0)
    assert (first.double_sided, second.double_sided) == (False, True)
    assert np.bincount(mesh.face_material).tolist() == [12, 24]


@pytest.mark.parametrize(("dtype", "top"), [("f4", 1.0), ("u1", 255), ("u2", 65535)])
def test_gltf__vertex_colours_are_linear_in_any_type(tmp_path: Path, dtype: str, top: Any) -> None:
    builder = Builder()
    colors = np.tile(np.array([0.2, 0.4, 1.0, 1.0]) * top, (8, 1))
    accessor = builder.accessor(colors, dtype, normalized=dtype != "f4")
    builder.node(mesh=builder.mesh(CUBE_CORNERS, CUBE_FACES, {"COLOR_0": accessor}))
    mesh = load_bytes(tmp_path, "a.glb", builder.glb())
    assert mesh.vertex_color is not None
    np.testing.assert_allclose(mesh.vertex_color[0], [0.2, 0.4, 1, 1], atol=2e-5)
    assert mesh.materials[0].base_color == (1.0, 1.0, 1.0, 1.0)
    assert mesh.has_color


def test_gltf__part_without_colours_beside_one_with_them_is_white(tmp_path: Path) -> None:
    builder = Builder()
    accessor = builder.accessor(np.tile([0.2, 0.4, 1.0], (8, 1)), "f4")
    builder.node(mesh=builder.mesh(CUBE_CORNERS, CUBE_FACES, {"COLOR_0": accessor}))
    builder.node(mesh=builder.mesh(CUBE_CORNERS * 2, CUBE_FACES))
    mesh = load_bytes(tmp_path, "a.glb", builder.glb())
    assert mesh.vertex_color is not None
    assert (mesh.vertex_color[8:] == 1).all()


@pytest.mark.parametrize(
    ("factors", "coloured"),
    [
        ([None], False),
        ([[1, 1, 1, 1]], False),
        ([[0.5, 0.5, 0.5, 1]], False),
        ([[0.8, 0.8, 0.8, 1], [0.8, 0.8, 0.8, 1]], False),
        ([[0.8, 0.2, 0.1, 1]], True),
        ([[0.05, 0.05, 0.05, 1]], True),
        ([[0.8, 0.8, 0.8, 1], [0.4, 0.4, 0.4, 1]], True),
    ],
)
def test_gltf__has_color_needs_more_than_one_neutral_grey(
    tmp_path: Path, factors: list[Any], coloured: bool
) -> None:
    builder = Builder()
    for factor in factors:
        pbr = {} if factor is None else {"baseColorFactor": factor}
        index = builder.material(pbrMetallicRoughness=pbr)
        builder.node(mesh=builder.mesh(CUBE_CORNERS, CUBE_FACES, material=index))
    assert load_bytes(tmp_path, "a.glb", builder.glb()).has_color is coloured


def test_gltf__white_vertex_colours_are_no_colour(tmp_path: Path) -> None:
    builder = Builder()
    accessor = builder.accessor(np.ones((8, 4)), "f4")
    builder.node(mesh=builder.mesh(CUBE_CORNERS, CUBE_FACES, {"COLOR_0": accessor}))
    mesh = load_bytes(tmp_path, "a.glb", builder.glb())
    assert not mesh.has_color
    assert mesh.vertex_color is None


def test_gltf__specular_glossiness_diffuse_stands_in_for_base_colour(tmp_path: Path) -> None:
    builder = Builder()
    gloss = {"diffuseFactor": [0.9, 0.1, 0.2, 1]}
    index = builder.material(extensions={"KHR_materials_pbrSpecularGlossiness": gloss})
    builder.node(mesh=builder.mesh(CUBE_CORNERS, CUBE_FACES, material=index))
    mesh = load_bytes(tmp_path, "a.glb", builder.glb())
    assert mesh.materials[0].base_color == (0.9, 0.1, 0.2, 1)


def test_gltf__only_the_base_image_is_decoded(tmp_path: Path) -> None:
    builder, _ = quad_glb(png(CHECK))
    builder.document["materials"][0]["normalTexture"] = {"index": builder.texture(b"no image")}
    del builder.document["buffers"]
    assert corner_colors(load_bytes(tmp_path, "a.glb", builder.glb())) == UPRIGHT


def test_gltf__image_file_beside_it(tmp_path: Path) -> None:
    builder, _ = quad_glb(png(CHECK))
    (tmp_path / "tex").mkdir()
    (tmp_path / "tex" / "wood grain.png").write_bytes(png(CHECK))
    builder.document["images"] = [{"uri": "tex/wood%20grain.png"}]
    assert corner_colors(load_bytes(tmp_path, "a.glb", builder.glb())) == UPRIGHT


def test_texture__without_coordinates_is_dropped(tmp_path: Path) -> None:
    builder, _ = quad_glb(png(CHECK))
    del builder.document["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"]
    mesh = load_bytes(tmp_path, "a.glb", builder.glb())
    assert mesh.materials[0].texture is None
    assert mesh.uv is None
    assert not mesh.has_color


# -- images --------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TGA"])
def test_decode__large_images_are_reduced_but_not_below_half_the_side(kind: str) -> None:
    ramp = np.linspace(0, 255, 700).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (300, 1))] * 3, axis=-1)
    limits = Limits(max_texture_side=256)
    texture = decode_texture(encoded(Image.fromarray(pixels), kind), limits, "it")
    assert 128 <= texture.shape[1] <= 256
    assert texture.shape[0] / texture.shape[1] == pytest.approx(300 / 700, rel=0.02)
    expected = np.linspace(0, 255, texture.shape[1])
    assert np.abs(texture[..., 0].mean(0) - expected).max() < 4
    assert (texture[..., 3] == 255).all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "1", "I;16", "F"])
def test_decode__every_pixel_mode_gives_rgba(mode: str) -> None:
    grey = np.full((8, 8), 200, np.uint8)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32) / 255)
    else:
        image = Image.fromarray(grey).convert(mode)
    texture = decode_texture(encoded(image, "TIFF"), Limits(), "it")
    assert texture.shape == (8, 8, 4)
    expected = 255 if mode == "1" else 200
    if mode != "1":  # dithered
        assert np.abs(texture[..., :3].astype(int) - expected).max() <= 1
    assert (texture[..., 3] == 255).all()


# -- Wavefront -----------------------------------------------------------------------------------

QUAD_OBJ = """
v 0 0 0
v 1 0 0
v 1 1 0
v 0 1 0
vt 0 0
vt 1 0
vt 1 1
vt 0 1
"""


def test_obj__texture_and_colours_of_the_library(tmp_path: Path) -> None:
    (tmp_path / "a.mtl").write_text("newmtl wood\nKd 0 0 0\nmap_Kd -s 1 1 1 -clamp on wood.png\n")
    (tmp_path / "b two.mtl").write_text("newmtl glass\nKd 0.5 0.25 0\nd 0.4\n")
    (tmp_path / "wood.png").write_bytes(png(CHECK))
    libraries = "mtllib a.mtl\nmtllib b two.mtl\n"
    quad = "usemtl wood\nf 1/1 2/2 3/3 4/4\n"
    text = libraries + QUAD_OBJ + quad
    mesh = load_bytes(tmp_path, "a.obj", text)
    assert corner_colors(mesh) == UPRIGHT
    assert mesh.materials[0].base_color == (
        1.0,
        1.0,
        1.0,
        1.0,
    )  # not the black that stands beside the map

    both = load_bytes(tmp_path, "b.obj", text + "v 0 0 9\nusemtl glass\nf 1 2 5\n")
    glass = next(material for material in both.materials if material.texture is None)
    np.testing.assert_allclose(
        glass.base_color, [*srgb_to_linear(np.array([0.5, 0.25, 0])), 0.4], atol=1e-6
    )
    assert glass.alpha_mode == "blend"


def test_obj__texture_path_of_another_machine_is_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "Textures").mkdir()
    (tmp_path / "Textures" / "Wood.PNG").write_bytes(png(CHECK))
    (tmp_path / "a.mtl").write_text("newmtl wood\nmap_Kd C:\\Users\\me\\maps\\wood.png\n")
    text = "mtllib a.mtl\n" + QUAD_OBJ + "usemtl wood\nf 1/1 2/2 3/3 4/4\n"
    assert corner_colors(load_bytes(tmp_path, "a.obj", text)) == UPRIGHT


def test_obj__opacity_map_becomes_alpha(tmp_path: Path) -> None:
    mask = np.array([[255, 0], [0, 255]], np.uint8)
    (tmp_path / "leaf.png").write_bytes(png(CHECK))
    (tmp_path / "leaf_mask.png").write_bytes(png(mask))
    (tmp_path / "a.mtl").write_text("newmtl leaf\nmap_Kd leaf.png\nmap_d leaf_mask.png\n")
    text = "mtllib a.mtl\n" + QUAD_OBJ + "usemtl leaf\nf 1/1 2/2 3/3 4/4\n"
    material = load_bytes(tmp_path, "a.obj", text).materials[0]
    assert material.texture is not None
    np.testing.assert_array_equal(material.texture[..., 3], mask)
    assert material.alpha_mode == "blend"


def test_obj__relative_indices_count_from_their_line(tmp_path: Path) -> None:
    text = (
        "v 0 0 0\nv 1 0 0\nv 0 1 0\nf -3 -2 -1\n"
        "v 0 0 5\nv 2 0 5\nv 0 2 5\nvn 0 0 1\nf -3//-1 -2//-1 -1//-1\n"
    )
    mesh = load_bytes(tmp_path, "a.obj", text)
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
    assert sorted(areas.tolist()) == pytest.approx([0.5, 2])


@pytest.mark.parametrize("odd", ["  f 1 2 3 4", "f\t1 2 3 4", "f 1 2 \\\n3 4", "\tf 1 2 3 4\r"])
def test_obj__blanks_tabs_and_continued_lines(tmp_path: Path, odd: str) -> None:
    mesh = load_bytes(tmp_path, "a.obj", QUAD_OBJ + odd + "\n")
    assert mesh.faces.shape == (2, 3)


def test_obj__polygons_are_fanned(tmp_path: Path) -> None:
    angles = np.arange(6) * np.pi / 3
    lines = [f"v {np.cos(angle)} {np.sin(angle)} 0" for angle in angles]
    mesh = load_bytes(tmp_path, "a.obj", "\n".join([*lines, "f 1 2 3 4 5 6", "f 1 2 3"]))
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    total = np.cross(b - a, c - a)[:, 2].sum() / 2
    assert total == pytest.approx(1.5 * np.sqrt(3) + np.sqrt(3) / 4, rel=1e-5)


def test_obj__vertex_colours_survive_beside_a_material(tmp_path: Path) -> None:
    (tmp_path / "a.mtl").write_text("newmtl plain\nillum 2\n")
    text = "mtllib a.mtl\nusemtl plain\nv 0 0 0 1 0 0\nv 1 0 0 1 0 0\nv 0 1 0 0.5 0 0\nf 1 2 3\n"
    mesh = load_bytes(tmp_path, "a.obj", text)
    assert mesh.vertex_color is not None
    np.testing.assert_allclose(
        np.sort(mesh.vertex_color[:, 0]), [float(srgb_to_linear(np.array(0.5))), 1, 1], atol=1e-6
    )


def test_obj__material_that_no_library_defines_is_plain(tmp_path: Path) -> None:
    mesh = load_bytes(tmp_path, "a.obj", QUAD_OBJ + "usemtl (null)\nf 1/1 2/2 3/3\n")
    assert not mesh.has_color


# -- PLY and COLLADA -----------------------------------------------------------------------------


def ply_with_texture(name: str) -> str:
    return (
        f"ply\nformat ascii 1.0\ncomment TextureFile {name}\nelement vertex 4\n"
        "property float x\nproperty float y\nproperty float z\n"
        "property float s\nproperty float t\n"
        "element face 2\nproperty list uchar int vertex_indices\nend_header\n"
        "0 0 0 0 0\n1 0 0 1 0\n1 1 0 1 1\n0 1 0 0 1\n3 0 1 2\n3 0 2 3\n"
    )


def test_ply__texture(tmp_path: Path) -> None:
    (tmp_path / "it.png").write_bytes(png(CHECK))
    mesh = load_bytes(tmp_path, "a.ply", ply_with_texture("it.png"))
    assert corner_colors(mesh) == UPRIGHT


def quad_dae(image: str | None, diffuse: str = "0.5 0.25 0 1", node: str = "") -> str:
    """A quad with a diffuse texture or colour; ``node`` goes into its node."""
    texture = '<texture texture="s" texcoord="UV"/>' if image else f"<color>{diffuse}</color>"
    params = (
        '<newparam sid="f"><surface type="2D"><init_from>img</init_from></surface></newparam>'
        '<newparam sid="s"><sampler2D><source>f</source></sampler2D></newparam>'
    )
    images = (
        f'<library_images><image id="img"><init_from>{image}</init_from></image></library_images>'
    )

    def source(ident: str, values: str, count: int, names: str) -> str:
        params = "".join(f'<param name="{name}" type="float"/>' for name in names)
        return (
            f'<source id="{ident}"><float_array id="{ident}a" count="{count * len(names)}">{values}'
            f'</float_array><technique_common><accessor source="#{ident}a" count="{count}" '
            f'stride="{len(names)}">{params}</accessor></technique_common></source>'
        )

    return f"""<?xml version="1.0"?>
<COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1">
<asset><up_axis>Y_UP</up_axis></asset>
{images if image else ""}
<library_effects><effect id="e"><profile_COMMON>{params if image else ""}
<technique sid="t"><lambert><diffuse>{texture}</diffuse></lambert></technique>
</profile_COMMON></effect></library_effects>
<library_materials><material id="m"><instance_effect url="#e"/></material></library_materials>
<library_geometries><geometry id="g"><mesh>
{source("p", "0 0 0 1 0 0 1 1 0 0 1 0", 4, "XYZ")}
{source("u", "0 0 1 0 1 1 0 1", 4, "ST")}
<vertices id="v"><input semantic="POSITION" source="#p"/></vertices>
<polylist material="mat" count="1"><input semantic="VERTEX" source="#v" offset="0"/>
<input semantic="TEXCOORD" source="#u" offset="1"/><vcount>4</vcount><p>0 0 1 1 2 2 3 3</p>
</polylist></mesh></geometry></library_geometries>
<library_visual_scenes><visual_scene id="scene"><node id="n">{node}
<instance_geometry url="#g"><bind_material><technique_common>
<instance_material symbol="mat" target="#m"/></technique_common></bind_material>
</instance_geometry></node></visual_scene></library_visual_scenes>
<scene><instance_visual_scene url="#scene"/></scene></COLLADA>"""


def test_dae__diffuse_colour_is_srgb(tmp_path: Path) -> None:
    mesh = load_bytes(tmp_path, "a.dae", quad_dae(None))
    np.testing.assert_allclose(
        mesh.materials[0].base_color[:3], srgb_to_linear(np.array([0.5, 0.25, 0])), atol=1e-6
    )
    assert mesh.has_color
    assert len(mesh.faces) == 2


@pytest.mark.parametrize("place", ["here/it.png", "textures/it.png", "images/IT.png"])
def test_dae__texture_in_the_folder_or_a_sibling_folder_is_found(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes(png(CHECK))
    (tmp_path / "here" / "a.dae").write_text(quad_dae("file:///C:/pictures/it.png"))
    mesh = load_mesh(tmp_path / "here" / "a.dae", root=tmp_path)
    assert corner_colors(mesh) == UPRIGHT


def test_dae__sibling_folder_outside_the_root_is_not_searched(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "textures").mkdir()
    (tmp_path / "textures" / "it.png").write_bytes(png(CHECK))
    (tmp_path / "here" / "a.dae").write_text(quad_dae("it.png"))
    with pytest.raises(MeshError) as error:
        load_mesh(tmp_path / "here" / "a.dae")
    assert error.value.kind == "missing_texture"


def test_dae__mirrored_node_turns_the_winding(tmp_path: Path) -> None:
    def normal(mesh: Mesh) -> NDArray[Any]:
        a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
        return np.asarray(np.cross(b - a, c - a).sum(0))

    plain = normal(load_bytes(tmp_path, "a.dae", quad_dae(None)))
    mirrored = normal(load_bytes(tmp_path, "b.dae", quad_dae(None, node="<scale>-1 1 1</scale>")))
    np.testing.assert_allclose(plain, mirrored, atol=1e-6)
    shifted = load_bytes(
        tmp_path, "c.dae", quad_dae(None, node="<rotate>1 0 0 90</rotate><scale>1 3 1</scale>")
    )
    size = shifted.vertices.max(0) - shifted.vertices.min(0)
    np.testing.assert_allclose(size, [1, 0, 3], atol=1e-6)


# -- export of trimesh as a second opinion -------------------------------------------------------


def test_obj__textured_export_of_trimesh(tmp_path: Path) -> None:
    box = trimesh.Trimesh(CUBE_CORNERS, CUBE_FACES, process=False)
    image = Image.fromarray(CHECK)
    visuals: Any = trimesh.visual
    box.visual = visuals.TextureVisuals(
        uv=np.full((8, 2), 0.25),
        material=visuals.material.SimpleMaterial(image=image),
    )
    box.export(tmp_path / "box.obj")
    mesh = load_mesh(tmp_path / "box.obj")
    texture = mesh.materials[0].texture
    assert texture is not None
    assert mesh.uv is not None
    np.testing.assert_array_equal(np.rint(sample_texture(texture, mesh.uv[:1])), [[0, 0, 1, 1]])


def test_gltf__json_document_is_accepted_with_a_byte_order_mark(tmp_path: Path) -> None:
    builder = Builder()
    builder.node(mesh=builder.mesh(CUBE_CORNERS, CUBE_FACES))
    (tmp_path / "it.bin").write_bytes(builder.binary)
    document = {
        **builder.document,
        "buffers": [{"byteLength": len(builder.binary), "uri": "it.bin"}],
    }
    mesh = load_bytes(tmp_path, "a.gltf", b"\xef\xbb\xbf" + json.dumps(document).encode())
    assert len(mesh.faces) == 12
