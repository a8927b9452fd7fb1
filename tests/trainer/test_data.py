from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.common import InputError
from pipeline.shards import ShardSet
from tests.trainer.conftest import MakeShards, Synth, make_rows, open_batches, rows_of, small_recipe
from trainer import data as data_module
from trainer.batch import CloudBatch, Position
from trainer.data import Batches, HeldOut, _Epoch, estimated_bytes
from trainer.index import Corpus
from trainer.order import LANES, Epoch, Order
from trainer.sampling import Block, Draws, read_block


def assert_equal(a: CloudBatch, b: CloudBatch) -> None:
    for name in ("row", "xyz", "rgb", "image", "text", "has_text"):
        left, right = getattr(a, name), getattr(b, name)
        assert np.array_equal(np.asarray(left), np.asarray(right)), name
    assert a.next == b.next


def test_epoch__every_training_row_once_and_no_held_out_row(make_shards: MakeShards) -> None:
    batches = open_batches(make_shards())
    found = rows_of(batches, 0)
    flat = [row for batch in found for row in batch]
    assert len(found) == batches.per_epoch == -(-batches.corpus.n_train // 16)
    assert {len(batch) for batch in found} == {14, 15}
    assert sorted(flat) == np.flatnonzero(batches.corpus.train_mask).tolist()


def test_epoch__order_changes_between_epochs_and_repeats_for_a_seed(
    make_shards: MakeShards,
) -> None:
    root = make_shards()
    assert rows_of(open_batches(root), 0) == rows_of(open_batches(root), 0)
    assert rows_of(open_batches(root), 0) != rows_of(open_batches(root), 1)
    assert rows_of(open_batches(root), 0) != rows_of(open_batches(root, seed=1), 0)


def test_epoch__batches_mix_row_groups(make_shards: MakeShards) -> None:
    batches = open_batches(make_shards())
    starts = np.array([group.start for group in batches.corpus.groups])
    for batch in batches.epoch(0):
        assert len(set(np.searchsorted(starts, batch.row, side="right").tolist())) > 1


@pytest.mark.parametrize("groups", [1, 2, 32])
@pytest.mark.parametrize("weights", ["[]", "[1.5]"])
def test_epoch__memory_and_streaming_give_the_same_batches(
    make_shards: MakeShards, groups: int, weights: str
) -> None:
    root = make_shards(textless=5)
    options = (f"data.shuffle_groups={groups}", f"data.weights={weights}")
    kept = open_batches(root, overrides=options)
    streamed = open_batches(root, overrides=(*options, "data.cache_mib=0"))
    assert kept.in_memory
    assert not streamed.in_memory
    pairs = list(zip(kept.epoch(3), streamed.epoch(3), strict=True))
    assert len(pairs) == kept.per_epoch
    for a, b in pairs:
        assert_equal(a, b)


@pytest.mark.parametrize("cache", ["data.cache_mib=0", "data.cache_mib=100"])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_epoch__parts_of_processes_make_up_the_batch_of_one(
    make_shards: MakeShards, world: int, cache: str
) -> None:
    corpus = Corpus([make_shards(textless=5)], small_recipe(cache, "data.shuffle_groups=1"))
    whole = Batches(corpus, 0).epoch(2, 1)
    parts = [Batches(corpus, 0, rank=rank, world=world).epoch(2, 1) for rank in range(world)]
    for full, *shares in zip(whole, *parts, strict=True):
        assert len({share.next for share in shares} | {full.next}) == 1
        for name in ("row", "xyz", "rgb", "image", "text", "has_text"):
            joined = np.concatenate([np.asarray(getattr(share, name)) for share in shares])
            assert np.array_equal(joined, np.asarray(getattr(full, name))), name
        assert [share.total for share in shares] == [len(full)] * world
        before = np.cumsum([0, *(len(share) for share in shares)])
        assert [share.offset for share in shares] == before[:-1].tolist()


def test_epoch__more_processes_than_rows_are_refused(make_shards: MakeShards) -> None:
    corpus = Corpus([make_shards()], small_recipe())
    with pytest.raises(InputError, match="--workers 17: more than the 14 rows of a batch"):
        Batches(corpus, 0, world=17)


def test_rows_until__counts_the_rows_of_steps(make_shards: MakeShards) -> None:
    batches = open_batches(make_shards())
    sizes = [len(batch) for epoch in range(2) for batch in batches.epoch(epoch)]
    for step in (0, 1, batches.per_epoch, batches.per_epoch + 2):
        assert batches.rows_until(step) == sum(sizes[:step])


def test_stream__remote_set_gives_the_same_batches(make_shards: MakeShards) -> None:
    import fsspec

    root = make_shards()
    memory = fsspec.filesystem("memory")
    for path in root.iterdir():
        memory.pipe_file(f"/remote/{path.name}", path.read_bytes())
    try:
        options = ("data.cache_mib=0", "data.shuffle_groups=1")
        local = open_batches(root, overrides=options)
        remote = Batches(Corpus(["memory://remote"], small_recipe(*options)), 0)
        for a, b in zip(local.epoch(0), remote.epoch(0), strict=True):
            assert_equal(a, b)
    finally:
        memory.rm("/remote", recursive=True)


def test_weights__decide_how_often_the_rows_of_a_set_come_up(make_shards: MakeShards) -> None:
    roots = [make_shards("a"), make_shards("b", prefix="other", count=40)]
    options = ("data.weights=[0.5, 3]", "data.batch_size=12")
    batches = open_batches(*roots, overrides=options)
    corpus = batches.corpus
    n_first, n_second = (len(rows) for rows in batches.order.rows)
    flat = [row for batch in rows_of(batches, 0) for row in batch]
    assert sum(row < 96 for row in flat) == round(0.5 * n_first)
    assert sum(row >= 96 for row in flat) == 3 * n_second
    assert [item["weight"] for item in corpus.record()["shards"]] == [0.5, 3]


def test_weights__each_time_a_row_comes_up_has_its_own_view(make_shards: MakeShards) -> None:
    batches = open_batches(make_shards(views=8), overrides=("data.weights=[4]", "data.thumbnail=0"))
    seen: dict[int, set[bytes]] = {}
    for batch in batches.epoch(0):
        assert batch.image is not None
        for row, vector in zip(batch.row.tolist(), batch.image, strict=True):
            seen.setdefault(row, set()).add(vector.numpy().tobytes())
    assert np.mean([len(views) for views in seen.values()]) > 2.5


@pytest.mark.parametrize("cache", ["data.cache_mib=0", "data.cache_mib=100"])
def test_stream__goes_on_from_any_position(make_shards: MakeShards, cache: str) -> None:
    batches = open_batches(make_shards(), overrides=(cache, "data.shuffle_groups=1"))
    whole = batches.stream(Position())
    straight = [next(whole) for _ in range(2 * batches.per_epoch + 2)]
    whole.close()  # type: ignore[attr-defined]
    for done in range(len(straight) - 1):
        again = batches.stream(straight[done].next)
        assert_equal(next(again), straight[done + 1])
        again.close()  # type: ignore[attr-defined]


def test_batch__values_are_those_of_the_shards(make_shards: MakeShards) -> None:
    root = make_shards(textless=5)
    rows = {row.uid: row for row in make_rows(Synth(textless=5))}
    uids = ShardSet.open(root).uids()
    batches = open_batches(root)
    for batch in batches.epoch(0):
        clouds = batch.to(torch.device("cpu"))
        assert batch.xyz.dtype == torch.int16
        assert batch.rgb.dtype == torch.uint8
        assert clouds.image is not None
        assert clouds.text is not None
        for place, number in enumerate(batch.row):
            row = rows[uids[number]]
            np.testing.assert_allclose(clouds.xyz[place], row.xyz[:128], atol=2e-5)
            np.testing.assert_allclose(clouds.rgb[place] * 255, row.rgb[:128], atol=1e-3)
            near = np.abs(row.image_embeds - clouds.image[place].numpy()).max(1)
            assert near.min() < 1e-3
            assert bool(clouds.has_text[place]) == bool(row.texts)
            if row.texts:
                near = np.abs(row.text_embeds - clouds.text[place].numpy()).max(1)
                assert near.min() < 1e-3
            else:
                assert float(clouds.text[place].abs().max()) == 0


def test_batch__views_and_texts_change_between_epochs(make_shards: MakeShards) -> None:
    batches = open_batches(make_shards())

    def images(epoch: int) -> dict[int, bytes]:
        return {
            int(number): batch.image[place].numpy().tobytes()
            for batch in batches.epoch(epoch)
            if batch.image is not None
            for place, number in enumerate(batch.row)
        }

    first, second = images(0), images(1)
    common = set(first) & set(second)
    changed = sum(first[row] != second[row] for row in common)
    # One of three views each time: two thirds change.
    assert 0.4 < changed / len(common) < 0.9


def test_batch__mean_sampling_gives_the_normalised_mean(make_shards: MakeShards) -> None:
    root = make_shards()
    overrides = ("data.image_sampling=mean", "data.text_sampling=mean")
    rows = {row.uid: row for row in make_rows(Synth())}
    uids = ShardSet.open(root).uids()
    batch = next(open_batches(root, overrides=overrides).epoch(0))
    assert batch.image is not None
    assert batch.text is not None
    for place, number in enumerate(batch.row):
        row = rows[uids[number]]
        for given, vectors in ((batch.image, row.image_embeds), (batch.text, row.text_embeds)):
            mean = np.asarray(vectors, np.float32).mean(0)
            np.testing.assert_allclose(given[place], mean / np.linalg.norm(mean), atol=2e-3)


def test_validation__is_the_held_out_slice_in_a_fixed_order(make_shards: MakeShards) -> None:
    corpus = Corpus([make_shards()], small_recipe())
    first, second = list(HeldOut(corpus).batches()), list(HeldOut(corpus).batches())
    rows = [row for batch in first for row in batch.row.tolist()]
    assert rows == np.flatnonzero(corpus.val_mask).tolist()
    for a, b in zip(first, second, strict=True):
        assert_equal(a, b)


def test_validation__views_are_those_of_its_own_draws(make_shards: MakeShards) -> None:
    root = make_shards(views=8)
    corpus = Corpus([root], small_recipe("data.thumbnail=0"))
    rows = {row.uid: row for row in make_rows(Synth(views=8))}
    uids = ShardSet.open(root).uids()
    own, of_training = (Draws.of(0, epoch, len(corpus)).view for epoch in (-1, 0))
    differ = 0
    for batch in HeldOut(corpus).batches():
        assert batch.image is not None
        for place, row in enumerate(batch.row.tolist()):
            views = np.asarray(rows[uids[row]].image_embeds, np.float16)
            assert np.array_equal(batch.image[place].numpy(), views[int(8 * own[row])])
            differ += int(8 * own[row]) != int(8 * of_training[row])
    assert differ


@pytest.mark.parametrize(("room", "kept"), [(1 << 40, True), (0, False)])
def test_validation__is_read_once_where_it_fits(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch, room: int, kept: bool
) -> None:
    corpus = Corpus([make_shards()], small_recipe())
    held_out, plain = HeldOut(corpus, room), HeldOut(corpus)
    reads: list[int] = []

    def counted(*arguments: Any) -> Block:
        reads.append(1)
        return read_block(*arguments)

    monkeypatch.setattr("trainer.data.read_block", counted)
    first = list(held_out.batches())
    count = len(reads)
    second = list(held_out.batches())
    assert count == len(corpus.groups)
    assert len(reads) == (count if kept else 2 * count)
    for a, b, c in zip(first, second, plain.batches(), strict=True):
        assert_equal(a, b)
        assert_equal(a, c)


def test_block__large_sets_are_in_memory_once_while_they_are_read(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus([make_shards(count=240, textless=4)], small_recipe())
    taken: list[int] = []
    for name in ("empty", "concatenate"):
        plain = getattr(np, name)

        def counted(*arguments: Any, plain: Any = plain, **options: Any) -> Any:
            made = plain(*arguments, **options)
            taken.append(made.nbytes)
            return made

        monkeypatch.setattr(f"trainer.sampling.np.{name}", counted)
    block = read_block(corpus, corpus.sets, corpus.groups, corpus.train_mask)
    large = block.xyz.nbytes + block.rgb.nbytes + block.image.nbytes
    assert sum(taken) < 1.2 * (large + block.text.nbytes)


def test_stream__a_wait_for_the_first_batch_can_be_given_up(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = open_batches(make_shards())
    asked = threading.Event()

    def slow(_: Order, number: int, stopped: Callable[[], bool]) -> Epoch:
        asked.set()
        while not stopped():
            time.sleep(0.01)
        raise CancelledError

    monkeypatch.setattr(Order, "epoch", slow)
    stream = batches.stream(Position(), asked.is_set)
    with pytest.raises(CancelledError):
        next(stream)
    assert not any(t.name == "trainer-prefetch" for t in threading.enumerate())


def test_draws__validation_differs_from_training() -> None:
    assert not np.array_equal(Draws.of(0, -1, 5).view, Draws.of(0, 0, 5).view)


def test_stream__next_window_is_asked_for_while_one_is_in_use(make_shards: MakeShards) -> None:
    overrides = ("data.cache_mib=0", "data.shuffle_groups=1")
    batches = open_batches(make_shards(count=240), overrides=overrides)
    epoch = _Epoch(batches, 0, 0, batches.order.epoch(0))
    blocks = epoch.blocks
    assert blocks is not None
    try:
        last = 0
        for part in epoch.parts[: len(epoch.parts) // 2]:
            blocks.take(part)
            last = int(epoch.order.window[part].max())
            assert {key // LANES for key in blocks._blocks} >= {last, last + 1}
        assert last > 0
    finally:
        epoch.close()


def test_stream__next_epoch_is_read_before_this_one_ends(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_shards(count=240)
    batches = open_batches(root, overrides=("data.cache_mib=0", "data.shuffle_groups=3"))
    given, begun = 0, dict[int, int]()  # epochs, and the batches that were given before

    class Watched(_Epoch):
        def __init__(self, batches: Batches, number: int, start: int, order: Epoch) -> None:
            super().__init__(batches, number, start, order)
            assert self.blocks is not None
            assert len(self.blocks._blocks) > 0  # being read
            begun[number] = given

    monkeypatch.setattr(data_module, "_Epoch", Watched)
    stream = batches._endless(Position())
    for given in range(2 * batches.per_epoch):
        time.sleep(0.05)  # the order of the next epoch is there in its last window
        assert next(stream).next == Position(*divmod(given + 1, batches.per_epoch))
    stream.close()  # type: ignore[attr-defined]
    assert begun[0] == 0
    # In the second of two windows, not sooner: that would be a third window in memory.
    assert batches.per_epoch / 3 < begun[1] < batches.per_epoch - 2


@pytest.mark.parametrize("cache", ["data.cache_mib=0", "data.cache_mib=100"])
def test_stream__order_of_the_next_epoch_is_made_during_this_one(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    batches = open_batches(make_shards(), overrides=(cache,))
    given = threading.Event()
    plain = batches.order.epoch

    def slow(number: int, stopped: Callable[[], bool] = lambda: False) -> Epoch:
        # As long as all batches but the last of the epoch before take.
        assert number == 0 or given.wait(20)
        return plain(number, stopped)

    monkeypatch.setattr(batches.order, "epoch", slow)
    stream = batches._endless(Position())
    seen = [next(stream).row.tolist() for _ in range(batches.per_epoch - 1)]
    given.set()
    seen += [next(stream).row.tolist() for _ in range(batches.per_epoch + 1)]
    stream.close()  # type: ignore[attr-defined]
    monkeypatch.undo()
    assert seen == rows_of(batches, 0) + rows_of(batches, 1)


def test_stream__order_under_way_is_given_up(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = open_batches(make_shards())
    plain, ended = batches.order.epoch, threading.Event()

    def endless(number: int, stopped: Callable[[], bool] = lambda: False) -> Epoch:
        if number == 0:
            return plain(number)
        while not stopped():
            time.sleep(0.01)
        ended.set()
        raise CancelledError

    monkeypatch.setattr(batches.order, "epoch", endless)
    stream = batches.stream(Position())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert ended.wait(20)


def test_stream__error_of_the_reader_reaches_the_loop(make_shards: MakeShards) -> None:
    root = make_shards()
    batches = open_batches(root, overrides=("data.cache_mib=0",))
    part = sorted(root.glob("part-*.parquet"))[1]
    part.write_bytes(part.read_bytes()[:1000])
    batches._sets[0]._files.clear()
    with pytest.raises(InputError, match=part.name):
        list(zip(range(50), batches.stream(Position()), strict=False))


def test_cache__is_shared_by_the_processes_of_a_machine_and_what_is_left_is_told(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus([make_shards(count=240)], small_recipe("data.cache_mib=1"))
    size = estimated_bytes(corpus, corpus.n_train)
    assert size < 2**20 < 4 * size
    alone = Batches(corpus, 0)
    assert alone.in_memory
    assert alone.room == 2**20 - size
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert not Batches(corpus, 0, world=4).in_memory


def test_estimate__counts_the_thumbnail(make_shards: MakeShards) -> None:
    plain, more = (
        estimated_bytes(Corpus([make_shards(name, thumbnails=count)], small_recipe()), 10)
        for name, count in (("plain", 0), ("more", 1))
    )
    assert more == plain + 10 * 2 * 32
