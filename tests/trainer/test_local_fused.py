"""The MLP of neighbourhoods by identities against the modules that it stands for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from trainer.backbones import local_fused
from trainer.backbones.pointbert import LocalMlp


def draw(batch: int, centroids: int, neighbours: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, centroids, neighbours, 9, generator=generator)


def make(dims: tuple[int, ...], seed: int = 0) -> LocalMlp:
    """Random scales of both signs, 0 too but for the last layer; statistics of an earlier life."""
    torch.manual_seed(seed)
    mlp = LocalMlp(dims, "batch").double()
    norms = [norm for norm in mlp.norms if isinstance(norm, nn.BatchNorm1d)]
    assert len(norms) == len(dims)
    for norm in norms:
        for value in (norm.weight, norm.bias, norm.running_mean):
            assert isinstance(value, Tensor)
            torch.nn.init.normal_(value)
    with torch.no_grad():
        for norm in norms[:-1]:
            norm.weight[1] = 0.0
    return mlp


def both(
    mlp: LocalMlp, grouped: Tensor, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Tensor], list[Tensor]]:
    """Output, gradients and buffers, by identities and by modules."""
    found = []
    for fused in (True, False):
        model = copy.deepcopy(mlp)
        with monkeypatch.context() as patch:
            if not fused:
                patch.setattr(local_fused, "applies", lambda *_: False)
            out = model(grouped)
        generator = torch.Generator().manual_seed(3)
        out.backward(torch.randn(out.shape, generator=generator, dtype=out.dtype))
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert len(gradients) == len(list(model.parameters()))
        found.append([out.detach(), *gradients, *model.buffers()])
    return found[0], found[1]


@pytest.mark.parametrize("dims", [(5,), (12, 7), (16, 14, 12)], ids=str)
@pytest.mark.parametrize("block", [1, 24, 10_000])
def test_local_mlp__equals_the_modules(
    dims: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_fused, "BLOCK_ROWS", block)
    # Narrow layers could give equal rows, of which either may win.
    grouped = draw(3, 11, 6).double() * 2 + 1
    assert local_fused.applies(grouped, list(make(dims).norms))
    ours, theirs = both(make(dims), grouped, monkeypatch)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_local_mlp__single_precision_is_as_exact_as_that_of_the_modules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Offsets are small against coordinates, and colours nearly constant.
    grouped = draw(4, 32, 16) * torch.tensor([0.05] * 3 + [0.5] * 3 + [1e-3] * 3) + 0.4
    mlp = make((16, 16, 24)).float()
    exact, _ = both(copy.deepcopy(mlp).double(), grouped.double(), monkeypatch)
    ours, theirs = both(mlp, grouped, monkeypatch)
    for got, other, want in zip(ours, theirs, exact, strict=True):
        error, usual = (got - want).abs().max(), (other - want).abs().max()
        assert error <= 3 * usual + 1e-5 * want.abs().max() + 1e-7


def test_local_mlp__padded_neighbourhoods_and_ties_keep_the_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grouped = draw(2, 5, 4).double()
    grouped[:, :, 2:] = grouped[:, :, :1]  # as a ball with two points is padded
    ours, theirs = both(make((14, 6)), grouped, monkeypatch)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_local_mlp__under_autocast_it_stays_in_single_precision() -> None:
    grouped = draw(2, 5, 4)
    mlp = make((14, 6)).float()
    expected = copy.deepcopy(mlp)(grouped)
    with torch.autocast("cpu", torch.bfloat16):
        found = mlp(grouped)
    assert torch.equal(found, expected)


def test_local_mlp__under_autocast_gradients_are_the_same() -> None:
    found = []
    for autocast in (False, True):
        mlp = make((16, 16, 24)).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = mlp(draw(4, 32, 16))
            generator = torch.Generator().manual_seed(3)
            out.backward(torch.randn(out.shape, generator=generator))
        gradients = [p.grad for p in mlp.parameters() if p.grad is not None]
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        found.append(gradients)
    for single, low in zip(*found, strict=True):
        assert torch.equal(single, low)


def test_local_mlp__a_second_backward_pass_is_refused_and_not_wrong() -> None:
    out = make((8, 7, 6)).float()(draw(2, 5, 4))
    out.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_local_mlp__weights_that_have_changed_since_are_refused() -> None:
    mlp = make((8, 7, 6)).float()
    out = mlp(draw(2, 5, 4))
    with torch.no_grad():
        next(mlp.linears[1].parameters()).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_best__is_the_first_of_the_largest(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-9, -2, (6 * 5, 7), generator=generator).to(dtype)  # with ties
    best, place = local_fused._best(rows, 5)
    grouped = rows.view(6, 5, 7)
    assert torch.equal(best, grouped.amax(1))
    assert torch.equal(place, (grouped == best[:, None]).int().argmax(1))


def test_applies__only_to_batch_norm_in_training_on_a_cpu() -> None:
    grouped = draw(2, 5, 4)
    mlp = make((4,)).float()
    norms = list(mlp.norms)
    assert local_fused.applies(grouped, norms)
    assert not local_fused.applies(grouped.half(), norms)
    assert not local_fused.applies(grouped.to("meta"), norms)
    assert not local_fused.applies(grouped.clone().requires_grad_(), norms)
    assert not local_fused.applies(grouped[:1, :1, :1], norms)
    assert not local_fused.applies(grouped, list(mlp.eval().norms))
    assert not local_fused.applies(grouped, list(LocalMlp((4,), "layer").norms))
