"""What holds of the distillation loss: gradients, invariances, shares, no text, each option."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.trainer.features import LEGAL, ROWS, SOME_TEXT, batch, distill, draw, select
from trainer.config import DistillConfig
from trainer.losses import DistillLoss


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
