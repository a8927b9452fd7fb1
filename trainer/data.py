"""Shards to batches: shuffled, sampled, resumable, read ahead by a thread.

The order of an epoch and every random choice in it (which view, thumbnail or not, which text) are
functions of (seed, epoch, row), so a position is two numbers, (epoch, batch), and resuming costs nothing.
The order does not depend on whether the set is kept in memory or streamed.

Shuffling: row groups are permuted, taken ``shuffle_groups`` at a time, and their rows permuted
among one another. Memory when streaming: two such windows, each
``shuffle_groups * 64 * (9 * n_points + 2 D (V + texts))`` bytes.

An object has several views, perhaps a thumbnail, and any number of texts. A batch takes one of
them at random, or their mean, or all of them, with the mean standing for the object
(``data.image_sampling``, ``data.thumbnail``, ``data.text_sampling``). See ``trainer.sampling``.

Shape suffixes: B rows of a batch, R rows of a block, N points, D embedding width, S vectors of
all objects of a batch.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.shards import POINT_SCALE
from trainer.config import DataConfig
from trainer.index import Corpus, GroupAddress
from trainer.losses.features import Features, Several
from trainer.sampling import (
    Block,
    Chosen,
    Draws,
    IntArray,
    read_block,
    sample_images,
    sample_texts,
)


@dataclass(frozen=True)
class Position:
    """Where a run stands in its data: the next batch to train on."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class CloudBatch:
    """One batch, quantised as stored, on the CPU."""

    row: IntArray  # (B,) global row numbers
    xyz: Tensor  # (B, N, 3) int16
    rgb: Tensor  # (B, N, 3) uint8
    image: Tensor | None  # (B, D) float16
    text: Tensor | None  # (B, D) float16; zeros where has_text is False
    has_text: Tensor  # (B,) bool
    next: Position  # where the run stands after this batch
    # All vectors of the objects and the place of each one's object, where asked for.
    image_all: tuple[Tensor, Tensor] | None = None  # (S, D) float16, (S,) int64
    text_all: tuple[Tensor, Tensor] | None = None
    category: Tensor | None = None  # (B,) int64, -1 for none

    def __len__(self) -> int:
        return len(self.row)

    def to(self, device: torch.device) -> DeviceBatch:
        """Move to the device and decode there: less than half the bytes cross the bus."""

        def moved(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=True)

        def several(pair: tuple[Tensor, Tensor] | None) -> Several | None:
            return None if pair is None else Several(moved(pair[0]).float(), moved(pair[1]))

        return DeviceBatch(
            xyz=moved(self.xyz).float() / POINT_SCALE,
            rgb=moved(self.rgb).float() / 255,
            image=None if self.image is None else moved(self.image).float(),
            text=None if self.text is None else moved(self.text).float(),
            has_text=moved(self.has_text),
            row=moved(torch.from_numpy(self.row)),
            image_all=several(self.image_all),
            text_all=several(self.text_all),
            category=None if self.category is None else moved(self.category),
        )


@dataclass(frozen=True)
class DeviceBatch:
    """One batch, decoded, on the device of the run."""

    xyz: Tensor  # (B, N, 3) float32 in [-1, 1]
    rgb: Tensor  # (B, N, 3) float32 in [0, 1]
    image: Tensor | None  # (B, D) float32
    text: Tensor | None  # (B, D) float32
    has_text: Tensor  # (B,) bool
    row: Tensor  # (B,) int64 global row numbers
    image_all: Several | None = None
    text_all: Several | None = None
    category: Tensor | None = None  # (B,) int64, -1 for none

    def __len__(self) -> int:
        return len(self.xyz)

    def features(self, point_BD: Tensor) -> Features:
        """What the losses read, given the student's features."""
        return Features(
            point_BD,
            self.image,
            self.text,
            self.has_text,
            image_all=self.image_all,
            text_all=self.text_all,
            category=self.category,
            row=self.row,
        )


class Batches:
    """All batches of a run on its training rows."""

    def __init__(self, corpus: Corpus, seed: int, *, pin: bool = False) -> None:
        """``pin`` puts batches into page-locked memory, for copies to a GPU."""
        self.corpus, self.seed, self.pin = corpus, seed, pin
        self.batch_size = corpus.data.batch_size
        self.per_epoch = corpus.n_train // self.batch_size  # the rest waits for another epoch
        self._sets = corpus.reopen()
        self._memory: Block | None = None
        if self.estimated_bytes() <= corpus.data.cache_mib * 2**20:
            self._memory = self._read(corpus.groups)

    def _read(self, groups: Sequence[GroupAddress]) -> Block:
        return read_block(self.corpus, self._sets, groups, self.corpus.train_mask)

    @property
    def in_memory(self) -> bool:
        """Whether the training rows are kept in memory."""
        return self._memory is not None

    def estimated_bytes(self) -> int:
        """Upper estimate of the training rows' size in memory: 3 texts a row are assumed."""
        corpus = self.corpus
        views = max(shards.manifest.n_views for shards in corpus.sets)
        views += any(shards.manifest.thumbnails for shards in corpus.sets)
        vectors = views * corpus.loss.needs_image + 3 * corpus.loss.needs_text
        return corpus.n_train * (9 * corpus.data.n_points + 2 * vectors * corpus.teacher.width)

    def windows(self, epoch: int) -> list[tuple[list[GroupAddress], IntArray]]:
        """Row groups read together, and the order of their training rows, for one epoch."""
        corpus = self.corpus
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(corpus.groups))
        size = corpus.data.shuffle_groups
        found = []
        for start in range(0, len(order), size):
            groups = [corpus.groups[index] for index in order[start : start + size]]
            rows = np.concatenate(
                [np.arange(g.start, g.start + g.group.n_rows, dtype=np.int64) for g in groups]
            )
            rows = rng.permutation(rows[corpus.train_mask[rows]])
            found.append((groups, rows))
        return found

    def epoch(self, epoch: int, start: int = 0) -> Iterator[CloudBatch]:
        """Batches ``start`` and following of one epoch. Every batch is full."""
        draws = Draws.of(self.seed, epoch, len(self.corpus))
        begin = start * self.batch_size
        pending: list[tuple[Block, IntArray]] = []  # rows of blocks that wait for a full batch
        waiting, passed, number = 0, 0, start
        for groups, rows in self.windows(epoch):
            skip = min(max(begin - passed, 0), len(rows))
            passed += len(rows)
            rows = rows[skip:]
            if len(rows) == 0:
                continue
            block = self._memory or self._read(groups)
            pending.append((block, rows))
            waiting += len(rows)
            while waiting >= self.batch_size:
                taken = _take(pending, self.batch_size)
                waiting -= self.batch_size
                number += 1
                end = number == self.per_epoch
                after = Position(epoch + 1, 0) if end else Position(epoch, number)
                yield collate(self.corpus, taken, draws, after, pin=self.pin)

    def stream(self, start: Position) -> Iterator[CloudBatch]:
        """Endless batches from a position, read ahead by one thread. Close it when done."""
        return _prefetch(self._endless(start), self.corpus.data.prefetch)

    def _endless(self, start: Position) -> Iterator[CloudBatch]:
        epoch, first = start.epoch, start.batch
        while True:
            yield from self.epoch(epoch, first)
            epoch, first = epoch + 1, 0


def validation_batches(corpus: Corpus) -> Iterator[CloudBatch]:
    """The held-out slice in a fixed order, the last batch smaller; never augmented."""
    # One seed for all runs: their numbers are to be compared.
    draws = Draws.of(0, -1, len(corpus))
    data, held_out, sets = corpus.data, corpus.val_mask, corpus.reopen()
    pending: list[tuple[Block, IntArray]] = []
    waiting = 0
    for address in corpus.groups:
        block = read_block(corpus, sets, [address], held_out)
        if len(block.row) == 0:
            continue
        pending.append((block, block.row))
        waiting += len(block.row)
        while waiting >= data.batch_size:
            yield collate(corpus, _take(pending, data.batch_size), draws, Position())
            waiting -= data.batch_size
    if waiting:
        yield collate(corpus, _take(pending, waiting), draws, Position())


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


def assemble(block: Block, rows: IntArray, draws: Draws, data: DataConfig) -> Sample:
    """The arrays of a batch for some global rows of a block."""
    local = np.searchsorted(block.row, rows)
    image = sample_images(block, local, rows, draws, data)
    text = sample_texts(block, local, rows, draws, data)
    return Sample(rows, block.xyz[local], block.rgb[local], image, text)


@dataclass(frozen=True)
class Sample:
    """Some rows of one block as they go into a batch."""

    row: IntArray  # (B,)
    xyz: NDArray[np.int16]  # (B, N, 3)
    rgb: NDArray[np.uint8]
    image: Chosen
    text: Chosen


def collate(
    corpus: Corpus,
    taken: list[tuple[Block, IntArray]],
    draws: Draws,
    after: Position,
    *,
    pin: bool = False,
) -> CloudBatch:
    """One batch from rows of one or more blocks, without modalities that the loss ignores."""
    pieces = [assemble(block, rows, draws, corpus.data) for block, rows in taken]

    def tensor(arrays: Sequence[NDArray[Any]]) -> Tensor:
        value = torch.from_numpy(np.concatenate(arrays))
        return value.pin_memory() if pin else value

    def every(found: Sequence[Chosen]) -> tuple[Tensor, Tensor] | None:
        """All vectors, the places of their objects counted through the pieces."""
        values, owners, start = [], [], 0
        for piece, chosen in zip(pieces, found, strict=True):
            if chosen.every is None:
                return None
            values.append(chosen.every[0])
            owners.append(chosen.every[1] + start)
            start += len(piece.row)
        return tensor(values), tensor(owners)

    row = np.concatenate([piece.row for piece in pieces])
    images, texts = [piece.image for piece in pieces], [piece.text for piece in pieces]
    image, text = corpus.loss.needs_image, corpus.loss.needs_text
    return CloudBatch(
        row=row,
        xyz=tensor([piece.xyz for piece in pieces]),
        rgb=tensor([piece.rgb for piece in pieces]),
        image=tensor([chosen.values for chosen in images]) if image else None,
        text=tensor([chosen.values for chosen in texts]) if text else None,
        has_text=tensor([chosen.there for chosen in texts]),
        next=after,
        image_all=every(images) if image else None,
        text_all=every(texts) if text else None,
        category=None if corpus.category is None else tensor([corpus.category[row]]),
    )


def _prefetch(source: Iterator[CloudBatch], depth: int) -> Iterator[CloudBatch]:
    """Pass on the items of ``source``, made ahead by a thread; its errors are raised here."""
    ready: queue.Queue[CloudBatch | BaseException] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: CloudBatch | BaseException) -> None:
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
                    return
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="trainer-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
