"""Uni3D: a Vision Transformer of EVA on tokens of a point cloud, from 6M to 1B parameters.

Centroids are the first S points (clouds are in farthest-point order). Each gathers its K nearest
neighbours with 6 channels (offset from the centroid, colour); a small PointNet makes one feature;
a linear layer lifts it to a token; an MLP of the centroid is added as its position. A CLS token
goes before them, a part of the tokens is left out in training, and the blocks of a timm EVA
model follow, without its rotary embedding. The CLS token is normalised and projected. After Zhou
et al., ICLR 2024 (arXiv 2310.06773) and their published code.

Shape suffixes: B clouds, N points, S centroids, K neighbours, T tokens, C channels, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.common import InputError
from trainer.backbones.layers import AXES, BlockLadder, drop_patches, in_order
from trainer.backbones.registry import require_choice, require_share
from trainer.grouping import group_points, prefix_centroids

POSITION_DIM = 128
FIRST_DIMS = (128, 256)  # of the PointNet of a neighbourhood
NOISE = ("patch_embed.", "pos_embed", "cls_token", "head.", "rope.", "norm.", "mask_token")


@dataclass(frozen=True)
class Uni3dOptions:
    """One Uni3D; widths, depth and heads are those of the trunk."""

    trunk: str  # name of an EVA model of timm
    depth: int = 0  # number of blocks; 0: as many as the trunk has
    local_dim: int = 512  # feature of a neighbourhood
    centroids: int = 512
    neighbours: int = 64
    patch_dropout: float = 0.0  # share of the tokens left out in training
    drop_path: float = 0.0  # stochastic depth of the last block; rises linearly up to it
    axes: Literal["xyz", "xzy"] = "xyz"

    def __post_init__(self) -> None:
        require_choice("trunk", self.trunk, TRUNKS)
        require_choice("axes", self.axes, tuple(AXES))
        require_share("patch_dropout", self.patch_dropout)
        require_share("drop_path", self.drop_path)
        if min(self.local_dim, self.centroids, self.neighbours) < 1 or self.depth < 0:
            raise ValueError("every size must be positive (depth 0: that of the trunk)")

    @property
    def least_points(self) -> int:
        """Points that a cloud must have."""
        return max(self.centroids, self.neighbours)

    def build(self, width: int) -> Uni3d:
        """A backbone of these sizes whose embeddings are ``width`` wide."""
        return Uni3d(self, width)


TRUNKS = (
    "eva02_tiny_patch14_224",
    "eva02_small_patch14_224",
    "eva02_base_patch14_448",
    "eva02_large_patch14_448",
    "eva_giant_patch14_560",
)
PRESETS: dict[str, Uni3dOptions] = {
    f"uni3d-{size}": Uni3dOptions(trunk)
    for size, trunk in zip(("ti", "s", "b", "l", "g"), TRUNKS, strict=True)
}


class Tokenizer(nn.Module):
    """PointNet of a neighbourhood: two layers, the maximum joined to each point, two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden, local = FIRST_DIMS
        self.first = nn.Linear(6, hidden)
        self.first_norm = nn.BatchNorm1d(hidden)
        self.second = nn.Linear(hidden, local)
        self.third = nn.Linear(2 * local, width)  # [maximum, point]
        self.third_norm = nn.BatchNorm1d(width)
        self.fourth = nn.Linear(width, width)

    def forward(self, grouped_BSK6: Tensor) -> Tensor:
        """(B, S, width)."""
        batch, centroids, neighbours, _ = grouped_BSK6.shape
        rows = F.relu(self.first_norm(self.first(grouped_BSK6.reshape(-1, 6))))
        local_GKC = self.second(rows).view(batch * centroids, neighbours, -1)
        top_G1C = local_GKC.max(dim=1, keepdim=True).values
        # A linear layer of a concatenation is a sum: the half that all neighbours share is
        # computed once for all of them.
        width = local_GKC.shape[-1]
        shared, own = self.third.weight[:, :width], self.third.weight[:, width:]
        joined = F.linear(local_GKC, own) + F.linear(top_G1C, shared, self.third.bias)
        rows = F.relu(self.third_norm(joined.flatten(0, 1)))
        features: Tensor = self.fourth(rows).view(batch, centroids, neighbours, -1)
        return features.max(dim=2).values


class Uni3d(BlockLadder):
    """Uni3D encoder; ``PRESETS`` has the sizes."""

    after = ("fc_norm.", "project.")

    def __init__(self, options: Uni3dOptions, width: int) -> None:
        super().__init__()
        self.options, self.width, self.centroids = options, width, options.centroids
        self.tokens = options.centroids + 1
        trunk = _timm_trunk(options)
        dim = trunk.embed_dim
        self.tokenizer = Tokenizer(options.local_dim)
        self.lift = nn.Linear(options.local_dim, dim)
        self.position = nn.Sequential(
            nn.Linear(3, POSITION_DIM), nn.GELU(), nn.Linear(POSITION_DIM, dim)
        )
        self.cls_token = nn.Parameter(torch.zeros(dim))
        self.cls_position = nn.Parameter(torch.randn(dim))
        self.blocks = trunk.blocks
        self.fc_norm = trunk.fc_norm
        self.project = nn.Linear(dim, width)

    def layer_of(self, name: str) -> int:
        """Place of a parameter in the ladder.

        What the published recipe trains from scratch (tokeniser, position, CLS, projection)
        learns at the full rate, as there; only the trunk, which it takes from images, decays.
        """
        return super().layer_of(name) if name.startswith("blocks.") else self.n_layers - 1

    def no_decay(self) -> frozenset[str]:
        """The CLS token and its position."""
        return frozenset({"cls_token", "cls_position"})

    def forward(self, xyz_BN3: Tensor, rgb_BN3: Tensor) -> Tensor:
        """(B, D) embeddings, not normalised.

        Raises ``ValueError`` when the clouds have fewer points than centroids or neighbours.
        """
        _, tokens_BTC = self.tokenise(xyz_BN3, rgb_BN3)
        for block in self.blocks:
            tokens_BTC = block(tokens_BTC)
        embedding: Tensor = self.project(self.fc_norm(tokens_BTC[:, 0]))
        return embedding

    def tokenise(self, xyz_BN3: Tensor, rgb_BN3: Tensor) -> tuple[Tensor, Tensor]:
        """Centroids (B, S, 3) and what the blocks are given, CLS first (B, 1 + S, C)."""
        options = self.options
        xyz_BN3 = in_order(xyz_BN3, options.axes)
        centroids_BS3 = prefix_centroids(xyz_BN3, self.centroids)
        points_BN6 = torch.cat([xyz_BN3, rgb_BN3], dim=-1)
        points_BSK9 = group_points(points_BN6, centroids_BS3, options.neighbours, None)
        grouped_BSK6 = torch.cat([points_BSK9[..., :3], points_BSK9[..., 6:]], dim=-1)
        tokens_BSC = self.lift(self.tokenizer(grouped_BSK6)) + self.position(centroids_BS3)
        if self.training and options.patch_dropout > 0:
            tokens_BSC = drop_patches(tokens_BSC, options.patch_dropout)
        cls_C = (self.cls_token + self.cls_position).to(tokens_BSC.dtype)
        cls_B1C = cls_C.expand(tokens_BSC.shape[0], 1, -1)
        return centroids_BS3, torch.cat([cls_B1C, tokens_BSC], dim=1)

    def load_trunk(self, path: Path) -> None:
        """Take the blocks and the last norm from weights of timm's model of the same name.

        The published recipe begins with a trunk trained on images. Raises ``InputError`` when
        the file cannot be read or is of another model.
        """
        from trainer.released import read_weights

        weights = read_weights(path)
        kept = {k: v for k, v in weights.items() if not k.startswith(NOISE)}
        own = {n: v for n, v in self.state_dict().items() if n.startswith(("blocks.", "fc_norm."))}
        if set(kept) != set(own) or any(kept[n].shape != own[n].shape for n in own):
            raise InputError(
                f"model.trunk {path}: not weights of timm's {self.options.trunk}; "
                "give the model.safetensors of that model"
            )
        self.load_state_dict(kept, strict=False)


def _timm_trunk(options: Uni3dOptions) -> Any:
    import timm  # takes a second or more

    sizes: dict[str, Any] = {"depth": options.depth} if options.depth else {}
    return timm.create_model(
        options.trunk,
        pretrained=False,
        num_classes=0,
        drop_path_rate=options.drop_path,
        **sizes,
    )
