from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from evaluation.benchmarks.probe import (
    FALLBACK_C,
    GRID,
    Labelled,
    choose_c,
    draw,
    few_shot,
    nearest,
    prepare,
)
from evaluation.embeddings import normalise
from evaluation.sources import Encoder, StudentEncoder
from pipeline.common import InputError
from pipeline.shards import Batch, ShardSet, create_or_open, write_part
from tests.evaluation import world
from tests.running import Cli


def probe(shards: ShardSet, encoder: Encoder, **options: Any) -> dict[str, Any]:
    ready = prepare(shards, encoder, **options)
    return ready.measure(*ready.embed())


def clusters(count: int, classes: int, noise: float, seed: int) -> Labelled:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = np.random.default_rng(99).normal(size=(classes, 6))
    vectors = normalise(normalise(centres)[labels] + noise * rng.normal(size=(count, 6)))
    return Labelled([f"{seed}/{i}" for i in range(count)], vectors, labels.astype(np.int64))


def softmax_regression(fit: Labelled, vectors: np.ndarray, c: float) -> np.ndarray:
    """The same classifier by plain gradient descent: sum of losses + |W|^2 / (2 C)."""
    n_classes = int(fit.labels.max()) + 1
    weights = np.zeros((6, n_classes))
    bias = np.zeros(n_classes)
    target = np.eye(n_classes)[fit.labels]
    for _ in range(20_000):
        logits = fit.vectors @ weights + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        weights -= 0.02 * (fit.vectors.T @ (p - target) + weights / c)
        bias -= 0.02 * (p - target).sum(0)
    return np.asarray((vectors @ weights + bias).argmax(1))


def test_few_shot__is_the_accuracy_of_softmax_regression_on_the_drawn_rows() -> None:
    fit, test = clusters(60, 3, 0.3, 1), clusters(50, 3, 0.3, 2)
    found = few_shot(fit, test, shots=4, seeds=2, c=5.0)
    for seed, top1 in enumerate(found["top1_by_seed"]):
        rows = draw(fit.labels, 4, seed)
        part = Labelled([], fit.vectors[rows], fit.labels[rows])
        expected = np.mean(softmax_regression(part, test.vectors, 5.0) == test.labels)
        assert top1 == pytest.approx(expected, abs=1 / 50)  # one row may lie on the border
    assert found["top1"]["value"] == pytest.approx(np.mean(found["top1_by_seed"]))


def test_choose_c__makes_the_halves_that_were_held_out_likeliest() -> None:
    fit = clusters(60, 3, 0.3, 1)
    lone = Labelled([], np.r_[fit.vectors, -fit.vectors[:1]], np.r_[fit.labels, 3])
    place = [int((lone.labels[:i] == label).sum()) for i, label in enumerate(lone.labels)]
    losses = []
    for c in GRID[:4]:
        loss = 0.0
        for half in (0, 1):
            held = (np.array(place) % 2 == half) & (lone.labels < 3)
            model = LogisticRegression(C=c, max_iter=5000)
            model.fit(lone.vectors[~held], lone.labels[~held])
            shares = model.predict_proba(lone.vectors[held])
            loss += log_loss(lone.labels[held], shares, labels=model.classes_) * held.sum()
        losses.append(loss)
    assert choose_c(lone) == GRID[int(np.argmin(losses))]
    assert np.argmin(losses) not in (0, 3)


def test_choose_c__equal_hits_do_not_decide() -> None:
    # Wherever C lies all are hits; what is left of the halves' likelihood is best in the middle.
    fit = clusters(60, 3, 0.1, 1)
    assert choose_c(fit) < GRID[-1]


def test_choose_c__a_share_of_zero_costs_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = LogisticRegression.predict_proba

    def underflown(self: LogisticRegression, vectors: np.ndarray) -> np.ndarray:
        shares: np.ndarray = plain(self, vectors)
        return np.where(shares < shares.max(), 0.0, shares) if GRID[-1] == self.C else shares

    monkeypatch.setattr(LogisticRegression, "predict_proba", underflown)
    assert choose_c(clusters(60, 3, 0.3, 1)) in GRID[:-1]


def test_choose_c__near_embeddings_of_unequal_classes_want_little_regularisation() -> None:
    def near(seed: int) -> Labelled:
        part = clusters(400, 4, 0.2, seed)
        kept = np.flatnonzero((part.labels == 0) | (np.arange(400) % 8 == 0))
        moved = normalise(np.eye(6)[0] + 0.02 * part.vectors[kept])
        return Labelled([str(i) for i in kept], moved, part.labels[kept])

    assert choose_c(near(5)) > 10


def test_few_shot__every_draw_has_its_own_c_unless_it_is_given() -> None:
    fit, test = clusters(60, 3, 0.3, 1), clusters(50, 3, 0.3, 2)
    assert set(few_shot(fit, test, shots=4, seeds=2)["c_by_seed"]) <= set(GRID)
    assert few_shot(fit, test, shots=1, seeds=1)["c_by_seed"] == [FALLBACK_C]
    assert few_shot(fit, test, shots=4, seeds=2, c=1.0)["c_by_seed"] == [1.0, 1.0]


def test_draw__k_of_every_class_all_of_a_smaller_one_and_nested() -> None:
    labels = np.array([0] * 5 + [1] * 2 + [2] * 9, np.int64)
    for seed in range(3):
        four = draw(labels, 4, seed)
        assert np.bincount(labels[four]).tolist() == [4, 2, 4]
        assert set(draw(labels, 2, seed)) <= set(four)
        assert len(set(four)) == len(four)
    assert draw(labels, 4, 0).tolist() != draw(labels, 4, 1).tolist()


def test_nearest__is_a_vote_of_the_largest_cosines() -> None:
    fit, test = clusters(40, 3, 0.5, 3), clusters(30, 3, 0.5, 4)
    for k in (1, 5):
        votes = [vote(fit, row, k) for row in test.vectors]
        np.testing.assert_array_equal(nearest(fit, test.vectors, k), votes)


def vote(fit: Labelled, vector: np.ndarray, k: int) -> int:
    """Row by row: the class with the largest sum of exp(cosine / 0.07)."""
    cosines = [float(row @ vector) for row in fit.vectors]
    votes: defaultdict[int, float] = defaultdict(float)
    for row in sorted(range(len(cosines)), key=lambda row: -cosines[row])[:k]:
        votes[int(fit.labels[row])] += math.exp(cosines[row] / 0.07)
    return max(votes, key=votes.__getitem__)


@pytest.mark.parametrize("per_class", [1, 3, 5])
def test_nearest__more_voters_than_a_class_has_rows(per_class: int) -> None:
    rng = np.random.default_rng(0)
    classes, width = 40, 32
    centres = normalise(rng.normal(size=(classes, width)))

    def around(count: int) -> Labelled:
        labels = np.repeat(np.arange(classes), count)
        vectors = normalise(centres[labels] + 0.05 * rng.normal(size=(len(labels), width)))
        return Labelled([str(i) for i in range(len(labels))], vectors, labels)

    fit, test = around(per_class), around(3)
    found = nearest(fit, test.vectors, 20)
    np.testing.assert_array_equal(found, [vote(fit, row, 20) for row in test.vectors])
    assert np.mean(nearest(fit, test.vectors, 1) == test.labels) == 1
    assert np.mean(found == test.labels) > 0.95  # by equal votes and the order of names 0.04 to 0.5


def test_nearest__more_voters_than_rows() -> None:
    fit, test = clusters(40, 3, 0.5, 3), clusters(30, 3, 0.5, 4)
    few = Labelled([], fit.vectors[:3], fit.labels[:3])
    votes = [vote(few, row, 3) for row in test.vectors]
    np.testing.assert_array_equal(nearest(few, test.vectors, 20), votes)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every class in both splits."""
    return world.make_shards(tmp_path_factory.mktemp("probe") / "shards", run=4)


def test_probe__more_shots_help_and_a_blind_student_is_at_chance(shards: Path) -> None:
    opened = ShardSet.open(shards)
    found = probe(opened, StudentEncoder(world.student(), opened), shots=(1, 4), seeds=4)
    one, four = (entry["top1"]["value"] for entry in found["few_shot"])
    assert 0.5 < one <= four
    assert found["linear"]["top1"]["value"] > 0.9
    assert [entry["k"] for entry in found["knn"]] == [1, 20]
    assert found["protocol"]["neighbours"] == "votes weighted by exp(cosine / 0.07)"
    assert found["count"] == 19  # half of 40, the last without a category
    assert found["protocol"]["n_train"] == 20
    assert found["protocol"]["test_without_known_category"] == 1
    assert found["classes"] == ["chair", "fish", "mug", "oak tree"]
    blind = probe(opened, StudentEncoder(world.student(blind=True), opened), shots=(1,), seeds=2)
    assert blind["few_shot"][0]["top1"]["value"] < 0.4


class Spy(StudentEncoder):
    """Keeps the uids that it embeds, call by call."""

    def __call__(self, batch: Batch, rows: np.ndarray, /) -> np.ndarray:
        self.seen: list[list[str]] = getattr(self, "seen", [])
        self.seen.append([batch.uid[row] for row in rows])
        return super().__call__(batch, rows)


def test_probe__embeds_only_rows_that_it_uses_in_one_pass(shards: Path, tmp_path: Path) -> None:
    whole = ShardSet.open(shards)
    rows = [row for group in whole.row_groups for row in whole.rows(group)]
    create_or_open(tmp_path / "set", whole.manifest)
    for at in range(0, 40, 8):  # the last part is of neither split; of the others one is unlabelled
        part = [replace(row, split="val") if at == 32 else row for row in rows[at : at + 8]]
        part[0] = replace(part[0], category=None if at else "mug")
        write_part(tmp_path / "set", whole.manifest, part)
    opened = ShardSet.open(tmp_path / "set")
    spy, told, fitted = Spy(world.student(), opened), list[int](), list[int]()
    ready = prepare(opened, spy, shots=(1, 2), seeds=2)
    fit, test = ready.embed(told.append)
    calls, record = [*spy.seen], ready.measure(fit, test, fitted.append)
    assert len(calls) == 4 < len(opened.row_groups)
    assert ready.n_rows == sum(told) == sum(map(len, calls)) == 29
    assert ready.n_classifiers == sum(fitted) == 2 * 2 + 1 + len(record["knn"])
    assert record == probe(opened, spy, shots=(1, 2), seeds=2)
    every = [row for group in opened.row_groups for row in opened.rows(group)]
    plain = np.concatenate([spy(batch, np.arange(len(batch))) for batch in opened.batches()])
    for lot, split in ((fit, "train"), (test, "test")):
        used = [i for i, row in enumerate(every) if row.split == split and row.category]
        assert lot.uids == [every[i].uid for i in used]
        np.testing.assert_allclose(lot.vectors, plain[used], atol=1e-6)
        names = [str(every[i].category).replace("_", " ") for i in used]
        assert [ready.names[label] for label in lot.labels] == names


def test_probe__learns_from_another_set(shards: Path, tmp_path: Path) -> None:
    other = world.make_shards(tmp_path / "other", count=24, seed=9, run=4)
    opened, learned = ShardSet.open(shards), ShardSet.open(other)
    with pytest.raises(InputError, match="are trained and tested on"):
        probe(opened, StudentEncoder(world.student(), opened), train=opened, split="train")
    with pytest.raises(InputError, match=r"12 objects are trained and tested on \(tiny/000\)"):
        probe(learned, StudentEncoder(world.student(), learned), train=opened, split="train")
    with pytest.raises(InputError, match="no such split"):
        probe(opened, StudentEncoder(world.student(), opened), split="val")


def test_command__table_json_and_errors(
    command: Cli, fakes: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "probe.json"
    common = ("probe", "--shards", shards, "--shots", "1,2", "--seeds", 2)
    found = command.json(*common, "--checkpoint", fakes, "--out", out)
    assert [entry["shots"] for entry in found["few_shot"]] == [1, 2]
    assert "C of 1, 10" in found["protocol"]["classifier"]
    fixed = command.json(*common, "--checkpoint", fakes, "--c", 5)
    assert "C = 5," in fixed["protocol"]["classifier"]
    assert fixed["linear"]["c"] == 5
    views = tmp_path / "views.json"
    table = command.ok(*common, "--teacher-views", "--out", views)
    assert "2 shots" in table
    assert "20-NN" in table
    page = tmp_path / "report.html"
    command.ok("report", out, views, "--out", page)
    assert "Probes on" in page.read_text()
    bare = world.make_shards(tmp_path / "bare", count=6, splits=False)
    asked = ("probe", "--shards", bare, "--checkpoint", tmp_path / "none")  # it comes before
    assert "has no splits; `pipeline split` makes them" in command.refused(*asked)
    for shots in ("0", "1,x", ""):
        assert "--shots" in command.refused(*common[:3], "--checkpoint", fakes, "--shots", shots)
