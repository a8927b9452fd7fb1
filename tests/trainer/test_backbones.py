from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common import InputError
from trainer.backbones import backbone_names, build_backbone, resolve_options
from trainer.backbones.measure import measure

# Published: parameters in millions (with a 1,280-d embedding) and GFLOP of one forward pass.
PUBLISHED = {
    "pointbert-5m": (5.1, None),
    "pointbert-13m": (13.3, None),
    "pointbert-26m": (25.9, 7.3),
    "pointbert-32m": (32.3, 28.9),
    "pointbert-72m": (72.1, 83.7),
}
SMALL: dict[str, Any] = {
    "dim": 32,
    "heads": 1,
    "head_dim": 32,
    "mlp_dim": 48,
    "depth": 2,
    "centroids": 8,
    "neighbours": 6,
}


def clouds(batch: int = 3, points: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    xyz = torch.rand(batch, points, 3, generator=generator) * 2 - 1
    return xyz, torch.rand(batch, points, 3, generator=generator)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_backbone__size_is_the_published_one(name: str) -> None:
    parameters, gflop = PUBLISHED[name]
    measured = measure(name)
    assert measured["parameters_m"] == pytest.approx(parameters, abs=0.06)
    if gflop is not None:
        assert measured["gflop"] == pytest.approx(gflop, rel=0.01)


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("grouping", ["knn", "ball"])
def test_backbone__gradients_reach_every_parameter(grouping: str, norm: str) -> None:
    torch.manual_seed(0)
    model = build_backbone("tiny", 16, {**SMALL, "grouping": grouping, "norm": norm})
    out = model(*clouds())
    assert out.shape == (3, 16)
    out.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_backbone__order_behind_the_centroids_does_not_matter() -> None:
    torch.manual_seed(0)
    model = build_backbone("tiny", 16, SMALL).eval()
    xyz, rgb = clouds()
    order = torch.cat([torch.arange(8), 8 + torch.randperm(32)])
    with torch.no_grad():
        torch.testing.assert_close(model(xyz[:, order], rgb[:, order]), model(xyz, rgb))
        reversed_centroids = torch.cat([torch.arange(7, -1, -1), torch.arange(8, 40)])
        # The centroids are a set of tokens: their order does not matter either.
        again = model(xyz[:, reversed_centroids], rgb[:, reversed_centroids])
        torch.testing.assert_close(again, model(xyz, rgb))


def test_backbone__clouds_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    model = build_backbone("tiny", 16, SMALL).eval()
    xyz, rgb = clouds()
    with torch.no_grad():
        torch.testing.assert_close(model(xyz[1:2], rgb[1:2]), model(xyz, rgb)[1:2])


def test_backbone__reads_colour_and_position() -> None:
    torch.manual_seed(0)
    model = build_backbone("tiny", 16, SMALL).eval()
    xyz, rgb = clouds()
    with torch.no_grad():
        base = model(xyz, rgb)
        assert not torch.allclose(model(xyz, 1 - rgb), base, atol=1e-4)
        assert not torch.allclose(model(xyz + 0.3, rgb), base, atol=1e-4)


@pytest.mark.parametrize(
    "option",
    [{"grouping": "ball"}, {"norm": "layer"}, {"radius": 0.9, "grouping": "ball"}, {"heads": 2}],
    ids=str,
)
def test_backbone__every_option_changes_the_embedding(option: dict[str, Any]) -> None:
    base = {**SMALL, "grouping": "ball"} if "radius" in option else SMALL
    outputs = []
    for options in (base, {**base, **option}):
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(build_backbone("tiny", 16, options).eval()(*clouds()))
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-5)


def test_backbone__patch_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = build_backbone("tiny", 16, {**SMALL, "patch_dropout": 0.5})
    with torch.no_grad():
        assert not torch.equal(model(*clouds()), model(*clouds()))
        model.eval()
        assert torch.equal(model(*clouds()), model(*clouds()))


def test_backbone__too_small_a_cloud_is_refused() -> None:
    model = build_backbone("tiny", 16, SMALL)
    xyz, rgb = clouds(points=7)
    with pytest.raises(ValueError, match="8 centroids asked of clouds of 7 points"):
        model(xyz, rgb)


def test_registry__names_are_ordered_by_size_and_options_resolved() -> None:
    assert backbone_names() == ["tiny", *PUBLISHED]
    assert resolve_options("tiny", {"local_dims": [16, 32]})["local_dims"] == (16, 32)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pointbert-32", {}, "did you mean pointbert-32m"),
        ("tiny", {"centroid": 3}, "did you mean centroids"),
        ("tiny", {"centroids": "many"}, "is not a int"),
        ("tiny", {"grouping": "octree"}, "neither 'ball' nor 'knn'"),
        ("tiny", {"depth": 0}, "must be positive"),
    ],
)
def test_registry__wrong_name_or_option_is_one_line(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_backbone(name, 16, options)
    assert "\n" not in str(caught.value)
