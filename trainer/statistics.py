"""Intervals and tests for a handful of runs: Student's t on means and on paired differences.

Runs of two arms with the same seed begin with the same weights and see the same batches and
augmentations, so they are compared pair by pair: what both share cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
ROUNDING = 1e-9  # relative spread below which values are equal


@dataclass(frozen=True)
class Interval:
    """A mean and its t-interval. ``low`` and ``high`` are NaN where nothing was seen to vary."""

    mean: float
    low: float
    high: float
    sd: float  # of the values, with n - 1; NaN for fewer than two
    n: int


@dataclass(frozen=True)
class Paired:
    """Mean difference of pairs, its t-interval and the two-sided p-value of no difference."""

    mean: float
    low: float
    high: float
    sd: float
    p: float  # NaN where nothing was seen to vary
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean of independent values +- t(n - 1) sd / sqrt(n).

    Student (1908). There is no interval for fewer than two values, nor for equal ones: shares of
    a few hundred objects agree by chance now and then, which is no proof that nothing varies.
    Raises ``ValueError`` for no values.

    >>> found = t_interval([1.0, 2.0, 3.0])
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
    (2.0, -0.484, 4.484)
    """
    from scipy.stats import t

    array = _finite(values)
    mean, n = float(array.mean()), len(array)
    if n < 2:
        return Interval(mean, math.nan, math.nan, math.nan, n)
    sd = float(array.std(ddof=1))
    if sd <= ROUNDING * float(np.abs(array).max()):
        return Interval(mean, math.nan, math.nan, 0.0, n)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, sd, n)


def paired_difference(
    values: Sequence[float], control: Sequence[float], confidence: float = CONFIDENCE
) -> Paired:
    """``t_interval`` of ``values`` - ``control``, pair by pair, with the paired t-test.

    Raises ``ValueError`` for unequal lengths and for no pairs.
    """
    from scipy.stats import t

    if len(values) != len(control):
        raise ValueError(f"{len(values)} values against {len(control)} of the control")
    found = t_interval((_finite(values) - _finite(control)).tolist(), confidence)
    if math.isnan(found.low):
        p = math.nan
    else:
        statistic = abs(found.mean) / (found.sd / math.sqrt(found.n))
        p = 2 * float(t.sf(statistic, found.n - 1))
    return Paired(found.mean, found.low, found.high, found.sd, p, found.n)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for testing all of them: Holm's step-down method (1979).

    With m hypotheses the k-th smallest becomes max over j <= k of (m - j + 1) p_(j), at most 1;
    calling those below alpha different keeps the chance of any false call below alpha. NaN (not
    tested) stays NaN and does not count.

    >>> [round(p, 6) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    tested = [place for place, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(tested, key=lambda place: p_values[place])):
        largest = max(largest, (len(tested) - rank) * p_values[place])
        adjusted[place] = min(1.0, largest)
    return adjusted


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if not len(array):
        raise ValueError("no values")
    if not np.isfinite(array).all():
        raise ValueError("values are not finite")
    return array
