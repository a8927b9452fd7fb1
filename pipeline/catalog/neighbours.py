"""Exact near-duplicates and nearest neighbours by cosine, in bounded memory.

Vectors are unit vectors, (B, D) float32, in memory or memory-mapped; a few blocks of them and of
their products are at hand at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pipeline.catalog.features import scratch
from pipeline.console import ProgressBar

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_ROWS, _COLUMNS = 1024, 4096  # of one block of products
_ALL_PAIRS = 8192  # vectors up to which every pair is compared over their whole width
_LEAF = 2048  # vectors of one leaf of the tree, at most: two leaves make one block of products
_SHADOW = 32  # leading principal components
_SAMPLE = 20_000  # vectors that these are taken from
_SLACK = 1e-4  # of squared distances, for rounding in float32
_SAME = 1 - 1e-6  # the cosine of a vector and its copy is 1, but for rounding in float32
_EDGES = 1 << 22  # kept before they are joined to groups


class Groups:
    """Connected groups of ``count`` objects, of which pairs come in any number and order."""

    def __init__(self, count: int) -> None:
        self._labels: I64 = np.arange(count)
        self._edges: list[tuple[I64, I64]] = []
        self._waiting = 0

    def add(self, first: I64, second: I64) -> None:
        """Join each object of ``first`` with that of ``second``, arrays of one length."""
        ours, theirs = self._labels[first], self._labels[second]
        apart = ours != theirs
        if not apart.any():
            return
        self._edges.append((ours[apart], theirs[apart]))
        self._waiting += int(apart.sum())
        if self._waiting >= _EDGES:
            self._join()

    def add_labels(self, labels: I64) -> None:
        """Join the objects that have the same label, one label for each object."""
        self.add(np.arange(len(labels)), first_of(labels))

    def labels(self) -> I64:
        """For each object the number of the first object of its group."""
        self._join()
        return self._labels

    def _join(self) -> None:
        if not self._edges:
            return
        first = np.concatenate([edge[0] for edge in self._edges])
        second = np.concatenate([edge[1] for edge in self._edges])
        count = len(self._labels)
        graph = coo_matrix((np.ones(len(first), np.bool_), (first, second)), (count, count))
        _, components = connected_components(graph, directed=False)
        self._labels = first_of(components[self._labels])
        self._edges, self._waiting = [], 0


def first_of(labels: NDArray[np.integer]) -> I64:
    """For each object the number of the first object with its label."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    found: I64 = first[inverse].astype(np.int64)
    return found


def near_groups(vectors: F32, threshold: float, seed: int = 0) -> I64:
    """Groups of near-duplicates: for each object the number of the first one of its group.

    Two objects are near-duplicates when their cosine is at least ``threshold``, or 1 - 1e-6 where
    that is less: so that 1 means copies; groups are what chains of them connect. Exact, whatever
    ``seed``.

    Of many vectors not every pair is compared over the whole width. A projection P onto
    orthonormal directions shortens: |P x - P y|^2 <= |x - y|^2 = 2 - 2 cos(x, y). So pairs that
    are farther apart than the threshold allows in their leading principal components are none; a
    tree over those components leaves out whole blocks in the same way, and of the other blocks
    the objects that are too far from the box around the other leaf.
    """
    threshold = min(threshold, _SAME)
    groups = Groups(len(vectors))
    if len(vectors) <= _ALL_PAIRS:
        with ProgressBar("compare", len(vectors), "objects") as bar:
            for start in range(0, len(vectors), _ROWS):
                rows = vectors[start : start + _ROWS]
                for i, j in _hits(rows, vectors[start:], threshold):
                    groups.add(start + i, start + j)
                bar.advance(len(rows))
        return groups.labels()
    with tempfile.TemporaryDirectory(prefix="mrd3d-") as folder:
        _search_tree(vectors, threshold, seed, groups, Path(folder))
    return groups.labels()


def _search_tree(vectors: F32, threshold: float, seed: int, groups: Groups, folder: Path) -> None:
    count = len(vectors)
    shadows = _shadows(vectors, seed)
    leaves = _leaves(shadows)
    order = np.concatenate(leaves)
    bounds = np.cumsum([0, *(len(leaf) for leaf in leaves)])
    shadows = shadows[order]
    # Leaves after another, so that each is one stretch of the file.
    stored = scratch(folder / "sorted", *vectors.shape)
    for at in range(0, count, _COLUMNS):
        stored[at : at + _COLUMNS] = vectors[order[at : at + _COLUMNS]]
    low = np.array([shadows[a:b].min(axis=0) for a, b in pairwise(bounds)])
    high = np.array([shadows[a:b].max(axis=0) for a, b in pairwise(bounds)])
    most = 2 - 2 * threshold + _SLACK
    # |x - y|^2 = |x|^2 - 2 x y + |y|^2 as one product.
    squares, ones = _squares(shadows)[:, None], np.ones((count, 1), np.float32)
    left = np.concatenate([-2 * shadows, squares, ones], axis=1)
    right = np.concatenate([shadows, ones, squares], axis=1)
    # By chance, so that costly pairs are spread evenly and the time left is about right.
    pairs = np.random.default_rng(seed).permutation(_near_boxes(low, high, most))
    with ProgressBar("compare", len(pairs), "leaf pairs") as bar:
        for own, other in pairs.tolist():
            bar.advance(1)
            rows = _reach(shadows, bounds[own : own + 2], low[other], high[other], most)
            if not len(rows):
                continue
            inner = shadows[rows]
            columns = _reach(
                shadows, bounds[other : other + 2], inner.min(axis=0), inner.max(axis=0), most
            )
            near = left[rows] @ right[columns].T <= most
            if own == other:
                near[rows[:, None] == columns] = False
            rows, columns = rows[near.any(axis=1)], columns[near.any(axis=0)]
            if not len(rows):
                continue
            for i, j in _hits(stored[rows], stored[columns], threshold):
                groups.add(order[rows[i]], order[columns[j]])


def _shadows(vectors: F32, seed: int) -> F32:
    """(B, K) leading principal components, of directions found in a sample."""
    count = len(vectors)
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:_SAMPLE])
    sample = np.array(vectors[chosen])
    mean = sample.mean(axis=0)
    covariance = np.cov(sample, rowvar=False)
    directions = np.linalg.eigh(covariance)[1][:, ::-1][:, :_SHADOW].astype(np.float32)
    shadows = [
        (vectors[at : at + _COLUMNS] - mean) @ directions for at in range(0, count, _COLUMNS)
    ]
    return np.concatenate(shadows)


def _leaves(points: F32) -> list[I64]:
    """Numbers of points (B, K), halved along the widest axis until no part is too large."""
    todo, leaves = [np.arange(len(points))], []
    while todo:
        part = todo.pop()
        if len(part) <= _LEAF:
            leaves.append(part)
            continue
        own = points[part]
        axis = int(np.argmax(own.max(axis=0) - own.min(axis=0)))
        halves = np.argpartition(own[:, axis], len(part) // 2)
        todo += [part[halves[len(part) // 2 :]], part[halves[: len(part) // 2]]]
    return leaves


def _near_boxes(low: F32, high: F32, most: float) -> I64:
    """(P, 2) numbers of the leaves, of which each may be both, whose boxes (L, K) are near."""
    pairs = []
    for own in range(len(low)):
        gaps = np.maximum(np.maximum(low[own:] - high[own], low[own] - high[own:]), 0)
        others = own + np.flatnonzero(_squares(gaps) <= most)
        pairs.append(np.stack([np.full(len(others), own), others], axis=1))
    return np.concatenate(pairs)


def _reach(points: F32, bounds: I64, low: F32, high: F32, most: float) -> I64:
    """Numbers of the points (B, K) from one bound to the other that are near the box."""
    start, end = bounds
    own = points[start:end]
    gaps = np.maximum(np.maximum(low - own, own - high), 0)
    return np.asarray(start + np.flatnonzero(_squares(gaps) <= most))


def _squares(vectors: F32) -> F32:
    """(B,) squared lengths of (B, K)."""
    return np.asarray(np.einsum("bk,bk->b", vectors, vectors))


def _hits(rows: F32, others: F32, threshold: float) -> Iterator[tuple[I64, I64]]:
    """Pairs (row, other) with a cosine of at least the threshold, block by block."""
    for at in range(0, len(others), _COLUMNS):
        i, j = np.nonzero(rows @ others[at : at + _COLUMNS].T >= threshold)
        if len(i):
            yield i, at + j


def nearest(vectors: F32, among: I64) -> tuple[F32, I64]:
    """For each object the cosine and the number of its nearest other one of those ``among``.

    Of objects that have no other one, -1 and -1.
    """
    best = np.full(len(vectors), -1, np.float32)
    which = np.full(len(vectors), -1, np.int64)
    with ProgressBar("nearest", len(vectors), "objects") as bar:
        for start in range(0, len(vectors), _ROWS):
            rows = np.array(vectors[start : start + _ROWS])
            numbers = np.arange(start, start + len(rows))
            for at in range(0, len(among), _COLUMNS):
                others = among[at : at + _COLUMNS]
                cosines = rows @ np.array(vectors[others]).T
                cosines[numbers[:, None] == others] = -np.inf
                place = np.argmax(cosines, axis=1)
                value = cosines[np.arange(len(rows)), place]
                better = value > best[numbers]
                best[numbers[better]] = value[better]
                which[numbers[better]] = others[place[better]]
            bar.advance(len(rows))
    return np.clip(best, -1, 1), which
