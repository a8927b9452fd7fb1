from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.common import InputError
from pipeline.shards import ShardSet
from tests.trainer.conftest import MakeShards, small_recipe
from trainer import load_student
from trainer.checkpoint import load_model
from trainer.data import Batches
from trainer.index import Corpus
from trainer.near import FILE, find_vectors, whole
from trainer.order import NEAR_SCALE
from trainer.run import train

CPU = torch.device("cpu")


def open_corpus(*roots: Path, overrides: tuple[str, ...] = ()) -> Corpus:
    return Corpus(list(roots), small_recipe("data.near=4", *overrides))


def test_find_vectors__none_where_objects_are_drawn_at_random(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    corpus = Corpus([make_shards()], small_recipe())
    assert find_vectors(corpus, tmp_path, CPU) is None


@pytest.mark.parametrize("modality", ["image", "text"])
def test_find_vectors__of_the_teacher_are_means_of_training_rows(
    make_shards: MakeShards, tmp_path: Path, modality: str
) -> None:
    roots = [make_shards("a", textless=5), make_shards("b", prefix="other", views=0, count=30)]
    no_images = ("align.image_weight=0", "distill.intra_image=false", "distill.cross=false")
    overrides = (f"data.near_by={modality}", *(f"loss.{option}" for option in no_images))
    corpus = open_corpus(*roots, overrides=overrides)
    found = find_vectors(corpus, tmp_path, CPU)
    assert found is not None
    rows = [row for root in roots for row in ShardSet.open(root).batches()]
    place = 0
    for batch in rows:
        for number in range(len(batch)):
            if modality == "text":
                vectors = batch.texts_of(number)
            else:
                assert batch.image_embeds is not None
                vectors = batch.image_embeds[number]
            mean = vectors.astype(np.float64).sum(0)
            if corpus.train_mask[place] and len(vectors):
                wanted = mean / np.linalg.norm(mean) * NEAR_SCALE
                assert np.abs(found[place] - wanted).max() <= 0.51
            else:
                assert not found[place].any()
            place += 1
    assert place == len(corpus)


@pytest.mark.parametrize(
    ("options", "override", "message"),
    [
        ({"views": 0}, "data.near_by=image", "no image embeddings, which data.near_by compares"),
        ({"textless": 1}, "data.near_by=text", r"no text embeddings.*data.near_by=image"),
    ],
)
def test_find_vectors__missing_embeddings_are_told(
    make_shards: MakeShards,
    tmp_path: Path,
    options: dict[str, int],
    override: str,
    message: str,
) -> None:
    corpus = open_corpus(make_shards(**options), overrides=(override,))
    with pytest.raises(InputError, match=message):
        find_vectors(corpus, tmp_path, CPU)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.near=17",), "near: groups of 17 similar objects do not fit into batch_size 16"),
        (("data.near=2", "data.near_by=student"), "near_by student needs model.init"),
        (("data.near_after=0.5",), "near_after needs near"),
        (("data.near=0",), "data.near"),
        (("data.near_by=point",), "data.near_by"),
    ],
)
def test_recipe__impossible_groups_are_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small_recipe(*overrides)


def test_batches__need_the_vectors(make_shards: MakeShards) -> None:
    with pytest.raises(ValueError, match="needs the vectors"):
        Batches(open_corpus(make_shards()), 0)


@pytest.mark.parametrize("cache", ["data.cache_mib=0", "data.cache_mib=100"])
def test_batches__are_of_alike_objects_whoever_makes_them(
    make_shards: MakeShards, tmp_path: Path, cache: str
) -> None:
    corpus = open_corpus(make_shards(classes=8), overrides=(cache,))
    vectors = find_vectors(corpus, tmp_path, CPU)
    whole_batches = [batch.row for batch in Batches(corpus, 0, vectors=vectors).epoch(0)]
    parts = [
        [batch.row for batch in Batches(corpus, 0, vectors=vectors, rank=rank, world=3).epoch(0)]
        for rank in range(3)
    ]
    for rows, *shares in zip(whole_batches, *parts, strict=True):
        assert np.concatenate(shares).tolist() == rows.tolist()
    drawn = Batches(Corpus([make_shards("again", classes=8)], small_recipe()), 0)

    def of_own_kind(batches: list[NDArray[np.int64]]) -> float:
        return float(np.mean([(r[:, None] % 8 == r % 8).sum(1).mean() for r in batches]))

    assert of_own_kind(whole_batches) > of_own_kind([b.row for b in drawn.epoch(0)]) + 1


@pytest.mark.parametrize("length", ["train.epochs=6", "train.steps=30"])
def test_batches__are_drawn_at_random_before_a_share_of_the_run(
    make_shards: MakeShards, tmp_path: Path, length: str
) -> None:
    root = make_shards()
    corpus = open_corpus(root, overrides=(length, "data.near_after=0.5"))
    batches = Batches(corpus, 0, vectors=find_vectors(corpus, tmp_path, CPU))
    usual = Batches(Corpus([root], small_recipe()), 0)
    assert batches.per_epoch == 5
    for epoch in range(6):
        same = [
            mine.row.tolist() == other.row.tolist()
            for mine, other in zip(batches.epoch(epoch), usual.epoch(epoch), strict=True)
        ]
        assert all(same) if epoch < 3 else not any(same)


def test_whole__is_the_same_in_single_and_double_precision() -> None:
    halves = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float16)
    assert (whole(halves.astype(np.float32)) == whole(halves.astype(np.float64))).all()
    halves[3, 5], halves[4, 0] = np.nan, np.inf
    assert not whole(halves.astype(np.float32))[3:5].any()
    halves = halves[5:]
    norm = np.linalg.norm(whole(halves.astype(np.float32)).astype(np.float64), axis=1)
    assert np.abs(norm - NEAR_SCALE).max() < 3


def test_train__alike_by_a_student_whose_run_is_gone_when_it_goes_on(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    root, first, out = make_shards(), tmp_path / "first", tmp_path / "run"
    train([root], small_recipe("train.steps=4"), first, device="cpu")
    recipe = small_recipe(
        *("data.near=4", "data.near_by=student", f"model.init={first}"),
        *("train.steps=10", "train.checkpoint_every=5", "train.keep=5"),
    )
    straight = train([root], recipe, out, device="cpu")
    weights = load_model(straight.checkpoint).hash
    vectors, corpus, place = np.load(out / FILE), Corpus([root], recipe), 0
    student = load_student(first, "cpu")
    for batch in ShardSet.open(root).batches():
        assert batch.xyz is not None
        assert batch.rgb is not None
        assert batch.has_color is not None
        wanted = student.encode_stored(batch.xyz, batch.rgb, batch.has_color) * NEAR_SCALE
        for row in range(len(batch)):
            kept = corpus.train_mask[place]
            assert np.abs(vectors[place] - (wanted[row] if kept else 0)).max() <= 0.6
            place += 1
    shutil.rmtree(first)
    shutil.rmtree(straight.checkpoint)
    kept = (out / FILE).read_bytes()
    (out / FILE).write_bytes(kept[: len(kept) // 2])
    with pytest.raises(InputError, match=r"near\.npy: missing or damaged.*start another run"):
        train([], None, out, resume=True, device="cpu")
    (out / FILE).write_bytes(kept)
    again = train([], None, out, resume=True, device="cpu")
    assert again.step == 10
    assert load_model(again.checkpoint).hash == weights


def test_train__first_weights_that_have_changed_tell_anew_what_is_alike(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    """A run that has no checkpoint yet begins again, with the weights that are there now."""
    root, first, out = make_shards(), tmp_path / "first", tmp_path / "run"
    train([root], small_recipe("train.steps=2"), first, device="cpu")
    options = ("data.near=4", "data.near_by=student", f"model.init={first}", "train.steps=2")
    train([root], small_recipe(*options), out, device="cpu")
    before = np.load(out / FILE)
    shutil.rmtree(out / "checkpoints")
    shutil.rmtree(first)
    train([root], small_recipe("train.steps=2", "train.seed=5"), first, device="cpu")
    train([], None, out, resume=True, device="cpu")
    assert (np.load(out / FILE) != before).any()


def test_train__alike_objects_change_the_run(make_shards: MakeShards, tmp_path: Path) -> None:
    root = make_shards()
    weights = [
        load_model(train([root], small_recipe(*options), tmp_path / str(place), device="cpu").run)
        for place, options in enumerate(
            [
                ("train.steps=4",),
                ("train.steps=4", "data.near=4"),
                ("train.steps=4", "data.near=4", "data.near_by=text"),
                ("train.steps=4", "data.near=2"),
            ]
        )
    ]
    assert len({model.hash for model in weights}) == 4
