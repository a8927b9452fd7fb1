"""Dataset ``folder``: listing, uids, texts from tables and from names, loading."""

from __future__ import annotations

import json
import os
import pickle
import unicodedata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.captions import texts_for
from pipeline.common import InputError, file_hash
from pipeline.datasets.base import Dataset, Record
from pipeline.datasets.folder import FolderDataset
from pipeline.scene import MeshError
from tests.pipeline.gltf_files import cube_glb


def fill(root: Path, *paths: str) -> Path:
    for path in paths:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(cube_glb())
    return root


def by_uid(dataset: FolderDataset) -> dict[str, Record]:
    records = list(dataset.records())
    found = {record.uid: record for record in records}
    assert len(found) == len(records)
    assert dataset.count() == len(records)
    return found


def texts(record: Record) -> list[tuple[str, str]]:
    return list(zip(record.texts, record.text_sources, strict=True))


# -- listing -------------------------------------------------------------------------------------


def test_records__order_and_uids_are_fixed(tmp_path: Path) -> None:
    fill(tmp_path, "b/two.glb", "b/One.GLB", "c.obj", "a.glb", "b/deep/x.ply", "note.txt")
    fill(tmp_path, ".hidden/no.glb", "__MACOSX/no.glb", "b/.no.glb")
    uids = [record.uid for record in FolderDataset(tmp_path).records()]
    assert uids == ["folder/a", "folder/c", "folder/b/One", "folder/b/two", "folder/b/deep/x"]


def test_records__suffix_stays_where_names_collide(tmp_path: Path) -> None:
    fill(
        tmp_path, "chair.glb", "chair.obj", "table.glb", "x.glb", "x.glb.obj", "y.obj", "y.obj.ply"
    )
    found = by_uid(FolderDataset(tmp_path))
    assert {"folder/chair.glb", "folder/chair.obj", "folder/table"} <= found.keys()
    assert len(found) == 7


def test_records__links_do_not_lead_out_of_the_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fill(tmp_path / "root", "in/a.glb")
    fill(tmp_path / "other", "secret.glb")
    (root / "out.glb").symlink_to(tmp_path / "other" / "secret.glb")
    (root / "dangling.glb").symlink_to(tmp_path / "nothing.glb")
    (root / "again.glb").symlink_to(root / "in" / "a.glb")
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "outside").symlink_to(tmp_path / "other", target_is_directory=True)
    (root / "pack.tar.gz").touch()
    (root / "in" / "more.ZIP").touch()
    (root / "in" / "notes.txt").symlink_to(tmp_path / "nothing.txt")
    assert list(by_uid(FolderDataset(root))) == ["folder/again", "folder/in/a"]
    told = capsys.readouterr().err
    assert " ".join(told.split()) == (
        f"{root}: not read: links to nothing or out of the folder (2, such as 'dangling.glb'), "
        "links to folders (2, such as 'loop'), archives (2, such as 'pack.tar.gz')"
    )


def test_records__pattern_is_of_the_name_or_the_path(tmp_path: Path) -> None:
    fill(tmp_path, "a/x_lod0.glb", "a/x_lod1.glb", "b/y_lod0.glb")
    assert len(by_uid(FolderDataset(tmp_path, pattern="*_lod0.glb"))) == 2
    assert len(by_uid(FolderDataset(tmp_path, pattern="a/*"))) == 2


def test_records__root_reached_by_a_link_gives_the_same(tmp_path: Path) -> None:
    fill(tmp_path / "root", "a/x.glb")
    (tmp_path / "link").symlink_to(tmp_path / "root")
    (record,) = FolderDataset(tmp_path / "link").records()
    assert record.uid == "folder/a/x"
    assert FolderDataset(tmp_path / "link").load(record).n_bytes > 0


def test_records__names_that_are_not_utf8_still_work(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9 50%.glb"
    try:
        with open(raw, "wb") as stream:  # noqa: PTH123 (a name of bytes)
            stream.write(cube_glb())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    dataset = FolderDataset(tmp_path)
    (record,) = dataset.records()
    record.uid.encode()  # valid text, fit for a Parquet column
    record.key.encode()
    assert len(dataset.load(record).mesh.faces) == 12


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"root": "missing"}, "--root"),
        ({"root": "file.txt"}, "--root"),
        ({"root": "empty"}, "--root"),
        ({"root": "full", "pattern": "*.obj"}, "'*.obj'"),
        ({"root": "full", "up_axis": "z"}, "--up-axis"),
        ({"root": "full", "metadata": "no.csv"}, "--metadata"),
    ],
)
def test_records__wrong_option_is_an_input_error_of_one_line(
    tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    fill(tmp_path / "full", "a.glb")
    for key in ("root", "metadata"):
        if key in options:
            options = {**options, key: tmp_path / options[key]}
    with pytest.raises(InputError) as error:
        list(FolderDataset(**options).records())
    assert named in str(error.value)
    assert "\n" not in str(error.value)


# -- texts from paths ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text", "category"),
    [
        ("brick_frog_02.glb", ("brick frog", "name"), None),
        ("garden/brick_frog_02.glb", ("brick frog", "name"), "garden"),
        ("meshes/brick_frog.glb", ("brick frog", "name"), None),
        ("brick_frog/model.obj", ("brick frog", "folder"), None),
        ("garden_things/brick_frog/model.obj", ("brick frog", "folder"), "garden things"),
        ("02691156/1a04e3eab45ca15dd86060f189eb133/models/x1.obj", ("x1", "name"), None),
        ("a/b/c/frog.glb", ("frog", "name"), None),
    ],
)
def test_records__texts_and_category_of_the_path(
    tmp_path: Path, path: str, text: tuple[str, str], category: str | None
) -> None:
    (record,) = FolderDataset(fill(tmp_path, path)).records()
    assert texts_for(record) == [text]
    assert record.category == category
    assert record.source == path


# -- tables --------------------------------------------------------------------------------------


def test_table__columns_lists_and_joined_rows(tmp_path: Path) -> None:
    fill(tmp_path, "a.glb", "sub/b.glb", "c.glb")
    (tmp_path / "metadata.csv").write_text(
        "File,Caption,name,tags,category,split\n"
        'a.glb,"A frog, of brick|Garden frog",Brick Frog,frog|brick,garden,train\n'
        "a.glb,A third text,,brick|red,,\n"
        './sub/b.glb,"[""one"", ""two""]",,,,test\n'
    )
    found = by_uid(FolderDataset(tmp_path))
    a, b, c = (found[f"folder/{name}"] for name in ("a", "sub/b", "c"))
    assert texts(a) == [
        ("A frog, of brick", "caption"),
        ("Garden frog", "caption"),
        ("A third text", "caption"),
        ("Brick Frog", "name"),
        ("frog, brick, red", "tags"),
    ]
    assert (a.category, a.split) == ("garden", "train")
    assert texts(b) == [("one", "caption"), ("two", "caption"), ("b", "name")]
    assert (b.category, b.split) == ("sub", "test")
    assert texts(c) == [("c", "name")]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("uid", "folder/sub/b"),
        ("uid", "sub/b"),
        ("id", "b"),
        ("object_id", "b.glb"),
        ("name", "b"),
        ("path", "sub/b.glb"),
        ("path", "sub/b"),
        ("mesh", "sub\\b.glb"),
    ],
)
def test_table__ways_to_name_a_mesh(tmp_path: Path, column: str, value: str) -> None:
    fill(tmp_path, "sub/b.glb")
    (tmp_path / "captions.csv").write_text(f"{column},caption\n{value},a brick\n")
    (record,) = FolderDataset(tmp_path).records()
    assert ("a brick", "caption") in texts(record)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("uid", "folder/café/crème"),
        ("id", "café/crème.glb"),
        ("id", "crème"),
        ("name", "crème"),
        ("path", "café/crème.glb"),
        ("path", "café\\crème"),
    ],
)
def test_table__accents_may_be_composed_or_not(
    tmp_path: Path,
    forms: tuple[Literal["NFC", "NFD"], Literal["NFC", "NFD"]],
    column: str,
    value: str,
) -> None:
    of_table, of_files = forms
    fill(tmp_path, unicodedata.normalize(of_files, "café/crème.glb"), "other.glb")
    line = unicodedata.normalize(of_table, value)
    (tmp_path / "captions.csv").write_text(f"{column},caption\n{line},a dish\n")
    other, dish = FolderDataset(tmp_path).records()
    assert ("a dish", "caption") in texts(dish)
    assert ("a dish", "caption") not in texts(other)
    assert dish.uid == "folder/" + unicodedata.normalize(of_files, "café/crème")


def test_table__files_that_differ_in_composition_alone_have_their_own_rows(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "é.glb") for form in ("NFC", "NFD")]
    fill(tmp_path, *names)
    (tmp_path / "captions.csv").write_text(f"path,caption\n{names[0]},one\n{names[1]},two\n")
    found = {r.source: r.texts[0] for r in FolderDataset(tmp_path).records()}
    assert found == dict(zip(names, ["one", "two"], strict=True))


def test_table__beside_the_root_with_accents_composed_otherwise(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", unicodedata.normalize("NFD", "é.glb"))
    table = tmp_path / "table.csv"
    table.write_text("path,caption\nroot/é.glb,a letter\n")
    (record,) = FolderDataset(root, metadata=table).records()
    assert ("a letter", "caption") in texts(record)


def test_table__parquet_with_lists_and_a_mapping(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", "a.glb", "b.glb")
    table = pa.table(
        {"key": ["a.glb", "b.glb"], "blip": [["one", "two"], None], "lvis": ["frog", None]}
    )
    pq.write_table(table, tmp_path / "any.parquet")
    columns = (("path", "key"), ("caption", "blip"), ("category", "lvis"))
    dataset = FolderDataset(root, tmp_path / "any.parquet", columns=columns)
    found = by_uid(dataset)
    assert found["folder/a"].texts == ("one", "two", "a")
    assert found["folder/a"].category == "frog"
    assert found["folder/b"].texts == ("b",)


def test_table__beside_the_root_counts_only_if_it_names_files_in_it(tmp_path: Path) -> None:
    root = fill(tmp_path / "meshes", "a.glb")
    (tmp_path / "manifest.csv").write_text("mesh,name\nmeshes/a.glb,Brick Frog\n")
    assert by_uid(FolderDataset(root))["folder/a"].texts == ("Brick Frog",)
    assert by_uid(FolderDataset(root, auto_metadata=False))["folder/a"].texts == ("a",)
    (tmp_path / "manifest.csv").write_text("mesh,name\nother/a.glb,Brick Frog\n")
    assert by_uid(FolderDataset(root))["folder/a"].texts == ("a",)
    (tmp_path / "manifest.csv").write_text("price,name\n3,Brick Frog\n")
    assert by_uid(FolderDataset(root))["folder/a"].texts == ("a",)


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        ("price,caption\n3,x\n", "'path'"),
        ("path,price\na.glb,3\n", "'caption'"),
        ("path,caption\nother.glb,x\n", "'other.glb'"),
        ("path,caption\na.glb,one, two\n", "line 2"),
        (b"path,caption\na.glb,\xff\xfe\n", "UTF-8"),
        (b'path,caption\na.glb,"a mug\n', "ends inside of a quoted value"),
        ("", "no column"),
    ],
)
def test_table__that_cannot_be_used_is_an_input_error(
    tmp_path: Path, content: str | bytes, remedy: str
) -> None:
    fill(tmp_path, "a.glb")
    data = content.encode() if isinstance(content, str) else content
    (tmp_path / "metadata.csv").write_bytes(data)
    with pytest.raises(InputError) as error:
        list(FolderDataset(tmp_path).records())
    message = str(error.value)
    assert remedy in message
    assert "metadata.csv" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("spelled", "split"),
    [
        ("Train", "train"), ("training", "train"), ("VAL", "val"), ("valid", "val"),
        ("Validation", "val"), ("dev", "val"), (" test ", "test"), ("Testing", "test"),
        ("", None), ("none", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("column", ["split", "Subset"])
def test_table__splits_are_those_of_the_contract(
    tmp_path: Path, column: str, spelled: str, split: str | None
) -> None:
    fill(tmp_path, "a.glb", "b.glb")
    (tmp_path / "metadata.csv").write_text(f"path,{column}\na.glb,{spelled}\nb.glb,test\n")
    assert by_uid(FolderDataset(tmp_path))["folder/a"].split == split


@pytest.mark.parametrize("spelled", ["furniture", "test_hard", "eval", "1", "train|test"])
def test_table__a_split_that_is_none_is_an_input_error(tmp_path: Path, spelled: str) -> None:
    fill(tmp_path, "a.glb", "b.glb")
    (tmp_path / "metadata.csv").write_text(f"path,Split\na.glb,train\nb.glb,{spelled}\n")
    with pytest.raises(InputError) as error:
        list(FolderDataset(tmp_path).records())
    assert str(error.value) == (
        f"{tmp_path / 'metadata.csv'}: column 'Split' holds '{spelled}', which is no split: write "
        "train, val, test or nothing, or give the column another name"
    )


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_table__subset_is_no_split_where_it_holds_something_else(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fill(tmp_path / "root", "a.glb", "b.glb")
    rows = {"path": ["a.glb", "b.glb"], "caption": ["x", "y"], "subset": ["train", "furniture"]}
    path = tmp_path / f"any.{suffix}"
    if suffix == "csv":
        path.write_text("path,caption,subset\na.glb,x,train\nb.glb,y,furniture\n")
    else:
        pq.write_table(pa.table(rows), path)
    assert [r.split for r in FolderDataset(root, path).records()] == [None, None]
    assert "columns not used: subset" in capsys.readouterr().err
    with pytest.raises(InputError, match="column 'subset' holds 'furniture'"):
        list(FolderDataset(root, path, columns=(("split", "subset"),)).records())


@pytest.mark.parametrize("key", ["a", "a.glb", "folder/a"])
def test_table__what_names_one_object_is_not_the_file_name_of_another(
    tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path, "a.glb", "sub/a.glb", "sub/b.glb")
    (tmp_path / "metadata.csv").write_text(f"uid,name,category\n{key},Foo,1\nb,Bar,2\n")
    found = by_uid(FolderDataset(tmp_path))
    assert {uid: record.category for uid, record in found.items()} == {
        "folder/a": "1",
        "folder/sub/a": "sub",
        "folder/sub/b": "2",
    }
    assert found["folder/sub/a"].texts == ("a",)
    assert "says nothing of 1 of 3 objects; 1 found by their file names" in capsys.readouterr().err


def test_table__a_uid_that_is_not_there_is_no_file_name(tmp_path: Path) -> None:
    fill(tmp_path, "sub/a.glb")
    (tmp_path / "metadata.csv").write_text("uid,caption\nfolder/a,x\n")
    with pytest.raises(InputError, match="names none of the 1 meshes"):
        list(FolderDataset(tmp_path).records())


def test_folder__a_table_that_names_no_mesh_is_told_to_whoever_takes_the_first_only(
    tmp_path: Path,
) -> None:
    fill(tmp_path, "a.glb", "b.glb", "c.glb")
    table = tmp_path / "metadata.csv"
    table.write_text("path,caption\nwrong/a.glb,a box\n")
    with pytest.raises(InputError, match="names none of the 3 meshes"):
        next(FolderDataset(tmp_path).records())
    table.write_text("path,caption\nb.glb,a box\n")
    first = next(FolderDataset(tmp_path).records())
    assert first.uid == "folder/a"
    assert [record.uid for record in FolderDataset(tmp_path).records()] == [
        *("folder/a", "folder/b", "folder/c")
    ]


def test_table__in_a_folder_of_the_root_with_paths_of_either(tmp_path: Path) -> None:
    root = fill(tmp_path, "a.glb", "b.glb", "c.glb", "meta/b.glb", "meta/d.glb", "meta/sub/e.glb")
    table = root / "meta" / "table.csv"
    paths = ["a.glb", "b.glb", "../c", "d", "sub/e.glb"]
    table.write_text("path,category\n" + "".join(f"{path},{path}!\n" for path in paths))
    found = {r.source: r.category for r in FolderDataset(root, metadata=table).records()}
    assert found == {
        "a.glb": "a.glb!",  # there is none in the table's folder
        "b.glb": None,
        "c.glb": "../c!",
        "meta/b.glb": "b.glb!",
        "meta/d.glb": "d!",
        "meta/sub/e.glb": "sub/e.glb!",
    }


def test_table__damaged_parquet_and_unknown_column(tmp_path: Path) -> None:
    fill(tmp_path, "a.glb")
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"metadata\.parquet"):
        list(FolderDataset(tmp_path).records())
    (tmp_path / "metadata.parquet").unlink()
    (tmp_path / "metadata.csv").write_text("path,caption\na.glb,x\n")
    with pytest.raises(InputError, match="blip"):
        list(FolderDataset(tmp_path, columns=(("caption", "blip"),)).records())
    with pytest.raises(InputError, match="colour"):
        list(FolderDataset(tmp_path, columns=(("colour", "caption"),)).records())


# -- options and loading -------------------------------------------------------------------------


def test_options__are_json_without_places_of_this_machine(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", "a.glb")
    (root / "metadata.csv").write_text("path,caption\na.glb,x\n")
    dataset: Dataset = FolderDataset(root, up_axis="+z")
    text = json.dumps(dataset.options)
    assert str(tmp_path) not in text
    assert dataset.options["metadata"]["sha256"] == file_hash(root / "metadata.csv")
    (root / "metadata.csv").write_text("path,caption\na.glb,y\n")
    assert json.dumps(dataset.options) != text
    assert dataset.name == "folder"


def test_load__normalised_with_provenance_also_after_pickling(tmp_path: Path) -> None:
    root = fill(tmp_path, "a.glb")
    dataset = pickle.loads(pickle.dumps(FolderDataset(root, up_axis="+z")))
    (record,) = dataset.records()
    asset = dataset.load(record)
    assert asset.sha256 == file_hash(root / "a.glb")
    assert asset.n_bytes == (root / "a.glb").stat().st_size
    radii = np.linalg.norm(asset.mesh.vertices, axis=1)
    assert radii.max() == pytest.approx(1, abs=1e-6)
    size = asset.mesh.vertices.max(0) - asset.mesh.vertices.min(0)
    np.testing.assert_allclose(size / size[0], [1, 3, 2], atol=1e-5)


def test_load__file_that_went_or_leads_outside_is_a_mesh_error(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", "a.glb")
    fill(tmp_path, "secret.glb")
    dataset = FolderDataset(root)
    (record,) = dataset.records()
    (root / "a.glb").unlink()
    with pytest.raises(MeshError) as gone:
        dataset.load(record)
    assert gone.value.kind == "missing_file"
    outside = Record("folder/x", "folder", "x", "../secret.glb")
    with pytest.raises(MeshError) as error:
        dataset.load(outside)
    assert error.value.kind == "outside_reference"


def test_real_assets__manifest_is_found_and_names_match(assets_dir: Path) -> None:
    records = list(FolderDataset(assets_dir / "cc0-meshes" / "meshes").records())
    assert len(records) == 1361
    assert len({record.uid for record in records}) == 1361
    assert all(len(texts_for(record)) == 1 for record in records)
    frog = next(record for record in records if record.uid.endswith("__Apple_1"))
    assert texts_for(frog) == [("apple", "name")]
    assert frog.category == "crops_pack"


# -- what a table leaves out ---------------------------------------------------------------------


@pytest.mark.parametrize("mark", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
def test_table__fields_are_separated_as_its_first_line_has_them(tmp_path: Path, mark: str) -> None:
    root = fill(tmp_path / "meshes", "a.glb")
    table = tmp_path / "words.csv"
    rows = [("Path", "caption", "category"), ("a.glb", "a red chair", "chair")]
    table.write_text("\n".join(mark.join(row) for row in rows), encoding="utf-8-sig")
    record = by_uid(FolderDataset(root, metadata=table))["folder/a"]
    assert texts(record)[0] == ("a red chair", "caption")
    assert record.category == "chair"


def test_table__what_of_it_is_not_used_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fill(tmp_path / "meshes", "a.glb", "b.glb", "c.glb")
    table = tmp_path / "words.csv"
    table.write_text(
        "file,caption,category,price\na.glb,x,chair,1\na.glb,y,stool,2\nb.glb,z,,3\nno.glb,w,,4\n"
    )
    dataset = FolderDataset(root, metadata=table)
    assert len(list(dataset.records())) == len(list(dataset.records())) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"{table}: says nothing of 1 of 3 objects; 1 of its objects are not there ('no.glb', for "
        "example); columns not used: price; 1 rows contradict the category or split that their "
        "object has"
    )


def test_table__that_says_all_is_not_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fill(tmp_path / "meshes", "a.glb", "b.glb")
    table = tmp_path / "all.csv"
    table.write_text("file,caption\na.glb,x\nb.glb,y\n")
    assert len(list(FolderDataset(root, metadata=table).records())) == 2
    assert capsys.readouterr().err == ""
