"""Dataset ``3d-future``: parts, labels that are null, textures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.common import InputError
from pipeline.datasets.future3d import Future3dDataset
from pipeline.scene import MeshError
from tests.pipeline.layout_files import box_obj, future3d, mtl, write


def test_records__labels_and_parts(tmp_path: Path) -> None:
    table, lamp, bed = Future3dDataset(future3d(tmp_path)).records()
    assert table.uid == "3d-future/0a-11"
    assert table.category == "corner/side table"
    assert list(zip(table.texts, table.text_sources, strict=True)) == [
        ("corner/side table", "category"),
        ("cabinet/shelf/desk", "category"),
        ("corner/side table, modern, smooth net, wood", "attributes"),
    ]
    assert (lamp.category, lamp.texts) == ("lighting", ("lighting",))
    assert bed.source == "3D-FUTURE-model-part2/0c-33/raw_model.obj"
    assert bed.texts == ("kids bed", "bed", "kids bed, modern")


def test_records__models_without_an_entry_or_a_raw_mesh(tmp_path: Path) -> None:
    root = write(future3d(tmp_path), {"0z-99/normalized_model.obj": box_obj(None), "notes/a": b""})
    (root / "0a-11/raw_model.obj").unlink()
    records = {record.uid: record for record in Future3dDataset(root).records()}
    assert records["3d-future/0z-99"].texts == ()
    assert records["3d-future/0a-11"].source == "0a-11/normalized_model.obj"
    assert len(records) == 4


def test_records__archive_unpacked_into_a_folder_of_its_name(tmp_path: Path) -> None:
    root = tmp_path / "data"
    future3d(root / "3D-FUTURE-model-part1" / "3D-FUTURE-model")
    assert len(list(Future3dDataset(root).records())) == 2


@pytest.mark.parametrize("content", ["[", "{}", "[1]", json.dumps([{"model": "x"}])])
def test_records__damaged_table_is_an_input_error(tmp_path: Path, content: str) -> None:
    write(future3d(tmp_path), {"model_info.json": content})
    with pytest.raises(InputError, match=r"model_info\.json"):
        list(Future3dDataset(tmp_path).records())


def test_load__library_with_a_texture_of_its_own_keeps_it(tmp_path: Path) -> None:
    root = future3d(tmp_path)
    write(root, {"0a-11/model.mtl": mtl("other.png")})
    dataset = Future3dDataset(root)
    with pytest.raises(MeshError) as error:
        dataset.load(next(dataset.records()))
    assert error.value.kind == "missing_texture"


def test_load__no_texture_at_all_is_an_uncoloured_mesh(tmp_path: Path) -> None:
    root = future3d(tmp_path)
    write(root, {"0a-11/model.mtl": mtl(None)})
    (root / "0a-11/texture.png").unlink()
    dataset = Future3dDataset(root)
    assert not dataset.load(next(dataset.records())).mesh.has_color


def test_records__a_table_that_was_given_and_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--metadata .*gone is not a file: give the model_info"):
        list(Future3dDataset(future3d(tmp_path), info=tmp_path / "gone").records())
