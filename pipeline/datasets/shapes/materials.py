"""Named colours and small generated textures."""

from __future__ import annotations

import colorsys
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.scene import U8, Material, srgb_to_linear

HSV = tuple[float, float, float]

# name -> hue (degrees), saturation, value, and how far each may stray
PALETTE: dict[str, tuple[HSV, HSV]] = {
    "red": ((0, 0.85, 0.80), (6, 0.10, 0.10)),
    "orange": ((27, 0.90, 0.95), (5, 0.08, 0.05)),
    "yellow": ((53, 0.85, 0.95), (4, 0.10, 0.05)),
    "light green": ((95, 0.55, 0.85), (10, 0.10, 0.08)),
    "green": ((130, 0.75, 0.50), (14, 0.12, 0.10)),
    "turquoise": ((176, 0.75, 0.75), (6, 0.12, 0.10)),
    "light blue": ((203, 0.42, 0.93), (7, 0.08, 0.05)),
    "blue": ((224, 0.85, 0.72), (8, 0.10, 0.10)),
    "purple": ((280, 0.65, 0.58), (10, 0.10, 0.10)),
    "pink": ((335, 0.45, 0.95), (9, 0.10, 0.05)),
    "brown": ((24, 0.65, 0.42), (6, 0.10, 0.06)),
    "beige": ((38, 0.28, 0.88), (5, 0.05, 0.05)),
    "white": ((40, 0.02, 0.97), (20, 0.02, 0.03)),
    "gray": ((220, 0.04, 0.50), (30, 0.03, 0.08)),
    "black": ((220, 0.06, 0.10), (30, 0.05, 0.05)),
}
METALS: dict[str, tuple[HSV, HSV]] = {
    "silver": ((215, 0.04, 0.74), (20, 0.03, 0.06)),
    "gold": ((45, 0.72, 0.80), (4, 0.08, 0.06)),
    "copper": ((17, 0.60, 0.70), (4, 0.08, 0.06)),
}
WOODS = ("brown", "beige", "white", "red", "green", "blue", "black")  # as stained or painted
COLORS: tuple[str, ...] = (*PALETTE, *METALS)
MATERIALS = ("plain", "wooden", "metal", "striped", "spotted", "checkered")
SIZE = 64  # pixels of a texture's side


def jittered(name: str, u: NDArray[np.float64]) -> list[float]:
    """A colour of that name: hue in degrees [0, 360), saturation and value in [0, 1].

    ``u`` (3,) uniform in [0, 1) chooses within the name's range.
    """
    centre, spread = (PALETTE.get(name) or METALS[name])[:2]
    hue, saturation, value = (
        c + s * (2 * float(x) - 1) for c, s, x in zip(centre, spread, u, strict=True)
    )
    clip = [min(max(x, 0.0), 1.0) for x in (saturation, value)]
    return [round(hue % 360, 2), round(clip[0], 4), round(clip[1], 4)]


def srgb(hsv: list[float] | HSV) -> NDArray[np.float64]:
    """HSV as sRGB (3,) in [0, 1]."""
    return np.array(colorsys.hsv_to_rgb(hsv[0] / 360, hsv[1], hsv[2]))


def plain(hsv: list[float] | HSV) -> Material:
    """One colour."""
    red, green, blue = (float(x) for x in srgb_to_linear(srgb(hsv)))
    return Material((red, green, blue, 1.0))


@lru_cache(maxsize=128)
def named(name: str) -> Material:
    """The palette's own colour of that name."""
    return plain((PALETTE.get(name) or METALS[name])[0])


@lru_cache(maxsize=64)
def _mask(kind: str, variant: int) -> NDArray[np.float32]:
    """Tiling pattern (SIZE, SIZE) in [0, 1]: how much of the second colour."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    if kind == "striped":
        coordinate = (y, x, x + y)[variant % 3]  # level, upright or slanting stripes
        mask = (coordinate * 2) % 1 < 0.5
    elif kind == "checkered":
        mask = ((x * 2) % 1 < 0.5) ^ ((y * 2) % 1 < 0.5)
    elif kind == "spotted":
        tile = np.stack([(x * 2) % 1, (y * 2) % 1]) - 0.5
        mask = np.hypot(*tile) < 0.30
    elif kind == "wooden":
        rng = np.random.default_rng(variant)
        wave = 0.35 * np.sin(2 * np.pi * (y + rng.random())) + 0.15 * np.sin(
            2 * np.pi * (2 * y + rng.random())
        )
        rings = 0.5 + 0.5 * np.sin(2 * np.pi * (5 * x + wave))
        grain = 0.25 * rng.random((1, SIZE)) ** 2
        return np.asarray(0.75 * rings**3 + grain, np.float32)
    else:  # metal: brushed streaks
        rng = np.random.default_rng(variant)
        streak = rng.random((SIZE, 1)) * 0.6 + 0.4 * (0.5 + 0.5 * np.cos(2 * np.pi * y[:, :1]))
        return np.asarray(np.broadcast_to(streak, (SIZE, SIZE)), np.float32)
    return np.asarray(mask, np.float32)


def textured(kind: str, hsv: list[float], other: list[float], variant: int) -> Material:
    """A material with a generated (64, 64) texture.

    ``kind`` is one of ``MATERIALS`` but plain, ``other`` the pattern's second colour (unused by
    wood and metal, whose second tone is a darker or lighter shade of the first).
    """
    first = srgb(hsv)
    mask = _mask(kind, variant % 8)[..., None]
    if kind == "wooden":
        second = first * 0.55
    elif kind == "metal":
        second = 1 - (1 - first) * 0.45
    else:
        second = srgb(other)
    texture: U8 = np.full((SIZE, SIZE, 4), 255, np.uint8)
    texture[..., :3] = np.rint(255 * (first * (1 - mask) + second * mask))
    return Material((1.0, 1.0, 1.0, 1.0), texture)
