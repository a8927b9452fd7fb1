from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluation import embedding_map
from evaluation.embedding_map import map_section, positions, scatter
from evaluation.embeddings import normalise, write_embeddings
from pipeline.common import InputError
from tests.evaluation.test_index import embeddings


def test_positions__groups_stay_together_and_runs_agree() -> None:
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.normal(size=(4, 16)), 30, axis=0)
    vectors = normalise(centres + 0.1 * rng.normal(size=(120, 16)))
    places = positions(vectors)
    np.testing.assert_array_equal(places, positions(vectors))
    group = np.arange(120) // 30
    away = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(away, np.inf)
    assert (group[away.argmin(1)] == group).mean() == 1


def test_scatter__names_the_largest_classes_and_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_map, "MAX_LABELS", 1)
    places = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    drawn = str(scatter(places, ["a<b", "a<b", "c_d", None, "a<b", "c_d"], list("uvwxyz")))
    assert drawn.count("<circle") == 6
    assert drawn.count('class="name"') == 1
    assert "a&lt;b" in drawn
    assert "a<b" not in drawn
    assert drawn.count('fill="#8a9097"') == 1
    assert "nan" not in str(scatter(np.zeros((3, 2), np.float32), [None] * 3, list("uvw")))


def test_map_section__samples_large_files_and_refuses_tiny_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = embeddings(60)
    write_embeddings(tmp_path / "e.parquet", data.meta, [data.rows])
    assert map_section(tmp_path / "e.parquet").told == "60 objects"
    monkeypatch.setattr(embedding_map, "MAX_POINTS", 40)
    assert map_section(tmp_path / "e.parquet").told == "40 objects, sampled from 60"
    few = embeddings(3)
    write_embeddings(tmp_path / "few.parquet", few.meta, [few.rows])
    with pytest.raises(InputError, match="3 rows are too few for a map"):
        map_section(tmp_path / "few.parquet")
