"""Exports hold what the set holds, whole or not at all; OpenShape's layout comes back as it was."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.common import InputError
from pipeline.export import FORMATS, export, file_key
from pipeline.imports.run import ImportOptions, import_openshape
from pipeline.shards import Manifest, Row, ShardSet
from tests.pipeline.shard_tools import make_manifest, make_row, make_set, unit

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)


def rows_of(root: Path) -> list[Row]:
    shards = ShardSet.open(root)
    return [row for group in shards.row_groups for row in shards.rows(group)]


def assert_same(got: Row, want: Row) -> None:
    """Every column of two rows, embeddings within float16."""
    for name, value in vars(want).items():
        other = getattr(got, name)
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(other, value, atol=1e-3 if "embed" in name else 0)
        else:
            assert other == value, name


def small_set(root: Path, count: int = 5, **changes: Any) -> list[Row]:
    manifest = make_manifest(thumbnails=True, **changes)
    rows = []
    for index in range(count):
        row = make_row(manifest, f"toy/a.b {index}", n_texts=index % 3, split="test")
        rows.append(replace(row, thumbnail_embed=row.image_embeds[0] if index % 2 else None))
    make_set(root, manifest, [rows])
    return rows_of(root)


@st.composite
def any_set(draw: st.DrawFn) -> tuple[Manifest, list[Row]]:
    manifest = make_manifest(
        thumbnails=draw(st.booleans()), n_views=draw(st.integers(0, 2)), n_points=20
    )
    sources = st.sampled_from(["name", "tags", "caption", "retrieved", "template"])
    rows = []
    uids = draw(st.lists(TEXT.filter(bool), min_size=1, max_size=6, unique=True))
    for uid in uids:
        texts = draw(st.lists(st.tuples(TEXT, sources), max_size=6))
        row = make_row(manifest, f"toy/{uid}", n_texts=0)
        embeds = np.random.default_rng(len(texts)).normal(size=(len(texts), 4))
        rows.append(
            replace(
                row,
                uid=draw(st.sampled_from([f"toy/{uid}", uid])),
                dataset=draw(st.sampled_from(["toy", "Objaverse", "a/b", ""])),
                source=draw(TEXT),
                category=draw(st.none() | TEXT),
                split=draw(st.sampled_from([None, "train", "test"])),
                texts=[text for text, _ in texts],
                text_sources=[source for _, source in texts],
                text_embeds=unit(embeds).reshape(-1, 4),
                thumbnail_embed=unit(np.ones(4))
                if manifest.thumbnails and draw(st.booleans())
                else None,
            )
        )
    return manifest, rows


@settings(max_examples=15, deadline=None)
@given(any_set(), st.integers(1, 4))
def test_openshape__comes_back_as_it_was(made: tuple[Manifest, list[Row]], per_file: int) -> None:
    manifest, rows = made
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_set(root / "set", manifest, [rows])
        export(root / "set", root / "export", "openshape", rows_per_file=per_file)
        summary = import_openshape(
            ImportOptions(root / "export", str(root / "back"), workers=1, rows_per_part=3)
        )
        assert (summary.imported, summary.failed) == (len(rows), 0), summary.reasons
        assert ShardSet.open(root / "back").manifest == manifest
        back = {row.uid: row for row in rows_of(root / "back")}
        for row in rows_of(root / "set"):
            assert_same(back[row.uid], row)
        again = import_openshape(ImportOptions(root / "export", str(root / "back"), workers=1))
        assert (again.imported, again.skipped) == (0, len(rows))


def test_openshape__has_the_keys_that_its_readers_want(tmp_path: Path) -> None:
    rows = small_set(tmp_path / "set")
    export(tmp_path / "set", tmp_path / "out", "openshape", rows_per_file=2)
    archives = sorted((tmp_path / "out" / "toy").iterdir())
    assert [path.name for path in archives] == [f"0000{i}.tar.gz" for i in range(3)]
    with tarfile.open(archives[0]) as archive:
        member = archive.getmembers()[1]
        stream = archive.extractfile(member)
        assert stream is not None
        value = np.load(io.BytesIO(stream.read()), allow_pickle=True).item()
    lvis = json.loads((tmp_path / "out/meta_data/split/lvis.json").read_text())
    assert [item["category"] for item in lvis] == [row.category for row in rows]
    assert lvis[1]["data_path"] == member.name
    assert json.loads((tmp_path / "out/meta_data/split/train_all.json").read_text()) == []
    assert value["dataset"] == "toy"
    assert value["image_feat"].shape == (2, 4)
    assert value["thumbnail_feat"].shape == (1, 4)
    assert value["text"] == [rows[1].texts[0]]
    assert value["text_feat"][0]["prompt_avg"].shape == (1, 4)
    np.testing.assert_allclose(value["rgb"] * 255, rows[1].rgb, atol=1e-4)
    np.testing.assert_array_equal(value["xyz"], rows[1].xyz)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"split_file": "three.json"}, "--split-file"),
        ({"n_points": 128}, "--points"),
        ({"up_axis": "+z"}, "--up-axis"),
        ({"only_lvis": True}, "openshape-lvis"),
        ({"text_filter": False}, "--no-text-filter"),
    ],
)
def test_openshape__options_of_the_release_are_refused_for_an_export(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    small_set(tmp_path / "set", 1)
    export(tmp_path / "set", tmp_path / "out", "openshape")
    options = ImportOptions(tmp_path / "out", str(tmp_path / "back"), workers=1, **changes)
    with pytest.raises(InputError, match=f"is an export of this project.*{told}"):
        import_openshape(options)
    assert not (tmp_path / "back").exists()
    manifest = ShardSet.open(tmp_path / "set").manifest
    plain = ImportOptions(tmp_path / "out", str(tmp_path / "back"), workers=1)
    same = replace(plain, n_points=manifest.n_points, n_views=manifest.n_views)
    assert import_openshape(same).imported == 1


def test_openshape__changed_by_another_hand_is_a_failure(tmp_path: Path) -> None:
    small_set(tmp_path / "set", 1)
    export(tmp_path / "set", tmp_path / "out", "openshape")
    path = tmp_path / "out" / "toy" / "00000.tar.gz"
    with tarfile.open(path) as archive:
        (member,) = archive.getmembers()
        stream = archive.extractfile(member)
        assert stream is not None
        value = np.load(io.BytesIO(stream.read()), allow_pickle=True).item()
    for number, change in enumerate(
        [
            {"xyz": value["xyz"] * 3},
            {"mrd3d": None},
            {"mrd3d": {**value["mrd3d"], "n_faces": -1}},
            {"mrd3d": {**value["mrd3d"], "uid": ["x"]}},
            {"mrd3d": {**value["mrd3d"], "texts": [("text", 9, "name")]}},
            {"image_feat": value["image_feat"] * 2},
        ]
    ):
        buffer = io.BytesIO()
        np.save(buffer, np.array({**value, **change}, object), allow_pickle=True)
        member.size = len(buffer.getvalue())
        with tarfile.open(path, "w:gz") as archive:
            archive.addfile(member, io.BytesIO(buffer.getvalue()))
        back = tmp_path / f"back{number}"
        summary = import_openshape(ImportOptions(tmp_path / "out", str(back), workers=1))
        assert (summary.imported, summary.failed) == (0, 1), change


@pytest.mark.parametrize("per_file", [1, 2, 100])
def test_npz__arrays_without_pickles(per_file: int, tmp_path: Path) -> None:
    rows = small_set(tmp_path / "set")
    export(tmp_path / "set", tmp_path / "out", "npz", rows_per_file=per_file)
    paths = sorted((tmp_path / "out").rglob("*.npz"))
    assert len(paths) == -(-len(rows) // per_file)
    if per_file == 1:
        assert paths[0].relative_to(tmp_path / "out") == Path("toy/a%2Eb%200.npz")
    at = 0
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            for index in range(len(file["uid"])):
                row = rows[at]
                start, end = file["text_offsets"][index : index + 2]
                assert file["uid"][index] == row.uid
                assert file["category"][index] == (row.category or "")
                assert file["texts"][start:end].tolist() == list(row.texts)
                np.testing.assert_array_equal(file["text_embeds"][start:end], row.text_embeds)
                np.testing.assert_array_equal(file["xyz"][index], row.xyz)
                np.testing.assert_array_equal(file["image_embeds"][index], row.image_embeds)
                if row.thumbnail_embed is not None:
                    assert file["has_thumbnail"][index]
                    np.testing.assert_array_equal(
                        file["thumbnail_embeds"][index], row.thumbnail_embed
                    )
                at += 1
    assert at == len(rows)


def test_webdataset__members_are_grouped_by_the_name_up_to_the_first_dot(tmp_path: Path) -> None:
    rows = small_set(tmp_path / "set")
    export(tmp_path / "set", tmp_path / "out", "webdataset", rows_per_file=3)
    found: dict[str, dict[str, bytes]] = defaultdict(dict)
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                key, _, extension = name.partition(".")  # as webdataset does it
                stream = archive.extractfile(member)
                assert stream is not None
                found[f"{folder}/{key}"][extension] = stream.read()
    assert len(found) == len(rows)
    for (key, files), row in zip(found.items(), rows, strict=True):
        assert key == file_key(row.uid)
        meta = json.loads(files["json"])
        assert (meta["uid"], meta["texts"], meta["split"]) == (row.uid, list(row.texts), "test")
        np.testing.assert_array_equal(np.load(io.BytesIO(files["xyz.npy"])), row.xyz)
        np.testing.assert_array_equal(np.load(io.BytesIO(files["image.npy"])), row.image_embeds)
        assert ("thumbnail.npy" in files) == (row.thumbnail_embed is not None)


@given(st.lists(TEXT, min_size=2, max_size=2, unique=True))
def test_file_key__is_safe_and_unique(uids: list[str]) -> None:
    keys = [file_key(uid) for uid in uids]
    assert keys[0] != keys[1]
    for key in keys:
        assert "." not in key
        assert all(key.split("/"))
        assert key.isascii()


@pytest.mark.parametrize("layout", ["npz", "webdataset"])
def test_export__a_name_too_long_for_a_file_is_cut(layout: str, tmp_path: Path) -> None:
    manifest = make_manifest()
    uids = [f"toy/{'机' * 81}{tail}" for tail in "ab"]
    assert len({file_key(uid) for uid in uids}) == 2
    make_set(tmp_path / "set", manifest, [[make_row(manifest, uid) for uid in uids]])
    export(tmp_path / "set", tmp_path / "out", layout, rows_per_file=1)
    for path in (tmp_path / "out").rglob("*.tar"):
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path / "out", filter="data")
    assert len(list((tmp_path / "out" / "toy").iterdir())) >= 2


@pytest.mark.parametrize("layout", FORMATS)
def test_export__twice_is_the_same_to_the_byte(layout: str, tmp_path: Path) -> None:
    small_set(tmp_path / "set")
    for name in ("a", "b"):
        summary = export(tmp_path / "set", tmp_path / name, layout, rows_per_file=2)
    files = {p.relative_to(tmp_path / "a"): p for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert summary.files == len(files)
    for relative, path in files.items():
        assert path.read_bytes() == (tmp_path / "b" / relative).read_bytes()


def test_export__refuses_to_overwrite_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    small_set(tmp_path / "set")
    out = tmp_path / "out"
    out.mkdir()
    export(tmp_path / "set", out, "npz")  # an empty folder is as good as none
    with pytest.raises(InputError, match="--overwrite"):
        export(tmp_path / "set", out, "webdataset")
    assert list(out.glob("*.npz"))
    export(tmp_path / "set", out, "webdataset", overwrite=True)
    assert not list(out.glob("*.npz"))
    with pytest.raises(InputError, match="not the manifest of a shard set"):
        ShardSet.open(out)
    export(tmp_path / "set", out, "openshape", overwrite=True)
    export(tmp_path / "set", out, "npz", overwrite=True)
    part = next((tmp_path / "set").glob("part-*"))
    part.write_bytes(part.read_bytes()[:-100])
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(InputError, match="part-"):
        export(tmp_path / "set", tmp_path / "new", "npz")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_export__what_is_wrong_is_named(tmp_path: Path) -> None:
    small_set(tmp_path / "set")
    small_set(tmp_path / "other")
    (tmp_path / "file").touch()
    for out, layout, message in (
        (tmp_path / "x", "csv", "--format csv: use one of npz, webdataset, openshape"),
        (tmp_path / "file", "npz", "a file; name a folder"),
        (tmp_path / "file" / "x", "npz", "is a file, not a folder; name another place"),
        (Path("s3://bucket/x"), "npz", "not a local folder"),
        (tmp_path, "npz", "holds the shard set itself"),
        (tmp_path / "set", "npz", "holds the shard set itself"),
        (tmp_path / "other", "npz", "not an exported set, so it is not replaced"),
    ):
        with pytest.raises(InputError, match=message):
            export(tmp_path / "set", out, layout, overwrite=True)
    with pytest.raises(InputError, match="not a shard set"):
        export(tmp_path / "nothing", tmp_path / "x", "npz")


def test_commands__export_and_import(tmp_path: Path) -> None:
    small_set(tmp_path / "set")
    run = CliRunner().invoke
    done = run(
        app,
        ["export", str(tmp_path / "set"), "--format", "openshape", "--out", str(tmp_path / "out"),
         "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert '"objects": 5' in done.output
    arguments = ["import", "openshape", str(tmp_path / "out"), "--out", str(tmp_path / "back")]
    done = run(app, [*arguments, "--workers", "1", "--json"])
    assert done.exit_code == 0, done.output
    assert '"imported": 5' in done.output
    path = tmp_path / "out" / "toy" / "more.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("bad.npy"), io.BytesIO())
    assert run(app, [*arguments, "--workers", "1"]).exit_code == 3
    assert len(ShardSet.open(tmp_path / "back")) == 5
