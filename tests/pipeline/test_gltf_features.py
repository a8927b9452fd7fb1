"""What glTF materials and textures look like: generated files, their pictures, their points.

Each test backs one row of the table in ``docs/gltf.md``, for every renderer; those of geometry are
in ``test_gltf_geometry``.
"""

from __future__ import annotations

import inspect
import io
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from pipeline.points import sample_points
from pipeline.scene import MeshError
from tests.pipeline import test_gltf_geometry
from tests.pipeline.gltf_encoders import ktx2_uastc
from tests.pipeline.gltf_files import Builder, png
from tests.pipeline.gltf_scenes import (
    BLUE,
    GREEN,
    LIT,
    PLACES,
    QUARTERS,
    RED,
    SQUARE_UV,
    UPRIGHT,
    WHITE,
    Color,
    Eye,
    code,
    colored,
    open_eye,
    shows,
    square,
    square_of,
    textured,
)


@pytest.fixture(params=["raster", "gl"])
def eye(request: pytest.FixtureRequest, tmp_path: Path) -> Eye:
    return open_eye(request.param, tmp_path)


# -- materials -----------------------------------------------------------------------------------


def test_feature__base_color(eye: Eye) -> None:
    shows(eye.look(textured(png(QUARTERS))), UPRIGHT)
    seen = eye.look(square_of(colored(0.25, 0.5, 0.1)))
    shows(seen, dict.fromkeys(PLACES, code(0.25, 0.5, 0.1)))
    base = {"baseColorTexture": {"index": 0}, "baseColorFactor": [0.5, 0.25, 1, 1]}
    seen = eye.look(square_of({"pbrMetallicRoughness": base}, png(QUARTERS)))
    shows(seen, {"bottom right": code(0.5, 0.25, 1), "top right": code(0, 0.25, 0)})


@pytest.mark.parametrize("columns", [3, 4])
@pytest.mark.parametrize(("dtype", "top"), [("f4", 1), ("u1", 255), ("u2", 65535)])
def test_feature__vertex_colors(eye: Eye, dtype: str, top: int, columns: int) -> None:
    builder = Builder()
    linear = np.array([[0.2, 0.6, 0.4, 0.5]] * 4)[:, :columns] * top
    extra = {"normalized": True} if top > 1 else {}
    color = {"COLOR_0": builder.accessor(np.rint(linear) if top > 1 else linear, dtype, **extra)}
    material = builder.material(**colored(1, 0.5, 1), alphaMode="BLEND")
    builder.node(mesh=square(builder, color, material=material))
    seen = eye.look(builder)
    expected = np.array([0.2, 0.3, 0.4])
    for place in PLACES.values():
        points = np.array(seen.point_color(place))
        assert np.abs(points - code(*expected)).max() <= 4
        mixed = expected if columns == 3 else expected / 2 + 0.5  # over white
        assert np.abs(np.array(seen.color(place)) - code(*mixed)).max() <= 4


def alpha_square(mode: str, **material: Any) -> Builder:
    """The square with an image whose left half is red at alpha 0.4, its right half green at 1."""
    image = np.zeros((16, 16, 4), np.uint8)
    image[:, :8], image[:, 8:] = (255, 0, 0, 102), (0, 255, 0, 255)
    base = {"baseColorTexture": {"index": 0}}
    return square_of({"pbrMetallicRoughness": base, "alphaMode": mode, **material}, png(image))


def test_feature__alpha_opaque(eye: Eye) -> None:
    seen = eye.look(alpha_square("OPAQUE"))
    seen.same((0.25, 0.5), RED)
    seen.same((0.75, 0.5), GREEN)


def test_feature__alpha_mask(eye: Eye) -> None:
    seen = eye.look(alpha_square("MASK"))
    assert not seen.covered((0.25, 0.5))
    seen.same((0.75, 0.5), GREEN)
    seen = eye.look(alpha_square("MASK", alphaCutoff=0.3))
    seen.same((0.25, 0.5), RED)


def test_feature__alpha_blend(eye: Eye) -> None:
    seen = eye.look(alpha_square("BLEND"))
    over_white = np.array(code(1, 0.6, 0.6))
    assert np.abs(np.array(seen.color((0.25, 0.5))) - over_white).max() <= 4
    assert seen.point_color((0.25, 0.5)) == RED  # the surface's own colour
    seen.same((0.75, 0.5), GREEN)
    builder = alpha_square("BLEND", extensions={})
    back = square(builder, material=builder.material(**colored(0, 0, 1)))
    builder.node(mesh=back, translation=[0, 0, -0.1])
    seen = eye.look(builder)
    mixed = np.array(code(0.4, 0, 0.6))
    assert np.abs(np.array(seen.color((0.25, 0.5))) - mixed).max() <= 4
    assert seen.color((0.75, 0.5))[1] > 250


@pytest.mark.parametrize("double", [False, True])
def test_feature__double_sided(eye: Eye, double: bool) -> None:
    builder = square_of({**colored(1, 0, 0), "doubleSided": double})
    builder.document["nodes"][0]["rotation"] = [0, 1, 0, 0]  # its back to the camera
    seen = eye.look(builder, LIT)
    assert seen.mesh.materials[0].double_sided is double
    shows(seen, dict.fromkeys(PLACES, RED), 8)


def test_feature__emissive_factor_and_strength(eye: Eye) -> None:
    material = {**colored(0.1, 0.1, 0.1), "emissiveFactor": [0.2, 0, 0.05]}
    builder = square_of(material)
    builder.document["nodes"][0]["rotation"] = [0, np.sin(0.6), 0, np.cos(0.6)]  # 69 degrees
    seen = eye.look(builder, LIT)
    light = 0.35 + 0.65 * np.cos(1.2)
    red, green, blue = (0.1 * light + emission for emission in (0.2, 0, 0.05))
    worst = np.abs(np.array(seen.color((0.5, 0.5))) - code(red, green, blue)).max()
    assert worst <= 4
    points = np.array(seen.point_color((0.5, 0.5)))
    assert np.abs(points - code(0.3, 0.1, 0.15)).max() <= 4
    strong = {"KHR_materials_emissive_strength": {"emissiveStrength": 4}}
    seen = eye.look(square_of({**material, "extensions": strong}))
    shows(seen, dict.fromkeys(PLACES, code(0.9, 0.1, 0.3)))
    strong["KHR_materials_emissive_strength"]["emissiveStrength"] = 40
    seen = eye.look(square_of({**material, "extensions": strong}))
    shows(seen, dict.fromkeys(PLACES, code(1, 0.1, 1)))  # cut off at white


def test_feature__emissive_texture(eye: Eye) -> None:
    glow = {"emissiveTexture": {"index": 0}, "emissiveFactor": [1, 0.5, 1]}
    seen = eye.look(square_of({**colored(0, 0, 0.2), **glow}, png(QUARTERS)))
    expected = {
        "top left": code(1, 0, 0.2),
        "top right": code(0, 0.5, 0.2),
        "bottom left": code(0, 0, 1),
        "bottom right": code(1, 0.5, 1),
    }
    shows(seen, expected)
    assert seen.mesh.has_color
    base = {"baseColorTexture": {"index": 1}}
    builder = square_of({"pbrMetallicRoughness": base, **glow}, png(QUARTERS))
    builder.texture(png(np.full((4, 4, 3), (0, 0, 124), np.uint8)))  # 0.2 in linear light
    shows(eye.look(builder), expected)
    builder.document["materials"][0]["alphaMode"] = "BLEND"
    builder.document["materials"][0]["pbrMetallicRoughness"]["baseColorFactor"] = [1, 1, 1, 0.5]
    seen = eye.look(builder)
    for name, color in expected.items():
        assert seen.point_color(PLACES[name]) == pytest.approx(color, abs=4)
    mixed = np.array(code(0.5, 0.5, 0.6))  # red glow over blue, half over white
    worst = np.abs(np.array(seen.color(PLACES["top left"])) - [255, mixed[0], 0])
    assert worst[:2].max() <= 8


def test_feature__emissive_texture_with_its_own_coordinates(eye: Eye) -> None:
    moved = {"KHR_texture_transform": {"offset": [0.5, 0]}}
    material = {
        "pbrMetallicRoughness": {"baseColorTexture": {"index": 1}},
        "emissiveTexture": {"index": 0, "extensions": moved},
        "emissiveFactor": [0.8, 0.8, 0.8],
    }
    builder = square_of(material, png(QUARTERS))
    builder.texture(png(np.zeros((4, 4, 3), np.uint8)))
    # The mean over the image: red, green and blue each light half of it.
    shows(eye.look(builder), dict.fromkeys(PLACES, code(0.4, 0.4, 0.4)))


def test_feature__unlit(eye: Eye) -> None:
    unlit: dict[str, Any] = {"KHR_materials_unlit": {}}
    for extensions in ({}, unlit):
        material = {**colored(0.5, 0.3, 0.1), "emissiveFactor": [0, 0, 1]}
        if extensions:
            material["extensions"] = extensions
        else:
            del material["emissiveFactor"]
        builder = square_of(material)
        builder.document["nodes"][0]["rotation"] = [0, np.sin(0.6), 0, np.cos(0.6)]
        seen = eye.look(builder, LIT)
        light = 1 if extensions else 0.35 + 0.65 * np.cos(1.2)
        expected = np.array(code(0.5 * light, 0.3 * light, 0.1 * light))
        assert np.abs(np.array(seen.color((0.5, 0.5))) - expected).max() <= 4
        assert seen.point_color((0.5, 0.5)) == pytest.approx(code(0.5, 0.3, 0.1), abs=2)


def test_feature__specular_glossiness(eye: Eye) -> None:
    gloss = {"diffuseFactor": [1, 0.5, 1, 1], "diffuseTexture": {"index": 0}}
    extensions = {"KHR_materials_pbrSpecularGlossiness": gloss}
    material = {**colored(0, 0, 0), "extensions": extensions}
    seen = eye.look(square_of(material, png(QUARTERS)))
    shows(seen, {"top left": RED, "top right": code(0, 0.5, 0), "bottom left": BLUE})


def test_feature__transmission_volume_and_ior(eye: Eye) -> None:
    extensions = {
        "KHR_materials_transmission": {"transmissionFactor": 1},
        "KHR_materials_volume": {"thicknessFactor": 1, "attenuationColor": [0, 0, 1]},
        "KHR_materials_ior": {"ior": 1.5},
    }
    builder = square_of({**colored(0.2, 0.6, 0.2), "extensions": extensions})
    builder.document["extensionsRequired"] = ["KHR_materials_transmission"]
    shows(eye.look(builder), dict.fromkeys(PLACES, code(0.2, 0.6, 0.2)))


def test_feature__shading_that_is_left_out(eye: Eye) -> None:
    nothing = {"index": 7}  # a texture that does not exist: it is never read
    material = colored(0.2, 0.6, 0.2)
    material["pbrMetallicRoughness"] |= {
        "metallicFactor": 1,
        "roughnessFactor": 0,
        "metallicRoughnessTexture": nothing,
    }
    clearcoat = {"clearcoatFactor": 1, "clearcoatTexture": nothing}
    material |= {
        "normalTexture": nothing,
        "occlusionTexture": nothing,
        "extensions": {"KHR_materials_clearcoat": clearcoat},
    }
    shows(eye.look(square_of(material)), dict.fromkeys(PLACES, code(0.2, 0.6, 0.2)))


def test_feature__variants(eye: Eye) -> None:
    builder = square_of(colored(1, 0, 0))
    other = builder.material(**colored(0, 1, 0))
    builder.document["extensions"] = {"KHR_materials_variants": {"variants": [{"name": "green"}]}}
    mappings = {"mappings": [{"material": other, "variants": [0]}]}
    builder.document["meshes"][0]["primitives"][0]["extensions"] = {
        "KHR_materials_variants": mappings
    }
    shows(eye.look(builder), dict.fromkeys(PLACES, RED))


# -- textures ------------------------------------------------------------------------------------


def test_feature__second_uv_set(eye: Eye) -> None:
    builder = Builder()
    base = {"baseColorTexture": {"index": builder.texture(png(QUARTERS)), "texCoord": 1}}
    second = {"TEXCOORD_1": builder.accessor(SQUARE_UV[:, ::-1], "f4")}
    material = builder.material(pbrMetallicRoughness=base)
    builder.node(mesh=square(builder, second, material=material))
    # (u, v) swapped: the image mirrored at its falling diagonal.
    mirrored = {"top right": BLUE, "bottom left": GREEN, "top left": RED, "bottom right": WHITE}
    shows(eye.look(builder), mirrored)


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        ({}, UPRIGHT),
        ({"offset": [0.5, 0]}, {"top left": GREEN, "top right": RED}),
        ({"scale": [1, -1], "offset": [0, 1]}, {"top left": BLUE, "bottom left": RED}),
        # The example of the extension's text: the lower left quadrant of the image, whole here.
        (
            {"offset": [0, 1], "rotation": np.pi / 2, "scale": [0.5, 0.5]},
            dict.fromkeys(PLACES, BLUE),
        ),
        # The image turned clockwise by a quarter.
        (
            {"offset": [0, 1], "rotation": np.pi / 2},
            {"top left": BLUE, "top right": RED, "bottom right": GREEN, "bottom left": WHITE},
        ),
        # Scale before rotation: the coordinate that points down, halved, becomes u.
        (
            {"offset": [0, 1], "rotation": np.pi / 2, "scale": [1, 0.5]},
            {"top left": BLUE, "bottom left": BLUE, "top right": RED, "bottom right": RED},
        ),
        ({"texCoord": 1}, dict.fromkeys(PLACES, RED)),
    ],
)
def test_feature__texture_transform(
    eye: Eye, transform: dict[str, Any], expected: dict[str, Color]
) -> None:
    info = {"extensions": {"KHR_texture_transform": transform}}
    builder = textured(png(QUARTERS), info)
    other = builder.accessor(np.full((4, 2), 0.25), "f4")
    builder.document["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_1"] = other
    builder.document["extensionsRequired"] = ["KHR_texture_transform"]
    shows(eye.look(builder), expected)


WRAPS = {"repeat": 10497, "mirror": 33648, "clamp": 33071}


@pytest.mark.parametrize("down", WRAPS)
@pytest.mark.parametrize("across", WRAPS)
def test_feature__wrapping(eye: Eye, across: str, down: str) -> None:
    offset = {"extensions": {"KHR_texture_transform": {"scale": [4, 4], "offset": [-1.5, -1.5]}}}
    builder = textured(png(QUARTERS), offset, sampler=0)
    builder.document["samplers"] = [{"wrapS": WRAPS[across], "wrapT": WRAPS[down]}]
    seen = eye.look(builder)

    def second(mode: str, at: float) -> int:
        """Which half of an image is seen at a coordinate."""
        if mode == "clamp":
            return int(at > 0.5)
        turned = mode == "mirror" and math.floor(at) % 2
        return int((at % 1 > 0.5) != turned)

    halves = (np.arange(8) + 0.5) / 8  # 4 periods
    for x in halves:
        for y in halves:
            row, column = second(down, 4 * (1 - y) - 1.5), second(across, 4 * x - 1.5)
            seen.same((x, y), QUARTERS[8 * row, 8 * column])


def test_feature__filtering(eye: Eye) -> None:
    builder = textured(png(QUARTERS), sampler=0)
    builder.document["samplers"] = [{"minFilter": 9728, "magFilter": 9728}]  # nearest
    shows(eye.look(builder), UPRIGHT)
    middle = np.array(eye.look(builder).color((0.5, 0.75)))
    assert (middle[:2] > 60).all()  # red and green are mixed all the same


def test_wrapping__of_a_sampler_that_is_not_there_is_repetition(tmp_path: Path) -> None:
    builder = textured(png(QUARTERS), sampler=3)
    shows(open_eye("raster", tmp_path).look(builder), UPRIGHT)


def test_wrapping__emission_wraps_as_the_base_colour_does(tmp_path: Path) -> None:
    base, glow = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    glow[:2] = 255
    builder = square_of(
        {
            "pbrMetallicRoughness": {"baseColorTexture": {"index": 0}},
            "emissiveTexture": {"index": 1},
            "emissiveFactor": [1, 1, 1],
        },
        png(base),
        sampler=0,
    )
    builder.texture(png(glow), sampler=1)
    eye = open_eye("raster", tmp_path)
    for mode in WRAPS.values():
        builder.document["samplers"] = [{"wrapS": 33071}, {"wrapS": mode}]
        shows(eye.look(builder), {"top left": WHITE, "bottom left": (0, 0, 0)})


def encoded(kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    large = np.kron(QUARTERS, np.ones((4, 4, 1), np.uint8))
    Image.fromarray(large).save(stream, kind, **options)
    return stream.getvalue()


def test_feature__webp_texture(eye: Eye) -> None:
    builder = textured(encoded("WEBP", lossless=True))
    builder.document["textures"] = [{"extensions": {"EXT_texture_webp": {"source": 0}}}]
    builder.document["extensionsRequired"] = ["EXT_texture_webp"]
    shows(eye.look(builder), UPRIGHT)


@pytest.mark.skipif(not features.check("avif"), reason="this pillow is built without AVIF")
def test_feature__avif_texture(eye: Eye) -> None:
    builder = textured(encoded("AVIF", quality=95))
    builder.document["textures"] = [{"extensions": {"EXT_texture_avif": {"source": 0}}}]
    builder.document["extensionsRequired"] = ["EXT_texture_avif"]
    shows(eye.look(builder), UPRIGHT, 12)


BLOCKS = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8).repeat(2, 0).repeat(2, 1)
KTX2 = ktx2_uastc(np.concatenate([BLOCKS, np.full((4, 4, 1), 255, np.uint8)], axis=2))


def with_basisu(data: bytes) -> Builder:
    builder = textured(data)
    builder.document["textures"] = [{"extensions": {"KHR_texture_basisu": {"source": 0}}}]
    builder.document["extensionsRequired"] = ["KHR_texture_basisu"]
    return builder


def test_feature__ktx2_texture(eye: Eye) -> None:
    pytest.importorskip("opengl_basisu", reason="optional: pip install mrd3d[gltf]")
    shows(eye.look(with_basisu(KTX2)), UPRIGHT)


def test_feature__ktx2_texture_without_the_library(
    eye: Eye, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opengl_basisu", None)
    with pytest.raises(MeshError, match="opengl_basisu") as error:
        eye.look(with_basisu(KTX2))
    assert error.value.kind == "needs_library"
    # With a plain image beside it nothing is needed, and that image is taken wherever there is one.
    builder = with_basisu(KTX2)
    builder.texture(png(QUARTERS))
    builder.document["textures"][0]["source"] = 1
    del builder.document["extensionsRequired"]
    shows(eye.look(builder), UPRIGHT)


def test_feature__other_ktx_textures_are_a_failure(eye: Eye) -> None:
    uncompressed = ktx2_uastc(np.zeros((1, 1, 4), np.uint8), vk_format=37)
    cube = ktx2_uastc(np.zeros((1, 1, 4), np.uint8), faces=6)
    for data in (uncompressed, cube, b"\xabKTX 11\xbb\r\n\x1a\n" + b"\0" * 60):
        with pytest.raises(MeshError) as error:
            eye.look(with_basisu(data))
        assert error.value.kind == "unsupported_texture"


def test_feature__texture_of_an_unknown_extension_is_a_failure(eye: Eye) -> None:
    builder = textured(png(QUARTERS))
    builder.document["textures"] = [{"extensions": {"ACME_texture_cloud": {"source": 0}}}]
    with pytest.raises(MeshError, match="ACME_texture_cloud") as error:
        eye.look(builder)
    assert error.value.kind == "unsupported_texture"


def test_feature__unknown_required_extension_is_a_failure(eye: Eye) -> None:
    builder = textured(png(QUARTERS))
    builder.document["extensionsUsed"] = ["ACME_cloth"]
    shows(eye.look(builder), UPRIGHT)  # used but not required: left out
    builder.document["extensionsRequired"] = ["ACME_cloth"]
    del builder.document["buffers"]
    with pytest.raises(MeshError, match="ACME_cloth") as error:
        eye.look(builder)
    assert error.value.kind == "unsupported_feature"


# -- the table -----------------------------------------------------------------------------------

TABLE = Path(__file__).resolve().parents[2] / "docs" / "gltf.md"
MODULES = (sys.modules[__name__], test_gltf_geometry)
WORDS = {"drawn", "rest pose", "approximated", "left out", "colour", "surface"}


def rows() -> list[list[str]]:
    lines = TABLE.read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [row for row in cells if any("test_feature__" in cell for cell in row)]


def test_table__every_row_names_a_test_and_every_test_has_a_row() -> None:
    named = [re.findall(r"`(test_feature__\w+)`", row[-1]) for row in rows()]
    assert all(len(tests) == 1 for tests in named)
    written = [tests[0] for tests in named]
    here = [name for module in MODULES for name in vars(module) if name.startswith("test_feature")]
    assert sorted(written) == sorted(here)


def test_table__cells_say_one_of_the_agreed_words_or_the_failure() -> None:
    source = "\n".join(inspect.getsource(module) for module in MODULES)
    for row in rows():
        assert len(row) == 5, row
        for cell in row[1:4]:
            failure = re.fullmatch(r"fails: `(\w+)`", cell)
            assert cell in WORDS or failure, cell
            if failure:  # by the kind that its test asserts
                body = source.split(f"def {row[-1].strip('`')}(")[1].split("\ndef ")[0]
                assert f'"{failure[1]}"' in body


def test_points__of_a_material_that_only_glows(tmp_path: Path) -> None:
    eye = open_eye("raster", tmp_path)
    builder = square_of({**colored(0, 0, 0), "emissiveFactor": [0, 1, 0]})
    mesh = eye.load(builder.glb()).normalised()
    points = sample_points(mesh, 100, n_fps=1)
    assert points.has_color
    assert (points.rgb == GREEN).all()
