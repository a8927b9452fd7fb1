"""Near-duplicates and nearest neighbours against every pair compared in plain numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.catalog import features as features_module
from pipeline.catalog import neighbours
from pipeline.catalog.features import IMAGES, POINTS, features, mean_texts, occupancy
from pipeline.catalog.neighbours import Groups, first_of, near_groups, nearest
from pipeline.datasets.procedural import ProceduralDataset
from pipeline.points import sample_points
from pipeline.shards import ShardSet
from tests.pipeline.set_tools import sound_manifest, sound_row, write_set
from tests.pipeline.shard_tools import make_manifest, unit

F32 = NDArray[np.float32]


def clustered(count: int, width: int, seed: int, spread: float = 0.3) -> F32:
    """Unit vectors about some centres, with exact and with slightly moved copies."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, count // 40), width))
    values = centres[rng.integers(len(centres), size=count)]
    values = values + spread * rng.normal(size=values.shape)
    copies = count // 10
    values[copies : 2 * copies] = values[:copies] + 0.01 * rng.normal(size=(copies, width))
    values[2 * copies : 3 * copies] = values[:copies]
    return unit(values[rng.permutation(count)])


def plain_groups(vectors: F32, threshold: float) -> list[int]:
    """Labels by flooding, one object after another."""
    near = vectors @ vectors.T >= threshold
    labels = [-1] * len(vectors)
    for start in range(len(vectors)):
        if labels[start] >= 0:
            continue
        todo = [start]
        while todo:
            at = todo.pop()
            if labels[at] < 0:
                labels[at] = start
                todo += np.flatnonzero(near[at]).tolist()
    return labels


@pytest.mark.parametrize("threshold", [0.9, 0.97, 0.999])
@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_near_groups__are_those_of_every_pair(
    threshold: float, tree: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clustered(900, 12, seed)
    if tree:
        monkeypatch.setattr(neighbours, "_ALL_PAIRS", 10)
    monkeypatch.setattr(neighbours, "_LEAF", 50)
    monkeypatch.setattr(neighbours, "_SHADOW", 4)
    monkeypatch.setattr(neighbours, "_ROWS", 64)
    monkeypatch.setattr(neighbours, "_COLUMNS", 100)
    monkeypatch.setattr(neighbours, "_EDGES", 50)
    expected = plain_groups(vectors, threshold)
    assert len(set(expected)) < len(vectors)
    assert near_groups(vectors, threshold, seed).tolist() == expected


@pytest.mark.parametrize("width", [256, 1280])
@pytest.mark.parametrize("tree", [False, True])
def test_near_groups__of_a_cosine_of_1_are_the_copies(
    width: int, tree: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tree:
        monkeypatch.setattr(neighbours, "_ALL_PAIRS", 10)
    monkeypatch.setattr(neighbours, "_LEAF", 50)
    single = unit(np.random.default_rng(0).normal(size=(120, width)))
    moved = unit(single + 0.002 * unit(np.random.default_rng(1).normal(size=single.shape)))
    assert (single * moved).sum(axis=1).min() > 0.999_99
    vectors = np.concatenate([single, moved, single])
    expected = [*range(240), *range(120)]
    assert near_groups(vectors, 1.0).tolist() == expected


def test_near_groups__tree_spares_most_products(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(4000, 32, 0, spread=0.2)
    products = 0
    plain = neighbours._hits

    def counted(rows: F32, others: F32, threshold: float) -> object:
        nonlocal products
        products += len(rows) * len(others)
        return plain(rows, others, threshold)

    monkeypatch.setattr(neighbours, "_hits", counted)
    whole = near_groups(vectors, 0.995)
    assert products >= 4000**2 / 2
    products = 0
    monkeypatch.setattr(neighbours, "_ALL_PAIRS", 10)
    monkeypatch.setattr(neighbours, "_LEAF", 200)
    np.testing.assert_array_equal(near_groups(vectors, 0.995), whole)
    assert products < 4000**2 / 10


def boxes(seed: int) -> tuple[F32, F32]:
    """Lowest and highest corners of 30 boxes."""
    rng = np.random.default_rng(seed)
    low = rng.normal(size=(30, 3)).astype(np.float32)
    return low, low + rng.random((30, 3), np.float32)


def gap(low: F32, high: F32, other_low: F32, other_high: F32) -> float:
    """Squared distance of two boxes, axis by axis."""
    gaps = [
        max(other_low[k] - high[k], low[k] - other_high[k], np.float32(0)) for k in range(len(low))
    ]
    return float(sum(g * g for g in gaps))


def test_near_boxes__are_those_of_every_pair() -> None:
    low, high = boxes(0)
    expected = [
        [a, b]
        for a in range(30)
        for b in range(a, 30)
        if gap(low[a], high[a], low[b], high[b]) <= 0.5
    ]
    assert 30 < len(expected) < 30 * 31 / 2
    assert neighbours._near_boxes(low, high, 0.5).tolist() == expected


def test_reach__is_every_point_near_the_box() -> None:
    points = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)
    for low, high in zip(*boxes(2), strict=True):
        expected = [i for i in range(50, 150) if gap(points[i], points[i], low, high) <= 0.5]
        found = neighbours._reach(points, np.array([50, 150]), low, high, 0.5)
        assert found.tolist() == expected


def test_near_groups__bar_counts_the_pairs_of_leaves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(neighbours, "_ALL_PAIRS", 10)
    monkeypatch.setattr(neighbours, "_LEAF", 100)
    near_groups(unit(np.random.default_rng(0).normal(size=(800, 4))), 0.999)
    told = capsys.readouterr().err.split()
    done, total = map(int, told[1].split("/"))
    assert [told[0], *told[2:4]] == ["compare:", "leaf", "pairs,"]
    assert 8 <= done == total <= 8 * 9 / 2


def test_near_groups__vectors_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(features_module, "_IN_MEMORY", 100)
    monkeypatch.setattr(neighbours, "_ALL_PAIRS", 10)
    vectors = clustered(300, 8, 1)
    stored = features_module.scratch(tmp_path / "x", 300, 8)
    assert isinstance(stored, np.memmap)
    stored[:] = vectors
    assert near_groups(stored, 0.99).tolist() == plain_groups(vectors, 0.99)


def test_near_groups__all_alike_is_one_group_and_none_is_nothing() -> None:
    assert near_groups(np.tile(unit(np.ones(4)), (5000, 1)), 1 - 1e-6).max() == 0
    assert near_groups(np.zeros((0, 4), np.float32), 0.99).tolist() == []
    assert near_groups(np.eye(4, dtype=np.float32), 0.99).tolist() == [0, 1, 2, 3]


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40), st.integers(1, 5))
@settings(deadline=None)
def test_groups__are_the_components_whatever_the_order(
    pairs: list[tuple[int, int]], size: int
) -> None:
    labels = list(range(20))
    for a, b in pairs:
        low, high = sorted((labels[a], labels[b]))
        labels = [low if label == high else label for label in labels]
    groups = Groups(20)
    for at in range(0, len(pairs), size):
        chunk = np.array(pairs[at : at + size])
        groups.add(chunk[:, 0], chunk[:, 1])
        if at % 2:
            groups.labels()
    assert groups.labels().tolist() == labels


def test_first_of__names_the_first_with_the_label() -> None:
    assert first_of(np.array([7, 3, 7, 9, 3])).tolist() == [0, 1, 0, 3, 1]


def test_nearest__is_the_best_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_ROWS", 30)
    monkeypatch.setattr(neighbours, "_COLUMNS", 17)
    vectors = clustered(120, 6, 3)
    for among in (np.arange(120), np.arange(5, 60, 3)):
        cosines = vectors @ vectors[among].T
        cosines[np.arange(120)[:, None] == among] = -2
        found, which = nearest(vectors, among)
        np.testing.assert_allclose(found, np.clip(cosines.max(axis=1), -1, 1), atol=1e-6)
        chosen = np.einsum("bd,bd->b", vectors, vectors[which])
        np.testing.assert_allclose(chosen, cosines.max(axis=1), atol=1e-6)
        assert (which != np.arange(120)).all()
    assert nearest(vectors[:1], np.arange(1))[1].tolist() == [-1]


def test_features__are_the_normalised_means_of_the_views(tmp_path: Path) -> None:
    manifest = sound_manifest()
    rows = [sound_row(manifest, f"{i:03d}") for i in range(100)]
    write_set(tmp_path, manifest, [rows[:70], rows[70:]])
    with features(ShardSet.open(tmp_path)) as found:
        expected = unit(np.stack([r.image_embeds.astype(np.float16) for r in rows]).mean(axis=1))
        np.testing.assert_allclose(found.vectors, expected, atol=2e-3)
        assert (found.measure, found.threshold) == (IMAGES, 0.99)


def test_features__without_views_tell_the_same_shape_from_others(tmp_path: Path) -> None:
    manifest = make_manifest(n_views=0, n_points=4000, n_fps=0)
    rng = np.random.default_rng(0)

    def ellipsoid(axes: list[float]) -> F32:
        return np.asarray(unit(rng.normal(size=(4000, 3))) * axes, np.float32)

    shapes = [ellipsoid([1, 1, 1]), ellipsoid([1, 0.5, 1]), ellipsoid([1, 1, 1])]
    rows = [sound_row(manifest, str(i), xyz=xyz) for i, xyz in enumerate(shapes)]
    write_set(tmp_path, manifest, [rows])
    with features(ShardSet.open(tmp_path)) as found:
        assert (found.measure, found.threshold) == (POINTS, 0.996)
        cosines = found.vectors @ found.vectors.T
        np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-5)
        assert cosines[0, 2] > 0.993  # of 4,000 points; twice as many halve what lacks to 1
        assert cosines[0, 1] < 0.9
        assert near_groups(found.vectors, 0.99).tolist() == [0, 1, 0]


@pytest.mark.parametrize("n_points", [1024, 2048])
def test_features__without_views_know_meshes_that_were_sampled_again(
    tmp_path: Path, n_points: int
) -> None:
    manifest = make_manifest(n_views=0, n_points=n_points, n_fps=0)
    source = ProceduralDataset(30, seed=3)
    meshes = [source.load(record).mesh for record in source.records()]
    rows = [
        sound_row(manifest, f"{seed}/{i}", xyz=sample_points(mesh, n_points, seed, n_fps=0).xyz)
        for seed in range(2)
        for i, mesh in enumerate(meshes)
    ]
    write_set(tmp_path, manifest, [rows])
    with features(ShardSet.open(tmp_path)) as found:
        near = found.vectors[:30] @ found.vectors[30:].T >= found.threshold
        assert np.diag(near).mean() >= 0.95
        assert near.sum() == np.diag(near).sum()  # and no other mesh


@pytest.mark.parametrize(
    ("n_points", "threshold"), [(64, 0.984375), (1024, 0.984375), (4000, 0.996), (20_000, 0.998)]
)
def test_features__without_views_threshold_goes_by_the_number_of_points(
    tmp_path: Path, n_points: int, threshold: float
) -> None:
    manifest = make_manifest(n_views=0, n_points=n_points, n_fps=0)
    write_set(tmp_path, manifest, [[sound_row(manifest, "a")]])
    with features(ShardSet.open(tmp_path)) as found:
        assert found.threshold == threshold


def test_occupancy__is_the_plain_trilinear_count(tmp_path: Path) -> None:
    manifest = make_manifest(n_views=0, n_points=20, n_fps=0)
    row = sound_row(manifest, "a")
    write_set(tmp_path, manifest, [[row]])
    (batch,) = ShardSet.open(tmp_path).batches(["xyz"])
    grid = np.zeros((8, 8, 8))
    for point in batch.xyz_float()[0]:
        place = np.clip((point + 1) * 4 - 0.5, 0, 7)
        for cell in np.ndindex(8, 8, 8):
            grid[cell] += np.prod(np.clip(1 - np.abs(place - cell), 0, None)) / 20
    np.testing.assert_allclose(occupancy(batch)[0], np.sqrt(grid).ravel(), atol=1e-6)


def test_mean_texts__zeros_where_there_are_none(tmp_path: Path) -> None:
    manifest = sound_manifest()
    rows = [sound_row(manifest, str(i), n_texts=i) for i in range(4)]
    write_set(tmp_path, manifest, [rows])
    (batch,) = ShardSet.open(tmp_path).batches(["text_embeds"])
    found = mean_texts(batch)
    assert not found[0].any()
    for row, vector in zip(rows[1:], found[1:], strict=True):
        np.testing.assert_allclose(vector, unit(row.text_embeds.mean(axis=0)), atol=2e-3)
