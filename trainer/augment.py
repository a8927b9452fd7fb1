"""Augmentation of training clouds, in batch, on the device, from one seeded generator.

Clouds are in farthest-point order and stay so: rotation, uniform scale and shift keep the order
valid; dropped points leave and the survivors move up in order, so that a prefix is still spread
over the shape. Colours always move with their points.

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


@dataclass
class Augment:
    """Callable that changes a batch as the recipe says."""

    config: AugmentConfig

    @torch.no_grad()
    def __call__(
        self, xyz_BN3: Tensor, rgb_BN3: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """New (xyz, rgb) of the same shapes; ``generator`` lives on the device of the clouds.

        ``xyz`` float32 unit sphere, ``rgb`` float32 [0, 1]. The inputs are not changed.
        """
        config = self.config
        if config.drop_points > 0:
            xyz_BN3, rgb_BN3 = drop_points(xyz_BN3, rgb_BN3, config.drop_points, generator)
        if config.drop_color > 0:
            rgb_BN3 = drop_color(rgb_BN3, config.drop_color, generator)
        if config.yaw or config.rotate_sigma > 0:
            xyz_BN3 = xyz_BN3 @ rotations(len(xyz_BN3), config, generator).mT
        if config.scale != (1.0, 1.0):
            low, high = config.scale
            xyz_BN3 = xyz_BN3 * _uniform((len(xyz_BN3), 1, 1), low, high, generator)
        if config.shift > 0:
            bound = config.shift
            xyz_BN3 = xyz_BN3 + _uniform((len(xyz_BN3), 1, 3), -bound, bound, generator)
        return xyz_BN3, rgb_BN3


def drop_points(
    xyz_BN3: Tensor, rgb_BN3: Tensor, largest: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Drop a share U(0, ``largest``) of each cloud's points.

    Survivors keep their order and move to the front; the places that become free at the end
    hold the first point and its colour, so the shape of the batch stays and a neighbourhood
    gains nothing but a duplicate. The first point always survives.
    """
    batch, n_points = xyz_BN3.shape[:2]
    share_B1 = _uniform((batch, 1), 0.0, largest, generator)
    drawn = torch.rand((batch, n_points), device=generator.device, generator=generator)
    dropped_BN = drawn < share_B1
    dropped_BN[:, 0] = False
    order_BN = dropped_BN.to(torch.uint8).argsort(dim=1, stable=True)
    kept_B1 = n_points - dropped_BN.sum(1, keepdim=True)
    place_N = torch.arange(n_points, device=xyz_BN3.device)
    order_BN = torch.where(place_N < kept_B1, order_BN, 0)
    index_BN3 = order_BN[:, :, None].expand(-1, -1, 3)
    return xyz_BN3.gather(1, index_BN3), rgb_BN3.gather(1, index_BN3)


def drop_color(rgb_BN3: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Give whole clouds the neutral colour of clouds without colour, 0.4, with a probability."""
    drawn = torch.rand((len(rgb_BN3), 1, 1), device=generator.device, generator=generator)
    return torch.where(drawn < probability, NEUTRAL, rgb_BN3)


def rotations(count: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """(count, 3, 3) proper rotations: small ones about x, y, z after a uniform yaw about +y."""
    device = generator.device
    angles = torch.zeros(count, 3, device=device)
    if config.rotate_sigma > 0:
        drawn = torch.randn(count, 3, device=device, generator=generator)
        angles = (drawn * config.rotate_sigma).clamp(-config.rotate_clip, config.rotate_clip)
    small = _axis(angles[:, 2], 2) @ _axis(angles[:, 1], 1) @ _axis(angles[:, 0], 0)
    if not config.yaw:
        return small
    return small @ _axis(_uniform((count,), 0.0, 2 * math.pi, generator), 1)


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


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(shape, device=generator.device, generator=generator)
    return drawn * (high - low) + low
