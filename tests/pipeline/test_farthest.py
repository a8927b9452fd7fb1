from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import farthest
from pipeline.farthest import farthest_points

RNG = np.random.default_rng(0)
GRID = np.stack(np.meshgrid(*[np.arange(11.0)] * 3), axis=-1).reshape(-1, 3)
CLOUDS = {
    "ball": RNG.normal(size=(3001, 3)),
    "rod": RNG.normal(size=(2048, 3)) * [1, 0.01, 0],
    "two far clusters": RNG.normal(size=(1500, 3)) * 0.01 + RNG.integers(0, 2, (1500, 1)) * 9,
    "many ties": GRID,
    "few distinct points": RNG.random((7, 3))[RNG.integers(0, 7, 900)],
    "one place": np.ones((600, 3)),
    "fewer than a bucket": RNG.random((100, 3)),
    "three": RNG.random((3, 3)),
}


def check(xyz: NDArray[np.float32], found: NDArray[np.int64], start: int) -> None:
    """Against the obvious version, exact in float32: no point that is left is farther."""
    assert found[0] == start
    assert len(set(found.tolist())) == len(found)
    nearest = np.full(len(xyz), np.float32(np.inf))
    left = np.ones(len(xyz), np.bool_)
    for last, taken in pairwise(found):
        x, y, z = (xyz - xyz[last]).T
        nearest = np.minimum(nearest, x * x + y * y + z * z)
        left[last] = False
        assert nearest[taken] == nearest[left].max()


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_farthest_points__each_is_farthest_from_those_before_it(name: str, share: float) -> None:
    xyz = CLOUDS[name].astype(np.float32)
    count = max(1, int(share * len(xyz)))
    for start in (0, len(xyz) // 2, len(xyz) - 1):
        found = farthest_points(xyz, count, start)
        assert found.shape == (count,)
        check(xyz, found, start)


def test_farthest_points__size_of_the_buckets_does_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    xyz = CLOUDS["ball"].astype(np.float32)
    wanted = farthest_points(xyz, 1000, 7).tolist()
    for size in (1, 20, 10**6):
        monkeypatch.setattr(farthest, "_BUCKET", size)
        assert farthest_points(xyz, 1000, 7).tolist() == wanted


def test_farthest_points__memory_order_and_precision_of_the_input_do_not_matter() -> None:
    xyz = CLOUDS["ball"].astype(np.float32)
    wanted = farthest_points(xyz, 500, 7).tolist()
    doubled: Any = xyz.astype(np.float64)
    for same in (np.asfortranarray(xyz), doubled, xyz[::-1].copy()[::-1]):
        assert farthest_points(same, 500, 7).tolist() == wanted


@pytest.mark.parametrize("count", [0, 4])
def test_farthest_points__more_than_there_are_or_none(count: int) -> None:
    with pytest.raises(ValueError, match=f"a sample of {count} of 3 points"):
        farthest_points(CLOUDS["three"].astype(np.float32), count, 0)
