from __future__ import annotations

import hashlib
import math
import shlex
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.common import InputError
from pipeline.shards import ShardSet, create_or_open
from tests.trainer.conftest import (
    MakeShards,
    Synth,
    make_manifest,
    make_rows,
    open_batches,
    rows_of,
    small_recipe,
    write_rows,
)
from trainer.data import Batches
from trainer.index import Corpus, held_out
from trainer.recipe import load_recipe


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("[1]", "1 numbers for 2 shard sets"),
        ("[1, 0.001]", "none of its rows is trained on"),
        ("[0.1, 9]", "in a batch twice"),
    ],
)
def test_weights__impossible_ones_are_refused(
    make_shards: MakeShards, weights: str, message: str
) -> None:
    roots = [make_shards("a"), make_shards("b", prefix="other", count=12)]
    with pytest.raises(InputError, match=message):
        Corpus(roots, small_recipe(f"data.weights={weights}"))


@pytest.mark.parametrize("length", ["train.steps=5", "train.epochs=5"])
def test_weights__of_a_single_set_that_leave_nothing_are_refused(
    make_shards: MakeShards, length: str
) -> None:
    with pytest.raises(InputError, match="none of its rows is trained on"):
        Corpus([make_shards()], small_recipe("data.weights=[0.001]", length))


def options_of(error: BaseException) -> list[str]:
    """What an error says to ``--set``, as a shell takes it."""
    words = shlex.split(str(error))
    return [value.rstrip(",;") for word, value in pairwise(words) if word == "--set"]


def test_split__is_disjoint_stable_and_of_the_asked_size() -> None:
    uids = [f"x/{index}" for index in range(4000)]

    def held(uids: list[str], fraction: float, most: int = 4000) -> set[str]:
        mask = held_out(uids, np.ones(len(uids), np.bool_), fraction, most)
        return {uid for uid, out in zip(uids, mask, strict=True) if out}

    tenth = held(uids, 0.1)
    assert len(tenth) / len(uids) == pytest.approx(0.1, abs=0.02)
    assert tenth == held(uids[::-1], 0.1)
    assert tenth < held(uids, 0.2)
    assert held(uids, 0.0) == set()
    # As the obvious version: of more than are wanted, the smallest hashes.
    by_hash = sorted(tenth, key=lambda uid: hashlib.sha256(uid.encode()).digest())
    assert held(uids, 0.1, 30) == set(by_hash[:30])
    used = np.arange(len(uids)) % 2 == 0
    assert not (held_out(uids, used, 0.5, 4000) & ~used).any()
    assert held_out(uids, used, 0.5, 7).sum() == 7


def test_split__no_more_than_val_rows_are_held_out(make_shards: MakeShards) -> None:
    root = make_shards()
    whole = Corpus([root], small_recipe("data.val_fraction=0.5"))
    few = Corpus([root], small_recipe("data.val_fraction=0.5", "data.val_rows=5"))
    assert (few.n_val, few.n_train) == (5, len(few) - 5)
    assert not (few.val_mask & ~whole.val_mask).any()


def test_split__does_not_move_when_the_set_grows(make_shards: MakeShards) -> None:
    def held(root: Path) -> set[str]:
        corpus = Corpus([root], small_recipe())
        uids = ShardSet.open(root).uids()
        return {uids[row] for row in np.flatnonzero(corpus.val_mask)}

    small, large = held(make_shards("small")), held(make_shards("large", count=200))
    assert small == {uid for uid in large if int(uid[-4:]) < 96}


def test_split__rows_marked_as_test_are_never_trained_or_validated_on(
    make_shards: MakeShards,
) -> None:
    root = make_shards(test_rows=3)
    corpus = Corpus([root], small_recipe())
    marked = np.arange(96) % 3 == 0
    assert not (corpus.train_mask & marked).any()
    assert not (corpus.val_mask & marked).any()
    assert corpus.n_train + corpus.n_val == 64
    everything = Corpus([root], small_recipe('data.splits=["train", "test"]'))
    assert everything.n_train + everything.n_val == 96


def test_corpus__several_sets_of_one_teacher_are_joined(make_shards: MakeShards) -> None:
    roots = [make_shards("a"), make_shards("b", prefix="other", count=50, views=2)]
    batches = open_batches(*roots)
    assert len(batches.corpus) == 146
    seen = {row for epoch in range(6) for batch in rows_of(batches, epoch) for row in batch}
    assert max(seen) >= 96
    assert min(seen) < 96


def test_corpus__two_teachers_are_refused(make_shards: MakeShards) -> None:
    roots = [make_shards("a"), make_shards("b", prefix="other", teacher=1)]
    with pytest.raises(InputError, match=r"synthetic-1.*fingerprints differ.*one teacher"):
        Corpus(roots, small_recipe())


def test_corpus__same_uid_twice_is_refused(make_shards: MakeShards) -> None:
    with pytest.raises(InputError, match="uid synth/0000 comes twice"):
        Corpus([make_shards("a"), make_shards("b")], small_recipe())


def test_corpus__empty_set_is_refused(tmp_path: Path) -> None:
    create_or_open(tmp_path / "empty", make_manifest(Synth()))
    with pytest.raises(InputError, match="empty: no rows"):
        Corpus([tmp_path / "empty"], small_recipe())


def test_corpus__without_any_view_the_terms_of_pictures_are_off(make_shards: MakeShards) -> None:
    blind = make_shards("blind", views=0, textless=3)
    corpus = Corpus([blind], small_recipe())
    assert corpus.left_out == [
        "loss.align.image_weight",
        "loss.distill.intra_image",
        "loss.distill.cross",
    ]
    assert not corpus.loss.needs_image
    assert corpus.recipe.loss == corpus.loss
    assert type(corpus.recipe).model_validate(corpus.recipe.model_dump()) == corpus.recipe
    # No term reads anything of a row without text: it is not trained on.
    assert corpus.n_with_text == corpus.n_train + corpus.n_val == 64
    same = Corpus([blind], small_recipe("loss.distill.cross_rows=same"))
    assert same.left_out[1:] == ["loss.distill.intra_image", "loss.distill.cross_image"]
    assert same.loss.distill.cross_text
    assert not same.loss.needs_image
    only_images = small_recipe("loss.distill.intra_text=false")
    assert not Corpus([blind], only_images).loss.distill.enabled
    with pytest.raises(InputError, match="no image embeddings, and the recipe aligns with"):
        Corpus([blind], small_recipe("loss.align.text_weight=0"))


def test_corpus__missing_views_of_one_set_are_refused_only_where_needed(
    make_shards: MakeShards,
) -> None:
    blind, seeing = make_shards("blind", views=0), make_shards("seeing", prefix="other")
    # What the message says helps, whichever terms read images.
    for joint in ("loss.align.joint_weight=0", "loss.align.joint_weight=1"):
        with pytest.raises(InputError, match="blind: no image embeddings") as caught:
            Corpus([blind, seeing], small_recipe(joint))
        told = options_of(caught.value)
        Corpus([blind, seeing], small_recipe(joint, *told))
        batch = next(open_batches(blind, overrides=(joint, *told)).epoch(0))
        assert batch.image is None
        assert batch.text is not None
    assert "loss.align.joint_weight=0.0" in told
    with pytest.raises(InputError, match=r"blind: no image .* or leave it out$"):
        Corpus([blind, seeing], small_recipe("loss.align.text_weight=0"))


def test_corpus__without_any_text_the_terms_of_texts_are_off(make_shards: MakeShards) -> None:
    mute = make_shards("mute", textless=1)
    corpus = Corpus([mute], small_recipe("loss.align.drop_same_text=true"))
    assert corpus.left_out == [
        "loss.align.text_weight",
        "loss.align.drop_same_text",
        "loss.distill.intra_text",
        "loss.distill.cross",
    ]
    assert not corpus.loss.needs_text
    assert corpus.recipe.loss == corpus.loss
    assert corpus.loss.distill.intra_image
    # What is left is a legal recipe, the same as if it had been asked for.
    assert load_recipe("tiny") != corpus.recipe
    assert type(corpus.recipe).model_validate(corpus.recipe.model_dump()) == corpus.recipe
    batch = next(Batches(corpus, 0).epoch(0))
    assert batch.text is None
    assert not bool(batch.has_text.any())
    only_texts = small_recipe("loss.distill.intra_image=false")
    assert not Corpus([mute], only_texts).loss.distill.enabled
    with pytest.raises(InputError, match="no row has a text, and the recipe aligns with texts"):
        Corpus([mute], small_recipe("loss.align.image_weight=0"))
    joint = Corpus([mute], small_recipe("loss.align.joint_weight=1"))
    assert "loss.align.joint_weight" in joint.left_out
    assert not joint.loss.needs_text
    # Relations to pictures by rows of pictures need no texts.
    same = Corpus([mute], small_recipe("loss.distill.cross_rows=same"))
    assert same.left_out == [
        *("loss.align.text_weight", "loss.distill.intra_text", "loss.distill.cross_text")
    ]
    assert not same.loss.needs_text
    alone = small_recipe("loss.distill.cross_rows=same", "loss.distill.intra_image=false")
    assert Corpus([mute], alone).loss.distill.crosses("image")
    with pytest.raises(InputError, match="no row has a text"):
        Corpus([mute], small_recipe("loss.align.image_weight=0", "loss.distill.enabled=false"))
    # One set with texts is enough.
    both = [mute, make_shards("told", prefix="other")]
    assert Corpus(both, small_recipe()).left_out == []


def test_describe__names_rows_and_what_is_wrong_with_them(make_shards: MakeShards) -> None:
    roots = [make_shards("a"), make_shards("b", prefix="other", count=40)]
    corpus = Corpus(roots, small_recipe())
    assert corpus.describe([3, 95, 96, 135]) == [
        {"uid": "synth/0003", "shards": str(roots[0]), "not_finite": []},
        {"uid": "synth/0095", "shards": str(roots[0]), "not_finite": []},
        {"uid": "other/0000", "shards": str(roots[1]), "not_finite": []},
        {"uid": "other/0039", "shards": str(roots[1]), "not_finite": []},
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            'data.splits=["trian"]',
            r"no row of data\.splits \[\"trian\"\] \(there are: test, train\); --set 'data",
        ),
        ("data.batch_size=500", "fewer than a batch of 500"),
        ("data.val_fraction=0.0001", "holds out 0 of 96 rows"),
        ("data.val_fraction=0.999", "0 rows to train on are fewer than a batch of 16"),
        ("data.n_points=1000", "256 points in a cloud, the recipe reads 1000"),
    ],
)
def test_corpus__impossible_recipe_is_refused(
    make_shards: MakeShards, override: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Corpus([make_shards(test_rows=48)], small_recipe(override))
    assert Corpus([make_shards("same", test_rows=48)], small_recipe(*options_of(caught.value)))


def test_corpus__told_fraction_holds_out_some_ten_of_these_very_shapes(
    make_shards: MakeShards,
) -> None:
    root = make_shards()
    with pytest.raises(InputError) as caught:
        Corpus([root], small_recipe("data.val_fraction=0.0001"))
    better = str(caught.value).split("--set ")[1].split(",")[0]
    assert 10 <= Corpus([root], small_recipe(better)).n_val <= 13


@pytest.mark.parametrize("count", [2, 3, 4, 7, 20])
@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.999])
def test_corpus__what_is_told_of_a_small_set_makes_it_trainable(
    make_shards: MakeShards, count: int, fraction: float
) -> None:
    root, given = make_shards(count=count), ("data.batch_size=64", f"data.val_fraction={fraction}")
    with pytest.raises(InputError, match=r"fewer than a batch of 64; --set .* or embed more") as e:
        Corpus([root], small_recipe(*given))
    corpus = Corpus([root], small_recipe(*given, *options_of(e.value)))
    assert corpus.n_train >= 2
    assert corpus.data.val_fraction == 0 or corpus.n_val >= 2


def test_corpus__a_single_row_needs_more_not_another_batch(make_shards: MakeShards) -> None:
    with pytest.raises(InputError, match=r"1 rows to train on .* 16; embed more shapes$"):
        Corpus([make_shards(count=1)], small_recipe("data.val_fraction=0"))


def test_record__follows_rows_content_and_split(make_shards: MakeShards, tmp_path: Path) -> None:
    def record(root: Path, *overrides: str) -> dict[str, Any]:
        return Corpus([root], small_recipe(*overrides)).record()

    first = record(make_shards())
    assert record(make_shards("again")) == {**first, "shards": record(tmp_path / "again")["shards"]}
    rows = make_rows(Synth())
    rows[7] = replace(rows[7], rgb=rows[7].rgb // 2)
    coloured = record(write_rows(tmp_path / "coloured", Synth(), rows))
    differing = {key for key, value in first.items() if coloured[key] != value}
    assert differing == {"part_hash", "shards"}
    held = record(tmp_path / "again", "data.val_fraction=0.3")
    assert held["split_hash"] != first["split_hash"]
    assert held["part_hash"] == first["part_hash"]


@pytest.mark.parametrize("share", ["0.07", "0.14", "0.28", "0.29", "0.55", "0.56", "0.57", "0.005"])
def test_order__similar_objects_begin_with_the_epoch_that_is_asked_for(
    make_shards: MakeShards, share: str
) -> None:
    overrides = ("train.epochs=100", "data.near=2", f"data.near_after={share}")
    order = Corpus([make_shards()], small_recipe(*overrides)).order(0)
    assert order.near_from == math.ceil(Fraction(share) * 100)


def test_corpus__centroids_beyond_the_ordered_points_are_refused(make_shards: MakeShards) -> None:
    corpus = Corpus([make_shards(n_fps=8)], small_recipe())
    with pytest.raises(InputError, match=r"8 points are in farthest-point order.*16 centroids"):
        corpus.require_order(16)
    corpus.require_order(8)
