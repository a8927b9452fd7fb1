from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer import metrics

I64 = NDArray[np.int64]


def slow_order(scores: NDArray[np.float64], relevant: set[int], exclude: int | None) -> list[int]:
    """Candidates best first, wrong ones before right ones of the same score."""
    rows = [row for row in range(len(scores)) if row != exclude]
    return sorted(rows, key=lambda row: (-scores[row], row in relevant))


def slow_rank(
    scores: NDArray[np.float64], relevant: set[int], exclude: int | None
) -> tuple[int, float, float]:
    right = relevant - {exclude}
    if not right:
        return 0, math.nan, math.nan
    hits, precisions, first, gain = 0, [], 0, 0.0
    for place, row in enumerate(slow_order(scores, right, exclude), 1):
        if row in right:
            hits += 1
            first = first or place
            precisions.append(hits / place)
            gain += 1 / math.log2(1 + place)
    best = sum(1 / math.log2(1 + place) for place in range(1, len(right) + 1))
    return first, sum(precisions) / len(right), gain / best


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=150, deadline=None)
def test_rank_row__as_the_obvious_loop_with_ties_and_duplicates(seed: int, exclude: bool) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 40))
    scores = rng.integers(0, 9, size).astype(np.float64)
    # Up to more than the number from which the scores are sorted instead of counted.
    relevant = rng.integers(0, size, rng.integers(0, 4 * metrics.FEW))
    itself = int(rng.integers(size)) if exclude else None
    *figures, tied = metrics.rank_row(scores, np.unique(relevant), itself)
    wanted = slow_rank(scores, set(map(int, relevant)), itself)
    np.testing.assert_allclose(figures, wanted, rtol=1e-12)
    right = set(map(int, relevant)) - {itself}
    best = max((scores[r] for r in right), default=None)
    wrong = [r for r in range(size) if r not in right and r != itself]
    assert tied == (best is not None and any(scores[r] == best for r in wrong))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_ranks__what_rounding_adds_to_scores_decides_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 40))
    scores = rng.integers(0, 9, size) / 9
    moved = scores + rng.uniform(-metrics.TIE / 3, metrics.TIE / 3, size)
    relevant = np.unique(rng.integers(0, size, rng.integers(1, 4 * metrics.FEW)))
    assert metrics.rank_row(moved, relevant) == metrics.rank_row(scores, relevant)
    assert metrics.rank_row(scores, relevant)[:3] == pytest.approx(
        slow_rank(scores, set(map(int, relevant)), None)
    )
    found, wanted = (metrics.class_ranks(row[None], relevant[:1]) for row in (moved, scores))
    assert (found.rank, found.predicted, found.tied) == (wanted.rank, wanted.predicted, wanted.tied)


@pytest.mark.parametrize("width", [64, 512, 1280])
@pytest.mark.parametrize("count", [7, 60, 101, 1000])
def test_rank_queries__equal_vectors_of_a_product_are_tied(width: int, count: int) -> None:
    """Blocks of a matrix product give equal columns other last bits."""
    rng = np.random.default_rng(width + count)
    one = metrics.normalise(rng.normal(size=width))
    asking = metrics.normalise(one + 0.3 * metrics.normalise(rng.normal(size=(count, width))))
    same = np.repeat(one[None], count, 0)
    found = metrics.rank_pairs(asking, same)
    assert (found.first_rank == count).all()
    assert found.tied == count
    classes = metrics.normalise(rng.normal(size=(count, width)))
    classes[-1] = classes[0] = one
    ranks = metrics.class_ranks_chunked(asking, classes, np.zeros(count, np.int64))
    assert (ranks.rank == 2).all()
    assert (ranks.predicted == count - 1).all()
    assert ranks.tied == count


def test_ranks__a_real_difference_is_no_tie() -> None:
    scores = np.array([0.5, 0.5 - 3 * metrics.TIE], np.float32)
    found = metrics.rank_row(scores, np.array([0]))
    assert (found.first, found.tied) == (1, False)
    assert metrics.class_ranks(scores[None], np.array([0])).rank.tolist() == [1]


def test_rank_row__worked_example() -> None:
    # Falling order: 0.9 wrong, 0.8 right, 0.5 wrong and right (wrong first), so ranks 2 and 4.
    found = metrics.rank_row(np.array([0.8, 0.9, 0.5, 0.5]), np.array([0, 3]))
    assert (found.first, found.tied) == (2, False)
    assert found.average_precision == pytest.approx((1 / 2 + 2 / 4) / 2)
    gain, best = 1 / math.log2(3) + 1 / math.log2(5), 1 + 1 / math.log2(3)
    assert found.ndcg == pytest.approx(gain / best)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_rank_queries__chunks_do_not_matter(chunk: int, exclude_self: bool) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.integers(-2, 3, (17, 4)).astype(np.float32)  # exact products, many ties
    relevant = [rng.integers(0, 17, rng.integers(0, 4)) for _ in range(17)]
    found = metrics.rank_queries(
        vectors, vectors, relevant.__getitem__, exclude_self=exclude_self, chunk=chunk
    )
    for query in range(17):
        first, average, gain = slow_rank(
            (vectors @ vectors.T)[query].astype(np.float64),
            set(map(int, relevant[query])),
            query if exclude_self else None,
        )
        assert found.first_rank[query] == first
        np.testing.assert_allclose(found.average_precision[query], average)
        np.testing.assert_allclose(found.ndcg[query], gain)
        assert found.n_relevant[query] == len(
            set(map(int, relevant[query])) - ({query} if exclude_self else set())
        )
    assert found.n_candidates == 17 - exclude_self


@pytest.mark.parametrize("exclude_self", [False, True])
def test_rank_queries__compares_only_those_that_have_an_answer(exclude_self: bool) -> None:
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(40, 4)).astype(np.float32)
    relevant = [rng.integers(0, 40, rng.integers(0, 2)) for _ in range(40)]
    relevant[7] = np.array([7, 7])
    told: list[int] = []
    found = metrics.rank_queries(
        *(vectors, vectors, relevant.__getitem__),
        exclude_self=exclude_self,
        chunk=8,
        advance=told.append,
    )
    right = [
        set(map(int, rows)) - ({q} if exclude_self else set()) for q, rows in enumerate(relevant)
    ]
    asking = [query for query in range(40) if right[query]]
    assert 8 < len(asking) < 32
    assert told == [len(asking[at : at + 8]) for at in range(0, len(asking), 8)]
    assert np.flatnonzero(found.answerable).tolist() == asking
    answerable = metrics.answerable_queries(40, relevant.__getitem__, exclude_self=exclude_self)
    assert answerable.tolist() == asking


def test_rank_queries__constant_embeddings_get_the_worst_rank() -> None:
    same = np.ones((5, 3), np.float32)
    found = metrics.rank_queries(same, same, lambda query: np.array([query]))
    assert (found.first_rank == 5).all()
    assert metrics.recall_at_k(found, 4) == 0
    assert found.tied == 5
    assert metrics.mean_average_precision(found) == pytest.approx(1 / 5)


def test_ranking__summaries_leave_out_queries_without_an_answer() -> None:
    ranking = metrics.Ranking(
        np.array([1, 0, 4, 3]),
        np.array([1.0, np.nan, 0.25, 0.5]),
        np.array([1.0, np.nan, 0.43, 0.6]),
        np.array([1, 0, 1, 2]),
        10,
        0,
    )
    assert metrics.recall_at_k(ranking, 1) == pytest.approx(1 / 3)
    assert metrics.recall_at_k(ranking, 3) == pytest.approx(2 / 3)
    assert metrics.median_rank(ranking) == 3
    assert metrics.mean_rank(ranking) == pytest.approx(8 / 3)
    assert metrics.mean_average_precision(ranking) == pytest.approx(1.75 / 3)
    assert metrics.chance_recall_at_1(ranking) == pytest.approx((0.1 + 0.1 + 0.2) / 3)
    assert metrics.mean_ndcg(ranking) == pytest.approx(2.03 / 3)
    nan = np.array([np.nan])
    nobody = metrics.Ranking(np.array([0]), nan, nan, np.array([0]), 1, 0)
    for summary in (
        metrics.median_rank,
        metrics.mean_rank,
        metrics.mean_average_precision,
        metrics.mean_ndcg,
    ):
        assert math.isnan(summary(nobody))
    assert math.isnan(metrics.recall_at_k(nobody, 1))


def slow_class_rank(scores: NDArray[np.float64], label: int) -> tuple[int, int]:
    order = sorted(range(len(scores)), key=lambda c: (-scores[c], c == label, c))
    return order.index(label) + 1, order[0]


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_class_ranks__as_the_obvious_loop(seed: int, rows: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (rows, classes)).astype(np.float64)
    labels = rng.integers(0, classes, rows)
    found = metrics.class_ranks(scores, labels)
    for row in range(rows):
        rank, predicted = slow_class_rank(scores[row], int(labels[row]))
        assert found.rank[row] == rank
        assert found.predicted[row] == predicted
    # The confusion matrix and top-1 say the same thing.
    matrix = metrics.confusion(labels, found.predicted, classes)
    assert np.trace(matrix) / rows == pytest.approx(metrics.topk_accuracy(found.rank, 1))


def test_class_ranks__chunked_equals_whole() -> None:
    rng = np.random.default_rng(0)
    embeds = rng.integers(-2, 3, (23, 4)).astype(np.float32)
    classes = rng.integers(-2, 3, (6, 4)).astype(np.float32)
    labels = rng.integers(0, 6, 23)
    whole = metrics.class_ranks(embeds @ classes.T, labels)
    parts = metrics.class_ranks_chunked(embeds, classes, labels, chunk=5)
    np.testing.assert_array_equal(whole.rank, parts.rank)
    np.testing.assert_array_equal(whole.predicted, parts.predicted)
    assert whole.tied == parts.tied > 0


def test_class_ranks__all_equal_scores_are_all_wrong() -> None:
    found = metrics.class_ranks(np.zeros((4, 3)), np.array([0, 1, 2, 0]))
    assert (found.rank == 3).all()
    assert found.tied == 4
    assert metrics.topk_accuracy(found.rank, 1) == 0
    assert metrics.topk_accuracy(found.rank, 3) == 1


def test_class_ranks__one_class_is_always_right() -> None:
    found = metrics.class_ranks(np.zeros((2, 1)), np.array([0, 0]))
    assert found.rank.tolist() == [1, 1]
    assert found.predicted.tolist() == [0, 0]


def test_class_ranks__no_rows() -> None:
    none = np.zeros(0, np.int64)
    empty = np.zeros((0, 4), np.float32)
    found = metrics.class_ranks_chunked(empty, np.zeros((3, 4), np.float32), none)
    assert math.isnan(metrics.topk_accuracy(found.rank, 1))
    assert metrics.confusion(none, found.predicted, 3).sum() == 0


def test_class_scores__against_counting_with_an_empty_class() -> None:
    labels = np.array([0, 0, 0, 1, 1, 3])
    guesses = np.array([0, 0, 1, 1, 2, 3])
    matrix = metrics.confusion(labels, guesses, 5)
    scores = metrics.class_scores(matrix)
    for c in range(5):
        hits = int(((labels == c) & (guesses == c)).sum())
        for value, whole in (
            (scores.recall[c], (labels == c).sum()),
            (scores.precision[c], (guesses == c).sum()),
            (scores.f1[c] / 2, (labels == c).sum() + (guesses == c).sum()),
        ):
            np.testing.assert_allclose(value, hits / whole if whole else np.nan)
    assert metrics.class_mean(matrix) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    # Class 2 was guessed but has no rows, class 4 neither: both stay out of the mean.
    assert metrics.macro_f1(matrix) == pytest.approx((4 / 5 + 2 / 4 + 1) / 3)
    assert metrics.most_confused(matrix) == [(0, 1, 1), (1, 2, 1)]


def test_macro_f1__no_rows_is_nan() -> None:
    assert math.isnan(metrics.macro_f1(np.zeros((3, 3), np.int64)))
    assert math.isnan(metrics.class_mean(np.zeros((3, 3), np.int64)))


def test_wilson__known_values_and_edges() -> None:
    assert metrics.wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert metrics.wilson(0, 0) == (0.0, 1.0)
    low, high = metrics.wilson(0, 20)
    assert low == 0
    assert 0.1 < high < 0.2
    low, high = metrics.wilson(20, 20)
    assert high == 1
    assert 0.8 < low < 0.9
    for n in range(1, 200):  # exactly, whatever rounding leaves
        assert metrics.wilson(0, n)[0] == 0
        assert metrics.wilson(n, n)[1] == 1


def test_wilson__covers_the_truth_95_percent_of_the_time_on_average() -> None:
    n, shares = 100, np.linspace(0.05, 0.95, 91)
    ends = [metrics.wilson(hits, n) for hits in range(n + 1)]
    coverage = [
        sum(
            math.comb(n, hits) * p**hits * (1 - p) ** (n - hits)
            for hits, (low, high) in enumerate(ends)
            if low <= p <= high
        )
        for p in shares
    ]
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.005)


def test_groups__none_belongs_nowhere() -> None:
    found = metrics.groups(["a", None, "b", "a"])
    assert {key: rows.tolist() for key, rows in found.items()} == {"a": [0, 3], "b": [2]}


def test_bootstrap__as_the_obvious_loop_over_the_same_draws() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 6, 80).astype(np.int64)
    predicted = np.where(rng.random(80) < 0.6, labels, rng.integers(0, 7, 80)).astype(np.int64)
    found = metrics.bootstrap(labels, predicted, 7, resamples=200, seed=5)
    again, values = np.random.default_rng(5), []
    for _ in range(200):
        rows = again.integers(0, 80, 80)
        matrix = metrics.confusion(labels[rows], predicted[rows], 7)
        values.append(
            (
                np.mean(labels[rows] == predicted[rows]),
                metrics.class_mean(matrix),
                metrics.macro_f1(matrix),
            )
        )
    expected = np.quantile(np.array(values), [0.025, 0.975], axis=0).T
    matrix = metrics.confusion(labels, predicted, 7)
    whole = [np.mean(labels == predicted), metrics.class_mean(matrix), metrics.macro_f1(matrix)]
    assert all(low <= value <= high for (low, high), value in zip(expected, whole, strict=True))
    np.testing.assert_allclose([found.top1, found.class_mean, found.macro_f1], expected)
    with pytest.raises(ValueError, match="no rows"):
        metrics.bootstrap(labels[:0], predicted[:0], 7)


def test_bootstrap__an_interval_holds_its_figure() -> None:
    """With one row a class F1 is higher in resamples: some that were mistaken are not drawn."""
    rng = np.random.default_rng(0)
    labels = np.arange(3000)
    predicted = np.where(rng.random(3000) < 0.5, labels, rng.integers(0, 3000, 3000))
    figure = metrics.macro_f1(metrics.confusion(labels, predicted, 3000))
    found = metrics.bootstrap(labels, predicted, 3000, resamples=200)
    assert found.macro_f1[0] == figure < found.macro_f1[1]


def test_bootstrap__of_a_share_is_near_wilsons_interval() -> None:
    labels = np.zeros(400, np.int64)
    predicted = (np.arange(400) >= 300).astype(np.int64)
    low, high = metrics.bootstrap(labels, predicted, 2).top1
    wilson = metrics.wilson(300, 400)
    assert (low, high) == pytest.approx(wilson, abs=0.01)


def test_calibration__worked_example_and_edges() -> None:
    confidence = np.array([0.95, 0.85, 0.85, 0.15, 1.0, 0.0])
    right = np.array([True, True, False, False, True, True])
    found = metrics.calibration(confidence, right, bins=10)
    assert found.count.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 2, 2]
    # 0: |0 - 1|, 1: |0.15 - 0|, 8: |0.85 - 0.5| twice, 9: |0.975 - 1| twice
    assert found.error == pytest.approx((1 + 0.15 + 2 * 0.35 + 2 * 0.025) / 6)
    assert math.isnan(found.accuracy[4])
    assert math.isnan(metrics.calibration(confidence[:0], right[:0]).error)


def test_calibration__of_honest_confidences_is_near_zero() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1, 50_000)
    honest = rng.random(50_000) < confidence
    assert metrics.calibration(confidence, honest).error < 0.01
    assert metrics.calibration(confidence, np.zeros(50_000, bool)).error > 0.5


def test_confidences__are_the_largest_softmax_probability() -> None:
    rng = np.random.default_rng(1)
    embeds, classes = (metrics.normalise(rng.normal(size=(n, 8))) for n in (50, 9))
    logits = 20.0 * (embeds.astype(np.float64) @ classes.T)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(
        metrics.confidences(embeds, classes, 20.0, chunk=7), softmax.max(1), rtol=1e-6
    )
    assert metrics.confidences(embeds[:0], classes, 20.0).shape == (0,)


def test_most_confused__tells_no_more_than_asked() -> None:
    matrix = 1 - np.eye(6, dtype=np.int64)
    assert len(metrics.most_confused(matrix, 3)) == 3
    assert len(metrics.most_confused(matrix)) == 20
