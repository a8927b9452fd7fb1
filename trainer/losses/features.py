"""What every loss reads: the features of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Features:
    """Features of one batch. Shape suffixes: B rows, D width.

    ``point`` comes from the student; ``image`` and ``text`` from the frozen teacher, None where
    the run does not read them. Rows without text have ``has_text`` False and any ``text``.
    """

    point: Tensor  # (B, D)
    image: Tensor | None  # (B, D)
    text: Tensor | None  # (B, D)
    has_text: Tensor  # (B,) bool

    def __len__(self) -> int:
        return len(self.point)

    @property
    def everyone(self) -> Tensor:
        """(B,) bool, all True."""
        return torch.ones(len(self.point), dtype=torch.bool, device=self.point.device)
