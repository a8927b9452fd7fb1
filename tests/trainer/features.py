"""Random feature batches in double precision, for the tests of the losses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trainer.config import DistillConfig
from trainer.losses import DistillLoss, Features, Several

ROWS = 8
# Representation and discrepancy: all pairs that may be chosen.
LEGAL = [
    ("normalised_similarity", kind)
    for kind in ("jeffreys", "kl", "reverse_kl", "l1", "l2", "huber")
] + [(name, kind) for name in ("similarity", "distance") for kind in ("l1", "l2", "huber")]


def draw(seed: int, rows: int = ROWS, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def batch(
    has_text: list[int] | None = None, rows: int = ROWS, point: Tensor | None = None
) -> Features:
    """Point, image and text features of objects in three categories."""
    flags = torch.tensor(has_text or [1] * rows).bool()
    # A shared mean, as CLIP's text vectors have one: centring then matters.
    text = draw(2, rows) + 1.5
    return Features(
        draw(0, rows) if point is None else point,
        draw(1, rows),
        text,
        flags,
        category=torch.arange(rows) % 4 - 1,  # -1: none
        row=torch.arange(rows) + 100,
    )


def with_several(features: Features, seed: int = 5) -> Features:
    """1, 2 or 3 views and texts an object; none of a modality that it lacks."""
    found: dict[str, Several] = {}
    for place, name in enumerate(("image", "text")):
        valid = features.valid(name)
        owners = [
            row for row in range(len(features)) if bool(valid[row]) for _ in range(1 + row % 3)
        ]
        owner = torch.tensor(owners, dtype=torch.int64)
        found[name] = Several(draw(seed + place, len(owners)), owner)
    return replace(features, image_all=found["image"], text_all=found["text"])


def select(features: Features, rows: list[int]) -> Features:
    """Some rows, renumbered."""

    def part(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[rows]

    def several(item: Several | None) -> Several | None:
        if item is None:
            return None
        keep = [place for place, owner in enumerate(item.owner.tolist()) if owner in rows]
        owner = torch.tensor([rows.index(int(item.owner[place])) for place in keep])
        return Several(item.values[keep], owner.to(torch.int64))

    return Features(
        features.point[rows],
        part(features.image),
        part(features.text),
        features.has_text[rows],
        several(features.image_all),
        several(features.text_all),
        part(features.category),
        part(features.row),
    )


SOME_TEXT = [1, 0, 1, 1, 0, 1, 1, 1]
TAUS: dict[str, Any] = {
    "tau_teacher_intra": 0.2,
    "tau_student_intra": 0.3,
    "tau_teacher_cross": 0.15,
    "tau_student_cross": 0.4,
}


def distill(features: Features, **options: Any) -> tuple[float, dict[str, float]]:
    total, terms = DistillLoss(DistillConfig(**options)).double()(features)
    return float(total.detach()), {name: float(value.detach()) for name, value in terms.items()}
