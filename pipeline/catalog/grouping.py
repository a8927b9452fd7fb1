"""Which objects of a set are one and the same, or nearly: they must not be torn apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.catalog.columns import column
from pipeline.catalog.neighbours import Groups
from pipeline.shards import ShardSet

I64 = NDArray[np.int64]


def equal_values(values: pa.Array) -> I64:
    """(B,) a label per row: one for equal values, one of its own for each null."""
    codes = pc.fill_null(values.dictionary_encode().indices.cast(pa.int64()), -1)
    labels: I64 = codes.to_numpy(zero_copy_only=False).copy()
    empty = labels < 0
    labels[empty] = len(labels) + np.arange(int(empty.sum()))
    return labels


def same_file(shards: ShardSet) -> I64:
    """(B,) a label per row: one for assets of the same bytes. An empty hash tells nothing."""
    hashes = column(shards, "sha256")
    return equal_values(pc.if_else(pc.equal(hashes, ""), pa.scalar(None, pa.string()), hashes))


def same_name(shards: ShardSet) -> I64:
    """(B,) a label per row: one for the same name, up to case, in the same category.

    The name is the first text whose source is ``name``; rows without one are alone.
    """
    texts, sources = column(shards, "texts").to_pylist(), column(shards, "text_sources").to_pylist()
    categories = column(shards, "category").to_pylist()
    keys = []
    for own, kinds, category in zip(texts, sources, categories, strict=True):
        name = next((t for t, kind in zip(own, kinds, strict=True) if kind == "name"), None)
        keys.append(None if name is None else f"{category!r} {name.casefold().strip()}")
    return equal_values(pa.array(keys, pa.string()))


@dataclass(frozen=True)
class GroupSizes:
    """How objects fall into groups of at least two."""

    groups: int
    objects: int  # in such groups
    largest: int  # objects of the largest group; 1 where all are alone


def sizes(labels: I64) -> GroupSizes:
    """Sizes of the groups that labels tell."""
    counts = np.unique(labels, return_counts=True)[1]
    many = counts[counts > 1]
    return GroupSizes(len(many), int(many.sum()), int(counts.max(initial=1)))


def joined(*parts: I64) -> I64:
    """(B,) the number of the first object of each group, where any of the labellings joins."""
    groups = Groups(len(parts[0]))
    for labels in parts:
        groups.add_labels(labels)
    return groups.labels()
