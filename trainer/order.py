"""The order in which training rows come up, as arithmetic on numbers: no file is touched.

Everything is a function of (seed, epoch), and the same for any number of processes: these share
out every batch among themselves.

An epoch is cut into batches whose sizes differ by one row at most, none larger than asked for. A
row of a set of weight 1 comes up once. A set of weight w brings w times its rows, each of them
floor(w) or ceil(w) times, and over the epochs all equally often (exactly so after any epoch, to
one time): with weight 0.5 half of the rows in one epoch and the other half in the next. The times
that a row comes up in an epoch are spread over it, and no batch holds a row twice unless the set
is too small for that.

Shuffling is that of row groups, which are read as a whole: the groups are permuted and taken some
at a time, a *window*, and the rows of a window are mixed. Within a window groups are dealt out to
*lanes*. Every batch takes of all lanes in proportion and lists its rows lane by lane, so a process
that has a part of every batch needs a part of the groups only.

Where objects that are alike are to stand next to one another, the rows of a window are put into
groups of such instead of mixed, and the groups are mixed (``near_order``). A batch is then not of
all lanes in proportion, and a process needs more of the groups.

An *occurrence* is a row and how many times it came up before in the epoch:
number = row + times * (number of rows). Random choices are made per occurrence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.common import InputError

IntArray = NDArray[np.int64]

LANES = 8
NEAR_SCALE = 2048  # length of the vectors that tell what is alike: float32 has their products exact
NEAR_SEEDS = 64  # groups whose similarities are computed at a time
_TURNS = 15_485_863  # seeds of which rows have their turn in sets of fractional weight


@dataclass(frozen=True)
class Epoch:
    """Order of one epoch: arrays over its places, batch after batch."""

    occurrence: IntArray
    n_rows: int  # of the corpus
    window: IntArray
    lane: IntArray
    bounds: IntArray  # (steps + 1,) first place of every batch
    group: IntArray  # row groups in the order of windows; one may come up several times
    window_start: IntArray  # (windows + 1,) into ``group``

    @property
    def row(self) -> IntArray:
        """Global row number at every place."""
        return self.occurrence % self.n_rows

    @property
    def times(self) -> int:
        """How often a row comes up at most."""
        return int(self.occurrence.max(initial=0)) // self.n_rows + 1

    def part(self, batch: int, rank: int, world: int) -> slice:
        """Places of a process in a batch; their numbers differ by one at most."""
        first, end = int(self.bounds[batch]), int(self.bounds[batch + 1])
        size = end - first
        return slice(first + size * rank // world, first + size * (rank + 1) // world)

    def groups(self, window: int, lane: int) -> IntArray:
        """Row groups of a lane of a window, each once."""
        first, end = self.window_start[window], self.window_start[window + 1]
        return np.unique(self.group[first:end][lane::LANES])


class Order:
    """The order of all epochs of a run."""

    def __init__(
        self,
        starts: IntArray,
        sizes: IntArray,
        sources: IntArray,
        mask: NDArray[np.bool_],
        *,
        weights: Sequence[float] = (),
        seed: int,
        batch_size: int,
        window: int,
        near: int = 1,
        vectors: NDArray[np.int16] | None = None,
    ) -> None:
        """``starts``, ``sizes`` and ``sources``: first row, rows and shard set of every row group.

        ``mask``: over all rows, those to train on. ``weights``: of every shard set; () is 1 for
        all. ``window``: row groups read together. ``vectors``: over all rows, by which ``near`` of
        them at a time are alike (``trainer.near``) from epoch ``near_from`` on; None: all are drawn
        at random.
        """
        self.starts, self.sizes, self.sources, self.mask = starts, sizes, sources, mask
        self.seed, self.batch_size, self.window = seed, batch_size, window
        self.near, self.near_from, self.vectors = near, 0, vectors
        n_sources = int(sources.max(initial=-1)) + 1
        source_of_row = np.repeat(sources, sizes)
        self.rows = [np.flatnonzero(mask & (source_of_row == s)) for s in range(n_sources)]
        # Whole rows an epoch, so that all epochs are of equal length.
        self.quota = [
            round((weights[source] if weights else 1.0) * len(rows))
            for source, rows in enumerate(self.rows)
        ]
        self.rows_per_epoch = sum(self.quota)
        self.steps = -(-self.rows_per_epoch // batch_size)

    @property
    def smallest_batch(self) -> int:
        """Rows of the smallest batch."""
        return self.rows_per_epoch // max(self.steps, 1)

    def bounds(self) -> IntArray:
        """(steps + 1,) first place of every batch of an epoch."""
        return np.arange(self.steps + 1, dtype=np.int64) * self.rows_per_epoch // self.steps

    def rows_until(self, step: int) -> int:
        """Rows of the first ``step`` batches of a run."""
        epochs, rest = divmod(step, self.steps)
        return epochs * self.rows_per_epoch + int(self.bounds()[rest])

    def require(self, world: int) -> None:
        """Raise ``InputError`` when a batch has not a row for each of ``world`` processes."""
        if self.smallest_batch < world:
            raise InputError(
                f"--workers {world}: more than the {self.smallest_batch} rows of a batch; "
                "give fewer, or raise data.batch_size"
            )

    def counts(self, epoch: int) -> IntArray:
        """How often each row comes up in an epoch, over all rows."""
        found = np.zeros(len(self.mask), np.int64)
        for source, (rows, quota) in enumerate(zip(self.rows, self.quota, strict=True)):
            size = len(rows)
            if quota == size:
                found[rows] = 1
            elif size:
                # Sum over k of floor((q + k) / n) is q: the turns of an epoch add up to the quota.
                turn = np.random.default_rng([self.seed, _TURNS, source]).permutation(size)
                found[rows] = (quota * (epoch + 1) + turn) // size - (quota * epoch + turn) // size
        return found

    def epoch(self, number: int, stopped: Callable[[], bool] = lambda: False) -> Epoch:
        """The order of one epoch, from 0. Raises ``CancelledError`` once it is ``stopped``."""
        rng = np.random.default_rng([self.seed, number])
        counts = self.counts(number)
        passes = np.array(
            [-(-q // max(len(rows), 1)) for q, rows in zip(self.quota, self.rows, strict=True)],
            np.int64,
        )[self.sources]
        # A group stands once for each pass over it, somewhere in that share of the epoch.
        group = np.repeat(np.arange(len(self.starts)), passes)
        turn = _within(passes)
        order = np.argsort((turn + rng.random(len(group))) / passes[group], kind="stable")
        group, turn = group[order], turn[order]

        item = np.repeat(np.arange(len(group)), self.sizes[group])
        row = self.starts[group][item] + _within(self.sizes[group])
        kept = counts[row] > turn[item]
        row, item = row[kept], item[kept]
        used, item = np.unique(item, return_inverse=True)
        group, turn = group[used], turn[used]

        n_windows = max(1, -(-len(group) // self.window))
        window_start = np.arange(n_windows + 1, dtype=np.int64) * len(group) // n_windows
        window_of = np.repeat(np.arange(n_windows), np.diff(window_start))
        lane_of = (np.arange(len(group)) - window_start[window_of]) % LANES
        window, lane = window_of[item], lane_of[item]

        # Rows of a lane in random order, the lanes of a window merged in proportion.
        first = np.lexsort((rng.random(len(row)), lane, window))
        run = window[first] * LANES + lane[first]
        _, run, length = np.unique(run, return_inverse=True, return_counts=True)
        key = (_within(length) + rng.random(len(length))[run]) / length[run]
        merged = first[np.lexsort((key, window[first]))]
        if self.vectors is not None and number >= self.near_from:
            parts = []
            for part in np.split(merged, np.flatnonzero(np.diff(window[merged])) + 1):
                if stopped():
                    raise CancelledError
                parts.append(part[near_order(self.vectors[row[part]], row[part], self.near, rng)])
            merged = np.concatenate(parts)

        bounds = self.bounds()
        batch = np.repeat(np.arange(self.steps), np.diff(bounds))
        if passes.max(initial=1) > 1:
            merged = _separate(merged, row, window, batch, bounds, rng)
        listed = merged[np.lexsort((window[merged], lane[merged], batch))]
        return Epoch(
            occurrence=row[listed] + turn[item[listed]] * len(self.mask),
            n_rows=len(self.mask),
            window=window[listed],
            lane=lane[listed],
            bounds=bounds,
            group=group,
            window_start=window_start,
        )


def _within(counts: IntArray) -> IntArray:
    """0 to count - 1 for every count, one after another.

    >>> _within(np.array([2, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    return np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(
        np.cumsum(counts) - counts, counts
    )


def near_order(
    vectors_RD: NDArray[np.int16], row_R: IntArray, size: int, rng: np.random.Generator
) -> IntArray:
    """(R,) places of a window in groups of ``size`` that are alike; the groups in random order.

    A group is a place drawn at random and those that are most alike to it of the ones that no
    group has yet; the last may be smaller. A place with a vector of zeros is as alike to any as to
    any other. ``row_R``: a group has no row twice.

    Costs size**-1 * R**2 * D operations.
    """
    start_R = rng.permutation(len(row_R))
    row_R, vectors_RD = row_R[start_R], vectors_RD[start_R].astype(np.float32)
    repeated = len(np.unique(row_R)) < len(row_R)
    free_R = np.ones(len(row_R), np.bool_)
    groups: list[IntArray] = []
    while free_R.any():
        seeds = np.flatnonzero(free_R)[:NEAR_SEEDS]
        alike_SR = (vectors_RD[seeds] @ vectors_RD.T).astype(np.int64)
        # No two alike: which ones are the largest does not depend on how they are looked for.
        alike_SR = alike_SR * len(row_R) - np.arange(len(row_R))
        for seed, alike_R in zip(seeds, alike_SR, strict=True):
            if not free_R[seed]:
                continue
            others = np.flatnonzero(free_R & (row_R != row_R[seed]))
            if repeated:
                others = others[np.unique(row_R[others], return_index=True)[1]]
            if len(others) > size - 1:
                largest = np.argpartition(-alike_R[others], size - 1)[: size - 1]
                others = others[np.sort(largest)]
            groups.append(np.concatenate([[seed], others]))
            free_R[groups[-1]] = False
    mixed = [groups[place] for place in rng.permutation(len(groups))]
    return start_R[np.concatenate(mixed)] if mixed else start_R


def _separate(
    places: IntArray,
    row: IntArray,
    window: IntArray,
    batch: IntArray,
    bounds: IntArray,
    rng: np.random.Generator,
) -> IntArray:
    """``places`` with those exchanged, within windows, that put a row into a batch twice.

    ``row`` and ``window`` are looked up by ``places``, which are sorted by window; ``batch`` and
    ``bounds`` tell where batches lie among them.
    """
    places = places.copy()
    code = batch * (int(row.max(initial=0)) + 1) + row[places]
    order = np.argsort(code, kind="stable")
    repeated = np.sort(order[1:][np.diff(code[order]) == 0])
    ends = np.searchsorted(window[places], window[places[repeated]], side="right")
    firsts = np.searchsorted(window[places], window[places[repeated]], side="left")

    def holds(number: int, wanted: int) -> bool:
        inside = row[places[bounds[number] : bounds[number + 1]]]
        return bool((inside == wanted).any())

    for here, first, end in zip(repeated, firsts, ends, strict=True):
        for there in first + rng.permutation(end - first):
            mine, other = row[places[here]], row[places[there]]
            if (
                batch[there] != batch[here]
                and not holds(batch[here], other)
                and not holds(batch[there], mine)
            ):
                places[[here, there]] = places[[there, here]]
                break
    return places
