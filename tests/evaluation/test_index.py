from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from evaluation import index as index_module
from evaluation.embeddings import EmbeddingRows, Embeddings, EmbeddingsMeta, ModelInfo, normalise
from evaluation.index import build_index, load_index, sample_queries
from evaluation.index_choice import Wanted, set_width, width_of
from pipeline.common import InputError
from pipeline.shards import Batch, RowGroup, ShardSet, create_or_open, write_part
from tests.evaluation import world


def embeddings(count: int, seed: int = 0) -> Embeddings:
    vectors = normalise(np.random.default_rng(seed).normal(size=(count, world.D)))
    empty: list[list[str]] = [[] for _ in range(count)]
    uids = [f"u/{i}" for i in range(count)]
    none: list[str | None] = [None] * count
    rows = EmbeddingRows(uids, ["s"] * count, none, none, empty, empty, vectors)
    return Embeddings(EmbeddingsMeta(world.teacher_info(), ModelInfo("student", "s"), {}), rows)


def test_flat__finds_exactly_what_numpy_finds(tmp_path: Path) -> None:
    data = embeddings(300)
    build_index(data, tmp_path / "idx")
    index = load_index(tmp_path / "idx")
    queries = normalise(np.random.default_rng(1).normal(size=(20, world.D)))
    scores, rows = index.search_rows(queries, 7)
    products = queries @ data.rows.vectors.T
    np.testing.assert_array_equal(rows, np.argsort(-products, axis=1, kind="stable")[:, :7])
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1)[:, :7], atol=1e-6)
    hit = index.search(queries[0], 1)[0]
    assert (hit.rank, hit.item.uid) == (1, f"u/{rows[0, 0]}")


def test_search__equal_scores_come_by_row_and_k_is_clipped(tmp_path: Path) -> None:
    data = embeddings(6)
    data.rows.vectors[:] = data.rows.vectors[0]
    build_index(data, tmp_path / "idx")
    hits = load_index(tmp_path / "idx").search(data.rows.vectors[0], 50)
    assert [hit.item.uid for hit in hits] == [f"u/{i}" for i in range(6)]


def test_build__the_same_input_gives_the_same_files(tmp_path: Path) -> None:
    data = embeddings(50)
    first = build_index(data, tmp_path / "a")
    second = build_index(data, tmp_path / "b")
    assert first["sha256"] == second["sha256"]
    assert first["kind"] == "flat"
    assert first["recall_against_exact"] is None


@pytest.mark.parametrize("kind", ["flat", "hnsw", "hnsw, most rows", "ivfpq", "ivfpq, most rows"])
def test_search__allowed_rows_only_as_the_obvious_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    data = embeddings(6000)
    kind, _, most = kind.partition(",")
    build_index(data, tmp_path / "idx", wanted=Wanted(kind, recall=0.9))
    index = load_index(tmp_path / "idx")
    assert index.kind == kind
    if most:
        monkeypatch.setattr(index_module, "FEW_ROWS", 1000)
    allowed = np.random.default_rng(2).random(6000) < 0.3
    queries = normalise(np.random.default_rng(1).normal(size=(40, world.D)))
    _, rows = index.search_rows(queries, 5, allowed)
    products = np.where(allowed, queries @ data.rows.vectors.T, -2)
    wanted = np.argsort(-products, axis=1, kind="stable")[:, :5]
    assert allowed[rows].all()
    if most or kind == "ivfpq":
        both = zip(rows, wanted, strict=True)
        assert np.mean([len(np.intersect1d(a, b)) / 5 for a, b in both]) > 0.9
    else:
        np.testing.assert_array_equal(rows, wanted)
    if most:
        return
    one = np.zeros(6000, np.bool_)
    one[77] = True
    hits = index.search(queries[0], 5, one)
    assert [hit.item.uid for hit in hits] == ["u/77"]


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_search__as_many_as_were_asked_for_of_clusters_that_lie_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    data, rng = embeddings(6000), np.random.default_rng(3)
    centres = normalise(rng.normal(size=(60, world.D)))
    spread = 0.02 * rng.normal(size=(6000, world.D))
    data.rows.vectors[:] = normalise(centres[rng.integers(0, 60, 6000)] + spread)
    build_index(data, tmp_path / "idx", wanted=Wanted(kind, recall=0.1))
    index = load_index(tmp_path / "idx")
    set_width(kind, index.engine, 1)  # the least that tuning may find
    monkeypatch.setattr(index_module, "FEW_ROWS", 1000)
    queries = centres[centres[:, 0] > 0.2]
    everywhere, some = np.ones(6000, np.bool_), rng.random(6000) < 0.5
    for allowed in (everywhere, some, data.rows.vectors[:, 0] < 0):
        left = np.flatnonzero(allowed)
        assert len(left) > 1000
        order = left[np.argsort(-queries @ data.rows.vectors[left].T, axis=1)]
        for k in (24, 400, 6001):
            wanted = order[:, :k]
            scores, rows = index.search_rows(queries, k, None if allowed.all() else allowed)
            assert scores.shape == rows.shape == wanted.shape
            assert np.isin(rows, left).all()  # and never -1
            assert all(len(np.unique(row)) == len(row) for row in rows)
            assert (np.diff(scores) <= 0).all()
            found = [len(np.intersect1d(*pair)) for pair in zip(rows, wanted, strict=True)]
            assert k == 24 or np.mean(found) > 0.9 * wanted.shape[1]
    assert len(index.search(queries[0], 24)) == 24


def test_rows_where__of_shards_reads_no_row_group(
    indexed: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, opened, other = load_index(indexed), ShardSet.open(shards), tmp_path / "other"
    rows = [row for group in opened.row_groups for row in opened.rows(group)]
    create_or_open(other, opened.manifest)
    write_part(other, opened.manifest, [replace(row, uid=f"x/{row.uid}") for row in rows])
    read, groups = ShardSet.read, []

    def spy(self: ShardSet, group: RowGroup, columns: Iterable[str] | None = None) -> Batch:
        groups.append(group)
        return read(self, group, columns)

    monkeypatch.setattr(ShardSet, "read", spy)
    where = "split = 'test' and uid < 'tiny/020'"
    wanted = {row.uid for row in rows if row.split == "test" and row.uid < "tiny/020"}
    assert index.rows_where(where, opened).tolist() == [uid in wanted for uid in index.uids()]
    assert groups == []
    with pytest.raises(InputError, match="--where n_faces > 5: no object of"):
        index.rows_where("n_faces > 5", opened)
    assert groups == []
    for condition in (where, "true", "n_faces > 5"):
        with pytest.raises(InputError, match="other: holds none of the objects of"):
            index.rows_where(condition, str(other))


def test_rows_where__objects_that_the_set_lacks_go_by_what_the_index_knows(
    indexed: Path, shards: Path, tmp_path: Path
) -> None:
    index, opened, fewer = load_index(indexed), ShardSet.open(shards), tmp_path / "fewer"
    rows = [row for group in opened.row_groups for row in opened.rows(group)]
    create_or_open(fewer, opened.manifest)
    write_part(fewer, opened.manifest, rows[:10])
    categories = {row.uid: row.category for row in rows}
    known = {row.uid for row in rows[:10]}
    some = categories[rows[12].uid]
    other = rows[12].uid
    for condition, expected in (
        ("true", set(categories)),
        (f"category = '{some}'", {uid for uid in categories if categories[uid] == some}),
        ("n_faces >= 0", set(known)),
        ("n_faces is null", categories.keys() - known),
        (f"n_faces is null and uid <> '{other}'", categories.keys() - known - {other}),
    ):
        found = index.rows_where(condition, str(fewer))
        assert found.tolist() == [uid in expected for uid in index.uids()]
    told = index.about_others(ShardSet.open(fewer))
    assert told is not None
    assert told.startswith(f"{len(rows) - 10} of the {len(rows)} objects of")
    assert index.about_others(opened) is None


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_load__mapped_and_read_give_the_same(tmp_path: Path, kind: str) -> None:
    data = embeddings(6000)
    manifest = build_index(data, tmp_path / "idx", wanted=Wanted(kind, recall=0.9))
    mapped, read = load_index(tmp_path / "idx"), load_index(tmp_path / "idx", writable=True)
    queries = normalise(np.random.default_rng(1).normal(size=(30, world.D)))
    found = [index.search_rows(queries, 10) for index in (mapped, read)]
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
    if kind != "flat":  # how far a search looks survives the file
        assert width_of(kind, mapped.engine) == manifest["settings"]["width"]


@pytest.mark.parametrize("name", ["index.faiss", "ids.parquet"])
def test_load__a_changed_byte_is_noticed_before_it_is_parsed(tmp_path: Path, name: str) -> None:
    build_index(embeddings(20), tmp_path / "idx")
    file = tmp_path / "idx" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=rf"{name}: damaged or exchanged"):
        load_index(tmp_path / "idx")
    file.unlink()
    with pytest.raises(InputError, match="missing from the index"):
        load_index(tmp_path / "idx")


def test_load__manifest_of_another_index(tmp_path: Path) -> None:
    build_index(embeddings(20), tmp_path / "idx")
    path = tmp_path / "idx" / "manifest.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "rows": 19}))
    with pytest.raises(InputError, match="do not fit together"):
        load_index(tmp_path / "idx")
    path.write_text(json.dumps({**record, "version": 3}))
    with pytest.raises(InputError, match="newer"):
        load_index(tmp_path / "idx")
    path.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        load_index(tmp_path / "idx")


def test_search__nothing_allowed_finds_nothing(tmp_path: Path) -> None:
    data = embeddings(20)
    for kind in ("flat", "hnsw"):
        build_index(data, tmp_path / "idx", wanted=Wanted(kind))
        index = load_index(tmp_path / "idx")
        assert index.search(data.rows.vectors[0], 5, np.zeros(20, np.bool_)) == []
        scores, rows = index.search_rows(data.rows.vectors[:3], 5, np.zeros(20, np.bool_))
        assert scores.shape == rows.shape == (3, 0)


@pytest.mark.parametrize("k", [0, -1])
def test_query__of_no_object_is_refused_before_a_model_is_loaded(tmp_path: Path, k: int) -> None:
    build_index(embeddings(20), tmp_path / "idx")
    with pytest.raises(InputError, match=f"k {k}: no object is asked for; give 1 or more"):
        load_index(tmp_path / "idx").query("a mug", k=k)


def test_build__two_rows_of_one_uid_are_refused(tmp_path: Path) -> None:
    data = embeddings(3)
    twice = Embeddings(data.meta, replace(data.rows, uid=["a", "b", "a"]))
    with pytest.raises(InputError, match="the embeddings: two objects have the uid a; give every"):
        build_index(twice, tmp_path / "idx")
    assert not list(tmp_path.iterdir())


def many_groups(folder: Path, groups: int, rows: int = 5) -> ShardSet:
    """A set of row groups whose rows have a text of their own, one of the group and one of all."""
    one = ShardSet.open(world.make_shards(folder / "one", 1))
    (plain,) = one.rows(one.row_groups[0])
    create_or_open(folder / "set", one.manifest)
    for group in range(groups):
        made = []
        for row in range(rows):
            texts = [f"a {group}-{row}", f"of {group}", "thing"]
            made.append(
                replace(
                    plain,
                    uid=f"x/{group:04d}-{row}",
                    texts=texts,
                    text_sources=["name"] * 3,
                    text_embeds=np.stack([world.text_vector(text) for text in texts]),
                    image_embeds=np.tile(world.unit_vector(group * rows + row), (3, 1)),
                )
            )
        write_part(folder / "set", one.manifest, made)
    return ShardSet.open(folder / "set")


def test_samples__are_distinct_and_from_all_over_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "QUERY_GROUPS", 8)
    opened = many_groups(tmp_path, 16)
    order = {uid: at for at, uid in enumerate(opened.uids())}
    vectors = {
        f"a {group}-{row}": order[f"x/{group:04d}-{row}"] for group in range(16) for row in range(5)
    }
    found = sample_queries(opened, limit=20)
    assert found["text"].shape == found["image"].shape == (20, world.D)
    near: dict[int, int] = {}
    for text, at in vectors.items():
        scores = found["text"] @ world.text_vector(text)
        near[at // 5] = near.get(at // 5, 0) + int((scores > 0.9999).sum())
    assert len([group for group, count in near.items() if count]) == 8  # all that were read
    assert np.triu(found["text"] @ found["text"].T, 1).max() < 0.9999
    places = [
        int(np.argmax([image @ world.unit_vector(int(u[2:6]) * 5 + int(u[7:])) for u in order]))
        for image in found["image"]
    ]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0, 79)
    assert len({place // 5 for place in places}) == 8
    assert len(sample_queries(opened, limit=1000)["image"]) == 40


def test_search__another_width_or_teacher_is_refused(tmp_path: Path) -> None:
    build_index(embeddings(20), tmp_path / "idx")
    index = load_index(tmp_path / "idx")
    with pytest.raises(InputError, match="width 8, the query has 9"):
        index.search_rows(np.ones((1, 9), np.float32), 3)
    index.require_teacher(world.teacher_info(), "query")
    with pytest.raises(InputError, match="width 8 against 9"):
        index.require_teacher(world.teacher_info(9), "query")
    with pytest.raises(InputError, match="fingerprints differ"):
        index.require_teacher(world.teacher_info(8, 3), "query")


def test_build__replaces_an_index_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "idx"
    build_index(embeddings(20), out)
    build_index(embeddings(30), out)
    assert len(load_index(out)) == 30
    assert [path.name for path in tmp_path.iterdir()] == ["idx"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(InputError, match="not an index"):
        build_index(embeddings(20), tmp_path / "photos")
    assert (tmp_path / "photos" / "a.jpg").exists()


def test_build__error_on_the_way_keeps_the_old_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "idx"
    build_index(embeddings(20), out)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        build_index(embeddings(30), out)
    assert len(load_index(out)) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["idx"]
