"""The import as a run: lists, layouts, failures, several processes, going on where it stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.common import InputError
from pipeline.imports.run import ImportOptions, ImportSummary, import_openshape
from pipeline.shards import Contents, Row, ShardSet, TeacherInfo, compare_contents, what_lacks
from tests.pipeline.imports.release import (
    ABOVE,
    ARCHIVES,
    VIEWS,
    WIDTH,
    make_object,
    make_release,
    npy,
    small_teacher,
    write_tar,
)
from tests.pipeline.shard_tools import unit

__all__ = ["small_teacher"]
pytestmark = pytest.mark.usefixtures("small_teacher")
EVERY = [place for places in ARCHIVES.values() for place in places]


def options(root: Path, out: Path, **changes: Any) -> ImportOptions:
    return replace(
        ImportOptions(root, str(out), n_points=64, n_views=VIEWS, workers=1, rows_per_part=4),
        **changes,
    )


def run(root: Path, out: Path, **changes: Any) -> ImportSummary:
    return import_openshape(options(root, out, **changes))


def rows(out: Path) -> dict[str, Row]:
    shards = ShardSet.open(out)
    found = [row for group in shards.row_groups for row in shards.rows(group)]
    assert len({row.uid for row in found}) == len(found)
    return {row.source.removesuffix(".npy"): row for row in found}


def test_import__archives_become_a_set(tmp_path: Path, small_teacher: TeacherInfo) -> None:
    make_release(tmp_path / "release")
    summary = run(tmp_path / "release", tmp_path / "out")
    assert (summary.imported, summary.failed, summary.skipped) == (12, 0, 0)
    assert compare_contents(tmp_path / "out") == Contents(3, [], [])
    found = rows(tmp_path / "out")
    assert sorted(found) == sorted(EVERY)
    assert {p for p, row in found.items() if row.category} == {
        "Objaverse/000-000/0001",
        "Objaverse/000-001/0006",
    }
    assert found["Objaverse/000-000/0001"].category == "bow (weapon)"
    assert {row.split for row in found.values()} == {"train"}
    assert "name" not in found["Objaverse/000-000/0002"].text_sources
    manifest = ShardSet.open(tmp_path / "out").manifest
    assert manifest.teacher == small_teacher
    assert (manifest.n_points, manifest.n_views, manifest.thumbnails) == (64, VIEWS, True)
    assert len(manifest.templates) == 64
    place = "ShapeNet/03001627/aa"
    expected = unit(make_object(place)["image_feat"])
    np.testing.assert_allclose(found[place].image_embeds, expected, atol=1e-3)


@pytest.mark.parametrize("layout", ["unpacked", "both", "bare members", "inside", "linked"])
def test_import__any_layout_gives_the_same_rows(layout: str, tmp_path: Path) -> None:
    release = make_release(tmp_path / "release", unpacked=layout == "unpacked")
    root = release.root
    if layout == "both":
        make_release(root, unpacked=True)
    if layout == "bare members":  # as mirrors pack them: without the folders above the shard
        for shard in ("000-000", "000-001"):
            path = root / "Objaverse" / f"{shard}.tar.gz"
            places = ARCHIVES[f"Objaverse/{shard}.tar.gz"]
            write_tar(
                path,
                [(f"./{shard}/{p.split('/')[-1]}.npy", npy(make_object(p))) for p in places],
            )
    if layout == "inside":  # the folder of one dataset, with meta_data in it
        (root / "meta_data").rename(root / "Objaverse" / "meta_data")
        root = root / "Objaverse"
    if layout == "linked":
        (root / "Objaverse").rename(tmp_path / "elsewhere")
        (root / "Objaverse").symlink_to(tmp_path / "elsewhere")
    summary = run(root, tmp_path / "out")
    expected = [p for p in EVERY if layout != "inside" or p.startswith("Objaverse")]
    assert sorted(rows(tmp_path / "out")) == sorted(expected)
    assert summary.lacking == len(EVERY) - len(expected)


def test_import__several_processes_write_the_same_rows(tmp_path: Path) -> None:
    release = make_release(tmp_path / "release")
    run(release.root, tmp_path / "one")
    # Children import the real module: the width is in the exported manifest they are handed.
    summary = run(release.root, tmp_path / "two", workers=2)
    assert (summary.imported, summary.failed) == (12, 0)
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert one.keys() == two.keys()
    for place, row in one.items():
        np.testing.assert_array_equal(row.xyz, two[place].xyz)
        np.testing.assert_array_equal(row.text_embeds, two[place].text_embeds)
        assert row.texts == two[place].texts


def test_import__a_process_that_dies_is_told_and_costs_nothing(tmp_path: Path) -> None:
    release = make_release(tmp_path / "release")
    killed = threading.Event()
    others = set(multiprocessing.active_children())  # of other tests, which keep some

    def kill_one() -> None:
        while not killed.is_set():
            for child in set(multiprocessing.active_children()) - others:
                child.kill()
                killed.set()
                break
            time.sleep(0.01)

    thread = threading.Thread(target=kill_one)
    thread.start()
    try:
        with pytest.raises(InputError, match=r"ended with code -9; run the same command again"):
            run(release.root, tmp_path / "out", workers=2)
    finally:
        killed.set()
        thread.join()
    assert set(multiprocessing.active_children()) <= others
    run(release.root, tmp_path / "out")
    assert sorted(rows(tmp_path / "out")) == sorted(EVERY)


def test_import__lists_choose(tmp_path: Path) -> None:
    release = make_release(tmp_path / "release")
    listed = ["Objaverse/000-000/0000", "ABO/B0001", "Objaverse/000-111/lost"]
    release.write_lists(listed)
    summary = run(release.root, tmp_path / "a")
    assert sorted(rows(tmp_path / "a")) == ["ABO/B0001", "Objaverse/000-000/0000"]
    assert summary.lacking == 1
    run(release.root, tmp_path / "b", holdout_lvis=True)
    assert {p: row.split for p, row in rows(tmp_path / "b").items()} == {
        "ABO/B0001": "train",
        "Objaverse/000-000/0000": "train",
        "Objaverse/000-000/0001": "test",
        "Objaverse/000-001/0006": "test",
    }
    run(release.root, tmp_path / "c", split_file="all")
    assert len(rows(tmp_path / "c")) == 12
    own = tmp_path / "own.json"
    own.write_text(json.dumps([{"dataset": "ABO", "group": "", "id": "B0001"}]))
    run(release.root, tmp_path / "d", split_file=str(own))
    assert list(rows(tmp_path / "d")) == ["ABO/B0001"]


def test_import__text_filter_off_keeps_raw_texts(tmp_path: Path) -> None:
    release = make_release(tmp_path / "release")
    (release.root / "meta_data" / "gpt4_filtering.json").unlink()
    with pytest.raises(InputError, match=r"gpt4_filtering.json: not there.*--no-text-filter"):
        run(release.root, tmp_path / "out")
    run(release.root, tmp_path / "out", text_filter=False)
    assert "name" in rows(tmp_path / "out")["Objaverse/000-000/0002"].text_sources


def test_import__lvis_alone_with_the_categories_features(tmp_path: Path) -> None:
    release = make_release(tmp_path / "release")
    values = np.random.default_rng(1).normal(size=(2, WIDTH)).astype(np.float32)
    np.save(release.root / "meta_data" / "lvis_cat_name_pt_feat.npy", values)
    run(release.root, tmp_path / "out", only_lvis=True)
    found = rows(tmp_path / "out")
    assert sorted(found) == sorted(release.lvis)
    row = found["Objaverse/000-001/0006"]  # mug: the second of the sorted names
    assert (row.texts[0], row.text_sources[0], row.split) == ("mug", "category", "test")
    np.testing.assert_allclose(row.text_embeds[0], unit(values[1]), atol=1e-3)
    np.save(release.root / "meta_data" / "lvis_cat_name_pt_feat.npy", values[:1])
    with pytest.raises(InputError, match="one row for each of the 2 categories"):
        run(release.root, tmp_path / "other", only_lvis=True)


def test_import__a_wrong_list_leaves_no_set_behind(tmp_path: Path) -> None:
    release = make_release(tmp_path / "release")
    with pytest.raises(InputError, match="--split-file nowhere: no such file; use train_all"):
        run(release.root, tmp_path / "out", split_file="nowhere")
    release.write_lists(["Objaverse/000-111/lost", "Objaverse/000-112/lost"])
    with pytest.raises(
        InputError,
        match=r"none of the 2 listed objects .* \(ABO, Objaverse, ShapeNet\); download",
    ):
        run(release.root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def test_import__bad_objects_are_failures(tmp_path: Path) -> None:
    bad: dict[str, Any] = {
        "Objaverse__000-000__0000": {"xyz": Evil()},
        "Objaverse__000-000__0001": b"",
        "Objaverse__000-000__0003": npy(make_object("ABO/1"))[:-50],
        "ABO__B0001": make_object("ABO/B0001", xyz=None),
        "ShapeNet__02691156__aa": [1, 2],
    }
    make_release(tmp_path / "release", **bad)
    summary = run(tmp_path / "release", tmp_path / "out", max_failures=0.5)
    assert (summary.imported, summary.failed, summary.too_many_failures) == (7, 5, False)
    failures = {
        f.uid: (f.stage, f.error, f.message) for f in ShardSet.open(tmp_path / "out").failures()
    }
    assert failures["objaverse/0000"] == ("import", "unsafe_pickle", f"{os.name}.system")
    assert failures["objaverse/0001"][1] == "damaged"
    assert failures["objaverse/0003"][1] == "damaged"
    assert failures["shapenet/02691156/aa"][1] == "wrong_shape"
    assert summary.reasons["import: wrong_shape"] == 2
    again = run(tmp_path / "release", tmp_path / "out")
    assert (again.imported, again.failed, again.skipped) == (0, 0, 12)
    assert again.failed_before == 5
    assert again.too_many_failures
    retried = run(tmp_path / "release", tmp_path / "out", retry_failures=True)
    assert (retried.imported, retried.failed, retried.skipped) == (0, 5, 7)
    assert retried.too_many_failures


def test_import__too_large_members_are_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_release(tmp_path / "release", ABO__B0001=b"x" * 50_000)
    monkeypatch.setattr("pipeline.imports.writing.MAX_BYTES", 30_000)
    run(tmp_path / "release", tmp_path / "out", max_failures=1.0)
    assert [f.error for f in ShardSet.open(tmp_path / "out").failures()] == ["too_large"]


def test_import__goes_on_where_it_stopped(tmp_path: Path) -> None:
    release = make_release(tmp_path / "release")
    first = run(release.root, tmp_path / "out", limit=5)
    assert first.imported == 5
    second = run(release.root, tmp_path / "out", limit=3)
    assert (second.imported, second.skipped) == (3, 5)
    run(release.root, tmp_path / "out")
    run(release.root, tmp_path / "whole")
    resumed, whole = rows(tmp_path / "out"), rows(tmp_path / "whole")
    assert resumed.keys() == whole.keys()
    for place, row in whole.items():
        np.testing.assert_array_equal(row.xyz, resumed[place].xyz)


def test_import__archive_cut_off_is_named_and_the_rest_is_imported(tmp_path: Path) -> None:
    release = make_release(tmp_path / "release")
    path = release.root / "Objaverse" / "000-001.tar.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"000-001.tar.gz: ends in the middle.*download it again"):
        run(release.root, tmp_path / "out")
    before = len(rows(tmp_path / "out"))
    assert 8 <= before < 12
    assert "has not finished" in str(what_lacks(tmp_path / "out"))
    path.write_bytes(whole)
    assert run(release.root, tmp_path / "out").imported == 12 - before
    assert what_lacks(tmp_path / "out") is None
    assert len(rows(tmp_path / "out")) == 12


def test_import__an_object_in_two_archives_comes_once(tmp_path: Path) -> None:
    release = make_release(tmp_path / "release")
    place = "Objaverse/000-000/0001"
    member = (f"{ABOVE}/{place}.npy", npy(make_object(place)))
    write_tar(release.root / "extra" / "more.tar.gz", [member, member])
    summary = run(release.root, tmp_path / "out", split_file="all")
    assert summary.imported == 12
    assert len(rows(tmp_path / "out")) == 12


def test_import__another_set_or_option_is_refused(tmp_path: Path) -> None:
    release = make_release(tmp_path / "release")
    run(release.root, tmp_path / "out")
    for changes, name in (({"n_points": 32}, "n_fps"), ({"holdout_lvis": True}, "holdout_lvis")):
        with pytest.raises(InputError, match=name):
            run(release.root, tmp_path / "out", **changes)


def test_import__wrong_folders_name_what_was_expected_and_found(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "glbs").mkdir(parents=True)
    (tmp_path / "other" / "readme.txt").touch()
    with pytest.raises(InputError, match="no such folder"):
        run(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(InputError, match=r"expected Objaverse/000-\*.tar.gz.*found nothing"):
        run(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InputError, match=r"found glbs/, readme\.txt"):
        run(tmp_path / "other", tmp_path / "out")
    release = make_release(tmp_path / "release")
    meta = release.root / "meta_data"
    (meta / "split" / "train_all.json").unlink()
    with pytest.raises(InputError, match=r"train_all.json: not there; .*meta_data holds.*split/"):
        run(release.root, tmp_path / "out")
    with pytest.raises(InputError, match=r"--split-file nothing\.json: no such file"):
        run(release.root, tmp_path / "out", split_file="nothing.json")
    (meta / "split" / "train_all.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match=r"train_all.json: not a list"):
        run(release.root, tmp_path / "out")
    (meta / "split" / "train_all.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="not an object with an id"):
        run(release.root, tmp_path / "out")
    (meta / "split" / "train_all.json").write_text("[{")
    with pytest.raises(InputError, match="not readable JSON"):
        run(release.root, tmp_path / "out")
    shutil.rmtree(meta)
    with pytest.raises(InputError, match=r"has no meta_data/ and holds ABO\.tar\.gz"):
        run(release.root, tmp_path / "out")
    (release.root / "meta_data.zip").touch()
    with pytest.raises(InputError, match=r"meta_data\.zip: still packed; unzip it"):
        run(release.root, tmp_path / "out")
    with pytest.raises(InputError, match="--up-axis up: use one of"):
        run(release.root, tmp_path / "out", up_axis="up")


def test_import__two_copies_of_a_group_are_refused(tmp_path: Path) -> None:
    release = make_release(tmp_path / "release")
    shutil.copytree(release.root / "Objaverse", release.root / "copy" / "Objaverse")
    with pytest.raises(InputError, match=r"holds the same group as .*000-000.tar.gz"):
        run(release.root, tmp_path / "out")
