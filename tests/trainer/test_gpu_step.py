"""A training step on a GPU, without one: fake tensors have a device and a shape, and no values.

They raise where an operation mixes devices, and where one needs a value on the host or makes a
shape of values: where a step would wait for the GPU. Kernels are not run, nor is the backward pass,
for which PyTorch asks the driver.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)
from torch.testing._internal.distributed.fake_pg import FakeStore

from trainer import distributed, parallel, task
from trainer.batch import CloudBatch, Position
from trainer.config import Recipe
from trainer.optim import build_optimizer
from trainer.recipe import load_recipe, override_recipe
from trainer.task import DistillTask, StepResult

ROWS, WIDTH = 16, 64
GPU = torch.device("cuda", 0)


class FakeGenerator:
    """A generator of a GPU that is not there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def manual_seed(self, seed: int) -> None:
        del seed


def without_generator(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def drawn(*args: Any, generator: FakeGenerator | None = None, **options: Any) -> Tensor:
        assert generator is None or torch.device(options["device"]) == generator.device
        return draw(*args, **options)

    return drawn


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """Everything that would ask a driver, answered."""
    import torch.cuda.amp.common as amp

    pytest.importorskip("triton", reason="needs Triton")
    monkeypatch.setattr(amp, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch, "Generator", FakeGenerator)
    for name in ("rand", "randn", "randperm"):
        monkeypatch.setattr(torch, name, without_generator(getattr(torch, name)))
    monkeypatch.setattr(task, "_rng_state", lambda _: torch.empty(0))
    monkeypatch.setattr(task, "_set_rng_state", lambda *_: None)
    monkeypatch.setattr(Tensor, "backward", lambda *_: None)
    return FakeTensorMode()


def to_gpu(mode: FakeTensorMode, made: DistillTask) -> None:
    """Put the modules of a task on the fake GPU."""
    modules = [*made.modules.modules(), *(made.ema.module.modules() if made.ema else ())]
    fakes: list[tuple[dict[str, Any], str, Tensor]] = [
        (values, name, mode.from_tensor(value.detach()))
        for module in modules
        for values in (module._parameters, module._buffers)
        for name, value in values.items()
        if value is not None
    ]
    with mode:
        for values, name, fake in fakes:
            old = values[name]
            new = fake.to(GPU)
            is_parameter = isinstance(old, nn.Parameter)
            values[name] = nn.Parameter(new, old.requires_grad) if is_parameter else new
    made.device = GPU


def batch(recipe: Recipe) -> CloudBatch:
    shape = (ROWS, recipe.data.n_points, 3)
    several = (
        torch.zeros(2 * ROWS, WIDTH, dtype=torch.float16),
        torch.arange(ROWS).repeat_interleave(2),
    )
    return CloudBatch(
        row=np.arange(ROWS),
        xyz=torch.zeros(shape, dtype=torch.int16),
        rgb=torch.zeros(shape, dtype=torch.uint8),
        image=torch.zeros(ROWS, WIDTH, dtype=torch.float16) if recipe.loss.needs_image else None,
        text=torch.zeros(ROWS, WIDTH, dtype=torch.float16) if recipe.loss.needs_text else None,
        has_text=torch.ones(ROWS, dtype=torch.bool),
        next=Position(),
        image_all=several if recipe.data.image_sampling == "all" else None,
        text_all=several if recipe.data.text_sampling == "all" else None,
        category=torch.zeros(ROWS, dtype=torch.int64),
    )


def step(mode: FakeTensorMode, name: str, *settings: str) -> tuple[DistillTask, StepResult]:
    """One whole step but for the backward pass."""
    recipe = override_recipe(
        load_recipe(name), ["train.precision=bf16", "train.compile=false", *settings]
    )
    made = DistillTask(recipe, WIDTH, torch.device("cpu"))
    to_gpu(mode, made)
    compare = made._compare

    def compared(features: Tensor, *rest: Any) -> Any:
        if features.is_leaf:  # cached features, whose gradient the second pass takes up
            features.grad = torch.empty_like(features)
        return compare(features, *rest)

    made._compare = compared  # type: ignore[method-assign, assignment]
    with mode:
        optimizer = build_optimizer(made.trainable, recipe.optim)
        told = made.backward(batch(recipe), 3, 100)
        parameters = list(made.trainable.parameters())
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        norm = parallel.clip_gradients(parameters, 1.0)
        optimizer.step()
        made.after_step(3)
    assert all(group["fused"] for group in optimizer.param_groups)
    return made, dataclasses.replace(told, every_step={**told.every_step, "norm": norm})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tiny", ()),
        ("names", ()),
        ("openshape", ("model.backbone=pointbert-5m",)),
        ("openshape", ("model.backbone=pointbert-5m", 'model.options.axes="xzy"')),
        ("mixcon3d", ("model.backbone=pointbert-5m",)),
        ("mrd-pointbert-5m", ()),
        ("mrd-uni3d-ti", ()),
        ("tiny", ("model.backbone=pointnext-s", "data.n_points=4096", "model.options={}")),
        ("siglip", ("model.backbone=pointbert-5m",)),
        ("multi-positive", ("model.backbone=pointbert-5m",)),
        ("infonce-masked", ("model.backbone=pointbert-5m",)),
        ("tiny", ("loss.distill.queue=64",)),
        ("tiny", ("loss.distill.centre=both",)),
        ("tiny", ("loss.distill.weighting=uncertainty", "loss.distill.learn_tau=both")),
        ("tiny", ("loss.distill.representation=distance", "loss.distill.discrepancy=huber")),
        ("tiny", ("loss.align.hard_negatives=0.25", "loss.align.hard_warmup=0.5")),
        ("tiny", ("train.micro_batch=4",)),
        ("tiny", ("train.recompute=true", "data.text_sampling=mean")),
        (
            "tiny",
            (
                "augment.drop_points=0.5",
                "augment.drop_color=0.3",
                "augment.yaw=true",
                "augment.rotate_sigma=0.1",
                "augment.scale=[0.8, 1.2]",
                "augment.shift=0.1",
            ),
        ),
    ],
)
def test_step__mixes_no_devices_and_waits_for_nothing(
    gpu: FakeTensorMode, name: str, settings: tuple[str, ...]
) -> None:
    made, told = step(gpu, name, *settings)
    values = [told.loss, *told.terms.values(), *told.every_step.values()]
    assert all(value.device == GPU for value in values if isinstance(value, Tensor))
    assert all(parameter.device == GPU for parameter in made.trainable.parameters())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tiny", ()),
        ("tiny", ("loss.distill.queue=64",)),
        ("tiny", ("train.micro_batch=4",)),
        ("multi-positive", ("model.backbone=pointbert-5m",)),
    ],
)
def test_step__of_several_processes_waits_for_nothing(
    gpu: FakeTensorMode, name: str, settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Their counts go by way of the hosts; the student is as it is on one.
    monkeypatch.setattr(distributed, "gather_counts", lambda counts: [list(counts)] * 2)
    monkeypatch.setattr(parallel, "choose_kind", lambda *_: "one")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        _, told = step(gpu, name, *settings)
    finally:
        dist.destroy_process_group()
    assert told.loss.device == GPU


def test_step__a_value_that_is_looked_at_is_told(
    gpu: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DistillTask, "_hardness_ramp", lambda self, *_: float(self.align.scale))
    with pytest.raises(DataDependentOutputException):
        step(gpu, "tiny")


def test_step__a_tensor_on_the_host_is_told(
    gpu: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DistillTask, "_hardness_ramp", lambda *_: torch.zeros(ROWS))
    with pytest.raises(FakeTensorDeviceMismatchError):
        step(gpu, "tiny", "loss.align.hard_negatives=0.25", "loss.align.hard_warmup=0.5")
