"""Splits: no group straddles, every category gives its share, and nothing else changes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

from pipeline.catalog import query
from pipeline.cli import app
from pipeline.common import InputError
from pipeline.sets.split import SplitOptions, assign, make_quotas, split_set
from pipeline.shards import Failure, ImageSet, Row, ShardSet, read_manifest, write_failures
from tests.pipeline.set_tools import assert_same_rows, rows_of, sound_manifest, sound_row, write_set
from tests.pipeline.shard_tools import unit

MANIFEST = sound_manifest()
I64 = NDArray[np.int64]
SHARES = (0.1, 0.05)


def near(row: Row, seed: int) -> NDArray[np.float32]:
    """Image embeddings that differ from those of a row by a hair."""
    noise = np.random.default_rng(seed).normal(size=row.image_embeds.shape)
    return unit(row.image_embeds + 0.01 * noise)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """400 rows: random embeddings, with groups of one file, of near-duplicates and of both."""
    made: list[Row] = []
    for i in range(400):
        changes: dict[str, object] = {"split": "val" if i % 2 else None}
        if i % 11 == 0:
            changes["category"] = None
        if 100 <= i < 160:  # 20 near-duplicate groups of 3
            like = made[i - 100] if i < 120 else made[100 + i % 20]
            changes["image_embeds"] = near(like, i)
        if 200 <= i < 240:  # 20 pairs of one file
            changes["sha256"] = f"{(i - 200) % 20:064d}"
        made.append(sound_row(MANIFEST, f"toy/{i:03d}", **changes))
    return made


@pytest.fixture(scope="module")
def root(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("split")
    write_set(where, MANIFEST, [rows[:130], rows[130:300], rows[300:]])
    write_failures(where, [Failure("bad", "toy", "bad.glb", "load", "Empty", "no faces")])
    return where


def plain_groups(rows: list[Row], threshold: float) -> list[set[int]]:
    """Groups of rows that share a file or are chained by near-duplicates, by flooding."""
    means = unit(np.stack([r.image_embeds.astype(np.float16) for r in rows]).mean(1))
    cosines = means @ means.T
    # Pairs at the threshold are in doubt: of float16 embeddings.
    assert not (np.abs(cosines - threshold) < 1e-4).any()
    todo, groups = set(range(len(rows))), []
    while todo:
        group, new = set(), {min(todo)}
        while new:
            group |= new
            new = {
                j
                for i in new
                for j in todo - group
                if cosines[i, j] >= threshold or rows[i].sha256 == rows[j].sha256
            }
        groups.append(group)
        todo -= group
    return groups


@pytest.mark.parametrize("seed", [0, 1])
def test_split__no_group_straddles_and_shares_hold(
    root: Path, rows: list[Row], tmp_path: Path, seed: int
) -> None:
    found = split_set(root, tmp_path / "out", SplitOptions(0.1, 0.05, seed))
    got = rows_of(tmp_path / "out")
    groups = plain_groups(rows, 0.99)
    several = [group for group in groups if len(group) > 1]
    assert (found.groups.groups, found.groups.objects) == (len(several), sum(map(len, several)))
    assert len(several) > 35
    for group in groups:
        assert len({got[i].split for i in group}) == 1
    counts = Counter(row.split for row in got)
    assert counts == found.counts
    assert (counts["test"], counts["val"]) == (40, 20)  # single objects fill what groups leave
    by_category = defaultdict(Counter)  # type: ignore[var-annotated]
    for row in got:
        by_category[row.category][row.split] += 1
    assert len(by_category) == 4
    for own in by_category.values():
        for name, share in (("test", 0.1), ("val", 0.05)):
            assert abs(own[name] - share * own.total()) < 1
    assert found.shortfalls == []


def test_split__changes_the_column_split_alone(root: Path, tmp_path: Path) -> None:
    split_set(root, tmp_path / "out", SplitOptions(0.1, 0.05))
    before, after = rows_of(root), rows_of(tmp_path / "out")
    assert_same_rows(after, before, but="split")
    assert {row.split for row in before} == {"val", None}
    assert query(tmp_path / "out", "select uid from failures")[1] == [("bad",)]


def test_split__manifest_tells_how(root: Path, tmp_path: Path) -> None:
    split_set(root, tmp_path / "out", SplitOptions(0.2, 0.0, 3, near=0.97))
    manifest = read_manifest(tmp_path / "out")
    (step,) = manifest.dataset["derived"]
    assert {k: step[k] for k in ("step", "test", "val", "seed", "near")} == {
        "step": "split", "test": 0.2, "val": 0.0, "seed": 3, "near": 0.97,
    }  # fmt: skip
    assert str(manifest.difference(MANIFEST)).startswith("dataset.derived")


def test_split__same_seed_same_bytes_and_another_seed_another_split(
    root: Path, tmp_path: Path
) -> None:
    sides = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        split_set(root, tmp_path / name, SplitOptions(0.1, 0.05, seed))
        sides.append([row.split for row in rows_of(tmp_path / name)])
    names = [sorted(p.name for p in (tmp_path / x).iterdir()) for x in "ab"]
    assert names[0] == names[1]
    assert sides[0] != sides[2]


def test_split__without_near_duplicates_files_stay_together(
    root: Path, rows: list[Row], tmp_path: Path
) -> None:
    found = split_set(root, tmp_path / "out", SplitOptions(0.3, 0.2, look_for_near=False))
    assert (found.groups.groups, found.groups.largest) == (20, 2)
    assert found.threshold is None
    sides = {row.uid: row.split for row in rows_of(tmp_path / "out")}
    files = defaultdict(set)
    for row in rows:
        files[row.sha256].add(sides[row.uid])
    assert all(len(own) == 1 for own in files.values())


def test_split__same_name_keeps_names_of_a_category_together(tmp_path: Path) -> None:
    rows = [
        sound_row(
            MANIFEST,
            f"{i:03d}",
            texts=[f"other {i}", ("Mug " if i % 2 else "mug ") + str(i // 4)],
            text_sources=["caption", "name" if i < 80 else "tags"],
            category="a" if i % 4 < 3 else "b",
        )
        for i in range(100)
    ]
    write_set(tmp_path / "set", MANIFEST, [rows])
    options = SplitOptions(0.3, 0.2, by_name=True, look_for_near=False)
    found = split_set(tmp_path / "set", tmp_path / "out", options)
    assert (found.groups.groups, found.groups.objects) == (20, 60)
    sides = [row.split for row in rows_of(tmp_path / "out")]
    for at in range(0, 80, 4):
        assert len(set(sides[at : at + 3])) == 1


def test_split__empty_hash_says_nothing(tmp_path: Path) -> None:
    rows = [sound_row(MANIFEST, str(i), sha256="") for i in range(20)]
    write_set(tmp_path / "set", MANIFEST, [rows])
    found = split_set(tmp_path / "set", tmp_path / "out", SplitOptions(0.5, 0))
    assert (found.groups.groups, found.counts["test"]) == (0, 10)


def test_split__kept_pictures_come_along(tmp_path: Path) -> None:
    manifest = sound_manifest(kept_images="webp-90", thumbnails=True)
    rows = [sound_row(manifest, f"toy/{i}{'x' * (i % 2)}") for i in range(70)]
    write_set(tmp_path / "set", manifest, [rows[:10], rows[10:]])
    split_set(tmp_path / "set", tmp_path / "out", SplitOptions(0.1, 0.1))
    batches = [list(ImageSet.open(tmp_path / name).batches()) for name in ("set", "out")]
    for field in ("uid", "views", "thumbnails"):
        before, after = ([x for b in own for x in getattr(b, field)] for own in batches)
        assert before == after
    assert_same_rows(rows_of(tmp_path / "out"), rows_of(tmp_path / "set"), but="split")


def test_split__group_larger_than_a_share_is_told_as_a_shortfall(tmp_path: Path) -> None:
    rows = [sound_row(MANIFEST, str(i), category="mug", sha256=f"{i // 10}") for i in range(40)]
    write_set(tmp_path / "set", MANIFEST, [rows])
    found = split_set(tmp_path / "set", tmp_path / "out", SplitOptions(0.2, 0.0))
    assert found.counts == {"train": 40, "test": 0, "val": 0}
    assert [(s.category, s.split, s.wanted, s.got) for s in found.shortfalls] == [
        ("mug", "test", 8, 0)
    ]
    assert found.categories_without == {"test": 1}
    found = split_set(tmp_path / "set", tmp_path / "more", SplitOptions(0.25, 0.0))
    assert found.counts["test"] == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SplitOptions(1.0, 0), "--test 1: a share from 0"),
        (SplitOptions(0.1, -0.1), "--val -0.1: a share from 0"),
        (SplitOptions(0.6, 0.4), "--test 0.6 --val 0.4: together above 0 and below 1"),
        (SplitOptions(0, 0), "together above 0"),
        (SplitOptions(float("nan"), 0), "--test nan: a share"),
        (SplitOptions(0.1, 0, near=1.5), "--near 1.5: a cosine"),
    ],
)
def test_split__options_out_of_range(
    options: SplitOptions, message: str, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        split_set(root, tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []


def test_split__empty_set(tmp_path: Path) -> None:
    write_set(tmp_path / "set", MANIFEST, [])
    with pytest.raises(InputError, match="holds no rows"):
        split_set(tmp_path / "set", tmp_path / "out", SplitOptions(0.1, 0.1))


CASES = st.tuples(
    st.lists(st.integers(0, 6), min_size=1, max_size=150),  # strata
    st.integers(1, 60),  # how many groups at most
    st.tuples(st.floats(0, 0.6), st.floats(0, 0.39)),
    st.integers(0, 9),
)


@given(CASES)
@settings(deadline=None, max_examples=200)
def test_quotas__are_rounded_shares_that_add_up(
    case: tuple[list[int], int, tuple[float, float], int],
) -> None:
    strata, _, shares, seed = case
    counts = np.bincount(strata)
    quotas = make_quotas(counts, shares, seed)
    assert (quotas >= 0).all()
    assert (quotas.sum(axis=0) <= counts).all()
    for share, quota in zip(shares, quotas, strict=True):
        assert (quota - counts * share < 1).all()
    first = quotas[0] - counts * shares[0]
    assert (np.abs(first) < 1).all()
    assert quotas[0].sum() == round(len(strata) * shares[0])


@given(CASES)
@settings(deadline=None, max_examples=200)
def test_assign__whole_groups_within_quotas_and_nothing_more_fits(
    case: tuple[list[int], int, tuple[float, float], int],
) -> None:
    strata, most, shares, seed = np.array(case[0]), *case[1:]
    groups = np.random.default_rng(seed).integers(0, most, len(strata)).astype(np.int64)
    quotas = make_quotas(np.bincount(strata), shares, seed)
    sides = assign(groups, np.asarray(strata), quotas, shares, seed)
    left = quotas.copy()
    for split in range(2):
        left[split] -= np.bincount(strata[sides == split + 1], minlength=quotas.shape[1])
    assert (left >= 0).all()
    for group in np.unique(groups):
        members = groups == group
        assert len(set(sides[members])) == 1
        if sides[members][0] == 0:
            need = np.bincount(strata[members], minlength=quotas.shape[1])
            assert not any((need <= left[split]).all() for split in range(2))


def test_assign__groups_are_held_out_as_often_as_their_share() -> None:
    groups = np.concatenate([np.repeat(np.arange(200), 3), np.arange(200, 1400)])
    strata = np.zeros(len(groups), np.int64)
    held = 0
    for seed in range(20):
        quotas = make_quotas(np.array([len(groups)]), SHARES, seed)
        sides = assign(groups, strata, quotas, SHARES, seed)
        held += int((sides[:600] > 0).sum())
    assert abs(held / (20 * 600) - 0.15) < 0.02


def test_command__split(root: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    arguments = ["split", str(root), "--out", str(tmp_path / "out"), "--test", "0.2"]
    done = run(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["counts"] == {"train": 300, "test": 80, "val": 20}
    assert isinstance(run(app, arguments).exception, InputError)
    done = run(app, [*arguments, "--overwrite"])
    assert done.exit_code == 0, done.output
    assert "80" in done.stdout
    assert len(ShardSet.open(tmp_path / "out")) == 400


def test_assign__a_group_is_taken_by_one_split_alone() -> None:
    groups = np.repeat(np.arange(10), 2)
    strata = np.zeros(20, np.int64)
    for seed in range(20):
        sides = assign(groups, strata, np.array([[4], [4]]), (0.2, 0.2), seed)
        assert np.bincount(sides, minlength=3).tolist() == [12, 4, 4]
