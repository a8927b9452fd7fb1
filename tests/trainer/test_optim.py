from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trainer import optim
from trainer.backbones import backbone_names
from trainer.backbones.measure import on_meta
from trainer.config import OptimConfig
from trainer.optim import build_optimizer, learning_rate, parameter_groups, set_learning_rate


class Task(nn.Module):
    """A backbone and what a loss learns beside it."""

    def __init__(self, name: str, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.student = on_meta(name, 32, options)
        self.scale = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)
        self.matrix = nn.Parameter(torch.zeros(3, 3))


@pytest.mark.parametrize("name", backbone_names())
def test_groups__hold_every_parameter_exactly_once(name: str) -> None:
    task = Task(name)
    groups = parameter_groups(task, 0.1, 0.9)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    expected = [id(p) for p in task.parameters() if p.requires_grad]
    assert sorted(found) == sorted(expected)
    assert len({(g["lr_scale"], g["weight_decay"]) for g in groups}) == len(groups)
    names = {id(parameter): key for key, parameter in task.named_parameters()}
    norms = {
        f"{path}.{key}"
        for path, part in task.named_modules()
        if "Norm" in type(part).__name__
        for key, _ in part.named_parameters()
    }
    assert norms
    for group in groups:
        for parameter in group["params"]:
            key = names[id(parameter)]
            plain = key.endswith("bias") or key in norms or "cls_" in key or key == "scale"
            assert group["weight_decay"] == (0.0 if plain else 0.1), key


def scale_of(task: Task, layer_decay: float) -> dict[str, float]:
    names = {id(parameter): key for key, parameter in task.named_parameters()}
    return {
        names[id(parameter)]: group["lr_scale"]
        for group in parameter_groups(task, 0.1, layer_decay)
        for parameter in group["params"]
    }


def test_layer_decay__of_uni3d_is_that_of_its_published_code() -> None:
    # Rate of block i of n: decay ** (n - i); the norm and all that is new: 1.
    scales = scale_of(Task("uni3d-ti"), 0.95)
    for block in range(12):
        assert scales[f"student.blocks.{block}.norm1.weight"] == pytest.approx(0.95 ** (12 - block))
    for name in ("fc_norm.weight", "project.weight", "tokenizer.first.weight", "cls_token"):
        assert scales[f"student.{name}"] == 1.0
    assert scales["scale"] == scales["matrix"] == 1.0


def test_layer_decay__falls_from_head_to_input() -> None:
    scales = scale_of(Task("tiny"), 0.5)  # 4 blocks
    assert scales["student.project.weight"] == 1.0
    assert [scales[f"student.blocks.{i}.mlp.0.weight"] for i in range(4)] == [
        1 / 16,
        1 / 8,
        1 / 4,
        1 / 2,
    ]
    assert scales["student.local.linears.0.weight"] == scales["student.cls_token"] == 1 / 32
    scales = scale_of(Task("pointnext-s"), 0.5)
    assert scales["student.head.linears.0.weight"] == 1.0
    assert scales["student.whole.linears.0.weight"] == 0.5
    assert scales["student.stages.3.skip.weight"] == 0.25
    assert scales["student.stem.weight"] == 0.5**6
    assert set(scale_of(Task("tiny"), 1.0).values()) == {1.0}


def test_optimizer__rate_of_a_group_is_its_share() -> None:
    torch.manual_seed(0)
    from trainer.backbones import build_backbone

    model = build_backbone("tiny", 8)
    optimizer = build_optimizer(model, OptimConfig(layer_decay=0.5, lr=0.1))
    set_learning_rate(optimizer, 0.01)
    rates = {group["lr"] for group in optimizer.param_groups}
    assert rates == {0.01 * 0.5**i for i in range(6)}


def test_learning_rate__cosine_with_warmup_in_steps_or_as_share() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.25, warmup=0.5, warmup_steps=10)
    assert learning_rate(config, 0, 110) == pytest.approx(1 / 11)
    assert learning_rate(config, 9, 110) == pytest.approx(10 / 11)
    assert learning_rate(config, 10, 110) == 1.0
    assert learning_rate(config, 60, 110) == pytest.approx(0.625)
    assert learning_rate(config, 110, 110) == pytest.approx(0.25)
    share = OptimConfig(lr=1.0, warmup=0.5)
    assert learning_rate(share, 5, 10) == 1.0


def test_learning_rate__steps_do_not_depend_on_the_length() -> None:
    config = OptimConfig(lr=1.0, schedule="step", decay_every=10, decay_rate=0.5, warmup=0.0)
    for total in (50, 5000):
        assert [learning_rate(config, s, total) for s in (0, 9, 10, 19, 20)] == [
            1,
            1,
            0.5,
            0.5,
            0.25,
        ]
    assert learning_rate(config.model_copy(update={"min_lr": 0.3}), 40, 50) == 0.3


def test_optimizer__on_a_cpu_is_fused_and_steps_as_adamw_does() -> None:
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
        optimizer = build_optimizer(model, OptimConfig(lr=0.05))
        assert all(group["fused"] for group in optimizer.param_groups)
        if not fused:
            for group in optimizer.param_groups:
                group["fused"] = False
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(4, 5)).square().sum().backward()
            optimizer.step()
        found.append([parameter.detach() for parameter in model.parameters()])
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-6)


def test_optimizer__parameters_of_two_devices_are_not_fused() -> None:
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2, device="meta")])
    optimizer = build_optimizer(model, OptimConfig())
    assert not any(group["fused"] for group in optimizer.param_groups)


def test_optimizer__only_groups_that_mix_what_is_shared_out_go_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = nn.ModuleDict({"student": nn.Linear(3, 2), "loss": nn.Linear(2, 2, bias=False)})
    module["loss"].requires_grad_(False)
    module["loss"].register_parameter("scale", nn.Parameter(torch.ones(())))
    student = set(map(id, module["student"].parameters()))
    monkeypatch.setattr(optim, "is_shared", lambda value: id(value) in student)
    matrices, vectors = build_optimizer(module, OptimConfig(weight_decay=0.1)).param_groups
    assert len(vectors["params"]) == 2  # the bias, shared out, and the scale, which is not
    assert (matrices["fused"], matrices["foreach"]) == (True, None)
    assert (vectors["fused"], vectors["foreach"]) == (False, False)


def test_optimizer__has_the_betas_and_eps_of_the_recipe() -> None:
    config = OptimConfig(beta1=0.8, beta2=0.9, eps=1e-3)
    for group in build_optimizer(nn.Linear(2, 2), config).param_groups:
        assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-3)


def test_groups__embeddings_do_not_decay() -> None:
    kinds, head = nn.Embedding(4, 3), nn.Linear(3, 2)
    groups = parameter_groups(nn.ModuleList([kinds, head]), 0.1)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decays[id(kinds.weight)] == 0.0
    assert decays[id(head.weight)] == 0.1
