"""The baseline of the training benchmark is the same network with the same losses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from tests.bench.train_plain import (
    PlainLoss,
    PlainPointBert,
    PlainSizes,
    copy_weights,
    dense_ball_query,
    sample_farthest,
)
from tests.bench.train_sides import make_batch, make_recipe
from trainer.backbones.pointbert import PointBert, PointBertOptions
from trainer.grouping import ball_query, farthest_point_sample
from trainer.task import DistillTask

CPU = torch.device("cpu")
SIZES = PlainSizes(
    dim=32,
    depth=2,
    heads=2,
    head_dim=16,
    mlp_dim=48,
    local_dims=(8, 12),
    centroids=24,
    neighbours=10,
    radius=0.3,
)


def pair(width: int = 20) -> tuple[PointBert, PlainPointBert]:
    """Our student and the baseline with equal random weights, norms included."""
    torch.manual_seed(0)
    student = PointBert(PointBertOptions(**vars(SIZES)), width)
    for name, value in student.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(value, 0.5, 0.7)  # signs of both kinds
    plain = PlainPointBert(SIZES, width)
    copy_weights(student, plain)
    return student, plain


@pytest.fixture(scope="module")
def clouds() -> tuple[Tensor, Tensor]:
    batch = make_batch(3, points=400, n_fps=100).to(CPU)
    return batch.xyz, batch.rgb


def test_sample_farthest__equals_the_trainers(clouds: tuple[Tensor, Tensor]) -> None:
    xyz = clouds[0][:, torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    assert torch.equal(sample_farthest(xyz, 50), farthest_point_sample(xyz, 50))


def test_dense_ball_query__equals_the_trainers(clouds: tuple[Tensor, Tensor]) -> None:
    xyz = clouds[0]
    ours = ball_query(xyz[:, :40], xyz, 0.3, 10)
    assert torch.equal(dense_ball_query(xyz[:, :40], xyz, 0.3, 10), ours)


@pytest.mark.parametrize("training", [True, False])
def test_plain__output_gradients_and_statistics_equal_the_students(
    clouds: tuple[Tensor, Tensor], training: bool
) -> None:
    student, plain = pair()
    student.double().train(training)
    plain.double().train(training)
    # Clouds come in farthest-point order: sampling finds the prefix that the student takes.
    xyz, rgb = (values.double() for values in clouds)
    assert torch.equal(plain.centres(xyz), xyz[:, : SIZES.centroids])
    ours, theirs = student(xyz, rgb), plain(xyz, rgb)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    seed = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=ours.dtype)
    ours.backward(seed)
    theirs.backward(seed)
    copied = copy.deepcopy(plain)
    with torch.no_grad():  # gradients are renamed as weights are
        for parameter in student.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    copy_weights(student, copied)
    for (name, want), got in zip(plain.named_parameters(), copied.parameters(), strict=True):
        assert want.grad is not None, name
        torch.testing.assert_close(got, want.grad, rtol=1e-7, atol=1e-10)
    running = dict(copied.named_buffers())
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(running[name], buffer, rtol=1e-9, atol=1e-12)


def test_plain_loss__equals_the_trainers_with_its_gradient() -> None:
    recipe = make_recipe(6, "model.backbone=tiny", "loss.distill.warmup=0")
    task = DistillTask(recipe, 1280, CPU)
    batch = make_batch(6, points=32, n_fps=4).to(CPU)
    assert batch.image is not None
    assert batch.text is not None
    features = torch.randn(6, 1280, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ours = task.loss(features, batch, 50, 100).loss
    (gradient,) = torch.autograd.grad(ours, features)
    theirs = PlainLoss()(features, batch.image, batch.text, recipe.loss.distill.weight)
    (expected,) = torch.autograd.grad(theirs, features)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-8)
