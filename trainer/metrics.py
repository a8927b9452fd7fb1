"""Metrics as pure functions on matrices, in numpy.

Shape suffixes: Q queries, G gallery items, B rows, C classes, D width, R relevant items.

Ties are **pessimistic** everywhere: an item counts as found only when it scores higher than every
wrong one. Of equal scores the wrong ones come first, so constant embeddings get the worst number
and never a lucky one; ``tied`` counts say how often that decided. Scores that differ by at most
``TIE`` are equal: one matrix product gives equal vectors cosines that differ in the last bits, as
its blocks fall. Ranks start at 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# Products of equal unit vectors, in float32 and of 64 to 1280 dimensions, differ by up to 7e-7.
TIE = 2e-6
FEW = 8  # limits up to which counting beats sorting
Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def normalise(vectors: NDArray[Any]) -> F32:
    """L2-normalise the last axis in float32; zero vectors stay zero."""
    values = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(values, axis=-1, keepdims=True)
    return np.asarray(values / np.maximum(norms, 1e-12), np.float32)


def wilson(successes: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a proportion, both ends in [0, 1]; (0, 1) for no trials.

    Wilson (1927). Unlike the normal approximation it stays in [0, 1] and has a width at 0 and 1.
    None of n begins at 0 and all of n ends at 1, exactly. Example: 8 of 10 gives (0.490, 0.943).
    """
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    denominator = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / denominator
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / denominator
    low = max(0.0, centre - half) if successes > 0 else 0.0  # else what rounding leaves
    high = min(1.0, centre + half) if successes < n else 1.0
    return low, high


@dataclass(frozen=True)
class ClassRanks:
    """What classification needs to know of a score matrix, row by row."""

    rank: I64  # (B,) rank of the true class, 1..C
    predicted: I64  # (B,) the true class where rank is 1, else the best wrong class
    tied: int  # rows in which a wrong class scores as the true one


def class_ranks(scores_BC: NDArray[np.floating], labels: I64) -> ClassRanks:
    """Rank of the true class ``labels`` (B,) in every row of ``scores_BC``.

    Example: scores (0.3, 0.3, 0.1) with label 0 give rank 2 (the tie counts against it) and
    prediction 1.
    """
    rows = np.arange(len(labels))
    own = scores_BC[rows, labels][:, None]
    wrong = np.ones(scores_BC.shape, np.bool_)
    wrong[rows, labels] = False
    at_least = (scores_BC >= own - TIE) & wrong
    rank = 1 + np.count_nonzero(at_least, axis=1)
    tied = int(np.any(at_least & (scores_BC <= own + TIE), axis=1).sum())
    predicted = labels
    if scores_BC.shape[1]:
        others = np.where(wrong, scores_BC, -np.inf)
        # The first of equal ones, whatever the last bits say.
        best = (others >= others.max(1, keepdims=True) - TIE).argmax(1)
        predicted = np.where(rank == 1, labels, best)
    return ClassRanks(rank.astype(np.int64), predicted.astype(np.int64), tied)


def class_ranks_chunked(
    embeds_BD: F32, classes_CD: F32, labels: I64, chunk: int = 1024
) -> ClassRanks:
    """``class_ranks`` of the cosines of rows and classes, never holding the whole matrix."""
    parts = [
        class_ranks(embeds_BD[at : at + chunk] @ classes_CD.T, labels[at : at + chunk])
        for at in range(0, len(labels), chunk)
    ]
    none = np.zeros(0, np.int64)
    return ClassRanks(
        np.concatenate([p.rank for p in parts] or [none]),
        np.concatenate([p.predicted for p in parts] or [none]),
        sum(p.tied for p in parts),
    )


def topk_accuracy(ranks: NDArray[np.integer], k: int) -> float:
    """Share of ranks that are at most ``k``; NaN for no ranks."""
    return float(np.mean(ranks <= k)) if len(ranks) else math.nan


def confusion(labels: I64, predicted: I64, n_classes: int) -> I64:
    """(C, C) counts: row = true class, column = prediction."""
    flat = np.bincount(labels * n_classes + predicted, minlength=n_classes * n_classes)
    return flat.reshape(n_classes, n_classes).astype(np.int64)


@dataclass(frozen=True)
class ClassScores:
    """Per-class figures of a confusion matrix, each (C,); NaN where there is nothing to divide."""

    count: I64
    recall: F64  # of a class without rows: NaN
    precision: F64  # of a class that was never predicted: NaN
    f1: F64  # 2 TP / (2 TP + FP + FN); NaN for a class neither present nor predicted


def class_scores(confusion_CC: I64) -> ClassScores:
    """Recall, precision and F1 of every class."""
    hits = np.diag(confusion_CC).astype(np.float64)
    count, guesses = confusion_CC.sum(1), confusion_CC.sum(0)
    with np.errstate(invalid="ignore"):
        return ClassScores(count, hits / count, hits / guesses, 2 * hits / (count + guesses))


def class_mean(confusion_CC: I64) -> float:
    """Mean recall over the classes that have rows (balanced accuracy); NaN without rows."""
    recall = class_scores(confusion_CC).recall
    return float(np.nanmean(recall)) if np.isfinite(recall).any() else math.nan


def macro_f1(confusion_CC: I64) -> float:
    """Mean F1 over the classes that have rows; NaN without rows.

    Classes that are absent are left out: an empty class would otherwise count as 0 or 1 at will.
    """
    scores = class_scores(confusion_CC)
    present = scores.count > 0
    return float(scores.f1[present].mean()) if present.any() else math.nan


@dataclass(frozen=True)
class Bootstrap:
    """Percentile intervals of one classification over resampled rows."""

    top1: tuple[float, float]
    class_mean: tuple[float, float]
    macro_f1: tuple[float, float]
    resamples: int


def bootstrap(
    labels: I64,
    predicted: I64,
    n_classes: int,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Bootstrap:
    """Intervals by drawing the rows anew, with replacement (Efron 1979, percentile method).

    For means over classes, which no binomial interval fits. In a resample a class that was not
    drawn is left out, as in ``class_mean``. An interval always holds its figure. With fewer than
    about five rows a class those of the means over classes are too narrow: simulated, of nominal
    95 % they held the truth 87 % of the time at one row a class, 90 % at two. Raises ``ValueError``
    for no rows.
    """
    if not len(labels):
        raise ValueError("there are no rows to draw from")
    rng = np.random.default_rng(seed)
    right = labels == predicted
    found = np.empty((3, resamples))
    for draw in range(resamples):
        rows = rng.integers(0, len(labels), len(labels))
        hits = np.bincount(labels[rows[right[rows]]], minlength=n_classes)
        count = np.bincount(labels[rows], minlength=n_classes)
        guesses = np.bincount(predicted[rows], minlength=n_classes)
        present = count > 0
        found[0, draw] = hits.sum() / len(rows)
        found[1, draw] = (hits[present] / count[present]).mean()
        found[2, draw] = (2 * hits[present] / (count + guesses)[present]).mean()
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail], axis=1)
    # Of many small classes F1 is higher in a resample, as some that were mistaken are not drawn.
    matrix = confusion(labels, predicted, n_classes)
    figure = np.array([right.mean(), class_mean(matrix), macro_f1(matrix)])
    low, high = np.minimum(low, figure), np.maximum(high, figure)
    top1, mean, f1 = ((float(a), float(b)) for a, b in zip(low, high, strict=True))
    return Bootstrap(top1, mean, f1, resamples)


@dataclass(frozen=True)
class Calibration:
    """How far confidence and accuracy lie apart, in bins of confidence of equal width."""

    error: float  # expected calibration error: mean distance, weighted by rows
    confidence: F64  # (bins,) mean of the bin's rows; NaN for an empty bin
    accuracy: F64  # (bins,)
    count: I64  # (bins,)


def calibration(
    confidence: NDArray[np.floating], right: NDArray[np.bool_], bins: int = 15
) -> Calibration:
    """Expected calibration error of predictions made with ``confidence`` (B,) in [0, 1].

    Naeini et al. (2015); Guo et al. (2017) with 15 bins. NaN for no rows.
    """
    place = np.clip((np.asarray(confidence, np.float64) * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(place, minlength=bins).astype(np.int64)
    with np.errstate(invalid="ignore"):
        sure = np.bincount(place, weights=confidence, minlength=bins) / count
        true = np.bincount(place, weights=right.astype(np.float64), minlength=bins) / count
    used = count > 0
    total = int(count.sum())
    error = float((np.abs(sure - true)[used] * count[used]).sum() / total) if total else math.nan
    return Calibration(error, sure, true, count)


def confidences(embeds_BD: F32, classes_CD: F32, scale: float, chunk: int = 1024) -> F64:
    """(B,) largest probability of softmax(scale * cosine) over the classes."""
    found = []
    for at in range(0, len(embeds_BD), chunk):
        logits = scale * (embeds_BD[at : at + chunk].astype(np.float64) @ classes_CD.T)
        found.append(1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1))
    return np.concatenate(found or [np.zeros(0)])


def most_confused(confusion_CC: I64, limit: int = 20) -> list[tuple[int, int, int]]:
    """(true class, prediction, count) of the largest wrong cells, largest first."""
    wrong = confusion_CC.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = [(*divmod(int(cell), wrong.shape[1]), int(wrong.flat[cell])) for cell in order]
    return [pair for pair in pairs if pair[2] > 0]


@dataclass(frozen=True)
class Ranking:
    """Retrieval figures per query; queries without a relevant item have rank 0 and AP NaN."""

    first_rank: I64  # (Q,) rank of the best relevant item
    average_precision: F64  # (Q,)
    ndcg: F64  # (Q,) over the whole gallery, relevance 0 or 1
    n_relevant: I64  # (Q,)
    n_candidates: int  # gallery size that a query sees (without itself where that is excluded)
    tied: int  # queries in which a wrong item scores as the best relevant one

    @property
    def answerable(self) -> NDArray[np.bool_]:
        """(Q,) whether the query has a relevant item."""
        return self.n_relevant > 0


class RowRank(NamedTuple):
    """The figures of one query; without a relevant item rank 0 and NaN."""

    first: int
    average_precision: float
    ndcg: float
    tied: bool  # a wrong item scores as the best relevant one


def rank_row(scores_G: NDArray[np.floating], relevant: I64, exclude: int | None = None) -> RowRank:
    """Where the relevant items of one query stand.

    With the relevant scores in falling order and I(s) the number of wrong items that score at
    least s (within ``TIE``), the j-th relevant item has rank r_j = j + I(s_j), so first rank = 1 +
    I(s_1) and AP = mean_j j / r_j; nDCG = sum_j 1 / log2(1 + r_j) over the same sum with r_j = j
    (Jarvelin and Kekalainen 2002, relevance 0 or 1). No sort of the gallery by item is needed.
    """
    if exclude is not None:
        relevant = relevant[relevant != exclude]
    if not len(relevant):
        return RowRank(0, math.nan, math.nan, False)
    own = np.sort(scores_G[relevant])[::-1]
    at_least, above = _counts(scores_G, own)
    for right in [scores_G[relevant]] + ([] if exclude is None else [scores_G[[exclude]]]):
        own_at_least, own_above = _counts(right, own)
        at_least, above = at_least - own_at_least, above - own_above
    position = np.arange(1, len(own) + 1)
    rank = position + at_least
    gain = (1 / np.log2(1 + rank)).sum() / (1 / np.log2(1 + position)).sum()
    average = float(np.mean(position / rank))
    return RowRank(int(rank[0]), average, float(gain), bool(at_least[0] > above[0]))


def _counts(scores: NDArray[np.floating], limits: NDArray[np.floating]) -> tuple[I64, I64]:
    """How many scores are at least, and how many are above, each of the limits, within ``TIE``."""
    low, high = limits - TIE, limits + TIE
    if len(limits) <= FEW:
        at_least = [np.count_nonzero(scores >= limit) for limit in low]
        return np.asarray(at_least), np.asarray([np.count_nonzero(scores > x) for x in high])
    rising = np.sort(scores)
    left, right = np.searchsorted(rising, low, "left"), np.searchsorted(rising, high, "right")
    return len(rising) - left, len(rising) - right


def rank_queries(
    queries_QD: F32,
    gallery_GD: F32,
    relevant: Callable[[int], I64],
    *,
    exclude_self: bool = False,
    chunk: int = 256,
    advance: Callable[[int], None] | None = None,
) -> Ranking:
    """Exact ranking of ``gallery_GD`` for every query by inner product, ``chunk`` rows at a time.

    ``relevant(q)`` gives the gallery rows that are right for query q. With ``exclude_self``
    row q of the gallery is no candidate of query q: it is the same object. Only queries that have
    a right answer are compared, and told to ``advance``.
    """
    total = len(queries_QD)
    first = np.zeros(total, np.int64)
    average, gain = np.full(total, math.nan), np.full(total, math.nan)
    counts, tied = np.zeros(total, np.int64), 0
    asking = answerable_queries(total, relevant, exclude_self=exclude_self)
    for start in range(0, len(asking), chunk):
        block = asking[start : start + chunk]
        for query, scores_G in zip(block, queries_QD[block] @ gallery_GD.T, strict=True):
            rows = np.unique(relevant(query))
            itself = query if exclude_self else None
            counts[query] = len(rows) - (exclude_self and query in rows)
            first[query], average[query], gain[query], equal = rank_row(scores_G, rows, itself)
            tied += equal
        if advance:
            advance(len(block))
    return Ranking(first, average, gain, counts, len(gallery_GD) - exclude_self, tied)


def answerable_queries(
    total: int, relevant: Callable[[int], I64], *, exclude_self: bool = False
) -> I64:
    """Those of ``total`` queries for which ``rank_queries`` finds a right answer, in order."""
    if exclude_self:
        found = (query for query in range(total) if (relevant(query) != query).any())
    else:
        found = (query for query in range(total) if len(relevant(query)))
    return np.fromiter(found, np.int64)


def own_row(query: int) -> I64:
    """``relevant`` of ``rank_queries`` where row q of the gallery is the answer to query q."""
    return np.array([query], np.int64)


def rank_pairs(queries_QD: F32, gallery_QD: F32) -> Ranking:
    """``rank_queries`` where row q of the gallery is the one right answer to query q."""
    return rank_queries(queries_QD, gallery_QD, own_row)


def same_key(keys: Sequence[str | None]) -> Callable[[int], I64]:
    """``relevant`` of ``rank_queries`` where rows of the same key are right; none for None."""
    members = groups(keys)
    nobody = np.zeros(0, np.int64)

    def relevant(query: int) -> I64:
        key = keys[query]
        return nobody if key is None else members[key]

    return relevant


def rank_groups(embeds_BD: F32, keys: Sequence[str | None]) -> Ranking:
    """``rank_queries`` among rows: all others of the same key are right, itself is no candidate.

    Rows whose key is None ask nothing.
    """
    return rank_queries(embeds_BD, embeds_BD, same_key(keys), exclude_self=True)


def recall_at_k(ranking: Ranking, k: int) -> float:
    """Share of answerable queries with a relevant item among the first ``k``; NaN for none."""
    return topk_accuracy(ranking.first_rank[ranking.answerable], k)


def median_rank(ranking: Ranking) -> float:
    """Median of the first ranks; NaN for no answerable query."""
    ranks = ranking.first_rank[ranking.answerable]
    return float(np.median(ranks)) if len(ranks) else math.nan


def mean_rank(ranking: Ranking) -> float:
    """Mean of the first ranks; NaN for no answerable query."""
    ranks = ranking.first_rank[ranking.answerable]
    return float(np.mean(ranks)) if len(ranks) else math.nan


def mean_average_precision(ranking: Ranking) -> float:
    """mAP over the answerable queries, over the whole gallery; NaN for none."""
    found = ranking.average_precision[ranking.answerable]
    return float(np.mean(found)) if len(found) else math.nan


def mean_ndcg(ranking: Ranking) -> float:
    """Mean nDCG over the answerable queries, over the whole gallery; NaN for none."""
    found = ranking.ndcg[ranking.answerable]
    return float(np.mean(found)) if len(found) else math.nan


def chance_recall_at_1(ranking: Ranking) -> float:
    """Expected recall@1 of a random order: the mean share of relevant items; NaN for none."""
    counts = ranking.n_relevant[ranking.answerable]
    return float(np.mean(counts / ranking.n_candidates)) if len(counts) else math.nan


def groups(keys: Sequence[str | None]) -> dict[str, I64]:
    """Rows by key, in order of first appearance; rows whose key is None belong to no group."""
    found: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        if key is not None:
            found.setdefault(key, []).append(row)
    return {key: np.asarray(rows, np.int64) for key, rows in found.items()}
