from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.trainer.features import ROWS, SOME_TEXT, TAUS, batch, distill, draw, select
from trainer.config import DistillConfig
from trainer.losses import DistillLoss


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


LEGAL = [
    ("normalised_similarity", kind)
    for kind in ("jeffreys", "kl", "reverse_kl", "l1", "l2", "huber")
] + [(name, kind) for name in ("similarity", "distance") for kind in ("l1", "l2", "huber")]


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


@pytest.mark.parametrize(("representation", "kind"), LEGAL)
def test_distill__gradient_is_right(representation: str, kind: str) -> None:
    f = batch(SOME_TEXT, rows=ROWS)
    options: dict[str, Any] = {"representation": representation, "discrepancy": kind}
    loss = DistillLoss(DistillConfig(**options, centre="both")).double()

    def value(point: Tensor) -> Tensor:
        total: Tensor = loss(replace(f, point=point))[0]
        return total

    assert torch.autograd.gradcheck(value, f.point.clone().requires_grad_(True))


@pytest.mark.parametrize(("representation", "kind"), LEGAL)
def test_distill__invariances(representation: str, kind: str) -> None:
    f = batch(SOME_TEXT)
    assert f.image is not None
    assert f.text is not None
    options: dict[str, Any] = {"representation": representation, "discrepancy": kind}
    base, terms = distill(f, **options)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(3)).tolist()
    assert distill(select(f, order), **options)[0] == pytest.approx(base)
    factor = torch.rand(ROWS, 1, generator=torch.Generator().manual_seed(4)).double() + 0.5
    scaled = replace(f, point=f.point * factor, image=f.image * 3, text=f.text / factor)
    assert distill(scaled, **options)[0] == pytest.approx(base)
    rotation = torch.linalg.qr(draw(11, 6, 6)).Q
    turned = replace(f, point=f.point @ rotation, image=f.image @ rotation, text=f.text @ rotation)
    assert distill(turned, **options)[0] == pytest.approx(base)
    # Relations within a modality do not see a rotation of that modality alone; cross ones do.
    alone = distill(replace(f, point=f.point @ rotation), **options)[1]
    for name in ("intra_image", "intra_text"):
        assert alone[name] == pytest.approx(terms[name])
    assert alone["cross"] != pytest.approx(terms["cross"], rel=1e-3)
    assert distill(replace(f, point=f.point[order]), **options)[0] != pytest.approx(base, rel=1e-3)


@pytest.mark.parametrize(("representation", "kind"), LEGAL)
def test_distill__zero_for_a_student_that_is_the_teacher(representation: str, kind: str) -> None:
    f = batch()
    assert f.image is not None
    options: dict[str, Any] = {"representation": representation, "discrepancy": kind}
    terms = distill(batch(point=f.image), **options)[1]
    assert terms["intra_image"] == pytest.approx(0, abs=1e-12)
    assert terms["cross_text"] == pytest.approx(0, abs=1e-12)  # phi(P, T) = phi(I, T)
    assert terms["intra_text"] > 1e-6
    assert terms["cross_image"] > 1e-6


SHARES: list[dict[str, Any]] = [
    {},
    {"discrepancy": "l1"},
    {"representation": "similarity", "discrepancy": "l2"},
    {"representation": "distance", "discrepancy": "huber"},
    {"representation": "distance", "discrepancy": "l1", "centre": "both", "mask_diagonal": False},
    {"weighting": "uncertainty", "centre": "teacher"},
    {"queue": 6},
    {"queue": 6, "representation": "distance", "discrepancy": "l2", "detach_columns": True},
]


@pytest.mark.parametrize("options", SHARES, ids=str)
def test_distill__shares_of_unequal_parts_add_up_to_the_whole(options: dict[str, Any]) -> None:
    f = batch(SOME_TEXT)
    loss = DistillLoss(DistillConfig(**options), width=6).double()
    for parameter in loss.weighting.parameters():  # not where they begin, which is 0
        with torch.no_grad():
            parameter.copy_(torch.tensor([0.5, -0.3, 0.2]))
    loss.remember(replace(f, point=f.point.flip(0)))

    def gradient(parts: list[tuple[int, int]]) -> tuple[Tensor, Tensor, dict[str, float]]:
        point = f.point.clone().requires_grad_(True)
        whole = replace(f, point=point)
        total = torch.zeros((), dtype=torch.float64)
        found: dict[str, float] = {}
        for start, end in parts:
            local = whole if end - start == ROWS else select(whole, list(range(start, end)))
            value, terms = loss(local, whole, start)
            total = total + value
            for name, term in terms.items():
                found[name] = found.get(name, 0.0) + float(term.detach())
        total.backward()  # type: ignore[no-untyped-call]
        assert point.grad is not None
        return total.detach(), point.grad, found

    total, expected, terms = gradient([(0, ROWS)])
    again, given, shares = gradient([(0, 1), (1, 2), (2, ROWS)])
    assert float(again) == pytest.approx(float(total))
    assert shares == pytest.approx(terms)
    torch.testing.assert_close(given, expected)


def test_distill__detached_columns_change_the_gradient_and_not_the_value() -> None:
    found = []
    for detach in (False, True):
        point = draw(0).requires_grad_(True)
        loss = DistillLoss(DistillConfig(detach_columns=detach, cross=False)).double()
        total, _ = loss(batch(point=point))
        total.backward()
        assert point.grad is not None
        found.append((float(total.detach()), point.grad))
    assert found[0][0] == found[1][0]
    assert not torch.allclose(found[0][1], found[1][1], rtol=1e-2)


def jeffreys(a: Tensor, b: Tensor) -> Tensor:
    return ((a.exp() - b.exp()) * (a - b)).sum(1).mean()


def log_relation(u: Tensor, v: Tensor, tau: float, *, diagonal: bool) -> Tensor:
    logits = F.normalize(u, dim=1) @ F.normalize(v, dim=1).T / tau
    if not diagonal:
        keep = ~torch.eye(len(u), dtype=torch.bool)
        logits = logits[keep].view(len(u), -1)
    return logits.log_softmax(1)


def test_distill__jeffreys_terms_equal_a_second_way_to_write_them() -> None:
    f = batch()
    assert f.image is not None
    assert f.text is not None
    taus = {
        "tau_teacher_intra": 0.2,
        "tau_student_intra": 0.3,
        "tau_teacher_cross": 0.05,
        "tau_student_cross": 0.4,
    }
    _, terms = distill(f, **taus)
    psi_p = log_relation(f.point, f.point, 0.3, diagonal=False)
    psi_i = log_relation(f.image, f.image, 0.2, diagonal=False)
    psi_t = log_relation(f.text, f.text, 0.2, diagonal=False)
    assert terms["intra_image"] == pytest.approx(float(jeffreys(psi_i, psi_p)))
    assert terms["intra_text"] == pytest.approx(float(jeffreys(psi_t, psi_p)))
    phi_it = log_relation(f.image, f.text, 0.05, diagonal=True)
    phi_pt = log_relation(f.point, f.text, 0.4, diagonal=True)
    phi_ti = log_relation(f.text, f.image, 0.05, diagonal=True)
    phi_pi = log_relation(f.point, f.image, 0.4, diagonal=True)
    assert terms["cross_text"] == pytest.approx(float(jeffreys(phi_it, phi_pt)))
    assert terms["cross_image"] == pytest.approx(float(jeffreys(phi_ti, phi_pi)))
    assert terms["cross"] == pytest.approx((terms["cross_text"] + terms["cross_image"]) / 2)


def test_distill__textless_rows_leave_the_text_relations_entirely() -> None:
    kept = [place for place, flag in enumerate(SOME_TEXT) if flag]
    _, whole = distill(batch(SOME_TEXT))
    _, reduced = distill(select(batch(), kept))
    for name in ("intra_text", "cross_text", "cross_image"):
        assert whole[name] == pytest.approx(reduced[name])
    assert whole["intra_image"] != pytest.approx(reduced["intra_image"])


def test_distill__the_text_of_textless_rows_is_never_read() -> None:
    before = distill(batch(SOME_TEXT), centre="both")
    changed = batch(SOME_TEXT)
    assert changed.text is not None
    changed.text[1] = 100.0
    changed.text[4] = 0.0
    assert distill(changed, centre="both") == before


def test_distill__equal_captions_are_legal() -> None:
    f = batch()
    assert f.text is not None
    f.text[3] = f.text[0]
    point = f.point.clone().requires_grad_(True)
    total, _ = DistillLoss(DistillConfig()).double()(replace(f, point=point))
    total.backward()
    assert point.grad is not None
    assert bool(point.grad.isfinite().all())


def test_distill__all_textless_batch_is_finite() -> None:
    point = draw(0).requires_grad_(True)
    total, terms = DistillLoss(DistillConfig()).double()(batch([0] * ROWS, point=point))
    total.backward()
    assert float(terms["intra_text"].detach()) == 0
    assert point.grad is not None
    assert bool(point.grad.isfinite().all())


def test_distill__a_student_with_the_image_features_has_no_intra_image_loss() -> None:
    f = batch()
    assert f.image is not None
    rotation = torch.linalg.qr(draw(7, 6, 6)).Q
    _, terms = distill(batch(point=f.image @ rotation * 3))
    assert terms["intra_image"] == pytest.approx(0, abs=1e-12)
    assert terms["cross_text"] > 1e-3


def test_distill__teacher_gets_no_gradient() -> None:
    f = batch()
    assert f.image is not None
    image = f.image.clone().requires_grad_(True)
    total, _ = DistillLoss(DistillConfig(learn_tau="both", centre="both")).double()(
        replace(f, point=f.point.clone().requires_grad_(True), image=image)
    )
    total.backward()
    assert image.grad is None


OPTIONS: list[dict[str, Any]] = [
    {"representation": "distance", "discrepancy": "l2"},
    {"representation": "similarity", "discrepancy": "l2"},
    {"discrepancy": "kl"},
    {"discrepancy": "reverse_kl"},
    {"discrepancy": "l1"},
    {"discrepancy": "l2"},
    {"discrepancy": "huber"},
    {"intra_image": False},
    {"intra_text": False},
    {"cross": False},
    {"cross_text": False},
    {"cross_image": False},
    {"cross_rows": "same"},
    {"mask_diagonal": False},
    {"centre": "teacher"},
    {"centre": "both"},
    {"tau_teacher_intra": 0.2},
    {"tau_student_intra": 0.2},
    {"tau_teacher_cross": 0.2},
    {"tau_student_cross": 0.2},
    {"weighting": "fixed"},
    {"weighting": "uncertainty"},
    {"weighting": "fixed", "fixed_intra_image": 0.5},
    {"weighting": "fixed", "fixed_intra_text": 0.5},
    {"weighting": "fixed", "fixed_cross": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_distill__every_option_changes_the_value(options: dict[str, Any]) -> None:
    # weighting "fixed" with weights 1 and "uncertainty" at its start agree: both differ from the
    # mixture, which is the default; a fixed weight is compared with the fixed default.
    base = {"weighting": "fixed"} if len(options) == 2 and "weighting" in options else {}
    assert distill(batch(), **options)[0] != pytest.approx(distill(batch(), **base)[0], rel=1e-5)


def test_distill__all_option_values_differ_from_one_another() -> None:
    kinds = ["jeffreys", "kl", "reverse_kl", "l1", "l2", "huber"]
    values = [distill(batch(), discrepancy=kind)[0] for kind in kinds]
    # Below its delta Huber is half of the squared error.
    assert len({round(value, 9) for value in values}) == len(kinds)


def test_distill__huber_delta_changes_the_value() -> None:
    options = {"representation": "distance", "discrepancy": "huber"}
    small, large = (distill(batch(), **options, huber_delta=d)[0] for d in (0.01, 1.0))
    assert small < large / 2
