"""What the values of a row group must be, as plain functions on arrays.

Each gives the rows that break one rule, as (row, what is wrong).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.tables import SPLITS
from pipeline.shards import NEUTRAL_RGB, POINT_SCALE

Wrong = Iterator[tuple[int, str]]

NORM_TOLERANCE = 1e-2  # as writers ask for
PREFIX = 64  # leading points of every object whose spacing is looked at
# Coordinates are rounded by half a step each, so that a distance is off by up to sqrt(3) steps on
# either side of a comparison. In steps.
ORDER_TOLERANCE = 2 * 3**0.5


def wrong_norms(embeds: NDArray[np.float16], owner: NDArray[np.int64]) -> Wrong:
    """Rows with an embedding that is not finite or not of length 1; ``owner`` tells whose it is."""
    values = embeds.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(values, axis=-1)
    bad = ~(np.abs(norms - 1) < NORM_TOLERANCE)
    for row in np.unique(owner[bad]):
        norm = norms[bad & (owner == row)][0]
        what = f"norm {norm:.4g}" if np.isfinite(norm) else "not finite"
        yield int(row), f"an embedding is not a unit vector ({what})"


def wrong_range(xyz: NDArray[np.int16]) -> Wrong:
    """Clouds (B, N, 3) with a coordinate below -1, or whose points all coincide."""
    for row in np.flatnonzero((xyz < -POINT_SCALE).any(axis=(1, 2))):
        yield int(row), "a coordinate is below -1"
    for row in np.flatnonzero((xyz == xyz[:, :1]).all(axis=(1, 2))):
        yield int(row), "all points coincide"


def wrong_neutral(rgb: NDArray[np.uint8], has_color: NDArray[np.bool_]) -> Wrong:
    """Clouds without colour whose points are not the neutral grey."""
    for row in np.flatnonzero((rgb != NEUTRAL_RGB).any(axis=(1, 2)) & ~has_color):
        yield int(row), f"has_color is false, and not every point is {NEUTRAL_RGB}"


def wrong_counts(
    texts: Iterable[Sequence[str | None]],
    sources: Iterable[Sequence[str | None]],
    embeds: NDArray[np.int64],
) -> Wrong:
    """Rows whose texts, their sources and their embeddings (numbers of them) are not as many."""
    for row, (own, kinds, count) in enumerate(zip(texts, sources, embeds.tolist(), strict=True)):
        if not len(own) == len(kinds) == count:
            yield row, f"{len(own)} texts, {len(kinds)} sources, {count} embeddings"
        if None in own or None in kinds:
            yield row, "a text or its source is null"


def wrong_splits(splits: Iterable[str | None]) -> Wrong:
    """Rows of a split that the contract has not: nobody trains or measures on them."""
    for row, split in enumerate(splits):
        if split is not None and split not in SPLITS:
            yield (
                row,
                f"the split {split[:40]!r} is none of {', '.join(SPLITS)}: `pipeline split` makes "
                "new ones",
            )


def wrong_prefix(xyz: NDArray[np.int16], n_fps: int) -> Wrong:
    """Clouds (B, N, 3) whose leading points get farther from the ones before: no such order.

    In farthest-point order the distance of each point to those before it never grows. Necessary,
    and cheap: the first ``PREFIX`` points alone.
    """
    count = min(PREFIX, n_fps)
    if count < 3:
        return
    points = xyz[:, :count].astype(np.float32)
    apart = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)  # (B, n, n)
    apart[:, np.triu(np.ones((count, count), np.bool_))] = np.inf  # only those before
    gaps = apart.min(axis=2)[:, 1:]
    grows = (np.diff(gaps, axis=1) > ORDER_TOLERANCE).any(axis=1)
    for row in np.flatnonzero(grows):
        at = int(np.argmax(np.diff(gaps[row]) > ORDER_TOLERANCE)) + 2
        yield int(row), f"point {at} is farther from those before it than point {at - 1}"


def first_out_of_order(xyz: NDArray[np.int16], n_fps: int) -> int | None:
    """The first point of a cloud (N, 3) that is not the farthest from those before it, or None.

    The order is followed as it stands: at each step the stored point must be as far from the
    chosen ones as any other, but for the rounding of coordinates.
    """
    axes = np.ascontiguousarray(xyz.T, np.float32)  # one after another: three times as fast
    squared = np.full(len(xyz), np.inf, np.float32)
    apart = np.empty_like(axes)
    for at in range(n_fps):
        own, farthest = float(squared[at]), float(squared.max())
        if own < farthest and np.sqrt(own) < np.sqrt(farthest) - ORDER_TOLERANCE:
            return at
        np.subtract(axes, axes[:, at : at + 1], out=apart)
        apart *= apart
        np.minimum(squared, apart[0] + apart[1] + apart[2], out=squared)
    return None
