"""Point-BERT as OpenShape has it, in plain PyTorch, from a CPU size to 171M parameters.

Centroids are the first S points (clouds are in farthest-point order). Each gathers K neighbours
with 9 channels (offset from the centroid, coordinates, colour); a shared MLP and a maximum make
one feature; [centroid, feature] is lifted to a token; a CLS token and pre-norm transformer
blocks follow; the CLS is projected without a final LayerNorm. Position enters through the
centroid alone. Widths, depths, radii and counts follow the table of OpenShape's "PPAT" (Liu et
al., NeurIPS 2023, arXiv 2305.10764).

Shape suffixes: B clouds, N points, S centroids, K neighbours, T = S + 1 tokens, C channels,
D embedding, H heads, E width of one head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.backbones import local_fused
from trainer.backbones.attention import attend
from trainer.backbones.layers import (
    AXES,
    BlockLadder,
    DropPath,
    drop_patches,
    drop_path_rates,
    in_order,
    strided,
)
from trainer.backbones.registry import require_choice, require_share
from trainer.grouping import group_points, prefix_centroids

IN_CHANNELS = 9  # offset, coordinates, colour
HEAD_DIM = 64


@dataclass(frozen=True)
class PointBertOptions:
    """Sizes of one Point-BERT."""

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    local_dims: tuple[int, ...]  # widths of the MLP of a neighbourhood; the last is its feature
    centroids: int
    neighbours: int
    radius: float  # of the ball query
    grouping: Literal["ball", "knn"] = "ball"
    norm: Literal["batch", "layer", "none"] = "batch"  # of the MLP of a neighbourhood
    head_dim: int = HEAD_DIM
    patch_dropout: float = 0.0  # share of the tokens left out in training
    drop_path: float = 0.0  # stochastic depth of the last block; rises linearly up to it
    scan: Literal["stored", "strided"] = "stored"  # which points of a ball count as its first
    axes: Literal["xyz", "xzy"] = "xyz"  # xzy: y and z exchanged, as released models want it
    projection: bool = True  # False: the CLS token is the embedding

    def __post_init__(self) -> None:
        require_choice("grouping", self.grouping, ("ball", "knn"))
        require_choice("norm", self.norm, ("batch", "layer", "none"))
        require_choice("scan", self.scan, ("stored", "strided"))
        require_choice("axes", self.axes, tuple(AXES))
        require_share("patch_dropout", self.patch_dropout)
        require_share("drop_path", self.drop_path)
        sizes = (self.dim, self.depth, self.heads, self.mlp_dim, self.centroids, self.neighbours)
        if not self.local_dims or min(*sizes, *self.local_dims) < 1 or not self.radius > 0:
            raise ValueError("every size must be positive")

    @property
    def least_points(self) -> int:
        """Points that a cloud must have. A ball may hold fewer than K, the nearest K not."""
        return max(self.centroids, self.neighbours if self.grouping == "knn" else 1)

    def build(self, width: int) -> PointBert:
        """A backbone of these sizes whose embeddings are ``width`` wide."""
        return PointBert(self, width)


def _openshape(
    dim: int, depth: int, heads: int, mlp: int, local: int, patches: int, radius: float, k: int
) -> PointBertOptions:
    return PointBertOptions(dim, depth, heads, mlp, (64, 64, local), patches, k, radius)


PRESETS: dict[str, PointBertOptions] = {
    "tiny": PointBertOptions(
        dim=128,
        depth=4,
        heads=2,
        mlp_dim=256,
        local_dims=(32, 64),
        centroids=64,
        neighbours=16,
        radius=0.4,
        grouping="knn",
        # BatchNorm over B*S*K rows takes longer on a CPU than the MLP itself.
        norm="none",
    ),
    "pointbert-5m": _openshape(256, 6, 4, 1024, 96, 64, 0.4, 256),
    "pointbert-13m": _openshape(512, 6, 8, 1024, 128, 64, 0.4, 256),
    "pointbert-26m": _openshape(512, 12, 8, 1024, 128, 128, 0.35, 128),
    "pointbert-32m": _openshape(512, 12, 8, 1536, 256, 384, 0.2, 64),
    "pointbert-72m": _openshape(768, 12, 12, 2304, 256, 512, 0.2, 64),
    "pointbert-171m": _openshape(768, 24, 12, 3072, 256, 512, 0.2, 64),
}


class LocalMlp(nn.Module):
    """Shared MLP over the points of a neighbourhood, then the maximum over them."""

    def __init__(self, dims: tuple[int, ...], norm: str) -> None:
        super().__init__()
        widths = (IN_CHANNELS, *dims)
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        kinds: dict[str, Callable[[int], nn.Module]] = {
            "batch": nn.BatchNorm1d,
            "layer": nn.LayerNorm,
            "none": lambda _: nn.Identity(),
        }
        self.norms = nn.ModuleList(kinds[norm](width) for width in dims)

    def forward(self, grouped_BSKC: Tensor) -> Tensor:
        """(B, S, last width)."""
        linears, norms = list(self.linears), list(self.norms)
        if local_fused.applies(grouped_BSKC, norms):
            return local_fused.local_mlp(grouped_BSKC, linears, norms)
        batch, centroids, neighbours, channels = grouped_BSKC.shape
        rows = grouped_BSKC.reshape(-1, channels)
        last = len(self.linears) - 1
        for place, (linear, norm) in enumerate(zip(linears, norms, strict=True)):
            rows = norm(linear(rows))
            if place < last:
                rows = F.relu(rows)
        # max with indices: on the CPU its backward is twice as fast as that of amax. It changes
        # places with the last ReLU, which then has a fraction of the numbers to treat.
        return F.relu(rows.view(batch, centroids, neighbours, -1).max(dim=2).values)


class Attention(nn.Module):
    """Multi-head self-attention with heads of a fixed width."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)

    def forward(self, tokens_BTC: Tensor) -> Tensor:
        """(B, T, C)."""
        mixed_BTC: Tensor = self.out(attend(self.qkv(tokens_BTC), self.heads))
        return mixed_BTC

    def first(self, tokens_BTC: Tensor) -> Tensor:
        """(B, 1, C) the same of the first token alone.

        A single query needs no keys and values of the others: q (W x) = (q W) x, and the tokens
        can be mixed before the values are made of them. Products of H rows a cloud stand for two
        of T rows that are as wide as the tokens.
        """
        weight_3HEC = torch.unflatten(self.qkv.weight, 0, (3, self.heads, -1))
        query_HEC, key_HEC, value_HEC = weight_3HEC.unbind()
        query_HBE = tokens_BTC[:, 0] @ query_HEC.mT
        asked_BHC = (query_HBE @ key_HEC).transpose(0, 1) * key_HEC.shape[1] ** -0.5
        shares_BHT = (asked_BHC @ tokens_BTC.mT).softmax(-1)
        mixed_HBC = (shares_BHT @ tokens_BTC).transpose(0, 1)
        mixed_BHE = (mixed_HBC @ value_HEC.mT).transpose(0, 1)
        joined_B1C: Tensor = self.out(mixed_BHE.flatten(1))[:, None]
        return joined_B1C


class Block(nn.Module):
    """Pre-norm transformer block; with ``cls_only`` it computes the CLS token alone."""

    def __init__(
        self, options: PointBertOptions, drop_path: float, *, cls_only: bool = False
    ) -> None:
        super().__init__()
        self.cls_only = cls_only
        self.drop_path = DropPath(drop_path)
        self.norm_attention = nn.LayerNorm(options.dim)
        self.attention = Attention(options.dim, options.heads, options.head_dim)
        self.norm_mlp = nn.LayerNorm(options.dim)
        self.mlp = nn.Sequential(
            nn.Linear(options.dim, options.mlp_dim),
            nn.GELU(),
            nn.Linear(options.mlp_dim, options.dim),
        )

    def forward(self, tokens_BTC: Tensor) -> Tensor:
        """(B, T, C), with ``cls_only`` (B, 1, C)."""
        normed_BTC = self.norm_attention(tokens_BTC)
        if self.cls_only:
            mixed_BTC, tokens_BTC = self.attention.first(normed_BTC), tokens_BTC[:, :1]
        else:
            mixed_BTC = self.attention(normed_BTC)
        tokens_BTC = tokens_BTC + self.drop_path(mixed_BTC)
        added_BTC: Tensor = self.drop_path(self.mlp(self.norm_mlp(tokens_BTC)))
        return tokens_BTC + added_BTC


class PointBert(BlockLadder):
    """Point-BERT encoder; ``PRESETS`` has the sizes."""

    after = ("project.",)

    def __init__(self, options: PointBertOptions, width: int) -> None:
        super().__init__()
        if not options.projection and options.dim != width:
            raise ValueError(f"without projection, dim {options.dim} must be the width {width}")
        self.options, self.width, self.centroids = options, width, options.centroids
        self.tokens = options.centroids + 1
        self.local = LocalMlp(tuple(options.local_dims), options.norm)
        self.lift = nn.Linear(3 + options.local_dims[-1], options.dim)
        self.lift_norm = nn.LayerNorm(options.dim)
        self.cls_token = nn.Parameter(torch.randn(options.dim))
        rates = drop_path_rates(options.drop_path, options.depth)
        self.blocks = nn.ModuleList(Block(options, rate) for rate in rates[:-1])
        # Nothing depends on what the last block makes of the patches. An only block stays whole:
        # ``patch_features`` wants its patches.
        self.blocks.append(Block(options, rates[-1], cls_only=options.depth > 1))
        self.project: nn.Module = nn.Identity()
        if options.projection:
            self.project = nn.Linear(options.dim, width)

    def no_decay(self) -> frozenset[str]:
        """The CLS token."""
        return frozenset({"cls_token"})

    def forward(self, xyz_BN3: Tensor, rgb_BN3: Tensor) -> Tensor:
        """(B, D) embeddings, not normalised.

        Raises ``ValueError`` when the clouds have fewer points than centroids or neighbours.
        """
        _, tokens_BTC = self.tokenise(xyz_BN3, rgb_BN3)
        for block in self.blocks:
            tokens_BTC = block(tokens_BTC)
        embedding: Tensor = self.project(tokens_BTC[:, 0])
        return embedding

    def tokenise(self, xyz_BN3: Tensor, rgb_BN3: Tensor) -> tuple[Tensor, Tensor]:
        """Centroids (B, S, 3) and what the blocks are given, CLS first (B, 1 + S, C)."""
        options = self.options
        xyz_BN3 = in_order(xyz_BN3, options.axes)
        centroids_BS3 = prefix_centroids(xyz_BN3, self.centroids)
        points_BN6 = torch.cat([xyz_BN3, rgb_BN3], dim=-1)
        if options.scan == "strided":
            points_BN6 = strided(points_BN6)
        radius = options.radius if options.grouping == "ball" else None
        points_BSK9 = group_points(points_BN6, centroids_BS3, options.neighbours, radius)
        local_BSC = self.local(points_BSK9)
        tokens_BSC = self.lift_norm(self.lift(torch.cat([centroids_BS3, local_BSC], dim=-1)))
        if self.training and options.patch_dropout > 0:
            tokens_BSC = drop_patches(tokens_BSC, options.patch_dropout)
        cls_B1C = self.cls_token.to(tokens_BSC.dtype).expand(tokens_BSC.shape[0], 1, -1)
        return centroids_BS3, torch.cat([cls_B1C, tokens_BSC], dim=1)
