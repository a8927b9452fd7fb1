from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pytest

from evaluation import index_choice
from evaluation.embeddings import normalise
from evaluation.exact import top_k
from evaluation.index import build_index, load_index, sample_queries
from evaluation.index_choice import Plan, Wanted, choose, make, plans, recall_against, tune
from pipeline.common import InputError
from pipeline.shards import ShardSet
from tests.evaluation import world
from tests.evaluation.test_index import embeddings


def clustered(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Unit vectors in 200 groups, as embeddings of things of 200 kinds lie."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(200, width))
    return normalise(centres[rng.integers(200, size=count)] + rng.normal(size=(count, width)) * 0.6)


def test_plans__below_the_limit_flat_is_first_and_above_last() -> None:
    assert next(p.kind for p in plans(100_000, 512, Wanted())) == "flat"
    kinds = [p.kind for p in plans(300_000, 512, Wanted())]
    assert kinds == ["hnsw", "ivfpq", "ivfpq", "ivfpq", "ivfpq", "flat"]
    assert [p.settings["code_bytes"] for p in plans(300_000, 512, Wanted("ivfpq"))] == [
        *(64, 128, 256, 512)
    ]


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_plans__the_estimate_of_memory_is_that_of_the_file(tmp_path: Path, kind: str) -> None:
    vectors = clustered(5000, 16)
    plan = plans(5000, 16, Wanted(kind))[0]
    faiss.write_index(make(plan, vectors), str(tmp_path / "x"))
    assert plan.memory == pytest.approx((tmp_path / "x").stat().st_size, rel=0.05)


def test_choose__above_the_limit_is_hnsw_with_its_recall_measured(
    tmp_path: Path, shards: Path
) -> None:
    data = embeddings(2000)
    queries = sample_queries(ShardSet.open(shards))
    assert {name: value.shape for name, value in queries.items()} == {
        "text": (24, world.D),  # 4 names and 20 captions, on 40 objects
        "image": (40, world.D),
    }
    wanted = Wanted(flat_limit=1000)
    manifest = build_index(data, tmp_path / "idx", wanted=wanted, queries=queries)
    assert manifest["kind"] == "hnsw"
    recall = manifest["recall_against_exact"]
    assert set(recall) == {"shape", "text", "image"}
    assert all(0.95 <= value["recall"] <= 1 for value in recall.values())
    assert recall["text"]["queries"] == 24
    assert manifest["latency_ms"] > 0
    index = load_index(tmp_path / "idx")
    assert index.search(data.rows.vectors[17], 1)[0].item.uid == "u/17"


def test_choose__little_memory_takes_the_shortest_codes_that_are_good_enough() -> None:
    vectors, queries = clustered(5000, 16), clustered(200, 16, 1)
    samples = {"shape": queries}
    memory = 310_000  # the vectors take 320,000 bytes
    built = choose(vectors, samples, Wanted(flat_limit=0, recall=0.7, memory=memory))
    assert built.plan.kind == "ivfpq"
    assert built.plan.memory <= memory
    kinds = [entry["kind"] for entry in built.tried]
    assert kinds[0] == "hnsw"
    assert "MB" in built.tried[0]["refused"]
    short = list(built.tried[1:-1])
    assert all(entry["refused"].startswith("recall 0.") for entry in short)
    exact = top_k(queries, vectors, 10)[1]
    assert built.recall is not None
    assert built.recall["shape"] == recall_against(built.engine, exact, queries)
    assert built.recall["shape"]["recall"] >= 0.7
    longer = choose(vectors, samples, Wanted("ivfpq", recall=0.9))
    assert longer.plan.settings["code_bytes"] > built.plan.settings["code_bytes"]


def test_choose__a_search_is_widened_only_as_far_as_needed() -> None:
    vectors, samples = embeddings(5000).rows.vectors, {"shape": embeddings(200, 1).rows.vectors}
    easy = choose(vectors, samples, Wanted("ivfpq", recall=0.3))
    hard = choose(vectors, samples, Wanted("ivfpq", recall=0.7))
    assert easy.plan.settings["width"] < hard.plan.settings["width"]


def test_tune__a_narrow_search_that_gains_nothing_is_widened_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recalls = iter([0.5, 0.5, 0.5, 0.97])  # by 1, 2, 4 and 8 lists
    monkeypatch.setattr(index_choice, "recall_against", lambda *_: {"recall": next(recalls)})
    engine = SimpleNamespace(nprobe=0)
    query, exact = {"shape": np.zeros((1, 2), np.float32)}, {"shape": np.zeros((1, 1), np.int64)}
    found = tune(Plan("ivfpq", {"lists": 100}, 0), engine, query, exact, 0.95)
    assert (found["shape"]["recall"], engine.nprobe) == (0.97, 8)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (
            Wanted(memory=1000),
            r"no index reaches recall 0.95, 0.001 MB \(flat: needs 0.32 MB; hnsw",
        ),
        (
            Wanted("hnsw", latency_ms=1e-9),
            r"recall 0.95, 1e-09 ms \(hnsw: .* ms per query\); lower",
        ),
        (Wanted("ivfpq", recall=1.0), r"ivfpq with codes of 2 bytes: recall 0\.\d+; ivfpq"),
    ],
)
def test_choose__nothing_reaches_what_is_wanted(wanted: Wanted, told: str) -> None:
    with pytest.raises(InputError, match=told):
        choose(clustered(5000, 16), {"shape": clustered(50, 16, 1)}, wanted)


def test_choose__too_few_rows_for_codes_and_an_unknown_kind() -> None:
    vectors = clustered(100, 32)
    with pytest.raises(InputError, match="100 rows are too few to train codes on"):
        choose(vectors, {"shape": vectors}, Wanted("ivfpq"))
    with pytest.raises(InputError, match="--kind tree: use auto, flat, hnsw, ivfpq"):
        choose(vectors, {"shape": vectors}, Wanted("tree"))


def test_recall_against__counts_what_was_missed() -> None:
    class Fixed:
        def search(self, _queries: object, k: int) -> tuple[None, object]:
            return None, np.array([list(range(10)), [*range(10, 15), *range(50, 55)]])[:, :k]

    exact = np.array([list(range(10)), list(range(10, 20))])
    measured = recall_against(Fixed(), exact, np.zeros((2, 3), np.float32))
    assert measured == {"k": 10, "queries": 2, "recall": 0.75}


def test_make__lists_are_learned_once_and_the_index_is_the_same() -> None:
    vectors = clustered(5000, 16)
    short, long = plans(5000, 16, Wanted("ivfpq"))[:2]
    alone = make(long, vectors)
    after = make(long, vectors, before=make(short, vectors))
    queries = clustered(50, 16, 1)
    for engine in (alone, after):
        engine.nprobe = 4
    np.testing.assert_array_equal(alone.search(queries, 10)[1], after.search(queries, 10)[1])


@pytest.mark.parametrize("kind", ["flat", "ivfpq"])
def test_make__blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    vectors, told = clustered(5000, 16), list[int]()
    plan = plans(5000, 16, Wanted(kind))[0]
    whole = faiss.serialize_index(make(plan, vectors))
    monkeypatch.setitem(index_choice._BLOCKS, kind, 700)
    parts = faiss.serialize_index(make(plan, vectors, advance=told.append))
    np.testing.assert_array_equal(whole, parts)
    assert told == [700] * 7 + [100]


def test_make__a_graph_of_small_blocks_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = clustered(3000, 16), clustered(200, 16, 1)
    exact, found = top_k(queries, vectors, 10)[1], []
    for block in (3000, 200):
        monkeypatch.setitem(index_choice._BLOCKS, "hnsw", block)
        engine = make(plans(3000, 16, Wanted("hnsw"))[0], vectors)
        found.append(recall_against(engine, exact, queries)["recall"])
    assert found[1] == pytest.approx(found[0], abs=0.01)
    assert found[1] > 0.9


def test_choose__tells_of_every_plan_that_is_built_and_of_its_rows() -> None:
    told: list[str | int] = []

    @contextmanager
    def trying(plan: Plan) -> Iterator[Callable[[int], None]]:
        told.append(plan.told())
        yield told.append
        told.append("made")

    vectors, samples = clustered(500, 16), {"shape": clustered(50, 16, 1)}
    wanted = Wanted(flat_limit=0, recall=1.1)  # only what is exact will do
    choose(vectors, samples, wanted, trying=trying)
    assert told == ["hnsw", 500, "made", "flat", 500, "made"]
    told.clear()
    choose(vectors, samples, replace(wanted, memory=40_000), trying=trying)
    assert told == ["flat", 500, "made"]


def test_latency__is_of_single_queries() -> None:
    asked = []

    class Engine:
        def search(self, queries: np.ndarray, k: int) -> None:
            asked.append((queries.shape, k))

    samples = {"text": clustered(80, 32), "shape": clustered(500, 32)}
    assert index_choice.latency_ms(Engine(), samples) > 0
    assert len(asked) == 100
    assert set(asked) == {((1, 32), 10)}
