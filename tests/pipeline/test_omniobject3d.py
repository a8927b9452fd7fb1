"""Dataset ``omniobject3d``: categories from folders, or from the names of the objects."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.common import InputError
from pipeline.datasets.omniobject3d import OmniObject3dDataset
from tests.pipeline.layout_files import omniobject3d, write


def test_records__categories_from_folders(tmp_path: Path) -> None:
    records = list(OmniObject3dDataset(omniobject3d(tmp_path)).records())
    assert [record.uid for record in records] == [
        "omniobject3d/apple/apple_010",
        "omniobject3d/toy_animals/toy_animals_001",
        "omniobject3d/toy_animals/toy_animals_002",
    ]
    assert records[1].category == "toy animals"
    assert records[1].texts == ("toy animals",)
    assert records[1].source == "raw_scans/toy_animals/toy_animals_001/Scan/Scan.obj"


def test_records__objects_without_a_folder_for_the_category(tmp_path: Path) -> None:
    root = omniobject3d(tmp_path) / "raw_scans" / "toy_animals"
    records = list(OmniObject3dDataset(root).records())
    assert [record.category for record in records] == ["toy animals", "toy animals"]
    assert records[0].uid == "omniobject3d/toy_animals_001"
    assert OmniObject3dDataset(root).load(records[0]).mesh.has_color


def test_records__object_without_its_scan_is_listed(tmp_path: Path) -> None:
    root = write(omniobject3d(tmp_path), {"raw_scans/toy_animals/toy_animals_003/x": b""})
    assert OmniObject3dDataset(root).count() == 4


def test_records__renderings_are_another_layout(tmp_path: Path) -> None:
    root = write(tmp_path, {"raw_scans/apple/apple_001/render/transforms.json": b"{}"})
    with pytest.raises(InputError, match=r"apple_001: expected raw_scans/.* found render;"):
        list(OmniObject3dDataset(root).records())
