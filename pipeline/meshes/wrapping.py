"""Clamped and mirrored textures as repeating ones: renderers and the point sampler know no others.

A mirrored image becomes two periods, itself and its mirror image; a clamped one is continued with
its border as far as the coordinates go. The coordinates are moved to match.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from pipeline.meshes.parts import F64, I64, Limits, Part, Surface, Wrap
from pipeline.scene import U8

_PERIODS = 32.0  # on either side of a clamped image: coordinates further out are moved to here
_Reach = tuple[float, float]


@dataclass(frozen=True)
class _Axis:
    """How an axis of an image is continued, in steps; a whole number of them is the image."""

    mode: Wrap
    steps: int = 1
    before: int = 0
    after: int = 0

    def moved(self, at: F64) -> F64:
        """Coordinates of the image as those of the continued one."""
        if self.mode == "clamp":
            at = np.clip(at, -_PERIODS, 1 + _PERIODS)
        return (at * self.steps + self.before) / (self.before + self.steps + self.after)

    def texels(self, size: int) -> I64:
        """Which texel of an image of ``size`` each texel of the continued one shows."""
        each = size // self.steps
        at = np.arange(-self.before * each, size + self.after * each)
        if self.mode == "clamp":
            return np.clip(at, 0, size - 1)
        return np.where(at < size, at, 2 * size - 1 - at)  # before and between are no texels


def repeating(parts: Sequence[Part], limits: Limits) -> list[Part]:
    """Parts that look, with textures that repeat, as their surfaces' ``wrap`` says.

    Where the coordinates stay within [0, 1], nothing changes. A continued image is reduced by a
    whole factor to sides of about twice ``limits.max_texture_side`` at most.
    """
    result = list(parts)
    groups: dict[object, list[int]] = {}
    for index, part in enumerate(parts):
        material, wrap = part.surface.material, part.surface.wrap
        if part.uv is not None and len(part.uv) and wrap != ("repeat", "repeat"):
            # One image each, however many materials and parts show it.
            key = (id(material.texture), id(material.emissive_texture), wrap)
            groups.setdefault(key, []).append(index)
    for members in groups.values():
        surface = parts[members[0]].surface
        shown = (surface.material.texture, surface.material.emissive_texture)
        places = [_flipped(np.asarray(parts[index].uv, np.float64)) for index in members]
        low = np.min([at.min(axis=0) for at in places], axis=0)
        high = np.max([at.max(axis=0) for at in places], axis=0)
        reaches = [
            _reach(mode, float(low[axis]), float(high[axis]), shown, axis)
            for axis, mode in enumerate(surface.wrap)
        ]
        if reaches == [None, None]:
            continue
        images = [None if image is None else _reduced(image, reaches, limits) for image in shown]
        across, down = (
            _axis(mode, reaches[axis], images, axis) for axis, mode in enumerate(surface.wrap)
        )
        texture, glow = (
            None
            if image is None
            else image[np.ix_(down.texels(image.shape[0]), across.texels(image.shape[1]))]
            for image in images
        )
        for index, at in zip(members, places, strict=True):
            own = parts[index].surface
            material = replace(own.material, texture=texture, emissive_texture=glow)
            moved = np.stack([across.moved(at[:, 0]), down.moved(at[:, 1])], axis=1)
            result[index] = replace(
                parts[index], surface=Surface(material, own.explicit), uv=_flipped(moved)
            )
    return result


def _flipped(uv: F64) -> F64:
    """Coordinates with the origin at the bottom left as those from the top left, or back."""
    return np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1)


def _sizes(images: Sequence[U8 | None], axis: int) -> list[int]:
    return [image.shape[1 - axis] for image in images if image is not None]


def _reach(
    mode: Wrap, low: float, high: float, images: Sequence[U8 | None], axis: int
) -> _Reach | None:
    """From where to where an image must go on, in periods; None where it may stay as it is."""
    margin = 0.5 / max(_sizes(images, axis), default=1)  # there, neighbours are mixed in any case
    if mode == "repeat" or (low >= -margin and high <= 1 + margin):
        return None
    if mode == "mirror":
        return 0.0, 2.0
    return max(min(low, 0.0), -_PERIODS), min(max(high, 1.0), 1 + _PERIODS)


def _reduced(image: U8, reaches: Sequence[_Reach | None], limits: Limits) -> U8:
    """An image that does not grow too large when it goes on so far."""
    factors = [1, 1]
    for axis, reach in enumerate(reaches):
        if reach is not None:
            side = image.shape[1 - axis] * (reach[1] - reach[0])
            factors[axis] = min(
                math.ceil(side / (2 * limits.max_texture_side)), image.shape[1 - axis]
            )
    if factors == [1, 1]:
        return image
    return np.asarray(Image.fromarray(image).reduce((factors[0], factors[1])), np.uint8)


def _axis(mode: Wrap, reach: _Reach | None, images: Sequence[U8 | None], axis: int) -> _Axis:
    if reach is None:
        return _Axis("repeat")
    if mode == "mirror":
        return _Axis(mode, after=1)
    # Images of one surface share its coordinates, so they go on equally far: by whole texels of
    # each, and one more, which is mixed with what comes after it.
    steps = math.gcd(*_sizes(images, axis))
    return _Axis(
        mode,
        steps,
        math.ceil(-reach[0] * steps) + 1,
        math.ceil((reach[1] - 1) * steps) + 1,
    )
