"""What a batch is, and how one is put together from blocks of rows.

Shape suffixes: B rows of a batch, N points, D embedding width, S vectors of all objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.shards import POINT_SCALE
from trainer.index import Corpus
from trainer.losses.features import Features, Several
from trainer.sampling import Block, Chosen, Draws, IntArray, sample_images, sample_texts


@dataclass(frozen=True)
class Position:
    """Where a run stands in its data: the next batch to train on."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class CloudBatch:
    """One batch, or the part of it that a process has, quantised as stored, on the CPU."""

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
    # Rows of the batch over all processes (0: only these), and how many stand before these.
    whole: int = 0
    offset: int = 0

    def __len__(self) -> int:
        return len(self.row)

    @property
    def total(self) -> int:
        """Rows of the batch over all processes."""
        return self.whole or len(self)

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


@dataclass(frozen=True)
class Sample:
    """Some rows of one block as they go into a batch, without their points."""

    row: IntArray  # (B,)
    image: Chosen
    text: Chosen


def collate(
    corpus: Corpus,
    taken: list[tuple[Block, IntArray]],
    draws: Draws,
    after: Position,
    *,
    pin: bool = False,
    whole: int = 0,
    offset: int = 0,
) -> CloudBatch:
    """One batch from occurrences in one or more blocks, without what the loss ignores."""
    total = sum(len(occurrences) for _, occurrences in taken)
    shape = (total, corpus.data.n_points, 3)
    # Gathered straight into the batch: these are most of its bytes.
    xyz = torch.empty(shape, dtype=torch.int16, pin_memory=pin)
    rgb = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
    pieces, start = [], 0
    for block, occurrences in taken:
        rows = occurrences % len(corpus)
        local = np.searchsorted(block.row, rows)
        end = start + len(rows)
        for values, out in ((block.xyz, xyz), (block.rgb, rgb)):
            # "clip" writes in place; "raise" would go by way of a copy.
            np.take(values, local, axis=0, out=out[start:end].numpy(), mode="clip")
        image = sample_images(block, local, occurrences, draws, corpus.data)
        text = sample_texts(block, local, occurrences, draws, corpus.data)
        pieces.append(Sample(rows, image, text))
        start = end

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

    row = tensor([piece.row for piece in pieces]).numpy()  # pinned as well
    images, texts = [piece.image for piece in pieces], [piece.text for piece in pieces]
    needs_image, needs_text = corpus.loss.needs_image, corpus.loss.needs_text
    return CloudBatch(
        row=row,
        xyz=xyz,
        rgb=rgb,
        image=tensor([chosen.values for chosen in images]) if needs_image else None,
        text=tensor([chosen.values for chosen in texts]) if needs_text else None,
        has_text=tensor([chosen.there for chosen in texts]),
        next=after,
        image_all=every(images) if needs_image else None,
        text_all=every(texts) if needs_text else None,
        category=None if corpus.category is None else tensor([corpus.category[row]]),
        whole=whole,
        offset=offset,
    )


def usual_batch(device: torch.device | str) -> int:
    """How many clouds to embed at a time: on a CPU more of them only take memory."""
    return 16 if torch.device(device).type == "cpu" else 64
