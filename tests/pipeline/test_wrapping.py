"""Clamped and mirrored textures continued, against looking texels up one by one."""

from __future__ import annotations

import operator
from itertools import product
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.meshes.parts import Limits, Part, Surface, Wrap
from pipeline.meshes.wrapping import repeating
from pipeline.scene import U8, Material

MODES: tuple[Wrap, ...] = ("repeat", "mirror", "clamp")


def image(rng: np.random.Generator, height: int, width: int) -> U8:
    return rng.integers(0, 256, (height, width, 4), np.uint8)


def part(uv: NDArray[Any], texture: U8 | None, wrap: tuple[Wrap, Wrap], **material: Any) -> Part:
    surface = Surface(Material(texture=texture, **material), wrap=wrap)
    vertices = np.repeat(np.arange(len(uv), dtype=np.float64)[:, None], 3, 1)  # tell themselves
    return Part(vertices, np.arange(len(uv)).reshape(-1, 3), surface, uv=uv)


def texel(at: float, size: int, mode: Wrap) -> int:
    """The obvious lookup: a coordinate in periods as the number of a texel."""
    place = int(np.floor(at * size))
    if mode == "clamp":
        return min(max(place, 0), size - 1)
    if mode == "mirror" and (place // size) % 2:
        return size - 1 - place % size
    return place % size


def looked_up(picture: U8, uv: NDArray[Any], wrap: tuple[Wrap, Wrap]) -> NDArray[Any]:
    height, width = picture.shape[:2]
    return np.array(
        [picture[texel(1 - v, height, wrap[1]), texel(u, width, wrap[0])] for u, v in uv]
    )


def middles(rng: np.random.Generator, count: int, size: int, low: float, high: float) -> Any:
    """Coordinates that rounding does not move into another texel."""
    return (rng.integers(int(low * size), int(high * size), count) + rng.uniform(0.1, 0.9)) / size


@pytest.mark.parametrize("wrap", list(product(MODES, MODES)))
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7), (1, 3), (1, 1)])
def test_repeating__every_texel_is_that_of_the_wrapping(
    wrap: tuple[Wrap, Wrap], height: int, width: int
) -> None:
    rng = np.random.default_rng(3)
    picture, glow = image(rng, height, width), image(rng, height, width)
    u, v = middles(rng, 300, width, -3.2, 2.4), middles(rng, 300, height, -1.1, 5.3)
    uv = np.stack([u, v], 1)
    before = part(uv, picture, wrap, emissive=(1.0, 0, 0), emissive_texture=glow)
    check(repeating([before], Limits()), uv, picture, glow, wrap)


def check(
    parts: list[Part], uv: NDArray[Any], picture: U8, glow: U8, wrap: tuple[Wrap, Wrap]
) -> None:
    """Every corner is there once and shows the texels of the wrapping."""
    seen = []
    for after in parts:
        rows = after.vertices[:, 0].astype(int)
        material, kind = after.surface.material, after.surface.wrap
        for old, new in ((picture, material.texture), (glow, material.emissive_texture)):
            assert new is not None
            found = looked_up(new, cast(Any, after.uv), kind)
            np.testing.assert_array_equal(found, looked_up(old, uv[rows], wrap))
        seen += rows[after.faces].ravel().tolist()
    assert sorted(seen) == list(range(len(uv)))


def test_repeating__images_of_two_sizes_go_on_equally_far() -> None:
    rng = np.random.default_rng(4)
    picture, glow = image(rng, 6, 4), image(rng, 18, 16)
    uv = np.stack([middles(rng, 210, 16, -0.6, 1.7), middles(rng, 210, 18, -0.3, 2.2)], 1)
    wrap: tuple[Wrap, Wrap] = ("clamp", "clamp")
    parts = repeating([part(uv, picture, wrap, emissive_texture=glow)], Limits())
    check(parts, uv, picture, glow, wrap)
    large, one = np.zeros((64, 64, 4), np.uint8), np.zeros((1, 1, 4), np.uint8)
    out = part(np.array([[-0.01, 0], [1.01, 0], [1, 1]]), large, wrap, emissive_texture=one)
    (after,) = repeating([out], Limits())
    assert after.surface.material.texture is not None
    assert after.surface.material.texture.shape == (64, 64 + 2 + 2, 4)


def test_repeating__faces_within_the_image_keep_it_beside_others_far_out() -> None:
    picture = image(np.random.default_rng(7), 64, 64)
    uv = np.array([[0, 0], [1, 0], [1, 1], [-30, 0], [31, 0], [0, 1.0]])
    both = part(uv, picture, ("clamp", "clamp"))
    inside, outside = repeating([both], Limits(max_texture_side=64))
    assert inside.surface.material.texture is picture
    assert inside.uv is not None
    np.testing.assert_array_equal(inside.uv, uv[:3])
    np.testing.assert_array_equal(inside.vertices[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(outside.vertices[:, 0], [3, 4, 5])
    assert outside.surface.material.texture is not picture


def test_repeating__within_the_image_nothing_changes() -> None:
    picture = image(np.random.default_rng(5), 64, 64)
    parts = [
        part(np.array([[0, 0], [1, 0], [1.005, 1]]), picture, ("clamp", "mirror")),
        part(np.array([[-3.0, 0], [1, 0], [9, 1]]), picture, ("repeat", "repeat")),
        part(np.array([[-3.0, 0.5], [1, 0], [9, 1]]), picture, ("repeat", "clamp")),
        Part(np.zeros((3, 3)), np.zeros((1, 3), int)),
    ]
    unchanged = map(operator.is_, parts, repeating(parts, Limits()))
    assert list(unchanged) == [True] * 4


def test_repeating__parts_of_one_image_share_the_continued_one() -> None:
    picture = image(np.random.default_rng(6), 4, 4)
    rows = [np.array([[-0.5, 0], [1, 0], [1, 1]]), np.array([[0.0, 0], [2.5, 0], [1, 1]])]
    red = part(rows[1], picture, ("clamp", "clamp"), base_color=(1.0, 0.0, 0.0, 1.0))
    first, second = repeating([part(rows[0], picture, ("clamp", "clamp")), red], Limits())
    assert first.surface.material.texture is second.surface.material.texture
    assert second.surface.material.base_color == (1.0, 0.0, 0.0, 1.0)
    height, width = cast(U8, first.surface.material.texture).shape[:2]
    # As far as both go, and a texel to mix with.
    assert (height, width) == (4, (2 + 1) + 4 + (6 + 1))


@pytest.mark.parametrize("mode", ["mirror", "clamp"])
def test_repeating__coordinates_far_out_do_not_make_large_images(mode: Wrap) -> None:
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[:, 32:], picture[..., 3] = 255, 255  # black on the left, white on the right
    uv = np.array(
        [[-1e6, 0.2], [1e6 + 0.75, 0.5], [0.75, 0.5], [0.25, 0.5], [-20.25, 0.5], [31, 1]]
    )
    limits = Limits(max_texture_side=64)
    (after,) = repeating([part(uv, picture, (mode, mode))], limits)
    made = after.surface.material.texture
    assert made is not None
    assert max(made.shape[:2]) <= 2.2 * 64
    seen = looked_up(made, cast(Any, after.uv), ("repeat", "repeat"))[:, 0]
    assert (seen[:5] > 127).tolist() == [False, True, True, False, False]  # in either mode
