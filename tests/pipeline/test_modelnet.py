"""Dataset ``modelnet``: subsets, splits, and the roots it may be given."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.common import InputError
from pipeline.datasets.modelnet import ModelNetDataset
from pipeline.datasets.sources import SourceOptions, make_dataset
from tests.pipeline.layout_files import box_off, modelnet, write


def test_records__classes_as_words_and_splits_from_folders(tmp_path: Path) -> None:
    records = list(ModelNetDataset(modelnet(tmp_path)).records())
    assert [record.uid for record in records] == [
        "modelnet/40/chair/test/chair_0890",
        "modelnet/40/night_stand/train/night_stand_0001",
        "modelnet/40/night_stand/test/night_stand_0201",
    ]
    assert [record.split for record in records] == ["test", "train", "test"]
    assert records[1].category == "night stand"
    assert records[1].texts == ("night stand",)


def test_records__root_may_be_the_folder_of_the_classes(tmp_path: Path) -> None:
    root = modelnet(tmp_path)
    above = [r.uid for r in ModelNetDataset(root).records()]
    assert [r.uid for r in ModelNetDataset(root / "ModelNet40").records()] == above


def test_records__split_keeps_its_models_only(tmp_path: Path) -> None:
    dataset = make_dataset("modelnet", SourceOptions(root=modelnet(tmp_path), split="train"))
    (record,) = dataset.records()
    assert record.split == "train"
    assert dataset.count() == 1


@pytest.mark.parametrize("inside", ["", "ModelNet40"])
def test_records__other_subset_is_refused(tmp_path: Path, inside: str) -> None:
    root = modelnet(tmp_path) / inside
    with pytest.raises(InputError, match=r"--subset 10.*holds ModelNet40; give --subset 40"):
        list(ModelNetDataset(root, subset="10").records())


def test_records__both_subsets_under_one_root(tmp_path: Path) -> None:
    root = write(modelnet(tmp_path), {"ModelNet10/sofa/test/sofa_0681.off": box_off()})
    (record,) = make_dataset("modelnet", SourceOptions(root=root, subset="10")).records()
    assert record.uid == "modelnet/10/sofa/test/sofa_0681"
    assert ModelNetDataset(root).count() == 3


def test_make__unknown_subset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="use one of 40, 10"):
        make_dataset("modelnet", SourceOptions(root=tmp_path, subset="20"))
