from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evaluation.benchmarks.known import BENCHMARKS, find
from evaluation.benchmarks.known.base import Benchmark, Variant
from evaluation.commands.measure import selected
from evaluation.published import published
from pipeline.common import InputError
from pipeline.datasets.sources import sources
from pipeline.shards import ShardSet
from tests.evaluation import world


def set_of(tmp_path: Path, name: str, **options: Any) -> ShardSet:
    dataset = {"name": name, "options": options}
    return ShardSet.open(world.make_shards(tmp_path / "set", 8, dataset=dataset))


@pytest.mark.parametrize("known", BENCHMARKS.values(), ids=lambda known: known.name)
def test_known__is_consistent_with_the_sources_and_the_published_figures(known: Benchmark) -> None:
    assert set(known.sources) <= {*sources(), "openshape"}
    if known.classes is not None:
        assert len(set(known.classes)) == len(known.classes) == known.n_classes
        assert not any("_" in name for name in known.classes)
    papers = published()["benchmarks"].get(known.name)
    if papers:
        counts = {count for variant in known.variants for count in variant.counts}
        assert papers["classes"] == known.n_classes
        assert set(papers["counts"]) <= counts


@pytest.mark.parametrize(
    ("benchmark", "dataset", "options", "variant", "split"),
    [
        ("modelnet40", "modelnet", {"subset": "40"}, "meshes, test", "test"),
        ("modelnet40", "modelnet-points", {"subset": "40"}, "meshes, test", "test"),
        ("modelnet40", "openshape", {"kind": "modelnet40"}, "openshape clouds", None),
        ("modelnet10", "modelnet", {"subset": "10"}, "meshes, test", "test"),
        ("scanobjectnn", "openshape", {"kind": "scanobjectnn"}, "openshape file", None),
        ("scanobjectnn", "scanobjectnn", {"subset": "PB_T50_RS"}, "PB_T50_RS, test", "test"),
        ("objaverse-lvis", "objaverse", {"subset": "lvis"}, "meshes", None),
        ("objaverse-lvis", "openshape", {"kind": "lvis"}, "openshape list", None),
        ("procedural", "procedural", {"seed": 3}, "held out", "test"),
    ],
)
def test_variant__is_told_by_the_manifest(
    tmp_path: Path,
    benchmark: str,
    dataset: str,
    options: dict[str, Any],
    variant: str,
    split: str | None,
) -> None:
    known = find(benchmark)
    assert known is not None
    found = known.variant(set_of(tmp_path, dataset, **options))
    assert (found.name, found.split) == (variant, split)


@pytest.mark.parametrize(
    ("dataset", "options"),
    [("folder", {}), ("modelnet", {"subset": "10"}), ("openshape", {"kind": "training"})],
)
def test_variant__a_set_of_something_else_is_refused(
    tmp_path: Path, dataset: str, options: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=rf"is of dataset {dataset}.*not of modelnet40 "):
        BENCHMARKS["modelnet40"].variant(set_of(tmp_path, dataset, **options))


def test_labels__all_classes_can_be_answered_and_strange_categories_are_named() -> None:
    known = BENCHMARKS["modelnet40"]
    labels = known.labels(["night_stand", "chair", None])
    assert len(labels) == 40
    assert labels.names[labels.by_category["night stand"]] == "night stand"
    with pytest.raises(InputError, match="'fork' and 1 other categories of the set are not among"):
        known.labels(["chair", "spoon", "fork"])


def test_labels__lvis_keeps_its_underscores_where_the_protocol_wants_them() -> None:
    known = BENCHMARKS["objaverse-lvis"]
    categories = ["aerosol can", "bow_(weapon)", "aerosol_can"]
    assert known.labels(categories).names == ["aerosol can", "bow (weapon)"]
    assert known.labels(categories, as_released=True).names == ["aerosol_can", "bow_(weapon)"]
    chairs = BENCHMARKS["modelnet40"].labels(["chair"], as_released=True)
    assert "night stand" in chairs.names


def test_labels__spellings_of_one_name_are_one_class() -> None:
    labels = BENCHMARKS["objaverse-lvis"].labels(["Coffee_mug", "coffee mug", "car"])
    assert labels.names == ["Coffee mug", "car"]
    assert [labels.find(c) for c in ("coffee-mug", "Coffee_mug", "car")] == [0, 0, 1]


def test_selected__a_result_says_how_many_classes_there_should_be() -> None:
    known = BENCHMARKS["objaverse-lvis"]
    told = selected(known, known.variants[0])
    assert told["benchmark_classes"] == 1156
    assert told["benchmark_counts"] == [46205]
    free = BENCHMARKS["omniobject3d"]
    assert "benchmark_classes" not in selected(free, free.variants[0])
    assert selected(known, None) == selected(None, None) == {}


def test_find__own_names_are_free_unless_nearly_known() -> None:
    assert find(None) is None
    assert find("my mugs") is None
    assert find("modelnet40") is BENCHMARKS["modelnet40"]
    for name in ("ModelNet40", "modelnet_40", "objaverse_lvis", "scan-object-nn"):
        with pytest.raises(InputError, match=f"--benchmark {name}: did you mean "):
            find(name)


def test_variant__of_several_the_first_that_fits_counts(tmp_path: Path) -> None:
    known = Benchmark(
        "x", "", 1, (Variant("a", None, (), (("k", "1"),)), Variant("b", None)), ("s",)
    )
    assert known.variant(set_of(tmp_path, "s", k=1)).name == "a"
    assert known.variant(set_of(tmp_path / "2", "s", k=2)).name == "b"
