from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluation.exact import top_k


def vectors(count: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@pytest.mark.parametrize("block", [1, 4 * 16 * 37, 1 << 26])
def test_top_k__any_block_size_gives_what_sorting_gives(block: int) -> None:
    queries, gallery = vectors(13, 16, 1), vectors(500, 16)
    scores, rows = top_k(queries, gallery, 9, block)
    products = queries @ gallery.T
    np.testing.assert_array_equal(rows, np.argsort(-products, axis=1, kind="stable")[:, :9])
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1)[:, :9], rtol=1e-5)


def test_top_k__equal_scores_come_by_row_across_blocks() -> None:
    gallery = np.ones((50, 4), np.float32)
    _, rows = top_k(np.ones((2, 4), np.float32), gallery, 7, 4 * 4 * 7)
    np.testing.assert_array_equal(rows, [list(range(7))] * 2)


def test_top_k__half_precision_from_a_file_as_in_memory(tmp_path: Path) -> None:
    gallery = vectors(300, 8).astype(np.float16)
    np.save(tmp_path / "x.npy", gallery)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    queries = vectors(5, 8, 2)
    for found, wanted in zip(
        top_k(queries, mapped, 4, 4 * 8 * 11), top_k(queries, gallery, 4), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def test_top_k__more_than_there_are_is_clipped() -> None:
    assert top_k(vectors(2, 4), vectors(3, 4), 10)[1].shape == (2, 3)
