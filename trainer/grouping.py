"""Neighbourhoods of point clouds: kNN, ball query, grouping, farthest-point sampling.

Shape suffixes: B clouds, N points, S centroids, K neighbours, C channels. Coordinates are
float32, on any device; indices are int64. Distances are computed from coordinate differences,
not from the expansion |a|^2 - 2ab + |b|^2, whose cancellation misorders near neighbours.

``knn``, ``ball_query`` and ``group_points`` run on Triton kernels (``trainer.triton_grouping``)
for clouds on a GPU, and in plain PyTorch (``plain_knn``, ``plain_ball_query``, ``plain_group``)
elsewhere. The plain ones are the definition; MRD3D_TRITON=0 in the environment asks for them.
On a CPU the ball query is a kernel of numba's (``trainer.cpu_kernels``).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from pipeline.console import note

# Elements of one block of the (B, S, N) distance table: 16 Mi float32 are 64 MiB.
CHUNK_ELEMENTS = 1 << 24
CPU_CHUNK_ELEMENTS = 1 << 22  # there a smaller one, which stays in the cache, is faster
# The kernels unroll the channels that they copy; wider points are gathered by index.
FUSED_CHANNELS = 16


def prefix_centroids(xyz_BN3: Tensor, count: int) -> Tensor:
    """(B, count, 3): the first points, which are the farthest-point sample of an ordered cloud.

    Raises ``ValueError`` when a cloud has fewer points.
    """
    if xyz_BN3.shape[1] < count:
        raise ValueError(f"{count} centroids asked of clouds of {xyz_BN3.shape[1]} points")
    return xyz_BN3[:, :count]


_whole: list[bool] = []  # not empty inside of ``without_chunks``


@contextlib.contextmanager
def without_chunks() -> Iterator[None]:
    """Distance tables in one piece: for graphs, which have no loop as long as the batch asks."""
    _whole.append(True)
    try:
        yield
    finally:
        _whole.pop()


def _chunks(centroids_BS3: Tensor, points: int) -> int:
    """How many centroids to treat at once."""
    batch, centroids = centroids_BS3.shape[:2]
    if _whole:
        return centroids
    limit = CHUNK_ELEMENTS
    if centroids_BS3.device.type == "cpu":
        limit = min(limit, CPU_CHUNK_ELEMENTS)
    return max(1, min(centroids, limit // max(batch * points, 1)))


def _squared_distances(centroids_BS3: Tensor, xyz_BN3: Tensor) -> Tensor:
    """(B, S, N) squared distances from differences."""
    distance = torch.cdist(centroids_BS3, xyz_BN3, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.square_()


_found: list[ModuleType | None] = []  # the Triton kernels, once they were looked for


def find_kernels() -> ModuleType | None:
    """The Triton kernels, or None with a note that says why they are not used.

    They are looked for once: before ``torch.compile`` comes by, which cannot.
    """
    if not _found:  # no functools.cache: torch.compile warns of it
        _found.append(_look_for_kernels())
    return _found[0]


def _look_for_kernels() -> ModuleType | None:
    if os.environ.get("MRD3D_TRITON", "1") == "0":
        note("grouping: plain PyTorch, because MRD3D_TRITON=0 is set")
        return None
    try:
        from trainer import triton_grouping

        if torch.cuda.is_available():
            triton_grouping.try_out()
    # Whatever it is: a compiler, a header, a driver that Triton needs may be missing or too old.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        note(f"grouping: plain PyTorch, several times slower; Triton is not usable here ({reason})")
        return None
    return triton_grouping


def _fused(
    name: str, points: Tensor, centroids: Tensor, k: int, radius: float | None
) -> Tensor | None:
    """Result of a kernel, None where the plain version has to do it."""
    kernels = find_kernels()
    if kernels is None or (radius is None and not kernels.knn_fits(points.shape[1])):
        return None
    found: Tensor = getattr(kernels, name)(points, centroids, k, radius)
    return found


@torch.no_grad()
def knn(centroids_BS3: Tensor, xyz_BN3: Tensor, k: int) -> Tensor:
    """(B, S, K) indices of the ``k`` points nearest to each centroid, in no particular order.

    Exact. Among points at the same distance any may be taken, the same ones each time on the
    same machine. Raises ``ValueError`` when a cloud has fewer than ``k`` points.
    """
    _require_neighbours(xyz_BN3, k)
    found = _fused("neighbours", xyz_BN3, centroids_BS3, k, None) if xyz_BN3.is_cuda else None
    return plain_knn(centroids_BS3, xyz_BN3, k) if found is None else found


@torch.no_grad()
def ball_query(centroids_BS3: Tensor, xyz_BN3: Tensor, radius: float, k: int) -> Tensor:
    """(B, S, K) indices of the first ``k`` points within ``radius``, as PointNet++ takes them.

    "First" is by index; a ball with fewer points is padded with its first one, and an empty ball
    holds the point nearest to the centroid. Points exactly on the sphere are inside.
    """
    if _numba_applies(centroids_BS3, xyz_BN3):
        from trainer import cpu_kernels

        return cpu_kernels.ball_query(centroids_BS3, xyz_BN3, radius, k)
    found = _fused("neighbours", xyz_BN3, centroids_BS3, k, radius) if xyz_BN3.is_cuda else None
    return plain_ball_query(centroids_BS3, xyz_BN3, radius, k) if found is None else found


def _numba_applies(*values: Tensor) -> bool:
    """Whether numba's kernels can take these: on a CPU, eagerly, in no graph or transform."""
    traced = torch.compiler.is_compiling() or _transformed()
    fits = all(v.is_cpu and v.dtype in (torch.float32, torch.float64) for v in values)
    return fits and not _whole and not traced


def _transformed() -> bool:
    """Whether a trace or ``torch.func`` is at work: a kernel is not seen, or sees no memory."""
    tracing: bool = torch._C._get_tracing_state() is not None
    return tracing or torch._C._functorch.peek_interpreter_stack() is not None


def group_points(points_BNC: Tensor, centroids_BS3: Tensor, k: int, radius: float | None) -> Tensor:
    """(B, S, K, 3 + C): offset from the centroid, then the channels, of each one's neighbours.

    The first three channels of ``points_BNC`` are the coordinates. ``radius`` asks for the ball
    query, None for the nearest neighbours. Search and gather are one kernel, unless a gradient of
    the points is wanted, on a GPU they are wide, or on a CPU nearest neighbours are asked for.
    Raises ``ValueError`` for nearest neighbours when a cloud has fewer than ``k`` points.
    """
    gradient = torch.is_grad_enabled() and (points_BNC.requires_grad or centroids_BS3.requires_grad)
    narrow = points_BNC.shape[-1] <= FUSED_CHANNELS
    if points_BNC.is_cuda and narrow and not gradient:
        if radius is None:
            _require_neighbours(points_BNC, k)
        found: Tensor | None = _fused("grouped", points_BNC, centroids_BS3, k, radius)
        if found is not None:
            return found
    if radius is not None and not gradient and _numba_applies(points_BNC, centroids_BS3):
        from trainer import cpu_kernels

        return cpu_kernels.ball_group(points_BNC, centroids_BS3, k, radius)
    return plain_group(points_BNC, centroids_BS3, k, radius)


def plain_group(points_BNC: Tensor, centroids_BS3: Tensor, k: int, radius: float | None) -> Tensor:
    """``group_points`` in plain PyTorch."""
    xyz_BN3 = points_BNC[..., :3]
    if radius is None:
        index_BSK = knn(centroids_BS3, xyz_BN3, k)
    else:
        index_BSK = ball_query(centroids_BS3, xyz_BN3, radius, k)
    points_BSKC = gather_points(points_BNC, index_BSK)
    offset_BSK3 = points_BSKC[..., :3] - centroids_BS3[:, :, None]
    return torch.cat([offset_BSK3, points_BSKC], dim=-1)


def _require_neighbours(xyz_BN3: Tensor, k: int) -> None:
    if not 1 <= k <= xyz_BN3.shape[1]:
        raise ValueError(f"{k} neighbours asked of clouds of {xyz_BN3.shape[1]} points")


@torch.no_grad()
def plain_knn(centroids_BS3: Tensor, xyz_BN3: Tensor, k: int) -> Tensor:
    """``knn`` in plain PyTorch."""
    _require_neighbours(xyz_BN3, k)
    step = _chunks(centroids_BS3, xyz_BN3.shape[1])
    found = [
        torch.cdist(part, xyz_BN3, compute_mode="donot_use_mm_for_euclid_dist")
        .topk(k, dim=-1, largest=False, sorted=False)
        .indices
        for part in torch.split(centroids_BS3, step, dim=1)
    ]
    return torch.cat(found, dim=1)


@torch.no_grad()
def plain_ball_query(centroids_BS3: Tensor, xyz_BN3: Tensor, radius: float, k: int) -> Tensor:
    """``ball_query`` in plain PyTorch."""
    n_points = xyz_BN3.shape[1]
    step = _chunks(centroids_BS3, n_points)
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
