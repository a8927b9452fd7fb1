"""What several backbones share: stochastic depth, patch dropout, the order of a neighbour scan."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.common import InputError
from trainer.backbones.registry import Backbone

# Released models know clouds whose y and z are exchanged (a reflection, kept for them alone).
AXES = {"xyz": (0, 1, 2), "xzy": (0, 2, 1)}


def in_order(xyz_BN3: Tensor, axes: str) -> Tensor:
    """(B, N, 3) with the coordinates in the order of ``axes``, one of ``AXES``."""
    if axes == "xyz":
        return xyz_BN3
    # Not by a list of indices, which is copied to the device while everything waits.
    return torch.stack([xyz_BN3[..., axis] for axis in AXES[axes]], dim=-1)


class DropPath(nn.Module):
    """Drop a residual branch for whole clouds, with probability ``rate``, in training.

    What stays is divided by 1 - rate (stochastic depth, Huang et al., ECCV 2016).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch_BTC: Tensor) -> Tensor:
        """(B, T, C)."""
        if not self.training or self.rate == 0:
            return branch_BTC
        keep = 1 - self.rate
        drawn_B11 = torch.rand(len(branch_BTC), 1, 1, device=branch_BTC.device)
        return branch_BTC * ((drawn_B11 < keep) / keep).to(branch_BTC.dtype)


def drop_path_rates(largest: float, depth: int) -> list[float]:
    """Rates that rise linearly from 0 in the first block to ``largest`` in the last."""
    return [largest * block / max(depth - 1, 1) for block in range(depth)]


def drop_patches(tokens_BSC: Tensor, share: float) -> Tensor:
    """Keep a random part of each cloud's tokens: 1 - ``share``, rounded down, at least one.

    (arXiv 2212.00794.) The order of the tokens is not kept.
    """
    keep = max(1, int(tokens_BSC.shape[1] * (1 - share)))
    drawn = torch.rand(tokens_BSC.shape[:2], device=tokens_BSC.device)
    index_BK1 = drawn.topk(keep, dim=1).indices[..., None]
    return tokens_BSC.gather(1, index_BK1.expand(-1, -1, tokens_BSC.shape[-1]))


def strided(values_BNC: Tensor) -> Tensor:
    """The same points in an order that looks drawn by lot: every m-th, around and around.

    m is the number coprime to N next to N / golden ratio. Clouds come in farthest-point order, so
    "the first points inside the radius" would be spread evenly; models that learnt on clouds in
    random order know random ones. A permutation by arithmetic needs no state and no random
    numbers.
    """
    n_points = values_BNC.shape[1]
    step = max(1, round(n_points * 0.6180339887))
    while math.gcd(step, n_points) != 1:
        step += 1
    order_N = torch.arange(n_points, device=values_BNC.device) * step % n_points
    return values_BNC[:, order_N]


class BlockLadder(Backbone):
    """A backbone with a trunk in ``blocks``: what stands before it is layer 0 of its ladder."""

    blocks: nn.ModuleList
    after: tuple[str, ...] = ()  # beginnings of the names of what stands behind the trunk

    @abstractmethod
    def tokenise(self, xyz_BN3: Tensor, rgb_BN3: Tensor) -> tuple[Tensor, Tensor]:
        """Centroids (B, S, 3) and what the blocks are given, CLS first (B, 1 + S, C)."""

    def patch_features(self, xyz_BN3: Tensor, rgb_BN3: Tensor) -> tuple[Tensor, Tensor]:
        """Centroids (B, S, 3) and features (B, S, C') of the patches around them.

        Those after a third, two thirds and all but one of the blocks, each normalised, joined. The
        last block's are left out: the embedding does not depend on what becomes of its patches.
        """
        depth = len(self.blocks)
        last = max(depth - 2, 0)
        wanted = sorted({min(depth // 3, last), min(2 * depth // 3, last), last})
        centroids_BS3, tokens_BTC = self.tokenise(xyz_BN3, rgb_BN3)
        kept = []
        for place, block in enumerate(self.blocks[: last + 1]):
            tokens_BTC = block(tokens_BTC)
            if place in wanted:
                kept.append(F.layer_norm(tokens_BTC[:, 1:], tokens_BTC.shape[-1:]))
        return centroids_BS3, torch.cat(kept, dim=-1)

    @property
    def n_layers(self) -> int:
        """Input, blocks, output."""
        return len(self.blocks) + 2

    def layer_of(self, name: str) -> int:
        """Place of a parameter in the ladder."""
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return self.n_layers - 1 if name.startswith(self.after) else 0


def recompute_blocks(backbone: Backbone) -> None:
    """Have every block keep its input only, and run again when gradients are wanted. In place.

    A quarter more arithmetic or a third, for activations of one block instead of all (Chen et
    al., arXiv 1604.06174); the gradients are the same. Raises ``InputError`` for a backbone
    without ``blocks``.
    """
    if not isinstance(backbone, BlockLadder):
        raise InputError(
            "train.recompute: this backbone has no blocks; leave it out, and lower "
            "train.micro_batch where memory is short"
        )
    for block in backbone.blocks:
        # The instance alone: names of parameters stay as they are.
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
