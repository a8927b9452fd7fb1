"""Dataset ``shapenet``: both versions, taxonomy, official split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.common import InputError
from pipeline.datasets.shapenet import ShapeNetDataset
from tests.pipeline.layout_files import TAXONOMY, shapenet, write


def test_records__both_versions_with_lemmas_and_split(tmp_path: Path) -> None:
    first, second, third = ShapeNetDataset(shapenet(tmp_path)).records()
    assert first.uid == "shapenet/02691156/aa11"
    assert first.source == "02691156/aa11/models/model_normalized.obj"
    assert first.category == "airplane"
    # The finer synset of the split table adds its lemmas.
    assert first.texts == ("airplane", "aeroplane", "plane", "airliner")
    assert set(first.text_sources) == {"category"}
    assert first.split == "train"
    assert second.split is None
    assert second.texts == ("airplane", "aeroplane", "plane")
    assert third.source == "02747177/cc33/model.obj"
    assert third.texts == ("ashcan", "trash can", "ash-bin")
    assert third.split == "test"  # the table has lost the synset's leading zero


def test_records__split_keeps_its_models_only(tmp_path: Path) -> None:
    root = shapenet(tmp_path)
    (record,) = ShapeNetDataset(root, split="test").records()
    assert record.uid == "shapenet/02747177/cc33"
    with pytest.raises(InputError, match="--split val: none of the 3 objects"):
        list(ShapeNetDataset(root, split="val").records())


def test_records__split_without_its_table_says_where_to_get_it(tmp_path: Path) -> None:
    root = shapenet(tmp_path)
    (root / "all.csv").unlink()
    assert [record.split for record in ShapeNetDataset(root).records()] == [None] * 3
    with pytest.raises(InputError, match=r"all\.csv is not there; fetch http"):
        list(ShapeNetDataset(root, split="train").records())


def test_records__missing_taxonomy_is_told_and_may_be_given(tmp_path: Path) -> None:
    root = shapenet(tmp_path / "data")
    (root / "taxonomy.json").rename(tmp_path / "names.json")
    with pytest.raises(InputError, match=r"taxonomy\.json"):
        list(ShapeNetDataset(root).records())
    with pytest.raises(InputError, match=r"--metadata .*gone is not a file: give the taxonomy"):
        list(ShapeNetDataset(root, taxonomy=tmp_path / "gone").records())
    given = ShapeNetDataset(root, taxonomy=tmp_path / "names.json")
    assert given.count() == 3
    assert "names.json" in given.options["tables"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (json.dumps(TAXONOMY)[:40], "not whole JSON"),
        ("{}", "expected a list"),
        (json.dumps(TAXONOMY[1:]), "does not name 02691156"),
    ],
)
def test_records__damaged_taxonomy_is_an_input_error(
    tmp_path: Path, content: str, named: str
) -> None:
    write(shapenet(tmp_path), {"taxonomy.json": content})
    with pytest.raises(InputError, match=named):
        list(ShapeNetDataset(tmp_path).records())


def test_records__damaged_split_table_is_an_input_error(tmp_path: Path) -> None:
    write(shapenet(tmp_path), {"all.csv": "id,synsetId\n1,2\n"})
    with pytest.raises(InputError, match="no column subSynsetId"):
        list(ShapeNetDataset(tmp_path).records())


def test_records__models_of_another_layout_name_what_their_folder_holds(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {"taxonomy.json": json.dumps(TAXONOMY), "02691156/aa11/model.binvox": b"x"},
    )
    with pytest.raises(InputError, match=r"expected .*model\.obj.* found model\.binvox"):
        list(ShapeNetDataset(root).records())


def test_records__split_table_that_is_no_csv_is_an_input_error(tmp_path: Path) -> None:
    long = "x" * (2**24 + 1)  # more than a field may hold, whoever set the limit
    write(shapenet(tmp_path), {"all.csv": f"id,synsetId,subSynsetId,modelId,split\n{long},a\n"})
    with pytest.raises(InputError, match=r"all\.csv: line \d+ is not CSV"):
        list(ShapeNetDataset(tmp_path).records())
