"""What every loss reads: the features of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Several:
    """Vectors of objects that may have more than one. Shape suffixes: S vectors, D width."""

    values: Tensor  # (S, D)
    owner: Tensor  # (S,) int64: place of its object in the batch; -1: of none, to be ignored

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Features:
    """Features of one batch. Shape suffixes: B rows, D width.

    ``point`` comes from the student; ``image`` and ``text`` from the frozen teacher, one vector
    an object, None where the run does not read them. Rows without text have ``has_text`` False
    and any ``text``. Where all views or texts of an object are positives, ``image_all`` and
    ``text_all`` hold them, and ``image`` and ``text`` their means.
    """

    point: Tensor  # (B, D)
    image: Tensor | None  # (B, D)
    text: Tensor | None  # (B, D)
    has_text: Tensor  # (B,) bool
    image_all: Several | None = None
    text_all: Several | None = None
    category: Tensor | None = None  # (B,) int64, equal for equal names; -1: none
    row: Tensor | None = None  # (B,) int64, the same object always has the same

    def __len__(self) -> int:
        return len(self.point)

    @property
    def everyone(self) -> Tensor:
        """(B,) bool, all True."""
        return torch.ones(len(self.point), dtype=torch.bool, device=self.point.device)

    def part(self, rows: slice) -> Features:
        """Some rows, without what objects have several of."""

        def cut(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[rows]

        return Features(
            self.point[rows],
            cut(self.image),
            cut(self.text),
            self.has_text[rows],
            category=cut(self.category),
            row=cut(self.row),
        )

    def valid(self, modality: str) -> Tensor:
        """(B,) bool: rows that have the modality, ``image`` or ``text``."""
        return self.has_text if modality == "text" else self.everyone

    def several(self, modality: str) -> Several | None:
        """All vectors of a modality: those that stand for it alone where there are no others."""
        every: Several | None = getattr(self, f"{modality}_all")
        single: Tensor | None = getattr(self, modality)
        if every is not None or single is None:
            return every
        places_B = torch.arange(len(single), device=single.device)
        return Several(single, torch.where(self.valid(modality), places_B, -1))
