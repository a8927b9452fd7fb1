from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from trainer import grouping
from trainer.grouping import (
    ball_query,
    farthest_point_sample,
    gather_points,
    group_points,
    knn,
    plain_ball_query,
    prefix_centroids,
)


def clouds(batch: int, points: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, points, 3, generator=generator) * 2 - 1


def squared(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).square().sum())


def oracle_ball(centroid: Tensor, cloud: Tensor, radius: float, k: int) -> list[int]:
    inside = [i for i, p in enumerate(cloud) if squared(centroid, p) <= radius * radius][:k]
    if not inside:
        inside = [min(range(len(cloud)), key=lambda i: squared(centroid, cloud[i]))]
    return inside + [inside[0]] * (k - len(inside))


@pytest.mark.parametrize(("batch", "points", "centroids", "k"), [(1, 7, 1, 7), (3, 61, 17, 9)])
def test_knn__equals_the_oracle(batch: int, points: int, centroids: int, k: int) -> None:
    xyz = clouds(batch, points)
    found = knn(xyz[:, :centroids], xyz, k)
    assert found.shape == (batch, centroids, k)
    for b in range(batch):
        for s in range(centroids):
            order = sorted(range(points), key=lambda i: squared(xyz[b, s], xyz[b, i]))
            assert sorted(found[b, s].tolist()) == sorted(order[:k])


def test_knn__ties_give_neighbours_at_the_right_distances_without_repeats() -> None:
    # A grid has many equal distances, and every point is there twice.
    axis = torch.linspace(-1, 1, 4)
    grid = torch.cartesian_prod(axis, axis, axis)
    xyz = torch.cat([grid, grid])[None]
    k = 11
    found = knn(xyz[:, :20], xyz, k)
    for s in range(20):
        rows = found[0, s].tolist()
        assert len(set(rows)) == k
        distances = sorted(squared(xyz[0, s], p) for p in xyz[0])
        assert sorted(squared(xyz[0, s], xyz[0, i]) for i in rows) == pytest.approx(distances[:k])
    assert torch.equal(found, knn(xyz[:, :20], xyz, k))


def test_knn__near_points_far_from_the_origin_are_told_apart() -> None:
    # |a|^2 - 2ab + |b|^2 in float32 loses these differences.
    base = torch.tensor([0.577, 0.577, 0.577])
    steps = torch.arange(64)[:, None] * 1e-5 * torch.tensor([1.0, -1.0, 0.0])
    xyz = (base + steps)[None]
    assert sorted(knn(xyz[:, :1], xyz, 5)[0, 0].tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("radius", [0.05, 0.4, 5.0])
def test_ball_query__equals_the_loop(radius: float) -> None:
    xyz = clouds(2, 50)
    found = ball_query(xyz[:, :13], xyz, radius, 6)
    for b in range(2):
        for s in range(13):
            assert found[b, s].tolist() == oracle_ball(xyz[b, s], xyz[b], radius, 6)


def test_ball_query__empty_ball_takes_the_nearest_point() -> None:
    xyz = clouds(1, 30)
    far = torch.tensor([[[9.0, 0.0, 0.0]]])
    assert ball_query(far, xyz, 0.1, 4)[0, 0].tolist() == oracle_ball(far[0, 0], xyz[0], 0.1, 4)


def test_ball_query__point_on_the_sphere_is_inside() -> None:
    xyz = torch.tensor([[[0.0, 0, 0], [0.5, 0, 0], [0.75, 0, 0]]])
    assert ball_query(xyz[:, :1], xyz, 0.5, 3)[0, 0].tolist() == [0, 1, 0]


def test_grouping__chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    xyz = clouds(2, 40)
    whole = knn(xyz[:, :15], xyz, 5), ball_query(xyz[:, :15], xyz, 0.5, 5)
    monkeypatch.setattr(grouping, "CHUNK_ELEMENTS", 2 * 40 * 4)
    parts = knn(xyz[:, :15], xyz, 5), ball_query(xyz[:, :15], xyz, 0.5, 5)
    assert torch.equal(whole[0].sort(-1).values, parts[0].sort(-1).values)
    assert torch.equal(whole[1], parts[1])


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("radius", [0.01, 0.2, 5.0])
@pytest.mark.parametrize("k", [1, 16, 200])
def test_ball_query__equals_the_plain_one(
    radius: float, k: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    xyz = clouds(3, 700)
    centroids = xyz[:, :90] + 0.003  # no points of the clouds: small balls are empty
    points = torch.cat([xyz, xyz.flip(1)[..., :2]], dim=-1)
    expected = plain_ball_query(centroids, xyz, radius, k)
    assert torch.equal(ball_query(centroids, xyz, radius, k), expected)
    grouped = group_points(points, centroids, k, radius)
    near = gather_points(points, expected)
    assert torch.equal(grouped[..., 3:], near)
    assert torch.equal(grouped[..., :3], near[..., :3] - centroids[:, :, None])


def test_group_points__keeps_the_gradient_of_the_points_where_it_is_wanted() -> None:
    points = clouds(2, 50).requires_grad_()
    grouped = group_points(points, points[:, :5].detach(), 4, 0.5)
    torch.autograd.backward(grouped.sum())
    assert points.grad is not None
    with torch.no_grad():
        assert torch.equal(grouped, group_points(points, points[:, :5], 4, 0.5))


def test_group_points__shapes_that_do_not_fit_are_refused() -> None:
    xyz = clouds(2, 30)
    for centroids, points in (
        (xyz[:1, :4], xyz),
        (xyz[:, :4], xyz[:1]),
        (xyz[:, :4, :2], xyz),
        (xyz[:, :4], xyz[..., :2]),
    ):
        with pytest.raises(ValueError, match="do not fit points"):
            group_points(points, centroids, 3, 0.5)
        with pytest.raises(ValueError, match="do not fit points"):
            ball_query(centroids, points, 0.5, 3)
    with pytest.raises(ValueError, match="clouds without points"):
        ball_query(xyz[:, :4], xyz[:, :0], 0.5, 3)


def test_group_points__a_trace_or_a_transform_takes_what_it_can_see() -> None:
    first, second = clouds(1, 30), clouds(1, 30, seed=1)

    def grouped(xyz: Tensor) -> Tensor:
        return group_points(xyz, xyz[:, :4], 3, 0.5)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(grouped, first)  # type: ignore[no-untyped-call]
    assert torch.equal(traced(second), grouped(second))
    slope = torch.func.grad(lambda xyz: grouped(xyz).square().sum())(first)
    assert bool(slope.isfinite().all())
    assert float(slope.abs().sum()) > 0


def test_ball_query__float64_is_not_rounded_to_float32() -> None:
    xyz = torch.tensor([[[0.0, 0, 0], [0.5 + 1e-12, 0, 0]]], dtype=torch.float64)
    assert ball_query(xyz[:, :1], xyz, 0.5, 2)[0, 0].tolist() == [0, 0]


def test_gather_points__equals_indexing() -> None:
    values = torch.randn(3, 20, 5, generator=torch.Generator().manual_seed(0))
    index = torch.randint(0, 20, (3, 4, 6), generator=torch.Generator().manual_seed(1))
    expected = torch.stack([values[b][index[b]] for b in range(3)])
    assert torch.equal(gather_points(values, index), expected)


def test_farthest_point_sample__equals_the_oracle() -> None:
    xyz = clouds(2, 40)
    found = farthest_point_sample(xyz, 12)
    for b in range(2):
        chosen = [0]
        while len(chosen) < 12:
            distances = [min(squared(p, xyz[b, c]) for c in chosen) for p in xyz[b]]
            chosen.append(max(range(40), key=lambda i: distances[i]))
        assert found[b].tolist() == chosen


def test_prefix_centroids__are_the_sample_of_an_ordered_cloud() -> None:
    xyz = clouds(2, 40)
    order = farthest_point_sample(xyz, 40)
    ordered = torch.stack([xyz[b][order[b]] for b in range(2)])
    again = farthest_point_sample(ordered, 10)
    assert torch.equal(again, torch.arange(10).expand(2, -1))
    assert torch.equal(prefix_centroids(ordered, 10), ordered[:, :10])


def test_grouping__too_few_points_are_refused() -> None:
    xyz = clouds(1, 5)
    with pytest.raises(ValueError, match="6 neighbours"):
        knn(xyz, xyz, 6)
    with pytest.raises(ValueError, match="6 centroids"):
        prefix_centroids(xyz, 6)
    with pytest.raises(ValueError, match="6 samples"):
        farthest_point_sample(xyz, 6)
