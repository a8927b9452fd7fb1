"""Exact search among vectors that need not fit in memory as float32.

Vectors are taken in blocks: an array, a memory map, float16 or float32. What is held beside them
is one block as float32 and the best of each query, whatever the number of vectors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

BLOCK = 64 << 20  # bytes of one block as float32


def top_k(
    queries: F32, vectors: NDArray[np.floating], k: int, block_bytes: int = BLOCK
) -> tuple[F32, I64]:
    """The ``k`` rows of ``vectors`` (N, D) with the largest inner product with each query (Q, D).

    Scores and rows, each (Q, min(k, N)), best first; equal scores by row number. ``vectors`` may be
    of any floating type; products are float32.
    """
    count, width = vectors.shape
    k = min(k, count)
    step = max(k, block_bytes // (4 * width), 1)
    asked = np.ascontiguousarray(queries, np.float32)
    best = np.empty((len(asked), k), np.float32)
    rows = np.empty((len(asked), k), np.int64)
    if not k:
        return best, rows
    # A product and a comparison: several times faster than a heap for each query.
    for start in range(0, count, step):
        block = np.ascontiguousarray(vectors[start : start + step], np.float32)
        together = max(1, block_bytes // (4 * len(block)))
        for first in range(0, len(asked), together):
            part = slice(first, first + together)
            scores = asked[part] @ block.T
            if start:  # an equal score of a later row does not displace
                query, place = np.nonzero(scores > best[part, -1:])
            else:
                least = np.partition(scores, len(block) - k, axis=1)[:, len(block) - k, None]
                query, place = np.nonzero(scores >= least)
            if len(query):
                found = scores[query, place]
                held = None if not start else (best[part], rows[part])
                best[part], rows[part] = _merge(len(scores), k, query, found, place + start, held)
    return best, rows


def _merge(
    count: int, k: int, query: I64, found: F32, row: I64, held: tuple[F32, I64] | None
) -> tuple[F32, I64]:
    """The best ``k`` of each of ``count`` queries among those ``held`` and those ``found``.

    ``found`` are scores of ``row`` for ``query``, in any number.
    """
    if held is not None:
        query = np.concatenate([np.repeat(np.arange(count), k), query])
        found = np.concatenate([held[0].ravel(), found])
        row = np.concatenate([held[1].ravel(), row])
    order = np.lexsort((row, -found, query))
    begin = np.searchsorted(query[order], np.arange(count))
    chosen = order[begin[:, None] + np.arange(k)]
    return found[chosen], row[chosen]
