from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.augment import NEUTRAL, Augment, drop_points, rotations
from trainer.config import AugmentConfig

OFF: dict[str, Any] = {
    "drop_color": 0.0,
    "scale": (1.0, 1.0),
    "shift": 0.0,
    "rotate_sigma": 0.0,
    "yaw": False,
    "drop_points": 0.0,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clouds(batch: int = 8, points: int = 50) -> tuple[Tensor, Tensor]:
    """Clouds whose colour is a function of the position: rgb = (xyz + 1) / 2."""
    xyz = torch.rand(batch, points, 3, generator=seeded(9)) * 2 - 1
    return xyz, (xyz + 1) / 2


def test_drop_points__colour_moves_with_its_point() -> None:
    xyz, rgb = drop_points(*clouds(), 0.8, seeded())
    torch.testing.assert_close(rgb, (xyz + 1) / 2)


def test_drop_points__survivors_keep_their_order_and_the_tail_is_the_first_point() -> None:
    before, rgb = clouds()
    after, _ = drop_points(before, rgb, 0.8, seeded())
    assert not torch.equal(before, after)
    for old, new in zip(before, after, strict=True):
        places = [int((old == point).all(1).nonzero()[0, 0]) for point in new]
        kept = next((i for i in range(1, len(places)) if places[i] <= places[i - 1]), len(places))
        assert places[:kept] == sorted(set(places[:kept]))
        assert set(places[kept:]) <= {0}
        assert places[0] == 0


def test_drop_points__share_is_uniform_up_to_the_largest() -> None:
    xyz, rgb = clouds(400, 100)
    after, _ = drop_points(xyz, rgb, 0.5, seeded())
    first = (after == after[:, :1]).all(-1)
    share = (first.sum(1) - 1) / 100
    assert float(share.max()) < 0.65
    assert float(share.mean()) == pytest.approx(0.25, abs=0.03)


def test_drop_color__takes_whole_clouds_at_the_rate() -> None:
    xyz, rgb = clouds(400, 10)
    _, after = Augment(AugmentConfig(**{**OFF, "drop_color": 0.5}))(xyz, rgb, seeded())
    neutral = (after == NEUTRAL).flatten(1).all(1)
    untouched = (after == rgb).flatten(1).all(1)
    assert bool((neutral | untouched).all())
    assert float(neutral.float().mean()) == pytest.approx(0.5, abs=0.08)
    assert pytest.approx(0.4) == NEUTRAL


def test_rotations__are_proper() -> None:
    config = AugmentConfig(**{**OFF, "rotate_sigma": 0.06, "yaw": True})
    matrices = rotations(64, config, seeded())
    eye = torch.eye(3).expand(64, 3, 3)
    torch.testing.assert_close(matrices @ matrices.mT, eye, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(64))


def test_rotations__yaw_keeps_the_up_axis() -> None:
    matrices = rotations(32, AugmentConfig(**{**OFF, "yaw": True}), seeded())
    up = torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(matrices @ up, up.expand(32, 3))
    assert float(matrices[:, 0, 0].min()) < -0.5


def test_rotations__small_angles_are_clipped() -> None:
    config = AugmentConfig(**{**OFF, "rotate_sigma": 10.0, "rotate_clip": 0.01})
    matrices = rotations(32, config, seeded())
    assert float((matrices - torch.eye(3)).abs().max()) < 0.021


@pytest.mark.parametrize(
    "option",
    [
        {"drop_color": 1.0},
        {"scale": (0.5, 0.6)},
        {"shift": 0.1},
        {"rotate_sigma": 0.06},
        {"rotate_sigma": 0.06, "rotate_clip": 0.001},
        {"yaw": True},
        {"drop_points": 0.5},
    ],
    ids=str,
)
def test_augment__every_option_changes_the_clouds(option: dict[str, Any]) -> None:
    base = {**OFF, **({"rotate_sigma": 0.06} if "rotate_clip" in option else {})}
    xyz, rgb = clouds()
    before = torch.cat(Augment(AugmentConfig(**base))(xyz, rgb, seeded()))
    after = torch.cat(Augment(AugmentConfig(**{**base, **option}))(xyz, rgb, seeded()))
    assert not torch.allclose(before, after, atol=1e-4)


def test_augment__all_off_changes_nothing() -> None:
    xyz, rgb = clouds()
    after = Augment(AugmentConfig(**OFF))(xyz, rgb, seeded())
    assert torch.equal(after[0], xyz)
    assert torch.equal(after[1], rgb)


def test_augment__same_seed_same_clouds_and_inputs_untouched() -> None:
    xyz, rgb = clouds()
    copies = xyz.clone(), rgb.clone()
    augment = Augment(AugmentConfig())
    first, second = augment(xyz, rgb, seeded(3)), augment(xyz, rgb, seeded(3))
    other = augment(xyz, rgb, seeded(4))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(xyz, copies[0])
    assert torch.equal(rgb, copies[1])


def test_augment__scale_and_shift_stay_within_their_bounds() -> None:
    xyz = torch.zeros(200, 2, 3)
    xyz[:, 1, 0] = 1.0
    config = AugmentConfig(**{**OFF, "scale": (0.8, 1.25), "shift": 0.1})
    after, _ = Augment(config)(xyz, xyz, seeded())
    length = (after[:, 1] - after[:, 0]).norm(dim=1)
    assert float(length.min()) >= 0.8 - 1e-5
    assert float(length.max()) <= 1.25 + 1e-5
    assert float(after[:, 0].abs().max()) <= 0.1


def test_augment__a_part_of_a_batch_is_treated_as_in_the_whole() -> None:
    xyz, rgb = clouds()
    augment = Augment(AugmentConfig())
    whole = augment(xyz, rgb, seeded(5))
    for first, end in ((0, 2), (2, len(xyz))):
        part = augment(xyz[first:end], rgb[first:end], seeded(5), (first, len(xyz)))
        assert torch.equal(part[0], whole[0][first:end])
        assert torch.equal(part[1], whole[1][first:end])
