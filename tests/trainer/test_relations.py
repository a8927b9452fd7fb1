from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.config import Discrepancy, Representation
from trainer.relations import centred, discrepancy, distances, pair_mask, relation, unit

KINDS: list[Discrepancy] = ["jeffreys", "kl", "reverse_kl", "l1", "l2", "huber"]
REPRESENTATIONS: list[Representation] = ["normalised_similarity", "similarity", "distance"]


def features(rows: int, width: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def full(rows: int, columns: int | None = None) -> Tensor:
    return torch.ones(rows, columns or rows, dtype=torch.bool)


def oracle_relation(rows: Tensor, columns: Tensor, mask: Tensor, kind: str, tau: float) -> Tensor:
    """Pair by pair, in Python floats."""
    out = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    pairs = [(i, j) for i in range(len(rows)) for j in range(len(columns)) if bool(mask[i, j])]
    if kind == "distance":
        lengths = {(i, j): math.dist(rows[i].tolist(), columns[j].tolist()) for i, j in pairs}
        mean = sum(lengths.values()) / len(lengths)
        for pair, length in lengths.items():
            out[pair] = length / mean
        return out
    cosine = {
        (i, j): sum(a * b for a, b in zip(rows[i].tolist(), columns[j].tolist(), strict=True))
        for i, j in pairs
    }
    for i, j in pairs:
        if kind == "similarity":
            out[i, j] = cosine[i, j]
        else:
            total = sum(math.exp(value / tau) for (k, _), value in cosine.items() if k == i)
            out[i, j] = cosine[i, j] / tau - math.log(total)
    return out


def oracle_discrepancy(p: Tensor, q: Tensor, mask: Tensor, kind: str) -> float:
    """Mean over rows of divergences of probabilities, mean over pairs of the rest."""

    def divergence(a: list[float], b: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    if kind in ("jeffreys", "kl", "reverse_kl"):
        rows = []
        for i in range(len(p)):
            if not bool(mask[i].any()):
                continue
            a, b = p[i][mask[i]].tolist(), q[i][mask[i]].tolist()
            forward, backward = divergence(a, b), divergence(b, a)
            rows.append(
                {"jeffreys": forward + backward, "kl": forward, "reverse_kl": backward}[kind]
            )
        return sum(rows) / len(rows)
    errors = (q - p)[mask].tolist()
    if kind == "l1":
        values = [abs(e) for e in errors]
    elif kind == "l2":
        values = [e * e for e in errors]
    else:
        values = [0.5 * e * e if abs(e) <= 1 else abs(e) - 0.5 for e in errors]
    return float(sum(values)) / len(values)


MASKS: dict[str, Callable[[], Tensor]] = {
    "full": lambda: full(6),
    "without_diagonal": lambda: ~torch.eye(6, dtype=torch.bool),
    "two_rows_and_columns_out": lambda: pair_mask(
        torch.tensor([1, 1, 0, 1, 0, 1]).bool(),
        torch.tensor([1, 1, 0, 1, 0, 1]).bool(),
        without_diagonal=True,
    ),
}


@pytest.mark.parametrize("name", list(MASKS))
@pytest.mark.parametrize("kind", REPRESENTATIONS)
def test_relation__equals_the_oracle(kind: Representation, name: str) -> None:
    rows, columns, mask = unit(features(6)), unit(features(6, seed=1)), MASKS[name]()
    expected = oracle_relation(rows, columns, mask, kind, 0.3)
    torch.testing.assert_close(relation(rows, columns, mask, kind, 0.3), expected)


@pytest.mark.parametrize("name", list(MASKS))
@pytest.mark.parametrize("kind", KINDS)
def test_discrepancy__equals_the_oracle(kind: Discrepancy, name: str) -> None:
    mask = MASKS[name]()
    teacher = relation(unit(features(6)), unit(features(6)), mask, tau=0.2)
    student = relation(unit(features(6, seed=1)), unit(features(6, seed=2)), mask, tau=0.5)
    expected = oracle_discrepancy(teacher.exp(), student.exp(), mask, kind)
    assert float(discrepancy(teacher, student, mask, kind)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["l1", "l2", "huber"])
@pytest.mark.parametrize("representation", ["similarity", "distance"])
def test_discrepancy__of_values_equals_the_oracle(
    kind: Discrepancy, representation: Representation
) -> None:
    mask = MASKS["two_rows_and_columns_out"]()
    p = relation(unit(features(6)), unit(features(6)), mask, representation)
    q = relation(unit(features(6, seed=1)), unit(features(6, seed=2)), mask, representation)
    got = discrepancy(p, q, mask, kind, log_probabilities=False)
    assert float(got) == pytest.approx(oracle_discrepancy(p, q, mask, kind), rel=1e-9)


def test_discrepancy__huber_delta_bounds_the_quadratic_part() -> None:
    p, q = torch.zeros(1, 1).double(), torch.full((1, 1), 3.0).double()
    got = discrepancy(p, q, full(1), "huber", log_probabilities=False, huber_delta=2.0)
    assert float(got) == pytest.approx(2.0 * (3.0 - 1.0))


def test_discrepancy__jeffreys_has_the_published_check_value() -> None:
    p, q = torch.tensor([[0.5, 0.5]]).double(), torch.tensor([[0.9, 0.1]]).double()
    got = float(discrepancy(p.log(), q.log(), full(1, 2), "jeffreys"))
    assert got == pytest.approx(0.8789, abs=5e-5)


def test_discrepancy__jeffreys_gradient_is_the_formula() -> None:
    p = features(1, 7).softmax(1)
    logits = features(1, 7, seed=3).requires_grad_(True)
    discrepancy(p.log(), logits.log_softmax(1), full(1, 7), "jeffreys").backward()  # type: ignore[no-untyped-call]
    q = logits.detach().softmax(1)
    kl = (q * (q / p).log()).sum()
    torch.testing.assert_close(logits.grad, (q - p) + q * ((q / p).log() - kl))


LEGAL: list[tuple[Representation, Discrepancy]] = [
    *(("normalised_similarity", kind) for kind in KINDS),
    *(("similarity", kind) for kind in KINDS[3:]),
    *(("distance", kind) for kind in KINDS[3:]),
]


@pytest.mark.parametrize("name", list(MASKS))
@pytest.mark.parametrize(("representation", "kind"), LEGAL)
def test_relation__gradient_is_right(
    representation: Representation, kind: Discrepancy, name: str
) -> None:
    mask = MASKS[name]()
    target = relation(unit(features(6)), unit(features(6)), mask, representation)
    probabilities = representation == "normalised_similarity"

    def loss(values: Tensor, columns: Tensor) -> Tensor:
        given = relation(unit(values), unit(columns), mask, representation)
        return discrepancy(target, given, mask, kind, log_probabilities=probabilities)

    inputs = [features(6, seed=seed).requires_grad_(True) for seed in (4, 5)]
    assert torch.autograd.gradcheck(loss, inputs)


def test_relation__gradient_in_the_temperature_is_right() -> None:
    mask = MASKS["without_diagonal"]()
    target = relation(unit(features(6)), unit(features(6)), mask)
    rows = unit(features(6, seed=4))

    def loss(tau: Tensor) -> Tensor:
        return discrepancy(target, relation(rows, rows, mask, tau=tau), mask)

    assert torch.autograd.gradcheck(loss, torch.tensor(0.3).double().requires_grad_(True))


def test_relation__a_given_mean_scales_distances() -> None:
    rows, mask = unit(features(4)), full(4)
    length = distances(rows, rows, mask)
    given = relation(rows, rows, mask, "distance", mean=torch.tensor(0.25).double())
    torch.testing.assert_close(given, length * 4)
    own = relation(rows, rows, mask, "distance")
    assert float(own.mean()) == pytest.approx(1)
    torch.testing.assert_close(own, length / length.mean())


@pytest.mark.parametrize("kind", KINDS)
def test_discrepancy__a_given_count_is_the_divisor(kind: Discrepancy) -> None:
    mask = MASKS["without_diagonal"]()
    p = relation(unit(features(6)), unit(features(6)), mask)
    q = relation(unit(features(6, seed=1)), unit(features(6, seed=1)), mask)
    count = torch.tensor(12), torch.tensor(90)  # of 6 rows and 30 pairs here
    factor = 3 if kind in KINDS[3:] else 2
    got = float(discrepancy(p, q, mask, kind, count=count))
    assert got == pytest.approx(float(discrepancy(p, q, mask, kind)) / factor)


def pairwise_loss(a: Tensor, b: Tensor, kind: Discrepancy = "jeffreys") -> float:
    mask = ~torch.eye(len(a), dtype=torch.bool)
    return float(
        discrepancy(relation(unit(a), unit(a), mask), relation(unit(b), unit(b), mask), mask, kind)
    )


def test_jeffreys__invariances() -> None:
    a, b = features(8), features(8, 9, seed=1)
    base = pairwise_loss(a, b)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    assert pairwise_loss(a[order], b[order]) == pytest.approx(base)
    scale = torch.rand(8, 1, generator=torch.Generator().manual_seed(1)).double() + 0.1
    assert pairwise_loss(a * scale, b * 3) == pytest.approx(base)
    rotation = torch.linalg.qr(features(9, 9, seed=5)).Q
    assert pairwise_loss(a, b @ rotation) == pytest.approx(base)
    assert pairwise_loss(b, a) == pytest.approx(base)
    assert pairwise_loss(a[order], b) != pytest.approx(base)


@pytest.mark.parametrize("kind", KINDS)
def test_discrepancy__is_zero_iff_the_relations_are_equal(kind: Discrepancy) -> None:
    a = features(8)
    assert pairwise_loss(a, a * 2, kind) == pytest.approx(0, abs=1e-12)
    assert pairwise_loss(a, features(8, seed=1), kind) > 1e-4


def test_relation__masked_columns_cannot_change_it() -> None:
    rows, columns = unit(features(4)), unit(features(4, seed=1))
    valid = torch.tensor([True, True, False, True])
    mask = pair_mask(valid, valid, without_diagonal=False)
    before = relation(rows, columns, mask)
    columns[2] = unit(features(1, seed=9))[0]
    torch.testing.assert_close(relation(rows, columns, mask), before)
    assert bool((before[:, 2] == 0).all())
    assert bool((before[2] == 0).all())


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_relation__no_valid_pair_gives_zero_and_finite_gradients(
    representation: Representation,
) -> None:
    values = features(3).requires_grad_(True)
    mask = torch.zeros(3, 3, dtype=torch.bool)
    given = relation(unit(values), unit(values), mask, representation)
    target = torch.zeros_like(given)
    loss = discrepancy(target, given, mask, "l2", log_probabilities=False)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert values.grad is not None
    assert bool(values.grad.isfinite().all())


def test_relation__equal_features_give_finite_gradients_of_distances() -> None:
    values = torch.ones(3, 4).requires_grad_(True)
    given = relation(unit(values), unit(values), full(3), "distance")
    given.sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert bool(values.grad.isfinite().all())


def test_relation__half_precision_features_are_widened() -> None:
    values = features(4).to(torch.bfloat16)
    assert unit(values).dtype == torch.float32
    assert relation(unit(values), unit(values), full(4), tau=0.01).dtype == torch.float32


def test_relation__low_temperature_stays_finite_in_float32() -> None:
    a, b = unit(features(16).float()), unit(features(16, seed=1).float())
    mask = full(16)
    loss = discrepancy(relation(a, a, mask, tau=0.005), relation(b, b, mask, tau=0.005), mask)
    assert math.isfinite(float(loss))


def test_pair_mask__offset_places_the_diagonal_among_gathered_columns() -> None:
    mask = pair_mask(
        torch.ones(2, dtype=torch.bool),
        torch.ones(5, dtype=torch.bool),
        without_diagonal=True,
        offset=3,
    )
    expected = full(2, 5)
    expected[0, 3] = expected[1, 4] = False
    assert torch.equal(mask, expected)


def test_discrepancy__divergence_of_plain_values_is_refused() -> None:
    values: Any = features(2, 2)
    with pytest.raises(ValueError, match="log-probabilities"):
        discrepancy(values, values, full(2), "jeffreys", log_probabilities=False)


def test_centred__removes_a_shared_mean() -> None:
    shared = 10 * torch.ones(5, dtype=torch.float64)
    values = unit(features(50) + shared)
    assert float((values @ values.T).mean()) > 0.9
    after = centred(values, values.mean(0))
    assert abs(float((after @ after.T).mean())) < 0.1
    assert torch.allclose(after.norm(dim=1), torch.ones(50, dtype=torch.float64))


@pytest.mark.parametrize("rows", [48, 63, 200, 5000])
def test_centred__of_equal_rows_is_zero_without_gradient(rows: int) -> None:
    """Their mean differs from them by rounding, of which no direction must be made."""
    values = unit(features(1, 512)).float().repeat(rows, 1).requires_grad_(True)
    mean = values.mean(0)
    assert not torch.equal(mean, values[0])
    after = centred(values, mean)
    assert not after.any()
    (gradient,) = torch.autograd.grad((after * features(rows, 512).float()).sum(), values)
    assert not gradient.any()
