from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from evaluation.embeddings import Embeddings, normalise
from evaluation.index import build_index, load_index
from evaluation.index_choice import Wanted
from evaluation.index_update import _changed, update_index
from evaluation.sources import Views, ViewsEncoder
from pipeline.common import InputError
from pipeline.shards import ShardSet
from tests.evaluation import world
from tests.evaluation.test_index import embeddings

KINDS = pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])


def some(count: int, seed: int, uids: list[str]) -> Embeddings:
    found = embeddings(count, seed)
    return Embeddings(found.meta, replace(found.rows, uid=uids))


def build(tmp_path: Path, kind: str, count: int = 6000) -> tuple[Path, Embeddings]:
    data = embeddings(count)
    build_index(data, tmp_path / "idx", wanted=Wanted(kind, recall=0.9))
    return tmp_path / "idx", data


@KINDS
def test_update__finds_what_an_index_of_the_new_objects_would(tmp_path: Path, kind: str) -> None:
    path, data = build(tmp_path, kind)
    removed = {f"u/{i}" for i in range(0, 1500, 3)}
    new = some(300, 7, [f"new/{i}" for i in range(300)])
    done = update_index(path, new, removed)
    assert (done.added, done.replaced, done.removed) == (300, 0, 500)
    assert done.manifest["count"] == 5800
    index = load_index(path)
    assert len(index) == 5800
    kept = [i for i, uid in enumerate(data.rows.uid) if uid not in removed]
    uids = [*(data.rows.uid[i] for i in kept), *new.rows.uid]
    vectors = np.concatenate([data.rows.vectors[kept], new.rows.vectors])
    queries = normalise(np.random.default_rng(1).normal(size=(60, world.D)))
    best = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :5]
    shares = []
    for query, rows in zip(queries, best, strict=True):
        found = [hit.item.uid for hit in index.search(query, 5)]
        wanted = [uids[row] for row in rows]
        assert not removed & set(found)
        if kind == "flat":
            assert found == wanted
        shares.append(len(set(found) & set(wanted)) / 5)
    assert np.mean(shares) > 0.85
    hits = index.search(new.rows.vectors[3], 1)
    assert hits[0].item.uid == "new/3"


@KINDS
def test_update__a_replaced_object_is_there_once(tmp_path: Path, kind: str) -> None:
    path, data = build(tmp_path, kind)
    new = some(1, 8, ["u/5"])
    with pytest.raises(InputError, match=r"1 of the new objects already exist \(u/5\)"):
        update_index(path, new)
    done = update_index(path, new, replace=True)
    assert (done.added, done.replaced, done.removed) == (0, 1, 0)
    index = load_index(path)
    assert len(index) == 6000
    assert index.search(new.rows.vectors[0], 1)[0].item.uid == "u/5"
    near = index.search(data.rows.vectors[5], 6000)
    assert [hit.item.uid for hit in near].count("u/5") <= 1
    assert done.manifest["updates"] == [{"added": 0, "replaced": 1, "removed": 0}]


def test_update__conditions_see_no_removed_object(tmp_path: Path) -> None:
    path, _ = build(tmp_path, "hnsw")
    update_index(path, None, {"u/1", "u/2"})
    index = load_index(path)
    allowed = index.rows_where("uid in ('u/1', 'u/3')")
    assert np.flatnonzero(allowed).tolist() == [3]
    with pytest.raises(InputError, match=r"no object of .* is left"):
        index.rows_where("uid = 'u/2'")


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_update__conditions_see_a_replaced_object_as_it_is_now(tmp_path: Path, kind: str) -> None:
    data = embeddings(6000)
    old: list[str | None] = ["wrong" if i == 5 else "other" for i in range(6000)]
    data = Embeddings(data.meta, replace(data.rows, category=old))
    build_index(data, tmp_path / "idx", wanted=Wanted(kind, recall=0))
    new = some(1, 8, ["u/5"])
    fixed = Embeddings(new.meta, replace(new.rows, category=["right"]))
    update_index(tmp_path / "idx", fixed, replace=True)
    index = load_index(tmp_path / "idx")
    assert np.flatnonzero(index.rows_where("category = 'right'")).tolist() == [6000]
    assert int(index.rows_where("category <> 'other'").sum()) == 1
    with pytest.raises(InputError, match=r"no object of .* is left"):
        index.rows_where("category = 'wrong'")


@pytest.mark.parametrize("views", [("mean", "first"), ("first", "mean")])
def test_update__views_of_another_choice_are_refused(
    tmp_path: Path, shards: Path, views: tuple[Views, Views]
) -> None:
    opened = ShardSet.open(shards)
    kept, other = (ViewsEncoder(opened, one).model for one in views)
    data = embeddings(20)
    build_index(Embeddings(replace(data.meta, model=kept), data.rows), tmp_path / "idx")
    new = some(1, 3, ["new"])
    told = f"by teacher fake, {views[0]} view, the new ones by teacher fake, {views[1]} view"
    with pytest.raises(InputError, match=told + "; encode them with the same --views"):
        update_index(tmp_path / "idx", Embeddings(replace(data.meta, model=other), new.rows))
    update_index(tmp_path / "idx", Embeddings(replace(data.meta, model=kept), new.rows))


def test_update__a_removed_object_can_come_again(tmp_path: Path) -> None:
    path, _ = build(tmp_path, "hnsw")
    update_index(path, None, {"u/1"})
    done = update_index(path, some(1, 9, ["u/1"]))
    assert done.manifest["count"] == 6000
    assert len(done.manifest["updates"]) == 2


def test_update__says_when_it_is_time_to_make_it_again(tmp_path: Path) -> None:
    path, _ = build(tmp_path, "hnsw")
    assert not update_index(path, None, {"u/1"}).stale
    assert update_index(path, None, {f"u/{i}" for i in range(100, 1400)}).stale


def test_update__other_embeddings_and_uids_are_refused_and_nothing_changes(tmp_path: Path) -> None:
    path, data = build(tmp_path, "flat", 50)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    other = replace(data.meta, model=replace(data.meta.model, hash="ff", name="late", step=9))
    new = some(1, 3, ["new"])
    for add, remove, told in [
        (Embeddings(other, new.rows), (), r"by s \(step 0\), the new ones by late \(step 9\)"),
        (Embeddings(replace(data.meta, teacher=world.teacher_info(9)), new.rows), (), "width"),
        (some(2, 3, ["new", "new"]), (), "embeddings: two objects have the uid new;"),
        (None, {"u/1", "nobody", "noone"}, "has no object nobody and 1 others that --remove names"),
        (None, set(data.rows.uid), "nothing would be left"),
    ]:
        with pytest.raises(InputError, match=told):
            update_index(path, add, remove)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_update__error_on_the_way_keeps_the_old_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = build(tmp_path, "flat", 50)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        update_index(path, None, {"u/1"})
    assert len(load_index(path)) == 50
    assert [file.name for file in tmp_path.iterdir()] == ["idx"]


def test_changed__a_replaced_object_went_and_came() -> None:
    updates = [{"added": 1, "replaced": 2, "removed": 3}]
    assert _changed({"updates": updates, "rows": 16}) == 0.5


def test_update__what_is_removed_can_come_again_at_once(tmp_path: Path) -> None:
    path, _ = build(tmp_path, "flat", 50)
    done = update_index(path, some(1, 8, ["u/5"]), {"u/5"})
    assert (done.added, done.replaced, done.removed) == (1, 0, 1)


def test_search_rows__removed_rows_are_never_allowed(tmp_path: Path) -> None:
    path, data = build(tmp_path, "hnsw", 200)
    update_index(path, None, {"u/5"})
    every = np.ones(200, np.bool_)
    rows = load_index(path).search_rows(data.rows.vectors[5:6], 200, every)[1]
    assert rows.shape == (1, 199)
    assert 5 not in rows
