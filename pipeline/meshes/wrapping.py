"""Clamped and mirrored textures as repeating ones: renderers and the point sampler know no others.

A mirrored image becomes two periods, itself and its mirror image; a clamped one is continued with
its border as far as the coordinates go. The coordinates are moved to match. Faces that stay within
the image keep it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.meshes.parts import F64, I64, Limits, Part, Surface, Wrap
from pipeline.scene import U8

_PERIODS = 32.0  # on either side of a clamped image: coordinates further out are moved to here
_Reach = tuple[float, float]


@dataclass(frozen=True)
class _Axis:
    """How an axis of an image of ``size`` texels is continued, by so many texels."""

    mode: Wrap
    size: int
    before: int = 0
    after: int = 0

    def moved(self, at: F64) -> F64:
        """Coordinates of the image as those of the continued one."""
        if self.mode == "clamp":
            at = np.clip(at, -_PERIODS, 1 + _PERIODS)
        return (at * self.size + self.before) / (self.before + self.size + self.after)

    def texels(self) -> I64:
        """Which texel of the image each texel of the continued one shows."""
        at = np.arange(-self.before, self.size + self.after)
        if self.mode == "clamp":
            return np.clip(at, 0, self.size - 1)
        return np.where(at < self.size, at, 2 * self.size - 1 - at)


def repeating(parts: Sequence[Part], limits: Limits) -> list[Part]:
    """Parts that look, with textures that repeat, as their surfaces' ``wrap`` says.

    Parts with coordinates within and outside of [0, 1] become two. A continued image is reduced by
    a whole factor to sides of about twice ``limits.max_texture_side`` at most.
    """
    result: list[Part] = []
    groups: dict[object, list[int]] = {}
    for part in parts:
        material, wrap = part.surface.material, part.surface.wrap
        outside = _outside(part)
        if not outside.any():
            result.append(part)
            continue
        if not outside.all():
            result.append(_some(part, ~outside))
        # One image each, however many materials and parts show it.
        key = (id(material.texture), id(material.emissive_texture), wrap)
        groups.setdefault(key, []).append(len(result))
        result.append(part if outside.all() else _some(part, outside))
    for members in groups.values():
        for index, part in zip(
            members, _continued([result[i] for i in members], limits), strict=True
        ):
            result[index] = part
    return result


def _images(part: Part) -> list[U8 | None]:
    return [part.surface.material.texture, part.surface.material.emissive_texture]


def _outside(part: Part) -> NDArray[np.bool_]:
    """(F,) which faces show what lies beyond the edge of a clamped or mirrored image."""
    found = np.zeros(len(part.faces), np.bool_)
    shown = [image for image in _images(part) if image is not None]
    if part.uv is None or not shown:
        return found
    for axis, mode in enumerate(part.surface.wrap):
        if mode != "repeat":
            # There, the two ends of an image are mixed in any case.
            margin = 0.5 / max(image.shape[1 - axis] for image in shown)
            beyond = (part.uv[:, axis] < -margin) | (part.uv[:, axis] > 1 + margin)
            found |= beyond[part.faces].any(axis=1)
    return found


def _some(part: Part, chosen: NDArray[np.bool_]) -> Part:
    """A part with some of its faces and their vertices."""
    rows, faces = np.unique(part.faces[chosen], return_inverse=True)
    return replace(
        part,
        vertices=part.vertices[rows],
        faces=faces.reshape(-1, 3),
        normals=None if part.normals is None else part.normals[rows],
        uv=None if part.uv is None else part.uv[rows],
        color=None if part.color is None else part.color[rows],
    )


def _continued(parts: Sequence[Part], limits: Limits) -> list[Part]:
    """Parts of the same images, with these continued as far as any part needs."""
    surface = parts[0].surface
    places = [_flipped(np.asarray(part.uv, np.float64)) for part in parts]
    low = np.min([at.min(axis=0) for at in places], axis=0)
    high = np.max([at.max(axis=0) for at in places], axis=0)
    reaches = [
        _reach(mode, float(low[axis]), float(high[axis])) for axis, mode in enumerate(surface.wrap)
    ]
    images = [image for image in _images(parts[0]) if image is not None]
    width, height = (
        _reduced(max(image.shape[1 - axis] for image in images), reach, limits)
        for axis, reach in enumerate(reaches)
    )
    across, down = (
        _axis(mode, reach, count)
        for mode, reach, count in zip(surface.wrap, reaches, (width, height), strict=True)
    )
    texture, glow = (
        None
        if image is None
        else _resized(image, (width, height))[np.ix_(down.texels(), across.texels())]
        for image in _images(parts[0])
    )
    found = []
    for part, at in zip(parts, places, strict=True):
        material = replace(part.surface.material, texture=texture, emissive_texture=glow)
        moved = np.stack([across.moved(at[:, 0]), down.moved(at[:, 1])], axis=1)
        found.append(
            replace(part, surface=Surface(material, part.surface.explicit), uv=_flipped(moved))
        )
    return found


def _flipped(uv: F64) -> F64:
    """Coordinates with the origin at the bottom left as those from the top left, or back."""
    return np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1)


def _reach(mode: Wrap, low: float, high: float) -> _Reach:
    """From where to where an image must go on, in periods."""
    if mode == "repeat":
        return 0.0, 1.0
    if mode == "mirror":
        return 0.0, 2.0
    return max(min(low, 0.0), -_PERIODS), min(max(high, 1.0), 1 + _PERIODS)


def _reduced(size: int, reach: _Reach, limits: Limits) -> int:
    """The side of an image, reduced by a whole factor where it would grow too large."""
    factor = math.ceil(size * (reach[1] - reach[0]) / (2 * limits.max_texture_side))
    return math.ceil(size / factor)


def _resized(image: U8, size: tuple[int, int]) -> U8:
    """An image at (width, height). Images of one surface share coordinates, and so the size."""
    shape = (image.shape[1], image.shape[0])
    if shape == size:
        return image
    smaller = any(have > want for have, want in zip(shape, size, strict=True))
    kind = Image.Resampling.BOX if smaller else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image).resize(size, kind), np.uint8)


def _axis(mode: Wrap, reach: _Reach, size: int) -> _Axis:
    if mode == "mirror":
        return _Axis(mode, size, after=size)
    if reach == (0.0, 1.0):
        return _Axis("repeat", size)
    # One more, which is mixed with what comes after it.
    before, after = (math.ceil(beyond * size) + 1 for beyond in (-reach[0], reach[1] - 1))
    return _Axis(mode, size, before, after)
