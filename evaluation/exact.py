"""Exact search among vectors that need not fit in memory as float32.

Vectors are taken in blocks: an array, a memory map, float16 or float32. What is held beside them
is one block as float32 and the best of each query, whatever the number of vectors.
"""

from __future__ import annotations

from typing import Any

import faiss
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
    best = np.empty((len(asked), 0), np.float32)
    rows = np.empty((len(asked), 0), np.int64)
    for start in range(0, count, step):
        block = np.ascontiguousarray(vectors[start : start + step], np.float32)
        library: Any = faiss
        scores, places = library.knn(asked, block, min(k, len(block)), faiss.METRIC_INNER_PRODUCT)
        best = np.concatenate([best, scores], axis=1)
        rows = np.concatenate([rows, places + start], axis=1)
        order = np.lexsort((rows, -best), axis=1)[:, :k]
        best, rows = np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)
    return best, rows
