"""Where textures are found: beside the mesh, in sibling folders, never outside the root."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.meshes import load_mesh
from pipeline.scene import Mesh, MeshError
from tests.pipeline.gltf_files import png
from tests.pipeline.layout_files import RED, box_obj, mtl, write
from tests.pipeline.test_mesh_materials import quad_dae

GREEN = png(np.full((2, 2, 3), (0, 255, 0), np.uint8))
FORMATS = ["dae", "obj"]


def asset(root: Path, kind: str, texture: str) -> Path:
    """``asset/mesh/a.<kind>`` with one texture of the given reference."""
    if kind == "dae":
        return write(root, {"asset/mesh/a.dae": quad_dae(texture)}) / "asset/mesh/a.dae"
    files = {"asset/mesh/a.obj": box_obj("a.mtl"), "asset/mesh/a.mtl": mtl(texture)}
    return write(root, files) / "asset/mesh/a.obj"


def color(mesh: Mesh) -> tuple[int, ...]:
    texture = mesh.materials[0].texture
    assert texture is not None
    return tuple(int(value) for value in texture[0, 0, :3])


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("reference", "place"),
    [
        ("../art of oak/it.png", "asset/art of oak/it.png"),  # where it says, any name
        ("../art%20of%20oak/it.png", "asset/art of oak/it.png"),
        ("..\\art\\it.png", "asset/art/it.png"),
        ("../../shared/it.png", "shared/it.png"),
        ("texture.png", "asset/materials/textures/texture.png"),  # as in Google Scanned Objects
        ("/models/oak/it.png", "asset/oak/it.png"),  # by the end of the path
        ("C:\\work\\oak\\it.png", "asset/mesh/oak/it.png"),
        ("../elsewhere/it.png", "asset/Textures/IT.png"),  # by the name alone
    ],
)
def test_load__texture_under_the_root_is_found(
    tmp_path: Path, kind: str, reference: str, place: str
) -> None:
    write(tmp_path, {place: RED})
    assert color(load_mesh(asset(tmp_path, kind, reference), root=tmp_path)) == (255, 0, 0)


@pytest.mark.parametrize("kind", FORMATS)
def test_load__texture_where_the_reference_says_wins_over_its_namesakes(
    tmp_path: Path, kind: str
) -> None:
    write(tmp_path, {"asset/art/it.png": RED, "asset/mesh/it.png": GREEN})
    write(tmp_path, {"asset/textures/it.png": GREEN})
    path = asset(tmp_path, kind, "../art/it.png")
    assert color(load_mesh(path, root=tmp_path)) == (255, 0, 0)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("reference", "error_kind"),
    [
        ("../../secret.png", "outside_reference"),
        ("/x/secret/it.png", "outside_reference"),
        ("link/it.png", "outside_reference"),
        ("../gone/it.png", "missing_texture"),
        ("gone.png", "missing_texture"),
    ],
)
def test_load__texture_outside_the_root_is_not_read(
    tmp_path: Path, kind: str, reference: str, error_kind: str
) -> None:
    write(tmp_path, {"secret.png": RED, "secret/it.png": RED})
    path = asset(tmp_path, kind, reference)
    (path.parent / "link").symlink_to(tmp_path / "secret")
    (path.parent.parent / "textures").symlink_to(tmp_path / "secret")
    with pytest.raises(MeshError) as error:
        load_mesh(path, root=tmp_path / "asset")
    assert error.value.kind == error_kind
    assert repr(reference) in str(error.value)


def test_dae__all_missing_textures_are_named(tmp_path: Path) -> None:
    text = quad_dae("a.png")
    # A second material of the same geometry, with its own image.
    for old, new in (
        ("</library_images>", '<image id="img2"><init_from>b.png</init_from></image>'),
        ("</library_effects>", None),
        ("</library_materials>", '<material id="m2"><instance_effect url="#e2"/></material>'),
    ):
        if new is None:
            start, end = text.index("<effect "), text.index("</effect>") + len("</effect>")
            effect = text[start:end].replace('id="e"', 'id="e2"')
            new = effect.replace("<init_from>img<", "<init_from>img2<")
        text = text.replace(old, new + old)
    start, end = text.index("<polylist"), text.index("</polylist>") + len("</polylist>")
    text = text.replace(
        text[start:end], text[start:end] + text[start:end].replace('"mat"', '"mat2"')
    )
    instance = '<instance_material symbol="mat" target="#m"/>'
    second = '<instance_material symbol="mat2" target="#m2"/>'
    text = text.replace(instance, instance + second)
    write(tmp_path, {"a.dae": text})
    with pytest.raises(MeshError) as error:
        load_mesh(tmp_path / "a.dae")
    assert error.value.kind == "missing_texture"
    assert "'a.png', 'b.png'" in str(error.value)
    write(tmp_path, {"a.png": RED, "b.png": GREEN})
    assert {color_of[0, 0, 1] for color_of in _textures(load_mesh(tmp_path / "a.dae"))} == {0, 255}


def _textures(mesh: Mesh) -> list[np.ndarray]:
    return [material.texture for material in mesh.materials if material.texture is not None]


def test_obj__many_missing_textures_are_named_up_to_a_limit(tmp_path: Path) -> None:
    names = [f"m{number:02}" for number in range(12)]
    library = "".join(f"newmtl {name}\nmap_Kd {name}.png\n" for name in names)
    faces = "".join(f"usemtl {name}\nf 1/1 2/1 3/1\n" for name in names)
    text = "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\n" + faces
    write(tmp_path, {"a.obj": text, "a.mtl": library, "m00.png": RED})
    with pytest.raises(MeshError) as error:
        load_mesh(tmp_path / "a.obj")
    assert error.value.kind == "missing_texture"
    message = str(error.value)
    assert "'m00.png'" not in message
    assert "'m01.png'" in message
    assert "'m08.png'" in message
    assert "'m09.png'" not in message
    assert message.endswith("and more")


def test_obj__texture_given_by_the_caller_fills_in_for_a_library_without_one(
    tmp_path: Path,
) -> None:
    write(tmp_path, {"a.obj": box_obj("a.mtl"), "a.mtl": mtl(None), "texture.png": RED})
    assert color(load_mesh(tmp_path / "a.obj", texture="texture.png")) == (255, 0, 0)
    assert not load_mesh(tmp_path / "a.obj").has_color
    assert not load_mesh(tmp_path / "a.obj", texture="no.png").has_color
    write(tmp_path, {"a.mtl": mtl("own.png"), "own.png": GREEN})
    assert color(load_mesh(tmp_path / "a.obj", texture="texture.png")) == (0, 255, 0)
