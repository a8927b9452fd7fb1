"""Shards to batches: shuffled, sampled, resumable, shared out among processes, read ahead.

The order of an epoch (``trainer.order``) and every random choice in it (which view, thumbnail or
not, which text) are functions of (seed, epoch, row), so a position is two numbers, (epoch, batch),
and resuming costs nothing. The order depends neither on whether the set is kept in memory or
streamed nor on the number of processes, each of which makes its part of every batch.

Reading: ``data.readers`` threads fetch the row groups of the next window while a window is in use,
each lane of it (``trainer.order``) as one block, and one more thread makes ``data.prefetch``
batches ahead. The last window of an epoch is followed by the first one of the next. Memory of a
process when streaming: its part of two windows, each
``shuffle_groups * 64 * (9 * n_points + 2 D (V + texts))`` bytes in all.

An object has several views, perhaps a thumbnail, and any number of texts. A batch takes one of
them at random, or their mean, or all of them, with the mean standing for the object
(``data.image_sampling``, ``data.thumbnail``, ``data.text_sampling``). See ``trainer.sampling``.

Shape suffixes: B rows of a batch, R rows of a block, N points, D embedding width, S vectors of
all objects of a batch.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from trainer.batch import CloudBatch, Position, collate
from trainer.index import Corpus
from trainer.order import LANES, Epoch
from trainer.sampling import Block, Draws, IntArray, read_block

_LOOK_S = 0.5  # between looks whether a wait is over for another reason


class Batches:
    """All batches of a run on its training rows: those of one process."""

    def __init__(
        self,
        corpus: Corpus,
        seed: int,
        *,
        vectors: NDArray[np.int16] | None = None,
        rank: int = 0,
        world: int = 1,
        pin: bool = False,
    ) -> None:
        """``pin`` puts batches into page-locked memory, for copies to a GPU.

        ``vectors`` tell which rows are alike (``trainer.near``); they are needed for ``data.near``.
        Raises ``InputError`` when there are not enough rows in a batch for ``world`` processes.
        """
        self.corpus, self.seed, self.pin = corpus, seed, pin
        self.rank, self.world = rank, world
        if corpus.data.near > 1 and vectors is None:
            raise ValueError("data.near needs the vectors that tell what is alike")
        self.order = corpus.order(seed, vectors)
        self.order.require(world)
        self.per_epoch = self.order.steps
        self.rows_per_epoch = self.order.rows_per_epoch
        self._sets = corpus.reopen()
        self._memory: Block | None = None
        # Processes of one machine share its memory. What is left of it is for ``HeldOut``.
        self.room = corpus.data.cache_mib * 2**20 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        size = estimated_bytes(corpus, corpus.n_train)
        if size <= self.room:
            self.room -= size
            self._memory = read_block(corpus, self._sets, corpus.groups, corpus.train_mask)

    @property
    def in_memory(self) -> bool:
        """Whether the training rows are kept in memory."""
        return self._memory is not None

    def rows_until(self, step: int) -> int:
        """Rows of the first ``step`` batches, over all processes."""
        return self.order.rows_until(step)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[CloudBatch]:
        """Batches ``start`` and following of one epoch, the parts of this process."""
        prepared = _Epoch(self, epoch, start, self.order.epoch(epoch))
        try:
            yield from self._batches(prepared)
        finally:
            prepared.close()

    def _batches(self, epoch: _Epoch) -> Iterator[CloudBatch]:
        order, blocks = epoch.order, epoch.blocks
        for number, part in enumerate(epoch.parts, epoch.start + 1):
            taken = blocks.take(part) if blocks else [(self._memory, order.occurrence[part])]
            end = number == self.per_epoch
            yield collate(
                self.corpus,
                taken,  # type: ignore[arg-type]
                epoch.draws,
                Position(epoch.number + 1, 0) if end else Position(epoch.number, number),
                pin=self.pin,
                whole=int(order.bounds[number] - order.bounds[number - 1]),
                offset=part.start - int(order.bounds[number - 1]),
            )

    def stream(
        self, start: Position, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[CloudBatch]:
        """Endless batches from a position, made ahead by a thread. Close it when done.

        Raises ``CancelledError`` where a batch is waited for, which may take minutes for the first
        one of a large set in groups of similar objects, and ``cancelled`` becomes true.
        """
        left = threading.Event()
        source = self._endless(start, left.is_set)
        return read_ahead(source, self.corpus.data.prefetch, left, cancelled)

    def _endless(
        self, start: Position, left: Callable[[], bool] = lambda: False
    ) -> Iterator[CloudBatch]:
        """The next epoch is put in order during this one, and read in the last window of it.

        Raises ``CancelledError`` where the first one is put in order for somebody who has ``left``.
        """
        first = self.order.epoch(start.epoch, left)
        stop = threading.Event()  # or the process would not end before the next order is made
        sorter = ThreadPoolExecutor(1, thread_name_prefix="trainer-order")
        now, after = _Epoch(self, start.epoch, start.batch, first), None
        try:
            while True:
                number = now.number + 1
                order = sorter.submit(self.order.epoch, number, stop.is_set)
                for batch in self._batches(now):
                    if after is None and now.is_read and order.done():
                        after = _Epoch(self, number, 0, order.result())
                    yield batch
                now.close()
                now, after = after or _Epoch(self, number, 0, order.result()), None
        finally:
            stop.set()
            sorter.shutdown(cancel_futures=True)
            now.close()
            if after:
                after.close()


class _Epoch:
    """What the batches of an epoch are made of; reading begins at once."""

    def __init__(self, batches: Batches, number: int, start: int, order: Epoch) -> None:
        """From batch ``start`` on."""
        corpus, self.number, self.start = batches.corpus, number, start
        self.order = order
        self.draws = Draws.of(batches.seed, number, len(corpus) * self.order.times)
        self.parts = [
            self.order.part(batch, batches.rank, batches.world)
            for batch in range(start, batches.per_epoch)
        ]
        self.blocks = None if batches.in_memory else _Blocks(corpus, self.order, self.parts)

    @property
    def is_read(self) -> bool:
        """Whether nothing is left to read but what is under way."""
        return self.blocks is None or self.blocks.in_last_window

    def close(self) -> None:
        """Stop reading."""
        if self.blocks:
            self.blocks.close()


class _Blocks:
    """The rows that some places of an epoch need, read by threads a window ahead.

    A block holds those of one lane of one window.
    """

    def __init__(self, corpus: Corpus, order: Epoch, parts: Sequence[slice]) -> None:
        """``parts``: the places of one batch after another, as ``take`` will ask for them."""
        self.corpus, self.order, self._parts = corpus, order, parts
        places = np.concatenate(
            [np.arange(part.start, part.stop) for part in parts] or [np.zeros(0, np.int64)]
        )
        key = order.window[places] * LANES + order.lane[places]
        sort = np.argsort(key, kind="stable")
        keys, first = np.unique(key[sort], return_index=True)
        rows = np.split(order.row[places][sort], first[1:])
        self._rows = dict(zip(keys.tolist(), rows, strict=True))
        self._waiting = keys.tolist()  # sorted by window
        self._blocks: dict[int, Future[Block]] = {}
        self._pool = ThreadPoolExecutor(corpus.data.readers, thread_name_prefix="trainer-reader")
        if self._waiting:
            self._fetch(self._waiting[0] // LANES)

    @property
    def in_last_window(self) -> bool:
        """Whether all is asked for, and of one window at most is still held."""
        return not self._waiting and len({key // LANES for key in self._blocks}) <= 1

    def take(self, part: slice) -> list[tuple[Block, IntArray]]:
        """Blocks of a batch with its occurrences in each, in the order of the places."""
        keys = self.order.window[part] * LANES + self.order.lane[part]
        windows = self.order.window[part]
        self._fetch(int(windows.max()) + 1)
        found = []
        cuts = np.flatnonzero(np.diff(keys)) + 1
        for run, occurrences in zip(
            np.split(keys, cuts), np.split(self.order.occurrence[part], cuts), strict=True
        ):
            found.append((self._blocks[int(run[0])].result(), occurrences))
        for key in [key for key in self._blocks if key < int(windows.min()) * LANES]:
            del self._blocks[key]
        return found

    def _fetch(self, window: int) -> None:
        """Have all windows read up to this one."""
        while self._waiting and self._waiting[0] // LANES <= window:
            key = self._waiting.pop(0)
            self._blocks[key] = self._pool.submit(self._read, key)

    def _read(self, key: int) -> Block:
        rows = np.unique(self._rows.pop(key))
        mask = np.zeros(len(self.corpus), np.bool_)
        mask[rows] = True
        groups = [self.corpus.groups[g] for g in self.order.groups(*divmod(key, LANES))]
        return read_block(self.corpus, self.corpus.of_thread(), groups, mask)

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(cancel_futures=True)


def estimated_bytes(corpus: Corpus, n_rows: int) -> int:
    """Upper estimate of the size of rows in memory: 3 texts a row are assumed."""
    views = max(shards.manifest.n_views for shards in corpus.sets)
    views += any(shards.manifest.thumbnails for shards in corpus.sets)
    vectors = views * corpus.loss.needs_image + 3 * corpus.loss.needs_text
    return n_rows * (9 * corpus.data.n_points + 2 * vectors * corpus.teacher.width)


class HeldOut:
    """The validation slice. Its rows lie scattered over the sets: kept once read, if they fit."""

    def __init__(self, corpus: Corpus, room: int = 0) -> None:
        """``room``: bytes of memory that it may take for good."""
        self.corpus = corpus
        self._keeps = estimated_bytes(corpus, corpus.n_val) <= room
        self._kept: list[Block] = []

    def batches(self) -> Iterator[CloudBatch]:
        """The slice in a fixed order, the last batch smaller; never augmented."""
        # One seed for all runs: their numbers are to be compared.
        draws = Draws.of(0, -1, len(self.corpus))
        size = self.corpus.data.batch_size
        pending: list[tuple[Block, IntArray]] = []
        waiting = 0
        for block in self._kept or self._read():
            pending.append((block, block.row))
            waiting += len(block.row)
            while waiting >= size:
                yield collate(self.corpus, _take(pending, size), draws, Position())
                waiting -= size
        if waiting:
            yield collate(self.corpus, _take(pending, waiting), draws, Position())

    def _read(self) -> Iterator[Block]:
        """A block of each row group that has rows of the slice."""
        corpus, sets = self.corpus, self.corpus.reopen()
        found = []
        for address in corpus.groups:
            block = read_block(corpus, sets, [address], corpus.val_mask)
            if len(block.row):
                if self._keeps:
                    found.append(block)
                yield block
        self._kept = found


def _take(pending: list[tuple[Block, IntArray]], count: int) -> list[tuple[Block, IntArray]]:
    """Remove the first ``count`` rows of ``pending`` and return them."""
    taken = []
    while count:
        block, rows = pending[0]
        taken.append((block, rows[:count]))
        if len(rows) > count:
            pending[0] = (block, rows[count:])
        else:
            pending.pop(0)
        count -= min(count, len(rows))
    return taken


def read_ahead(
    source: Iterator[CloudBatch],
    depth: int,
    left: threading.Event | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[CloudBatch]:
    """Pass on the items of ``source``, made ahead by a thread; its errors are raised here.

    Close it when it is left before its end, which sets ``left``. Raises ``CancelledError`` when an
    item is waited for and ``cancelled`` becomes true.
    """
    ready: queue.Queue[CloudBatch | BaseException | None] = queue.Queue(depth)
    stop = left or threading.Event()

    def get() -> CloudBatch | BaseException | None:
        while True:
            try:
                return ready.get(timeout=_LOOK_S)
            except queue.Empty:
                if cancelled():
                    raise CancelledError from None

    def put(item: CloudBatch | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for item in source:
                put(item)
                if stop.is_set():
                    source.close()  # type: ignore[attr-defined]
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="trainer-prefetch", daemon=True)
    thread.start()
    try:
        while (item := get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
