"""Kernels for training and encoding on a CPU, where PyTorch's own operations walk through memory.

Compiled by numba, which is imported with this module: import it where a kernel is run. They release
the interpreter's lock; what is independent goes to as many threads as PyTorch may use.

Shape suffixes: N points, S centroids, K neighbours, P neighbourhoods, R rows, I and O channels in
and out.
"""

# Kernels take their types from numba, at the call.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.jit import Kernel, jit, jit_inline

T = TypeVar("T")

_BLOCK = 128  # points whose distances are known before any is asked for


@jit_inline
def _first_inside(xyz_3N, centroid_3, squared_radius, k, found):
    """Puts the first k points of a ball, in the order of the cloud, in front of ``found``.

    A ball with fewer is padded with its first one; the nearest point stands for an empty one.
    ``found`` has room for a block more than k.
    """
    squared = np.empty(_BLOCK, xyz_3N.dtype)
    x, y, z = centroid_3
    n_points, count = xyz_3N.shape[1], 0
    for start in range(0, n_points, _BLOCK):
        size = min(_BLOCK, n_points - start)
        for j in range(size):
            dx, dy = x - xyz_3N[0, start + j], y - xyz_3N[1, start + j]
            dz = z - xyz_3N[2, start + j]
            squared[j] = dx * dx + dy * dy + dz * dz
        for j in range(size):
            # Every point is written, and stays where it is inside: a branch would be mispredicted.
            found[count] = start + j
            count += 1 if squared[j] <= squared_radius else 0
        if count >= k:
            break
    if count == 0:
        found[0], least = 0, np.inf
        for j in range(n_points):
            dx, dy, dz = x - xyz_3N[0, j], y - xyz_3N[1, j], z - xyz_3N[2, j]
            distance = dx * dx + dy * dy + dz * dz
            if distance < least:
                found[0], least = j, distance
        count = 1
    for j in range(count, k):
        found[j] = found[0]


@jit
def _ball_query(xyz_3N, centroids_S3, squared_radius, index_SK):
    k = index_SK.shape[1]
    found = np.empty(k + _BLOCK, np.int64)
    for s in range(len(centroids_S3)):
        _first_inside(xyz_3N, centroids_S3[s], squared_radius, k, found)
        index_SK[s] = found[:k]


@jit
def _ball_group(xyz_3N, centroids_S3, squared_radius, grouped_SKC, points_NC):
    k, channels = grouped_SKC.shape[1], points_NC.shape[1]
    found = np.empty(k + _BLOCK, np.int64)
    for s in range(len(centroids_S3)):
        _first_inside(xyz_3N, centroids_S3[s], squared_radius, k, found)
        for j in range(k):
            n = found[j]
            for c in range(3):
                grouped_SKC[s, j, c] = points_NC[n, c] - centroids_S3[s, c]
            for c in range(channels):
                grouped_SKC[s, j, 3 + c] = points_NC[n, c]


def ball_query(centroids_BS3: Tensor, xyz_BN3: Tensor, radius: float, k: int) -> Tensor:
    """``trainer.grouping.ball_query`` of float32 or float64 clouds.

    A ball is left when it is full. Only a point whose distance equals the radius to the last digit
    may be seen differently. Raises ``ValueError`` for shapes that do not fit.
    """
    index_BSK = torch.empty(*centroids_BS3.shape[:2], k, dtype=torch.int64)
    _each_cloud(_ball_query, xyz_BN3, centroids_BS3, radius, index_BSK)
    return index_BSK


def ball_group(points_BNC: Tensor, centroids_BS3: Tensor, k: int, radius: float) -> Tensor:
    """``trainer.grouping.group_points`` by ``ball_query``, without the list.

    Raises ``ValueError`` for shapes that do not fit.
    """
    batch, centroids, _ = centroids_BS3.shape
    grouped_BSKC = points_BNC.new_empty(batch, centroids, k, 3 + points_BNC.shape[-1])
    xyz_BN3 = points_BNC[..., :3]
    _each_cloud(_ball_group, xyz_BN3, centroids_BS3, radius, grouped_BSKC, points_BNC)
    return grouped_BSKC


def _each_cloud(
    kernel: Kernel, xyz_BN3: Tensor, centroids_BS3: Tensor, radius: float, *more: Tensor
) -> None:
    """Run a kernel on every cloud; ``more`` are its further arguments, by cloud."""
    batch, _, axes = centroids_BS3.shape
    if axes != 3 or xyz_BN3.shape[-1] != 3 or len(xyz_BN3) != batch:
        raise ValueError(
            f"centroids {tuple(centroids_BS3.shape)} do not fit points {tuple(xyz_BN3.shape)}"
        )
    if xyz_BN3.shape[1] == 0 and centroids_BS3.numel() > 0:
        raise ValueError("neighbours asked of clouds without points")
    # Coordinates of one axis side by side, as a core takes them.
    xyz_B3N = xyz_BN3.transpose(1, 2)
    tensors = (xyz_B3N, centroids_BS3, *more)
    xyz, centroids, *rest = (value.detach().contiguous().numpy() for value in tensors)
    squared_radius = xyz.dtype.type(radius * radius)

    def some(part: slice) -> None:
        for b in range(part.start, part.stop):
            kernel(xyz[b], centroids[b], squared_radius, *(values[b] for values in rest))

    _spread(some, batch)


@jit
def _at_winners(d_PO, winner_PO, weight_OI, h_RI, dh_RI, product_OI):
    neighbours = len(h_RI) // max(len(d_PO), 1)
    for p in range(d_PO.shape[0]):
        for o in range(d_PO.shape[1]):
            d = d_PO[p, o]
            if d != 0:
                r = p * neighbours + winner_PO[p, o]
                for i in range(h_RI.shape[1]):
                    dh_RI[r, i] += d * weight_OI[o, i]
                    product_OI[o, i] += d * h_RI[r, i]


def add_at_winners(
    d_PO: Tensor, winner_PO: Tensor, weight_OI: Tensor, h_RI: Tensor, dh_RI: Tensor
) -> Tensor:
    """Backward of a linear layer below a maximum over K rows, at those that won it.

    ``d_PO`` is the gradient of the maximum, ``winner_PO`` which of the K rows of ``h_RI`` gave it;
    R = PK. Adds the gradient of the rows to ``dh_RI``; returns that of the weight, (O, I). All of
    one type. One row in K has a gradient for each channel, so a product of matrices would be K
    times the arithmetic.
    """
    neighbours = len(h_RI) // max(len(d_PO), 1)
    d, winner, weight = d_PO.numpy(), winner_PO.numpy(), weight_OI.contiguous().numpy()
    h, dh = h_RI.numpy(), dh_RI.numpy()

    def some(part: slice) -> Tensor:
        rows = slice(part.start * neighbours, part.stop * neighbours)
        product_OI = torch.zeros_like(weight_OI, memory_format=torch.contiguous_format)
        _at_winners(d[part], winner[part], weight, h[rows], dh[rows], product_OI.numpy())
        return product_OI

    return sum(_spread(some, len(d)), start=torch.zeros_like(weight_OI))


def _spread(work: Callable[[slice], T], count: int) -> list[T]:
    """``work`` on consecutive parts of ``count`` things, a part to a thread; results in order."""
    threads = max(1, min(torch.get_num_threads(), count))
    edges = [count * place // threads for place in range(threads + 1)]
    parts = [slice(a, b) for a, b in pairwise(edges)]
    if threads == 1:
        return [work(part) for part in parts]
    return list(_pool(torch.get_num_threads(), os.getpid()).map(work, parts))


@functools.lru_cache(maxsize=1)
def _pool(threads: int, _process: int) -> ThreadPoolExecutor:
    """One for the process: threads do not live on in a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="mrd3d-kernel")
