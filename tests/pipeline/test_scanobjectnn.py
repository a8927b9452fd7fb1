"""Datasets ``scanobjectnn`` and ``modelnet-points``: layouts of the releases, on small files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.cameras import ring
from pipeline.common import InputError
from pipeline.datasets.modelnet_points import ModelNetPointsDataset
from pipeline.datasets.scanobjectnn import CLASSES, SUBSETS, ScanObjectNNDataset
from pipeline.datasets.sources import SourceOptions, make_dataset
from pipeline.objects import ObjectSettings, Processed, process
from pipeline.renderers.base import RenderConfig
from pipeline.scene import MeshError
from tests.pipeline.cloud_files import normalised, points_of, text_bytes, unit_of, write_h5

LABELS = {"training": [0, 4, 14], "test": [9, 9]}
FILES = {
    "OBJ_ONLY": "main_split_nobg/{}_objectdataset.h5",
    "OBJ_BG": "main_split/{}_objectdataset.h5",
    "PB_T50_RS": "main_split/{}_objectdataset_augmentedrot_scale75.h5",
}


def clouds_of(count: int, seed: int) -> NDArray[np.float32]:
    return np.stack([points_of(2048, 100 * seed + i) for i in range(count)])


def release(root: Path, subsets: tuple[str, ...] = SUBSETS) -> Path:
    for number, subset in enumerate(subsets):
        for part, (prefix, labels) in enumerate(LABELS.items()):
            write_h5(
                root / FILES[subset].format(prefix),
                data=clouds_of(len(labels), 10 * number + part),
                label=np.array(labels, np.int64),
                mask=np.zeros((len(labels), 2048), np.int32),
            )
    return root


# -- ScanObjectNN --------------------------------------------------------------------------------


@pytest.mark.parametrize("subset", SUBSETS)
def test_scanobjectnn__records_by_subset(tmp_path: Path, subset: str) -> None:
    dataset = ScanObjectNNDataset(release(tmp_path), subset=subset)
    records = list(dataset.records())
    assert dataset.count() == len(records) == 5
    assert [record.uid for record in records] == [
        *(f"scanobjectnn/{subset}/train/{i}" for i in range(3)),
        *(f"scanobjectnn/{subset}/test/{i}" for i in range(2)),
    ]
    assert [record.category for record in records] == ["bag", "chair", "toilet", "table", "table"]
    assert [record.split for record in records] == ["train"] * 3 + ["test"] * 2
    assert records[0].texts == ("bag",)
    assert records[4].source == FILES[subset].format("test") + "#1"


def test_scanobjectnn__loads_the_cloud_of_the_record(tmp_path: Path) -> None:
    dataset = ScanObjectNNDataset(release(tmp_path), subset="PB_T50_RS", split="test")
    records = list(dataset.records())
    for index, record in enumerate(records):
        asset = dataset.load(record)
        assert asset.cloud is not None
        expected = normalised(clouds_of(2, 21)[index])  # +y is up as released
        np.testing.assert_allclose(asset.cloud.xyz, expected, atol=1e-6)
        assert asset.cloud.rgb is None
        assert asset.n_bytes == 2048 * 3 * 4
    turned = ScanObjectNNDataset(tmp_path, subset="PB_T50_RS", split="test", up_axis="+z")
    cloud = turned.load(records[0]).cloud
    assert cloud is not None
    points = clouds_of(2, 21)[0]
    expected = normalised(np.stack([points[:, 0], points[:, 2], -points[:, 1]], axis=1))
    np.testing.assert_allclose(cloud.xyz, expected, atol=1e-6)


def test_scanobjectnn__row_end_to_end(tmp_path: Path) -> None:
    dataset = make_dataset(
        "scanobjectnn", SourceOptions(root=release(tmp_path), subset="OBJ_BG", split="train")
    )
    record = next(iter(dataset.records()))
    settings = ObjectSettings(dataset, ring(2), RenderConfig(48), n_points=4096, n_fps=2048)
    item = process(record, settings)
    assert isinstance(item, Processed)
    assert item.texts == ("bag",)
    assert not item.has_color
    assert (item.n_faces, item.n_vertices) == (0, 2048)
    assert len(np.unique(item.xyz[:2048], axis=0)) == 2048  # repeats come behind


def test_scanobjectnn__root_may_be_the_folder_above(tmp_path: Path) -> None:
    release(tmp_path / "h5_files")
    above, within = ScanObjectNNDataset(tmp_path), ScanObjectNNDataset(tmp_path / "h5_files")
    uids = [record.uid for record in within.records()]
    assert [record.uid for record in above.records()] == uids
    assert above.load(next(above.records())).sha256 == within.load(next(within.records())).sha256


def test_scanobjectnn__classes_are_the_field_s() -> None:
    assert len(set(CLASSES)) == 15
    assert CLASSES[0] == "bag"
    assert CLASSES[10:] == ("bed", "pillow", "sink", "sofa", "toilet")


def test_scanobjectnn__wrong_layout_names_expected_and_found(tmp_path: Path) -> None:
    (tmp_path / "object_dataset").mkdir()
    with pytest.raises(
        InputError, match=r"expected folders main_split/.*found object_dataset.*ask"
    ):
        list(ScanObjectNNDataset(tmp_path).records())
    release(tmp_path, ("OBJ_ONLY",))
    with pytest.raises(InputError, match=r"expected main_split/training.*found no main_split/"):
        list(ScanObjectNNDataset(tmp_path, subset="OBJ_BG").records())
    (tmp_path / FILES["OBJ_ONLY"].format("training")).unlink()
    with pytest.raises(InputError, match=r"expected .*training_objectdataset.h5.*found test_obj"):
        list(ScanObjectNNDataset(tmp_path).records())
    assert len(list(ScanObjectNNDataset(tmp_path, split="test").records())) == 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"data": np.zeros((2, 8, 3))}, r"found data \(2, 8, 3\) float64"),
        ({"data": np.zeros((2, 8, 3)), "label": np.zeros(3, int)}, r"label \(3,\)"),
        ({"data": np.zeros((2, 8)), "label": np.zeros(2, int)}, r"data \(2, 8\)"),
        ({"data": np.zeros((2, 8, 3)), "label": np.zeros(2)}, r"label \(2,\) float64"),
        ({"data": np.zeros((2, 8, 3)), "label": np.array([1, 15])}, r"label 15, expected 0 to 14"),
    ],
)
def test_scanobjectnn__other_arrays_are_one_line(
    tmp_path: Path, arrays: dict[str, NDArray[Any]], message: str
) -> None:
    write_h5(tmp_path / FILES["OBJ_ONLY"].format("test"), **arrays)
    with pytest.raises(InputError, match=message) as error:
        list(ScanObjectNNDataset(tmp_path, split="test").records())
    assert "\n" not in str(error.value)


def test_scanobjectnn__half_a_file_is_one_line(tmp_path: Path) -> None:
    release(tmp_path, ("OBJ_ONLY",))
    path = tmp_path / FILES["OBJ_ONLY"].format("test")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="not an HDF5 file"):
        list(ScanObjectNNDataset(tmp_path, split="test").records())


def test_scanobjectnn__options_tell_the_file_s_content(tmp_path: Path) -> None:
    dataset = ScanObjectNNDataset(release(tmp_path), split="test")
    before = dataset.options
    assert before["up_axis"] == "+y"
    write_h5(
        tmp_path / FILES["OBJ_ONLY"].format("test"), data=clouds_of(2, 7), label=np.array([1, 2])
    )
    assert dataset.options != before


# -- ModelNet40 clouds ---------------------------------------------------------------------------


def resampled(root: Path) -> Path:
    names = {"train": ["chair_0001", "night_stand_0003"], "test": ["night_stand_0201", "sofa_0700"]}
    for split, listed in names.items():
        path = root / f"modelnet40_{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(listed) + "\n\n")
        for seed, name in enumerate(listed):
            file = root / name.rpartition("_")[0] / f"{name}.txt"
            file.parent.mkdir(exist_ok=True)
            rows = text_bytes(points_of(300, seed), unit_of(300, seed), separator=",")
            file.write_bytes(rows)
    return root


def hdf5(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "shape_names.txt").write_text("airplane\nbed\nnight_stand\n")
    for file, labels in (("train0", [0, 2]), ("train1", [1]), ("test0", [2, 1, 0])):
        write_h5(
            root / f"ply_data_{file}.h5",
            data=clouds_of(len(labels), 3),
            normal=np.stack([unit_of(2048, i) for i in range(len(labels))]),
            label=np.array(labels, np.uint8)[:, None],
        )
    return root


@pytest.mark.parametrize("above", [False, True])
def test_modelnet_points__lists_and_text_files(tmp_path: Path, above: bool) -> None:
    root = resampled(tmp_path / "modelnet40_normal_resampled")
    dataset = ModelNetPointsDataset(tmp_path if above else root)
    records = list(dataset.records())
    names = ("chair_0001", "night_stand_0003", "night_stand_0201", "sofa_0700")
    assert [record.uid for record in records] == [f"modelnet-points/{name}" for name in names]
    assert records[1].category == "night stand"
    assert [record.split for record in records] == ["train", "train", "test", "test"]
    cloud = dataset.load(records[1]).cloud
    assert cloud is not None
    np.testing.assert_allclose(cloud.xyz, normalised(points_of(300, 1)), atol=1e-6)
    assert cloud.rgb is None  # the normals are not taken for colours


def test_modelnet_points__normals_of_the_file_shade_what_is_drawn(tmp_path: Path) -> None:
    dataset = ModelNetPointsDataset(resampled(tmp_path), split="train")
    mesh = dataset.load(next(dataset.records())).mesh
    assert mesh.normals is not None
    np.testing.assert_allclose(mesh.normals.reshape(300, -1, 3)[:, 0], unit_of(300, 0), atol=1e-5)


def test_modelnet_points__converted_files_of_the_same_names(tmp_path: Path) -> None:
    root = resampled(tmp_path)
    (root / "chair" / "chair_0001.txt").unlink()
    np.save(root / "chair" / "chair_0001.npy", points_of(400, 5))
    dataset = ModelNetPointsDataset(root, split="train")
    first, second = dataset.records()
    assert first.source == "chair/chair_0001.npy"
    cloud = dataset.load(first).cloud
    assert cloud is not None
    assert len(cloud.xyz) == 400
    (root / "night_stand" / "night_stand_0003.txt").unlink()
    with pytest.raises(MeshError) as error:
        dataset.load(second)
    assert error.value.kind == "missing_file"


def test_modelnet_points__hdf5(tmp_path: Path) -> None:
    dataset = ModelNetPointsDataset(hdf5(tmp_path / "modelnet40_ply_hdf5_2048"))
    records = list(dataset.records())
    places = ("train0/0", "train0/1", "train1/0", "test0/0", "test0/1", "test0/2")
    assert [record.uid for record in records] == [
        f"modelnet-points/ply_data_{place}" for place in places
    ]
    assert [record.split for record in records] == ["train"] * 3 + ["test"] * 3
    assert records[1].texts == ("night stand",)
    cloud = dataset.load(records[5]).cloud
    assert cloud is not None
    np.testing.assert_allclose(cloud.xyz, normalised(clouds_of(3, 3)[2]), atol=1e-6)
    ten = ModelNetPointsDataset(tmp_path, subset="10", split="test")
    assert [record.category for record in ten.records()] == ["night stand", "bed"]


def test_modelnet_points__wrong_layouts_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "chair").mkdir()
    with pytest.raises(InputError, match=r"expected modelnet40_train.txt.*found chair; download"):
        list(ModelNetPointsDataset(tmp_path).records())
    resampled(tmp_path)
    with pytest.raises(InputError, match=r"expected modelnet40_train.txt"):
        list(ModelNetPointsDataset(tmp_path, subset="10").records())
    (tmp_path / "modelnet40_train.txt").write_text("../../etc/passwd\n")
    with pytest.raises(InputError, match=r"'../../etc/passwd' is not <class>_<number>"):
        list(ModelNetPointsDataset(tmp_path).records())
    (tmp_path / "modelnet40_train.txt").unlink()
    with pytest.raises(InputError, match=r"modelnet40_train.txt: there is no such file"):
        list(ModelNetPointsDataset(tmp_path).records())
    other = hdf5(tmp_path / "h5")
    (other / "shape_names.txt").write_text("airplane\nbed\n")
    with pytest.raises(InputError, match="label 2, expected 0 to 1"):
        list(ModelNetPointsDataset(other).records())


def test_modelnet_points__source_is_registered(tmp_path: Path) -> None:
    given = SourceOptions(root=hdf5(tmp_path), subset="10", split="train", up_axis="+z")
    dataset = make_dataset("modelnet-points", given)
    assert dataset == ModelNetPointsDataset(tmp_path, subset="10", split="train", up_axis="+z")
    assert dataset.options["subset"] == "10"
    assert dataset.options["tables"].keys() == {"shape_names.txt"}
