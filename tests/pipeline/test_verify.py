"""Verification: sound sets are sound, and every kind of damage is named where it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.common import InputError
from pipeline.console import ProgressBar
from pipeline.points import farthest_point_order
from pipeline.sets import checks
from pipeline.sets.checks import wrong_prefix
from pipeline.sets.verify import Verdict, verify_set
from pipeline.sets.writing import new_set
from pipeline.shards import Failure, Manifest, Row, ShardSet, write_failures, write_table
from pipeline.shards.schema import row_schema
from tests.pipeline.set_tools import ordered, sound_manifest, sound_row, write_set

MANIFEST = sound_manifest(thumbnails=True)
COLUMNS = [field.name for field in row_schema(MANIFEST)]


def rows_for(manifest: Manifest, count: int, first: int = 0) -> list[Row]:
    """Rows with categories, splits, texts and, of every other one, a thumbnail."""
    return [
        sound_row(manifest, f"toy/{i:03d}{'x' * (i % 2)}", split="train")
        for i in range(first, first + count)
    ]


def changed_part(root: Path, column: str, change: Callable[[list[Any]], list[Any]]) -> str:
    """Add a part whose rows are valid but for one column: checksums and hashes are right."""
    write_set(root / "source", MANIFEST, [rows_for(MANIFEST, 6, 500)])
    source = ShardSet.open(root / "source")
    table = source.table(source.row_groups[0])
    place = table.schema.get_field_index(column)
    field = table.schema.field(place)
    values = pa.array(change(table.column(place).to_pylist()), field.type)
    table = table.set_column(place, field, values)
    return write_table(root / "set", MANIFEST, table, "changed")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sound set of two parts with failures."""
    write_set(tmp_path / "set", MANIFEST, [rows_for(MANIFEST, 70), rows_for(MANIFEST, 20, 100)])
    write_failures(tmp_path / "set", [Failure("bad", "toy", "bad.glb", "load", "Empty", "none")])
    return tmp_path


def lines(verdict: Verdict) -> list[str]:
    return [problem.line for problem in verdict.problems]


def test_verify__sound_set(root: Path) -> None:
    verdict = verify_set(root / "set")
    assert lines(verdict) == []
    assert verdict.sound
    (told,) = verdict.notes
    assert told.startswith("no contents.json, as in sets of older versions and of other code")
    texts = sum(len(row.texts) for row in rows_for(MANIFEST, 70) + rows_for(MANIFEST, 20, 100))
    assert verdict.looked_at == {
        "manifest": 1, "file": 2, "columns": 3 * len(COLUMNS), "uids": 90, "splits": 90, "xyz": 90,
        "order": 90, "rgb": 90, "embeddings": 2 * 90 + texts + 45, "texts": 90, "order, all": 90,
        "failures": 1,
    }  # fmt: skip
    json.dumps(verdict.to_json())


@pytest.mark.parametrize(
    "changes",
    [
        {"n_views": 0},
        {"n_fps": 0},
        {"n_fps": 1},
        {"n_fps": 2},
        {"n_fps": 150},
        {"kept_images": "webp-90"},
    ],
)
def test_verify__sound_sets_of_other_kinds(changes: dict[str, Any], tmp_path: Path) -> None:
    manifest = sound_manifest(**changes)
    write_set(tmp_path, manifest, [rows_for(manifest, 70)])
    assert lines(verify_set(tmp_path)) == []


def test_verify__empty_and_remote_sets(tmp_path: Path) -> None:
    write_set(tmp_path, MANIFEST, [])
    assert verify_set(tmp_path).sound
    write_set("memory://verify", MANIFEST, [rows_for(MANIFEST, 5)])
    assert verify_set("memory://verify").sound
    with pytest.raises(InputError, match="not a shard set"):
        verify_set(tmp_path / "nothing")


@pytest.mark.parametrize("column", COLUMNS)
def test_verify__flipped_bytes_name_the_column(column: str, root: Path) -> None:
    part = next((root / "set").glob("part-toy-100*"))
    data = part.read_bytes()
    group = pq.read_metadata(part).row_group(0)
    (chunk,) = [
        group.column(i)
        for i in range(group.num_columns)
        if group.column(i).path_in_schema.split(".")[0] == column
    ]
    end = chunk.data_page_offset + chunk.total_compressed_size
    if chunk.has_dictionary_page:
        end = chunk.dictionary_page_offset + chunk.total_compressed_size
    for offset in (end - 1, end - 2):  # the smallest page holds three bytes
        damaged = bytearray(data)
        damaged[offset] ^= 0x10
        part.write_bytes(damaged)
        verdict = verify_set(root / "set")
        found = [p for p in verdict.problems if p.check == "columns"]
        assert [(p.file, p.column) for p in found] == [(part.name, column)], offset
        assert "truncated, damaged" in found[0].message
        assert verdict.by_check["file"] == 1
        assert f"{part.name}, column {column}: " in found[0].line


def test_verify__any_flipped_byte_is_found(root: Path) -> None:
    part = next((root / "set").glob("part-toy-100*"))
    data = part.read_bytes()
    for offset in np.random.default_rng(0).integers(0, len(data), 25).tolist():
        damaged = bytearray(data)
        damaged[offset] ^= 1
        part.write_bytes(damaged)
        verdict = verify_set(root / "set", order_sample=0)
        assert "the content does not agree" in str(lines(verdict)), offset
        assert {p.file for p in verdict.problems} == {part.name}


def test_verify__truncated_part_and_the_others_are_still_looked_at(root: Path) -> None:
    part = next((root / "set").glob("part-toy-100*"))
    part.write_bytes(part.read_bytes()[:-50])
    verdict = verify_set(root / "set")
    assert verdict.looked_at["xyz"] == 70
    assert any("no Parquet footer" in line for line in lines(verdict))


def test_verify__renamed_and_foreign_parts(root: Path) -> None:
    part = next((root / "set").glob("part-toy-100*"))
    text = part.name.replace("-00020-", "-00021-")
    part.rename(part.with_name(text))
    write_set(
        root / "other", sound_manifest(sampling_seed=9), [[sound_row(sound_manifest(), "toy/9")]]
    )
    (foreign,) = (root / "other").glob("part-*")
    foreign.rename(root / "set" / foreign.name)
    (root / "set" / "part-mine.parquet").write_bytes(b"PAR1")
    found = "\n".join(lines(verify_set(root / "set")))
    assert f"{text}: 20 rows, and its name says 21" in found
    assert f"{foreign.name}: " in found
    assert "part-mine.parquet: the name is not one that this program gives" in found


def test_verify__edited_manifest(root: Path) -> None:
    path = root / "set" / "manifest.json"
    path.write_text(path.read_text().replace('"sampling_seed": 7', '"sampling_seed": 8'))
    verdict = verify_set(root / "set")
    assert [p.check for p in verdict.problems] == ["manifest"]
    assert "config_hash is not that of the fields" in lines(verdict)[0]


def test_verify__uid_twice(root: Path) -> None:
    write_set(root / "set", MANIFEST, [rows_for(MANIFEST, 2, 101)])
    found = [p for p in verify_set(root / "set").problems if p.check == "uids"]
    assert {p.uid for p in found} == {"toy/101x", "toy/102"}
    assert all("the uid is in part-toy-" in p.message for p in found)


def numbers(value: bytes, dtype: str) -> NDArray[Any]:
    return np.frombuffer(value, dtype).copy()


def test_verify__values_that_break_the_contract_name_column_and_uid(root: Path) -> None:
    def spoiled(dtype: str, spoil: Callable[[NDArray[Any]], Any], row: int = 2) -> Any:
        def change(values: list[Any]) -> list[Any]:
            array = numbers(values[row], dtype)
            spoil(array)
            return [*values[:row], array.tobytes(), *values[row + 1 :]]

        return change

    def fill(where: int | slice, value: float) -> Callable[[NDArray[Any]], None]:
        return lambda array: array.__setitem__(where, value)

    cases = [
        ("xyz", "xyz", spoiled("<i2", fill(5, -32768)), "a coordinate is below -1"),
        ("xyz", "xyz", spoiled("<i2", fill(slice(None), 5)), "all points coincide"),
        ("image_embeds", "embeddings", spoiled("<f2", fill(0, 3)), "not a unit vector (norm 3"),
        ("image_embeds", "embeddings", spoiled("<f2", fill(9, np.nan)), "(not finite)"),
        ("image_embeds", "embeddings", spoiled("<f2", fill(9, np.inf)), "(not finite)"),
        ("text_embeds", "embeddings", spoiled("<f2", fill(slice(8, 16), 0)), "(norm 0)"),
        ("thumbnail_embed", "embeddings", spoiled("<f2", fill(0, 2), 0), "not a unit vector"),
        ("texts", "texts", lambda v: [["one"], *v[1:]], "1 texts, 2 sources, 2 embeddings"),
        ("text_sources", "texts", lambda v: [[None, "a"], *v[1:]], "a text or its source is null"),
        ("text_embeds", "texts", lambda v: [b"", *v[1:]], "2 texts, 2 sources, 0 embeddings"),
        ("uid", "uids", lambda v: ["", *v[1:]], "the uid is empty"),
        ("split", "splits", lambda v: ["Train", *v[1:]], "the split 'Train' is none of train, val"),
        ("text_embeds", "columns", lambda v: [v[0][:-2], *v[1:]], "not a multiple of 8"),
    ]  # fmt: skip
    for column, check, change, message in cases:
        name = changed_part(root, column, change)
        verdict = verify_set(root / "set", order_sample=0)
        found = [p for p in verdict.problems if p.check == check]
        assert found, (column, message)
        assert all(p.file == name for p in verdict.problems)
        assert message in found[0].message
        expected = {"text_sources": "texts"}.get(column, column)
        assert found[0].column in (expected, "texts" if check == "texts" else expected)
        (root / "set" / name).unlink()


def test_verify__colour_of_clouds_without_colour(root: Path) -> None:
    def change(values: list[bytes]) -> list[bytes]:
        return [bytes(len(value)) for value in values]

    name = changed_part(root, "rgb", change)
    found = verify_set(root / "set").problems
    plain = [row.uid for row in rows_for(MANIFEST, 6, 500) if not row.has_color]
    assert [(p.check, p.file, p.uid) for p in found] == [("rgb", name, uid) for uid in plain]
    assert plain


def test_verify__points_out_of_order(root: Path) -> None:
    def shuffled(values: list[bytes]) -> list[bytes]:
        points = numbers(values[3], "<i2").reshape(-1, 3)
        points = points[np.random.default_rng(0).permutation(len(points))]
        return [*values[:3], points.tobytes(), *values[4:]]

    def swapped(values: list[bytes]) -> list[bytes]:  # beyond the first 64 points
        points = numbers(values[3], "<i2").reshape(-1, 3)
        points[[80, 140]] = points[[140, 80]]
        return [*values[:3], points.tobytes(), *values[4:]]

    for change, expected in ((shuffled, {"order", "order, all"}), (swapped, {"order, all"})):
        name = changed_part(root, "xyz", change)
        found = verify_set(root / "set").problems
        assert {p.check for p in found} == expected
        assert {(p.file, p.column, p.uid) for p in found} == {(name, "xyz", "toy/503x")}
        (root / "set" / name).unlink()


@pytest.mark.parametrize("seed", range(4))
def test_order__of_the_sampler_passes_after_rounding_and_a_swap_does_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1, 1, (2000, 3)).astype(np.float32)
    points[:, 2] *= 0 if seed == 3 else 1
    order = farthest_point_order(points, 500)
    stored = np.rint(points[order] * 32767).astype("<i2")
    assert checks.first_out_of_order(stored, 500) is None
    assert list(checks.wrong_prefix(stored[None], 500)) == []
    at = int(rng.integers(5, 60))
    stored[[at, 499]] = stored[[499, at]]
    assert checks.first_out_of_order(stored, 500) == at
    assert [row for row, _ in checks.wrong_prefix(stored[None], 500)] == [0]


def test_order__coinciding_points_at_the_end_are_in_order() -> None:
    points = np.repeat(np.random.default_rng(0).uniform(-1, 1, (30, 3)), 4, axis=0)
    stored = np.rint(ordered(points, 100) * 32767).astype("<i2")
    assert checks.first_out_of_order(stored, 100) is None
    assert list(checks.wrong_prefix(stored[None], 100)) == []


def test_verify__failures(root: Path) -> None:
    again = Failure("toy/000", "toy", "x", "load", "Empty", "none")
    name = write_failures(root / "set", [again])
    verdict = verify_set(root / "set")
    assert verdict.sound
    assert verdict.notes[1:] == [
        "1 recorded failures are of objects that have a row: they succeeded later"
    ]
    path = root / "set" / name
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    verdict = verify_set(root / "set")
    assert {(p.check, p.file) for p in verdict.problems} == {("failures", name)}


def test_verify__kept_pictures(tmp_path: Path) -> None:
    manifest = sound_manifest(kept_images="webp-90", thumbnails=True)
    write_set(tmp_path, manifest, [rows_for(manifest, 10), rows_for(manifest, 5, 100)])
    (side,) = tmp_path.glob("images-toy-100*")
    data = side.read_bytes()
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 1
    side.write_bytes(damaged)
    verdict = verify_set(tmp_path)
    assert [p.check for p in verdict.problems] == ["images"]
    assert side.name in lines(verdict)[0]
    side.rename(tmp_path / side.name.replace("toy-100", "toy-900"))
    verdict = verify_set(tmp_path)
    assert [p.check for p in verdict.problems] == ["images"]
    assert "its pictures (images-toy-100" in lines(verdict)[0]
    assert verdict.notes[1:] == ["1 files of kept pictures without a part"]
    assert verdict.looked_at["images"] == 10


def test_verify__pictures_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = sound_manifest(kept_images="webp-90")
    monkeypatch.setattr("tests.pipeline.set_tools.picture", lambda _: b"RIFF, but no picture")
    write_set(tmp_path, manifest, [rows_for(manifest, 3)])
    found = verify_set(tmp_path).problems
    assert [p.uid for p in found] == ["toy/000", "toy/001x", "toy/002"]
    assert "a picture does not decode" in found[0].message


def test_verify__a_part_that_was_lost_after_the_set_was_finished(tmp_path: Path) -> None:
    write_set(tmp_path / "set", MANIFEST, [rows_for(MANIFEST, 6)])
    source = ShardSet.open(tmp_path / "set")
    with (
        new_set(tmp_path / "out", MANIFEST, [source], rows_per_part=2) as writer,
        ProgressBar("copy", 6, "objects") as bar,
    ):
        writer.copy(source, bar)
    parts = sorted((tmp_path / "out").glob("part-*"))
    assert len(parts) == 3
    assert verify_set(tmp_path / "out").looked_at["contents"] == 3
    parts[2].unlink()
    (problem,) = verify_set(tmp_path / "out").problems
    assert (problem.check, problem.file) == ("contents", parts[2].name)
    assert problem.message.startswith("missing; copy it again")


def test_verify__leftovers_are_told(root: Path) -> None:
    (root / "set" / ".tmp-x-part-y.parquet").touch()
    verdict = verify_set(root / "set")
    assert verdict.sound
    assert "1 temporary files that a killed run left" in verdict.notes[1]


def test_command__verify_exits_with_2_and_a_line_per_problem(root: Path) -> None:
    run = CliRunner().invoke
    done = run(app, ["verify", str(root / "set")])
    assert done.exit_code == 0, done.output
    assert "sound" in done.stdout
    write_set(root / "set", MANIFEST, [rows_for(MANIFEST, 9, 101)])
    done = run(app, ["verify", str(root / "set"), "--show", "4"])
    assert done.exit_code == 2
    assert "NOT SOUND" in done.stdout
    assert done.output.count("problem: ") == 4
    assert "... and 5 more" in done.output
    done = run(app, ["verify", str(root / "set"), "--json"])
    assert done.exit_code == 2
    value = json.loads(done.stdout)
    assert (value["sound"], value["by_check"]) == (False, {"uids": 9})
    assert len(value["problems"]) == 9


def test_rows_that_the_tools_make_are_sound() -> None:
    row = sound_row(MANIFEST, "a")
    assert checks.first_out_of_order(np.rint(row.xyz * 32767).astype("<i2"), MANIFEST.n_fps) is None
    assert replace(row, split="x").split == "x"


def test_wrong_prefix__names_the_point_that_is_too_far() -> None:
    xyz = np.zeros((1, 5, 3), np.int16)
    xyz[0, :, 0] = [0, 30000, 15000, 14000, -20000]  # the fifth is farther than the fourth was
    told = "point 4 is farther from those before it than point 3"
    assert list(wrong_prefix(xyz, 5)) == [(0, told)]
