"""Held-out figures against the evaluation's own, which embeds class names with the teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.benchmarks.labels import from_categories
from evaluation.benchmarks.recall import prepare
from evaluation.benchmarks.zeroshot import class_texts, zeroshot
from evaluation.sources import StudentEncoder, split_categories
from pipeline.common import InputError
from pipeline.shards import POINT_SCALE, Batch, ShardSet, create_or_open, write_part
from tests.evaluation import world
from tests.trainer.conftest import MakeShards, Synth, make_manifest, make_rows, write_rows
from trainer.heldout import ClassTexts, HeldOut, TextGatherer, category_key
from trainer.metrics import normalise


def read_target(
    xyz: NDArray[np.int16], rgb: NDArray[np.uint8], has_color: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """The encoder of ``tests.evaluation.world``: its clouds spell their embedding."""
    return normalise(xyz.reshape(len(xyz), -1)[:, : world.D].astype(np.float32) / POINT_SCALE)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.make_shards(tmp_path_factory.mktemp("world") / "shards", noise=0.9)


@pytest.mark.parametrize("split", ["test", "train"])
def test_measure__as_the_evaluation_finds(shards: Path, split: str) -> None:
    opened = ShardSet.open(shards)
    encoder = StudentEncoder(world.student(), opened)
    labels = from_categories(split_categories(opened, split))
    texts = class_texts(opened, labels, world.FakeTeacher, ["{}"])
    theirs = zeroshot(opened, encoder, labels, texts, split=split)["metrics"]
    directions = prepare(opened, encoder, split=split).measure()["directions"]

    ours = HeldOut.open([shards], split).measure(read_target, 32)

    for k in (1, 3, 5):
        assert ours.metrics[f"zeroshot_top{k}"] == pytest.approx(theirs[f"top{k}"]["value"])
    assert ours.metrics["zeroshot_class_mean"] == pytest.approx(theirs["class_mean"])
    for k in (1, 5):
        for ours_name, name in (("text", "text->3d"), ("image", "image->3d")):
            expected = directions[name][f"recall@{k}"]["value"]
            assert ours.metrics[f"{ours_name}_recall@{k}"] == pytest.approx(expected)
    assert ours.metrics["shape_map"] == pytest.approx(directions["3d->3d"]["map"])
    assert 0.2 < ours.metrics["zeroshot_top1"] < 1.0
    hits = np.mean(np.array(ours.class_rank) == 1)
    assert hits == pytest.approx(ours.metrics["zeroshot_top1"])
    assert ours.protocol["text_source"] == "caption"


def test_measure__constant_embeddings_get_nothing_by_luck(shards: Path) -> None:
    def constant(
        xyz: NDArray[np.int16], rgb: NDArray[np.uint8], has_color: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        return np.full((len(xyz), world.D), world.D**-0.5, np.float32)

    figures = HeldOut.open([shards]).measure(constant, 32).metrics
    assert figures["image_recall@1"] == 0
    assert figures["text_recall@1"] == 0


def test_measure__two_sets_are_one_gallery(shards: Path, tmp_path: Path) -> None:
    """The same objects in one set and spread over two give the same figures."""
    whole, halves = tmp_path / "whole", [tmp_path / "a", tmp_path / "b"]
    rows = make_rows(Synth(count=48, test_rows=3, width=world.D))
    manifest = make_manifest(Synth(width=world.D))
    for root, part in ((whole, rows), (halves[0], rows[:20]), (halves[1], rows[20:])):
        write_part(root, create_or_open(root, manifest), part)
    one = HeldOut.open([whole]).measure(read_target, 64)
    two = HeldOut.open(halves).measure(read_target, 64)
    assert one.metrics == pytest.approx(two.metrics)
    assert one.class_rank == two.class_rank


def names_batch(rows: list[tuple[str | None, str, int]]) -> Batch:
    """Objects of one text each: category, text of source ``name``, and axis of its embedding."""
    vectors = np.eye(4, dtype=np.float16)[[axis for _, _, axis in rows]]
    return Batch(
        uid=[str(place) for place in range(len(rows))],
        category=[category for category, _, _ in rows],
        split=None,
        xyz=None,
        rgb=None,
        has_color=None,
        image_embeds=None,
        texts=[[text] for _, text, _ in rows],
        text_sources=[["name"]] * len(rows),
        text_embeds=vectors,
        text_offsets=np.arange(len(rows) + 1),
    )


def test_class_texts__spelled_out_else_mean_of_training_names() -> None:
    batch = names_batch(
        [
            ("Coffee_Mug", "coffee mug", 0),  # held out, but it spells the class
            ("food", "apple", 1),
            ("food", "bread", 2),
            ("food", "cheese", 3),  # held out: its name would give its class away
            (None, "thing", 3),
        ]
    )
    classes = ClassTexts(["coffee mug", "food", "unknown"])
    for row in range(len(batch)):
        classes.add(batch, row, held_out=row in (0, 3))
    vectors, known, means = classes.table()
    assert known == ["coffee mug", "food"]
    assert means == 1
    assert not classes.complete
    half = 0.5**0.5
    assert np.allclose(vectors, [[1, 0, 0, 0], [0, half, half, 0]])


def test_text_gatherer__the_words_decide_who_carries_a_text_not_the_source() -> None:
    batch = names_batch([(None, "A  mug", 0), (None, "a mug", 1), (None, "a car", 2)])
    batch.texts.append(["a dog", "A mug", "a mug"])  # type: ignore[union-attr]
    batch.uid.append("3")
    sources = [["name"], ["category"], ["name"], ["category", "name", "name"]]
    batch = replace(
        batch,
        text_sources=sources,
        text_embeds=np.eye(8, dtype=np.float16)[[0, 1, 2, 3, 4, 5]],
        text_offsets=np.array([0, 1, 2, 3, 6]),
    )
    gatherer = TextGatherer("name")  # and what an object is called by its category
    for row in range(4):
        gatherer.add(batch, row)
    found = gatherer.finish(8)
    assert found.words == ["a mug", "a mug", "a car", "a dog"]  # by name, by category ...
    assert found.embeds.argmax(1).tolist() == [0, 1, 2, 3]  # the first embedding of each
    assert [rows.tolist() for rows in found.rows_of] == [[0, 1, 3], [0, 1, 3], [2], [3]]
    # Of equal words that of the source that sorts first stands first, whichever row came first.
    assert [texts.tolist() for texts in found.texts_of] == [[1, 0], [1, 0], [2], [3, 1, 0]]
    assert TextGatherer("caption").finish(8).embeds.shape == (0, 8)


def test_class_texts__no_names_no_classes() -> None:
    vectors, known, means = ClassTexts(["food"]).table()
    assert (len(vectors), known, means) == (0, [], 0)


@pytest.mark.parametrize(
    ("name", "expected"), [("Coffee_Mug", "coffee mug"), ("  T-shirt ", "t shirt"), ("__", "")]
)
def test_category_key__one_form(name: str, expected: str) -> None:
    assert category_key(name) == expected


def test_open__split_that_is_not_there_names_those_that_are(make_shards: MakeShards) -> None:
    root = make_shards(count=12, test_rows=3)
    with pytest.raises(InputError, match=r"no row of split 'val' .*there are: test, train.*--eval"):
        HeldOut.open([root], "val")
    with pytest.raises(
        InputError, match=r"there are: none\).*, or mark some with `pipeline split`$"
    ):
        HeldOut.open([make_shards("whole", count=12)])


def test_open__sets_for_evaluation_alone_need_no_split(make_shards: MakeShards) -> None:
    rows = HeldOut.open([make_shards(count=12)], or_all=True)
    assert len(rows.uids()) == 12
    assert rows.identity()["split"] is None


def test_open__two_teachers_are_refused(make_shards: MakeShards) -> None:
    roots = [make_shards("a"), make_shards("b", teacher=1, prefix="other")]
    with pytest.raises(InputError, match="another teacher"):
        HeldOut.open(roots, or_all=True)


def test_identity__follows_the_rows(make_shards: MakeShards) -> None:
    root = make_shards(count=24, test_rows=3)
    test, train = (HeldOut.open([root], split).identity() for split in ("test", "train"))
    assert test["n_rows"] == 8
    assert test["uid_hash"] != train["uid_hash"]
    assert HeldOut.open([root]).identity() == test


def test_identity__follows_the_embeddings(make_shards: MakeShards, tmp_path: Path) -> None:
    """The same objects, of corrected meshes."""
    options = Synth(count=24, test_rows=3)
    rows = [replace(row, image_embeds=-row.image_embeds) for row in make_rows(options)]
    corrected = HeldOut.open([write_rows(tmp_path / "corrected" / "shards", options, rows)])
    first = HeldOut.open([make_shards(count=24, test_rows=3)]).identity()
    assert corrected.identity() == {**first, "part_hash": corrected.identity()["part_hash"]}
    assert corrected.identity() != first


def test_require_unseen__names_an_object_that_is_trained_on(make_shards: MakeShards) -> None:
    rows = HeldOut.open([make_shards(count=6, test_rows=3)])
    rows.require_unseen(["synth/0001", "elsewhere/1"])
    with pytest.raises(InputError, match=r"1 of its objects.*synth/0003"):
        rows.require_unseen(["synth/0001", "synth/0003"])


def test_measure__small_clouds_are_refused(shards: Path) -> None:
    with pytest.raises(InputError, match=r"clouds of 64 points, the model takes 65"):
        HeldOut.open([shards]).measure(read_target, 65)


def test_measure__set_without_texts_or_views_gives_what_there_is(make_shards: MakeShards) -> None:
    rows = HeldOut.open([make_shards(count=12, test_rows=2, textless=1, views=0)])
    figures = rows.measure(lambda xyz, rgb, has: read_target(xyz, rgb, has), 32)
    assert set(figures.metrics) == {"shape_map"}
