"""ModelNet40 and ScanObjectNN of the release as shard sets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.common import InputError
from pipeline.imports.openshape_eval import SCANOBJECTNN, EvalOptions, import_eval
from pipeline.imports.run import ImportSummary
from pipeline.shards import NEUTRAL_RGB, Contents, Row, ShardSet, compare_contents
from tests.pipeline.imports.release import WIDTH, small_teacher

__all__ = ["small_teacher"]
pytestmark = pytest.mark.usefixtures("small_teacher")
RNG = np.random.default_rng(3)
NAMES = ["airplane_0627", "night_stand_0201", "airplane_0628"]


def cloud(count: int = 90) -> np.ndarray[Any, Any]:
    return RNG.uniform(-1, 1, (count, 3)).astype(np.float32)


def modelnet(root: Path, clouds: list[Any] | None = None, names: list[str] = NAMES) -> Path:
    folder = root / "meta_data" / "modelnet40"
    folder.mkdir(parents=True, exist_ok=True)
    split = [{"name": name, "category": name.rsplit("_", 1)[0]} for name in names]
    (folder / "test_split.json").write_text(json.dumps(split))
    made = clouds or [{"xyz": cloud(), "rgb": np.full((90, 3), 100)} for _ in names]
    array = np.empty(len(made), object)
    array[:] = made
    np.save(folder / "test_pc.npy", array, allow_pickle=True)
    features = {
        name: {"open_clip_text_feat": RNG.normal(size=(1, WIDTH)).astype(np.float32)}
        for name in ("airplane", "night_stand")
    }
    np.save(folder / "cat_name_pt_feat.npy", np.array(features, object), allow_pickle=True)
    return folder


def scan(root: Path, **changes: Any) -> Path:
    folder = root / "meta_data" / "scanobjectnn"
    folder.mkdir(parents=True, exist_ok=True)
    values = {"xyz": np.stack([cloud(), cloud()]), "label": np.array([14, 1]), **changes}
    path = folder / "xyz_label.npy"
    np.save(path, np.array(values, object), allow_pickle=True)
    return path


def run(root: Path, out: Path, name: str, **changes: Any) -> ImportSummary:
    return import_eval(replace(EvalOptions(root, str(out), name, rows_per_part=2), **changes))


def rows(out: Path) -> list[Row]:
    shards = ShardSet.open(out)
    found = [row for group in shards.row_groups for row in shards.rows(group)]
    return sorted(found, key=lambda row: row.uid)


def test_modelnet40__clouds_with_category_and_its_feature(tmp_path: Path) -> None:
    folder = modelnet(tmp_path)
    summary = run(tmp_path, tmp_path / "out", "modelnet40")
    assert (summary.imported, summary.failed) == (3, 0)
    assert compare_contents(tmp_path / "out") == Contents(2, [], [])
    found = rows(tmp_path / "out")
    assert [row.uid for row in found] == [f"modelnet40/{name}" for name in sorted(NAMES)]
    assert [row.category for row in found] == ["airplane", "airplane", "night stand"]
    assert {row.split for row in found} == {"test"}
    assert not any(row.has_color for row in found)  # 100 throughout: the release's "none"
    assert all((row.rgb == NEUTRAL_RGB).all() for row in found)
    assert found[2].texts == ["night stand"]
    assert found[2].text_sources == ["category"]
    oracle = np.load(folder / "cat_name_pt_feat.npy", allow_pickle=True).item()
    expected = oracle["night_stand"]["open_clip_text_feat"]
    np.testing.assert_allclose(found[2].text_embeds, expected / np.linalg.norm(expected), atol=1e-3)
    manifest = ShardSet.open(tmp_path / "out").manifest
    assert (manifest.n_points, manifest.n_views, manifest.thumbnails) == (90, 0, False)
    again = run(tmp_path, tmp_path / "out", "modelnet40")
    assert (again.imported, again.skipped) == (0, 3)


def test_modelnet40__bad_clouds_are_failures(tmp_path: Path) -> None:
    modelnet(tmp_path, [{"xyz": cloud()}, {"xyz": np.full((90, 3), np.nan)}, "text"])
    summary = run(tmp_path, tmp_path / "out", "modelnet40")
    assert (summary.imported, summary.failed, summary.too_many_failures) == (1, 2, True)
    kinds = sorted(f.error for f in ShardSet.open(tmp_path / "out").failures())
    assert kinds == ["not_finite", "wrong_shape"]


def test_modelnet40__without_features_there_are_no_texts(tmp_path: Path) -> None:
    (modelnet(tmp_path) / "cat_name_pt_feat.npy").unlink()
    run(tmp_path, tmp_path / "out", "modelnet40", limit=1, n_points=40)
    (row,) = rows(tmp_path / "out")
    assert (list(row.texts), len(row.xyz)) == ([], 40)


@pytest.mark.parametrize("as_list", [False, True])
def test_scanobjectnn__labels_are_names(as_list: bool, tmp_path: Path) -> None:
    clouds = [cloud(), cloud()]
    scan(tmp_path, xyz=clouds if as_list else np.stack(clouds))
    run(tmp_path, tmp_path / "out", "scanobjectnn")
    found = rows(tmp_path / "out")
    assert [(row.uid, row.category) for row in found] == [
        ("scanobjectnn/00000", "toilet"),
        ("scanobjectnn/00001", "bin"),
    ]
    assert len(SCANOBJECTNN) == 15
    assert not found[0].has_color


def test_scanobjectnn__colours_in_0_to_1(tmp_path: Path) -> None:
    rgb = RNG.uniform(0, 1, (2, 90, 3))
    scan(tmp_path, rgb=rgb)
    run(tmp_path, tmp_path / "out", "scanobjectnn")
    (first, _) = rows(tmp_path / "out")
    assert first.has_color
    expected = np.rint(rgb[0] * 255).astype(np.uint8)
    np.testing.assert_array_equal(
        np.sort(first.rgb.view("u1,u1,u1").ravel()), np.sort(expected.view("u1,u1,u1").ravel())
    )


def test_eval_sets__what_is_wrong_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"modelnet40/test_split\.json: not there"):
        run(tmp_path, out, "modelnet40")
    modelnet(tmp_path, [{"xyz": cloud()}])
    with pytest.raises(InputError, match=r"not a list of the 1 shapes of test_pc\.npy"):
        run(tmp_path, out, "modelnet40")
    modelnet(tmp_path, names=["a_1", "a_1"])
    with pytest.raises(InputError, match="a_1 comes twice"):
        run(tmp_path, out, "modelnet40")
    scan(tmp_path, label=np.array([0, 15]))
    with pytest.raises(InputError, match="a label is not a number from 0 to 14"):
        run(tmp_path, out, "scanobjectnn")
    path = scan(tmp_path, label=np.array([0]))
    with pytest.raises(InputError, match="no xyz with as many labels"):
        run(tmp_path, out, "scanobjectnn")
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"xyz_label\.npy: .*download it again"):
        run(tmp_path, out, "scanobjectnn")
    scan(tmp_path, xyz=Path("x"))
    with pytest.raises(InputError, match=r"unsafe_pickle: pathlib.*PosixPath"):
        run(tmp_path, out, "scanobjectnn")
    assert not out.exists()
