from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import AlignConfig, DistillConfig
from trainer.losses import AlignLoss, DistillLoss, Features
from trainer.losses.align import MAX_LOG_SCALE, info_nce
from trainer.losses.weighting import Fixed, Mixture, Uncertainty, build_weighting
from trainer.relations import unit

ROWS = 8


def draw(seed: int, rows: int = ROWS, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def batch(
    has_text: list[int] | None = None, rows: int = ROWS, point: Tensor | None = None
) -> Features:
    flags = torch.tensor(has_text or [1] * rows).bool()
    # A shared mean, as CLIP's text vectors have one: centring then matters.
    text = draw(2, rows) + 1.5
    return Features(draw(0, rows) if point is None else point, draw(1, rows), text, flags)


def select(features: Features, rows: list[int]) -> Features:
    assert features.image is not None
    assert features.text is not None
    return Features(
        features.point[rows], features.image[rows], features.text[rows], features.has_text[rows]
    )


def distill(features: Features, **options: Any) -> tuple[float, dict[str, float]]:
    total, terms = DistillLoss(DistillConfig(**options)).double()(features)
    return float(total.detach()), {name: float(value.detach()) for name, value in terms.items()}


def oracle_info_nce(u: Tensor, v: Tensor, scale: float, rows: list[int]) -> float:
    total = 0.0
    for i in rows:
        for a, b in ((u, v), (v, u)):
            logits = [scale * float(a[i] @ b[j]) for j in rows]
            own = scale * float(a[i] @ b[i])
            total += math.log(sum(math.exp(x) for x in logits)) - own
    return total / (2 * len(rows))


def test_info_nce__equals_the_oracle() -> None:
    u, v = unit(draw(0)), unit(draw(1))
    expected = oracle_info_nce(u, v, 7.0, list(range(ROWS)))
    assert float(info_nce(u, v, 7.0)) == pytest.approx(expected)


def test_info_nce__textless_rows_are_neither_queries_nor_negatives() -> None:
    u, v = unit(draw(0)), unit(draw(1))
    valid = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1]).bool()
    rows = torch.nonzero(valid).flatten().tolist()
    assert float(info_nce(u, v, 7.0, valid)) == pytest.approx(oracle_info_nce(u, v, 7.0, rows))


def test_info_nce__no_valid_row_is_zero_with_finite_gradient() -> None:
    u = draw(0).requires_grad_(True)
    loss = info_nce(unit(u), unit(draw(1)), 7.0, torch.zeros(ROWS, dtype=torch.bool))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert u.grad is not None
    assert bool((u.grad == 0).all())


def test_info_nce__parts_with_gathered_features_make_up_the_whole() -> None:
    u, v = unit(draw(0)), unit(draw(1))
    valid = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1]).bool()
    total = 0.0
    for start in (0, 4):
        rows = slice(start, start + 4)
        part = info_nce(
            u[rows],
            v[rows],
            7.0,
            valid[rows],
            all_point_GD=u,
            all_teacher_GD=v,
            all_valid_G=valid,
            offset=start,
        )
        total += float(part) * int(valid[rows].sum())
    assert total / int(valid.sum()) == pytest.approx(float(info_nce(u, v, 7.0, valid)))


@pytest.mark.parametrize(
    "options", [{"image_weight": 0.5}, {"text_weight": 0.0}, {"logit_scale": 5.0}]
)
def test_align__every_option_changes_the_value(options: dict[str, Any]) -> None:
    default, _ = AlignLoss(AlignConfig())(batch())
    changed, _ = AlignLoss(AlignConfig(**options))(batch())
    assert float(changed.detach()) != pytest.approx(float(default.detach()), rel=1e-4)


def test_align__learn_scale_false_freezes_the_scale() -> None:
    assert not AlignLoss(AlignConfig(learn_scale=False)).log_scale.requires_grad
    assert AlignLoss(AlignConfig()).log_scale.requires_grad


def test_align__scale_is_bounded_by_one_hundred() -> None:
    align = AlignLoss(AlignConfig())
    with torch.no_grad():
        align.log_scale.fill_(9.0)
    assert float(align.scale.detach()) == pytest.approx(100.0)
    align.clamp()
    assert float(align.log_scale.detach()) == pytest.approx(MAX_LOG_SCALE)


def jeffreys(a: Tensor, b: Tensor) -> Tensor:
    return ((a.exp() - b.exp()) * (a - b)).sum(1).mean()


def log_relation(u: Tensor, v: Tensor, tau: float, *, diagonal: bool) -> Tensor:
    logits = F.normalize(u, dim=1) @ F.normalize(v, dim=1).T / tau
    if not diagonal:
        keep = ~torch.eye(len(u), dtype=torch.bool)
        logits = logits[keep].view(len(u), -1)
    return logits.log_softmax(1)


def test_distill__terms_equal_the_plain_formulas() -> None:
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
    flags = [1, 0, 1, 1, 0, 1, 1, 1]
    kept = [place for place, flag in enumerate(flags) if flag]
    _, whole = distill(batch(flags))
    _, reduced = distill(select(batch(), kept))
    for name in ("intra_text", "cross_text", "cross_image"):
        assert whole[name] == pytest.approx(reduced[name])
    assert whole["intra_image"] != pytest.approx(reduced["intra_image"])


def test_distill__the_text_of_textless_rows_is_never_read() -> None:
    flags = [1, 0, 1, 1, 0, 1, 1, 1]
    before = distill(batch(flags), centre="both")
    changed = batch(flags)
    assert changed.text is not None
    changed.text[1] = 100.0
    changed.text[4] = 0.0
    assert distill(changed, centre="both") == before


def test_distill__equal_captions_are_legal() -> None:
    f = batch()
    assert f.text is not None
    f.text[3] = f.text[0]
    point = f.point.clone().requires_grad_(True)
    total, _ = DistillLoss(DistillConfig()).double()(Features(point, f.image, f.text, f.has_text))
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
    total, _ = DistillLoss(DistillConfig(cross=False)).double()(
        Features(f.point.clone().requires_grad_(True), image, f.text, f.has_text)
    )
    total.backward()
    assert image.grad is None


def test_distill__parts_with_gathered_features_make_up_the_whole() -> None:
    f = batch()
    _, whole = distill(f)
    parts = []
    for start in (0, 4):
        local = select(f, list(range(start, start + 4)))
        _, terms = DistillLoss(DistillConfig()).double()(local, f, start)
        parts.append({name: float(value) for name, value in terms.items()})
    for name, value in whole.items():
        assert (parts[0][name] + parts[1][name]) / 2 == pytest.approx(value)


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


def test_distill__mixture_floor_changes_learned_weights() -> None:
    names = ["intra_image", "intra_text", "cross"]
    for floor in (0.0, 0.2):
        mixture = Mixture(names, floor)
        with torch.no_grad():
            mixture.logits.copy_(torch.tensor([50.0, 0.0, -50.0]))
        assert float(mixture.weights().detach().min()) == pytest.approx(floor, abs=1e-6)


def test_mixture__stays_bounded_and_moves_under_training() -> None:
    mixture = Mixture(["a", "b", "c"], 0.1)
    terms = {"a": torch.tensor(1.0), "b": torch.tensor(3.0), "c": torch.tensor(9.0)}
    optimizer = torch.optim.SGD(mixture.parameters(), lr=1.0)
    start = mixture.weights().detach().clone()
    for _ in range(200):
        optimizer.zero_grad()
        mixture(terms).backward()
        optimizer.step()
        weights = mixture.weights().detach()
        assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
        assert float(weights.min()) >= 0.1 - 1e-6
        assert float(weights.max()) <= 0.8 + 1e-6
    assert not torch.allclose(start, weights, atol=1e-3)


def test_uncertainty__settles_where_each_weight_is_one_over_its_loss() -> None:
    weighting = Uncertainty(["a", "b"])
    terms = {"a": torch.tensor(0.5), "b": torch.tensor(4.0)}
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        weighting(terms).backward()
        optimizer.step()
    assert weighting.weights().detach().tolist() == pytest.approx([2.0, 0.25], rel=1e-2)


def test_fixed__has_no_parameters_and_reports_its_weights() -> None:
    weighting = Fixed(["a", "b"], [1.0, 0.5])
    assert list(weighting.parameters()) == []
    assert weighting.report() == {"weight_a": 1.0, "weight_b": 0.5}
    assert float(weighting({"a": torch.tensor(2.0), "b": torch.tensor(4.0)})) == 4.0


def test_build_weighting__has_the_enabled_terms_only() -> None:
    weighting = build_weighting(DistillConfig(intra_text=False))
    assert weighting.names == ["intra_image", "cross"]
    assert weighting.weights().detach().tolist() == pytest.approx([0.5, 0.5])
