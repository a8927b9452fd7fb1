from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.trainer.conftest import WIDTH, MakeShards, small_recipe
from trainer import distributed
from trainer.batch import CloudBatch
from trainer.config import Recipe
from trainer.data import Batches, HeldOut
from trainer.index import Corpus
from trainer.optim import build_optimizer, learning_rate, ramp
from trainer.recipe import load_recipe
from trainer.task import DistillTask, bf16_slowdown, choose_precision

CPU = torch.device("cpu")


@pytest.fixture
def root(make_shards: MakeShards) -> Path:
    return make_shards(textless=6)


def first_batch(root: Path, recipe: Recipe) -> CloudBatch:
    return next(Batches(Corpus([root], recipe), 0).epoch(0))


def gradients(root: Path, *overrides: str) -> tuple[dict[str, Tensor], float]:
    recipe = small_recipe(*overrides)
    task = DistillTask(recipe, WIDTH, CPU)
    result = task.backward(first_batch(root, recipe), 3, 100)
    named = task.trainable.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}, float(result.loss)


@pytest.mark.parametrize(
    "weighting", ["mixture", "uncertainty", "fixed"], ids=lambda name: str(name)
)
def test_optimizer__has_every_parameter_exactly_once(weighting: str) -> None:
    task = DistillTask(small_recipe(f"loss.distill.weighting={weighting}"), WIDTH, CPU)
    optimizer = build_optimizer(task.trainable, task.recipe.optim)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in task.trainable.parameters())
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] > 0) == (parameter.ndim >= 2)


def test_optimizer__leaves_out_what_is_frozen() -> None:
    task = DistillTask(small_recipe("loss.align.learn_scale=false"), WIDTH, CPU)
    optimizer = build_optimizer(task.trainable, task.recipe.optim)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert id(task.align.log_scale) not in held


def test_backward__reaches_every_parameter(root: Path) -> None:
    found, _ = gradients(root)
    task = DistillTask(small_recipe(), WIDTH, CPU)
    assert set(found) == {name for name, _ in task.trainable.named_parameters()}
    for name, gradient in found.items():
        assert bool(gradient.isfinite().all()), name
        assert float(gradient.abs().max()) > 0, name


@pytest.mark.parametrize("size", [1, 5, 8])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_backward__micro_batches_give_the_gradients_of_the_whole(
    root: Path, size: int, dropout: float
) -> None:
    option = f"model.options.patch_dropout={dropout}"
    if dropout:
        # The draws of dropped patches depend on the micro-batch: compare two of the same sizes,
        # one of them with the loss of both halves computed in one graph.
        whole, loss = gradients_in_parts(root, size, option)
    else:
        whole, loss = gradients(root, option)
    parts, again = gradients(root, option, f"train.micro_batch={size}")
    assert again == pytest.approx(loss, rel=1e-5)
    for name, expected in whole.items():
        torch.testing.assert_close(parts[name], expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("loss.align.kind=multi_positive", "data.image_sampling=all", "data.text_sampling=all"),
        ("loss.align.kind=siglip", "loss.align.drop_same_category=true"),
        ("loss.align.joint_weight=1.0", "loss.align.shared_scale=false"),
        ("loss.distill.queue=24", "loss.distill.learn_tau=student"),
        (
            "loss.distill.representation=distance",
            "loss.distill.discrepancy=huber",
            "loss.distill.weighting=uncertainty",
        ),
    ],
    ids=["default", "multi_positive", "siglip", "joint", "queue", "distance"],
)
def test_backward__accumulated_gradients_are_equal_to_one_in_a_hundred_thousand(
    root: Path, options: tuple[str, ...]
) -> None:
    whole, loss = gradients(root, *options)
    parts, again = gradients(root, *options, "train.micro_batch=3")
    assert again == pytest.approx(loss, rel=1e-5)
    assert parts.keys() == whole.keys()
    for name, expected in whole.items():
        error = float((parts[name] - expected).norm())
        # Of a scalar that is a sum of cancelling parts, float32 leaves fewer digits.
        assert error <= 1e-5 * float(expected.norm()) + 1e-7, name


def gradients_in_parts(root: Path, size: int, option: str) -> tuple[dict[str, Tensor], float]:
    recipe = small_recipe(option)
    task = DistillTask(recipe, WIDTH, CPU)
    clouds = first_batch(root, recipe).to(CPU)
    generator = torch.Generator().manual_seed(recipe.train.seed * 1_000_003 + 3)
    task.trainable.train()
    xyz, rgb = task.augment(clouds.xyz, clouds.rgb, generator)
    pairs = zip(torch.split(xyz, size), torch.split(rgb, size), strict=True)
    features = torch.cat([task.encode(a, b) for a, b in pairs])
    result = task.loss(features, clouds, 3, 100)
    result.loss.backward()  # type: ignore[no-untyped-call]
    named = task.trainable.named_parameters()
    found = {name: p.grad.clone() for name, p in named if p.grad is not None}
    return found, float(result.loss.detach())


def test_backward__micro_batches_enter_batchnorm_statistics_once_each(root: Path) -> None:
    counts = []
    for size in (0, 8):  # of a batch of 16
        recipe = small_recipe("model.options.norm=batch", f"train.micro_batch={size}")
        task = DistillTask(recipe, WIDTH, CPU)
        task.backward(first_batch(root, recipe), 0, 10)
        counts.append(int(task.student.get_buffer("local.norms.0.num_batches_tracked")))
    assert counts == [1, 2]


def test_loss__align_only_has_no_distillation(root: Path) -> None:
    recipe = small_recipe("loss.distill.enabled=false")
    task = DistillTask(recipe, WIDTH, CPU)
    result = task.backward(first_batch(root, recipe), 0, 10)
    assert task.distill is None
    assert set(result.terms) == {"align_image", "align_text", "logit_scale"}
    assert result.every_step == {}
    total = result.terms["align_image"] + result.terms["align_text"]
    assert float(result.loss) == pytest.approx(float(total))


@pytest.mark.parametrize(("step", "factor"), [(0, 1 / 21), (9, 10 / 21), (20, 1.0), (99, 1.0)])
def test_loss__is_the_alignment_plus_the_ramped_distillation(
    root: Path, step: int, factor: float
) -> None:
    recipe = small_recipe("loss.distill.weight=0.7", "loss.distill.warmup=0.2")
    task = DistillTask(recipe, WIDTH, CPU)
    result = task.backward(first_batch(root, recipe), step, 100)
    terms = {name: float(value) for name, value in result.terms.items()}
    assert terms["distill_weight"] == pytest.approx(0.7 * factor)
    distill = sum(terms[name] for name in ("intra_image", "intra_text", "cross")) / 3
    assert terms["distill"] == pytest.approx(distill, rel=1e-5)  # the mixture as it begins
    expected = terms["align_image"] + terms["align_text"] + 0.7 * factor * distill
    assert float(result.loss) == pytest.approx(expected, rel=1e-5)


ALL = ("loss.align.kind=multi_positive", "data.image_sampling=all", "data.text_sampling=all")


@pytest.mark.parametrize(
    "overrides",
    [
        ("loss.distill.weight=3.0",),
        ("loss.distill.warmup=1.0",),
        ("loss.distill.enabled=false",),
        ("loss.distill.cross_text=false",),
        ("loss.distill.cross_image=false",),
        ("loss.align.kind=siglip",),
        ("loss.align.drop_same_category=true",),
        ("loss.align.drop_image_above=0.5",),
        ("loss.align.drop_text_above=0.5",),
        ("loss.align.hard_negatives=0.5",),
        ("loss.align.joint_weight=0.5",),
        ("data.image_sampling=mean",),
        ("data.text_sampling=mean",),
        ALL,
    ],
    ids=str,
)
def test_loss__options_change_the_value(root: Path, overrides: tuple[str, ...]) -> None:
    base, changed = (gradients(root, *extra)[1] for extra in ((), overrides))
    assert changed != pytest.approx(base, rel=1e-4)


def test_loss__hard_negatives_come_by_and_by(root: Path) -> None:
    hard = "loss.align.hard_negatives=0.5"
    found = [
        gradients(root, *extra)[1] for extra in ((), (hard, "loss.align.hard_warmup=1.0"), (hard,))
    ]
    assert sorted(found) == found
    assert len(set(found)) == 3


def test_loss__queue_enters_from_the_second_step_on(root: Path) -> None:
    found = []
    for size in (0, 24):
        recipe = small_recipe(f"loss.distill.queue={size}")
        task = DistillTask(recipe, WIDTH, CPU)
        batches = list(Batches(Corpus([root], recipe), 0).epoch(0))[:2]
        found.append([float(task.backward(item, 50, 100).loss) for item in batches])
    assert found[0][0] == found[1][0]
    assert found[0][1] != pytest.approx(found[1][1], rel=1e-4)


def test_state__queue_and_learned_values_go_on_where_they_stood(root: Path) -> None:
    options = (
        "loss.distill.queue=24",
        "loss.distill.learn_tau=both",
        "loss.align.kind=siglip",
        "loss.align.shared_scale=false",
    )
    recipe = small_recipe(*options)
    batches = list(Batches(Corpus([root], recipe), 0).epoch(0))[:3]
    task = DistillTask(recipe, WIDTH, CPU)
    optimizer = build_optimizer(task.trainable, recipe.optim)
    for step, item in enumerate(batches[:2]):
        optimizer.zero_grad()
        task.backward(item, step, 10)
        optimizer.step()
        task.after_step(step)
    again = DistillTask(recipe, WIDTH, CPU)
    file = io.BytesIO()
    torch.save(task.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    results = [item.backward(batches[2], 2, 10) for item in (task, again)]
    assert torch.equal(results[0].loss, results[1].loss)
    told = {"tau_student_intra", "tau_teacher_cross", "logit_bias_text", "logit_scale_text"}
    assert told <= set(results[0].terms)


def test_after_step__brings_what_is_learned_back_into_bounds(root: Path) -> None:
    task = DistillTask(small_recipe("loss.distill.learn_tau=student"), WIDTH, CPU)
    assert task.distill is not None
    with torch.no_grad():
        task.align.log_scale.fill_(50.0)
        for parameter in task.distill.log_tau.values():
            parameter.fill_(50.0)
    task.after_step(0)
    assert float(task.align.log_scale.detach().exp()) == pytest.approx(100.0)
    for parameter in task.distill.log_tau.values():
        assert float(parameter.detach().exp()) == pytest.approx(1.0)


def test_ema__follows_the_weights_and_ends_up_in_the_checkpoint(root: Path) -> None:
    recipe = small_recipe("ema.enabled=true", "ema.decay=0.5")
    task = DistillTask(recipe, WIDTH, CPU)
    assert task.ema is not None
    weight = task.student.get_parameter("project.weight")
    start = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    task.after_step(0)  # decay (1 + 0) / (10 + 0)
    average = task.ema.module.state_dict()["project.weight"]
    torch.testing.assert_close(average, start + 0.9)
    task.after_step(1000)  # decay .5
    torch.testing.assert_close(average, start + 0.95)
    assert task.final is task.ema.module
    assert all(not p.requires_grad for p in task.final.parameters())


def test_validate__does_not_augment_and_does_not_change_the_student(root: Path) -> None:
    recipe = small_recipe("model.options.norm=batch")
    task = DistillTask(recipe, WIDTH, CPU)
    corpus = Corpus([root], recipe)
    before = {name: value.clone() for name, value in task.student.state_dict().items()}
    first = task.validate(HeldOut(corpus).batches())
    assert first == task.validate(HeldOut(corpus).batches())
    assert {"align", "top1_image", "top1_text", "score"} <= set(first)
    for name, value in task.student.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    "option",
    [
        "loss.align.drop_same_category=true",
        "loss.align.kind=siglip",
        "loss.align.drop_text_above=0.5",
    ],
)
def test_validate__measures_the_alignment_that_is_trained(root: Path, option: str) -> None:
    found = []
    for overrides in ((), (option,)):
        recipe = small_recipe(*overrides)
        corpus = Corpus([root], recipe)
        task = DistillTask(recipe, WIDTH, CPU)
        found.append(task.validate(HeldOut(corpus).batches())["align"])
    assert found[0] != pytest.approx(found[1], rel=1e-4)


def test_validate__all_positives_are_measured_by_their_mean(root: Path) -> None:
    found = []
    for sampling in ("mean", "all"):
        options = (f"data.image_sampling={sampling}", f"data.text_sampling={sampling}")
        recipe = small_recipe("loss.align.kind=multi_positive", *options)
        task = DistillTask(recipe, WIDTH, CPU)
        found.append(task.validate(HeldOut(Corpus([root], recipe)).batches()))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("size", "processes", "most"), [(0, 1, 16), (3, 1, 3), (0, 3, 6), (5, 3, 5)]
)
def test_validate__takes_no_more_rows_at_once_than_a_step(
    root: Path, size: int, processes: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(f"train.micro_batch={size}", "data.val_fraction=0.4")
    batches = list(HeldOut(Corpus([root], recipe)).batches())
    assert len(batches[0]) == recipe.data.batch_size == 16
    task = DistillTask(recipe, WIDTH, CPU)
    expected = DistillTask(small_recipe("data.val_fraction=0.4"), WIDTH, CPU).validate(batches)
    seen = []
    task.final.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    assert task.validate(batches) == pytest.approx(expected, rel=1e-5)
    assert max(seen) == most
    assert sum(seen) == sum(len(batch) for batch in batches)


@pytest.mark.parametrize(("slowdown", "advice"), [(0.5, False), (37.0, True)])
def test_precision__is_told_with_its_reason(
    slowdown: float, advice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.task.bf16_slowdown", lambda: slowdown)
    assert choose_precision("auto", CPU)[0] == torch.float32
    dtype, reason = choose_precision("bf16", CPU)
    assert dtype == torch.bfloat16
    assert reason.startswith("bf16: asked for by train.precision")
    assert ("37 times faster in fp32; set train.precision=fp32" in reason) == advice


def test_bf16_slowdown__compares_the_best_rounds_after_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = iter([90.0, 12.0, 10.0, 11.0, 90.0, 3.0, 5.0, 2.0])  # bf16, then fp32
    clock, odd = 0.0, True

    def perf_counter() -> float:
        nonlocal clock, odd
        clock += 0 if odd else next(taken)
        odd = not odd
        return clock

    monkeypatch.setattr("trainer.task.time.perf_counter", perf_counter)
    assert bf16_slowdown() == 5


@pytest.mark.parametrize("rows", [1, 2])
def test_backward__no_micro_batch_is_too_small_for_the_batch_norm(root: Path, rows: int) -> None:
    options = [f"model.options.{o}" for o in ("stem_dim=8", "centroids=32", "head_dim=16")]
    recipe = load_recipe(
        "tiny",
        [
            *("data.n_points=128", "data.batch_size=9", "data.val_fraction=0.2"),
            *("model.backbone=pointnext-s", *options, f"train.micro_batch={rows}"),
        ],
    )
    task = DistillTask(recipe, WIDTH, CPU)
    result = task.backward(first_batch(root, recipe), 0, 10)
    assert bool(torch.isfinite(result.loss))


def test_backward__the_largest_seed_is_one(root: Path) -> None:
    assert gradients(root, f"train.seed={(1 << 63) - 1}")[1] > 0


def test_backward__bf16_gives_finite_float32_gradients(root: Path) -> None:
    found, loss = gradients(root, "train.precision=bf16")
    reference = gradients(root)[1]
    assert loss == pytest.approx(reference, rel=0.05)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())


def test_learning_rate__warms_up_then_falls_to_the_minimum() -> None:
    config = load_recipe("tiny", ["optim.lr=1.0", "optim.min_lr=0.1", "optim.warmup=0.1"]).optim
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.55)


def test_ramp__is_full_after_its_share() -> None:
    assert ramp(0.0, 0, 100) == 1.0
    values = [ramp(0.2, step, 100) for step in range(30)]
    assert values == sorted(values)
    assert 0 < values[0] < 0.1
    assert values[19] < 1.0
    assert values[20] == 1.0
