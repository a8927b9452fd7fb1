"""Neighbourhoods of point clouds in plain PyTorch: kNN, ball query, farthest-point sampling.

Shape suffixes: B clouds, N points, S centroids, K neighbours. Coordinates are float32, on any
device; indices are int64. Distances are computed from coordinate differences, not from the
expansion |a|^2 - 2ab + |b|^2, whose cancellation misorders near neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Elements of one block of the (B, S, N) distance table: 16 Mi float32 are 64 MiB.
CHUNK_ELEMENTS = 1 << 24


def prefix_centroids(xyz_BN3: Tensor, count: int) -> Tensor:
    """(B, count, 3): the first points, which are the farthest-point sample of an ordered cloud.

    Raises ``ValueError`` when a cloud has fewer points.
    """
    if xyz_BN3.shape[1] < count:
        raise ValueError(f"{count} centroids asked of clouds of {xyz_BN3.shape[1]} points")
    return xyz_BN3[:, :count]


def _chunks(batch: int, centroids: int, points: int) -> int:
    """How many centroids to treat at once."""
    return max(1, min(centroids, CHUNK_ELEMENTS // max(batch * points, 1)))


def _squared_distances(centroids_BS3: Tensor, xyz_BN3: Tensor) -> Tensor:
    """(B, S, N) squared distances from differences."""
    distance = torch.cdist(centroids_BS3, xyz_BN3, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.square_()


@torch.no_grad()
def knn(centroids_BS3: Tensor, xyz_BN3: Tensor, k: int) -> Tensor:
    """(B, S, K) indices of the ``k`` points nearest to each centroid, in no particular order.

    Exact. Among points at the same distance any may be taken, the same ones each time on the
    same machine. Raises ``ValueError`` when a cloud has fewer than ``k`` points.
    """
    if not 1 <= k <= xyz_BN3.shape[1]:
        raise ValueError(f"{k} neighbours asked of clouds of {xyz_BN3.shape[1]} points")
    step = _chunks(xyz_BN3.shape[0], centroids_BS3.shape[1], xyz_BN3.shape[1])
    found = [
        torch.cdist(part, xyz_BN3, compute_mode="donot_use_mm_for_euclid_dist")
        .topk(k, dim=-1, largest=False, sorted=False)
        .indices
        for part in torch.split(centroids_BS3, step, dim=1)
    ]
    return torch.cat(found, dim=1)


@torch.no_grad()
def ball_query(centroids_BS3: Tensor, xyz_BN3: Tensor, radius: float, k: int) -> Tensor:
    """(B, S, K) indices of the first ``k`` points within ``radius``, as PointNet++ takes them.

    "First" is by index; a ball with fewer points is padded with its first one, and an empty ball
    holds the point nearest to the centroid. Points exactly on the sphere are inside.
    """
    batch, n_points = xyz_BN3.shape[:2]
    step = _chunks(batch, centroids_BS3.shape[1], n_points)
    index_N = torch.arange(n_points, device=xyz_BN3.device)
    found = []
    for part in torch.split(centroids_BS3, step, dim=1):
        squared = _squared_distances(part, xyz_BN3)
        inside = squared <= radius * radius
        rank = inside.cumsum(-1, dtype=torch.int32)  # 1 for the first point inside
        # Slot K collects everything that is not among the first k; it is cut off below.
        slot = torch.where(inside & (rank <= k), rank - 1, k).long()
        out = index_N.new_zeros(*part.shape[:2], k + 1)
        out.scatter_(-1, slot, index_N.expand_as(slot))
        count = rank[..., -1:]
        first = torch.where(count > 0, out[..., :1], squared.argmin(-1, keepdim=True))
        filled = torch.arange(k, device=xyz_BN3.device) < count
        found.append(torch.where(filled, out[..., :k], first))
    return torch.cat(found, dim=1)


def gather_points(values_BNC: Tensor, index_BSK: Tensor) -> Tensor:
    """(B, S, K, C) rows of ``values`` at the indices."""
    batch, n_points, channels = values_BNC.shape
    # One flat gather of rows is several times faster on the CPU than torch.gather per channel.
    offset = torch.arange(batch, device=index_BSK.device).view(-1, 1, 1) * n_points
    rows = values_BNC.reshape(-1, channels).index_select(0, (index_BSK + offset).reshape(-1))
    return rows.view(*index_BSK.shape, channels)


@torch.no_grad()
def farthest_point_sample(xyz_BN3: Tensor, count: int) -> Tensor:
    """(B, count) indices of exact farthest-point sampling that starts at point 0.

    For clouds that are not stored in farthest-point order, and as the oracle of those that are:
    quadratic, one step per sample. Ties go to the lower index.
    """
    batch, n_points = xyz_BN3.shape[:2]
    if count > n_points:
        raise ValueError(f"{count} samples asked of clouds of {n_points} points")
    chosen = torch.zeros(batch, count, dtype=torch.long, device=xyz_BN3.device)
    nearest = torch.full((batch, n_points), torch.inf, device=xyz_BN3.device, dtype=xyz_BN3.dtype)
    rows = torch.arange(batch, device=xyz_BN3.device)
    for step in range(1, count):
        last = xyz_BN3[rows, chosen[:, step - 1]]
        nearest = torch.minimum(nearest, (xyz_BN3 - last[:, None]).square().sum(-1))
        chosen[:, step] = nearest.argmax(-1)
    return chosen
