"""Triton kernels of ``trainer.grouping``: search and gather of neighbourhoods in one pass.

The plain versions write a (B, S, N) table of distances and read it again several times; here one
program treats one centroid, and nothing but its neighbours leaves the chip. Every neighbour's
place in the output is computed (a running count of the points before it), never raced for, so the
result is the same each time. Among equal distances kNN takes the lower index. Products and sums are
not fused: kNN computes its distances twice and must get the same ones.

Import it only where it is used: it needs ``triton``. With TRITON_INTERPRET=1 in the environment
before the import, the kernels run on the CPU, slowly, for tests.

Shape suffixes: B clouds, N points, S centroids, K neighbours, C channels.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SCAN = 1024  # points that are looked at together where neighbours are written out
KNN_POINTS = 16_384  # a kNN program keeps the distances to all points in its registers
BALL_WARPS = 4


@triton.jit
def _distances(points, base, offsets, mask, cx, cy, cz, stride_n):  # type: ignore[no-untyped-def]
    """Squared distances of the points at ``offsets`` from one centroid; infinite behind the end."""
    x = tl.load(points + base + offsets * stride_n, mask=mask, other=0.0)
    y = tl.load(points + base + offsets * stride_n + 1, mask=mask, other=0.0)
    z = tl.load(points + base + offsets * stride_n + 2, mask=mask, other=0.0)
    squared = (x - cx) * (x - cx) + (y - cy) * (y - cy) + (z - cz) * (z - cz)
    return tl.where(mask, squared, float("inf"))


@triton.jit
def _ordered(points, base, offsets, n_points, cx, cy, cz, stride_n):  # type: ignore[no-untyped-def]
    """Integers in the order of the squared distances; points behind the end come last."""
    mask = offsets < n_points
    squared = _distances(points, base, offsets, mask, cx, cy, cz, stride_n)
    # Non-negative floats are ordered as their bits are.
    return tl.where(mask, squared.to(tl.int32, bitcast=True), 0x7FFFFFFF)


@triton.jit
def _emit(  # type: ignore[no-untyped-def]
    points,
    out,
    base,
    row,
    source,
    place,
    mask,
    cx,
    cy,
    cz,
    stride_n,
    channels: tl.constexpr,
    K: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Write points ``source`` to the places ``place`` of an output row, where ``mask``."""
    if INDEX:
        tl.store(out + row * K + place, source.to(tl.int64), mask=mask)
    else:
        target = out + (row * K + place) * (channels + 3)
        start = points + base + source * stride_n
        tl.store(target, tl.load(start, mask=mask, other=0.0) - cx, mask=mask)
        tl.store(target + 1, tl.load(start + 1, mask=mask, other=0.0) - cy, mask=mask)
        tl.store(target + 2, tl.load(start + 2, mask=mask, other=0.0) - cz, mask=mask)
        for channel in tl.static_range(channels):
            value = tl.load(start + channel, mask=mask, other=0.0)
            tl.store(target + 3 + channel, value, mask=mask)


@triton.jit
def _ball_kernel(  # type: ignore[no-untyped-def]
    points,
    centroids,
    out,
    n_points,
    n_centroids,
    radius2,
    stride_b,
    stride_n,
    channels: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK: tl.constexpr,
    INDEX: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # of the B * S centroids
    base = (row // n_centroids) * stride_b
    cx = tl.load(centroids + row * 3)
    cy = tl.load(centroids + row * 3 + 1)
    cz = tl.load(centroids + row * 3 + 2)
    lane = tl.arange(0, BLOCK)
    count = 0  # points inside so far; those past K are counted but not written
    first = n_points  # lowest index inside
    nearest = 0
    smallest = float("inf")
    start = 0
    while (start < n_points) & (count < K):
        offsets = start + lane
        squared = _distances(points, base, offsets, offsets < n_points, cx, cy, cz, stride_n)
        inside = squared <= radius2
        taken = inside.to(tl.int32)
        place = count + tl.cumsum(taken, axis=0) - taken
        _emit(
            points, out, base, row, offsets, place, inside & (place < K),
            cx, cy, cz, stride_n, channels, K, INDEX,
        )  # fmt: skip
        first = tl.minimum(first, tl.min(tl.where(inside, offsets, n_points), axis=0))
        low = tl.min(squared, axis=0)
        low_at = tl.min(tl.where(squared == low, offsets, n_points), axis=0)
        nearest = tl.where(low < smallest, low_at, nearest)
        smallest = tl.minimum(smallest, low)
        count += tl.sum(taken, axis=0)
        start += BLOCK
    # The scan ends early only when the ball is full, so `nearest` is right where it is needed.
    pad = tl.where(count > 0, first, nearest)
    slots = tl.arange(0, BLOCK_K)
    source = tl.zeros([BLOCK_K], dtype=tl.int32) + pad
    _emit(
        points, out, base, row, source, slots, (slots >= count) & (slots < K),
        cx, cy, cz, stride_n, channels, K, INDEX,
    )  # fmt: skip


@triton.jit
def _knn_kernel(  # type: ignore[no-untyped-def]
    points,
    centroids,
    out,
    n_points,
    n_centroids,
    stride_b,
    stride_n,
    channels: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
    INDEX: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    base = (row // n_centroids) * stride_b
    cx = tl.load(centroids + row * 3)
    cy = tl.load(centroids + row * 3 + 1)
    cz = tl.load(centroids + row * 3 + 2)
    bits = _ordered(points, base, tl.arange(0, BLOCK), n_points, cx, cy, cz, stride_n)
    # The K-th smallest distance, by bisection over all floats: 31 bits, 31 steps.
    low = 0
    high = 0x7F800000
    for _ in range(31):
        middle = low + (high - low) // 2
        enough = tl.sum((bits <= middle).to(tl.int32), axis=0) >= K
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    missing = K - tl.sum((bits < high).to(tl.int32), axis=0)  # how many of the equal ones are taken
    # A second look at the points, part by part: places of all of them at once fit no registers.
    lane = tl.arange(0, PART)
    count = 0
    equals = 0
    start = 0
    while (start < n_points) & (count < K):
        offsets = start + lane
        part = _ordered(points, base, offsets, n_points, cx, cy, cz, stride_n)
        equal = (part == high).to(tl.int32)
        rank = equals + tl.cumsum(equal, axis=0)
        taken = tl.where((part < high) | ((equal > 0) & (rank <= missing)), 1, 0)
        place = count + tl.cumsum(taken, axis=0) - taken
        _emit(
            points, out, base, row, offsets, place, taken > 0,
            cx, cy, cz, stride_n, channels, K, INDEX,
        )  # fmt: skip
        count += tl.sum(taken, axis=0)
        equals += tl.sum(equal, axis=0)
        start += PART


def knn_fits(n_points: int) -> bool:
    """Whether clouds of this size fit the kNN kernel."""
    return n_points <= KNN_POINTS


def knn_warps(block: int) -> int:
    """Warps of a kNN program: at most 32 distances a thread, or registers spill to memory."""
    return min(16, max(4, block // 512))


def try_out() -> None:
    """Launch a kernel on the current GPU. Raises whatever Triton does where that is impossible."""
    cloud = torch.zeros(1, 1, 3, device="cuda")
    _launch(cloud, cloud, 1, 1.0, index=True)


def _launch(
    points_BNC: Tensor, centroids_BS3: Tensor, k: int, radius: float | None, *, index: bool
) -> Tensor:
    # Channels must lie next to one another; strided clouds and points are read as they are.
    points = points_BNC.float()
    points = points if points.stride(2) == 1 else points.contiguous()
    centroids = centroids_BS3.float().contiguous()
    batch, n_points, channels = points.shape
    n_centroids = centroids.shape[1]
    if index:
        out = torch.empty(batch, n_centroids, k, dtype=torch.int64, device=points.device)
    else:
        shape = (batch, n_centroids, k, 3 + channels)
        out = torch.empty(shape, dtype=torch.float32, device=points.device)
    if batch * n_centroids == 0:
        return out
    grid = (batch * n_centroids,)
    strides = (points.stride(0), points.stride(1))
    with torch.cuda.device_of(points):
        if radius is None:
            block = triton.next_power_of_2(n_points)
            _knn_kernel[grid](
                points, centroids, out, n_points, n_centroids, *strides,
                channels=channels, K=k, BLOCK=block, PART=min(block, SCAN), INDEX=index,
                num_warps=knn_warps(block), enable_fp_fusion=False,
            )  # fmt: skip
        else:
            _ball_kernel[grid](
                points, centroids, out, n_points, n_centroids, radius * radius, *strides,
                channels=channels, K=k, BLOCK_K=triton.next_power_of_2(k), BLOCK=SCAN, INDEX=index,
                num_warps=BALL_WARPS, enable_fp_fusion=False,
            )  # fmt: skip
    return out


# Operators of PyTorch's, which ``torch.compile`` takes into its graphs as they stand.
_LIBRARY = torch.library.Library("mrd3d", "DEF")
for _name in ("neighbours", "grouped"):
    _LIBRARY.define(f"{_name}(Tensor points, Tensor centroids, int k, float? radius) -> Tensor")


def neighbours(points_BNC: Tensor, centroids_BS3: Tensor, k: int, radius: float | None) -> Tensor:
    """(B, S, K) int64: ``ball_query`` of ``trainer.grouping``, or ``knn`` without a radius.

    Nearest neighbours come in the order of the index. The first three channels are coordinates.
    No gradient flows back.
    """
    found: Tensor = torch.ops.mrd3d.neighbours(points_BNC, centroids_BS3, k, radius)
    return found


def grouped(points_BNC: Tensor, centroids_BS3: Tensor, k: int, radius: float | None) -> Tensor:
    """(B, S, K, 3 + C) float32: ``group_points`` of ``trainer.grouping``, without a gradient."""
    found: Tensor = torch.ops.mrd3d.grouped(points_BNC, centroids_BS3, k, radius)
    return found


def _neighbours(points: Tensor, centroids: Tensor, k: int, radius: float | None) -> Tensor:
    return _launch(points, centroids, k, radius, index=True)


def _grouped(points: Tensor, centroids: Tensor, k: int, radius: float | None) -> Tensor:
    return _launch(points, centroids, k, radius, index=False)


for _device in ("CUDA", "CPU"):  # a CPU's: in the interpreter
    _LIBRARY.impl("neighbours", _neighbours, _device)
    _LIBRARY.impl("grouped", _grouped, _device)


@torch.library.register_fake("mrd3d::neighbours", lib=_LIBRARY)
def _(points: Tensor, centroids: Tensor, k: int, radius: float | None) -> Tensor:
    del radius
    return points.new_empty((*centroids.shape[:2], k), dtype=torch.int64)


@torch.library.register_fake("mrd3d::grouped", lib=_LIBRARY)
def _(points: Tensor, centroids: Tensor, k: int, radius: float | None) -> Tensor:
    del radius
    shape = (*centroids.shape[:2], k, 3 + points.shape[-1])
    return points.new_empty(shape, dtype=torch.float32)
