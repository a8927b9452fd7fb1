"""Probes: how well classes can be read off frozen embeddings with few labels, or with all.

- *few-shot*: multinomial logistic regression on k objects a class, drawn anew for every seed; the
  protocol of the field's tables (1, 2, 4, 8, 16 shots, 10 seeds);
- *linear*: the same on all training objects;
- *kNN*: votes of the nearest training objects, each weighted by exp(cosine / 0.07) (Wu et al.,
  CVPR 2018; also the protocol of DINO, Caron et al., ICCV 2021). Votes of equal weight would be
  tied, or wrong, wherever classes have fewer objects than there are voters.

Embeddings are L2-normalised and used as they are. The inverse regularisation C of every classifier
is chosen on the objects that it learns from, and on no other: on the test objects, or with more
labels than the shots allow, would be a gain that nobody has in practice. Young students need it:
their embeddings lie close together, and one C that suits a trained model smooths over all of them.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.benchmarks.labels import key, spoken
from evaluation.results import labels_hash, plain, proportion, result_record
from evaluation.sources import Advance, Encoder, no_rows, shards_data
from pipeline.common import InputError
from pipeline.shards import ShardSet
from trainer import metrics
from trainer.statistics import t_interval

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

SHOTS = (1, 2, 4, 8, 16)
SEEDS = 10
NEIGHBOURS = (1, 20)
TAU = 0.07  # of a neighbour's vote
GRID = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
FALLBACK_C = 1e3  # where no class has two objects, so that nothing can be held out
_LEAST = 1e-300  # share that stands for one that is 0 in floating point
_ITERATIONS = 2000
_CHOICE_ITERATIONS = 200  # of each C of the grid, from where the one before it stopped


@dataclass(frozen=True)
class Labelled:
    """Embeddings (B, D) with the number of their class (B,)."""

    uids: list[str]
    vectors: F32
    labels: I64


@dataclass(frozen=True)
class Rows:
    """Rows of a shard set that are yet to be embedded, in reading order."""

    shards: ShardSet
    uids: list[str]
    category: list[str | None]
    split: list[str | None]
    group: I64  # (B,) number of the row group, rising
    row: I64  # (B,) place in it

    def take(self, kept: Sequence[int]) -> Rows:
        """Some of them, which rise."""
        places = np.asarray(kept, np.int64)
        return Rows(
            self.shards,
            [self.uids[i] for i in kept],
            [self.category[i] for i in kept],
            [self.split[i] for i in kept],
            self.group[places],
            self.row[places],
        )

    def of(self, splits: set[str | None]) -> Rows:
        """Those of some splits."""
        return self.take([i for i, split in enumerate(self.split) if split in splits])

    def within(self, shards: ShardSet, group: int) -> I64:
        """Places in a row group of those that are in it; none of another set."""
        if self.shards is not shards:
            return self.row[:0]
        return self.row[slice(*np.searchsorted(self.group, [group, group + 1]))]


@dataclass(frozen=True)
class Probe:
    """Rows that were chosen and checked, ready to be embedded and measured."""

    record: dict[str, Any]  # the result without its figures
    encoder: Encoder
    fit: Rows
    test: Rows
    names: list[str]  # of the classes
    spelling: dict[str, str]
    shots: Sequence[int]
    seeds: int
    c: float | None

    @property
    def n_rows(self) -> int:
        """Rows that ``embed`` embeds."""
        return len(self.fit.uids) + len(self.test.uids)

    @property
    def neighbours(self) -> list[int]:
        """Numbers of voters that the training rows suffice for."""
        return [k for k in NEIGHBOURS if k <= len(self.fit.uids)]

    @property
    def n_classifiers(self) -> int:
        """Classifiers that ``measure`` fits."""
        return len(self.shots) * self.seeds + 1 + len(self.neighbours)

    def embed(self, advance: Advance | None = None) -> tuple[Labelled, Labelled]:
        """Training and test rows with their vectors; ``advance`` counts rows.

        A row group is read once, one without such rows not at all.
        """
        found: tuple[list[F32], list[F32]] = ([], [])
        for shards in dict.fromkeys([self.fit.shards, self.test.shards]):
            for number, group in enumerate(shards.row_groups):
                fit, test = self.fit.within(shards, number), self.test.within(shards, number)
                if not len(fit) + len(test):
                    continue
                batch = shards.read(group, self.encoder.columns)
                vectors = self.encoder(batch, np.concatenate([fit, test]))
                found[0].append(vectors[: len(fit)])
                found[1].append(vectors[len(fit) :])
                if advance:
                    advance(len(vectors))
        number_of = {name: i for i, name in enumerate(self.names)}

        def labelled(rows: Rows, vectors: list[F32]) -> Labelled:
            labels = [number_of[key(name or "")] for name in rows.category]
            return Labelled(rows.uids, np.concatenate(vectors), np.asarray(labels, np.int64))

        return labelled(self.fit, found[0]), labelled(self.test, found[1])

    def measure(
        self, fit: Labelled, test: Labelled, advance: Advance | None = None
    ) -> dict[str, Any]:
        """Fit every classifier and return the result record; ``advance`` counts classifiers."""
        record = dict(self.record)
        record["label_hash"] = labels_hash(
            [*fit.uids, *test.uids], [self.names[label] for label in (*fit.labels, *test.labels)]
        )
        few = [few_shot(fit, test, k, self.seeds, self.c, advance) for k in self.shots]
        all_c = choose_c(fit) if self.c is None else self.c
        linear = _shares(_linear(fit, test.vectors, all_c), test, len(self.names))
        if advance:
            advance(1)
        knn = []
        for k in self.neighbours:
            knn.append({"k": k, **_shares(nearest(fit, test.vectors, k), test, len(self.names))})
            if advance:
                advance(1)
        return {
            **record,
            "few_shot": few,
            "linear": {**linear, "c": all_c},
            "knn": knn,
            "classes": [self.spelling[name] for name in self.names],
        }


def prepare(
    shards: ShardSet,
    encoder: Encoder,
    *,
    train: ShardSet | None = None,
    split: str = "test",
    shots: Sequence[int] = SHOTS,
    seeds: int = SEEDS,
    c: float | None = None,
    benchmark: str | None = None,
) -> Probe:
    """Choose the rows to fit and to measure on, before anything is embedded.

    Training rows are those of split ``train`` or of none: of ``train``, or of ``shards`` itself.
    Rows without a category are left out and counted, and so are test rows of a class that no
    training row has. ``c`` fixes what ``choose_c`` else finds. Raises ``InputError`` when either
    side is left with nothing, or fewer than two classes.
    """
    rows = read_rows(shards)
    tested = rows.of({split})
    if not tested.uids:
        raise no_rows(shards, split)
    learned = (rows if train is None else read_rows(train)).of({"train", None})
    root = (train or shards).storage.root
    if not learned.uids:
        raise InputError(f"{root}: no row is of split train or of none; give --train-shards")
    both = set(learned.uids) & set(tested.uids)
    if both:
        raise InputError(f"{root}: {len(both)} objects are trained and tested on ({min(both)})")
    names = sorted({key(name) for name in learned.category if name is not None and key(name)})
    if len(names) < 2:
        raise InputError(f"{root}: its training rows have fewer than two categories")
    fit, left = _known(learned, names)
    test, dropped = _known(tested, names)
    if not test.uids:
        raise InputError(
            f"{shards.storage.root}: no row of split {split} has a category of the training rows"
        )
    spelling = {key(name): spoken(name) for name in reversed(learned.category) if name is not None}
    smallest = min(Counter(key(name or "") for name in fit.category).values())
    protocol = {
        "measure": "top-1 and class mean of test rows; embeddings L2-normalised, frozen",
        "classifier": f"multinomial logistic regression, {_told(c)}, L2, lbfgs",
        "shots": "drawn without replacement per class and seed; a class with fewer has them all",
        "neighbours": f"votes weighted by exp(cosine / {TAU})",
        "smallest_training_class": smallest,
        "n_classes": len(names),
        "n_train": len(fit.uids),
        "train_without_category": left,
        "test_without_known_category": dropped,
        "interval": "95 %: t over seeds for few-shot, Wilson for the others",
    }
    data = shards_data(shards, split)
    name = benchmark or data["dataset"] or data["name"]
    teacher = shards.manifest.teacher
    record = result_record("probe", name, encoder.model, teacher, data, test.uids, protocol)
    return Probe(record, encoder, fit, test, names, spelling, shots, seeds, c)


def _told(c: float | None) -> str:
    if c is not None:
        return f"C = {c:g}"
    grid = ", ".join(f"{value:g}" for value in GRID)
    return (
        f"C of {grid} by the likelihood of halves of its training objects "
        f"({FALLBACK_C:g} for one a class)"
    )


def few_shot(
    fit: Labelled,
    test: Labelled,
    shots: int,
    seeds: int,
    c: float | None = None,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """Mean over seeds of the accuracy of classifiers that saw ``shots`` objects a class.

    ``advance`` counts classifiers.
    """
    n_classes = int(fit.labels.max()) + 1
    top1, mean, chosen = [], [], []
    for seed in range(seeds):
        rows = draw(fit.labels, shots, seed)
        part = Labelled([fit.uids[i] for i in rows], fit.vectors[rows], fit.labels[rows])
        chosen.append(choose_c(part) if c is None else c)
        predicted = _linear(part, test.vectors, chosen[-1])
        top1.append(float(np.mean(predicted == test.labels)))
        mean.append(metrics.class_mean(metrics.confusion(test.labels, predicted, n_classes)))
        if advance:
            advance(1)
    interval = t_interval(top1)
    return {
        "shots": shots,
        "top1": {
            "value": interval.mean,
            "low": plain(max(interval.low, 0.0)),  # NaN, of one seed, is kept by this order
            "high": plain(min(interval.high, 1.0)),
        },
        "class_mean": plain(float(np.mean(mean))),
        "top1_by_seed": top1,
        "c_by_seed": chosen,
    }


def draw(labels: I64, shots: int, seed: int) -> I64:
    """Sorted rows: ``shots`` of every class, or all of a class that has fewer.

    Larger numbers of shots add to smaller ones of the same seed.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    chosen = [order[labels[order] == label][:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def choose_c(fit: Labelled) -> float:
    """The C of ``GRID`` under which each half of ``fit`` is likeliest, learned from the other.

    The objects of every class are dealt to the halves in turn; those alone in their class are
    learned from in both. Not by hits: of a few hundred objects half of the grid has equally many,
    and yet is far from equally good on others. Of equal likelihoods the smallest C is taken.
    """
    from sklearn.linear_model import LogisticRegression

    size = np.bincount(fit.labels)[fit.labels]
    place = np.zeros(len(fit.labels), np.int64)
    for label in np.unique(fit.labels):
        mine = fit.labels == label
        place[mine] = np.arange(mine.sum())
    if size.max() < 2:
        return FALLBACK_C
    likelihood = np.zeros(len(GRID))
    for half in (0, 1):
        held = (place % 2 == half) & (size > 1)
        truth = fit.labels[held]
        model = LogisticRegression(warm_start=True, max_iter=_CHOICE_ITERATIONS)
        for i, c in enumerate(GRID):
            with warnings.catch_warnings():
                # One object a class looks like a regression to it; and whatever the last step
                # of a large C would still bring does not decide between powers of ten.
                warnings.filterwarnings("ignore", message="The number of unique classes")
                warnings.filterwarnings("ignore", message="lbfgs failed to converge")
                model.set_params(C=c).fit(fit.vectors[~held], fit.labels[~held])
            shares = model.predict_proba(fit.vectors[held])
            place_of = np.searchsorted(model.classes_, truth)
            said = shares[np.arange(len(truth)), place_of].astype(np.float64)
            likelihood[i] += float(np.log(np.maximum(said, _LEAST)).sum())
    return GRID[int(likelihood.argmax())]


def nearest(fit: Labelled, vectors: F32, k: int) -> I64:
    """Classes by the weighted votes of the ``k`` nearest rows by cosine, see the module."""
    from sklearn.neighbors import KNeighborsClassifier

    def weigh(distance: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp((1 - distance.astype(np.float64)) / TAU)

    k = min(k, len(fit.labels))
    model = KNeighborsClassifier(k, weights=weigh, metric="cosine", algorithm="brute")
    with warnings.catch_warnings():
        # One object a class looks like a regression to it.
        warnings.filterwarnings("ignore", message="The number of unique classes")
        return np.asarray(model.fit(fit.vectors, fit.labels).predict(vectors), np.int64)


def _linear(fit: Labelled, vectors: F32, c: float) -> I64:
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # One shot a class looks like a regression to it.
        warnings.filterwarnings("ignore", message="The number of unique classes")
        model = LogisticRegression(C=c, max_iter=_ITERATIONS).fit(fit.vectors, fit.labels)
    return np.asarray(model.predict(vectors), np.int64)


def _shares(predicted: I64, test: Labelled, n_classes: int) -> dict[str, Any]:
    hits = int((predicted == test.labels).sum())
    matrix = metrics.confusion(test.labels, predicted, n_classes)
    return {
        "top1": proportion(hits, len(test.labels)),
        "class_mean": plain(metrics.class_mean(matrix)),
    }


def read_rows(shards: ShardSet) -> Rows:
    """All rows of a set. Raises ``InputError`` when it has none."""
    uids: list[str] = []
    category: list[str | None] = []
    split: list[str | None] = []
    for batch in shards.batches(["category", "split"]):
        uids += batch.uid
        category += batch.category or []
        split += batch.split or []
    if not uids:
        raise no_rows(shards, None)
    sizes = [group.n_rows for group in shards.row_groups]
    row = np.concatenate([np.arange(size) for size in sizes])
    return Rows(shards, uids, category, split, np.repeat(np.arange(len(sizes)), sizes), row)


def _known(rows: Rows, names: Sequence[str]) -> tuple[Rows, int]:
    """Rows of known classes, and how many are left out."""
    known = set(names)
    kept = [i for i, name in enumerate(rows.category) if key(name or "") in known]
    return rows.take(kept), len(rows.uids) - len(kept)
