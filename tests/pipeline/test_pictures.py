"""What is to be seen, sizes, and the coding of kept pictures."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cameras import ring
from pipeline.common import InputError
from pipeline.meshes import load_mesh
from pipeline.pictures import (
    at_sizes,
    decode_webp,
    encode_webp,
    kept_format,
    shows_something,
)
from pipeline.renderers.base import (
    RenderConfig,
    make_config,
    parse_background,
    parse_light,
)
from pipeline.renderers.raster import RasterRenderer
from pipeline.scene import Material
from tests.pipeline.shapes import quad, sphere

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def plain(size: int = 100, colour: tuple[int, int, int] = WHITE) -> np.ndarray:
    return np.full((size, size, 4), (*colour, 0), np.uint8)


@pytest.mark.parametrize("background", [WHITE, BLACK, (128, 128, 128), (255, 136, 0)])
def test_shows_something__plain_ground_and_faint_spots_do_not_count(
    background: tuple[int, int, int],
) -> None:
    step = np.array([-1 if c > 127 else 1 for c in background])
    view = plain(colour=background)
    assert not shows_something(view, background)
    view[..., 3] = 255  # covered, but like the background: coverage alone shows nothing
    view[..., :3] = background + 7 * step
    assert not shows_something(view, background)
    view[:2, :5, 1] = background[1] + 8 * step[1]  # 10 of 10,000 pixels, in one channel
    assert shows_something(view, background)
    view[0, 0, 1] = background[1]
    assert not shows_something(view, background)


def test_shows_something__at_least_one_pixel_of_a_small_picture() -> None:
    view = plain(4)
    assert not shows_something(view, WHITE)
    view[3, 3] = 0
    assert shows_something(view, WHITE)


def test_shows_something__equals_the_plain_rule() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        red, green, blue = (int(c) for c in rng.integers(0, 256, 3))
        background = (red, green, blue)
        size = int(rng.integers(1, 60))
        view = plain(size, background)
        spots = rng.random((size, size)) < rng.choice([0.0, 0.001, 0.01])
        shift = rng.integers(-12, 13, 3)
        view[spots, :3] = np.clip(np.array(background) + shift, 0, 255)
        contrast = np.abs(view[..., :3].astype(int) - background).max(-1)
        expected = (contrast >= 8).sum() >= max(1, 0.001 * size * size)
        assert shows_something(view, background) == expected


def test_shows_something__white_on_white_is_seen_by_its_shading_only() -> None:
    for flat, seen in ((False, True), (True, False)):
        config = make_config(64, "white", "flat" if flat else "headlight")
        ball = replace(sphere(0.8), materials=(Material((1.0, 1.0, 1.0, 1.0)),))
        views = RasterRenderer().render(ball, ring(2), config)
        assert views[..., 3].any()
        assert [shows_something(view, config.background) for view in views] == [seen, seen]


def test_shows_something__thin_real_assets_are_seen(assets_dir: Path) -> None:
    # Those with the fewest visible pixels of the 1,361, as measured.
    names = ("paintbrush", "tent_peg", "toasting_fork", "violin_bow", "pin")
    folder = assets_dir / "cc0-meshes" / "meshes"
    paths = [p for n in names for p in sorted(folder.glob(f"base_meshes__{n}*.glb"))[:1]]
    assert len(paths) >= 4
    for path in paths:
        views = RasterRenderer().render(
            load_mesh(path).normalised(), ring(4), RenderConfig(image_size=64)
        )
        assert all(shows_something(view, WHITE) for view in views), path.name


def test_at_sizes__shrinks_to_each_size_and_never_enlarges() -> None:
    views = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 4), dtype=np.uint8)
    sizes = ((24, "bicubic"), (24, "bilinear"), (40, "bicubic"), (64, "bicubic"), None)
    found = at_sizes(views, sizes)
    assert list(found) == list(sizes)
    assert [found[size].shape[1] for size in sizes] == [24, 24, 40, 40, 40]
    picture = Image.fromarray(np.ascontiguousarray(views[1, ..., :3]))
    for method in ("bicubic", "bilinear"):
        expected = picture.resize((24, 24), Image.Resampling[method.upper()])
        assert np.array_equal(found[24, method][1], np.asarray(expected))
    assert np.array_equal(found[None], views[..., :3])
    assert found[64, "bicubic"] is found[None]  # travels once


@pytest.mark.parametrize(
    ("text", "expected"),
    [("webp", "webp-90"), ("webp-75", "webp-75"), ("webp-100", "webp-100")]
    + [("webp-lossless", "webp-lossless")],
)
def test_kept_format__is_written_out(text: str, expected: str) -> None:
    assert kept_format(text) == expected
    assert kept_format(expected) == expected


@pytest.mark.parametrize("text", ["", "png", "webp-0", "webp-101", "webp-", "WEBP", "webp-9.5"])
def test_kept_format__anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--keep-images .*use webp"):
        kept_format(text)


def view_of_a_ball() -> np.ndarray:
    ball = replace(sphere(0.8), materials=(Material((0.8, 0.2, 0.1, 1.0)),))
    (view,) = RasterRenderer().render(ball, ring(1), RenderConfig(image_size=96))
    return np.asarray(view)


def test_encode_webp__lossless_is_lossless() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (33, 33, 3), dtype=np.uint8)
    for image in (noise, view_of_a_ball()[..., :3]):
        data = encode_webp(image, "webp-lossless")
        assert Image.open(io.BytesIO(data)).format == "WEBP"
        assert np.array_equal(decode_webp(data), image)


def test_encode_webp__quality_trades_size_for_likeness() -> None:
    image = view_of_a_ball()[..., :3]
    found = {quality: encode_webp(image, f"webp-{quality}") for quality in (30, 90)}
    error = {q: np.abs(decode_webp(d).astype(int) - image).mean() for q, d in found.items()}
    assert len(found[30]) < len(found[90])
    assert error[90] < error[30] < 5
    assert error[90] < 1.5


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_decode_webp__damage_is_a_value_error(cut: int) -> None:
    data = encode_webp(view_of_a_ball()[..., :3], "webp-90")
    with pytest.raises(ValueError, match="not a WebP picture"):
        decode_webp(data[:cut] if cut >= 0 else b"\x89PNG" + data)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("white", WHITE), ("Black", BLACK), ("grey", (128, 128, 128)), ("#Ff8800", (255, 136, 0))],
)
def test_parse_background__names_and_hex(text: str, expected: tuple[int, int, int]) -> None:
    assert parse_background(text) == expected


@pytest.mark.parametrize("text", ["", "red", "#fff", "ff8800", "#ff880g", "#ff880 "])
def test_parse_background__anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--background .*#rrggbb"):
        parse_background(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("headlight", (0.35, 0.65)), ("flat", (1.0, 0.0)), ("0.2, 0.5", (0.2, 0.5))],
)
def test_parse_light__names_and_numbers(text: str, expected: tuple[float, float]) -> None:
    assert parse_light(text) == expected


@pytest.mark.parametrize("text", ["", "sun", "0.5", "0,0", "0.6,0.6", "-1,1", "nan,0", "1,0,0"])
def test_parse_light__anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--light .*AMBIENT,DIFFUSE"):
        parse_light(text)


def test_make_config__defaults_are_those_of_the_renderer_and_all_is_recorded() -> None:
    assert make_config(224, "white", "headlight") == RenderConfig()
    told = make_config(64, "#010203", "0.1,0.2").to_json()
    assert (told["background"], told["ambient"], told["diffuse"]) == ([1, 2, 3], 0.1, 0.2)


def test_light__flat_shows_the_surface_colour_and_the_background_is_exact() -> None:
    config = make_config(32, "#102030", "flat")
    # Linear 0.2158605 is sRGB 128.
    grey = Material((0.2158605, 0.2158605, 0.2158605, 1.0))
    view = RasterRenderer().render(quad(0.5, material=grey), ring(1), config)[0]
    assert view[0, 0, :3].tolist() == [16, 32, 48]
    assert view[16, 16, :3].tolist() == [128, 128, 128]
