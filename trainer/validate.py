"""Numbers of a held-out slice: alignment loss and retrieval, as pure functions of features."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.losses.align import AlignLoss
from trainer.losses.features import Features
from trainer.relations import unit

CHUNK_ROWS = 1024


def top1(queries_QD: Tensor, gallery_QD: Tensor) -> float:
    """Share of unit queries whose nearest gallery vector is that of the same row.

    Rows with equal gallery vectors (the same caption twice) count as one: any of them is right.
    Chunked, so that memory grows with the slice and not with its square. Chance is
    1 / (number of different gallery vectors).

    >>> import torch
    >>> eye = torch.eye(3)
    >>> round(top1(eye[[0, 1, 1]], eye), 3)
    0.667
    """
    distinct_GD, label_Q = torch.unique(gallery_QD, dim=0, return_inverse=True)
    hits = 0
    for start in range(0, len(queries_QD), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        nearest = (queries_QD[rows] @ distinct_GD.T).argmax(1)
        hits += int((nearest == label_Q[rows]).sum())
    return hits / len(queries_QD)


@torch.no_grad()
def validate(features: Features, align: AlignLoss, batch_size: int) -> dict[str, float]:
    """Metrics of a slice by name, with one image and one text vector a shape.

    ``align``: alignment loss, mean over batches of ``batch_size`` in the slice's order weighted
    by their size (a contrastive loss depends on it); ``top1_image`` and ``top1_text``: the
    nearest image or text of the whole slice is the shape's own; ``score``: the mean of these,
    by which the best checkpoint is chosen; ``rows``.
    """
    result: dict[str, float] = {"rows": len(features)}
    total, weight = 0.0, 0
    for start in range(0, len(features), batch_size):
        part = features.part(slice(start, start + batch_size))
        if len(part) > 1:
            total += float(align(part)[0]) * len(part)
            weight += len(part)
    if weight:
        result["align"] = total / weight
    point = unit(features.point)
    if features.image is not None:
        result["top1_image"] = top1(point, unit(features.image))
    if features.text is not None and bool(features.has_text.any()):
        rows = features.has_text
        result["top1_text"] = top1(point[rows], unit(features.text[rows]))
    scores = [value for name, value in result.items() if name.startswith("top1_")]
    if scores:
        result["score"] = sum(scores) / len(scores)
    return result
