"""Features of past batches, kept as further columns of the relations.

A batch of B objects shows every object B neighbours; a queue of Q past ones shows it B + Q for
the price of a B x Q product (after the memory of MoCo, arXiv 1911.05722, and of cross-batch
memory, arXiv 1912.06798). What is kept has no gradient: its graph went with its step, and the
student that made it was an older one. The teacher's features do not age.

Shape suffixes: Q places, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.losses.features import Features


class RelationQueue(nn.Module):
    """The last ``size`` objects: student and teacher features, whether with text, row numbers.

    Part of the state of a run, so that a resumed one goes on with the same columns.
    """

    def __init__(self, size: int, width: int, modalities: tuple[str, ...]) -> None:
        """``modalities`` are those of the teacher that the loss reads (image, text)."""
        super().__init__()
        self.size, self.modalities = size, modalities
        self.filled = 0  # places in use: the first ones
        self.cursor = 0  # where the next object goes
        for name in ("point", *modalities):
            self.register_buffer(name, torch.zeros(size, width))
        self.register_buffer("has_text", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("row", torch.full((size,), -1, dtype=torch.int64))
        # Not compiled: at first the queue grows with every step, and each size would be a graph.
        # Said here and not at the method: it imports the compiler, for which all would wait.
        self._as_it_stands: Any = torch.compiler.disable(self._after)  # type: ignore[no-untyped-call]

    def get_extra_state(self) -> dict[str, int]:
        """Part of ``state_dict`` that is no tensor."""
        return {"filled": self.filled, "cursor": self.cursor}

    def set_extra_state(self, state: Any) -> None:
        """Take it back."""
        self.filled, self.cursor = int(state["filled"]), int(state["cursor"])

    def __len__(self) -> int:
        return self.filled

    def _pairs(self, features: Features) -> list[tuple[Tensor, Tensor]]:
        """Buffers with what goes into them."""
        pairs = [(self.get_buffer("has_text"), features.has_text)]
        if features.row is not None:
            pairs.append((self.get_buffer("row"), features.row))
        for name in ("point", *self.modalities):
            value = getattr(features, name)
            assert value is not None
            pairs.append((self.get_buffer(name), value))
        return pairs

    @torch.no_grad()
    def push(self, features: Features) -> None:
        """Take in a batch in place of the oldest objects; of a larger one its last rows."""
        count = min(len(features), self.size)
        device = features.point.device
        places = (torch.arange(count, device=device) + self.cursor) % self.size
        for buffer, value in self._pairs(features):
            buffer[places] = value[len(features) - count :].detach().to(buffer.dtype)
        self.cursor = (self.cursor + count) % self.size
        self.filled = min(self.filled + count, self.size)

    def after(self, features: Features) -> Features:
        """``features`` with the objects of the queue behind them."""
        joined: Features = self._as_it_stands(features)
        return joined

    def _after(self, features: Features) -> Features:
        if self.filled == 0:
            return features
        joined: dict[str, Tensor | None] = {"image": None, "text": None}
        for name in ("point", *self.modalities, "has_text"):
            now: Tensor = getattr(features, name)
            kept = self.get_buffer(name)[: self.filled]
            joined[name] = torch.cat([now, kept.to(now.dtype)])
        rows = features.row
        if rows is None:
            rows = torch.full((len(features),), -1, device=features.point.device)
        row = torch.cat([rows, self.get_buffer("row")[: self.filled]])
        point, has_text = joined["point"], joined["has_text"]
        assert point is not None
        assert has_text is not None
        return Features(point, joined["image"], joined["text"], has_text, row=row)
