from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.cloud_pictures import COLOURLESS, draw_cloud, png_bytes

RED = np.array([220, 30, 30], np.uint8)


def sphere(count: int = 6000) -> NDArray[np.float32]:
    points = np.random.default_rng(0).normal(size=(count, 3))
    unit: NDArray[np.float32] = points.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit


def test_draw__sphere_is_a_full_disc_of_its_colour_on_nothing() -> None:
    xyz = sphere()
    image = draw_cloud(xyz, np.tile(RED, (len(xyz), 1)), True, size=96)
    assert image.shape == (96, 96, 4)
    y, x = np.mgrid[0:96, 0:96] - 47.5
    radius = np.hypot(x, y)
    assert (image[radius < 40, 3] == 255).all()  # no gaps
    assert (image[radius > 47, 3] == 0).all()  # filled to 90 % of the frame, plus splats
    inner = image[radius < 40, :3].astype(int)
    assert (inner[:, 0] > 2 * inner[:, 1]).all()
    # Lit from above left: brighter there than below right.
    assert image[28, 30, 0] > image[70, 68, 0] + 30


def test_draw__the_nearer_points_hide_the_farther_ones() -> None:
    grid = np.stack(np.meshgrid(np.linspace(-0.5, 0.5, 60), np.linspace(-0.5, 0.5, 60)), -1)
    flat = grid.reshape(-1, 2)
    front = np.c_[flat * 0.8, np.full(len(flat), 0.4)]
    back = np.c_[flat * 0.8, np.full(len(flat), -0.4)]
    xyz = np.concatenate([front, back]).astype(np.float32)
    rgb = np.repeat(np.array([[0, 200, 0], [200, 0, 0]], np.uint8), len(flat), axis=0)
    for order in (slice(None), slice(None, None, -1)):
        image = draw_cloud(xyz[order], rgb[order], True, size=80, yaw_deg=0, pitch_deg=0)
        assert image[40, 40, 1] > 100
        assert image[40, 40, 0] < 20


def test_draw__axes_are_up_right_and_front() -> None:
    rng = np.random.default_rng(0)
    blob = rng.normal(size=(400, 3)) * 0.05
    spots = {"up": (0, 0.8, 0), "right": (0.8, 0, 0), "down": (0, -0.8, 0)}
    colors = {"up": (255, 0, 0), "right": (0, 255, 0), "down": (0, 0, 255)}
    xyz = np.concatenate([blob + spots[name] for name in spots]).astype(np.float32)
    rgb = np.repeat(np.array([colors[name] for name in spots], np.uint8), 400, axis=0)
    image = draw_cloud(xyz, rgb, True, size=80, yaw_deg=0, pitch_deg=0).astype(int)
    rows, columns = np.nonzero(image[..., 0] > 60)
    assert rows.mean() < 20
    blue_rows, _ = np.nonzero(image[..., 2] > 60)
    assert blue_rows.mean() > 60
    _, green_columns = np.nonzero(image[..., 1] > 60)
    assert green_columns.mean() > columns.mean() + 20


def test_draw__without_colour_it_is_grey_blue_whatever_rgb_says() -> None:
    xyz = sphere(3000)
    image = draw_cloud(xyz, np.tile(RED, (len(xyz), 1)), False, size=64)
    colors = image[image[..., 3] == 255][:, :3].astype(int)
    assert (colors[:, 2] >= colors[:, 0]).all()
    brightest = colors[colors.sum(1).argmax()]
    np.testing.assert_allclose(brightest, COLOURLESS, atol=12)


@pytest.mark.parametrize("count", [1, 2, 500])
def test_draw__degenerate_clouds_do_not_fail(count: int) -> None:
    xyz = np.zeros((count, 3), np.float32)
    image = draw_cloud(xyz, np.tile(RED, (count, 1)), True, size=32)
    assert image[..., 3].max() > 0


def test_draw__is_deterministic_and_png_holds_it() -> None:
    xyz = sphere(500)
    rgb = np.tile(RED, (500, 1))
    first, second = draw_cloud(xyz, rgb, True, 48), draw_cloud(xyz, rgb, True, 48)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(first)))), first)
