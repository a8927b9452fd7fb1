"""Smaller views: every byte as Pillow has it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.cameras import ring
from pipeline.renderers.base import RenderConfig
from pipeline.renderers.raster import RasterRenderer
from pipeline.resize import shrink, weights
from tests.pipeline.shapes import sphere


def by_pillow(images: np.ndarray, side: int, method: str) -> np.ndarray:
    """The oracle: one picture at a time."""
    filtering = Image.Resampling[method.upper()]
    pictures = [Image.fromarray(np.ascontiguousarray(image[..., :3])) for image in images]
    return np.stack([np.asarray(picture.resize((side, side), filtering)) for picture in pictures])


def patterns(size: int) -> np.ndarray:
    """Noise, black and white pixels (overshoot), and an object on a plain ground."""
    rng = np.random.default_rng(size)
    noise = rng.integers(0, 256, (size, size, 4), dtype=np.uint8)
    extreme = rng.integers(0, 2, (size, size, 4), dtype=np.uint8) * np.uint8(255)
    objects = np.full((3, size, size, 4), (200, 30, 255, 0), np.uint8)
    low, high = size // 4, max(size // 4 + 1, size // 2)
    objects[0, low:high, low:high] = noise[low:high, low:high]
    objects[1, -1, -1] = 7  # the last pixel alone
    return np.stack([noise, extreme, *objects])


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("size", "side"),
    [(224, 96), (336, 224), (225, 224), (65, 64), (97, 13), (40, 24), (224, 1), (3, 2), (2, 1)],
)
def test_shrink__equals_pillow_to_the_byte(size: int, side: int, method: str) -> None:
    images = patterns(size)
    assert np.array_equal(shrink(images, side, method), by_pillow(images, side, method))


def test_shrink__renders_equal_pillow_on_any_background() -> None:
    for background in ((255, 255, 255), (0, 0, 0), (128, 128, 128), (255, 136, 0)):
        config = RenderConfig(image_size=100, background=background)
        images = RasterRenderer().render(sphere(0.7), ring(3), config)
        assert np.array_equal(shrink(images, 32, "bicubic"), by_pillow(images, 32, "bicubic"))


def test_shrink__views_that_are_no_neighbours_in_memory_are_read_rightly() -> None:
    images = np.concatenate([patterns(40), patterns(40)])[::2, :, ::-1]
    assert np.array_equal(shrink(images, 24, "bicubic"), by_pillow(images, 24, "bicubic"))
    assert shrink(images[:0], 24, "bicubic").shape == (0, 24, 24, 3)


def test_weights__add_up_to_one_but_for_rounding() -> None:
    for size in range(2, 300, 7):
        firsts, counts, values = weights(size, max(1, size // 3), "bicubic")
        assert (firsts >= 0).all()
        assert (firsts + counts <= size).all()
        # What lets the plain background be skipped: 255 times the rounding stays below a half.
        assert (np.abs(values.sum(axis=1) - (1 << 22)) * 255 < 1 << 21).all()


def test_weights__another_filter_is_refused() -> None:
    with pytest.raises(ValueError, match="lanczos"):
        weights(10, 5, "lanczos")
