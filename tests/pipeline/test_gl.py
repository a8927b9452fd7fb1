"""The `gl` renderer draws the rasteriser's pictures; on Mesa's software OpenGL where no GPU is."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.cameras import Cameras, look_at, ring
from pipeline.datasets.base import Asset, Record
from pipeline.isolated import IsolatedProcessor
from pipeline.meshes import load_mesh
from pipeline.objects import ObjectSettings, Processed, process
from pipeline.renderers import gl as gl_module
from pipeline.renderers import gl_draw
from pipeline.renderers.base import RenderConfig
from pipeline.renderers.gl import (
    GlRenderer,
    Tolerance,
    texture_bytes,
    with_smaller_textures,
)
from pipeline.renderers.gl_context import GlError, discard_context, with_context
from pipeline.renderers.raster import RasterRenderer
from pipeline.renderers.raster_prepare import prepare
from pipeline.scene import Material, Mesh, MeshError
from pipeline.shards import Failure
from tests.pipeline.gl_tools import agreement, need_gl, outside
from tests.pipeline.shapes import BLUE, RED, blocks, front, joined, mesh_of, quad, sphere

SMALL = RenderConfig(image_size=64)


@pytest.fixture(scope="module")
def gl() -> Iterator[GlRenderer]:
    yield need_gl()
    discard_context()


def noise(size: int = 64, seed: int = 0, alpha: bool = False) -> NDArray[np.uint8]:
    texture = np.random.default_rng(seed).integers(0, 256, (size, size, 4)).astype(np.uint8)
    if not alpha:
        texture[..., 3] = 255
    return texture


def painted(mesh: Mesh, *materials: Material, seed: int = 0) -> Mesh:
    """The mesh with texture coordinates, vertex colours and materials at random."""
    rng = np.random.default_rng(seed)
    count = len(mesh.vertices)
    return replace(
        mesh,
        uv=rng.uniform(-2, 2, (count, 2)).astype(np.float32),
        vertex_color=np.r_["1", rng.uniform(0, 1, (count, 3)), np.ones((count, 1))].astype("f4"),
        face_material=rng.integers(0, len(materials), len(mesh.faces)).astype(np.int32),
        materials=materials,
    )


def soup(seed: int, faces: int = 200) -> Mesh:
    """Triangles at random, of every kind of material."""
    rng = np.random.default_rng(seed)
    middle = rng.uniform(-0.6, 0.6, (faces, 1, 3))
    vertices = (middle + rng.normal(0, 0.2, (faces, 3, 3))).reshape(-1, 3)
    mesh = mesh_of(vertices, np.arange(3 * faces).reshape(-1, 3))
    return painted(
        mesh,
        Material((0.9, 0.5, 0.2, 1.0)),
        Material((1.0, 1.0, 1.0, 1.0), noise(32)),
        Material((1.0, 1.0, 1.0, 1.0), noise(48, 1, alpha=True), "mask", 0.4),
        Material((0.5, 1.0, 1.0, 0.6), noise(16, 2, alpha=True), "blend"),
        Material((0.2, 0.3, 0.4, 0.5), None, "blend"),
        Material((0.1, 0.2, 0.3, 1.0), unlit=True),
        Material((0.1, 0.2, 0.3, 1.0), emissive=(0.4, 2.0, 0.1), emissive_texture=noise(8, 3)),
        seed=seed,
    )


SCENES = {
    "smooth": sphere(),
    "flat_normals_derived": sphere(rings=12, smooth=False),
    "textured": quad(0.9, material=Material((1, 1, 1, 1), blocks())),
    "minified": painted(sphere(rings=24), Material((1, 1, 1, 1), noise(256))),
    "odd_texture": quad(0.8, material=Material((1, 1, 1, 1), noise(64)[:37, :53].copy())),
    "masked": joined(
        quad(0.8, 0.2, Material((1, 1, 1, 1), noise(16, alpha=True), "mask")), quad(0.9, -0.2, BLUE)
    ),
    "blended": joined(
        quad(0.7, 0.3, Material((1, 0, 0, 0.5), alpha_mode="blend")),
        quad(0.9, -0.3, Material((0, 1, 0, 0.4), alpha_mode="blend")),
        quad(0.5, 0.0, BLUE),
    ),
    "blended_texture": joined(
        quad(0.9, 0.1, Material((1, 1, 1, 1), noise(32, alpha=True), "blend")), quad(0.5, 0.0, RED)
    ),
    "soup": soup(1),
}


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("supersample", [1, 2, 3])
def test_scene__is_the_rasterisers_picture(gl: GlRenderer, name: str, supersample: int) -> None:
    config = RenderConfig(image_size=96, supersample=supersample, background=(30, 200, 90))
    mesh, cameras = SCENES[name], ring(4)
    found = agreement(
        gl.render(mesh, cameras, config), RasterRenderer().render(mesh, cameras, config)
    )
    # Many small triangles have much outline: one sample of one pixel weighs more without others.
    allowed = Tolerance(1.0, 0.0, 40.0, 0.995) if name == "soup" else Tolerance(0.1, 0, 2, 0.999)
    assert not outside(found, allowed), found


@pytest.mark.parametrize("supersample", [6, 7])
def test_supersample__of_more_samples_than_an_integer_has_bits(
    gl: GlRenderer, supersample: int
) -> None:
    config = replace(SMALL, supersample=supersample)
    mesh = SCENES["soup"]
    theirs = RasterRenderer().render(mesh, ring(1), config)
    assert not outside(
        agreement(gl.render(mesh, ring(1), config), theirs), Tolerance(1, 0, 9, 0.99)
    )


def test_picture__a_wrong_light_or_texture_is_outside_the_tolerance(gl: GlRenderer) -> None:
    """The measure tells pictures apart that are nearly the same."""
    mesh, cameras = SCENES["smooth"], ring(3)
    theirs = RasterRenderer().render(mesh, cameras, SMALL)
    darker = gl.render(mesh, cameras, replace(SMALL, ambient=0.34))
    assert outside(agreement(darker, theirs))
    texture = noise(64)
    textured = quad(0.9, material=Material((1, 1, 1, 1), texture))
    shifted = quad(0.9, material=Material((1, 1, 1, 1), np.roll(texture, 1, 0)))
    theirs = RasterRenderer().render(textured, cameras, SMALL)
    assert outside(agreement(gl.render(shifted, cameras, SMALL), theirs))


def test_empty_views__are_the_background_exactly(gl: GlRenderer) -> None:
    behind = Cameras("behind", look_at(np.array([0.0, 0.0, 4.0]))[None], 40.0)
    behind.poses[0, 2, 3] = 50.0  # the object lies behind the camera
    config = replace(SMALL, background=(1, 129, 254))
    picture = gl.render(sphere(), behind, config)
    assert (picture == [1, 129, 254, 0]).all()
    assert gl.render(sphere(), replace(behind, poses=behind.poses[:0]), config).shape[0] == 0


def test_render__same_bytes_again_and_in_a_copy_and_after_other_meshes(gl: GlRenderer) -> None:
    mesh, cameras = SCENES["soup"], ring(3)
    once = gl.render(mesh, cameras, SMALL)
    assert once.shape == (3, 64, 64, 4)
    assert once.dtype == np.uint8
    gl.render(SCENES["blended"], ring(1), RenderConfig(image_size=32, supersample=3))
    gl.render(SCENES["textured"], ring(1), SMALL)
    assert (gl.render(mesh, cameras, SMALL) == once).all()
    assert (pickle.loads(pickle.dumps(gl)).render(mesh, cameras, SMALL) == once).all()


def test_views__drawn_in_several_batches_are_the_same(
    gl: GlRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh, cameras = SCENES["soup"], ring(7)
    together = gl.render(mesh, cameras, SMALL)
    monkeypatch.setattr(gl_draw, "ROWS", 3 * 64 + 1)
    assert (gl.render(mesh, cameras, SMALL) == together).all()


def test_threads__may_all_draw(gl: GlRenderer) -> None:
    mesh = SCENES["soup"]
    expected = gl.render(mesh, ring(3), SMALL)
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: gl.render(mesh, ring(3), SMALL), range(8)))
    assert all((picture == expected).all() for picture in drawn)


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, 1e30, -1e30, 1e-38])
def test_hostile_vertices__leave_the_good_faces_and_the_bytes_in_order(
    gl: GlRenderer, fill: float
) -> None:
    mesh = sphere(0.8, rings=16)
    vertices, uv = mesh.vertices.copy(), np.zeros((len(mesh.vertices), 2), np.float32)
    vertices[100:110, 0], uv[50:60] = fill, fill
    broken = replace(
        mesh, vertices=vertices, uv=uv, materials=(Material((1, 1, 1, 1), blocks(4)),), normals=None
    )
    with np.errstate(all="ignore"):
        theirs = RasterRenderer().render(broken, ring(3), SMALL)
        found = agreement(gl.render(broken, ring(3), SMALL), theirs)
    assert found.silhouette_iou > 0.99, found
    assert found.mean < 2, found


def test_camera_inside_the_object__leaves_out_the_same_faces(gl: GlRenderer) -> None:
    mesh = painted(sphere(rings=16), Material((1, 1, 1, 1), noise()))
    for eye in ([0.0, 0.0, 0.3], [0.2, 0.1, 0.95]):
        inside = Cameras("inside", look_at(np.array(eye))[None], 90.0)
        theirs = RasterRenderer().render(mesh, inside, SMALL)
        found = agreement(gl.render(mesh, inside, SMALL), theirs)
        assert not outside(found, Tolerance(0.5, 0, 10, 0.998)), found


def test_bad_arrays_and_settings__are_refused_as_the_rasteriser_does(gl: GlRenderer) -> None:
    bad = mesh_of(np.zeros((3, 3)), [[0, 1, 7]])
    with pytest.raises(MeshError, match="does not exist"):
        gl.render(bad, ring(1), SMALL)
    with pytest.raises(ValueError, match="supersample"):
        gl.render(sphere(), ring(1), replace(SMALL, supersample=8))


# --- limits of the device ----------------------------------------------------------------------


@pytest.fixture
def few_bytes(gl: GlRenderer) -> Iterator[Any]:
    """Sets the largest buffer of the device, until the end of the test."""
    before = with_context(lambda context: context.max_buffer)
    yield lambda count: with_context(lambda context: setattr(context, "max_buffer", count))
    with_context(lambda context: setattr(context, "max_buffer", before))


def test_textures_too_large__are_halved_until_they_fit(gl: GlRenderer, few_bytes: Any) -> None:
    smooth = np.linspace(0, 255, 256).astype(np.uint8)
    texture = np.stack(np.broadcast_arrays(smooth, smooth[:, None], 90, 255), -1).astype(np.uint8)
    mesh = joined(
        quad(0.9, 0.1, Material((1, 1, 1, 1), texture)),
        quad(0.3, 0.3, Material((1, 1, 1, 1), blocks(8))),
    )
    theirs = RasterRenderer().render(mesh, ring(3), SMALL)
    few_bytes(100_000)  # level 0 alone has 262,400
    found = agreement(gl.render(mesh, ring(3), SMALL), theirs)
    assert found.mean < 1.5, found
    assert found.median <= 1, found


def test_halving__keeps_small_textures_and_the_mean_colour() -> None:
    large, small = noise(64, alpha=True), blocks(8)
    mesh = joined(
        quad(0.9, 0.1, Material((1, 1, 1, 1), large, "blend", emissive=(1, 1, 1))),
        quad(0.3, 0.3, Material((1, 1, 1, 1), small, emissive_texture=large, emissive=(1, 0, 0))),
    )
    prepared = prepare(mesh, 40)
    half = with_smaller_textures(mesh, prepared)
    first, second = half.materials
    assert first.texture is not None
    assert first.texture.shape == (32, 32, 4)
    assert second.texture is small
    assert second.emissive_texture is not None
    assert second.emissive_texture.shape == (32, 32, 4)
    assert first.texture[..., 3].mean() == pytest.approx(large[..., 3].mean(), abs=0.6)
    assert texture_bytes(prepare(half, 40)) < texture_bytes(prepared) / 3


def test_geometry_too_large__is_a_failure_that_names_the_other_renderer(
    gl: GlRenderer, few_bytes: Any
) -> None:
    few_bytes(10_000)
    with pytest.raises(MeshError, match="--renderer raster") as raised:
        gl.render(sphere(), ring(1), SMALL)
    assert (raised.value.stage, raised.value.kind) == ("render", "gl_limit")
    few_bytes(1 << 27)
    assert gl.render(sphere(), ring(1), SMALL)[..., 3].any()  # and the next mesh is drawn


# --- contexts that fail ------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
def test_lost_context__is_replaced_once(
    gl: GlRenderer, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    expected = gl.render(SCENES["soup"], ring(3), SMALL)
    contexts, real = [], gl_draw.draw

    def lost(context: Any, *rest: Any) -> None:
        contexts.append(context)
        if len(contexts) <= times:
            raise GlError("GL_CONTEXT_LOST")
        real(context, *rest)

    monkeypatch.setattr(gl_module, "draw", lost)
    if times == 1:
        assert (gl.render(SCENES["soup"], ring(3), SMALL) == expected).all()
    else:
        with pytest.raises(MeshError, match="GL_CONTEXT_LOST") as raised:
            gl.render(SCENES["soup"], ring(3), SMALL)
        assert (raised.value.stage, raised.value.kind) == ("render", "gl_failed")
    assert contexts[0] is not contexts[1]
    monkeypatch.undo()
    assert (gl.render(SCENES["soup"], ring(3), SMALL) == expected).all()


def test_error_that_opengl_records__fails_the_mesh(
    gl: GlRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        gl_draw._Passes, "draw_view", lambda self, *_: self.gl.enable_direct(0x1234)
    )
    with pytest.raises(MeshError, match="GL_INVALID_ENUM"):
        gl.render(sphere(), ring(1), SMALL)


@dataclass(frozen=True)
class Meshes:
    """A source of spheres; one kills its process as a graphics driver may."""

    name: str = "meshes"

    @property
    def options(self) -> dict[str, Any]:
        return {}

    def records(self) -> Iterator[Record]:
        raise NotImplementedError

    def count(self) -> int | None:
        return None

    def load(self, record: Record) -> Asset:
        mesh = sphere(rings=16)
        if record.key == "crash":
            GlRenderer().render(mesh, ring(1), SMALL)  # the context is up
            os.kill(os.getpid(), signal.SIGSEGV)
        return Asset(mesh, "0" * 64, 1)


def test_child_process__draws_and_a_crash_of_the_driver_costs_one_object(gl: GlRenderer) -> None:
    settings = ObjectSettings(
        dataset=Meshes(), cameras=ring(3), render=SMALL, renderer="gl", n_points=64, n_fps=16
    )
    records = [
        Record(uid=f"meshes/{i}", dataset="meshes", source=key, key=key)
        for i, key in enumerate(["good", "crash", "good"])
    ]
    here = process(records[0], settings)
    assert isinstance(here, Processed)
    worker = IsolatedProcessor(settings, timeout_s=100)
    try:
        first, lost, last = worker(records)
    finally:
        worker.close()
    assert isinstance(lost, Failure)
    assert lost.error == "crash"
    for item in (first, last):
        assert isinstance(item, Processed)
        assert all((item.images[size] == views).all() for size, views in here.images.items())


# --- real assets -------------------------------------------------------------------------------


def real_assets(folder: Path) -> list[Path]:
    return sorted((folder / "cc0-meshes/meshes").glob("*.glb")) + sorted(
        (folder / "textured").glob("*.glb")
    )


def disagreement(gl: GlRenderer, path: Path, cameras: Cameras) -> str | None:
    mesh, config = load_mesh(path).normalised(), RenderConfig()
    found = agreement(
        gl.render(mesh, cameras, config), RasterRenderer().render(mesh, cameras, config)
    )
    return f"{path.name}: {found}" if outside(found) else None


def test_real_assets__a_sample_agrees_within_the_tolerance(
    gl: GlRenderer, assets_dir: Path
) -> None:
    """Every 100th, the textured ones, and those whose surfaces coincide."""
    paths = real_assets(assets_dir)
    meshes = assets_dir / "cc0-meshes/meshes"
    hard = [meshes / f"pmndrs__{name}.glb" for name in ("taco", "glass-wine", "bottle", "hole")]
    chosen = [*paths[::100], *paths[-2:], *hard]
    failed = [found for path in chosen if (found := disagreement(gl, path, ring(4)))]
    assert not failed


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_real_assets__all_agree_within_the_tolerance(gl: GlRenderer, assets_dir: Path) -> None:
    paths = real_assets(assets_dir)
    assert len(paths) > 1000
    failed = [found for path in paths if (found := disagreement(gl, path, ring(12)))]
    assert not failed


@pytest.mark.slow
def test_dense_mesh__of_a_million_faces_is_drawn(gl: GlRenderer) -> None:
    mesh = sphere(0.9, rings=500)
    theirs = RasterRenderer().render(mesh, front(), RenderConfig())
    found = agreement(gl.render(mesh, front(), RenderConfig()), theirs)
    assert len(mesh.faces) == 1_000_000
    assert not outside(found), found


@pytest.mark.gpu
def test_gpu__draws_the_rasterisers_pictures(gl: GlRenderer) -> None:
    driver = with_context(lambda context: context.driver)
    if driver.software:
        pytest.skip(f"no GPU draws here: {driver}")
    for name, mesh in SCENES.items():
        theirs = RasterRenderer().render(mesh, ring(12), RenderConfig())
        found = agreement(gl.render(mesh, ring(12), RenderConfig()), theirs)
        assert name == "soup" or not outside(found), (name, found)
