from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation import embeddings
from evaluation.embeddings import (
    DType,
    EmbeddingRows,
    EmbeddingsMeta,
    ModelInfo,
    concatenate,
    normalise,
    read_embeddings,
    write_embeddings,
)
from pipeline.common import InputError
from tests.evaluation import world

META = EmbeddingsMeta(world.teacher_info(), ModelInfo("student", "s", "p", "h", 3), {"kind": "x"})


def rows(count: int, seed: int = 0) -> EmbeddingRows:
    vectors = normalise(np.random.default_rng(seed).normal(size=(count, world.D)))
    return EmbeddingRows(
        uid=[f"u/{seed}-{i}" for i in range(count)],
        source=["a.glb"] * count,
        category=[None if i % 2 else "mug" for i in range(count)],
        split=[None] * count,
        texts=[["a", "b"][: i % 3] for i in range(count)],
        text_sources=[["name", "caption"][: i % 3] for i in range(count)],
        vectors=vectors,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 2e-3)])
def test_read__gives_back_what_was_written(tmp_path: Path, dtype: DType, tolerance: float) -> None:
    parts = [rows(5, 1), rows(3, 2)]
    assert write_embeddings(tmp_path / "e.parquet", META, parts, dtype) == 8
    found = read_embeddings(tmp_path / "e.parquet")
    whole = concatenate(parts)
    assert found.meta == META
    for name in ("uid", "source", "category", "split", "texts", "text_sources"):
        assert getattr(found.rows, name) == getattr(whole, name)
    np.testing.assert_allclose(found.rows.vectors, whole.vectors, atol=tolerance)
    np.testing.assert_allclose(np.linalg.norm(found.rows.vectors, axis=1), 1, rtol=1e-6)


def test_write__error_on_the_way_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    write_embeddings(path, META, [rows(2)])
    before = path.read_bytes()

    def failing() -> Iterator[EmbeddingRows]:
        yield rows(4)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_embeddings(path, META, failing())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_write__no_rows_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to write"):
        write_embeddings(tmp_path / "e.parquet", META, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("batches", [[rows(2), rows(2, 1), rows(1)], [rows(1), rows(1)]])
def test_write__a_uid_that_is_there_is_refused_and_nothing_written(
    tmp_path: Path, batches: list[EmbeddingRows]
) -> None:
    with pytest.raises(InputError, match=r"e\.parquet: two objects have the uid u/0-0; give every"):
        write_embeddings(tmp_path / "e.parquet", META, batches)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_read__parts_of_groups_are_put_together_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: DType
) -> None:
    write_embeddings(tmp_path / "e.parquet", META, [rows(7, 1), rows(3, 2), rows(4, 3)], dtype)
    whole = read_embeddings(tmp_path / "e.parquet").rows
    monkeypatch.setattr(embeddings, "_READ_ROWS", 3)
    found = read_embeddings(tmp_path / "e.parquet").rows
    assert (found.uid, found.texts) == (whole.uid, whole.texts)
    np.testing.assert_array_equal(found.vectors, whole.vectors)


def test_read__takes_little_beside_the_vectors(tmp_path: Path) -> None:
    count, width = 6000, 512
    meta = replace(META, teacher=world.teacher_info(width))
    vectors = normalise(np.random.default_rng(0).normal(size=(count, width)))
    parts = (
        replace(
            rows(60, at), vectors=vectors[at : at + 60], texts=[[]] * 60, text_sources=[[]] * 60
        )
        for at in range(0, count, 60)
    )
    write_embeddings(tmp_path / "e.parquet", meta, parts)
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.system_memory_pool())
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        found = read_embeddings(tmp_path / "e.parquet")
        peak = tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    assert len(found.rows) == count
    assert peak < 1.5 * vectors.nbytes


@pytest.mark.parametrize("factor", [2.0, np.nan])
def test_write__vectors_that_are_not_unit_are_refused(tmp_path: Path, factor: float) -> None:
    bad = rows(2)
    with pytest.raises(ValueError, match="not L2-normalised"):
        write_embeddings(tmp_path / "e", META, [replace(bad, vectors=bad.vectors * factor)])


def rewrite(path: Path, change: Any) -> None:
    """Write the file again with its record changed."""
    table = pq.read_table(path)
    with pq.ParquetFile(path) as file:
        record = json.loads(file.metadata.metadata[embeddings.KEY])
    change(record)
    pq.write_table(table.replace_schema_metadata({embeddings.KEY: json.dumps(record)}), path)


NINE = dict.fromkeys(("fingerprint_image", "fingerprint_text"), [1.0] + [0.0] * 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(count=7), "holds 4 rows, its record says 7"),
        (lambda r: r.update(version=99), "newer than 1"),
        (lambda r: r.update(version="x"), "not a number"),
        (lambda r: r.update(format="other"), "not of the format"),
        (lambda r: r.update(dtype="int3"), "unknown dtype"),
        (lambda r: r.pop("teacher"), "field teacher"),
        (lambda r: r["teacher"].pop("width"), "teacher.width is missing"),
        (lambda r: r["model"].update(extra=1), "field model"),
        (lambda r: r.pop("data"), "field data"),
        (lambda r: r["teacher"].update(width=9), "teacher.fingerprint_image is damaged"),
        (lambda r: r["teacher"].update(width=9, **NINE), "width 9"),
        (lambda r: r["teacher"].update(logit_scale=0.0), "teacher.logit_scale"),
    ],
)
def test_read__record_that_does_not_fit_is_named(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "e.parquet"
    write_embeddings(path, META, [rows(4)])
    rewrite(path, change)
    with pytest.raises(InputError, match=message):
        read_embeddings(path)


def test_read__truncated_foreign_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    write_embeddings(path, META, [rows(4)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="truncated or not Parquet"):
        read_embeddings(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(InputError, match="not an embeddings file"):
        read_embeddings(path)
    with pytest.raises(InputError, match="no such file"):
        read_embeddings(tmp_path / "none")


def test_meta__is_plain_json() -> None:
    assert json.loads(json.dumps(asdict(META)))["model"]["step"] == 3
