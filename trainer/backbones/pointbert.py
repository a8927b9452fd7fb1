"""Point-BERT as OpenShape has it, in plain PyTorch, from a CPU size to 72M parameters.

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

from trainer.backbones.registry import Backbone
from trainer.grouping import ball_query, gather_points, knn, prefix_centroids

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

    def __post_init__(self) -> None:
        if self.grouping not in ("ball", "knn"):
            raise ValueError(f"grouping {self.grouping!r} is neither 'ball' nor 'knn'")
        if self.norm not in ("batch", "layer", "none"):
            raise ValueError(f"norm {self.norm!r} is none of 'batch', 'layer', 'none'")
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"patch_dropout {self.patch_dropout} is not in [0, 1)")
        sizes = (self.dim, self.depth, self.heads, self.mlp_dim, self.centroids, self.neighbours)
        if min(*sizes, *self.local_dims) < 1 or self.radius <= 0:
            raise ValueError("every size must be positive")


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
        batch, centroids, neighbours, channels = grouped_BSKC.shape
        rows = grouped_BSKC.reshape(-1, channels)
        for linear, norm in zip(self.linears, self.norms, strict=True):
            rows = F.relu(norm(linear(rows)))
        # max with indices: on the CPU its backward is twice as fast as that of amax.
        return rows.view(batch, centroids, neighbours, -1).max(dim=2).values


class Attention(nn.Module):
    """Multi-head self-attention with heads of a fixed width."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)

    def forward(self, tokens_BTC: Tensor) -> Tensor:
        """(B, T, C)."""
        batch, tokens, _ = tokens_BTC.shape
        qkv = self.qkv(tokens_BTC).view(batch, tokens, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, E)
        mixed = F.scaled_dot_product_attention(query, key, value)
        joined: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return joined


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, options: PointBertOptions) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(options.dim)
        self.attention = Attention(options.dim, options.heads, options.head_dim)
        self.norm_mlp = nn.LayerNorm(options.dim)
        self.mlp = nn.Sequential(
            nn.Linear(options.dim, options.mlp_dim),
            nn.GELU(),
            nn.Linear(options.mlp_dim, options.dim),
        )

    def forward(self, tokens_BTC: Tensor) -> Tensor:
        """(B, T, C)."""
        tokens_BTC = tokens_BTC + self.attention(self.norm_attention(tokens_BTC))
        added: Tensor = self.mlp(self.norm_mlp(tokens_BTC))
        return tokens_BTC + added


class PointBert(Backbone):
    """Point-BERT encoder; ``PRESETS`` has the sizes."""

    def __init__(self, options: PointBertOptions, width: int) -> None:
        super().__init__()
        self.options, self.width, self.centroids = options, width, options.centroids
        self.local = LocalMlp(tuple(options.local_dims), options.norm)
        self.lift = nn.Linear(3 + options.local_dims[-1], options.dim)
        self.lift_norm = nn.LayerNorm(options.dim)
        self.cls_token = nn.Parameter(torch.randn(options.dim))
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.depth))
        self.project = nn.Linear(options.dim, width)

    def group(self, xyz_BN3: Tensor, centroids_BS3: Tensor) -> Tensor:
        """(B, S, K) neighbour indices."""
        options = self.options
        if options.grouping == "knn":
            return knn(centroids_BS3, xyz_BN3, options.neighbours)
        return ball_query(centroids_BS3, xyz_BN3, options.radius, options.neighbours)

    def forward(self, xyz_BN3: Tensor, rgb_BN3: Tensor) -> Tensor:
        """(B, D) embeddings, not normalised.

        Raises ``ValueError`` when the clouds have fewer points than centroids or neighbours.
        """
        centroids_BS3 = prefix_centroids(xyz_BN3, self.centroids)
        index_BSK = self.group(xyz_BN3, centroids_BS3)
        points_BSK6 = gather_points(torch.cat([xyz_BN3, rgb_BN3], dim=-1), index_BSK)
        offset_BSK3 = points_BSK6[..., :3] - centroids_BS3[:, :, None]
        local_BSC = self.local(torch.cat([offset_BSK3, points_BSK6], dim=-1))
        tokens_BSC = self.lift_norm(self.lift(torch.cat([centroids_BS3, local_BSC], dim=-1)))
        if self.training and self.options.patch_dropout > 0:
            tokens_BSC = self._drop_patches(tokens_BSC)
        cls_B1C = self.cls_token.to(tokens_BSC.dtype).expand(len(tokens_BSC), 1, -1)
        tokens_BTC = torch.cat([cls_B1C, tokens_BSC], dim=1)
        for block in self.blocks:
            tokens_BTC = block(tokens_BTC)
        embedding: Tensor = self.project(tokens_BTC[:, 0])
        return embedding

    def _drop_patches(self, tokens_BSC: Tensor) -> Tensor:
        keep = max(1, round(tokens_BSC.shape[1] * (1 - self.options.patch_dropout)))
        drawn = torch.rand(tokens_BSC.shape[:2], device=tokens_BSC.device)
        index_BK1 = drawn.topk(keep, dim=1).indices[..., None]
        return tokens_BSC.gather(1, index_BK1.expand(-1, -1, tokens_BSC.shape[-1]))
