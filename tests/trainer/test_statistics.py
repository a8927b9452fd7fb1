from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from trainer.statistics import Paired, holm, paired_difference, t_interval

# Gosset's own example: extra hours of sleep by two drugs in ten patients (Student 1908, Cushny
# and Peebles 1905). Mean difference 1.58, t = 4.062, p = 0.00283, interval 0.70 to 2.46.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_paired_difference__gossets_sleep_data_give_his_numbers() -> None:
    found = paired_difference(SECOND, FIRST)
    assert found.mean == pytest.approx(1.58)
    assert found.p == pytest.approx(0.00283, abs=5e-6)
    assert [found.low, found.high] == pytest.approx([0.7001, 2.4599], abs=1e-4)
    assert found.excludes_zero


def test_t_interval__by_hand_with_a_quantile_from_tables() -> None:
    # t(0.975, 4) = 2.776; sd of 1..5 is sqrt(2.5).
    found = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.high - found.mean == pytest.approx(2.776 * math.sqrt(2.5 / 5), abs=1e-3)
    assert found.sd == pytest.approx(math.sqrt(2.5))


@given(st.integers(2, 12), st.integers(0, 1000))
def test_paired_difference__agrees_with_scipy(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0.3, 1, n), rng.normal(0, 1, n)
    found = paired_difference(a.tolist(), b.tolist(), 0.9)
    oracle = scipy.stats.ttest_rel(a, b)
    interval = oracle.confidence_interval(0.9)
    assert found.p == pytest.approx(oracle.pvalue)
    assert [found.low, found.high] == pytest.approx([interval.low, interval.high])


def test_t_interval__covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(1000):
        found = t_interval(rng.normal(2, 1, 5).tolist())
        hits += found.low <= 2 <= found.high
    assert 0.93 <= hits / 1000 <= 0.97


def test_paired_difference__pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 10, 5)
    control, arm = shared + rng.normal(0, 0.1, 5), shared + 1 + rng.normal(0, 0.1, 5)
    assert paired_difference(arm.tolist(), control.tolist()).excludes_zero
    assert not paired_difference(rng.permutation(arm).tolist(), control.tolist()).excludes_zero


def test_paired_difference__one_pair_has_a_mean_and_no_interval() -> None:
    found = paired_difference([0.5], [0.25])
    assert found.mean == 0.25
    assert all(math.isnan(value) for value in (found.low, found.high, found.p))
    assert not found.excludes_zero


@pytest.mark.parametrize("control", [[0.1, 0.2, 0.3], [0.0, 0.1, 0.2]])
def test_paired_difference__equal_differences_are_no_proof(control: list[float]) -> None:
    # In binary the second differences are not quite equal: rounding must not count as spread.
    found = paired_difference([0.1, 0.2, 0.3], control)
    assert found.mean == pytest.approx(0.1 - control[0])
    assert math.isnan(found.p)
    assert math.isnan(found.low)
    assert not found.excludes_zero


@pytest.mark.parametrize(
    ("values", "control"), [([], []), ([1.0], [1.0, 2.0]), ([math.nan, 1.0], [0.0, 0.0])]
)
def test_paired_difference__unusable_values_are_an_error(
    values: list[float], control: list[float]
) -> None:
    with pytest.raises(ValueError):
        paired_difference(values, control)


def test_holm__example_of_the_literature() -> None:
    # R: p.adjust(c(.01, .02, .03, .04, .05), "holm") and the order is kept.
    assert holm([0.05, 0.01, 0.03, 0.02, 0.04]) == pytest.approx([0.09, 0.05, 0.09, 0.08, 0.09])


def test_holm__never_below_the_raw_value_nor_above_bonferroni() -> None:
    values = np.random.default_rng(1).random(20).tolist()
    for raw, adjusted in zip(values, holm(values), strict=True):
        assert raw <= adjusted <= min(1.0, 20 * raw) + 1e-12


def test_holm__agrees_with_the_closed_test_of_bonferronis() -> None:
    """Holm is the closure of Bonferroni: reject H if every set holding it is rejected."""
    from itertools import combinations

    values = [0.004, 0.013, 0.02, 0.3]
    places = range(len(values))
    for place in places:
        sets = [
            group for size in range(1, 5) for group in combinations(places, size) if place in group
        ]
        closed = max(min(1.0, len(group) * min(values[i] for i in group)) for group in sets)
        assert holm(values)[place] == pytest.approx(closed)


def test_holm__what_was_not_tested_does_not_count() -> None:
    found = holm([0.02, math.nan, 0.5])
    assert found[0] == pytest.approx(0.04)
    assert math.isnan(found[1])
    assert holm([]) == []


def test_t_interval__equal_is_relative_to_the_values() -> None:
    assert np.isnan(t_interval([1e8, 1e8 * (1 + 1e-15), 1e8]).low)
    assert t_interval([1e-10, 2e-10, 3e-10]).low < 2e-10


def test_paired__an_interval_that_ends_at_zero_does_not_exclude_it() -> None:
    assert not Paired(1.0, 0.0, 2.0, 1.0, 0.05, 4).excludes_zero
    assert not Paired(-1.0, -2.0, 0.0, 1.0, 0.05, 4).excludes_zero
