"""PointNeXt-S: the light convolutional encoder, after Qian et al., NeurIPS 2022 (2206.04670).

A linear stem; four stages that halve or quarter the points and double the width, each a
residual set abstraction (ball query, two-layer shared MLP with BatchNorm on [offset / radius,
features], maximum, plus a linear skip of the centroid's feature); a last stage over all points
that are left; and the head that OpenShape gives it: one hidden layer of 1,024 with BatchNorm and
dropout, then the embedding. Centroids are the first points of the stage before: clouds are in
farthest-point order, and so is every prefix.

OpenShape's strides from 10,000 points are 4, 4, 2, 2. Here the first stage has 2,048 points, not
2,500, because that many are stored in farthest-point order by default; ``centroids`` changes it.

Shape suffixes: B clouds, N points, S centroids, K neighbours, C channels, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.backbones.layers import AXES, in_order
from trainer.backbones.registry import Backbone, require_choice, require_share
from trainer.grouping import group_points, prefix_centroids

IN_CHANNELS = 6  # coordinates, colour


@dataclass(frozen=True)
class PointNextOptions:
    """Sizes of one PointNeXt without inverted residual blocks."""

    stem_dim: int = 32  # each stage doubles it
    centroids: int = 2048  # points of the first stage
    strides: tuple[int, ...] = (4, 2, 2)  # of the stages after it
    neighbours: int = 32
    radius: float = 0.15  # of the first stage
    radius_scaling: float = 1.5  # from stage to stage
    head_dim: int = 1024
    head_dropout: float = 0.5
    axes: Literal["xyz", "xzy"] = "xyz"

    def __post_init__(self) -> None:
        require_choice("axes", self.axes, tuple(AXES))
        require_share("head_dropout", self.head_dropout)
        sizes = (self.stem_dim, self.centroids, self.neighbours, self.head_dim, *self.strides)
        if min(*sizes, self.radius, self.radius_scaling) <= 0:
            raise ValueError("every size must be positive")
        if self.points()[-1] < 1:
            raise ValueError(f"{self.centroids} centroids are too few for strides {self.strides}")

    @property
    def least_points(self) -> int:
        """Points that a cloud must have."""
        return self.centroids

    def points(self) -> list[int]:
        """Points of each stage."""
        counts = [self.centroids]
        for stride in self.strides:
            counts.append(counts[-1] // stride)
        return counts

    def build(self, width: int) -> PointNext:
        """A backbone of these sizes whose embeddings are ``width`` wide."""
        return PointNext(self, width)


PRESETS: dict[str, PointNextOptions] = {"pointnext-s": PointNextOptions()}


class SharedMlp(nn.Module):
    """Linear layers without bias, BatchNorm and ReLU, on the last axis."""

    def __init__(self, widths: tuple[int, ...], *, last_relu: bool) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths[1:])
        self.last_relu = last_relu

    def forward(self, values: Tensor) -> Tensor:
        """Any leading axes."""
        rows = values.reshape(-1, values.shape[-1])
        for place, (linear, norm) in enumerate(zip(self.linears, self.norms, strict=True)):
            rows = norm(linear(rows))
            if self.last_relu or place < len(self.linears) - 1:
                rows = F.relu(rows)
        return rows.view(*values.shape[:-1], -1)


class Stage(nn.Module):
    """Set abstraction with a residual: fewer points, twice the channels."""

    def __init__(self, dim: int, points: int, neighbours: int, radius: float) -> None:
        super().__init__()
        self.points, self.neighbours, self.radius = points, neighbours, radius
        self.mlp = SharedMlp((3 + dim, dim, 2 * dim), last_relu=False)
        self.skip = nn.Linear(dim, 2 * dim)

    def forward(self, xyz_BN3: Tensor, features_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates (B, S, 3) and features (B, S, 2C) of the stage's points."""
        centroids_BS3 = prefix_centroids(xyz_BN3, self.points)
        both = torch.cat([xyz_BN3, features_BNC], dim=-1)
        grouped = group_points(both, centroids_BS3, self.neighbours, self.radius)
        offset_BSK3 = grouped[..., :3] / self.radius
        mixed_BSKC = self.mlp(torch.cat([offset_BSK3, grouped[..., 6:]], dim=-1))
        top_BSC = mixed_BSKC.max(dim=2).values
        return centroids_BS3, F.relu(top_BSC + self.skip(features_BNC[:, : self.points]))


class PointNext(Backbone):
    """PointNeXt encoder; ``PRESETS`` has the sizes."""

    tokens = 0
    least_rows = 2  # the head's BatchNorm

    def __init__(self, options: PointNextOptions, width: int) -> None:
        super().__init__()
        self.options, self.width, self.centroids = options, width, options.centroids
        self.stem = nn.Linear(IN_CHANNELS, options.stem_dim)
        self.stages = nn.ModuleList()
        dim, radius = options.stem_dim, options.radius
        for points in options.points():
            self.stages.append(Stage(dim, points, options.neighbours, radius))
            dim, radius = 2 * dim, radius * options.radius_scaling
        self.whole = SharedMlp((3 + dim, dim, dim), last_relu=True)
        self.head = SharedMlp((dim, options.head_dim), last_relu=True)
        self.dropout = nn.Dropout(options.head_dropout)
        self.project = nn.Linear(options.head_dim, width)

    @property
    def n_layers(self) -> int:
        """Stem, stages, the stage over all points, head."""
        return len(self.stages) + 3

    def layer_of(self, name: str) -> int:
        """Place of a parameter in the ladder."""
        first = name.split(".")[0]
        if first == "stages":
            return int(name.split(".")[1]) + 1
        return {"stem": 0, "whole": self.n_layers - 2}.get(first, self.n_layers - 1)

    def forward(self, xyz_BN3: Tensor, rgb_BN3: Tensor) -> Tensor:
        """(B, D) embeddings, not normalised.

        Raises ``ValueError`` when the clouds have fewer points than the first stage.
        """
        xyz_BN3 = in_order(xyz_BN3, self.options.axes)
        features_BNC = self.stem(torch.cat([xyz_BN3, rgb_BN3], dim=-1))
        for stage in self.stages:
            xyz_BN3, features_BNC = stage(xyz_BN3, features_BNC)
        whole_BC = self.whole(torch.cat([xyz_BN3, features_BNC], dim=-1)).max(dim=1).values
        embedding: Tensor = self.project(self.dropout(self.head(whole_BC)))
        return embedding
