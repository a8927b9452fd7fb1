"""The protocol that every renderer follows, and the settings that they share."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.cameras import Cameras
from pipeline.common import InputError
from pipeline.scene import Mesh

BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}  # sRGB
# Ambient and diffuse light: see ``RenderConfig``.
LIGHTS = {"headlight": (0.35, 0.65), "soft": (0.7, 0.3), "flat": (1.0, 0.0)}


@dataclass(frozen=True)
class RenderConfig:
    """What a picture depends on besides mesh and cameras; recorded in the manifest.

    Light: a two-sided Lambert head light plus ambient, ``ambient + diffuse * |cos(normal, view)|``
    in linear light, so that a surface seen face-on has exactly its own colour when the two sum
    to 1.
    """

    image_size: int = 224  # pixels, square
    background: tuple[int, int, int] = (255, 255, 255)  # sRGB
    supersample: int = 2  # samples per pixel and axis
    ambient: float = 0.35
    diffuse: float = 0.65
    crease_angle_deg: float = 40.0  # sharper edges get face normals where the asset has none

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {**asdict(self), "background": list(self.background)}


def parse_background(text: str) -> tuple[int, int, int]:
    """The sRGB colour that ``white``, ``black``, ``grey`` or ``#rrggbb`` say. Raises InputError."""
    if text.lower() in BACKGROUNDS:
        return BACKGROUNDS[text.lower()]
    if not re.fullmatch(r"#[0-9A-Fa-f]{6}", text):
        raise InputError(
            f"--background {text}: not a colour; use {', '.join(BACKGROUNDS)} or #rrggbb"
        )
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def parse_light(text: str) -> tuple[float, float]:
    """Ambient and diffuse light of ``headlight``, ``soft``, ``flat`` or ``AMBIENT,DIFFUSE``.

    Two numbers of at least 0 whose sum is above 0 and at most 1: more would overexpose a surface
    seen face-on. Raises ``InputError`` for anything else.
    """
    if text.lower() in LIGHTS:
        return LIGHTS[text.lower()]
    try:
        ambient, diffuse = (float(number) for number in text.split(","))
    except ValueError:
        ambient = diffuse = math.nan
    if not (ambient >= 0 and diffuse >= 0 and 0 < ambient + diffuse <= 1 + 1e-9):
        raise InputError(
            f"--light {text}: not a light; use {', '.join(LIGHTS)} or AMBIENT,DIFFUSE, "
            "two numbers of at least 0 that add up to 1 at most"
        )
    return ambient, diffuse


def make_config(image_size: int, background: str, light: str) -> RenderConfig:
    """The settings that the options of a command say. Raises ``InputError``."""
    ambient, diffuse = parse_light(light)
    return RenderConfig(
        image_size=image_size,
        background=parse_background(background),
        ambient=ambient,
        diffuse=diffuse,
    )


class Renderer(Protocol):
    """Draws a normalised mesh from every camera."""

    @property
    def name(self) -> str:
        """Registry name."""

    @property
    def version(self) -> str:
        """Changes when the same input gives other bytes."""

    def render(self, mesh: Mesh, cameras: Cameras, config: RenderConfig) -> NDArray[np.uint8]:
        """(V, S, S, 4) uint8: sRGB already composited on the background, and coverage as alpha.

        The fourth channel is the object's coverage 0-255, for silhouettes and blank checks.
        """
