"""Dataset ``points``: listing, texts, files of many clouds, and rows from real meshes' points."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.cameras import ring
from pipeline.captions import texts_for
from pipeline.common import InputError
from pipeline.datasets.base import Dataset, Record
from pipeline.datasets.points import PointsDataset
from pipeline.datasets.sources import SourceOptions, make_dataset
from pipeline.meshes import load_mesh
from pipeline.objects import ObjectSettings, Processed, process
from pipeline.points import sample_points
from pipeline.renderers.base import RenderConfig
from pipeline.scene import MeshError
from pipeline.shards import NEUTRAL_RGB, Failure
from tests.pipeline.cloud_files import (
    colors_of,
    normalised,
    ply_bytes,
    points_of,
    text_bytes,
    write_h5,
)
from tests.pipeline.gltf_files import cube_glb

XYZ, RGB = points_of(), colors_of()


def put(root: Path, name: str, data: bytes | None = None) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text_bytes(XYZ, RGB) if data is None else data)


def by_uid(dataset: PointsDataset) -> dict[str, Record]:
    records = list(dataset.records())
    found = {record.uid: record for record in records}
    assert len(found) == len(records) == dataset.count()
    return found


def settings_of(dataset: Dataset, n_points: int = 256, n_fps: int = 64) -> ObjectSettings:
    return ObjectSettings(
        dataset, ring(2), RenderConfig(image_size=64), n_points=n_points, n_fps=n_fps
    )


# -- listing -------------------------------------------------------------------------------------


def test_records__point_files_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b/One.XYZ", "b/two.pts", "a.txt", "c.csv"):
        put(tmp_path, name)
    put(tmp_path, "d.ply", ply_bytes(XYZ))
    put(tmp_path, "README.txt", b"1 2 3\n")
    put(tmp_path, "train.txt", b"airplane_0001\nairplane_0002\n")
    put(tmp_path, "mesh.glb", cube_glb())
    put(tmp_path, ".hidden/no.xyz")
    np.save(tmp_path / "e.npy", XYZ)
    found = by_uid(PointsDataset(tmp_path))
    assert list(found) == [f"points/{name}" for name in ("a", "c", "d", "e", "b/One", "b/two")]
    assert {record.dataset for record in found.values()} == {"points"}
    assert found["points/b/One"].source == "b/One.XYZ"


def test_records__texts_from_names_folders_and_table(tmp_path: Path) -> None:
    put(tmp_path, "chairs/office_chair_01.xyz")
    put(tmp_path, "chairs/stool.ply", ply_bytes(XYZ))
    put(tmp_path, "metadata.csv", b"path,caption,split\nchairs/stool.ply,a bar stool,test\n")
    found = by_uid(PointsDataset(tmp_path))
    plain, told = found["points/chairs/office_chair_01"], found["points/chairs/stool"]
    assert texts_for(plain) == [("office chair", "name")]
    assert plain.category == told.category == "chairs"
    assert texts_for(told) == [("a bar stool", "caption"), ("stool", "name")]
    assert told.split == "test"


def test_records__table_beside_and_table_of_no_use(tmp_path: Path) -> None:
    put(tmp_path, "clouds/a.xyz")
    put(tmp_path, "clouds/texts.csv", b"uid,caption\na,a thing\n")
    table = tmp_path / "clouds" / "texts.csv"
    found = by_uid(PointsDataset(tmp_path / "clouds", metadata=table))
    assert texts_for(found["points/a"])[0] == ("a thing", "caption")
    table.write_bytes(b"uid,caption\nother,a thing\n")
    with pytest.raises(InputError, match=r"names none of the 1 point files"):
        list(PointsDataset(tmp_path / "clouds", metadata=table).records())


def test_records__a_file_of_many_clouds_gives_many(tmp_path: Path) -> None:
    clouds = np.stack([points_of(seed=seed) for seed in range(3)])
    write_h5(tmp_path / "vases" / "set 1#a.h5", data=clouds)
    put(tmp_path, "metadata.csv", b"path,caption\nvases/set 1#a.h5/1,a blue vase\n")
    dataset = PointsDataset(tmp_path)
    found = by_uid(dataset)
    assert list(found) == [f"points/vases/set 1#a.h5/{index}" for index in range(3)]
    records = list(found.values())
    assert [record.source for record in records] == [f"vases/set 1#a.h5#{i}" for i in range(3)]
    assert {record.category for record in records} == {"vases"}
    assert [texts_for(record) for record in records] == [
        [("vases", "category")],
        [("a blue vase", "caption")],
        [("vases", "category")],
    ]
    for index, record in enumerate(records):
        cloud = dataset.load(record).cloud
        assert cloud is not None
        np.testing.assert_allclose(cloud.xyz, normalised(clouds[index]), atol=1e-6)


def test_records__one_row_for_a_file_is_for_all_its_clouds(tmp_path: Path) -> None:
    np.save(tmp_path / "pots.npy", np.stack([XYZ, XYZ]))
    put(tmp_path, "metadata.csv", b"path,name,category\npots.npy,pot,kitchen\n")
    for record in by_uid(PointsDataset(tmp_path)).values():
        assert texts_for(record) == [("pot", "name")]
        assert record.category == "kitchen"


def test_records__a_table_names_them_by_uid(tmp_path: Path) -> None:
    put(tmp_path, "one.xyz")
    put(tmp_path, "points/one.xyz")
    np.save(tmp_path / "pots.npy", np.stack([XYZ, XYZ]))
    put(tmp_path, "metadata.csv", b"uid,caption\npoints/one,a\npoints/pots.npy/1,b\n")
    found = by_uid(PointsDataset(tmp_path))
    texts = {uid: texts_for(record)[0] for uid, record in found.items() if record.texts}
    assert texts["points/one"] == ("a", "caption")
    assert texts["points/pots.npy/1"] == ("b", "caption")
    assert "points/pots.npy/0" not in texts


def test_records__a_table_in_a_folder_names_clouds_of_either(tmp_path: Path) -> None:
    for folder in ("", "meta"):
        (tmp_path / folder).mkdir(exist_ok=True)
        np.save(tmp_path / folder / "pots.npy", np.stack([XYZ, XYZ]))
    np.save(tmp_path / "cups.npy", np.stack([XYZ, XYZ]))
    put(tmp_path, "meta/t.csv", b"path,caption\npots.npy/1,a pot\ncups.npy/0,a cup\n")
    dataset = PointsDataset(tmp_path, metadata=tmp_path / "meta" / "t.csv")
    told = {uid: r.texts for uid, r in by_uid(dataset).items() if r.texts}
    assert told == {"points/cups.npy/0": ("a cup",), "points/meta/pots.npy/1": ("a pot",)}


def test_records__damaged_files_are_listed_and_fail_when_loaded(tmp_path: Path) -> None:
    put(tmp_path, "a.npy", b"not an array")
    put(tmp_path, "b.h5", b"")
    put(tmp_path, "c.txt", b"")
    dataset = PointsDataset(tmp_path)
    kinds = {}
    for uid, record in by_uid(dataset).items():
        item = process(record, settings_of(dataset))
        assert isinstance(item, Failure)
        assert item.stage == "load"
        kinds[uid] = item.error
    assert kinds == {"points/a": "bad_header", "points/b": "empty_file", "points/c": "empty_file"}


def test_records__nothing_there_names_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"expected point files \(.ply, .npy.*found .*check --root"
    ):
        list(PointsDataset(tmp_path).records())
    with pytest.raises(InputError, match="not a directory: give a folder of point files"):
        list(PointsDataset(tmp_path / "no").records())
    with pytest.raises(InputError, match="--up-axis 'up' is unknown"):
        list(PointsDataset(tmp_path, up_axis="up").records())


def test_load__links_out_of_the_root_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "root/a.xyz")
    put(tmp_path, "other/b.xyz")
    dataset = PointsDataset(tmp_path / "root")
    (record,) = by_uid(dataset).values()
    (tmp_path / "root" / "a.xyz").unlink()
    (tmp_path / "root" / "a.xyz").symlink_to(tmp_path / "other" / "b.xyz")
    assert dataset.count() == 0
    with pytest.raises(MeshError) as error:
        dataset.load(record)
    assert error.value.kind == "outside_reference"


def test_load__names_that_are_not_utf8(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/st\xfchle.xyz"
    with open(path, "wb") as stream:  # noqa: PTH123 (bytes)
        stream.write(text_bytes(XYZ))
    dataset = PointsDataset(tmp_path)
    (record,) = by_uid(dataset).values()
    record.uid.encode()
    assert dataset.load(record).cloud is not None


def test_source__options_reach_the_dataset(tmp_path: Path) -> None:
    put(tmp_path, "a.xyz")
    given = SourceOptions(root=tmp_path, up_axis="-z", pattern="*.xyz")
    dataset = make_dataset("points", given)
    assert dataset == PointsDataset(tmp_path, up_axis="-z", pattern="*.xyz")
    assert dataset.options["up_axis"] == "-z"
    assert pickle.loads(pickle.dumps(dataset)) == dataset
    with pytest.raises(InputError, match="--split"):
        make_dataset("points", SourceOptions(root=tmp_path, split="test"))


# -- rows ----------------------------------------------------------------------------------------


def test_process__row_holds_the_points_of_the_file(tmp_path: Path) -> None:
    put(tmp_path, "a.xyz")
    dataset = PointsDataset(tmp_path, up_axis="+z")
    (record,) = by_uid(dataset).values()
    item = process(record, settings_of(dataset))
    assert isinstance(item, Processed)
    assert (item.n_faces, item.n_vertices) == (0, len(XYZ))
    assert item.has_color
    turned = normalised(np.stack([XYZ[:, 0], XYZ[:, 2], -XYZ[:, 1]], axis=1))
    expected = {(*xyz, *rgb) for xyz, rgb in zip(turned.round(5), RGB.tolist(), strict=True)}
    pairs = zip(item.xyz.astype(float).round(5), item.rgb.tolist(), strict=True)
    got = [(*xyz, *rgb) for xyz, rgb in pairs]
    assert len(got) == 256
    distances = np.abs(np.array(sorted(set(got))) - np.array(sorted(expected)))
    assert distances.max() <= 2e-5
    (images,) = item.images.values()
    assert images.shape == (2, 64, 64, 3)
    assert images.min() < 200  # something is seen
    again = process(record, settings_of(dataset))
    assert isinstance(again, Processed)
    assert item.xyz.tobytes() == again.xyz.tobytes()
    assert images.tobytes() == next(iter(again.images.values())).tobytes()


@pytest.mark.parametrize(
    ("points", "kind"),
    [
        (points_of(10), "too_few_points"),
        (np.full((100, 3), np.nan), "not_finite"),
        (np.zeros((0, 3)), "too_few_points"),
    ],
)
def test_process__clouds_that_are_none_are_failures(
    tmp_path: Path, points: NDArray[Any], kind: str
) -> None:
    np.save(tmp_path / "a.npy", points)
    dataset = PointsDataset(tmp_path)
    (record,) = by_uid(dataset).values()
    item = process(record, settings_of(dataset))
    assert isinstance(item, Failure)
    assert (item.stage, item.error) == ("load", kind)


@pytest.mark.parametrize(
    ("mesh", "colored"),
    [
        ("cc0-meshes/meshes/base_meshes__mug.glb", False),
        ("cc0-meshes/meshes/pmndrs__police-car.glb", True),
        ("textured/Avocado.glb", True),
    ],
)
def test_process__points_of_a_real_mesh_match_the_mesh(
    assets_dir: Path, tmp_path: Path, mesh: str, colored: bool
) -> None:
    solid = load_mesh(assets_dir / mesh).normalised()
    points = sample_points(solid, 9000, seed=1, n_fps=0)
    put(tmp_path, "a.ply", ply_bytes(points.xyz * 40 + 7, points.rgb if colored else None))
    dataset = PointsDataset(tmp_path)
    (record,) = by_uid(dataset).values()
    item = process(record, settings_of(dataset, n_points=2048, n_fps=512))
    assert isinstance(item, Processed)
    assert item.has_color == colored
    if not colored:
        assert (item.rgb == NEUTRAL_RGB).all()
    # The frame is the mesh's, but for points that none was drawn at the very edge of.
    from scipy.spatial import KDTree

    distances, nearest = KDTree(points.xyz).query(item.xyz)
    assert distances.max() < 0.03
    if colored:
        same = (points.rgb[nearest] == item.rgb).all(axis=1)
        assert same.mean() > 0.9
    # The picture is that of the mesh, silhouette and colours.
    from pipeline.renderers.raster import RasterRenderer

    seen = RasterRenderer().render(dataset.load(record).mesh, ring(2), RenderConfig(64))
    wanted = RasterRenderer().render(solid, ring(2), RenderConfig(64))
    a, b = seen[..., 3] > 127, wanted[..., 3] > 127
    assert (a & b).sum() / (a | b).sum() > 0.9
    if colored:
        both = a & b
        error = np.abs(seen[both][:, :3].astype(int) - wanted[both][:, :3]).mean()
        assert error < 30
