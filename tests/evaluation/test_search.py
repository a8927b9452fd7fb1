"""Pictures as queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.search import load_image

BLACK = (0, 0, 0)
ORIENTATION = 0x112


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),  # a viewer turns it clockwise
        (8, Image.Transpose.ROTATE_270),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
    ],
)
def test_image__is_turned_as_its_exif_says(
    tmp_path: Path, orientation: int, stored: Image.Transpose, ending: str
) -> None:
    pixels = np.zeros((64, 48, 3), np.uint8)
    pixels[:16, :, 0] = 255  # red above, green on the left
    pixels[16:, :16, 1] = 255
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    plain, turned = tmp_path / f"plain.{ending}", tmp_path / f"turned.{ending}"
    upright.save(plain, quality=95)
    upright.transpose(stored).save(turned, quality=95, exif=exif)
    expected = load_image(plain, BLACK).astype(int)
    assert np.abs(load_image(turned, BLACK) - expected).mean() < 3  # of the compression
    assert np.abs(expected[8:24, 20:40] - expected[40:56, 20:40]).mean() > 50


def test_image__damaged_exif_leaves_it_as_it_is(tmp_path: Path) -> None:
    picture = Image.fromarray(np.full((8, 8, 3), 200, np.uint8))
    picture.save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    assert abs(int(load_image(tmp_path / "a.jpg", BLACK).mean()) - 200) < 3


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_image__grey_of_16_bits_is_not_white(tmp_path: Path, ending: str) -> None:
    wide = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / f"a.{ending}")
    found = load_image(tmp_path / f"a.{ending}", BLACK)
    expected = np.round(wide / 257)
    for channel in range(3):
        assert np.abs(found[..., channel] - expected).max() <= 0.5


def test_image__grey_of_32_bits_is_of_16_or_of_8(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.int32).reshape(16, 16)
    for scale in (1, 257):
        Image.fromarray(ramp * scale).save(tmp_path / "a.tif")
        with Image.open(tmp_path / "a.tif") as file:
            assert file.mode == "I"
        np.testing.assert_array_equal(load_image(tmp_path / "a.tif", BLACK)[..., 0], ramp)
