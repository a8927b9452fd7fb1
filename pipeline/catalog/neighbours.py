"""Exact near-duplicates and nearest neighbours by cosine, in bounded memory.

Vectors are unit vectors, (B, D) float32, in memory or memory-mapped; a few blocks of them and of
their products are at hand at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
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
_ONE_CELL = 16_384  # vectors up to which every pair is compared
_MAX_CELLS = 1024
_SLACK = 2e-3  # radians: of angles from float32 products, small ones are the least exact
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

    Two objects are near-duplicates when their cosine is at least ``threshold``; groups are what
    chains of them connect. Exact, whatever ``seed``.

    Of many vectors not every pair is compared. Each belongs to the cell of the nearest of some
    chosen vectors p. If x of cell p and y of cell q are at an angle of at most t, then, by the
    triangle inequality on the sphere,

        angle(x, q) <= angle(y, q) + t <= angle(y, p) + t <= angle(x, p) + 2 t,

    so x meets only the cells q for which that holds.
    """
    groups = Groups(len(vectors))
    if len(vectors) <= _ONE_CELL:
        with ProgressBar("compare", len(vectors), "objects") as bar:
            for start in range(0, len(vectors), _ROWS):
                rows = vectors[start : start + _ROWS]
                for i, j in _hits(rows, vectors[start:], threshold):
                    groups.add(start + i, start + j)
                bar.advance(len(rows))
        return groups.labels()
    with tempfile.TemporaryDirectory(prefix="mrd3d-") as folder:
        _search_cells(vectors, threshold, seed, groups, Path(folder))
    return groups.labels()


def _search_cells(vectors: F32, threshold: float, seed: int, groups: Groups, folder: Path) -> None:
    count = len(vectors)
    n_cells = min(_MAX_CELLS, int(np.sqrt(count)))
    chosen = np.sort(np.random.default_rng(seed).choice(count, n_cells, replace=False))
    pivots = np.array(vectors[chosen])
    cell = np.concatenate(
        [
            np.argmax(vectors[at : at + _COLUMNS] @ pivots.T, axis=1)
            for at in range(0, count, _COLUMNS)
        ]
    )
    # Cells after another, so that each is one stretch of the file.
    order = np.argsort(cell, kind="stable")
    bounds = np.searchsorted(cell[order], np.arange(n_cells + 1))
    stored = scratch(folder / "sorted", *vectors.shape)
    for at in range(0, count, _COLUMNS):
        stored[at : at + _COLUMNS] = vectors[order[at : at + _COLUMNS]]
    reach = 2 * np.arccos(np.clip(threshold, -1, 1)) + _SLACK
    with ProgressBar("compare", count, "objects") as bar:
        for own in range(n_cells):
            start, end = bounds[own], bounds[own + 1]
            for at in range(start, end, _ROWS):
                rows = np.array(stored[at : min(at + _ROWS, end)])
                angles = np.arccos(np.clip(rows @ pivots.T, -1, 1))
                near = angles <= angles[:, own : own + 1] + reach
                near[:, own] = True
                for other in own + np.flatnonzero(near[:, own:].any(axis=0)):
                    here = np.flatnonzero(near[:, other])
                    first = bounds[other] if other > own else at
                    theirs = stored[first : bounds[other + 1]]
                    for i, j in _hits(rows[here], theirs, threshold):
                        groups.add(order[at + here[i]], order[first + j])
                bar.advance(len(rows))


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
