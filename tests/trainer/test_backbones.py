from __future__ import annotations

import copy
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common import InputError
from trainer.backbones import (
    Backbone,
    attention,
    backbone_names,
    build_backbone,
    pointbert,
    registry,
    resolve_options,
)
from trainer.backbones.layers import (
    DropPath,
    drop_patches,
    drop_path_rates,
    recompute_blocks,
    strided,
)
from trainer.backbones.measure import measure, on_meta

# Published: millions of parameters (Point-BERT: OpenShape, with a 1,280-d embedding; Uni3D: its
# ladder, 1,024-d) and GFLOP of one forward pass.
PUBLISHED = {
    "pointbert-5m": (5.1, None),
    "pointbert-13m": (13.3, None),
    "pointbert-26m": (25.9, 7.3),
    "pointbert-32m": (32.3, 28.9),
    "pointbert-72m": (72.1, 83.7),
    "pointbert-171m": (171.3, None),  # in their code, not in their table
    "uni3d-ti": (6, None),
    "uni3d-s": (23, None),
    "uni3d-b": (88, None),
    "uni3d-l": (307, None),
    "uni3d-g": (1000, None),
}
# Published layers: dim, depth, mlp, local feature.
POINTBERT = {
    "pointbert-5m": (256, 6, 1024, 96),
    "pointbert-13m": (512, 6, 1024, 128),
    "pointbert-26m": (512, 12, 1024, 128),
    "pointbert-32m": (512, 12, 1536, 256),
    "pointbert-72m": (768, 12, 2304, 256),
    "pointbert-171m": (768, 24, 3072, 256),
}
# Published layers: dim, depth, width of the MLP, its kind.
UNI3D = {
    "uni3d-ti": (192, 12, 512, "swiglu"),
    "uni3d-s": (384, 12, 1024, "swiglu"),
    "uni3d-b": (768, 12, 2048, "swiglu with norm"),
    "uni3d-l": (1024, 24, 2730, "swiglu with norm"),
    "uni3d-g": (1408, 40, 6144, "gelu"),
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
    # Uni3D's figures are rounded, and count the image model's parts that are never used.
    rel = 0.001 if name.startswith("pointbert") else 0.04
    assert measured["parameters_m"] == pytest.approx(parameters, abs=0.06, rel=rel)
    if gflop is not None:
        assert measured["gflop"] == pytest.approx(gflop, rel=0.01)


def dense(inner: int, outer: int) -> int:
    return inner * outer + outer


@pytest.mark.parametrize("name", list(POINTBERT))
def test_pointbert__count_follows_from_the_published_layers_to_the_digit(name: str) -> None:
    dim, depth, mlp, local = POINTBERT[name]
    total = dense(9, 64) + dense(64, 64) + dense(64, local) + 2 * (64 + 64 + local)  # BatchNorm
    total += dense(local + 3, dim) + 2 * dim + dim  # lift, its norm, CLS
    block = 2 * dim + 3 * dim * dim + dense(dim, dim)  # norm, qkv without bias, output
    block += 2 * dim + dense(dim, mlp) + dense(mlp, dim)
    assert measure(name)["parameters"] == total + depth * block + dense(dim, 1280)


@pytest.mark.parametrize("name", list(UNI3D))
def test_uni3d__count_follows_from_the_published_layers_to_the_digit(name: str) -> None:
    dim, depth, hidden, kind = UNI3D[name]
    total = dense(6, 128) + 2 * 128 + dense(128, 256) + dense(512, 512) + 2 * 512
    total += dense(512, 512) + dense(512, dim)
    total += dense(3, 128) + dense(128, dim) + 2 * dim  # position, CLS and its position
    block = 2 * dim + 3 * dim * dim + 2 * dim + dense(dim, dim) + 2 * dim  # no bias of the keys
    block += dense(dim, hidden) * (1 if kind == "gelu" else 2) + dense(hidden, dim)
    block += 2 * hidden if kind == "swiglu with norm" else 0
    total += depth * block + 2 * dim + dense(dim, 1024)
    assert measure(name)["parameters"] == total


def test_gflop__follow_from_the_layers_by_hand() -> None:
    """Multiply-adds of every matrix product of one cloud; 2 FLOP each."""
    tokens, dim, mlp, depth = 385, 512, 1536, 12
    per_token = 3 * dim * dim + dim * dim + 2 * dim * mlp  # qkv, output, MLP
    products = depth * (tokens * per_token + 2 * tokens * tokens * dim)  # scores, their sum
    products += 384 * 64 * (9 * 64 + 64 * 64 + 64 * 256)  # 64 neighbours of 384 centroids
    products += 384 * (3 + 256) * dim + dim * 1280
    assert measure("pointbert-32m")["gflop"] == pytest.approx(2e-9 * products, rel=1e-9)

    tokens, dim, mlp, depth = 513, 192, 512, 12
    per_token = 4 * dim * dim + 2 * dim * mlp + mlp * dim  # the gate is a second half of the MLP
    products = depth * (tokens * per_token + 2 * tokens * tokens * dim)
    products += 512 * 64 * (6 * 128 + 128 * 256 + 256 * 512 + 512 * 512)
    products += 512 * (256 * 512 + 512 * dim + 3 * 128 + 128 * dim) + dim * 1024
    assert measure("uni3d-ti")["gflop"] == pytest.approx(2e-9 * products, rel=1e-9)


@pytest.mark.parametrize("name", backbone_names())
def test_backbone__tells_its_tokens_and_layers(name: str) -> None:
    model = on_meta(name, 48)
    expected = 0 if name == "pointnext-s" else model.centroids + 1
    assert model.tokens == expected
    layers = {model.layer_of(key) for key, _ in model.named_parameters()}
    assert layers <= set(range(model.n_layers))
    assert max(layers) == model.n_layers - 1
    assert model.no_decay() <= {key for key, _ in model.named_parameters()}
    out = model(torch.empty(2, 4096, 3, device="meta"), torch.empty(2, 4096, 3, device="meta"))
    assert out.shape == (2, 48)


def small(family: str, **options: Any) -> Backbone:
    """One of each family, at test size, in training mode."""
    torch.manual_seed(0)
    if family == "uni3d":
        options = {"depth": 2, "centroids": 8, "neighbours": 6, "local_dim": 16, **options}
        return build_backbone("uni3d-ti", 16, options)
    if family == "pointnext":
        options = {"centroids": 16, "strides": [2], "neighbours": 6, "radius": 0.6, **options}
        return build_backbone("pointnext-s", 16, {"stem_dim": 8, "head_dim": 16, **options})
    return build_backbone("tiny", 16, {**SMALL, **options})


FAMILIES = ("tiny", "uni3d", "pointnext")


@pytest.mark.parametrize("family", FAMILIES)
def test_family__clouds_do_not_mix_and_all_parameters_learn(family: str) -> None:
    model = small(family)
    xyz, rgb = clouds()
    out = model(xyz, rgb)
    assert out.shape == (3, 16)
    out.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(xyz[1:2], rgb[1:2]), model(xyz, rgb)[1:2])


@pytest.mark.parametrize("family", FAMILIES)
def test_family__axes_exchange_y_and_z(family: str) -> None:
    model, mirrored = small(family).eval(), small(family, axes="xzy").eval()
    xyz, rgb = clouds()
    with torch.no_grad():
        assert not torch.allclose(mirrored(xyz, rgb), model(xyz, rgb), atol=1e-5)
        torch.testing.assert_close(mirrored(xyz[..., [0, 2, 1]], rgb), model(xyz, rgb))


@pytest.mark.parametrize("family", ["tiny", "uni3d"])
@pytest.mark.parametrize("option", [{"drop_path": 0.6}, {"patch_dropout": 0.5}], ids=str)
def test_family__dropout_acts_in_training_only(family: str, option: dict[str, Any]) -> None:
    model = small(family, **option)
    with torch.no_grad():
        assert not torch.equal(model(*clouds()), model(*clouds()))
        plain = small(family)
        plain.load_state_dict(model.state_dict())
        torch.testing.assert_close(model.eval()(*clouds()), plain.eval()(*clouds()))


def test_drop_path__drops_whole_branches_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25)
    out = layer(torch.ones(4000, 3, 2))
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float(out.mean()) == pytest.approx(1, abs=0.03)
    assert torch.equal(layer.eval()(torch.ones(3, 1, 1)), torch.ones(3, 1, 1))
    assert drop_path_rates(0.2, 5) == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert drop_path_rates(0.2, 1) == [0.0]


def test_drop_patches__keeps_different_tokens_of_each_cloud() -> None:
    torch.manual_seed(0)
    tokens = torch.arange(12.0).view(1, 12, 1).expand(5, -1, 2)
    kept = drop_patches(tokens, 0.75)
    assert kept.shape == (5, 3, 2)
    rows = [tuple(sorted(row[:, 0].tolist())) for row in kept]
    assert all(len(set(row)) == 3 for row in rows)
    assert len(set(rows)) > 1
    assert drop_patches(tokens, 0.99).shape[1] == 1


@pytest.mark.parametrize("points", [1, 2, 10, 128, 2048, 10_000])
def test_strided__is_a_permutation_that_spreads(points: int) -> None:
    order = strided(torch.arange(points).view(1, -1, 1))[0, :, 0]
    assert order[0] == 0
    assert torch.equal(order.sort().values, torch.arange(points))
    if points >= 128:  # any tenth of it is taken evenly from the whole
        share = (order[: points // 10] < points // 5).float().mean()
        assert float(share) == pytest.approx(0.2, abs=0.06)


def test_pointbert__scan_decides_which_points_of_a_full_ball_count() -> None:
    xyz, rgb = clouds()
    with torch.no_grad():
        ball = {"grouping": "ball", "radius": 0.9, "neighbours": 3}
        stored = small("tiny", **ball).eval()(xyz, rgb)
        assert not torch.allclose(small("tiny", **ball, scan="strided").eval()(xyz, rgb), stored)
        whole = {"grouping": "ball", "radius": 9.0, "neighbours": 40}  # all points: no choice
        stored = small("tiny", **whole).eval()(xyz, rgb)
        torch.testing.assert_close(small("tiny", **whole, scan="strided").eval()(xyz, rgb), stored)


def test_pointbert__without_projection_the_width_is_that_of_the_trunk() -> None:
    model = build_backbone("tiny", 32, {**SMALL, "projection": False})
    assert model(*clouds()).shape == (3, 32)
    with pytest.raises(InputError, match="dim 32 must be the width 16"):
        build_backbone("tiny", 16, {**SMALL, "projection": False})


def trained(
    model: Backbone, whole: bool, *, autocast: bool = False, recompute: bool = False
) -> list[Tensor]:
    """Embedding and gradients of a step in training; ``whole``: patches in the last block too."""
    model = copy.deepcopy(model)
    if whole:
        assert model.blocks[-1].cls_only  # type: ignore[union-attr,index]
        model.blocks[-1].cls_only = False  # type: ignore[union-attr,index]
    if recompute:
        recompute_blocks(model)
    dtype = next(model.parameters()).dtype
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(*(x.to(dtype) for x in clouds()))
    out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype))
    return [out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("option", [{}, {"drop_path": 0.5}, {"patch_dropout": 0.5}], ids=str)
def test_pointbert__last_block_without_patches_gives_the_same(
    option: dict[str, Any], recompute: bool
) -> None:
    model = small("tiny", depth=3, heads=2, **option).double()
    found = trained(model, whole=False, recompute=recompute)
    expected = trained(model, whole=True)
    assert len(found) == 1 + len(list(model.parameters()))
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_pointbert__last_block_gives_the_cls_token_alone() -> None:
    model = small("tiny", depth=3)
    tokens = model.tokenise(*clouds())[1]  # type: ignore[operator]
    shapes = [block(tokens).shape for block in model.blocks]  # type: ignore[union-attr]
    assert shapes == [(3, 9, 32), (3, 9, 32), (3, 1, 32)]


def test_pointbert__an_only_block_keeps_its_patches() -> None:
    model = small("tiny", depth=1)
    assert model.patch_features(*clouds())[1].shape == (3, 8, 32)  # type: ignore[operator]
    assert model(*clouds()).shape == (3, 16)


def test_pointbert__in_bf16_recomputed_gradients_are_equal() -> None:
    model = small("tiny", depth=3, heads=2, drop_path=0.5)
    kept = trained(model, whole=False, autocast=True)
    again = trained(model, whole=False, autocast=True, recompute=True)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_pointbert__in_bf16_a_step_is_as_exact_as_with_torchs_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small("tiny", depth=4, dim=64, heads=4, head_dim=16)
    exact = trained(copy.deepcopy(model).double(), whole=True)
    ours = trained(model, whole=False, autocast=True)
    monkeypatch.setattr(attention, "applies", lambda _: False)
    theirs = trained(model, whole=True, autocast=True)

    def error(found: list[Tensor]) -> float:
        squares = [(a.double() - b).square().sum() for a, b in zip(found, exact, strict=True)]
        return float(torch.stack(squares).sum().sqrt())

    assert error(ours) <= 1.3 * error(theirs)


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
        # BatchNorm takes the mean away, and with it a bias before it: its gradient is 0 or noise.
        if norm == "batch" and name.startswith("local.linears") and name.endswith("bias"):
            assert float(parameter.grad.abs().max()) < 1e-5, name
        else:
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


def test_backbone__too_small_a_cloud_is_refused() -> None:
    model = build_backbone("tiny", 16, SMALL)
    xyz, rgb = clouds(points=7)
    with pytest.raises(ValueError, match="8 centroids asked of clouds of 7 points"):
        model(xyz, rgb)


def test_registry__names_are_ordered_by_size_and_options_resolved() -> None:
    assert backbone_names() == ["tiny", *PUBLISHED, "pointnext-s"]
    assert resolve_options("tiny", {"local_dims": [16, 32]})["local_dims"] == (16, 32)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pointbert-32", {}, "did you mean pointbert-32m"),
        ("tiny", {"centroid": 3}, "did you mean centroids"),
        ("tiny", {"centroids": "many"}, "is not a int"),
        ("tiny", {"grouping": "octree"}, "none of 'ball', 'knn'"),
        ("tiny", {"projection": 1}, "is not a bool"),
        ("tiny", {"depth": True}, "is not a int"),
        ("tiny", {"axes": "zyx"}, "none of 'xyz', 'xzy'"),
        ("tiny", {"scan": "lot"}, "none of 'stored', 'strided'"),
        ("tiny", {"drop_path": 1.0}, "drop_path 1.0 is not in"),
        ("uni3d-b", {"trunk": "eva02_base_patch14_44"}, "trunk .* is none of"),
        ("uni3d-b", {"patch_dropout": -0.5}, "patch_dropout -0.5 is not in"),
        ("uni3d-b", {"centroids": 0}, "must be positive"),
        ("uni3d-x", {}, "did you mean uni3d-"),
        ("tiny", {"depth": 0}, "must be positive"),
    ],
)
def test_registry__wrong_name_or_option_is_one_line(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_backbone(name, 16, options)
    assert "\n" not in str(caught.value)


def test_families__of_other_packages_come_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    family = ModuleType("my_family")
    family.PRESETS = {"mine": pointbert.PRESETS["tiny"]}  # type: ignore[attr-defined]
    point = SimpleNamespace(value="my_family", load=lambda: family)
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [point] * (group == "mrd3d.backbones")
    )
    assert backbone_names()[-1] == "mine"
    assert build_backbone("mine", 16, {"depth": 1}).width == 16
    family.PRESETS = {"tiny": pointbert.PRESETS["tiny"]}  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="my_family: its backbone tiny is there already"):
        backbone_names()


def test_families__that_do_not_load_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise ImportError("No module named 'nowhere'")

    point = SimpleNamespace(name="mine", value="my_family", load=load)
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [point] * (group == registry.ENTRY_POINTS)
    )
    with pytest.raises(InputError, match=r"mine = my_family .* does not load \(ImportError: No mo"):
        backbone_names()
