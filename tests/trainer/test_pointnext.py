from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common import InputError
from tests.trainer import reference
from trainer.backbones import build_backbone
from trainer.backbones.measure import count_parameters, on_meta

SMALL: dict[str, Any] = {
    "stem_dim": 6,
    "centroids": 24,
    "strides": [2, 3],
    "neighbours": 7,
    "radius": 0.5,
    "head_dim": 20,
}


def linear_count(inner: int, outer: int, *, norm: bool) -> int:
    """Without bias and with BatchNorm, or with bias."""
    return inner * outer + (2 * outer if norm else outer)


def published_encoder(inputs: int) -> int:
    """Parameters of PointNeXt-S without its head, layer by layer, from the paper's table."""
    total, dim = linear_count(inputs, 32, norm=False), 32
    for _ in range(4):
        total += linear_count(dim + 3, dim, norm=True) + linear_count(dim, 2 * dim, norm=True)
        total += linear_count(dim, 2 * dim, norm=False)  # the skip
        dim *= 2
    return total + linear_count(dim + 3, dim, norm=True) + linear_count(dim, dim, norm=True)


def test_pointnext__size_is_the_published_one_to_the_digit() -> None:
    # The table of the layers gives the count that the authors state for ScanObjectNN (4 inputs,
    # 15 classes, head 512-256): 1.367 million. So it is right ...
    head = linear_count(512, 512, norm=True) + linear_count(512, 256, norm=True)
    assert published_encoder(4) + head + linear_count(256, 15, norm=False) == 1_367_119
    # ... and gives ours, with 6 inputs and the head of OpenShape.
    head = linear_count(512, 1024, norm=True) + linear_count(1024, 1280, norm=False)
    model = on_meta("pointnext-s", 1280)
    assert count_parameters(model) == published_encoder(6) + head == 2_806_912


def stage(state: reference.State, name: str, xyz: Tensor, x: Tensor, points: int, radius: float,
          k: int) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Set abstraction of one cloud: coordinates (N, 3), features (C, N)."""
    centres = xyz[reference.farthest(xyz, points)]
    index = torch.tensor([reference.first_in_ball(xyz, c, radius, k) for c in centres])
    offset = (xyz[index] - centres[:, None]) / radius
    y = torch.cat([offset.permute(2, 1, 0), x[:, index].transpose(1, 2)])  # (3 + C, k, points)
    for i in range(2):
        y = torch.einsum("oi,ikp->okp", state[f"{name}.mlp.linears.{i}.weight"], y)
        y = reference.batch_norm(state, f"{name}.mlp.norms.{i}", y)
        y = y.clamp(min=0) if i == 0 else y
    chosen = torch.tensor(reference.farthest(xyz, points))
    skip = reference.conv(state, f"{name}.skip", x[:, chosen])
    return centres, (y.max(1).values + skip).clamp(min=0)


def test_pointnext__forward_is_that_of_a_plain_reference() -> None:
    torch.manual_seed(0)
    model = build_backbone("pointnext-s", 16, SMALL).double().eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    from tests.trainer.test_released import ordered_cloud

    xyz, rgb = ordered_cloud(60)
    state = {key: value.double() for key, value in model.state_dict().items()}
    p, x = xyz[0], reference.conv(state, "stem", torch.cat([xyz[0], rgb[0]], dim=1).T)
    for i, (points, radius) in enumerate([(24, 0.5), (12, 0.75), (4, 1.125)]):
        p, x = stage(state, f"stages.{i}", p, x, points, radius, 7)
    y = torch.cat([p.T, x])
    for i in range(2):
        y = state[f"whole.linears.{i}.weight"] @ y
        y = reference.batch_norm(state, f"whole.norms.{i}", y).clamp(min=0)
    y = (state["head.linears.0.weight"] @ y.max(1).values)[:, None]
    y = reference.batch_norm(state, "head.norms.0", y).clamp(min=0)[:, 0]
    with torch.no_grad():
        found = model(xyz, rgb)[0]
    torch.testing.assert_close(found, reference.linear(state, "project", y), rtol=0, atol=1e-10)


def test_pointnext__gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    model = build_backbone("pointnext-s", 16, SMALL)
    generator = torch.Generator().manual_seed(0)
    xyz = torch.rand(4, 60, 3, generator=generator) * 2 - 1
    model(xyz, torch.rand(4, 60, 3, generator=generator)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_pointnext__wrong_options_are_refused() -> None:
    with pytest.raises(InputError, match="too few for strides"):
        build_backbone("pointnext-s", 16, {"centroids": 8})
    with pytest.raises(InputError, match="head_dropout 1 is not"):
        build_backbone("pointnext-s", 16, {"head_dropout": 1})
    with pytest.raises(ValueError, match="24 centroids"):
        build_backbone("pointnext-s", 16, SMALL)(torch.zeros(1, 9, 3), torch.zeros(1, 9, 3))
