"""Attention by batched products against PyTorch's own, and both against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.backbones import attention
from trainer.backbones.attention import applies, attend


def draw(
    batch: int, tokens: int, heads: int, width: int, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Queries, keys and values, the first two times ``scale``, and a gradient; exact in bf16."""
    generator = torch.Generator().manual_seed(3)
    qkv = torch.randn(batch, tokens, 3 * heads * width, generator=generator)
    qkv[..., : 2 * heads * width] *= scale
    gradient = torch.randn(batch, tokens, heads * width, generator=generator)
    return qkv.bfloat16(), gradient.bfloat16()


def torchs(qkv: Tensor, heads: int) -> Tensor:
    """By ``scaled_dot_product_attention``."""
    query, key, value = torch.unflatten(qkv, 2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def written_out(qkv: Tensor, heads: int) -> Tensor:
    """By two products and a softmax in float32: what autocast makes of the textbook."""
    query, key, value = torch.unflatten(qkv, 2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    scores = query @ key.mT * query.shape[-1] ** -0.5
    shares = scores.float().softmax(-1).to(qkv.dtype)
    mixed: Tensor = shares @ value
    return mixed.transpose(1, 2).flatten(2)


def both_ways(
    mix: Callable[[Tensor, int], Tensor], qkv: Tensor, gradient: Tensor, heads: int
) -> list[Tensor]:
    """Output, and gradients of queries, keys and values, in float64."""
    leaf = qkv.clone().requires_grad_()
    out = mix(leaf, heads)
    out.backward(gradient.to(out.dtype))  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return [out.detach().double(), *torch.unflatten(leaf.grad.double(), 2, (3, -1)).unbind(2)]


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (5, 7, 3, 8), (4, 33, 2, 5)], ids=str)
@pytest.mark.parametrize("scores", [1, 300, 1 << 20])
def test_attend__in_double_precision_equals_torch_in_parts_of_any_size(
    shape: tuple[int, int, int, int], scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "PART_SCORES", scores)
    qkv, gradient = (x.double() for x in draw(*shape))
    expected = both_ways(torchs, qkv, gradient, shape[2])
    monkeypatch.setattr(attention, "applies", lambda _: True)
    for got, want in zip(both_ways(attend, qkv, gradient, shape[2]), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_attend__in_bf16_is_as_exact_as_the_products_written_out(scale: float) -> None:
    qkv, gradient = draw(2, 129, 4, 64, scale)
    exact = both_ways(torchs, qkv.double(), gradient.double(), 4)
    ours = errors(both_ways(attend, qkv, gradient, 4), exact)
    textbook = errors(both_ways(written_out, qkv, gradient, 4), exact)
    for error, usual in zip(ours, textbook, strict=True):
        assert error <= 1.2 * usual


def test_attend__in_bf16_rounds_scores_which_torch_does_not() -> None:
    """Relative error of the whole, for scores with a standard deviation of 1 and of 4."""
    for scale, bound in [(1.0, 0.006), (2.0, 0.016)]:
        qkv, gradient = draw(2, 129, 4, 64, scale)
        exact = both_ways(torchs, qkv.double(), gradient.double(), 4)
        ours = errors(both_ways(attend, qkv, gradient, 4), exact)
        theirs = errors(both_ways(torchs, qkv, gradient, 4), exact)
        assert max(ours) <= bound
        assert all(a <= 7 * b for a, b in zip(ours, theirs, strict=True))


def test_attend__in_single_precision_is_torchs_own() -> None:
    qkv, gradient = (x.float() for x in draw(2, 9, 2, 8))
    ours, theirs = both_ways(attend, qkv, gradient, 2), both_ways(torchs, qkv, gradient, 2)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_attend__strided_input_and_gradient() -> None:
    qkv, gradient = draw(3, 9, 2, 8)
    apart = torch.stack([qkv, qkv], dim=-1)[..., 0]
    wide = torch.stack([gradient, gradient], dim=1)[:, 0]
    ours, theirs = both_ways(attend, apart, wide, 2), both_ways(attend, qkv, gradient, 2)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_attend__without_a_gradient_gives_the_same_and_keeps_nothing() -> None:
    qkv, _ = draw(3, 9, 2, 8)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        plain = attend(qkv, 2)
        assert not kept
        assert torch.equal(attend(qkv.clone().requires_grad_(), 2), plain)
        assert len(kept) == 2


def test_attend__backward_pass_can_be_repeated() -> None:
    qkv, gradient = draw(3, 9, 2, 8)
    leaf = qkv.requires_grad_()
    out = attend(leaf, 2)
    first, again = (torch.autograd.grad(out, leaf, gradient, retain_graph=True) for _ in range(2))
    assert torch.equal(first[0], again[0])


def test_applies__only_to_bf16_on_a_cpu_eagerly() -> None:
    qkv, _ = draw(1, 3, 2, 4)
    assert applies(qkv)
    assert not applies(qkv.float())
    assert not applies(qkv.half())
    assert not applies(qkv.to("meta"))
    compiled = torch.compile(lambda x: x + 1 if applies(x) else x - 1, backend="eager")
    assert torch.equal(compiled(qkv), qkv - 1)
