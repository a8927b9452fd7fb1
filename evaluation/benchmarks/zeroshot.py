"""Zero-shot classification: nearest class text by cosine.

Protocol: the class text is the mean of its L2-normalised prompts, normalised again; the class with
the highest cosine is the answer; ties count against the model (see ``trainer.metrics``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.benchmarks.labels import LabelSet, key
from evaluation.benchmarks.protocols import PROTOCOLS, Protocol, stored_class_texts
from evaluation.results import by_uid, labels_hash, plain, proportion, result_record
from evaluation.sources import (
    Advance,
    Encoder,
    StudentEncoder,
    no_rows,
    shards_data,
    split_rows,
)
from evaluation.teachers import QueryTeacher, require_same_teacher
from pipeline.common import InputError
from pipeline.shards import ShardSet
from trainer import metrics

TOP_K = (1, 3, 5)


def zeroshot(
    shards: ShardSet,
    encoder: Encoder,
    labels: LabelSet,
    texts: ClassFeatures,
    *,
    split: str | None = None,
    benchmark: str | None = None,
    protocol: Protocol = PROTOCOLS["ours"],
    groups: Mapping[str, AbstractSet[str]] | None = None,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """Classify every labelled row of ``split`` and return the result record.

    ``groups`` are names of classes by a word for them: each is also measured by itself, against
    all classes.

    Rows without a category, or of a category outside of ``labels``, are left out and counted in
    ``protocol``. Raises ``InputError`` when nothing is left.
    """
    ours, classes_CD = shards.manifest.teacher, texts.embeds
    uids, truth, vectors, drawn = [], [], [], []
    several = isinstance(encoder, StudentEncoder) and encoder.draws > 1
    n_unlabelled = n_outside = 0
    for batch in shards.batches(["category", "split", *encoder.columns]):
        rows = split_rows(batch, split)
        assert batch.category is not None
        found = [labels.find(batch.category[row]) for row in rows]
        n_unlabelled += sum(not key(batch.category[row] or "") for row in rows)
        keep = np.asarray([i for i, label in enumerate(found) if label is not None], np.int64)
        n_outside += len(rows) - len(keep)
        if len(keep):
            if isinstance(encoder, StudentEncoder) and several:
                drawn.append(encoder.each_draw(batch, rows[keep]))
                vectors.append(metrics.normalise(drawn[-1].mean(0)))
            else:
                vectors.append(encoder(batch, rows[keep]))
            truth += [label for label in found if label is not None]
            uids += [batch.uid[row] for row in rows[keep]]
        if advance:
            advance(len(batch))
    if not uids:
        if n_outside:
            raise InputError(
                f"{shards.storage.root}: none of its objects has a category of the label set "
                f"({labels.origin}); give --labels that name its categories"
            )
        raise no_rows(shards, split)
    told: dict[str, Any] = {
        **protocol.record(),
        "measure": f"cosine to {texts.told}; ties count as wrong",
        "labels": labels.origin,
        "n_classes": len(labels),
        "templates": texts.templates,
        "skipped_without_category": n_unlabelled,
        "skipped_outside_of_labels": n_outside - n_unlabelled,
        "interval": "95 % Wilson; of class mean and macro F1 bootstrap over rows (percentile)",
        "calibration": "softmax of cosine times the teacher's logit scale, 15 bins",
    }
    if isinstance(encoder, StudentEncoder):
        told |= {"draws": encoder.draws, "draw_seed": encoder.seed}
    data = shards_data(shards, split)
    name = benchmark or data["dataset"] or data["name"]
    record = result_record("zeroshot", name, encoder.model, ours, data, uids, told)
    measured = figures(
        np.concatenate(vectors), classes_CD, np.asarray(truth), labels, ours.logit_scale
    )
    if several:
        measured["draws"] = spread(np.concatenate(drawn, 1), classes_CD, np.asarray(truth))
    if groups:
        measured["groups"] = _grouped(measured["ranks"], truth, labels, groups)
    measured["ranks"] = by_uid(uids, measured["ranks"])
    record["label_hash"] = labels_hash(uids, [labels.names[label] for label in truth])
    return {**record, **measured}


@dataclass(frozen=True)
class ClassFeatures:
    """What shapes are compared with."""

    embeds: NDArray[np.float32]  # (C, D), L2-normalised
    told: str
    templates: list[str]  # none where the features were not made of prompts


def class_texts(
    shards: ShardSet,
    labels: LabelSet,
    open_teacher: Callable[[], QueryTeacher],
    templates: Sequence[str],
    protocol: Protocol = PROTOCOLS["ours"],
    *,
    asked: bool = False,
) -> ClassFeatures:
    """The class features that a protocol compares with; the teacher is opened if it is needed.

    With ``asked`` the templates are the user's own wish, and released features are not taken.
    Raises ``InputError`` for another teacher than that of the shards.
    """
    if protocol.released_texts and not asked:
        found = stored_class_texts(shards, labels)
        if found is not None:
            return ClassFeatures(found, "the class features that came with the data", [])
    teacher, ours = open_teacher(), shards.manifest.teacher
    require_same_teacher(teacher.info, "the class text", ours, f"shards {shards.storage.root}")
    embeds = teacher.encode_prompts(
        labels.names, list(templates), fit_articles=protocol.fit_articles
    )
    return ClassFeatures(embeds, "the prompt-averaged class text", list(templates))


def spread(
    embeds_KBD: NDArray[np.float32], classes_CD: NDArray[np.float32], truth: NDArray[np.int64]
) -> dict[str, Any]:
    """Accuracies of every draw of points by itself, their mean and standard deviation."""
    found: dict[str, Any] = {}
    ranks = [metrics.class_ranks_chunked(e, classes_CD, truth).rank for e in embeds_KBD]
    for k in TOP_K:
        shares = [metrics.topk_accuracy(rank, k) for rank in ranks]
        found[f"top{k}"] = {
            "mean": float(np.mean(shares)),
            "sd": float(np.std(shares, ddof=1)),
            "each": shares,
        }
    return found


def _grouped(
    ranks: Sequence[int],
    truth: Sequence[int],
    labels: LabelSet,
    groups: Mapping[str, AbstractSet[str]],
) -> list[dict[str, Any]]:
    """Figures of the objects of some classes; ``ranks`` are of the right class among all."""
    rank, true = np.asarray(ranks), np.asarray(truth)
    found = []
    for told, names in groups.items():
        numbers = [i for i, name in enumerate(labels.names) if name in names and (true == i).any()]
        mine = np.isin(true, numbers)
        recalls = [float((rank[true == i] == 1).mean()) for i in numbers]
        found.append(
            {
                "name": told,
                "count": int(mine.sum()),
                "n_classes": len(numbers),
                **{f"top{k}": proportion(int((rank[mine] <= k).sum()), mine.sum()) for k in TOP_K},
                "class_mean": float(np.mean(recalls)) if recalls else None,
            }
        )
    return found


def figures(
    embeds_BD: NDArray[np.float32],
    classes_CD: NDArray[np.float32],
    truth: NDArray[np.int64],
    labels: LabelSet,
    scale: float,
) -> dict[str, Any]:
    """Overall, per-class and confusion figures of one classification, and the rank of every row.

    ``scale`` is what cosines are multiplied with for probabilities; no accuracy depends on it.
    """
    ranks = metrics.class_ranks_chunked(embeds_BD, classes_CD, truth)
    matrix = metrics.confusion(truth, ranks.predicted, len(labels))
    scores = metrics.class_scores(matrix)
    n, names = len(truth), labels.names
    drawn = metrics.bootstrap(truth, ranks.predicted, len(labels))
    sure = metrics.confidences(embeds_BD, classes_CD, scale)
    calibration = metrics.calibration(sure, ranks.rank == 1)
    return {
        "metrics": {
            **{f"top{k}": proportion(int((ranks.rank <= k).sum()), n) for k in TOP_K},
            "class_mean": plain(metrics.class_mean(matrix)),
            "macro_f1": plain(metrics.macro_f1(matrix)),
            "chance_top1": 1 / len(labels),
            "tied": ranks.tied,
            "calibration_error": plain(calibration.error),
        },
        "bootstrap": {"resamples": drawn.resamples, **_bounds(drawn)},
        "calibration": [
            {"confidence": plain(sure), "accuracy": plain(true), "count": int(count)}
            for sure, true, count in zip(
                calibration.confidence, calibration.accuracy, calibration.count, strict=True
            )
        ],
        "per_class": [
            {
                "name": name,
                "count": int(scores.count[i]),
                "recall": plain(scores.recall[i]),
                "precision": plain(scores.precision[i]),
                "f1": plain(scores.f1[i]),
            }
            for i, name in enumerate(names)
        ],
        "most_confused": [
            {"true": names[a], "predicted": names[b], "count": count}
            for a, b, count in metrics.most_confused(matrix)
        ],
        "ranks": ranks.rank.tolist(),
        "confusion": {"rows": "true class", "classes": names, "matrix": matrix.tolist()},
    }


def _bounds(drawn: metrics.Bootstrap) -> dict[str, Any]:
    named = {"top1": drawn.top1, "class_mean": drawn.class_mean, "macro_f1": drawn.macro_f1}
    return {name: {"low": low, "high": high} for name, (low, high) in named.items()}
