"""Self-attention in bfloat16 on a CPU, forward and backward, by plain batched products.

PyTorch's own (``scaled_dot_product_attention``) walks through small tiles there, at a third of the
rate of the core's matrix product. Here the scores of a few clouds at a time are one batched
product, small enough for a core's caches. The shares are kept for the backward pass (2 HT^2 bytes
a cloud and block, 2.4 MB of the 32M); ``train.recompute`` keeps those of one block only.

Scores, shares and their gradients are rounded to bfloat16 between the products, all sums are
float32. PyTorch's own rounds the shares, not the scores; ``tests/trainer/test_attention.py`` holds
the difference against float64. In float32 there is nothing to gain: the products are the time.

Shape suffixes: B clouds, T tokens, F = 3HE queries, keys and values side by side, H heads, E width
of one head; G = BH of the clouds of a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

PART_SCORES = 1 << 20  # scores worked on at a time, 2 bytes each; at least those of one cloud


def attend(qkv_BTF: Tensor, heads: int) -> Tensor:
    """(B, T, HE) values mixed by softmax(q k^T / sqrt(E)), from ``qkv`` as (3, H, E)."""
    if applies(qkv_BTF):
        mixed: Tensor = _Attend.apply(qkv_BTF, heads)
        return mixed
    batch, tokens, _ = qkv_BTF.shape
    query, key, value = qkv_BTF.view(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    mixed_BHTE = F.scaled_dot_product_attention(query, key, value)
    return mixed_BHTE.transpose(1, 2).reshape(batch, tokens, -1)


def applies(qkv_BTF: Tensor) -> bool:
    """Whether the products are taken: bfloat16 on a CPU, eagerly."""
    eager = not torch.compiler.is_compiling()
    return qkv_BTF.is_cpu and qkv_BTF.dtype == torch.bfloat16 and eager


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_BTF: Tensor, heads: int) -> Tensor:
        batch, tokens, width = qkv_BTF.shape
        mixed_BTHE = qkv_BTF.new_empty(batch, tokens, heads, width // (3 * heads))
        keep = ctx.needs_input_grad[0]
        count = batch if keep else _clouds(batch, tokens, heads)
        shares_GTT = qkv_BTF.new_empty(count * heads, tokens, tokens)
        for part, (query, key, value) in _parts(qkv_BTF, heads):
            place = slice(part.start * heads, part.stop * heads) if keep else slice(len(query))
            shares = shares_GTT[place]
            scale = query.shape[-1] ** -0.5  # goes onto the float32 sums
            torch.baddbmm(shares, query, key.mT, beta=0, alpha=scale, out=shares)
            torch.softmax(shares, -1, out=shares)
            torch.bmm(shares, value, out=query)  # which is not needed again
            mixed_BTHE[part] = torch.unflatten(query, 0, (-1, heads)).transpose(1, 2)
        if keep:
            ctx.save_for_backward(qkv_BTF, shares_GTT)
        ctx.heads = heads
        return mixed_BTHE.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BTC: Tensor) -> tuple[Tensor, None]:
        qkv_BTF, shares_GTT = ctx.saved_tensors
        heads = ctx.heads
        out_BTF = torch.empty_like(qkv_BTF, memory_format=torch.contiguous_format)
        out_BT3HE = torch.unflatten(out_BTF, 2, (3, heads, -1))
        gradient_BTHE = torch.unflatten(gradient_BTC, 2, (heads, -1))
        rooms: tuple[Tensor, Tensor, Tensor] | None = None
        for part, (query, key, value) in _parts(qkv_BTF, heads):
            shares = shares_GTT[part.start * heads : part.stop * heads]
            if rooms is None:  # the first part is the largest
                found = query.new_empty(3, *query.shape)
                rooms = found, torch.empty_like(query), torch.empty_like(shares)
            size, scale = len(query), query.shape[-1] ** -0.5
            (d_query, d_key, d_value) = found = rooms[0][:, :size]
            gradient, d_scores = rooms[1][:size], rooms[2][:size]
            torch.unflatten(gradient, 0, (-1, heads)).copy_(gradient_BTHE[part].transpose(1, 2))
            torch.bmm(shares.mT, gradient, out=d_value)
            torch.bmm(gradient, value.mT, out=d_scores)
            torch.ops.aten._softmax_backward_data.out(
                d_scores, shares, -1, shares.dtype, grad_input=d_scores
            )
            torch.baddbmm(d_query, d_scores, key, beta=0, alpha=scale, out=d_query)
            torch.baddbmm(d_key, d_scores.mT, query, beta=0, alpha=scale, out=d_key)
            out_BT3HE[part] = torch.unflatten(found, 1, (-1, heads)).permute(1, 3, 0, 2, 4)
        return out_BTF, None


def _clouds(batch: int, tokens: int, heads: int) -> int:
    """Clouds in a part."""
    return min(batch, max(1, PART_SCORES // (heads * tokens**2)))


def _parts(qkv_BTF: Tensor, heads: int) -> Iterator[tuple[slice, Tensor]]:
    """Some clouds at a time, and copies (3, G, T, E) of theirs.

    In the same room for all parts: memory that is new to the process costs more than the copy.
    """
    batch, tokens, _ = qkv_BTF.shape
    size = _clouds(batch, tokens, heads)
    qkv_B3HTE = torch.unflatten(qkv_BTF, 2, (3, heads, -1)).permute(0, 2, 3, 1, 4)
    copy_3GTE = qkv_BTF.new_empty(3, size * heads, tokens, qkv_B3HTE.shape[-1])
    for start in range(0, batch, size):
        part = slice(start, min(start + size, batch))
        some_3GTE = copy_3GTE[:, : (part.stop - start) * heads]
        torch.unflatten(some_3GTE, 1, (-1, heads)).copy_(qkv_B3HTE[part].transpose(0, 1))
        yield part, some_3GTE
