from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.features import ROWS, batch, draw, select, with_several
from tests.trainer.test_losses_contrastive import (
    SOME_TEXT,
    lists,
    oracle_info_nce,
    oracle_multi_positive,
    oracle_siglip,
    valid_rows,
)
from trainer.config import AlignConfig
from trainer.losses import AlignLoss, Features, Several
from trainer.losses.align import MAX_LOG_SCALE, false_negatives
from trainer.relations import unit


def make(**options: Any) -> AlignLoss:
    """The same each time, also where it has a random layer."""
    torch.manual_seed(0)
    return AlignLoss(AlignConfig(**options), width=6).double()


def align(features: Features, **options: Any) -> tuple[float, dict[str, float]]:
    total, terms = make(**options)(features)
    return float(total.detach()), {name: float(value.detach()) for name, value in terms.items()}


@pytest.mark.parametrize("kind", ["multi_positive", "siglip"])
def test_several__the_order_of_vectors_and_ignored_ones_do_not_matter(kind: str) -> None:
    f = with_several(batch(SOME_TEXT))
    assert f.text_all is not None
    order = torch.randperm(len(f.text_all), generator=torch.Generator().manual_seed(0))
    noise = draw(9, 2)
    moved = Several(
        torch.cat([noise, f.text_all.values[order]]),
        torch.cat([torch.tensor([-1, -1]), f.text_all.owner[order]]),
    )
    assert align(replace(f, text_all=moved), kind=kind)[0] == pytest.approx(align(f, kind=kind)[0])


@pytest.mark.parametrize("kind", ["infonce", "multi_positive", "siglip"])
def test_align__no_text_anywhere_is_zero_with_finite_gradients(kind: Any) -> None:
    f = batch([0] * ROWS)
    if kind != "infonce":
        f = with_several(f)
    point = f.point.clone().requires_grad_(True)
    config = AlignConfig(kind=kind, drop_same_category=True)
    total, terms = AlignLoss(config).double()(replace(f, point=point))
    total.backward()
    assert float(terms["align_text"].detach()) == 0
    assert float(terms["align_image"].detach()) > 0
    assert point.grad is not None
    assert bool(point.grad.isfinite().all())


def test_false_negatives__are_those_of_each_rule() -> None:
    f = batch(SOME_TEXT)
    assert f.text is not None
    assert f.image is not None
    f.text[3] = f.text[0] * 2
    f.image[5] = f.image[2] + 0.01 * f.image[1]

    def pairs(modality: str = "image", **options: Any) -> set[tuple[int, int]]:
        found = false_negatives(AlignConfig(**options), modality, f, f)
        assert found is not None
        return {(int(i), int(j)) for i, j in found.nonzero() if i < j}

    # Categories -1 0 1 2 -1 0 1 2: those without a name are not alike.
    assert pairs(drop_same_category=True) == {(1, 5), (2, 6), (3, 7)}
    # Rows 1 and 4 have no text, whatever their vectors are.
    f.text[4] = f.text[1] = f.text[0]
    assert pairs(drop_same_text=True) == {(0, 3)}
    assert pairs("text", drop_text_above=0.999) == {(0, 3)}
    assert pairs("image", drop_image_above=0.999) == {(2, 5)}
    assert false_negatives(AlignConfig(drop_image_above=0.9), "text", f, f) is None
    assert pairs(drop_same_text=True, drop_image_above=0.999) == {(0, 3), (2, 5)}
    assert false_negatives(AlignConfig(), "image", f, f) is None


def test_align__dropped_pairs_equal_the_oracles() -> None:
    f = with_several(batch())
    assert f.image is not None
    assert f.image_all is not None
    assert f.category is not None
    category = f.category.tolist()

    def dropped(i: int, j: int) -> bool:
        return i != j and category[i] == category[j] >= 0

    u, options = unit(f.point), {"drop_same_category": True, "logit_scale": 5.0}
    expected = oracle_info_nce(u, unit(f.image), 5.0, list(range(ROWS)), dropped)
    assert align(f, **options)[1]["align_image"] == pytest.approx(expected, rel=1e-6)
    expected = oracle_multi_positive(u, lists(f.image_all), 5.0, dropped)
    got = align(f, kind="multi_positive", **options)[1]["align_image"]
    assert got == pytest.approx(expected, rel=1e-6)
    expected = oracle_siglip(u, lists(f.image_all), 5.0, -10.0, dropped)
    got = align(f, kind="siglip", **options)[1]["align_image"]
    assert got == pytest.approx(expected, rel=1e-6)


def test_align__hard_negatives_equal_the_oracle_by_their_ramp() -> None:
    f = batch(SOME_TEXT)
    assert f.text is not None
    assert f.category is not None
    category, rows = f.category.tolist(), valid_rows(SOME_TEXT)

    def dropped(i: int, j: int) -> bool:
        return i != j and category[i] == category[j] >= 0

    loss = make(hard_negatives=0.8, logit_scale=5.0, drop_same_category=True)
    u, v = unit(f.point), unit(f.text)
    for ramp in (0.0, 0.25, 1.0):
        expected = oracle_info_nce(u, v, 5.0, rows, dropped, 0.8 * ramp)
        got = loss(f, ramp=torch.tensor(ramp))[1]["align_text"]
        assert float(got.detach()) == pytest.approx(expected, rel=1e-6)
    assert float(loss(f)[0].detach()) != pytest.approx(
        float(loss(f, ramp=0.0)[0].detach()), rel=1e-3
    )


def test_align__hard_negatives_are_refused_where_they_would_do_nothing() -> None:
    with pytest.raises(ValueError, match="hard_negatives apply to kind infonce only, not siglip"):
        AlignConfig(kind="siglip", hard_negatives=0.5)


@pytest.mark.parametrize(
    "options",
    [
        {"image_weight": 0.5},
        {"text_weight": 0.0},
        {"joint_weight": 0.5},
        {"logit_scale": 5.0},
        {"kind": "siglip"},
        {"kind": "multi_positive"},
        {"drop_same_category": True},
        {"drop_same_text": True},
        {"drop_image_above": 0.3},
        {"drop_text_above": 0.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["infonce", "multi_positive", "siglip"])
def test_align__every_option_changes_the_value(options: dict[str, Any], kind: str) -> None:
    f = with_several(batch())
    assert f.text is not None
    f.text[3] = f.text[0]
    changed = {"kind": kind, **options}
    if changed == {"kind": kind}:
        changed["kind"] = "infonce" if kind != "infonce" else "siglip"
    assert align(f, **changed)[0] != pytest.approx(align(f, kind=kind)[0], rel=1e-4)


def test_align__bias_changes_siglip_and_is_learned() -> None:
    f = batch()
    base = align(f, kind="siglip")[0]
    assert align(f, kind="siglip", logit_bias=-5.0)[0] != pytest.approx(base, rel=1e-4)
    loss = AlignLoss(AlignConfig(kind="siglip"))
    loss(f)[0].backward()
    assert loss.bias is not None
    assert loss.bias.grad is not None
    assert float(loss.bias.grad.abs()) > 0
    assert AlignLoss(AlignConfig()).bias is None
    frozen = AlignLoss(AlignConfig(kind="siglip", learn_bias=False)).bias
    assert frozen is not None
    assert not frozen.requires_grad


@pytest.mark.parametrize("kind", ["infonce", "multi_positive", "siglip"])
def test_align__separate_scales_belong_to_their_modality(kind: Any) -> None:
    loss = AlignLoss(AlignConfig(kind=kind, shared_scale=False)).double()
    before = loss(batch())[1]
    assert loss.log_scale_text is not None
    with torch.no_grad():
        loss.log_scale_text.add_(0.5)
        if loss.bias_text is not None:
            loss.bias_text.add_(1.0)
    after = loss(batch())[1]
    assert float(after["align_image"].detach()) == float(before["align_image"].detach())
    assert float(after["align_text"].detach()) != pytest.approx(
        float(before["align_text"].detach()), rel=1e-3
    )
    assert {"logit_scale", "logit_scale_text"} <= set(loss.report())
    assert ("logit_bias_text" in loss.report()) == (kind == "siglip")


def test_align__learn_scale_false_freezes_the_scale() -> None:
    assert not AlignLoss(AlignConfig(learn_scale=False)).log_scale.requires_grad
    assert AlignLoss(AlignConfig()).log_scale.requires_grad


@pytest.mark.parametrize(("value", "bound"), [(9.0, MAX_LOG_SCALE), (-2.0, 0.0)])
def test_align__scales_stay_between_one_and_one_hundred(value: float, bound: float) -> None:
    loss = AlignLoss(AlignConfig(shared_scale=False))
    assert loss.log_scale_text is not None
    for parameter in (loss.log_scale, loss.log_scale_text):
        with torch.no_grad():
            parameter.fill_(value)
    for scale in loss.report().values():
        assert float(scale.detach()) == pytest.approx(math.exp(bound))
    loss.clamp()
    for parameter in (loss.log_scale, loss.log_scale_text):
        assert float(parameter.detach()) == pytest.approx(bound)


@pytest.mark.parametrize("value", [9.0, -2.0])
def test_align__a_scale_at_its_bound_leaves_it_when_the_loss_asks(value: float) -> None:
    """Of ``Tensor.clamp`` the gradient is 0 there, and the scale would stay for ever."""
    loss = AlignLoss(AlignConfig(shared_scale=False))
    assert loss.log_scale_text is not None
    optimizer = torch.optim.SGD([loss.log_scale, loss.log_scale_text], lr=0.1)
    with torch.no_grad():
        loss.log_scale.fill_(value)
        loss.log_scale_text.fill_(value)
    loss.clamp()
    at_bound = loss.log_scale.detach().clone()
    inwards = 1 if value > 0 else -1
    for direction in (-inwards, inwards):  # outwards first: it comes back to the bound
        optimizer.zero_grad()
        sum(direction * scale.log() for scale in loss.report().values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        loss.clamp()
        moved = 0.1 * inwards if direction == inwards else 0.0
        for parameter in (loss.log_scale, loss.log_scale_text):
            assert float(parameter.detach()) == pytest.approx(float(at_bound) - moved)


@pytest.mark.parametrize("flags", [[1] * ROWS, SOME_TEXT], ids=["all", "some"])
def test_align__joint_term_equals_the_oracles(flags: list[int]) -> None:
    f = with_several(batch(flags))
    assert f.image is not None
    assert f.text is not None
    assert f.text_all is not None
    options: dict[str, Any] = {"joint_weight": 0.5, "logit_scale": 5.0, "logit_bias": -3.0}
    layer = make(**options).joint
    assert layer is not None
    u, v = unit(f.point), unit(f.image)
    joined = []
    for point, image in zip(u.tolist(), v.tolist(), strict=True):
        row = [
            sum(w * x for w, x in zip(weights, [*point, *image], strict=True)) + bias
            for weights, bias in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        ]
        joined.append([x / math.sqrt(sum(y * y for y in row)) for x in row])
    w = torch.tensor(joined, dtype=torch.float64)
    expected = {
        "infonce": oracle_info_nce(w, unit(f.text), 5.0, valid_rows(flags)),
        "multi_positive": oracle_multi_positive(w, lists(f.text_all), 5.0),
        "siglip": oracle_siglip(w, lists(f.text_all), 5.0, -3.0),
    }
    for kind, value in expected.items():
        total, terms = align(f, kind=kind, **options)
        assert terms["align_joint"] == pytest.approx(value, rel=1e-6)
        rest = terms["align_image"] + terms["align_text"]
        assert total == pytest.approx(rest + 0.5 * value, rel=1e-6)


def test_align__joint_term_alone_reads_image_and_text_and_needs_the_width() -> None:
    f = batch()
    assert f.image is not None
    options = {"image_weight": 0.0, "text_weight": 0.0, "joint_weight": 1.0}
    total, terms = align(f, **options)
    assert set(terms) == {"align_joint"}
    for name in ("point", "image", "text"):
        turned = replace(f, **{name: getattr(f, name).flip(0)})
        assert align(turned, **options)[0] != pytest.approx(total, rel=1e-3), name
    scaled = replace(f, point=f.point * 7, image=f.image * 3)
    assert align(scaled, **options)[0] == pytest.approx(total)
    with pytest.raises(ValueError, match="width"):
        AlignLoss(AlignConfig(joint_weight=1.0))


@pytest.mark.parametrize("kind", ["infonce", "siglip"])
def test_align__joint_scale_is_its_own_unless_shared(kind: Any) -> None:
    loss = make(kind=kind, shared_scale=False, joint_weight=1.0)
    assert {"logit_scale", "logit_scale_text", "logit_scale_joint"} <= set(loss.report())
    assert ("logit_bias_joint" in loss.report()) == (kind == "siglip")
    before = loss(batch())[1]
    assert loss.log_scale_joint is not None
    with torch.no_grad():
        loss.log_scale_joint.fill_(9.0)
    loss.clamp()
    assert float(loss.log_scale_joint.detach()) == pytest.approx(MAX_LOG_SCALE)
    after = loss(batch())[1]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"align_joint"}
    assert make(kind=kind, joint_weight=1.0).log_scale_joint is None


ALIGN_OPTIONS: list[dict[str, Any]] = [
    {},
    {"kind": "multi_positive"},
    {"kind": "siglip"},
    {"drop_same_category": True},
    {"kind": "multi_positive", "drop_same_category": True, "drop_text_above": 0.5},
    {"kind": "siglip", "drop_same_category": True, "drop_same_text": True},
]
# The layer of the joint term is not invariant to a rotation of all features.
WITH_JOINT: list[dict[str, Any]] = [
    *ALIGN_OPTIONS,
    {"joint_weight": 0.7, "shared_scale": False},
    {"kind": "multi_positive", "joint_weight": 0.7},
    {"kind": "siglip", "joint_weight": 0.7, "shared_scale": False},
]


@pytest.mark.parametrize("options", WITH_JOINT, ids=str)
def test_align__gradient_is_right(options: dict[str, Any]) -> None:
    f = batch(SOME_TEXT)
    f = f if options.get("kind", "infonce") == "infonce" else with_several(f)
    loss = make(logit_scale=3.0, logit_bias=-1.0, **options)
    names = [name for name, _ in loss.named_parameters()]

    def value(point: Tensor, *learned: Tensor) -> Tensor:
        features = replace(f, point=point)
        given = dict(zip(names, learned, strict=True))
        total: Tensor = torch.func.functional_call(loss, given, (features,))[0]
        return total

    learned = [parameter.detach().clone().requires_grad_(True) for parameter in loss.parameters()]
    assert torch.autograd.gradcheck(value, (f.point.clone().requires_grad_(True), *learned))


# Its gradient takes the weights for constants, which no difference does.
HARD: dict[str, Any] = {"hard_negatives": 0.7, "drop_same_category": True}


@pytest.mark.parametrize("options", [*ALIGN_OPTIONS, HARD], ids=str)
def test_align__invariances(options: dict[str, Any]) -> None:
    f = batch(SOME_TEXT)
    f = f if options.get("kind", "infonce") == "infonce" else with_several(f)
    base = align(f, **options)[0]
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(3)).tolist()
    assert align(select(f, order), **options)[0] == pytest.approx(base)
    assert align(replace(f, point=f.point * 7), **options)[0] == pytest.approx(base)
    rotation = torch.linalg.qr(draw(11, 6, 6)).Q
    turned = replace(
        f,
        point=f.point @ rotation,
        image=None if f.image is None else f.image @ rotation,
        text=None if f.text is None else f.text @ rotation,
        image_all=_turned(f.image_all, rotation),
        text_all=_turned(f.text_all, rotation),
    )
    assert align(turned, **options)[0] == pytest.approx(base)
    assert align(replace(f, point=f.point[order]), **options)[0] != pytest.approx(base, rel=1e-3)


def _turned(several: Several | None, rotation: Tensor) -> Several | None:
    return None if several is None else Several(several.values @ rotation, several.owner)


@pytest.mark.parametrize("options", [*WITH_JOINT, HARD], ids=str)
def test_align__shares_of_unequal_parts_add_up_to_the_whole(options: dict[str, Any]) -> None:
    f = batch(SOME_TEXT)
    f = f if options.get("kind", "infonce") == "infonce" else with_several(f)
    loss = make(**options)
    _, whole = loss(f)
    total = dict.fromkeys(whole, 0.0)
    for start, end in ((0, 1), (1, 2), (2, 8)):  # row 1 has no text
        _, shares = loss(select(f, list(range(start, end))), f, start)
        for name, value in shares.items():
            total[name] += float(value.detach())
    for name, value in whole.items():
        assert total[name] == pytest.approx(float(value.detach()))


def test_align__joint_bias_is_its_own_and_told() -> None:
    config = AlignConfig(kind="siglip", shared_scale=False, joint_weight=1.0)
    loss = AlignLoss(config, width=6).double()
    before = loss(batch())[1]
    assert loss.bias_joint is not None
    assert loss.bias_text is not None
    with torch.no_grad():
        loss.bias_joint.fill_(-3.0)
        loss.bias_text.fill_(-5.0)
    told = loss.report()
    assert float(told["logit_bias_joint"].detach()) == -3.0
    assert float(told["logit_bias_text"].detach()) == -5.0
    with torch.no_grad():
        loss.bias_text.copy_(loss.get_parameter("bias"))
    after = loss(batch())[1]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"align_joint"}
