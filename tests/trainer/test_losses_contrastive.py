"""The contrastive losses as functions against plain Python, whose oracles the others use too."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.trainer.features import ROWS, batch, draw, with_several
from trainer.losses import Several
from trainer.losses.contrastive import info_nce, multi_positive, siglip
from trainer.relations import unit

SOME_TEXT = [1, 0, 1, 1, 0, 1, 1, 1]
Dropped = Callable[[int, int], bool]


def nothing(i: int, j: int) -> bool:
    return False


def dot(a: Tensor, b: Tensor) -> float:
    return float(sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)))


def cross_entropy(own: float, others: list[float]) -> float:
    """-log of the share of ``own``, which stands among ``others`` too."""
    return math.log(sum(math.exp(value) for value in others)) - own


def oracle_info_nce(
    u: Tensor,
    v: Tensor,
    scale: float,
    rows: list[int],
    dropped: Dropped = nothing,
    hardness: float = 0.0,
) -> float:
    total = 0.0
    for i in rows:
        for a, b in ((u, v), (v, u)):
            own = scale * dot(a[i], b[i])
            others = [scale * dot(a[i], b[j]) for j in rows if j != i and not dropped(i, j)]
            weights = [math.exp(hardness * other) for other in others]
            mean = sum(weights) / max(len(weights), 1)
            negatives = zip(weights, others, strict=True)
            weighted = sum(weight / mean * math.exp(other) for weight, other in negatives)
            total += math.log(math.exp(own) + weighted) - own
    return total / (2 * len(rows))


def oracle_multi_positive(
    u: Tensor, vectors: list[list[Tensor]], scale: float, dropped: Dropped = nothing
) -> float:
    """``vectors[i]`` are those of object i."""
    rows = [i for i in range(len(u)) if vectors[i]]
    total = 0.0
    for i in rows:
        columns = [v for j in rows if not dropped(i, j) for v in vectors[j]]
        there = [
            cross_entropy(scale * dot(u[i], own), [scale * dot(u[i], v) for v in columns])
            for own in vectors[i]
        ]
        back = [
            cross_entropy(
                scale * dot(u[i], own),
                [scale * dot(u[j], own) for j in rows if not dropped(i, j)],
            )
            for own in vectors[i]
        ]
        total += sum(there) / len(there) + sum(back) / len(back)
    return total / (2 * len(rows))


def oracle_siglip(
    u: Tensor, vectors: list[list[Tensor]], scale: float, bias: float, dropped: Dropped = nothing
) -> float:
    rows = [i for i in range(len(u)) if vectors[i]]
    total = 0.0
    for i in rows:
        for j in rows:
            if dropped(i, j):
                continue
            for v in vectors[j]:
                sign = 1 if i == j else -1
                z = sign * (scale * dot(u[i], v) + bias)
                total += math.log(1 + math.exp(-z)) / len(vectors[j])
    return total / len(rows)


def lists(several: Several, rows: int = ROWS) -> list[list[Tensor]]:
    values = unit(several.values)
    return [
        [values[s] for s in range(len(several)) if int(several.owner[s]) == row]
        for row in range(rows)
    ]


def valid_rows(flags: list[int]) -> list[int]:
    return [place for place, flag in enumerate(flags) if flag]


def test_info_nce__equals_the_oracle() -> None:
    u, v = unit(draw(0)), unit(draw(1))
    expected = oracle_info_nce(u, v, 7.0, list(range(ROWS)))
    assert float(info_nce(u, v, 7.0)) == pytest.approx(expected)


def test_info_nce__textless_rows_are_neither_queries_nor_negatives() -> None:
    u, v = unit(draw(0)), unit(draw(1))
    valid = torch.tensor(SOME_TEXT).bool()
    expected = oracle_info_nce(u, v, 7.0, valid_rows(SOME_TEXT))
    assert float(info_nce(u, v, 7.0, valid)) == pytest.approx(expected)


def test_info_nce__no_valid_row_is_zero_with_finite_gradient() -> None:
    u = draw(0).requires_grad_(True)
    loss = info_nce(unit(u), unit(draw(1)), 7.0, torch.zeros(ROWS, dtype=torch.bool))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert u.grad is not None
    assert bool((u.grad == 0).all())


@pytest.mark.parametrize("flags", [[1] * ROWS, SOME_TEXT], ids=["all", "some"])
def test_multi_positive__equals_the_oracle(flags: list[int]) -> None:
    f = with_several(batch(flags))
    assert f.text_all is not None
    several = Several(unit(f.text_all.values), f.text_all.owner)
    got = float(multi_positive(unit(f.point), several, 5.0))
    expected = oracle_multi_positive(unit(f.point), lists(f.text_all), 5.0)
    assert got == pytest.approx(expected)


@pytest.mark.parametrize("flags", [[1] * ROWS, SOME_TEXT], ids=["all", "some"])
def test_siglip__equals_the_oracle(flags: list[int]) -> None:
    f = with_several(batch(flags))
    assert f.text_all is not None
    several = Several(unit(f.text_all.values), f.text_all.owner)
    got = float(siglip(unit(f.point), several, 5.0, -3.0))
    expected = oracle_siglip(unit(f.point), lists(f.text_all), 5.0, -3.0)
    assert got == pytest.approx(expected)


def test_multi_positive__one_vector_an_object_is_info_nce() -> None:
    f = batch(SOME_TEXT)
    several, text = f.several("text"), f.text
    assert several is not None
    assert text is not None
    got = multi_positive(unit(f.point), Several(unit(several.values), several.owner), 5.0)
    assert float(got) == pytest.approx(
        float(info_nce(unit(f.point), unit(text), 5.0, f.has_text)), rel=1e-12
    )


def test_info_nce__weights_of_hard_negatives_are_constants() -> None:
    point, v = draw(0).requires_grad_(True), unit(draw(1))
    info_nce(unit(point), v, 3.0, hardness=0.6).backward()  # type: ignore[no-untyped-call]
    got = point.grad
    again = point.detach().clone().requires_grad_(True)
    place = torch.arange(ROWS)
    total = again.new_zeros(())
    for logits in (3.0 * unit(again) @ v.T, 3.0 * v @ unit(again).T):
        own = torch.eye(ROWS, dtype=torch.bool)
        weights = (0.6 * logits).exp().masked_fill(own, 0.0)
        weights = (weights / weights.sum(1, keepdim=True) * (ROWS - 1)).detach()
        weights = weights.masked_fill(own, 1.0)
        total = total + ((weights * logits.exp()).sum(1).log() - logits[place, place]).mean() / 2
    total.backward()  # type: ignore[no-untyped-call]
    assert got is not None
    assert again.grad is not None
    torch.testing.assert_close(got, again.grad)


def test_info_nce__a_row_without_negatives_has_none_that_are_hard() -> None:
    u, v = unit(draw(0)).requires_grad_(True), unit(draw(1))
    alone = torch.zeros(ROWS, dtype=torch.bool)
    alone[2] = True
    loss = info_nce(u, v, 7.0, alone, hardness=0.5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12)
    assert u.grad is not None
    assert bool(u.grad.isfinite().all())
