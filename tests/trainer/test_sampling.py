from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.common import InputError
from pipeline.shards import Row, ShardSet
from tests.trainer.conftest import WIDTH, MakeShards, Synth, make_rows, small_recipe
from trainer.batch import CloudBatch
from trainer.data import Batches, HeldOut
from trainer.index import Corpus
from trainer.sampling import mean_of, pick_all, pick_keyed, pick_mean, source_shares

MULTI = "loss.align.kind=multi_positive"
OFFSETS = np.array([0, 0, 2, 3])  # rows of 0, 2 and 1 vectors


def open_batches(root: Path, *overrides: str) -> Batches:
    return Batches(Corpus([root], small_recipe(*overrides)), 0)


def rows_by_number(root: Path, **options: int) -> dict[int, Row]:
    """The rows as they were written, by the number that a batch calls them."""
    found = {row.uid: row for row in make_rows(Synth(**options))}  # type: ignore[arg-type]
    return {number: found[uid] for number, uid in enumerate(ShardSet.open(root).uids())}


def unit_mean(values: NDArray[np.generic]) -> NDArray[np.float64]:
    mean = np.asarray(values, np.float64).mean(0)
    return np.asarray(mean / np.linalg.norm(mean))


def is_among(vector: torch.Tensor, values: NDArray[np.generic]) -> bool:
    return bool((np.abs(np.asarray(values, np.float64) - vector.numpy()).max(1) < 1e-3).any())


def test_pick_mean__row_without_vectors_is_zero() -> None:
    values = np.ones((2, 3), np.float16)
    out, there = pick_mean(values, np.array([0, 0, 2]), np.array([0, 1]))
    assert there.tolist() == [False, True]
    assert out[0].tolist() == [0, 0, 0]


def test_pick_mean__equals_the_plain_mean() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float16)
    out, _ = pick_mean(values, OFFSETS, np.array([2, 1, 1]))
    for place, expected in enumerate((values[2:], values[:2], values[:2])):
        np.testing.assert_allclose(out[place], unit_mean(expected), atol=2e-3)


def test_pick_all__gives_every_vector_with_its_owner() -> None:
    values = np.arange(3, dtype=np.float16)[:, None]
    found, owner = pick_all(values, OFFSETS, np.array([2, 0, 1, 2]))
    assert found[:, 0].tolist() == [2, 0, 1, 2]
    assert owner.tolist() == [0, 2, 2, 3]
    none, nobody = pick_all(values, OFFSETS, np.array([0, 0]))
    assert none.shape == (0, 1)
    assert nobody.tolist() == []
    assert mean_of(none, nobody, 2)[1].tolist() == [False, False]


def test_source_shares__each_source_is_as_likely() -> None:
    shares = source_shares(["name", "caption", "caption", "retrieved"])
    assert np.diff(shares, prepend=0).tolist() == pytest.approx([1 / 3, 1 / 6, 1 / 6, 1 / 3])
    assert source_shares([]).tolist() == []


def test_pick_keyed__draws_follow_the_shares() -> None:
    values = np.arange(4, dtype=np.float16)[:, None]
    offsets, shares = np.array([0, 3, 3, 4]), source_shares(["name", "caption", "caption"])
    keys = np.concatenate([shares, source_shares(["name"]) + 2])
    draws = (np.arange(1000) + 0.5) / 1000
    found, there = pick_keyed(values, offsets, keys, np.zeros(1000, np.int64), draws)
    assert there.all()
    assert np.bincount(found[:, 0].astype(int)).tolist() == [500, 250, 250]
    almost = np.nextafter(1.0, 0.0)
    rows = np.array([0, 1, 2])
    found, there = pick_keyed(values, offsets, keys, rows, np.full(3, almost))
    assert found[:, 0].tolist() == [2, 0, 3]
    assert there.tolist() == [True, False, True]


def test_source_sampling__takes_names_as_often_as_captions(make_shards: MakeShards) -> None:
    root = make_shards(by_source=True, textless=5)
    rows = rows_by_number(root, by_source=True, textless=5)
    names = {}
    for sampling in ("one", "source"):
        batches = open_batches(root, f"data.text_sampling={sampling}")
        hits = []
        for epoch in range(12):
            for batch in batches.epoch(epoch):
                assert batch.text is not None
                for place, number in enumerate(batch.row):
                    row = rows[int(number)]
                    assert bool(batch.has_text[place]) == bool(row.texts)
                    if row.texts:
                        assert is_among(batch.text[place], row.text_embeds)
                    if len(row.texts) == 3:
                        hits.append(is_among(batch.text[place], row.text_embeds[:1]))
        names[sampling] = float(np.mean(hits))
    assert names["one"] == pytest.approx(1 / 3, abs=0.09)
    assert names["source"] == pytest.approx(1 / 2, abs=0.09)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_thumbnail__stands_for_the_view_with_its_probability(
    make_shards: MakeShards, share: float
) -> None:
    root = make_shards(thumbnails=2)
    rows = rows_by_number(root, thumbnails=2)
    batches = open_batches(root, f"data.thumbnail={share}")
    hits = []
    for epoch in range(8):
        for batch in batches.epoch(epoch):
            assert batch.image is not None
            for place, number in enumerate(batch.row):
                row, given = rows[int(number)], batch.image[place]
                if row.thumbnail_embed is None:
                    assert is_among(given, row.image_embeds)
                    continue
                hits.append(is_among(given, row.thumbnail_embed[None]))
                assert hits[-1] or is_among(given, row.image_embeds)
    assert float(np.mean(hits)) == pytest.approx(share, abs=0.12 * (0 < share < 1))


def test_thumbnail__is_drawn_apart_from_the_view(make_shards: MakeShards) -> None:
    """Whether or not a thumbnail is taken must not favour some views."""
    root = make_shards(thumbnails=1)
    rows = rows_by_number(root, thumbnails=1)
    batches = open_batches(root, "data.thumbnail=0.5")
    views = np.zeros(3)
    for epoch in range(12):
        for batch in batches.epoch(epoch):
            assert batch.image is not None
            for place, number in enumerate(batch.row):
                embeds = np.asarray(rows[int(number)].image_embeds)
                views += [is_among(batch.image[place], embeds[view][None]) for view in range(3)]
    np.testing.assert_allclose(views / views.sum(), 1 / 3, atol=0.08)


@pytest.mark.parametrize(("share", "counted"), [(0.5, True), (0.0, False)])
def test_thumbnail__is_one_more_view_of_the_mean(
    make_shards: MakeShards, share: float, counted: bool
) -> None:
    root = make_shards(thumbnails=2)
    rows = rows_by_number(root, thumbnails=2)
    batches = open_batches(root, "data.image_sampling=mean", f"data.thumbnail={share}")
    batch = next(batches.epoch(0))
    assert batch.image is not None
    for place, number in enumerate(batch.row):
        row = rows[int(number)]
        views = np.asarray(row.image_embeds)
        if counted and row.thumbnail_embed is not None:
            views = np.concatenate([views, row.thumbnail_embed[None]])
        np.testing.assert_allclose(batch.image[place], unit_mean(views), atol=2e-3)


def test_all__every_view_and_text_comes_with_its_object(make_shards: MakeShards) -> None:
    root = make_shards(thumbnails=3, textless=5)
    rows = rows_by_number(root, thumbnails=3, textless=5)
    batches = open_batches(root, MULTI, "data.image_sampling=all", "data.text_sampling=all")
    for batch in batches.epoch(0):
        clouds = batch.to(torch.device("cpu"))
        assert clouds.image_all is not None
        assert clouds.text_all is not None
        assert clouds.image is not None
        assert clouds.text is not None
        for place, number in enumerate(batch.row):
            row = rows[int(number)]
            views = np.asarray(row.image_embeds)
            if row.thumbnail_embed is not None:
                views = np.concatenate([views, row.thumbnail_embed[None]])
            given = clouds.image_all.values[clouds.image_all.owner == place]
            np.testing.assert_allclose(given, views, atol=1e-3)
            np.testing.assert_allclose(clouds.image[place], unit_mean(views), atol=2e-3)
            given = clouds.text_all.values[clouds.text_all.owner == place]
            np.testing.assert_allclose(given, row.text_embeds, atol=1e-3)
            assert bool(clouds.has_text[place]) == bool(row.texts)


def which(given: torch.Tensor, values: NDArray[np.generic]) -> list[int]:
    """Places among ``values`` of given vectors."""
    gap = np.abs(np.asarray(values, np.float64)[None] - given.numpy()[:, None]).max(2)
    assert (gap.min(1) < 1e-3).all()
    return [int(place) for place in gap.argmin(1)]


@pytest.mark.parametrize("thumbnail", [0.0, 0.5, 1.0])
def test_image_views__are_drawn_anew_each_epoch_and_each_as_often(
    make_shards: MakeShards, thumbnail: float
) -> None:
    root = make_shards(thumbnails=1)
    rows = rows_by_number(root, thumbnails=1)
    options = (MULTI, "data.image_sampling=all", f"data.thumbnail={thumbnail}")
    batches = open_batches(root, *options, "data.image_views=2")
    counts, seen, objects = np.zeros(4), set(), 0
    for epoch in range(10):
        for batch in batches.epoch(epoch):
            clouds = batch.to(torch.device("cpu"))
            assert clouds.image_all is not None
            assert clouds.image is not None
            for place, number in enumerate(batch.row):
                row = rows[int(number)]
                assert row.thumbnail_embed is not None
                every = np.concatenate([row.image_embeds, row.thumbnail_embed[None]])
                given = clouds.image_all.values[clouds.image_all.owner == place]
                chosen = which(given, every)
                assert len(set(chosen)) == 2
                np.testing.assert_allclose(clouds.image[place], unit_mean(every[chosen]), atol=2e-3)
                counts[chosen] += 1
                objects += 1
                if number == 5:
                    seen.add(tuple(sorted(chosen)))
    assert len(seen) > 1
    assert counts[3] / objects == pytest.approx(thumbnail, abs=0.06 * (0 < thumbnail < 1))
    np.testing.assert_allclose(counts[:3] / counts[:3].sum(), 1 / 3, atol=0.05)


def test_image_views__more_than_there_are_is_all_of_them(make_shards: MakeShards) -> None:
    root = make_shards()
    found = [
        told(next(open_batches(root, "data.image_sampling=mean", *extra).epoch(0)))
        for extra in ((), ("data.image_views=9",))
    ]
    assert found[0] == found[1]


def test_all__a_batch_of_several_blocks_counts_owners_through(make_shards: MakeShards) -> None:
    """Streamed with one row group a window, a batch of 16 is made of pieces."""
    root = make_shards(part_rows=12, textless=5)
    options = (MULTI, "data.text_sampling=all", "data.shuffle_groups=1")
    kept = open_batches(root, *options)
    streamed = open_batches(root, *options, "data.cache_mib=0")
    for a, b in zip(kept.epoch(1), streamed.epoch(1), strict=True):
        assert a.text_all is not None
        assert b.text_all is not None
        for left, right in zip(a.text_all, b.text_all, strict=True):
            assert torch.equal(left, right)


@pytest.mark.parametrize("sampling", ["one", "source", "mean", "all", "drawn"])
def test_sampling__memory_and_streaming_agree(make_shards: MakeShards, sampling: str) -> None:
    root = make_shards(thumbnails=3, textless=5, by_source=True)
    text = "all" if sampling == "drawn" else sampling
    image = "one" if text == "source" else text
    options = [MULTI, f"data.image_sampling={image}", f"data.text_sampling={text}"]
    options += ["data.image_views=2"] if sampling == "drawn" else []
    kept = open_batches(root, *options)
    streamed = open_batches(root, *options, "data.cache_mib=0")
    for a, b in zip(kept.epoch(2), streamed.epoch(2), strict=True):
        for name in ("image", "text", "has_text"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def told(batch: CloudBatch) -> list[bytes]:
    assert batch.image is not None
    assert batch.text is not None
    return [batch.image.numpy().tobytes(), batch.text.numpy().tobytes()]


@pytest.mark.parametrize(
    "override",
    [
        "data.image_sampling=mean",
        "data.image_sampling=all",
        "data.thumbnail=0.0",
        "data.text_sampling=source",
        "data.text_sampling=mean",
        "data.text_sampling=all",
    ],
)
def test_sampling__every_option_changes_the_batch(make_shards: MakeShards, override: str) -> None:
    root = make_shards(thumbnails=2, by_source=True)
    base = next(open_batches(root, MULTI).epoch(0))
    assert told(next(open_batches(root, MULTI, override).epoch(0))) != told(base)


def test_validation__all_is_validated_with_the_mean(make_shards: MakeShards) -> None:
    root = make_shards(thumbnails=2)
    found = []
    for sampling in ("mean", "all"):
        options = (f"data.image_sampling={sampling}", f"data.text_sampling={sampling}")
        corpus = Corpus([root], small_recipe(MULTI, *options))
        found.append([told(batch) for batch in HeldOut(corpus).batches()])
    assert found[0] == found[1]


def test_category__equal_names_of_all_sets_have_equal_numbers(make_shards: MakeShards) -> None:
    roots = [make_shards("a"), make_shards("b", prefix="other", count=50, classes=3)]
    recipe = small_recipe("loss.align.drop_same_category=true")
    batches = Batches(Corpus(roots, recipe), 0)
    for batch in batches.epoch(0):
        assert batch.category is not None
        clouds = batch.to(torch.device("cpu"))
        assert clouds.features(torch.zeros(len(batch), WIDTH)).category is clouds.category
        for number, category in zip(batch.row.tolist(), batch.category.tolist(), strict=True):
            assert category == (number % 4 if number < 96 else (number - 96) % 3)


def test_category__is_not_read_unless_asked_for(make_shards: MakeShards) -> None:
    batches = open_batches(make_shards())
    assert batches.corpus.category is None
    assert next(batches.epoch(0)).category is None


def test_category__of_no_row_is_refused(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus([make_shards()], small_recipe())
    with pytest.raises(InputError, match="no row has a category"):
        corpus._numbers([None, "", None])


def test_text__is_drawn_apart_from_the_view(make_shards: MakeShards) -> None:
    root = make_shards(views=3)
    rows = rows_by_number(root, views=3)
    batches = open_batches(root)
    pairs = np.zeros((3, 3))
    for epoch in range(20):
        for batch in batches.epoch(epoch):
            assert batch.image is not None
            assert batch.text is not None
            for place, number in enumerate(batch.row):
                row = rows[int(number)]
                if len(row.texts) != 3:
                    continue
                at = [
                    int(np.abs(np.asarray(of, np.float64) - given.numpy()).max(1).argmin())
                    for of, given in (
                        (row.image_embeds, batch.image[place]),
                        (row.text_embeds, batch.text[place]),
                    )
                ]
                pairs[at[0], at[1]] += 1
    assert pairs.min() > pairs.sum() / 9 / 2  # not view k with text k
