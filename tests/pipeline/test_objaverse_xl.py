"""Dataset ``objaverse-xl``: annotations, addresses, SHA-256, clones under ``--root``."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trimesh

from pipeline.common import InputError
from pipeline.datasets.base import Record
from pipeline.datasets.downloads import Policy
from pipeline.datasets.objaverse_xl import ObjaverseXLDataset
from pipeline.datasets.sources import SourceOptions, make_dataset
from pipeline.scene import MeshError
from tests.pipeline.hub_server import Hub, serving

FAST = Policy(attempts=3, pause_s=0.01, idle_s=2.0, total_s=10.0)
ANNOTATIONS = "huggingface.co/datasets/allenai/objaverse-xl/resolve/main"
COMMIT = "ead0bed6a76012452273bbe18d12e4d68a881956"
REPO = f"https://github.com/Some-Org/shapes/blob/{COMMIT}"
RAW = f"raw.githubusercontent.com/Some-Org/shapes/{COMMIT}"
SMITHSONIAN = "https://3d-api.si.edu/content/document/3d_package:6dd-c7/resources/Vase-150k.glb"
THING = "https://www.thingiverse.com/thing:3960381/files?fileId=77"
SKETCHFAB = "https://sketchfab.com/3d-models/8476c4170df24cf5bbe6967222d1a42d"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"


def box(file_type: str, height: float = 2.0) -> bytes:
    data = trimesh.creation.box(extents=(1, height, 1)).export(file_type=file_type)
    return data.encode() if isinstance(data, str) else bytes(data)


def row(identifier: str, file_type: str, data: bytes, **metadata: Any) -> dict[str, Any]:
    return {
        "fileIdentifier": identifier,
        "source": "x",
        "license": "CC0",
        "fileType": file_type,
        "sha256": hashlib.sha256(data).hexdigest(),
        "metadata": json.dumps(metadata),
    }


FILES = {
    f"{REPO}/parts/Old chair_01.glb": box("glb", 3),
    f"{REPO}/lamp/model.stl": box("stl"),
    f"{REPO}/scene.obj": b"mtllib m.mtl\nusemtl red\nv 0 0 0\nv 1 0 0\nv 0 2 0\nf 1 2 3\n",
    f"{REPO}/thing.blend": b"BLENDER",
    SMITHSONIAN: box("glb", 4),
    THING: box("stl", 5),
    SKETCHFAB: box("glb", 6),
}


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


@pytest.fixture
def hub() -> Iterator[Hub]:
    """The hub and the other sites as one mirror has them: /host/path."""
    parts: dict[str, list[dict[str, Any]]] = {
        "github": [row(f, f.rsplit(".", 1)[1], FILES[f]) for f in FILES if f.startswith(REPO)],
        "smithsonian": [row(SMITHSONIAN, "glb", FILES[SMITHSONIAN], title="A blue vase")],
        "thingiverse": [row(THING, "STL", FILES[THING], filename="whistle_v2.stl")],
        "sketchfab": [row(SKETCHFAB, "glb", FILES[SKETCHFAB])],
    }
    del parts["sketchfab"][0]["metadata"]  # as it is published
    with serving() as server:
        for part, rows in parts.items():
            server.files[f"{ANNOTATIONS}/{part}/{part}.parquet"] = parquet(rows)
        uid = SKETCHFAB.rsplit("/", 1)[1]
        objaverse = "huggingface.co/datasets/allenai/objaverse/resolve/main"
        server.put_json(f"{objaverse}/object-paths.json.gz", {uid: f"glbs/000-007/{uid}.glb"})
        server.files[f"{objaverse}/glbs/000-007/{uid}.glb"] = FILES[SKETCHFAB]
        for name in ("parts/Old chair_01.glb", "lamp/model.stl", "scene.obj"):
            server.files[f"{RAW}/{name}"] = FILES[f"{REPO}/{name}"]
        server.files[SMITHSONIAN.removeprefix("https://")] = FILES[SMITHSONIAN]
        server.files["www.thingiverse.com/download:77"] = FILES[THING]
        yield server


def dataset(hub: Hub, tmp_path: Path, **options: Any) -> ObjaverseXLDataset:
    defaults: dict[str, Any] = {
        "cache": tmp_path / "cache",
        "mirror": hub.url,
        "package_folder": None,
        "policy": FAST,
    }
    return ObjaverseXLDataset(**{**defaults, **options})


def records(one: ObjaverseXLDataset) -> dict[str, Record]:
    found = list(one.records())
    assert one.count() == len(found) == len({record.uid for record in found})
    return {record.source: record for record in found}


def test_records__loadable_types_of_all_parts(tmp_path: Path, hub: Hub) -> None:
    found = records(dataset(hub, tmp_path))
    assert list(found) == [
        SMITHSONIAN,
        SKETCHFAB,
        THING,
        f"{REPO}/parts/Old chair_01.glb",
        f"{REPO}/lamp/model.stl",
    ]
    native = uuid.uuid5(uuid.NAMESPACE_DNS, SMITHSONIAN)
    assert found[SMITHSONIAN].uid == f"objaverse-xl/smithsonian/{native}"
    assert found[SKETCHFAB].uid.endswith("/sketchfab/8476c4170df24cf5bbe6967222d1a42d")
    texts = {
        name: list(zip(record.texts, record.text_sources, strict=True))
        for name, record in found.items()
    }
    assert texts == {
        SMITHSONIAN: [("A blue vase", "name")],
        SKETCHFAB: [],
        THING: [("whistle_v2.stl", "name")],
        f"{REPO}/parts/Old chair_01.glb": [("Old chair_01", "name")],
        f"{REPO}/lamp/model.stl": [("lamp", "folder")],
    }
    assert not any("CC0" in record.texts for record in found.values())


def test_load__every_part_is_fetched_and_checked(tmp_path: Path, hub: Hub) -> None:
    one = dataset(hub, tmp_path)
    for _ in range(2):
        for name, record in records(one).items():
            asset = one.load(record)
            assert asset.sha256 == hashlib.sha256(FILES[name]).hexdigest()
            extent = asset.mesh.vertices.max(0) - asset.mesh.vertices.min(0)
            # Prints have z up; all boxes are longest in y of the file.
            assert np.argmax(extent) == (2 if name == THING else 1)
    assert max(count for name, count in hub.requests.items() if "parquet" not in name) == 1
    assert len([p for p in (tmp_path / "cache" / "objects").rglob("*.*") if p.name[0] != "."]) == 5


def test_load__up_axis_overrides_what_a_part_says(tmp_path: Path, hub: Hub) -> None:
    one = dataset(hub, tmp_path, subset="thingiverse", up_axis="+y")
    mesh = one.load(records(one)[THING]).mesh
    assert np.argmax(mesh.vertices.max(0) - mesh.vertices.min(0)) == 1
    with pytest.raises(InputError, match="--up-axis 'up' is unknown"):
        next(dataset(hub, tmp_path, up_axis="up").records())


def test_load__a_file_that_changed_at_its_source_is_a_failure(tmp_path: Path, hub: Hub) -> None:
    one = dataset(hub, tmp_path, subset="thingiverse")
    hub.files["www.thingiverse.com/download:77"] = box("stl", 9)
    with pytest.raises(MeshError, match=r"its SHA-256 is .* was published") as caught:
        one.load(records(one)[THING])
    assert (caught.value.stage, caught.value.kind) == ("fetch", "download_failed")


def test_load__git_lfs_is_followed(tmp_path: Path, hub: Hub) -> None:
    name = f"{REPO}/parts/Old chair_01.glb"
    hub.files[f"{RAW}/parts/Old chair_01.glb"] = LFS_POINTER
    hub.files[
        f"media.githubusercontent.com/media/Some-Org/shapes/{COMMIT}/parts/Old chair_01.glb"
    ] = FILES[name]
    one = dataset(hub, tmp_path, subset="github")
    assert one.load(records(one)[name]).sha256 == hashlib.sha256(FILES[name]).hexdigest()


def test_load__a_file_that_is_gone_names_all_addresses(tmp_path: Path, hub: Hub) -> None:
    one = dataset(hub, tmp_path, subset="github", delete_after_use=True)
    hub.script[f"{RAW}/lamp/model.stl"] = ["404"]
    with pytest.raises(MeshError, match=r"raw\.github.* 404 .*media\.github.* 404") as caught:
        one.load(records(one)[f"{REPO}/lamp/model.stl"])
    assert caught.value.kind == "download_failed"
    one.load(records(one)[f"{REPO}/parts/Old chair_01.glb"])
    assert not [p for p in (tmp_path / "cache" / "objects").rglob("*") if p.suffix]


@pytest.mark.parametrize(
    ("part", "identifier"),
    [
        ("smithsonian", "https://elsewhere.org/x.glb"),
        ("smithsonian", "http://3d-api.si.edu/x.glb"),
        ("smithsonian", "https://evil-si.edu/x.glb"),
        ("thingiverse", "https://www.thingiverse.com/thing:1/files?fileId=../../x"),
        ("github", f"https://github.com/a/b/blob/{COMMIT}/../../../x.glb"),
        ("github", "file:///etc/passwd"),
        ("sketchfab", "https://sketchfab.com/3d-models/unknown"),
    ],
)
def test_load__an_address_of_another_form_is_not_fetched(
    tmp_path: Path, hub: Hub, part: str, identifier: str
) -> None:
    hub.files[f"{ANNOTATIONS}/{part}/{part}.parquet"] = parquet([row(identifier, "glb", b"x")])
    one = dataset(hub, tmp_path, subset=part)
    record = records(one)[identifier]
    before = sum(hub.requests.values())
    with pytest.raises(MeshError) as caught:
        one.load(record)
    assert caught.value.kind == "download_failed"
    assert sum(hub.requests.values()) == before


def as_the_package_leaves_it(hub: Hub, root: Path) -> Path:
    uid = SKETCHFAB.rsplit("/", 1)[1]
    native = uuid.uuid5(uuid.NAMESPACE_DNS, SMITHSONIAN)
    files = {
        f"smithsonian/objects/{native}.glb": FILES[SMITHSONIAN],
        "thingiverse/thing-3960381-file-77.stl": FILES[THING],
        f"hf-objaverse-v1/glbs/000-007/{uid}.glb": FILES[SKETCHFAB],
        "hf-objaverse-v1/object-paths.json.gz": gzip.compress(
            json.dumps({uid: f"glbs/000-007/{uid}.glb"}).encode()
        ),
        "github/repos/Some-Org/shapes/m.mtl": b"newmtl red\nKd 1 0 0\n",
    }
    for part in ("github", "smithsonian", "thingiverse", "sketchfab"):
        files[f"{part}/{part}.parquet"] = hub.files[f"{ANNOTATIONS}/{part}/{part}.parquet"]
    for name, data in FILES.items():
        if name.startswith(REPO):
            files[f"github/repos/Some-Org/shapes{name.removeprefix(REPO)}"] = data
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def test_root__what_the_package_fetched_is_used_with_the_files_beside_it(
    tmp_path: Path, hub: Hub
) -> None:
    root = as_the_package_leaves_it(hub, tmp_path / "root")
    one = dataset(hub, tmp_path, root=root, cache=None)
    found = records(one)
    assert len(found) == 6
    for name, record in found.items():
        assert one.load(record).sha256 == hashlib.sha256(FILES[name]).hexdigest()
    red = one.load(found[f"{REPO}/scene.obj"]).mesh.materials[0]
    assert red.base_color[:3] == pytest.approx((1, 0, 0), abs=1e-3)
    assert not hub.requests


def test_root__a_missing_or_changed_file_is_a_failure(tmp_path: Path, hub: Hub) -> None:
    root = as_the_package_leaves_it(hub, tmp_path / "root")
    one = dataset(hub, tmp_path, root=root, cache=None)
    found = records(one)
    (root / "github/repos/Some-Org/shapes/scene.obj").write_bytes(b"v 0 0 0\n")
    (root / "thingiverse/thing-3960381-file-77.stl").unlink()
    for name, said in ((f"{REPO}/scene.obj", "scene.obj is damaged"), (THING, "is not there")):
        with pytest.raises(MeshError, match=said) as caught:
            one.load(found[name])
        assert "nothing is fetched with --root alone" in caught.value.message
        assert caught.value.kind == "download_failed"


def test_root__objects_are_those_whose_files_are_there(
    tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    root = as_the_package_leaves_it(hub, tmp_path / "root")
    (root / "github/repos/Some-Org/shapes/scene.obj").unlink()
    (root / "thingiverse/thing-3960381-file-77.stl").unlink()
    one = dataset(hub, tmp_path, root=root, cache=None)
    assert set(records(one)) == {
        *(SMITHSONIAN, SKETCHFAB),
        *(f"{REPO}/parts/Old chair_01.glb", f"{REPO}/lamp/model.stl"),
    }
    assert "2 more objects have no file in --root and are skipped" in capsys.readouterr().err
    things = dataset(hub, tmp_path, root=root, cache=None, subset="thingiverse")
    with pytest.raises(InputError, match="holds none of the 1 files that the annotations name"):
        next(things.records())
    (root / "github/github.parquet").unlink()
    with pytest.raises(InputError, match=r"github\.parquet is not there; .* with --subset$"):
        list(one.records())


def test_root__a_link_that_leads_out_is_not_followed(tmp_path: Path, hub: Hub) -> None:
    root = as_the_package_leaves_it(hub, tmp_path / "root")
    inside = root / "github/repos/Some-Org/shapes/lamp/model.stl"
    outside = tmp_path / "model.stl"
    inside.rename(outside)
    inside.symlink_to(outside)
    one = dataset(hub, tmp_path, root=root, cache=None, subset="github")
    with pytest.raises(MeshError, match="is not there"):
        one.load(records(one)[f"{REPO}/lamp/model.stl"])


def test_records__missing_broken_or_old_annotations_are_input_errors(
    tmp_path: Path, hub: Hub
) -> None:
    name = f"{ANNOTATIONS}/github/github.parquet"
    whole = hub.files[name]
    hub.script[name] = ["truncated", "cut", "ok"]
    assert len(records(dataset(hub, tmp_path, subset="github"))) == 2
    hub.script[name] = ["404"]
    with pytest.raises(InputError) as caught:
        next(dataset(hub, tmp_path, subset="github", cache=tmp_path / "new").records())
    assert f"get {hub.url}/{name} by hand, put it into a folder as github/github.parquet" in str(
        caught.value
    )
    root = tmp_path / "root" / "github"
    root.mkdir(parents=True)
    (root / "github.parquet").write_bytes(whole[:-9])
    with pytest.raises(InputError, match="damaged: not a whole Parquet file"):
        next(dataset(hub, tmp_path, subset="github", cache=None, root=root.parent).records())
    (root / "github.parquet").write_bytes(parquet([{"githubUrl": "x", "sha256": "y"}]))
    with pytest.raises(InputError, match=r"has no column 'fileIdentifier' \(it has githubUrl, sha"):
        next(dataset(hub, tmp_path, subset="github", cache=None, root=root.parent).records())


def test_options__say_no_path_and_the_dataset_is_picklable(tmp_path: Path, hub: Hub) -> None:
    one = dataset(hub, tmp_path, root=tmp_path)
    assert str(tmp_path) not in json.dumps(one.options)
    assert one.options["types"] == ["glb", "ply", "stl", "dae", "gltf", "obj"]
    assert pickle.loads(pickle.dumps(one)) == one


def test_source__builds_from_the_options_of_the_command(tmp_path: Path) -> None:
    made = make_dataset(
        "objaverse-xl", SourceOptions(root=tmp_path, subset="smithsonian", up_axis="+z")
    )
    assert isinstance(made, ObjaverseXLDataset)
    assert (made.root, made.subset, made.up_axis) == (tmp_path, "smithsonian", "+z")
    with pytest.raises(InputError, match=r"smithsonian/smithsonian\.parquet is not there"):
        next(iter(made.records()))


def test_packages__are_not_needed() -> None:
    code = (
        "import sys; sys.modules['objaverse'] = None\n"
        "import pipeline.datasets.objaverse_xl, pipeline.datasets.objaverse"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
