"""The relation terms against their formulas, written out pair by pair."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.features import LEGAL, ROWS, SOME_TEXT, TAUS, batch, distill, select
from trainer.config import DistillConfig
from trainer.losses import DistillLoss
from trainer.losses.weighting import MAX_LOG_VARIANCE
from trainer.relations import neighbours


def rows_of(features: Tensor) -> list[list[float]]:
    """Rows of length one, in plain Python."""
    rows = features.tolist()
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]


def plain_relation(
    rows: list[list[float]],
    columns: list[list[float]],
    pairs: list[tuple[int, int]],
    kind: str,
    tau: float,
) -> dict[tuple[int, int], float]:
    if kind == "distance":
        length = {(i, j): math.dist(rows[i], columns[j]) for i, j in pairs}
        mean = sum(length.values()) / len(length)
        return {pair: value / mean for pair, value in length.items()}
    cosine = {
        (i, j): sum(a * b for a, b in zip(rows[i], columns[j], strict=True)) for i, j in pairs
    }
    if kind == "similarity":
        return cosine
    sums = {
        row: sum(math.exp(value / tau) for (i, _), value in cosine.items() if i == row)
        for row in {i for i, _ in pairs}
    }
    return {(i, j): math.exp(value / tau) / sums[i] for (i, j), value in cosine.items()}


def plain_discrepancy(
    p: dict[tuple[int, int], float], q: dict[tuple[int, int], float], kind: str
) -> float:
    n_rows = len({i for i, _ in p})
    kinds: dict[str, Callable[[float, float], float]] = {
        "jeffreys": lambda a, b: (a - b) * (math.log(a) - math.log(b)),
        "kl": lambda a, b: a * math.log(a / b),
        "reverse_kl": lambda a, b: b * math.log(b / a),
        "l1": lambda a, b: abs(a - b),
        "l2": lambda a, b: (a - b) ** 2,
        "huber": lambda a, b: 0.5 * (a - b) ** 2 if abs(a - b) <= 1 else abs(a - b) - 0.5,
    }
    found = kinds[kind]
    total = sum(found(p[pair], q[pair]) for pair in p)
    return total / (n_rows if kind in ("jeffreys", "kl", "reverse_kl") else len(p))


@pytest.mark.parametrize("mask_diagonal", [True, False])
@pytest.mark.parametrize(("representation", "kind"), LEGAL)
def test_distill__terms_equal_the_plain_formulas(
    representation: str, kind: str, mask_diagonal: bool
) -> None:
    f = batch(SOME_TEXT)
    assert f.image is not None
    assert f.text is not None
    point, image, text = rows_of(f.point), rows_of(f.image), rows_of(f.text)
    everyone = [(i, j) for i in range(ROWS) for j in range(ROWS)]
    told = [(i, j) for i, j in everyone if SOME_TEXT[i] and SOME_TEXT[j]]

    def term(
        teacher: tuple[list[list[float]], list[list[float]]],
        student: tuple[list[list[float]], list[list[float]]],
        pairs: list[tuple[int, int]],
        where: str,
    ) -> float:
        if where == "intra" and mask_diagonal:
            pairs = [(i, j) for i, j in pairs if i != j]
        p = plain_relation(*teacher, pairs, representation, TAUS[f"tau_teacher_{where}"])
        q = plain_relation(*student, pairs, representation, TAUS[f"tau_student_{where}"])
        return plain_discrepancy(p, q, kind)

    expected = {
        "intra_image": term((image, image), (point, point), everyone, "intra"),
        "intra_text": term((text, text), (point, point), told, "intra"),
        "cross_text": term((image, text), (point, text), told, "cross"),
        "cross_image": term((text, image), (point, image), told, "cross"),
    }
    options = {
        "representation": representation,
        "discrepancy": kind,
        "mask_diagonal": mask_diagonal,
    }
    weights = {"fixed_intra_image": 2.0, "fixed_intra_text": 3.0, "fixed_cross": 5.0}
    total, terms = distill(f, **TAUS, **options, weighting="fixed", **weights)
    for name, value in expected.items():
        assert terms[name] == pytest.approx(value, rel=1e-9), name
    told_of = {name for name in terms if name.startswith("neighbours_")}
    probabilities = representation == "normalised_similarity"
    assert told_of == ({f"neighbours_{name}" for name in expected} if probabilities else set())
    cross = (expected["cross_text"] + expected["cross_image"]) / 2
    assert terms["cross"] == pytest.approx(cross, rel=1e-9)
    assert total == pytest.approx(
        2 * expected["intra_image"] + 3 * expected["intra_text"] + 5 * cross, rel=1e-6
    )


def test_distill__neighbours_are_those_that_the_teachers_rows_spread_over() -> None:
    f = batch(SOME_TEXT)
    assert f.image is not None
    assert f.text is not None
    image, text = rows_of(f.image), rows_of(f.text)
    told = [i for i in range(ROWS) if SOME_TEXT[i]]

    def spread(
        rows: list[list[float]], columns: list[list[float]], there: list[int], where: str
    ) -> float:
        pairs = [(i, j) for i in there for j in there if where == "cross" or i != j]
        tau = TAUS[f"tau_teacher_{where}"]
        p = plain_relation(rows, columns, pairs, "normalised_similarity", tau)
        entropies = [-sum(v * math.log(v) for (k, _), v in p.items() if k == i) for i in there]
        return sum(math.exp(entropy) for entropy in entropies) / len(there)

    _, terms = distill(f, **TAUS)
    assert {name: value for name, value in terms.items() if name.startswith("neighbours_")} == {
        "neighbours_intra_image": pytest.approx(spread(image, image, list(range(ROWS)), "intra")),
        "neighbours_intra_text": pytest.approx(spread(text, text, told, "intra")),
        "neighbours_cross_text": pytest.approx(spread(image, text, told, "cross")),
        "neighbours_cross_image": pytest.approx(spread(text, image, told, "cross")),
    }


@pytest.mark.parametrize("tau", [1e-4, 1e4])
def test_distill__a_teacher_too_sharp_sees_one_neighbour_and_too_soft_a_one_all(tau: float) -> None:
    bounds = {"tau_min": min(tau, 0.01), "tau_max": max(tau, 1.0)}
    _, terms = distill(batch(), tau_teacher_intra=tau, **bounds)
    assert terms["neighbours_intra_image"] == pytest.approx(1 if tau < 1 else ROWS - 1, rel=1e-3)


@pytest.mark.parametrize("centre", ["teacher", "both"])
def test_distill__centred_terms_equal_the_plain_formulas(centre: str) -> None:
    f = batch(SOME_TEXT)
    assert f.image is not None
    assert f.text is not None
    told = [i for i in range(ROWS) if SOME_TEXT[i]]

    def centred(rows: list[list[float]], there: list[int]) -> list[list[float]]:
        mean = [sum(rows[i][d] for i in there) / len(there) for d in range(len(rows[0]))]
        moved = [[x - m for x, m in zip(row, mean, strict=True)] for row in rows]
        return rows_of(torch.tensor(moved, dtype=torch.float64))

    point, image, text = rows_of(f.point), rows_of(f.image), rows_of(f.text)
    teacher_image, teacher_text = centred(image, list(range(ROWS))), centred(text, told)
    if centre == "both":
        point, image, text = centred(point, list(range(ROWS))), teacher_image, teacher_text

    def term(
        teacher: tuple[list[list[float]], list[list[float]]],
        student: tuple[list[list[float]], list[list[float]]],
        pairs: list[tuple[int, int]],
        where: str,
    ) -> float:
        similarity = "normalised_similarity"
        p = plain_relation(*teacher, pairs, similarity, TAUS[f"tau_teacher_{where}"])
        q = plain_relation(*student, pairs, similarity, TAUS[f"tau_student_{where}"])
        return plain_discrepancy(p, q, "jeffreys")

    off = [(i, j) for i in range(ROWS) for j in range(ROWS) if i != j]
    off_told = [(i, j) for i, j in off if SOME_TEXT[i] and SOME_TEXT[j]]
    cross = [(i, j) for i in told for j in told]
    expected = {
        "intra_image": term((teacher_image, teacher_image), (point, point), off, "intra"),
        "intra_text": term((teacher_text, teacher_text), (point, point), off_told, "intra"),
        "cross_text": term((teacher_image, teacher_text), (point, text), cross, "cross"),
        "cross_image": term((teacher_text, teacher_image), (point, image), cross, "cross"),
    }
    _, terms = distill(f, **TAUS, centre=centre)
    for name, value in expected.items():
        assert terms[name] == pytest.approx(value, rel=1e-9), name


def test_distill__learned_weights_combine_the_terms_as_their_formulas_say() -> None:
    f = batch(SOME_TEXT)
    raw = [0.3, -0.7, 1.1]
    terms = distill(f)[1]
    values = [terms[name] for name in ("intra_image", "intra_text", "cross")]
    shares = [math.exp(x) / sum(math.exp(y) for y in raw) for x in raw]
    expected = {
        "mixture": sum((0.05 + 0.85 * a) * v for a, v in zip(shares, values, strict=True)),
        "uncertainty": sum(math.exp(-s) * v + s for s, v in zip(raw, values, strict=True)),
    }
    for weighting, value in expected.items():
        config = DistillConfig(weighting=weighting, floor=0.05)  # type: ignore[arg-type]
        loss = DistillLoss(config).double()
        (parameter,) = loss.weighting.parameters()
        with torch.no_grad():
            parameter.copy_(torch.tensor(raw))

        def total(given: Tensor, loss: DistillLoss = loss) -> Tensor:
            ((name, _),) = loss.named_parameters()
            found: Tensor = torch.func.functional_call(loss, {name: given}, (f,))[0]
            return found

        # The raw values have gone through float32.
        assert float(total(parameter.detach())) == pytest.approx(value, rel=1e-6)
        assert torch.autograd.gradcheck(total, parameter.detach().clone().requires_grad_(True))


@pytest.mark.parametrize("queue", [0, 4])
def test_distill__a_lone_text_has_no_relations(queue: int) -> None:
    """Nothing to compare it with: alone in its row, every distribution is 1."""
    f = batch([0, 0, 1, 0, 0, 0, 0, 0])
    point = f.point.clone().requires_grad_(True)
    loss = DistillLoss(DistillConfig(queue=queue), width=6).double()
    loss.remember(batch([0] * ROWS))
    total, terms = loss(replace(f, point=point))
    total.backward()
    for name in ("intra_text", "cross_text", "cross_image"):
        assert float(terms[name].detach()) == 0, name
    assert float(terms["intra_image"].detach()) > 0
    assert point.grad is not None
    assert bool(point.grad.isfinite().all())


@pytest.mark.parametrize(
    ("off", "on"), [("cross_text", "cross_image"), ("cross_image", "cross_text")]
)
def test_distill__one_half_of_cross_stands_for_the_whole(off: str, on: str) -> None:
    both, one = distill(batch())[1], distill(batch(), **{off: False})[1]
    assert off not in one
    assert one["cross"] == one[on] == both[on]


def test_distill__cross_rows_of_the_same_modality_equal_the_plain_formulas() -> None:
    f = batch(SOME_TEXT)
    assert f.image is not None
    assert f.text is not None
    point, image, text = rows_of(f.point), rows_of(f.image), rows_of(f.text)
    everyone = [(i, j) for i in range(ROWS) for j in range(ROWS)]
    told = [(i, j) for i, j in everyone if SOME_TEXT[i] and SOME_TEXT[j]]
    kind = "normalised_similarity"
    terms = distill(f, **TAUS, cross_rows="same")[1]
    for name, side, pairs in (("cross_text", text, told), ("cross_image", image, everyone)):
        p = plain_relation(side, side, pairs, kind, TAUS["tau_teacher_cross"])
        q = plain_relation(point, side, pairs, kind, TAUS["tau_student_cross"])
        assert terms[name] == pytest.approx(plain_discrepancy(p, q, "jeffreys"), rel=1e-9)
    # Neither half needs the other modality.
    blind: dict[str, Any] = {"intra_image": False, "cross_image": False}
    alone = distill(replace(f, image=None), **TAUS, **blind, cross_rows="same")[1]
    assert alone["cross"] == terms["cross_text"]
    assert DistillConfig(**blind, cross_rows="same").crosses("text")
    assert not DistillConfig(**blind, cross_rows="same").crosses("image")
    assert DistillConfig(**blind).crosses("image")


@pytest.mark.parametrize("centre", ["teacher", "both"])
def test_distill__equal_texts_that_are_centred_are_alike_to_all(centre: str) -> None:
    """In float32 as in float64, where fewer roundings are left."""
    f = batch(rows=63)
    assert f.image is not None
    assert f.text is not None
    image, text = f.image, f.text[:1].expand(63, -1)
    f = replace(f, text=text)
    config = DistillConfig(centre=centre, tau_teacher_cross=0.02)  # type: ignore[arg-type]
    single = replace(f, point=f.point.float(), image=image.float(), text=text.float())
    plain, terms = DistillLoss(config).double()(f)
    total, found = DistillLoss(config)(single)
    assert total.item() == pytest.approx(plain.item(), rel=1e-4)
    for name, value in terms.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
    assert found["neighbours_cross_image"].item() == pytest.approx(63)


@pytest.mark.parametrize(
    "options",
    [
        {"queue": 700},
        {"queue": 700, "representation": "distance", "discrepancy": "l1"},
        {"weighting": "uncertainty"},
    ],
    ids=str,
)
def test_distill__shares_add_up_where_the_whole_is_counted_in_chunks(
    options: dict[str, Any],
) -> None:
    rows = 1100  # more than the 1024 that are counted at a time
    f = batch([1, 0, 1, 1] * (rows // 4), rows=rows)
    loss = DistillLoss(DistillConfig(**options), width=6).double()
    loss.remember(replace(f, point=f.point.flip(0)))
    terms = loss(f)[1]
    shares: dict[str, float] = {}
    for start, end in ((0, 500), (500, rows)):
        for name, value in loss(select(f, list(range(start, end))), f, start)[1].items():
            shares[name] = shares.get(name, 0.0) + float(value.detach())
    assert shares == pytest.approx({n: float(v.detach()) for n, v in terms.items()})


def test_distill__clamp_reaches_the_weighting() -> None:
    loss = DistillLoss(DistillConfig(weighting="uncertainty"))
    variance = loss.weighting.get_parameter("log_variance")
    with torch.no_grad():
        variance.fill_(9.0)
    loss.clamp()
    assert variance.tolist() == [MAX_LOG_VARIANCE] * 3


def test_neighbours__of_a_row_without_pairs_are_none() -> None:
    mask = torch.tensor([[True, True], [False, False]])
    log = torch.tensor([[0.5, 0.5], [1.0, 1.0]]).log()
    assert neighbours(log, mask).tolist() == pytest.approx([2.0, 0.0])
