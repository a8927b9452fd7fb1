"""Part segmentation by a linear probe on frozen features of patches.

A student that was trained on whole clouds has a feature for each patch (a centroid and its
neighbours) in every block. Those after a third, two thirds and all but one of its blocks are
normalised and joined; the last block's patches are left out, since nothing that training looks at
depends on what they become. A point's feature is that of its three nearest centroids, weighted by
the inverse of the squared distance (Qi et al., PointNet++, NeurIPS 2017), and a linear classifier
tells its part.

Measured as the field does: a point is one of the parts of its shape's category; the IoU of a part
that neither is there nor was predicted is 1; *instance mIoU* is the mean over shapes of the mean
over parts, *class mIoU* the mean over categories of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.benchmarks.shapenet_part import PartSet
from evaluation.results import plain, result_record
from evaluation.sources import Advance, centred
from evaluation.student import Student
from pipeline.common import InputError
from trainer.statistics import t_interval

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

POINTS_A_SHAPE = 128  # that the classifier learns from
EPOCHS = 20
NEAREST = 3
_BATCH = 2048
_LEAST_STEPS = 1000  # of the classifier, however few points there are
_LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class Probe:
    """A linear classifier of points."""

    weight: F32  # (P, C)
    bias: F32  # (P,)
    mean: F32  # (C,)
    scale: F32  # (C,)

    def __call__(self, features: F32) -> F32:
        """(N, C) features to (N, P) scores."""
        scores = (features - self.mean) / self.scale @ self.weight.T + self.bias
        return np.asarray(scores, np.float32)


def parts_probe(
    data: PartSet,
    student: Student,
    *,
    learned: Sequence[str] = ("train", "val"),
    split: str = "test",
    limit: int | None = None,
    points: int = POINTS_A_SHAPE,
    epochs: int = EPOCHS,
    seed: int = 0,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """Fit on the shapes of the splits ``learned``, measure on ``split``, return the result record.

    ``limit`` takes that many shapes of each split. Raises ``InputError`` for a student without
    patches, a damaged set, or test shapes with parts that no training shape has.
    """
    rng = np.random.default_rng(seed)
    features, labels = [], []
    parts_of: dict[str, set[int]] = {}
    for part in learned:
        for shape in data.shapes(part, limit):
            parts_of.setdefault(shape.category, set()).update(shape.parts.tolist())
            chosen = rng.permutation(len(shape.xyz))[:points]
            features.append(point_features(student, shape.xyz)[chosen].astype(np.float16))
            labels.append(shape.parts[chosen])
            if advance:
                advance(1)
    parts = {category: np.asarray(sorted(found), np.int64) for category, found in parts_of.items()}
    # A part may be in no point that was drawn; what is told of it is then that it is rare.
    n_parts = 1 + max(int(known.max()) for known in parts.values())
    probe = fit(np.concatenate(features), np.concatenate(labels), epochs, seed, n_parts)
    uids, by_category = [], dict[str, list[float]]()
    for shape in data.shapes(split, limit):
        known = parts.get(shape.category)
        if known is None or not set(shape.parts.tolist()) <= set(known.tolist()):
            raise InputError(
                f"{data.root}: {shape.uid} has parts that no training shape of {shape.category} "
                "has; download it again"
            )
        scores = probe(point_features(student, shape.xyz))
        predicted = known[scores[:, known].argmax(1)]
        by_category.setdefault(shape.category, []).append(shape_iou(shape.parts, predicted, known))
        uids.append(shape.uid)
        if advance:
            advance(1)
    protocol = {
        "measure": "IoU of the parts of the shape's category; absent and not predicted is 1",
        "classifier": f"linear, cross-entropy, AdamW, {epochs} epochs, {points} points a shape",
        "features": f"frozen patches, {NEAREST} nearest by inverse squared distance",
        "learned": list(learned),
        "limit": limit,
        "seed": seed,
        "n_classes": len(parts),
        "n_parts": int(sum(map(len, parts.values()))),
        "n_train": len(features),
        "interval": "95 %: t over shapes",
    }
    told = {"kind": "parts", "name": data.root.name, "dataset": "shapenet-part", "split": split}
    record = result_record(
        "parts", "shapenet-part", student.model, student.teacher, told, uids, protocol
    )
    return {**record, **figures(by_category)}


def figures(by_category: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Instance and class mIoU, and that of every category."""
    every = [value for values in by_category.values() for value in values]
    interval = t_interval(every)
    means = {name: float(np.mean(values)) for name, values in by_category.items()}
    return {
        "metrics": {
            "instance_miou": {
                "value": interval.mean,
                "low": plain(interval.low),
                "high": plain(interval.high),
            },
            "class_miou": float(np.mean(list(means.values()))),
        },
        "per_class": [
            {"name": name, "count": len(by_category[name]), "miou": means[name]}
            for name in sorted(means)
        ],
    }


def shape_iou(truth: I64, predicted: I64, parts: Iterable[int]) -> float:
    """Mean over ``parts`` of intersection over union; a part that is nowhere counts 1."""
    found = []
    for part in parts:
        union = int(((truth == part) | (predicted == part)).sum())
        both = int(((truth == part) & (predicted == part)).sum())
        found.append(both / union if union else 1.0)
    return float(np.mean(found))


@torch.inference_mode()
def point_features(student: Student, xyz: F32) -> F32:
    """(N, C) features of the points of a cloud (N, 3) of any scale, +y up, colourless.

    Raises ``InputError`` when the student's backbone has no patches.
    """
    from pipeline.points import farthest_point_order

    patches: Callable[..., Any] | None = getattr(student.backbone, "patch_features", None)
    if patches is None:
        raise InputError(
            f"checkpoint {student.model.name}: its backbone has no patches; parts can be probed on "
            "Point-BERT and Uni3D"
        )
    whole = centred(xyz[None])[0]
    take = -(-student.n_points // len(whole))
    cloud = np.tile(whole, (take, 1))[: student.n_points] if take > 1 else whole
    cloud = cloud[farthest_point_order(cloud, min(len(cloud), student.n_points))]
    points = torch.from_numpy(cloud[: student.n_points][None].copy()).to(student.device)
    colors = torch.full_like(points, student.neutral_rgb / 255)
    centroids, features = patches(points, colors)
    return spread(whole, centroids[0].float().cpu().numpy(), features[0].float().cpu().numpy())


def spread(points: F32, centroids: F32, features: F32, nearest: int = NEAREST) -> F32:
    """Features (S, C) at centroids (S, 3), carried to points (N, 3): (N, C)."""
    from scipy.spatial import KDTree

    distance, place = KDTree(centroids).query(points, k=min(nearest, len(centroids)))
    distance, place = distance.reshape(len(points), -1), place.reshape(len(points), -1)
    weight = 1 / (distance**2 + 1e-8)
    weight /= weight.sum(1, keepdims=True)
    found = np.einsum("nk,nkc->nc", weight, features[place])
    return np.asarray(found, np.float32)


def fit(
    features: NDArray[np.floating],
    labels: I64,
    epochs: int = EPOCHS,
    seed: int = 0,
    n_parts: int | None = None,
) -> Probe:
    """Multinomial logistic regression by AdamW with a cosine rate; deterministic in ``seed``.

    ``features`` are (N, C), ``labels`` (N,) below ``n_parts`` (None: up to the largest). Few points
    are gone over more often than ``epochs``.
    """
    mean = features.mean(0, dtype=np.float64).astype(np.float32)
    scale = np.maximum(features.std(0, dtype=np.float64), 1e-6).astype(np.float32)
    generator = torch.Generator().manual_seed(seed)
    model = torch.nn.Linear(features.shape[1], n_parts or int(labels.max()) + 1)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimizer = torch.optim.AdamW(model.parameters(), _LEARNING_RATE, weight_decay=1e-4)
    batches = -(-len(labels) // _BATCH)
    epochs = max(epochs, -(-_LEAST_STEPS // batches))
    steps = epochs * batches
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    target = torch.from_numpy(labels)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for start in range(0, len(labels), _BATCH):
            rows = order[start : start + _BATCH]
            part = (np.asarray(features[rows.numpy()], np.float32) - mean) / scale
            loss = torch.nn.functional.cross_entropy(model(torch.from_numpy(part)), target[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return Probe(model.weight.detach().numpy(), model.bias.detach().numpy(), mean, scale)
