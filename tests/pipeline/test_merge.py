"""Merged sets: all rows in order, one manifest that is true of them, and differences by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.catalog import query
from pipeline.cli import app
from pipeline.common import InputError
from pipeline.sets.merge import merge_sets
from pipeline.sets.verify import verify_set
from pipeline.shards import Failure, ImageSet, Manifest, Row, read_manifest, write_failures
from tests.pipeline.set_tools import assert_same_rows, rows_of, sound_manifest, sound_row, write_set
from tests.pipeline.shard_tools import unit

MANIFEST = sound_manifest()


def made(root: Path, manifest: Manifest, first: int, count: int) -> list[Row]:
    rows = [sound_row(manifest, f"toy/{i:03d}") for i in range(first, first + count)]
    write_set(root, manifest, [rows[: count // 2], rows[count // 2 :]])
    return rows_of(root)


def test_merge__rows_of_all_sets_one_after_another(tmp_path: Path) -> None:
    roots = [tmp_path / name for name in "cab"]
    rows = [
        row
        for at, root in enumerate(roots)
        for row in made(root, replace(MANIFEST, dataset={"name": root.name}), 200 * at, 150)
    ]
    for root in roots[1:]:  # of an object that failed twice one is told
        write_failures(root, [Failure("bad", "toy", "bad.glb", "load", "Empty", root.name)])
    found = merge_sets(roots, tmp_path / "out")
    assert found.written.failures == 1
    assert (found.given, found.left_out) == ([150, 150, 150], [0, 0, 0])
    assert_same_rows(rows_of(tmp_path / "out"), rows)
    assert query(tmp_path / "out", "select uid, message from failures")[1] == [("bad", "a")]
    assert read_manifest(tmp_path / "out").dataset == {
        "name": "merged",
        "sets": [{"name": "c"}, {"name": "a"}, {"name": "b"}],
    }
    assert verify_set(tmp_path / "out").sound


def test_merge__equal_manifests_stay_as_they_are(tmp_path: Path) -> None:
    made(tmp_path / "a", MANIFEST, 0, 10)
    made(tmp_path / "b", replace(MANIFEST, versions={"numpy": "2.0", "torch": "9"}), 10, 10)
    merge_sets([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert read_manifest(tmp_path / "out") == MANIFEST


def test_merge__of_merged_sets_is_flat(tmp_path: Path) -> None:
    for at, name in enumerate("abc"):
        made(tmp_path / name, replace(MANIFEST, dataset={"name": name}), 10 * at, 10)
    merge_sets([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    merge_sets([tmp_path / "ab", tmp_path / "c"], tmp_path / "out")
    names = [item["name"] for item in read_manifest(tmp_path / "out").dataset["sets"]]
    assert names == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"n_points": 160}, "n_points: 160 against 150"),
        ({"n_views": 3}, "n_views: 3 against 2"),
        ({"cameras": {"name": "sphere"}}, r"cameras\..*--allow cameras"),
        ({"cameras": {"name": "sphere"}, "n_views": 3}, "n_views: 3 against 2; only sets"),
        ({"renderer": {"name": "gl"}}, r"renderer\..*--allow renderer"),
        ({"templates": ["{}"]}, r"templates: .*--allow templates"),
        ({"sampling_seed": 8}, r"sampling_seed: 8 against 7.*--allow sampling_seed"),
        ({"thumbnails": True}, "thumbnails: true against false"),
        ({"kept_images": "webp-90"}, 'kept_images: "webp-90" against null'),
    ],
)
def test_merge__difference_is_named(change: dict[str, object], field: str, tmp_path: Path) -> None:
    made(tmp_path / "a", MANIFEST, 0, 2)
    made(tmp_path / "b", sound_manifest(**change), 2, 2)
    with pytest.raises(InputError, match=f"/b: differs from .*/a in {field}"):
        merge_sets([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: replace(t, fingerprint_image=[0.0] * 7 + [1.0]), "image fingerprints differ"),
        (lambda t: replace(t, fingerprint_text=[1.0] + [0.0] * 7), "text fingerprints differ"),
        (lambda t: replace(t, model="other"), 'teacher.model: "other" against "toy"'),
        (lambda t: replace(t, logit_scale=50.0), "teacher.logit_scale"),
    ],
)
def test_merge__other_teacher_is_refused_by_what_it_computes(
    change: Callable[..., object], message: str, tmp_path: Path
) -> None:
    made(tmp_path / "a", MANIFEST, 0, 2)
    other = replace(MANIFEST, teacher=change(MANIFEST.teacher))  # type: ignore[arg-type]
    made(tmp_path / "b", other, 2, 2)
    with pytest.raises(InputError, match=message):
        merge_sets([tmp_path / "a", tmp_path / "b"], tmp_path / "out")


def test_merge__fingerprints_of_another_machine_are_the_same_teacher(tmp_path: Path) -> None:
    made(tmp_path / "a", MANIFEST, 0, 2)
    near = unit(np.array(MANIFEST.teacher.fingerprint_image) + 1e-4).tolist()
    teacher = replace(MANIFEST.teacher, fingerprint_image=near)
    made(tmp_path / "b", replace(MANIFEST, teacher=teacher), 2, 2)
    merge_sets([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert read_manifest(tmp_path / "out").teacher == MANIFEST.teacher


def test_merge__teacher_known_by_name_alone_stays_so(tmp_path: Path) -> None:
    made(tmp_path / "a", MANIFEST, 0, 2)
    teacher = replace(MANIFEST.teacher, fingerprint_image=[], fingerprint_text=[])
    made(tmp_path / "b", replace(MANIFEST, teacher=teacher, contract_version=0), 2, 2)
    merge_sets([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert not read_manifest(tmp_path / "out").teacher.has_fingerprint
    assert verify_set(tmp_path / "out").sound


def test_merge__allowed_differences_are_told(tmp_path: Path) -> None:
    made(tmp_path / "a", MANIFEST, 0, 2)
    cameras = {"name": "sphere"}
    made(tmp_path / "b", sound_manifest(cameras=cameras, n_fps=50), 2, 2)
    merge_sets([tmp_path / "a", tmp_path / "b"], tmp_path / "out", allow=["cameras"])
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.cameras, manifest.n_fps) == (MANIFEST.cameras, 50)
    assert [item.get("differs") for item in manifest.dataset["sets"]] == [
        None,
        {"cameras": cameras},
    ]
    with pytest.raises(InputError, match="--allow n_points: use one of cameras"):
        merge_sets([tmp_path / "a", tmp_path / "b"], tmp_path / "x", allow=["n_points"])


def test_merge__duplicate_uids_are_an_error_or_the_first_counts(tmp_path: Path) -> None:
    first = made(tmp_path / "a", MANIFEST, 0, 100)
    made(tmp_path / "b", MANIFEST, 90, 100)
    roots = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(InputError, match=r"^toy/090: this uid is in .*/a and .*/b \(10 such rows"):
        merge_sets(roots, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = merge_sets(roots, tmp_path / "out", on_duplicate="first")
    assert (found.left_out, found.written.rows) == ([0, 10], 190)
    got = rows_of(tmp_path / "out")
    assert [row.uid for row in got] == [f"toy/{i:03d}" for i in range(190)]
    assert_same_rows(got[:100], first)


def test_merge__duplicates_within_one_set(tmp_path: Path) -> None:
    rows = [sound_row(MANIFEST, f"{i}") for i in range(6)]
    write_set(tmp_path / "a", MANIFEST, [rows[:4], rows[3:]])
    made(tmp_path / "b", MANIFEST, 0, 2)
    with pytest.raises(InputError, match=r"^3: this uid is in .*/a, twice \(1 such"):
        merge_sets([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    merge_sets([tmp_path / "a", tmp_path / "b"], tmp_path / "out", on_duplicate="first")
    assert len(rows_of(tmp_path / "out")) == 8


def test_merge__kept_pictures_go_with_their_rows(tmp_path: Path) -> None:
    manifest = sound_manifest(kept_images="webp-90", thumbnails=True)
    made(tmp_path / "a", manifest, 0, 70)
    made(tmp_path / "b", manifest, 60, 70)
    merge_sets([tmp_path / "a", tmp_path / "b"], tmp_path / "out", on_duplicate="first")
    expected: dict[str, list[bytes]] = {}
    for name in "ba":
        for batch in ImageSet.open(tmp_path / name).batches():
            expected |= dict(zip(batch.uid, batch.views, strict=True))
    got: dict[str, list[bytes]] = {}
    for batch in ImageSet.open(tmp_path / "out").batches():
        got |= dict(zip(batch.uid, batch.views, strict=True))
    assert got == expected
    assert verify_set(tmp_path / "out").sound


def test_merge__what_is_given_wrongly(tmp_path: Path) -> None:
    made(tmp_path / "a", MANIFEST, 0, 2)
    with pytest.raises(InputError, match="at least two"):
        merge_sets([tmp_path / "a"], tmp_path / "out")
    with pytest.raises(InputError, match=r"merge: .* is given twice"):
        merge_sets([tmp_path / "a", f"{tmp_path}/a/../a"], tmp_path / "out")
    with pytest.raises(InputError, match="--on-duplicate last: use one of error, first"):
        merge_sets([tmp_path / "a", tmp_path / "b"], tmp_path / "out", on_duplicate="last")
    with pytest.raises(InputError, match="not a shard set"):
        merge_sets([tmp_path / "a", tmp_path / "b"], tmp_path / "out")


def test_command__merge(tmp_path: Path) -> None:
    made(tmp_path / "a", MANIFEST, 0, 10)
    made(tmp_path / "b", MANIFEST, 5, 10)
    arguments = ["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")]
    assert isinstance(CliRunner().invoke(app, arguments).exception, InputError)
    done = CliRunner().invoke(app, [*arguments, "--on-duplicate", "first", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["left_out"] == [0, 5]
    done = CliRunner().invoke(app, [*arguments, "--on-duplicate", "first", "--overwrite"])
    assert "left out" in done.stdout
