from __future__ import annotations

from collections import Counter
from concurrent.futures import CancelledError
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer.near import whole
from trainer.order import LANES, Epoch, Order, near_order


def make(
    sizes: list[list[int]],
    *,
    weights: tuple[float, ...] = (),
    batch_size: int = 16,
    window: int = 4,
    seed: int = 0,
    drop: int = 0,
) -> Order:
    """``sizes``: rows of every group of every set; every ``drop``-th row is not trained on."""
    flat = np.array([size for groups in sizes for size in groups], np.int64)
    sources = np.repeat(np.arange(len(sizes)), [len(groups) for groups in sizes])
    mask = np.ones(int(flat.sum()), np.bool_)
    if drop:
        mask[::drop] = False
    return Order(
        np.cumsum(flat) - flat,
        flat,
        sources,
        mask,
        weights=weights,
        seed=seed,
        batch_size=batch_size,
        window=window,
    )


def batches(epoch: Epoch) -> list[list[int]]:
    return [
        epoch.row[first:end].tolist()
        for first, end in zip(epoch.bounds[:-1], epoch.bounds[1:], strict=True)
    ]


SETS = st.lists(
    st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=1, max_size=3
).filter(lambda sets: sum(map(sum, sets)) >= 2)


@given(
    sizes=SETS,
    batch_size=st.integers(2, 50),
    window=st.integers(1, 6),
    world=st.integers(1, 7),
    drop=st.sampled_from([0, 2, 3]),
    number=st.integers(0, 5),
    start=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_epoch__no_row_twice_or_missing_for_any_number_of_processes(
    sizes: list[list[int]],
    batch_size: int,
    window: int,
    world: int,
    drop: int,
    number: int,
    start: int,
) -> None:
    order = make(sizes, batch_size=batch_size, window=window, drop=drop)
    epoch = order.epoch(number)
    whole = epoch.row
    assert sorted(whole.tolist()) == np.flatnonzero(order.mask).tolist()
    lengths = np.diff(epoch.bounds)
    assert lengths.max() <= batch_size
    assert lengths.max() - lengths.min() <= 1
    # Stopped after ``start`` batches by one number of processes and gone on with by another one.
    start = start % (order.steps + 1)
    found: list[int] = []
    for batch in range(order.steps):
        processes = world if batch < start else world % 3 + 1
        parts = [epoch.part(batch, rank, processes) for rank in range(processes)]
        given_out = [part.stop - part.start for part in parts]
        assert max(given_out) - min(given_out) <= 1
        found += [row for part in parts for row in whole[part].tolist()]
    assert found == whole.tolist()


@given(
    sizes=SETS,
    weights=st.tuples(*[st.floats(0.1, 4.0)] * 3),
    batch_size=st.integers(2, 20),
    window=st.integers(1, 6),
)
@settings(max_examples=100, deadline=None)
def test_epoch__weights_are_kept_over_the_epochs(
    sizes: list[list[int]], weights: tuple[float, ...], batch_size: int, window: int
) -> None:
    order = make(sizes, weights=weights, batch_size=batch_size, window=window)
    assume(all(order.quota))  # a weight that leaves a set without a row is refused before
    total: Counter[int] = Counter()
    for number in range(4):
        epoch = order.epoch(number)
        rows = epoch.row.tolist()
        assert len(rows) == order.rows_per_epoch
        assert len(set(epoch.occurrence.tolist())) == len(rows)
        total.update(rows)
        for source, of_set in enumerate(order.rows):
            share = order.quota[source] / len(of_set)
            assert sum(total[row] for row in of_set.tolist()) == order.quota[source] * (number + 1)
            for row in of_set.tolist():
                assert abs(total[row] - share * (number + 1)) < 1


def test_epoch__weight_of_a_half_takes_the_halves_in_turn() -> None:
    order = make([[20, 20], [20, 20]], weights=(1.0, 0.5))
    first, second = (set(order.epoch(number).row.tolist()) for number in (0, 1))
    of_second_set = set(range(40, 80))
    assert set(range(40)) < first
    assert set(range(40)) < second
    assert len(first & of_second_set) == len(second & of_second_set) == 20
    assert (first | second) >= of_second_set


def test_epoch__a_row_is_not_twice_in_a_batch() -> None:
    order = make([[30] * 6, [30] * 2], weights=(1.0, 4.0), batch_size=24, window=4)
    for number in range(10):
        epoch = order.epoch(number)
        assert any(count == 4 for count in Counter(epoch.row.tolist()).values())
        for batch in batches(epoch):
            assert len(set(batch)) == len(batch)


@pytest.mark.parametrize("seed", range(5))
def test_epoch__a_row_moved_out_of_a_batch_does_not_go_into_one_that_has_it(seed: int) -> None:
    # Three passes over 48 rows in one window: nearly every batch has a row twice at first.
    order = make([[12] * 4], weights=(3.0,), batch_size=8, window=12, seed=seed)
    for number in range(10):
        for batch in batches(order.epoch(number)):
            assert len(set(batch)) == len(batch)


def test_epoch__follows_seed_and_number() -> None:
    sizes = [[16] * 10]
    assert batches(make(sizes).epoch(3)) == batches(make(sizes).epoch(3))
    assert batches(make(sizes).epoch(3)) != batches(make(sizes).epoch(4))
    assert batches(make(sizes).epoch(3)) != batches(make(sizes, seed=1).epoch(3))


def test_epoch__batches_mix_the_groups_of_a_window() -> None:
    order = make([[16] * 32], batch_size=32, window=16)
    epoch = order.epoch(0)
    assert len(epoch.window_start) - 1 == 2
    for batch in batches(epoch):
        groups = {row // 16 for row in batch}
        assert len(groups) > 8  # of the 16 of a window
    # Rows of a group are not neighbours in time: they spread over the batches of the window.
    numbers = np.repeat(np.arange(order.steps), np.diff(epoch.bounds))
    for group in range(32):
        assert len(set(numbers[epoch.row // 16 == group].tolist())) > 4


def test_epoch__a_process_needs_its_share_of_the_groups() -> None:
    order = make([[64] * 64], batch_size=64, window=32)
    epoch = order.epoch(0)
    for world in (2, 4, 8):
        for rank in range(world):
            rows = np.concatenate(
                [epoch.row[epoch.part(batch, rank, world)] for batch in range(order.steps)]
            )
            share = len(set((rows // 64).tolist())) / 64
            # Its lanes, and one more on each side where batches do not divide evenly.
            assert share <= 1 / world + 2 / LANES


def test_groups__are_those_of_the_rows_of_a_lane() -> None:
    order = make([[5, 9, 1, 30] * 6], batch_size=10, window=9, drop=4)
    epoch = order.epoch(1)
    group_of_row = np.repeat(np.arange(len(order.sizes)), order.sizes)
    for window, lane in {*zip(epoch.window.tolist(), epoch.lane.tolist(), strict=True)}:
        here = (epoch.window == window) & (epoch.lane == lane)
        groups = set(group_of_row[epoch.row[here]].tolist())
        assert groups == set(epoch.groups(window, lane).tolist())


@pytest.mark.parametrize("size", [3, 64, 1000])
def test_epoch__all_orders_of_a_window_are_about_equally_likely(size: int) -> None:
    """Mean place of the first row over many epochs is the middle, to five standard errors."""
    order = make([[size]], batch_size=2)
    places = [int(np.flatnonzero(order.epoch(number).row == 0)[0]) for number in range(300)]
    error = size / np.sqrt(12 * len(places))
    assert abs(np.mean(places) - (size - 1) / 2) < 5 * error


def obvious_near_order(
    vectors: NDArray[np.int16], rows: list[int], size: int, rng: np.random.Generator
) -> list[int]:
    """As ``near_order``, one place after another, in Python's numbers."""
    waiting = rng.permutation(len(rows)).tolist()
    groups = []
    while waiting:
        seed = waiting.pop(0)
        product = {p: int(vectors[p].astype(np.int64) @ vectors[seed]) for p in waiting}
        others: list[int] = []
        for place in sorted(waiting, key=lambda p: product[p], reverse=True):
            if len(others) < size - 1 and rows[place] not in {rows[p] for p in (seed, *others)}:
                others.append(place)
        waiting = [p for p in waiting if p not in others]
        groups.append({seed, *others})
    # The order within a group is of no use, so it is left to the function.
    return [place for g in rng.permutation(len(groups)) for place in sorted(groups[g])]


def in_groups(order: list[int], size: int, rows: int) -> list[int]:
    """With every run of ``size`` places sorted."""
    return [p for start in range(0, rows, size) for p in sorted(order[start : start + size])]


def random_vectors(count: int, width: int, seed: int = 0) -> NDArray[np.int16]:
    values = np.random.default_rng(seed).normal(size=(count, width))
    return whole(values)


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("rows", [30, 150, 300])
def test_near_order__as_one_place_after_another(size: int, rows: int) -> None:
    vectors, numbers = random_vectors(rows, 7), np.arange(rows)
    found = near_order(vectors, numbers, size, np.random.default_rng(4)).tolist()
    wanted = obvious_near_order(vectors, numbers.tolist(), size, np.random.default_rng(4))
    assert in_groups(found, size, rows) == in_groups(wanted, size, rows)


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("zeros", [0, 20])
def test_near_order__has_every_place_once(size: int, zeros: int) -> None:
    vectors = random_vectors(50, 5)
    vectors[:zeros] = 0
    rows = np.arange(50)
    rows[10:30] = 10  # one row, which comes up twenty times
    found = near_order(vectors, rows, size, np.random.default_rng(0)).tolist()
    assert sorted(found) == list(range(50))
    assert near_order(vectors[:0], rows[:0], size, np.random.default_rng(0)).tolist() == []


def test_near_order__groups_are_of_one_kind_where_kinds_have_their_size() -> None:
    kinds = np.random.default_rng(1).permutation(np.repeat(np.arange(12), 4))
    vectors = whole(np.eye(12)[kinds] + 0.1 * np.random.default_rng(2).normal(size=(48, 12)))
    found = near_order(vectors, np.arange(48), 4, np.random.default_rng(0))
    groups = kinds[found].reshape(12, 4)
    assert (groups == groups[:, :1]).all()
    assert groups[:, 0].tolist() != sorted(groups[:, 0].tolist())  # in random order


@pytest.mark.parametrize("size", [2, 4])
def test_near_order__a_group_has_no_row_twice(size: int) -> None:
    rows = np.repeat(np.arange(40), 2)
    vectors = random_vectors(40, 6)[rows]
    for seed in range(5):
        found = near_order(vectors, rows, size, np.random.default_rng(seed))
        groups = rows[found].reshape(80 // size, size)
        # Only the last ones have no choice.
        assert sum(len(set(group)) < size for group in groups.tolist()) <= 2


def test_epoch__stops_between_windows_when_asked() -> None:
    order = make([[16] * 10], window=2)
    order.near, order.vectors = 2, random_vectors(160, 4)
    asked: list[None] = []

    def stopped() -> bool:
        asked.append(None)
        return len(asked) == 3

    with pytest.raises(CancelledError):
        order.epoch(0, stopped)
    assert len(asked) == 3


@pytest.mark.parametrize("width", [2, 512, 1280])
def test_near_scale__products_of_vectors_are_exact_in_float32(width: int) -> None:
    vectors = np.concatenate([random_vectors(200, width), whole(np.eye(width)[:4])])
    vectors = np.concatenate([vectors, vectors[:1], whole(np.ones((1, width)))])
    fast = vectors.astype(np.float32) @ vectors.astype(np.float32).T
    wide = vectors.astype(np.int64)
    assert (fast.astype(np.int64) == wide @ wide.T).all()


@given(
    sizes=SETS,
    weights=st.sampled_from([(), (0.5, 1.0, 2.5)]),
    batch_size=st.integers(2, 50),
    window=st.integers(1, 6),
    near=st.integers(2, 9),
)
@settings(max_examples=60, deadline=None)
def test_epoch__near_rows_together_change_the_order_only(
    sizes: list[list[int]],
    weights: tuple[float, ...],
    batch_size: int,
    window: int,
    near: int,
) -> None:
    plain = make(sizes, weights=weights, batch_size=batch_size, window=window)
    assume(all(plain.quota))
    order = make(sizes, weights=weights, batch_size=batch_size, window=window)
    order.near, order.vectors = near, random_vectors(len(order.mask), 4)
    usual, epoch = plain.epoch(1), order.epoch(1)
    assert sorted(epoch.occurrence.tolist()) == sorted(usual.occurrence.tolist())
    assert epoch.bounds.tolist() == usual.bounds.tolist()
    for name in ("window", "lane"):  # and each row is looked for where it is
        where = dict(zip(usual.occurrence.tolist(), getattr(usual, name).tolist(), strict=True))
        assert [where[o] for o in epoch.occurrence.tolist()] == getattr(epoch, name).tolist()
    first = np.minimum.reduceat(epoch.window, epoch.bounds[:-1])
    last = np.maximum.reduceat(epoch.window, epoch.bounds[:-1])
    assert np.all(last[:-1] <= first[1:])  # windows come one after another


def test_epoch__batches_have_near_rows() -> None:
    kinds = np.random.default_rng(3).permutation(np.repeat(np.arange(40), 8))

    def share_of_own_kind(near: int) -> float:
        order = make([[32] * 10], batch_size=40, window=10)
        order.near = near
        order.vectors = whole(np.eye(40)[kinds]) if near > 1 else None
        same = [
            (kinds[batch][:, None] == kinds[batch]).sum(1).mean()
            for batch in batches(order.epoch(0))
        ]
        return float(np.mean(same))

    assert share_of_own_kind(1) < 2.2
    assert 3.5 < share_of_own_kind(4) < 5.0
    assert share_of_own_kind(8) == 8.0  # a batch of five kinds, whole


def test_counts__sets_of_equal_size_have_turns_of_their_own() -> None:
    counts = make([[40], [40]], weights=(0.5, 0.5)).counts(0)
    assert counts[:40].sum() == counts[40:].sum() == 20
    assert counts[:40].tolist() != counts[40:].tolist()


@pytest.mark.parametrize("size", [3, 5, 6])
def test_near_order__of_equal_ones_those_drawn_first(size: int) -> None:
    kinds = np.random.default_rng(9).integers(0, 7, 300)
    vectors, numbers = whole(np.eye(7)[kinds]), np.arange(300)
    found = near_order(vectors, numbers, size, np.random.default_rng(4)).tolist()
    wanted = obvious_near_order(vectors, numbers.tolist(), size, np.random.default_rng(4))
    assert in_groups(found, size, 300) == in_groups(wanted, size, 300)


def test_epoch__groups_come_in_random_order() -> None:
    order = make([[16] * 40], window=4)
    first, second = (order.epoch(number).group.tolist() for number in (0, 1))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != sorted(first)
    assert first != second


def test_epoch__batches_take_of_all_lanes_in_proportion() -> None:
    order = make([[8, 40] * 16], batch_size=96, window=32)  # groups of two sizes, so lanes too
    epoch = order.epoch(0)
    share = np.bincount(epoch.lane, minlength=LANES) / len(epoch.lane)
    for first, end in pairwise(epoch.bounds):
        found = np.bincount(epoch.lane[first:end], minlength=LANES)
        assert np.abs(found - share * (end - first)).max() <= 2
