"""A plain PyTorch trainer of the 32M Point-BERT: the baseline of ``bench_train``.

Written from the published description, the way the public trainers of this architecture work when
no compiled 3D extension is at hand: farthest-point sampling as a loop inside the step, the ball
query by sorting a full (B, S, N) table of indices, channels-first 1x1 convolutions with BatchNorm,
attention with its softmax written out, float32 throughout. It shares no code with ``trainer``; its
outputs and losses are tested against those of ``trainer`` on equal weights.

Shape suffixes: B clouds, N points, S centroids, K neighbours, T = S + 1 tokens, C channels,
D embedding, H heads.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class PlainSizes:
    """Sizes of a Point-BERT; the defaults are those of the 32M."""

    dim: int = 512
    depth: int = 12
    heads: int = 8
    head_dim: int = 64
    mlp_dim: int = 1536
    local_dims: tuple[int, ...] = (64, 64, 256)
    centroids: int = 384
    neighbours: int = 64
    radius: float = 0.2


def sample_farthest(xyz_BN3: Tensor, count: int) -> Tensor:
    """(B, count) indices of a farthest-point sample that begins at point 0."""
    rows_B = torch.arange(len(xyz_BN3), device=xyz_BN3.device)
    chosen_BS = torch.zeros(len(xyz_BN3), count, dtype=torch.long, device=xyz_BN3.device)
    nearest_BN = torch.full(xyz_BN3.shape[:2], 1e10, device=xyz_BN3.device)
    latest_B = chosen_BS[:, 0]
    for place in range(1, count):
        centre_B13 = xyz_BN3[rows_B, latest_B][:, None]
        squared_BN = ((xyz_BN3 - centre_B13) ** 2).sum(-1)
        nearest_BN = torch.minimum(nearest_BN, squared_BN)
        latest_B = nearest_BN.argmax(-1)
        chosen_BS[:, place] = latest_B
    return chosen_BS


def squared_table(centres_BS3: Tensor, xyz_BN3: Tensor) -> Tensor:
    """(B, S, N) squared distances by expansion, as a matrix product."""
    table_BSN = -2 * centres_BS3 @ xyz_BN3.transpose(1, 2)
    table_BSN += (centres_BS3**2).sum(-1)[:, :, None]
    table_BSN += (xyz_BN3**2).sum(-1)[:, None, :]
    return table_BSN


def dense_ball_query(centres_BS3: Tensor, xyz_BN3: Tensor, radius: float, k: int) -> Tensor:
    """(B, S, K) first ``k`` indices inside each ball, padded with the first."""
    n_points = xyz_BN3.shape[1]
    index_BSN = torch.arange(n_points, device=xyz_BN3.device).repeat(*centres_BS3.shape[:2], 1)
    index_BSN[squared_table(centres_BS3, xyz_BN3) > radius**2] = n_points
    found_BSK = index_BSN.sort(dim=-1).values[..., :k]
    first_BSK = found_BSK[..., :1].expand_as(found_BSK)
    return torch.where(found_BSK == n_points, first_BSK, found_BSK)


def take(values_BNC: Tensor, index: Tensor) -> Tensor:
    """Rows of ``values`` at (B, ...) indices."""
    rows = torch.arange(len(index), device=index.device).view(-1, *[1] * (index.ndim - 1))
    return values_BNC[rows, index]


class PlainBlock(nn.Module):
    """Pre-norm transformer block with the attention written out."""

    def __init__(self, sizes: PlainSizes) -> None:
        super().__init__()
        inner = sizes.heads * sizes.head_dim
        self.heads, self.scale = sizes.heads, sizes.head_dim**-0.5
        self.norm1, self.norm2 = nn.LayerNorm(sizes.dim), nn.LayerNorm(sizes.dim)
        self.to_qkv = nn.Linear(sizes.dim, 3 * inner, bias=False)
        self.to_out = nn.Linear(inner, sizes.dim)
        self.fc1, self.fc2 = (
            nn.Linear(sizes.dim, sizes.mlp_dim),
            nn.Linear(sizes.mlp_dim, sizes.dim),
        )

    def forward(self, x_BTC: Tensor) -> Tensor:
        """(B, T, C)."""
        batch, tokens, _ = x_BTC.shape
        query, key, value = (
            part.view(batch, tokens, self.heads, -1).transpose(1, 2)
            for part in self.to_qkv(self.norm1(x_BTC)).chunk(3, dim=-1)
        )
        share_BHTT = (query @ key.transpose(-1, -2) * self.scale).softmax(-1)
        mixed_BTC = (share_BHTT @ value).transpose(1, 2).reshape(batch, tokens, -1)
        x_BTC = self.to_out(mixed_BTC) + x_BTC
        added_BTC: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x_BTC))))
        return added_BTC + x_BTC


class PlainPointBert(nn.Module):
    """Point-BERT with sampling and grouping inside."""

    def __init__(self, sizes: PlainSizes, width: int) -> None:
        super().__init__()
        self.sizes = sizes
        channels = [9, *sizes.local_dims]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(channels))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in sizes.local_dims)
        self.lift = nn.Conv1d(channels[-1] + 3, sizes.dim, 1)
        self.lift_norm = nn.LayerNorm(sizes.dim)
        self.cls_token = nn.Parameter(torch.randn(sizes.dim))
        self.blocks = nn.ModuleList(PlainBlock(sizes) for _ in range(sizes.depth))
        self.project = nn.Linear(sizes.dim, width)

    def centres(self, xyz_BN3: Tensor) -> Tensor:
        """(B, S, 3) farthest points."""
        return take(xyz_BN3, sample_farthest(xyz_BN3, self.sizes.centroids))

    def patches(self, centres_BS3: Tensor, xyz_BN3: Tensor, rgb_BN3: Tensor) -> Tensor:
        """(B, 9, K, S) offsets, coordinates and colours of the points around the centres."""
        with torch.no_grad():
            index_BSK = dense_ball_query(
                centres_BS3, xyz_BN3, self.sizes.radius, self.sizes.neighbours
            )
        near_BSK3 = take(xyz_BN3, index_BSK)
        parts = [near_BSK3 - centres_BS3[:, :, None], near_BSK3, take(rgb_BN3, index_BSK)]
        return torch.cat(parts, dim=-1).permute(0, 3, 2, 1)

    def tokens(self, centres_BS3: Tensor, patches_B9KS: Tensor) -> Tensor:
        """(B, T, C) with the CLS token in front."""
        x = patches_B9KS
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        x_BCS = torch.cat([centres_BS3.transpose(1, 2), x.max(2).values], dim=1)
        x_BSC = self.lift_norm(self.lift(x_BCS).transpose(1, 2))
        return torch.cat([self.cls_token.expand(len(x_BSC), 1, -1), x_BSC], dim=1)

    def transform(self, x_BTC: Tensor) -> Tensor:
        """(B, D) of ready tokens: the bare transformer."""
        for block in self.blocks:
            x_BTC = block(x_BTC)
        embedding: Tensor = self.project(x_BTC[:, 0])
        return embedding

    def forward(self, xyz_BN3: Tensor, rgb_BN3: Tensor) -> Tensor:
        """(B, D), not normalised."""
        centres_BS3 = self.centres(xyz_BN3)
        patches = self.patches(centres_BS3, xyz_BN3, rgb_BN3)
        return self.transform(self.tokens(centres_BS3, patches))


def copy_weights(theirs: nn.Module, plain: PlainPointBert) -> None:
    """Give the baseline the weights of a ``trainer.backbones.pointbert.PointBert``."""
    renamed = {}
    for name, value in theirs.state_dict().items():
        for old, new in (
            ("local.linears.", "convs."),
            ("local.norms.", "norms."),
            (".norm_attention.", ".norm1."),
            (".norm_mlp.", ".norm2."),
            (".attention.qkv.", ".to_qkv."),
            (".attention.out.", ".to_out."),
            (".mlp.0.", ".fc1."),
            (".mlp.2.", ".fc2."),
        ):
            name = name.replace(old, new)
        renamed[name] = value
    shapes = {name: value.shape for name, value in plain.state_dict().items()}
    plain.load_state_dict({name: value.view(shapes[name]) for name, value in renamed.items()})


def info_nce(u_BD: Tensor, v_BD: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of unit rows."""
    logits_BB = scale * u_BD @ v_BD.T
    target_B = torch.arange(len(u_BD), device=u_BD.device)
    return (F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)) / 2


def jeffreys(teacher_RC: Tensor, student_RC: Tensor) -> Tensor:
    """Mean over rows of KL(p|q) + KL(q|p), from logits."""
    p, q = teacher_RC.log_softmax(-1), student_RC.log_softmax(-1)
    return ((p.exp() - q.exp()) * (p - q)).sum(-1).mean()


class PlainLoss(nn.Module):
    """InfoNCE with images and texts, and relation distillation with a bounded mixture.

    Every object has an image and a text. Temperatures 0.1, floor 0.1: the trainer's defaults.
    """

    def __init__(self, tau: float = 0.1, floor: float = 0.1, logit_scale: float = 1 / 0.07) -> None:
        super().__init__()
        self.tau, self.floor = tau, floor
        self.log_scale = nn.Parameter(torch.tensor(logit_scale).log())
        self.mixture = nn.Parameter(torch.zeros(3))

    def forward(
        self, point_BD: Tensor, image_BD: Tensor, text_BD: Tensor, distill_weight: float
    ) -> Tensor:
        """Scalar: alignment plus ``distill_weight`` times the distillation."""
        p, i, t = (F.normalize(x, dim=-1) for x in (point_BD, image_BD, text_BD))
        scale = self.log_scale.exp()
        align = info_nce(p, i, scale) + info_nce(p, t, scale)
        others_BB = ~torch.eye(len(p), dtype=torch.bool, device=p.device)

        def within(x: Tensor) -> Tensor:
            return (x @ x.T / self.tau)[others_BB].view(len(x), -1)

        def between(x: Tensor, y: Tensor) -> Tensor:
            return x @ y.T / self.tau

        terms = torch.stack(
            [
                jeffreys(within(i), within(p)),
                jeffreys(within(t), within(p)),
                (jeffreys(between(i, t), between(p, t)) + jeffreys(between(t, i), between(p, i)))
                / 2,
            ]
        )
        weights = self.floor + (1 - 3 * self.floor) * self.mixture.softmax(0)
        return align + distill_weight * (weights * terms).sum()


class PlainTrainer:
    """Model, loss, AdamW, clipping and a moving average, one step at a time."""

    def __init__(self, sizes: PlainSizes, width: int, device: str = "cpu") -> None:
        self.model = PlainPointBert(sizes, width).to(device).train()
        self.loss = PlainLoss().to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.parameters = [*self.model.parameters(), *self.loss.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05
        )

    def step(self, xyz_BN3: Tensor, rgb_BN3: Tensor, image_BD: Tensor, text_BD: Tensor) -> Tensor:
        """One step on clouds that are ready; its loss."""
        self.optimizer.zero_grad()
        loss: Tensor = self.loss(self.model(xyz_BN3, rgb_BN3), image_BD, text_BD, 1.0)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 5.0)
        self.optimizer.step()
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
            for average, value in pairs:
                average.lerp_(value, 5e-4)
        return loss.detach()
