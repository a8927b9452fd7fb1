"""Sources with a fixed folder layout: what all of them must do, and their shared helpers."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.captions import texts_for
from pipeline.common import InputError
from pipeline.datasets.base import Dataset, Record
from pipeline.datasets.layouts import as_words, first_entries, make_record, names_in
from pipeline.datasets.sources import SourceOptions, make_dataset, sources
from pipeline.scene import MeshError
from tests.pipeline.layout_files import TREES, write

# Half sizes of the boxes are 1, 2 and 3 in the file's axes: where +z is up, height is 3.
HEIGHTS = {"shapenet": 2, "3d-future": 2, "modelnet": 3, "omniobject3d": 2, "gso": 3}


def make(name: str, root: Path, **options: Any) -> Dataset:
    return make_dataset(name, SourceOptions(root=root, **options))


@pytest.fixture(params=sorted(TREES))
def source(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def dataset(source: str, tmp_path: Path) -> Dataset:
    return make(source, TREES[source](tmp_path / "data"))


def test_records__are_unique_stable_and_complete(dataset: Dataset, source: str) -> None:
    records = list(dataset.records())
    assert records == list(dataset.records())
    assert len({record.uid for record in records}) == len(records) == dataset.count()
    assert len(records) >= 2
    for record in records:
        assert record.uid.startswith(f"{source}/")
        assert record.dataset == source == dataset.name
        assert len(record.texts) == len(record.text_sources)
        assert all(record.texts)
    assert texts_for(records[0])


def test_load__every_object_of_the_tree_loads_with_its_colour_and_upright(
    dataset: Dataset, source: str
) -> None:
    for record in dataset.records():
        asset = dataset.load(record)
        mesh = asset.mesh
        assert np.linalg.norm(mesh.vertices, axis=1).max() == pytest.approx(1, abs=1e-6)
        assert asset.n_bytes > 0
        assert len(asset.sha256) == 64
        assert mesh.has_color == (source != "modelnet")
        if source != "modelnet":
            texture = mesh.materials[0].texture
            assert texture is not None
            assert (texture[..., :3] == (255, 0, 0)).all()
        if source in HEIGHTS:
            width, height, depth = mesh.vertices.max(0) - mesh.vertices.min(0)
            assert height / width == pytest.approx(HEIGHTS[source], rel=1e-5)
            assert depth / width == pytest.approx(5 - HEIGHTS[source], rel=1e-5)


def test_load__turns_are_proper_rotations(dataset: Dataset) -> None:
    # A reflection would turn the faces of a closed box inwards.
    mesh = dataset.load(next(iter(dataset.records()))).mesh
    a, b, c = (mesh.vertices[mesh.faces[:, corner]] for corner in range(3))
    outwards = (np.cross(b - a, c - a) * (a + b + c)).sum()
    if len(mesh.faces) == 12:
        assert outwards > 0


def test_load__up_axis_of_the_user_overrides_the_source(tmp_path: Path) -> None:
    root = TREES["gso"](tmp_path)
    dataset = make("gso", root, up_axis="+y")
    mesh = dataset.load(next(iter(dataset.records()))).mesh
    width, height, _ = mesh.vertices.max(0) - mesh.vertices.min(0)
    assert height / width == pytest.approx(2, rel=1e-5)
    assert dataset.options["up_axis"] == "+y"


def test_options__are_json_and_tell_a_changed_table(source: str, tmp_path: Path) -> None:
    root = TREES[source](tmp_path / "data")
    before = make(source, root).options
    json.dumps(before)
    moved = root.rename(tmp_path / "elsewhere").rename(tmp_path / "x")
    (tmp_path / "y").mkdir()
    again = moved.rename(tmp_path / "y" / "data")
    assert make(source, again).options == before
    for name in before["tables"]:
        path = next(again.rglob(name))
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert make(source, again).options != before
        path.write_bytes(content)


def test_dataset__survives_pickling(dataset: Dataset) -> None:
    copy = pickle.loads(pickle.dumps(dataset))
    assert list(copy.records()) == list(dataset.records())


def test_records__empty_folder_names_what_was_expected_and_found(
    source: str, tmp_path: Path
) -> None:
    root = write(tmp_path / "wrong", {"b.zip": b"x", "a/readme.txt": b"x"})
    with pytest.raises(InputError) as error:
        list(make(source, root).records())
    message = str(error.value)
    assert "\n" not in message
    assert str(root) in message
    assert "expected" in message
    assert "found a, b.zip" in message
    assert sources()[source].get in message
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="found nothing"):
        list(make(source, empty).records())


def test_records__missing_root_says_how_to_get_the_data(source: str, tmp_path: Path) -> None:
    for read in (lambda d: list(d.records()), lambda d: d.options, lambda d: d.count()):
        with pytest.raises(InputError, match="not a directory") as error:
            read(make(source, tmp_path / "no"))
        assert sources()[source].get in str(error.value)


def test_make__root_is_needed_and_unknown_axis_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--root"):
        make_dataset(source, SourceOptions())
    with pytest.raises(InputError, match="--up-axis"):
        list(make(source, TREES[source](tmp_path), up_axis="up").records())


def test_make__split_is_refused_where_the_source_has_none(source: str, tmp_path: Path) -> None:
    root = TREES[source](tmp_path)
    if "split" in sources()[source].options:
        with pytest.raises(InputError, match="--split dev"):
            list(make(source, root, split="dev").records())
    else:
        with pytest.raises(InputError, match="--split"):
            make(source, root, split="train")


def test_load__object_whose_mesh_is_gone_fails_alone(dataset: Dataset) -> None:
    records = list(dataset.records())
    (dataset.root / records[-1].source).unlink()  # type: ignore[attr-defined]
    with pytest.raises(MeshError) as error:
        dataset.load(records[-1])
    assert error.value.kind == "missing_file"
    assert dataset.load(records[0]).mesh.faces.size


@pytest.mark.parametrize("key", ["..//secret.obj", "a//../../secret.obj", "%2e%2e//secret.obj"])
def test_load__key_that_leads_out_of_the_root_is_refused(tmp_path: Path, key: str) -> None:
    write(tmp_path, {"secret.obj": "v 0 0 0\n"})
    dataset = make("gso", TREES["gso"](tmp_path / "data"))
    record = dataclasses.replace(next(iter(dataset.records())), key=key)
    with pytest.raises(MeshError) as error:
        dataset.load(record)
    assert error.value.kind == "outside_reference"


def test_load__texture_of_another_object_is_not_used(tmp_path: Path) -> None:
    root = TREES["gso"](tmp_path)
    lost = root / "3D_Dollhouse_Sofa/materials/textures/texture.png"
    lost.rename(root / "texture.png")
    write(root, {"textures/texture.png": b"x", "images/texture.png": b"x"})
    dataset = make("gso", root)
    record = next(r for r in dataset.records() if "Sofa" in r.uid)
    with pytest.raises(MeshError) as error:
        dataset.load(record)
    assert error.value.kind == "missing_texture"
    assert "texture.png" in str(error.value)


# -- helpers -------------------------------------------------------------------------------------


def test_names_in__hidden_and_linked_folders(tmp_path: Path) -> None:
    write(
        tmp_path / "root", {"b/x": b"", "a/x": b"", ".hidden/x": b"", "__MACOSX/x": b"", "f": b""}
    )
    (tmp_path / "root" / "again").symlink_to(tmp_path / "root" / "a")
    assert names_in(tmp_path / "root") == ["a", "b"]
    assert names_in(tmp_path / "root", files=True) == ["f"]
    (tmp_path / "out").mkdir()
    (tmp_path / "root" / "c").symlink_to(tmp_path / "out")
    with pytest.raises(InputError, match="link out of its folder"):
        names_in(tmp_path / "root")


def test_first_entries__shows_five_and_counts_the_rest(tmp_path: Path) -> None:
    assert first_entries(tmp_path) == "nothing"
    write(tmp_path, {f"{number}.txt": b"" for number in range(8)})
    assert first_entries(tmp_path) == "0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 3 more"


def test_load__odd_names_come_back_exactly(tmp_path: Path) -> None:
    name = "50% caf\u00e9 #1 a b%2f"
    TREES["gso"](tmp_path)
    (tmp_path / "3D_Dollhouse_Sofa").rename(tmp_path / name)
    dataset = make("gso", tmp_path)
    record = next(r for r in dataset.records() if r.uid == f"gso/{name}")
    record.key.encode("ascii")
    assert dataset.load(record).mesh.has_color


def test_make_record__bytes_that_are_no_text_become_escapes() -> None:
    record: Record = make_record("x", "50% \udce9", "50% \udce9", "m.obj", texts=[(" ", "name")])
    for text in (record.uid, record.source, record.key):
        text.encode()
    assert record.texts == record.text_sources == ()


def test_as_words__labels_read_as_words() -> None:
    assert as_words("NIGHT_STAND") == "night stand"
    assert as_words(" Corner/Side  Table") == "corner/side table"
    assert as_words(None) == ""
