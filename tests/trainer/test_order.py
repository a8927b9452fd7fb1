from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trainer.order import LANES, Epoch, Order


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
