"""The retrieval benchmark against a direct calculation on the same shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evaluation.benchmarks import recall
from evaluation.benchmarks.recall import by_category, collect, directions, prepare
from evaluation.commands import measure
from evaluation.embeddings import normalise
from evaluation.results import read_result, write_result
from evaluation.sources import StudentEncoder, Views, ViewsEncoder
from pipeline.common import InputError
from pipeline.shards import ShardSet, create_or_open, write_part
from tests.evaluation import world
from tests.running import Cli


@pytest.fixture
def opened(shards: Path) -> ShardSet:
    return ShardSet.open(shards)


def test_text_to_shape__as_the_obvious_loop_over_captions(opened: ShardSet) -> None:
    encoder = StudentEncoder(world.student(), opened)
    record = prepare(opened, encoder, text_source="caption").measure()
    batch = opened.read(opened.row_groups[0])
    assert batch.texts is not None
    shapes = encoder(batch, np.arange(len(batch)))
    captions = [texts[1] for texts in batch.texts]
    ranks, averages, gains = [], [], []
    for caption in dict.fromkeys(captions):
        row = captions.index(caption)
        query = batch.texts_of(row)[1].astype(np.float32)
        order = np.argsort(-(shapes @ query))
        right = [place for place, i in enumerate(order, 1) if captions[i] == caption]
        ranks.append(right[0])
        averages.append(np.mean([j / place for j, place in enumerate(right, 1)]))
        ideal = np.arange(1, len(right) + 1)
        gains.append((1 / np.log2(1 + np.array(right))).sum() / (1 / np.log2(1 + ideal)).sum())
    found = record["directions"]["text->3d"]
    assert found["n_queries"] == len(ranks)
    for k in (1, 5, 10):
        assert found[f"recall@{k}"]["value"] == pytest.approx(np.mean(np.array(ranks) <= k))
    assert found["median_rank"] == np.median(ranks)
    assert found["mean_rank"] == pytest.approx(np.mean(ranks))
    assert found["map"] == pytest.approx(np.mean(averages), rel=1e-6)
    assert found["ndcg"] == pytest.approx(np.mean(gains), rel=1e-6)


def test_image_to_shape__is_the_objects_own_shape(opened: ShardSet) -> None:
    encoder = StudentEncoder(world.student(), opened)
    found = collect(opened, encoder, "caption", None)
    assert found.asking_view is not None
    products = found.asking_view @ found.shapes.T
    ranks = 1 + (products > np.diag(products)[:, None]).sum(1)
    figures = {name: asked.figures() for name, asked in directions(found).items()}
    assert figures["image->3d"]["median_rank"] == np.median(ranks)
    assert figures["image->3d"]["recall@1"]["value"] == pytest.approx(np.mean(ranks == 1))
    back = 1 + (np.diag(products)[:, None] < products.T).sum(1)
    assert figures["3d->image"]["recall@1"]["value"] == pytest.approx(np.mean(back == 1))


def test_categories__itself_never_counts() -> None:
    # Two pairs of equal vectors of different categories: only the wrong twin is near.
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]]
    figures = by_category(vectors, ["a", "b", "a", "b"]).figures()
    assert figures["recall@1"]["value"] == 0
    assert figures["n_candidates"] == 3
    alone = by_category(vectors, ["a", "b", "c", None]).figures()
    assert alone["n_queries"] == 0
    assert alone["recall@1"]["value"] is None


def test_categories__spellings_of_one_name_are_one_and_empty_is_none() -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    plain = ["coffee mug", "coffee mug", "car", "car", None, None]
    spelled = ["Coffee_mug", "coffee-mug", "car", "Car ", "", "_"]
    for queries in (None, vectors[::-1].copy()):
        wanted = by_category(vectors, plain, None, queries).figures()
        assert wanted["n_queries"] == 4
        assert by_category(vectors, spelled, None, queries).figures() == wanted


def test_texts__equal_words_of_two_sources_are_right_for_whoever_carries_them(
    tmp_path: Path,
) -> None:
    opened = named_by_turns(tmp_path / "set", ["mug", "Mug", "mug", "chair"])
    found = prepare(opened, StudentEncoder(world.student(), opened)).measure()["directions"]
    # Two queries of the words, by name and by category; three objects are right for each.
    assert found["text->3d"]["n_queries"] == 3
    assert found["text->3d"]["chance_recall@1"] == pytest.approx((3 / 4 + 3 / 4 + 1 / 4) / 3)
    assert found["3d->text"]["chance_recall@1"] == pytest.approx((3 * 2 / 3 + 1 / 3) / 4)
    assert found["text->3d"]["recall@1"]["value"] == found["text->3d"]["map"] == 1
    assert found["3d->text"]["recall@1"]["value"] == found["3d->text"]["map"] == 1


def named_by_turns(root: Path, names: list[str]) -> ShardSet:
    """Objects of one text each: of source ``name`` and ``category`` in turn."""
    made = world.manifest()
    create_or_open(root, made)
    whole = ShardSet.open(world.make_shards(root.with_name("whole"), 2 * len(names)))
    rows = [row for group in whole.row_groups for row in whole.rows(group)]
    few = []
    for i, name in enumerate(names):
        source = ("name", "category")[i % 2]
        row = next(r for r in rows[i:] if r.category == name.casefold())
        vector = world.unit_vector(world.CLASSES.index(name.casefold()))
        few.append(
            replace(
                row,
                uid=f"x/{i}",
                texts=[name],
                text_sources=[source],
                text_embeds=vector[None],
                xyz=world.spell(vector, np.random.default_rng(i)),
            )
        )
    write_part(root, made, few)
    return ShardSet.open(root)


def test_recall__teacher_views_have_no_ceiling_but_say_what_it_says(opened: ShardSet) -> None:
    record = prepare(opened, ViewsEncoder(opened)).measure()
    assert "teacher_ceiling" not in record
    student = prepare(opened, StudentEncoder(world.student(), opened)).measure()
    ours = {name.replace("3d", "views"): of for name, of in record["directions"].items()}
    for figures in ours.values():
        del figures["ranks"]  # kept of the model measured alone
    assert ours == student["teacher_ceiling"]


@pytest.mark.parametrize("views", ["mean", "first"])
def test_recall__a_teachers_view_is_compared_with_the_others_alone(
    opened: ShardSet, tmp_path: Path, views: Views
) -> None:
    rng = np.random.default_rng(0)
    rows = [row for group in opened.row_groups for row in opened.rows(group)]
    create_or_open(tmp_path / "set", opened.manifest)
    strange = [replace(r, image_embeds=normalise(rng.normal(size=(3, world.D)))) for r in rows]
    write_part(tmp_path / "set", opened.manifest, strange)
    opened = ShardSet.open(tmp_path / "set")
    found = prepare(opened, ViewsEncoder(opened, views)).measure()["directions"]
    batch = opened.read(opened.row_groups[0])
    assert batch.image_embeds is not None
    embeds = batch.image_embeds.astype(np.float32)
    asking, others = normalise(embeds[:, 0]), normalise(embeds[:, 1:].mean(1))
    products = asking @ others.T
    own = np.diag(products)[:, None]
    for name, scores in (("image->3d", products), ("3d->image", products.T)):
        ranks = 1 + (scores > own).sum(1)
        assert found[name]["mean_rank"] == pytest.approx(np.mean(ranks)), name
        assert found[name]["mean_rank"] > 1
    category = np.array([str(c) for c in batch.category or []])
    averages = []
    for row in np.flatnonzero(category != "None"):
        order = [i for i in np.argsort(-products[row]) if i != row]
        averages.append(average_precision(category[order] == category[row]))
    assert found["image->3d class"]["map"] == pytest.approx(np.mean(averages), rel=1e-4)


def test_recall__a_teacher_with_one_view_is_asked_by_no_picture(tmp_path: Path) -> None:
    there = {"name": "ulip", "fov_y_deg": 49.0, "poses": [[[1.0]]]}
    one = ShardSet.open(world.make_shards(tmp_path / "one", 8, n_views=1))
    other = ShardSet.open(world.make_shards(tmp_path / "other", 8, n_views=1, cameras=there))
    alone = prepare(one, ViewsEncoder(one)).measure()["directions"]
    assert set(alone) == {"text->3d", "3d->text", "3d->3d", "class->3d"}
    asked = prepare(one, ViewsEncoder(one), view_shards=other).measure()["directions"]
    assert set(asked) - set(alone) == {"image->3d", "3d->image", "image->3d class"}


def test_prepare__tells_how_much_measuring_compares(opened: ShardSet) -> None:
    encoder = StudentEncoder(world.student(), opened)
    ready, told = prepare(opened, encoder), list[int]()
    record = ready.measure(told.append)
    assert record == prepare(opened, encoder).measure()
    figures = [*record["directions"].values(), *record["teacher_ceiling"].values()]
    assert len(figures) == 14
    assert ready.n_queries == sum(told) == sum(one["n_queries"] for one in figures)
    texts, images, others, classes = 2 * 20 * 40, 2 * 40 * 40, 2 * 39 * 40, 4 * 40
    assert ready.n_comparisons == 2 * (texts + images + others + classes)


def test_command__tells_of_many_comparisons_before_they_begin(
    command: Cli, fakes: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "MANY_COMPARISONS", 1000)
    common = ("recall", "--checkpoint", fakes, "--shards", shards)
    notes = command(*common).err
    assert "0 billion comparisons follow; --split test measures fewer objects" in notes
    assert "billion comparisons follow\n" in command(*common, "--split", "test").err
    assert "rank: " in notes
    assert notes.index("comparisons") < notes.index("rank: ")


def test_recall__set_without_views_or_split(tmp_path: Path) -> None:
    bare = ShardSet.open(world.make_shards(tmp_path / "bare", 8, n_views=0))
    record = prepare(bare, StudentEncoder(world.student(), bare)).measure()
    assert set(record["directions"]) == {"text->3d", "3d->text", "3d->3d", "class->3d"}
    assert record["teacher_ceiling"] == {}
    with pytest.raises(InputError, match="there are: test, train"):
        prepare(bare, StudentEncoder(world.student(), bare), split="val").measure()


def test_result_file__is_read_back_and_its_rows_stay_on_a_line(
    tmp_path: Path, opened: ShardSet
) -> None:
    record = prepare(opened, StudentEncoder(world.student(), opened)).measure()
    record["matrix"] = [[1, 2, 3], [4, 5, 6]]
    write_result(tmp_path / "r.json", record)
    assert read_result(tmp_path / "r.json") == record
    assert "[4, 5, 6]" in (tmp_path / "r.json").read_text()
    (tmp_path / "r.json").write_text('{"format": "mrd3d-result", "version": 9}')
    with pytest.raises(InputError, match="newer"):
        read_result(tmp_path / "r.json")


def test_by_class__names_and_pictures_as_the_obvious_loops(opened: ShardSet) -> None:
    encoder = StudentEncoder(world.student(), opened)
    found = prepare(opened, encoder).measure()["directions"]
    batch = opened.read(opened.row_groups[0])
    assert batch.category is not None
    assert batch.image_embeds is not None
    shapes = encoder(batch, np.arange(len(batch)))
    category = np.array([str(c) for c in batch.category])
    views = batch.image_embeds[:, 0].astype(np.float32)
    wanted: dict[str, list[float]] = {"class->3d": [], "image->3d class": []}
    for name in world.CLASSES:
        right = category[np.argsort(-(shapes @ world.text_vector(name)))] == name
        wanted["class->3d"].append(average_precision(right))
    for row, view in enumerate(views):
        order = [i for i in np.argsort(-(shapes @ view)) if i != row]
        if category[row] != "None":
            right = category[order] == category[row]
            wanted["image->3d class"].append(average_precision(right))
    for direction, averages in wanted.items():
        assert found[direction]["n_queries"] == len(averages)
        assert found[direction]["map"] == pytest.approx(np.mean(averages), rel=1e-4), direction
    assert found["image->3d class"]["n_candidates"] == len(batch) - 1


def average_precision(right: np.ndarray) -> float:
    places = 1 + np.flatnonzero(right)
    return float(np.mean(np.arange(1, len(places) + 1) / places))


def test_by_class__sets_whose_names_spell_no_category_have_no_class_queries(
    opened: ShardSet,
) -> None:
    found = collect(opened, StudentEncoder(world.student(), opened), "caption", None)
    assert set(found.class_texts) == {"mug", "chair", "oak tree", "fish"}
    assert "class->3d" in directions(found)
    found.class_texts.clear()
    assert "class->3d" not in directions(found)


def test_view_shards__pictures_from_other_cameras_ask(tmp_path: Path) -> None:
    here = {"name": "ring", "fov_y_deg": 40.0, "poses": [[[1.0]], [[2.0]], [[3.0]]]}
    there = {"name": "ulip", "fov_y_deg": 49.0, "poses": [[[1.0]]]}
    ours = ShardSet.open(world.make_shards(tmp_path / "ours", 24, cameras=here))
    theirs = ShardSet.open(world.make_shards(tmp_path / "theirs", 24, n_views=1, cameras=there))
    encoder = StudentEncoder(world.student(), ours)
    record = prepare(ours, encoder, view_shards=theirs).measure()
    own, other = ours.read(ours.row_groups[0]), theirs.read(theirs.row_groups[0])
    assert own.image_embeds is not None
    assert other.image_embeds is not None
    queries = normalise(other.image_embeds[:, 0].astype(np.float32))
    shapes = encoder(own, np.arange(24))
    products = queries @ shapes.T
    ranks = 1 + (products > np.diag(products)[:, None]).sum(1)
    assert record["directions"]["image->3d"]["mean_rank"] == np.mean(ranks)
    views = normalise(own.image_embeds.astype(np.float32).mean(1))  # all: none of them asks
    products = queries @ views.T
    ranks = 1 + (products > np.diag(products)[:, None]).sum(1)
    assert record["teacher_ceiling"]["image->views"]["mean_rank"] == np.mean(ranks)
    assert "theirs (ulip, 1)" in record["protocol"]["image_queries"]
    bare = ShardSet.open(world.make_shards(tmp_path / "bare", 24, n_views=0))
    assert "image->3d" in prepare(bare, encoder, view_shards=theirs).measure()["directions"]
    few = ShardSet.open(world.make_shards(tmp_path / "few", 8, n_views=1, cameras=there))
    for other_set, told in (
        (ours, "first camera is one of"),
        (bare, "holds no views"),
        (few, "tiny/008 is asked for, but the set lacks it"),
    ):
        with pytest.raises(InputError, match=told):
            prepare(ours, encoder, view_shards=other_set).measure()
    record = prepare(ours, encoder, view_shards=theirs, split="test").measure()
    assert record["directions"]["image->3d"]["n_queries"] == 12


def test_view_shards__another_object_of_the_same_name_is_refused() -> None:
    batch: Any = SimpleNamespace(uid=["a"], sha256=["1" * 64])
    told = "a is asked for, but the set has another object of that name"
    with pytest.raises(InputError, match=told):
        recall._views_of(batch, np.array([0]), {"a": ("2" * 64, np.zeros(4, np.float32))})


def test_spelled__a_caption_is_no_name() -> None:
    batch: Any = SimpleNamespace(
        category=["mug", "mug"],
        texts=[["mug"], ["mug"]],
        text_sources=[["caption"], ["name"]],
        texts_of=lambda row: np.eye(4, dtype=np.float32)[[row]],
    )
    found: dict[str, Any] = {}
    recall._spelled(batch, 0, found)
    assert found == {}
    recall._spelled(batch, 1, found)
    assert found["mug"].tolist() == [0, 1, 0, 0]
