"""What callers rely on: equal bytes, safe on bad geometry, clear errors, no second compile."""

from __future__ import annotations

import os
import pickle
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cameras import Cameras, ring
from pipeline.renderers import raster
from pipeline.renderers.base import RenderConfig
from pipeline.renderers.raster import RasterRenderer
from pipeline.scene import Material, MeshError
from tests.pipeline.shapes import (
    BLUE,
    UNLIT,
    WHITE,
    blocks,
    draw,
    joined,
    mesh_of,
    pixel_rays,
    quad,
    sphere,
)

# --- contracts ---------------------------------------------------------------------------------


def test_render__same_bytes_twice_and_in_a_copy_of_the_renderer() -> None:
    mesh = joined(quad(0.5, 0.2, Material((1, 1, 1, 1), blocks())), quad(0.9, -0.2, BLUE))
    renderer = RasterRenderer()
    once = renderer.render(mesh, ring(), RenderConfig())
    assert once.shape == (12, 224, 224, 4)
    assert once.dtype == np.uint8
    assert (renderer.render(mesh, ring(), RenderConfig()) == once).all()
    copied = pickle.loads(pickle.dumps(renderer))
    assert (copied.render(mesh, ring(), RenderConfig()) == once).all()


def test_render__views_do_not_depend_on_each_other() -> None:
    mesh, cameras = sphere(rings=12), ring(4)
    together = RasterRenderer().render(mesh, cameras, RenderConfig(image_size=40))
    for view in range(4):
        alone = Cameras("one", cameras.poses[[view]], cameras.fov_y_deg)
        single = RasterRenderer().render(mesh, alone, RenderConfig(image_size=40))
        assert (single[0] == together[view]).all()


def test_render__takes_read_only_and_strided_arrays_without_compiling_again() -> None:
    raster.compile_cached()
    before = len(raster.shade.signatures)  # type: ignore[attr-defined]
    mesh = quad(0.7, 0.0, Material((1, 1, 1, 1), blocks()))
    expected = draw(mesh)
    frozen = mesh.vertices.copy()
    frozen.flags.writeable = False
    texture = np.zeros((64, 128, 4), np.uint8)
    texture[:, ::2] = blocks()
    strided = replace(mesh, vertices=frozen, materials=(Material((1, 1, 1, 1), texture[:, ::2]),))
    assert (draw(strided) == expected).all()
    assert len(raster.shade.signatures) == before  # type: ignore[attr-defined]


def test_render__does_not_change_its_input() -> None:
    mesh = sphere(rings=8)
    assert mesh.normals is not None
    copies = mesh.vertices.copy(), mesh.faces.copy(), mesh.normals.copy()
    draw(mesh)
    for array, copy in zip((mesh.vertices, mesh.faces, mesh.normals), copies, strict=True):
        assert (array == copy).all()
        assert array.flags.writeable


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"faces": np.zeros((0, 3), np.int32), "face_material": np.zeros(0, np.int32)}, "no_faces"),
        ({"faces": np.array([[0, 1, 4], [0, 2, 3]], np.int32)}, "bad_index"),
        ({"faces": np.array([[0, 1, -1], [0, 2, 3]], np.int32)}, "bad_index"),
        ({"face_material": np.array([0, 1], np.int32)}, "bad_index"),
        ({"face_material": np.zeros(3, np.int32)}, "bad_index"),
        ({"uv": np.zeros((3, 2), np.float32)}, "bad_shape"),
        ({"normals": np.zeros((4, 2), np.float32)}, "bad_shape"),
        ({"vertex_color": np.zeros((4, 3), np.float32)}, "bad_shape"),
        ({"vertex_color": np.full((4, 4), np.nan, np.float32)}, "not_finite"),
        ({"materials": (Material(texture=np.zeros((0, 4, 4), np.uint8)),)}, "bad_shape"),
        ({"materials": (Material(texture=np.zeros((4, 4, 3), np.uint8)),)}, "bad_shape"),
    ],
)
def test_render__arrays_that_do_not_fit_are_a_mesh_error(change: Any, kind: str) -> None:
    with pytest.raises(MeshError) as caught:
        draw(replace(quad(), **change))
    assert (caught.value.kind, caught.value.stage) == (kind, "render")


@pytest.mark.parametrize(
    "change", [{"supersample": 0}, {"supersample": 8}, {"image_size": 0}, {"image_size": 9000}]
)
def test_render__settings_that_cannot_be_drawn_are_refused(change: Any) -> None:
    with pytest.raises(ValueError, match="supersample"):
        draw(quad(), replace(UNLIT, **change))


@pytest.mark.parametrize("supersample", [1, 2, 4])
def test_hostile_geometry__draws_something_or_nothing_but_stays_in_bounds(supersample: int) -> None:
    rng = np.random.default_rng(9)
    texture = rng.integers(0, 256, (7, 5, 4), dtype=np.uint8)
    glass = Material((1, 1, 1, 0.5), texture, alpha_mode="blend")
    mask = Material((1, 1, 1, 1), texture, alpha_mode="mask")
    config = RenderConfig(image_size=33, supersample=supersample)
    for scale in (0.0, 1e-38, 1e-6, 1.0, 30.0, 1e4, 1e18, 1e38):
        vertices = (rng.normal(0, 1, (90, 3)) * scale).astype(np.float32)
        vertices[::17] = np.nan
        vertices[5::23] = np.inf
        uv = (rng.normal(0, 1, (90, 2)) * scale).astype(np.float32)
        uv[::11] = np.nan
        faces = rng.integers(0, 90, (200, 3))  # some with a vertex twice
        for normals in ({}, {"normals": rng.normal(0, 1, (90, 3)) * scale}):
            mesh = mesh_of(
                vertices,
                faces,
                (WHITE, Material((1, 1, 1, 1), texture), glass, mask),
                face_material=rng.integers(0, 4, 200).astype(np.int32),
                uv=uv,
                vertex_color=rng.uniform(0, 1, (90, 4)),
                **normals,
            )
            with np.errstate(all="ignore"):
                picture = RasterRenderer().render(mesh, ring(3), config)
            assert picture.shape == (3, 33, 33, 4)


def test_camera_inside_the_object__does_not_fail() -> None:
    inside = Cameras("inside", np.eye(4)[None], 90.0)
    assert draw(sphere(), UNLIT, inside).shape == (64, 64, 4)


def test_dense_mesh__covers_its_silhouette_without_holes() -> None:
    """A quarter of a million faces, most of them between the samples."""
    picture = draw(sphere(0.9, rings=256), RenderConfig(image_size=64))
    rays = pixel_rays(64, 40.0)
    depth2 = (4 * rays[..., 2]) ** 2 - (16 - 0.81)
    assert (picture[..., 3][depth2 > 0.12] == 255).all()


def test_real_asset__textured_glb_fills_a_fair_part_of_every_view(assets_dir: Path) -> None:
    from pipeline.meshes import load_mesh

    mesh = load_mesh(assets_dir / "textured" / "Avocado.glb").normalised()
    pictures = RasterRenderer().render(mesh, ring(), RenderConfig(image_size=96))
    cover = pictures[..., 3].mean((1, 2)) / 255
    assert (cover > 0.1).all()
    assert (cover < 0.7).all()
    inside = pictures[pictures[..., 3] == 255][:, :3].mean(0)
    assert inside[1] > inside[0] > inside[2]  # an avocado is green


MIXTURE = """
import hashlib
from dataclasses import replace
from pipeline.cameras import ring
from pipeline.renderers.base import RenderConfig
from pipeline.renderers.raster import RasterRenderer
from pipeline.scene import Material
from tests.pipeline.shapes import blocks, joined, quad, sphere
glass = Material((0.2, 0.5, 0.9, 0.4), blocks(90), alpha_mode="blend")
scene = joined(quad(0.9, 0.1, Material((1, 1, 1, 1), blocks(512))), quad(0.5, 0.4, glass))
for mesh in (scene, sphere(), sphere(rings=9, smooth=False)):
    for scale in (1, 2, 4):
        config = RenderConfig(image_size=100, supersample=scale)
        print(hashlib.sha256(RasterRenderer().render(mesh, ring(4), config)).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)  # compiles everything anew
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 processors")
def test_render__same_bytes_without_the_vector_extensions_of_this_cpu(tmp_path: Path) -> None:
    """Compiled for this CPU and for the oldest x86-64, without AVX and FMA."""
    oldest = {
        "NUMBA_CPU_NAME": "x86-64",
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
        "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX",
    }
    printed = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", MIXTURE],
            env={**os.environ, **more},
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for more in ({}, oldest)
    ]
    assert len(printed[0].split()) == 9
    assert printed[1] == printed[0]
