"""A shard set split into train, val and test: stratified by category, without leaks.

Objects that are the same or nearly the same stand on one side (``pipeline.catalog.grouping``).
Within that, every category gives each split its share, rounded down or up so that the shares of
the whole are right as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.catalog.columns import column, open_parts
from pipeline.catalog.features import features
from pipeline.catalog.grouping import (
    GroupSizes,
    equal_values,
    joined,
    same_file,
    same_name,
    sizes,
)
from pipeline.catalog.neighbours import near_groups
from pipeline.common import InputError
from pipeline.console import ProgressBar
from pipeline.sets.writing import Written, check_out, derived, new_set
from pipeline.shards import ShardSet
from pipeline.shards.storage import Storage

I64 = NDArray[np.int64]
I8 = NDArray[np.int8]

HELD_OUT = ("test", "val")
NAMES = ("train", *HELD_OUT)
TRAIN = 0


@dataclass(frozen=True)
class Shortfall:
    """A category of which a split has fewer objects than its share: groups did not fit."""

    category: str | None
    split: str
    wanted: int
    got: int


@dataclass(frozen=True)
class Split:
    """How a set was split."""

    written: Written
    counts: dict[str, int]
    wanted: dict[str, int]
    measure: str | None  # what near-duplicates were found by; None: not looked for
    threshold: float | None  # their least cosine
    groups: GroupSizes  # of objects that stay together
    shortfalls: list[Shortfall]
    categories: int
    categories_without: dict[str, int]  # how many have no object in a split that was asked for

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


@dataclass(frozen=True)
class SplitOptions:
    """What is asked of a split."""

    test: float  # share of the objects, 0 to 1
    val: float
    seed: int = 0
    near: float | None = None  # least cosine of near-duplicates; None: that of the measure
    look_for_near: bool = True
    by_name: bool = False  # objects of one name and category stay together too

    def check(self) -> None:
        """Raises ``InputError`` for shares that are none."""
        for name, share in (("test", self.test), ("val", self.val)):
            if not 0 <= share < 1:
                raise InputError(f"--{name} {share:g}: a share from 0 to below 1, such as 0.1")
        if not 0 < self.test + self.val < 1:
            raise InputError(
                f"--test {self.test:g} --val {self.val:g}: together above 0 and below 1"
            )
        if self.near is not None and not 0 < self.near <= 1:
            raise InputError(f"--near {self.near:g}: a cosine above 0 and up to 1, such as 0.99")


def split_set(
    shards: str | Path, out: str | Path, options: SplitOptions, *, overwrite: bool = False
) -> Split:
    """Write ``shards`` to a new set with new values in the column ``split``, in the same order.

    Failures are copied along. Raises ``InputError`` for options out of range, an empty set, and
    as ``new_set`` does.
    """
    options.check()
    source = ShardSet.open(shards)
    check_out(Storage.at(out), [source], overwrite)
    open_parts(source)
    if not len(source):
        raise InputError(f"{shards}: holds no rows, so there is nothing to split")
    labels = [same_file(source)]
    measure, threshold = None, None
    if options.look_for_near:
        with features(source) as found:
            measure = found.measure
            threshold = found.threshold if options.near is None else options.near
            labels.append(near_groups(found.vectors, threshold))
    if options.by_name:
        labels.append(same_name(source))
    groups = joined(*labels)
    categories = column(source, "category")
    strata = _strata(categories)
    shares = (options.test, options.val)
    quotas = make_quotas(np.bincount(strata), shares, options.seed)
    sides = assign(groups, strata, quotas, shares, options.seed)
    manifest = derived(
        source.manifest,
        {
            "step": "split",
            **{key: value for key, value in asdict(options).items() if key != "near"},
            "measure": measure,
            "near": threshold,
        },
    )
    names = pa.array(NAMES)

    def change(table: pa.Table, numbers: I64) -> pa.Table:
        place = table.schema.get_field_index("split")
        values = names.take(pa.array(sides[numbers]))
        return table.set_column(place, table.schema.field(place), values)

    with (
        new_set(out, manifest, [source], overwrite=overwrite) as writer,
        ProgressBar("split", len(source), "objects") as bar,
    ):
        writer.copy(source, bar, change=change)
        writer.copy_failures(source.failures())
        written = writer.finish()
    got = counts_of(sides, strata)
    wanted = {name: int(quotas[i].sum()) for i, name in enumerate(HELD_OUT)}
    label = dict(zip(strata.tolist(), categories.to_pylist(), strict=True))
    return Split(
        written=written,
        counts={name: int(got[i].sum()) for i, name in enumerate(NAMES)},
        wanted={"train": len(strata) - sum(wanted.values()), **wanted},
        measure=measure,
        threshold=threshold,
        groups=sizes(groups),
        shortfalls=[
            Shortfall(label[int(c)], name, int(quotas[i, c]), int(got[i + 1, c]))
            for i, name in enumerate(HELD_OUT)
            for c in np.flatnonzero(got[i + 1] < quotas[i])
        ],
        categories=len(label) - (1 if categories.null_count else 0),
        categories_without={
            name: int((got[i + 1] == 0).sum()) for i, name in enumerate(HELD_OUT) if shares[i] > 0
        },
    )


def _strata(categories: pa.Array) -> I64:
    """(B,) number of each row's category; rows without one are a category of their own."""
    labels = equal_values(categories)
    labels[labels >= len(labels)] = len(labels)
    strata: I64 = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return strata


def make_quotas(counts: I64, shares: Sequence[float], seed: int) -> I64:
    """(S, C) objects that each split is to take from each category of ``counts`` (C,) objects.

    Each is the share of the category rounded down or up, and their sum that of the whole rounded
    to the nearest: the largest remainders are rounded up, ties by chance. A category that is too
    small for all its roundings gives to the first split first.
    """
    rng = np.random.default_rng([seed, 0])
    left = counts.copy()
    quotas = []
    for share in shares:
        exact = counts * share
        # A product such as 0.29 * 100 falls a hair below the whole number that is meant.
        quota = np.floor(exact + 1e-9).astype(np.int64)
        quota = np.minimum(quota, left)
        missing = round(counts.sum() * share) - int(quota.sum())
        rest = np.where((exact - quota > 1e-9) & (quota < left), exact - quota, -1)
        order = np.lexsort((rng.random(len(counts)), -rest))
        up = order[: max(0, missing)]
        quota[up[rest[up] > 0]] += 1
        quotas.append(quota)
        left = left - quota
    return np.array(quotas)


def assign(groups: I64, strata: I64, quotas: I64, shares: Sequence[float], seed: int) -> I8:
    """(B,) number of the side of each object: 0 is train, i + 1 the split of ``quotas[i]``.

    Groups stay whole, and no split takes more of a category than its quota; what it lacks in the
    end, no group that is left in train could give it. Groups of several objects draw their side
    by chance in proportion to the shares, so that held-out sides are not full of duplicates;
    single objects fill the quotas; groups for which there is room after that come last.
    """
    rng = np.random.default_rng([seed, 1])
    sides = np.full(len(groups), TRAIN, np.int8)
    left = quotas.copy()
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    members = np.split(order, starts[1:])
    several = [members[i] for i in rng.permutation(len(members)) if len(members[i]) > 1]

    def take(rows: I64, split: int) -> bool:
        classes, counts = np.unique(strata[rows], return_counts=True)
        if (counts > left[split, classes]).any():
            return False
        left[split, classes] -= counts
        sides[rows] = split + 1
        return True

    draws = np.searchsorted(np.cumsum(shares), rng.random(len(several)), side="right")
    for rows, split in zip(several, draws.tolist(), strict=True):
        if split < len(shares):
            take(rows, split)
    single = rng.permutation(np.array([m[0] for m in members if len(m) == 1], np.int64))
    single = single[np.argsort(strata[single], kind="stable")]
    bounds = np.searchsorted(strata[single], np.arange(quotas.shape[1] + 1))
    for stratum in range(quotas.shape[1]):
        at, end = int(bounds[stratum]), int(bounds[stratum + 1])
        for split in range(len(shares)):
            count = min(int(left[split, stratum]), end - at)
            sides[single[at : at + count]] = split + 1
            left[split, stratum] -= count
            at += count
    for rows in several:
        if sides[rows[0]] == TRAIN:
            any(take(rows, split) for split in range(len(shares)))
    return sides


def counts_of(sides: I8, strata: I64) -> I64:
    """(3, C) objects of each category by side."""
    found = np.zeros((len(NAMES), int(strata.max()) + 1), np.int64)
    np.add.at(found, (sides, strata), 1)
    return found
