"""Augmentation of training clouds, in batch, on the device, from one seeded generator.

Clouds are in farthest-point order and stay so: rotation, uniform scale and shift keep the order
valid; dropped points leave and the survivors move up in order, so that a prefix is still spread
over the shape. Colours always move with their points.

A process that has a part of a batch draws for the whole of it and takes its own: what happens to a
cloud does not depend on the number of processes.

Shape suffixes: B clouds, N points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.shards import NEUTRAL_RGB
from trainer.config import AugmentConfig

NEUTRAL = NEUTRAL_RGB / 255  # 0.4

Part = tuple[int, int]  # clouds before those given, and clouds of the whole batch


@dataclass
class Augment:
    """Callable that changes a batch as the recipe says."""

    config: AugmentConfig

    @torch.no_grad()
    def __call__(
        self,
        xyz_BN3: Tensor,
        rgb_BN3: Tensor,
        generator: torch.Generator,
        part: Part | None = None,
    ) -> tuple[Tensor, Tensor]:
        """New (xyz, rgb) of the same shapes; ``generator`` lives on the device of the clouds.

        ``xyz`` float32 unit sphere, ``rgb`` float32 [0, 1]. The inputs are not changed.
        """
        config = self.config
        if config.drop_points > 0:
            xyz_BN3, rgb_BN3 = drop_points(xyz_BN3, rgb_BN3, config.drop_points, generator, part)
        if config.drop_color > 0:
            rgb_BN3 = drop_color(rgb_BN3, config.drop_color, generator, part)
        if config.yaw or config.rotate_sigma > 0:
            xyz_BN3 = xyz_BN3 @ rotations(len(xyz_BN3), config, generator, part).mT
        if config.scale != (1.0, 1.0):
            low, high = config.scale
            xyz_BN3 = xyz_BN3 * _uniform((len(xyz_BN3), 1, 1), low, high, generator, part)
        if config.shift > 0:
            bound = config.shift
            shape = (len(xyz_BN3), 1, 3)
            xyz_BN3 = xyz_BN3 + _uniform(shape, -bound, bound, generator, part)
        return xyz_BN3, rgb_BN3


def drop_points(
    xyz_BN3: Tensor,
    rgb_BN3: Tensor,
    largest: float,
    generator: torch.Generator,
    part: Part | None = None,
) -> tuple[Tensor, Tensor]:
    """Drop a share U(0, ``largest``) of each cloud's points.

    Survivors keep their order and move to the front; the places that become free at the end
    hold the first point and its colour, so the shape of the batch stays. A ball that holds it gains
    nothing but duplicates; of the nearest neighbours of a point close to it they take places (with
    ``largest`` 0.875 in 1.6 % of the neighbourhoods, the first centroid's always). The first point
    always survives.
    """
    batch, n_points = xyz_BN3.shape[:2]
    share_B1 = _uniform((batch, 1), 0.0, largest, generator, part)
    drawn = _uniform((batch, n_points), 0.0, 1.0, generator, part)
    dropped_BN = drawn < share_B1
    dropped_BN[:, 0] = False
    order_BN = dropped_BN.to(torch.uint8).argsort(dim=1, stable=True)
    kept_B1 = n_points - dropped_BN.sum(1, keepdim=True)
    place_N = torch.arange(n_points, device=xyz_BN3.device)
    order_BN = torch.where(place_N < kept_B1, order_BN, 0)
    index_BN3 = order_BN[:, :, None].expand(-1, -1, 3)
    return xyz_BN3.gather(1, index_BN3), rgb_BN3.gather(1, index_BN3)


def drop_color(
    rgb_BN3: Tensor, probability: float, generator: torch.Generator, part: Part | None = None
) -> Tensor:
    """Give whole clouds the neutral colour of clouds without colour, 0.4, with a probability."""
    drawn = _uniform((len(rgb_BN3), 1, 1), 0.0, 1.0, generator, part)
    return torch.where(drawn < probability, NEUTRAL, rgb_BN3)


def rotations(
    count: int, config: AugmentConfig, generator: torch.Generator, part: Part | None = None
) -> Tensor:
    """(count, 3, 3) proper rotations: small ones about x, y, z after a uniform yaw about +y."""
    device = generator.device
    angles = torch.zeros(count, 3, device=device)
    if config.rotate_sigma > 0:
        first, total = part or (0, count)
        drawn = torch.randn(total, 3, device=device, generator=generator)[first : first + count]
        angles = (drawn * config.rotate_sigma).clamp(-config.rotate_clip, config.rotate_clip)
    small = _axis(angles[:, 2], 2) @ _axis(angles[:, 1], 1) @ _axis(angles[:, 0], 0)
    if not config.yaw:
        return small
    return small @ _axis(_uniform((count,), 0.0, 2 * math.pi, generator, part), 1)


def _axis(angle_B: Tensor, axis: int) -> Tensor:
    """(B, 3, 3) rotations about one axis, right-handed, radians."""
    cosine, sine = angle_B.cos(), angle_B.sin()
    first, second = (axis + 1) % 3, (axis + 2) % 3
    out = torch.zeros(len(angle_B), 3, 3, device=angle_B.device)
    out[:, axis, axis] = 1
    out[:, first, first] = out[:, second, second] = cosine
    out[:, first, second] = -sine
    out[:, second, first] = sine
    return out


def _uniform(
    shape: tuple[int, ...],
    low: float,
    high: float,
    generator: torch.Generator,
    part: Part | None = None,
) -> Tensor:
    first, total = part or (0, shape[0])
    whole = (total, *shape[1:])
    drawn = torch.rand(whole, device=generator.device, generator=generator)
    return drawn[first : first + shape[0]] * (high - low) + low
