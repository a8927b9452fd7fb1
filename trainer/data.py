"""Shards to batches: shuffled, sampled, resumable, read ahead by a thread.

The order of an epoch and every random choice in it (which view, which text) are functions of
(seed, epoch, row), so a position is two numbers, (epoch, batch), and resuming costs nothing.
The order does not depend on whether the set is kept in memory or streamed.

Shuffling: row groups are permuted, taken ``shuffle_groups`` at a time, and their rows permuted
among one another. Memory when streaming: two such windows, each
``shuffle_groups * 64 * (9 * n_points + 2 D (V + texts))`` bytes.

Shape suffixes: B rows of a batch, R rows of a block, N points, D embedding width.
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

from pipeline.shards import POINT_SCALE, ShardSet
from trainer.index import Corpus, GroupAddress

IntArray = NDArray[np.int64]
HalfArray = NDArray[np.float16]


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

    def __len__(self) -> int:
        return len(self.row)

    def to(self, device: torch.device) -> DeviceBatch:
        """Move to the device and decode there: less than half the bytes cross the bus."""

        def moved(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=True)

        return DeviceBatch(
            xyz=moved(self.xyz).float() / POINT_SCALE,
            rgb=moved(self.rgb).float() / 255,
            image=None if self.image is None else moved(self.image).float(),
            text=None if self.text is None else moved(self.text).float(),
            has_text=moved(self.has_text),
        )


@dataclass(frozen=True)
class DeviceBatch:
    """One batch, decoded, on the device of the run."""

    xyz: Tensor  # (B, N, 3) float32 in [-1, 1]
    rgb: Tensor  # (B, N, 3) float32 in [0, 1]
    image: Tensor | None  # (B, D) float32
    text: Tensor | None  # (B, D) float32
    has_text: Tensor  # (B,) bool

    def __len__(self) -> int:
        return len(self.xyz)


@dataclass(frozen=True)
class Block:
    """Some rows in memory; embeddings of all rows lie after another (``offsets``, R + 1)."""

    row: IntArray  # (R,) global row numbers, ascending
    xyz: NDArray[np.int16]  # (R, N, 3)
    rgb: NDArray[np.uint8]
    image: HalfArray  # (sum V, D)
    image_offsets: IntArray
    text: HalfArray  # (sum K, D)
    text_offsets: IntArray

    @property
    def n_bytes(self) -> int:
        """Size in memory."""
        return sum(array.nbytes for array in vars(self).values())


def read_block(
    corpus: Corpus,
    sets: Sequence[ShardSet],
    groups: Sequence[GroupAddress],
    mask: NDArray[np.bool_],
) -> Block:
    """The rows of ``groups`` that ``mask`` (over global rows) keeps, points cut to the prefix.

    ``sets`` are those of the corpus as the calling thread has opened them.
    """
    n_points, width = corpus.data.n_points, corpus.teacher.width
    columns = ["xyz", "rgb"]
    columns += ["image_embeds"] if corpus.loss.needs_image else []
    columns += ["text_embeds"] if corpus.loss.needs_text else []
    parts: dict[str, list[NDArray[Any]]] = {
        name: [] for name in ("row", "xyz", "rgb", "image", "text", "image_n", "text_n")
    }
    for address in sorted(groups, key=lambda item: item.start):
        size = address.group.n_rows
        keep = np.flatnonzero(mask[address.start : address.start + size])
        if len(keep) == 0:
            continue
        batch = sets[address.source].read(address.group, columns)
        assert batch.xyz is not None
        assert batch.rgb is not None
        parts["row"].append(address.start + keep)
        parts["xyz"].append(batch.xyz[keep, :n_points])
        parts["rgb"].append(batch.rgb[keep, :n_points])
        views = 0
        if corpus.loss.needs_image and batch.image_embeds is not None:
            views = batch.image_embeds.shape[1]
            parts["image"].append(batch.image_embeds[keep].reshape(-1, width))
        parts["image_n"].append(np.full(len(keep), views, np.int64))
        counts = np.zeros(len(keep), np.int64)
        if batch.text_embeds is not None and batch.text_offsets is not None:
            counts = np.diff(batch.text_offsets)[keep]
            parts["text"] += [batch.texts_of(int(row)) for row in keep]
        parts["text_n"].append(counts)

    def joined(name: str, empty: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate(parts[name]) if parts[name] else empty

    none = np.zeros((0, width), np.float16)
    return Block(
        row=joined("row", np.zeros(0, np.int64)),
        xyz=joined("xyz", np.zeros((0, n_points, 3), np.int16)),
        rgb=joined("rgb", np.zeros((0, n_points, 3), np.uint8)),
        image=joined("image", none),
        image_offsets=_offsets(joined("image_n", np.zeros(0, np.int64))),
        text=joined("text", none),
        text_offsets=_offsets(joined("text_n", np.zeros(0, np.int64))),
    )


def _offsets(counts: IntArray) -> IntArray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def pick_one(
    values_KD: HalfArray, offsets: IntArray, rows: IntArray, draw_B: NDArray[np.float64]
) -> tuple[HalfArray, NDArray[np.bool_]]:
    """One of each row's vectors, chosen by a number in [0, 1); zeros and False where none is."""
    counts = offsets[rows + 1] - offsets[rows]
    there = counts > 0
    out = np.zeros((len(rows), values_KD.shape[1]), np.float16)
    chosen = offsets[rows] + np.minimum((draw_B * counts).astype(np.int64), counts - 1)
    out[there] = values_KD[chosen[there]]
    return out, there


def pick_mean(
    values_KD: HalfArray, offsets: IntArray, rows: IntArray
) -> tuple[HalfArray, NDArray[np.bool_]]:
    """Normalised mean of each row's vectors; zeros and False where there is none."""
    counts = offsets[rows + 1] - offsets[rows]
    out = np.zeros((len(rows), values_KD.shape[1]), np.float16)
    for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
        if count:
            mean = values_KD[offsets[row] : offsets[row] + count].astype(np.float32).mean(0)
            out[place] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return out, counts > 0


@dataclass(frozen=True)
class Draws:
    """One number in [0, 1) per global row for the view, one for the text."""

    view: NDArray[np.float64]
    text: NDArray[np.float64]

    @classmethod
    def of(cls, seed: int, epoch: int, n_rows: int) -> Draws:
        """Those of an epoch. Epoch -1 is the validation slice: always the same."""
        rng = np.random.default_rng([seed, 7919, epoch + 1])
        return cls(rng.random(n_rows), rng.random(n_rows))


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


def assemble(
    block: Block, rows: IntArray, draws: Draws, image_sampling: str, text_sampling: str
) -> dict[str, NDArray[Any]]:
    """The arrays of a batch for some global rows of a block."""
    local = np.searchsorted(block.row, rows)

    def pick(
        name: str, sampling: str, draw: NDArray[np.float64]
    ) -> tuple[HalfArray, NDArray[np.bool_]]:
        values, offsets = getattr(block, name), getattr(block, f"{name}_offsets")
        if sampling == "mean":
            return pick_mean(values, offsets, local)
        return pick_one(values, offsets, local, draw[rows])

    image, _ = pick("image", image_sampling, draws.view)
    text, has_text = pick("text", text_sampling, draws.text)
    return {
        "row": rows,
        "xyz": block.xyz[local],
        "rgb": block.rgb[local],
        "image": image,
        "text": text,
        "has_text": has_text,
    }


def collate(
    corpus: Corpus,
    taken: list[tuple[Block, IntArray]],
    draws: Draws,
    after: Position,
    *,
    pin: bool = False,
) -> CloudBatch:
    """One batch from rows of one or more blocks, without modalities that the loss ignores."""
    data = corpus.data
    pieces = [
        assemble(block, rows, draws, data.image_sampling, data.text_sampling)
        for block, rows in taken
    ]

    def tensor(name: str) -> Tensor:
        value = torch.from_numpy(np.concatenate([piece[name] for piece in pieces]))
        return value.pin_memory() if pin else value

    return CloudBatch(
        row=np.concatenate([piece["row"] for piece in pieces]),
        xyz=tensor("xyz"),
        rgb=tensor("rgb"),
        image=tensor("image") if corpus.loss.needs_image else None,
        text=tensor("text") if corpus.loss.needs_text else None,
        has_text=tensor("has_text"),
        next=after,
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
