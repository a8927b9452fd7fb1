"""The same embeddings through our evaluator and through the protocols of OpenShape and Uni3D."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluation.benchmarks.labels import LabelSet
from evaluation.benchmarks.zeroshot import figures
from evaluation.embeddings import normalise

F32 = NDArray[np.float32]


def openshape(features: F32, texts: F32, labels: NDArray[np.int64]) -> dict[str, float]:
    """Normalised features against normalised class texts; overall and class-mean accuracy."""
    logits = torch.nn.functional.normalize(torch.from_numpy(features), dim=1) @ (
        torch.nn.functional.normalize(torch.from_numpy(texts), dim=1).T
    )
    target = torch.from_numpy(labels)
    found = logits.topk(5, dim=1).indices.eq(target[:, None])
    result = {f"top{k}": found[:, :k].any(1).double().mean().item() for k in (1, 3, 5)}
    per_class = [found[target == int(c), 0].double().mean() for c in np.unique(labels)]
    return {**result, "class_mean": torch.stack(per_class).mean().item()}


def uni3d(features: F32, prompts: F32, labels: NDArray[np.int64]) -> dict[str, float]:
    """Prompts (C, P, D): normalise, mean, normalise; logits times the scale; running sums."""
    texts = torch.nn.functional.normalize(torch.from_numpy(prompts), dim=-1).mean(1)
    texts = torch.nn.functional.normalize(texts, dim=-1)
    hits, total = dict.fromkeys((1, 3, 5), 0.0), 0
    for start in range(0, len(labels), 32):
        part = torch.from_numpy(features[start : start + 32])
        target = torch.from_numpy(labels[start : start + 32])
        part = part / part.norm(dim=-1, keepdim=True)
        order = (100.0 * part @ texts.T).topk(5, 1, True, True).indices.t()
        correct = order.eq(target.view(1, -1).expand_as(order))
        for k in hits:
            hits[k] += correct[:k].reshape(-1).float().sum().item()
        total += len(target)
    return {f"top{k}": count / total for k, count in hits.items()}


@pytest.mark.parametrize("seed", range(5))
def test_figures__are_those_of_openshape_and_uni3d_to_the_last_digit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, classes, prompts, width = 500, 40, 7, 64
    names = [f"class {i}" for i in range(classes)]
    texts = rng.normal(size=(classes, prompts, width)).astype(np.float32)
    labels = np.sort(rng.integers(0, classes - 3, n)).astype(np.int64)  # three classes are empty
    features = (texts.mean(1)[labels] + 0.9 * rng.normal(size=(n, width))).astype(np.float32)
    ours_texts = normalise(normalise(texts).mean(1))
    label_set = LabelSet(names, {name: i for i, name in enumerate(names)}, "test")
    ours = figures(normalise(features), ours_texts, labels, label_set, 100.0)["metrics"]
    theirs = openshape(features, ours_texts, labels)
    assert 0.2 < theirs["top1"] < 0.9
    for name, value in {**theirs, **uni3d(features, texts, labels)}.items():
        found = ours[name]["value"] if name.startswith("top") else ours[name]
        assert found == pytest.approx(value, abs=1e-12), name
